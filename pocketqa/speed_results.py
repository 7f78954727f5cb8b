"""Results of kinds "ablation" and "training-speed": what stands under `results` in their run files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pocketqa.errors import OptionsError
from pocketqa.results import check_rows
from pocketqa.statistics import Interval
from pocketqa.types import JSON

ROW = ("name", "words", "against", "f1", "exact_match", "seeds", "difference", "paper")


def ablation_results(measure: str, reference: str, rows: Sequence[JSON], *, extra: JSON | None = None) -> JSON:
    """Results of kind "ablation".

    measure: what F1 is of, in words; reference: name of the row that the others are compared with unless they name another.
    rows, each with: "name"; "words" (what was changed); "against" (name of another row, None for the row that is one itself); "f1", "exact_match"
    (percent, means over the seeds); "seeds" (a list of "seed", "f1", "difference"); "difference" (of F1 to `against`: a paired interval, None for a
    reference); "paper" (the difference that the paper gives in its own measure, None where it has none).  A row may have "retention": F1 in percent
    of a teacher's, a paired interval.
    Raises OptionsError for rows without these entries or against a row that is not there.
    """
    names = [row.get("name") for row in rows]
    check_rows("A row of an ablation needs", rows, ROW)
    if reference not in names or any(row["against"] not in (None, *names) for row in rows):
        raise OptionsError(f"A row of an ablation is compared with another of its rows ({', '.join(map(str, names))}).")
    return {"measure": measure, "reference": reference, "rows": list(rows), **(extra or {})}


def training_speed_results(
    workload: str,
    tokens_per_second: Mapping[str, Interval],
    ratio: Interval,
    waterfall: Sequence[JSON],
    *,
    matrix_rate: JSON | None = None,
    loss_difference: float | None = None,
    extra: JSON | None = None,
) -> JSON:
    """Results of kind "training-speed".

    workload: what was trained, in words; tokens_per_second: one interval a contestant; ratio: of the last contestant to the first, paired;
    waterfall: in the order in which the steps were taken, each with "step", "tokens_per_second" and, but for the first, "ratio" to the one before;
    matrix_rate: "measured_tflops" of bf16 products on this machine and "reached_tflops"; loss_difference: the largest between the contestants on the
    same batches, as a share of the loss; extra may hold it as it is, by precision, under "loss_difference_absolute".
    Raises OptionsError for a waterfall without these entries.
    """
    for i, row in enumerate(waterfall):
        if missing := [key for key in ("step", "tokens_per_second", *(("ratio",) if i else ())) if key not in row]:
            raise OptionsError(f"Row {i} of a waterfall needs {', '.join(missing)}.")
    return {
        "workload": workload,
        "tokens_per_second": {name: interval.to_json(2) for name, interval in tokens_per_second.items()},
        "ratio": ratio.to_json(),
        "waterfall": list(waterfall),
        "matrix_rate": matrix_rate,
        "loss_difference": loss_difference,
        **(extra or {}),
    }

"""From the evaluations of an ablation to its table: means over seeds, and differences paired by question and seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distillation.ablation.ablation_plan import Common, Plan, finetune_flags, recipe_of
from distillation.ablation.ablation_work import Row
from distillation.questions.finetune_recipe import ReaderRecipe
from distillation.training.recipes import Recipe
from pocketqa.errors import DataError, OptionsError
from pocketqa.reporting.tables import signed
from pocketqa.runs import DataFile, PerQuestion, RunFile, Subject, ablation_results, mean_difference, mean_ratio, new_run, per_question, read
from pocketqa.statistics import Interval
from pocketqa.types import JSON

F1 = NDArray[np.float64]

PAPER = (
    "The paper's differences (Sanh et al. 2019, table 4) are of the mean over the nine tasks of GLUE; ours are of F1 on questions after fine-tuning. "
    "Signs and order compare, sizes do not."
)
STAGES = (
    "A row that is fine-tuned in stages divides the epochs of the others among them: all rows take as many steps of fine-tuning, but for rounding."
)
SEVERAL = "the F1 of each question is averaged over the seeds first, so they do not cover the spread between seeds, which stands beside them."
ONE = "there is one seed, so they do not cover the spread between seeds."
MORE_TEXT = (
    "Rows distilled on text saw that text, and what their teacher had seen: unless the base saw as much, their gain is not distillation's alone."
)
NOT_BEATEN = "What rows keep of the teacher's F1 is not quoted, since the teacher is not shown to beat a row that was not distilled."


def ablation_run(plan: Plan, seeds: Sequence[int], common: Common, command: Sequence[str], verb: str, preset: str) -> RunFile:
    """The run file of a finished ablation.  verb: "evaluate" or "final".  Raises DataError where evaluations are of different questions."""
    evaluations = {row.name: [read(plan.evaluation(row.name, seed, verb).leaves) for seed in seeds] for row in plan.rows}
    reference = next(row.name for row in plan.rows if row.against is None)
    reader = next((row.name for row in plan.rows if row.start == "reader"), None)
    control = next((row.name for row in plan.rows if row.start in ("base", "student")), None)
    beaten = reader is not None and control is not None and _difference(evaluations[reader], evaluations[control])["low"] > 0
    rows = [_row(row, evaluations, seeds, reader if beaten else None) for row in plan.rows]
    first = evaluations[reference][0]
    count, data = first.results["count"], first.data[0]
    unit = first.results["intervals"]["resampled"]
    seeds_words = f"means of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    measure = f"EM and F1 on {count:,} questions of {data.name} after fine-tuning, {seeds_words}"
    notes = [
        *([PAPER] if any(row.paper is not None for row in plan.rows) else []),
        *_to_reference(plan.rows, evaluations, reference),
        f"Intervals resample {unit}; {SEVERAL if len(seeds) > 1 else ONE}",
        f"Each distillation saw {common.tokens:,} tokens of text; the paper's saw three passes over a far larger corpus.",
        *([MORE_TEXT] if {None, "base"} <= {row.start for row in plan.rows} else []),
        *_settings(plan, common),
        *([STAGES] if any(row.stages for row in plan.rows) else []),
        *([NOT_BEATEN] if reader is not None and not beaten else []),
    ]
    extra: JSON = {
        "data": {"name": data.name, "split": data.split, "count": count},  # what the scores are of
        "notes": notes,
        "tokens": common.tokens,
        "seeds": list(seeds),
        "left_out": list(plan.left_out),
    }
    subjects = [Subject(row.name, row.words, evaluations[row.name][0].subjects[0].sha256, "pytorch") for row in plan.rows]
    files = [DataFile(data.name, data.sha256, count, data.split)]
    name = f"{preset} {'development' if verb == 'evaluate' else 'squad-dev'}"
    return new_run("ablation", name, subjects, files, command, ablation_results(measure, reference, rows, extra=extra))


def _to_reference(rows: Sequence[Row], evaluations: dict[str, list[RunFile]], reference: str) -> list[str]:
    """A sentence for each row that the table compares with another than the reference."""
    words = {row.name: row.words for row in rows}
    apart = {row.name: _difference(evaluations[row.name], evaluations[reference]) for row in rows if row.against not in (None, reference)}
    return [f"{words[name]}, less {words[reference]}: F1 {signed(Interval.from_json(found))}." for name, found in apart.items()]


def _settings(plan: Plan, common: Common) -> list[str]:
    """A sentence for all rows that were trained with the same settings: what differs is not the method alone."""
    from distillation.knowledge.distill_recipe import DistillRecipe  # torch takes seconds to load, and --help needs none of it

    said: dict[str, list[str]] = {}
    for row in plan.rows:
        text = [recipe_of(DistillRecipe, (*common.distill_flags, *row.distill))] if row.start is None else []
        questions = [recipe_of(ReaderRecipe, flags) for flags in finetune_flags(row, common)] if row.start != "reader" else []
        words = [f"{where}: {_recipe(recipe)}" for where, found in (("text", text), ("questions", questions)) for recipe in found]
        if words:
            said.setdefault("; ".join(words), []).append(row.name)
    return [f"Trained with {words} ({', '.join(names)})." for words, names in said.items()]


def _recipe(recipe: Recipe) -> str:
    tokens = recipe.batch_tokens * recipe.accumulation
    dropout = f"dropout {recipe.dropout:g} (attention {recipe.attention_dropout:g})"
    return f"learning rate {recipe.learning_rate:g}, {tokens:,} tokens a step, {dropout}, {recipe.precision}"


def _row(row: Row, evaluations: dict[str, list[RunFile]], seeds: Sequence[int], reader: str | None) -> JSON:
    ours = evaluations[row.name]
    theirs = evaluations[row.against] if row.against else None
    f1 = [float(run.results["f1"]) for run in ours]
    before = [float(run.results["f1"]) for run in theirs] if theirs else None
    return {
        "name": row.name,
        "words": row.words,
        "against": row.against,
        "start": row.start,
        "distill": list(row.distill),
        "finetune": list(row.finetune),
        "stages": [list(stage) for stage in row.stages],
        "f1": round(float(np.mean(f1)), 6),
        "exact_match": round(float(np.mean([run.results["exact_match"] for run in ours])), 6),
        "seeds": [
            {"seed": seed, "f1": f1[i], "difference": round(f1[i] - before[i], 6) if before else None} for i, seed in enumerate(seeds)
        ],
        "difference": _difference(ours, theirs) if theirs else None,
        "retention": _retention(ours, evaluations[reader]) if reader not in (None, row.name) else None,
        "paper": row.paper,
    }  # fmt: skip


def _difference(ours: Sequence[RunFile], theirs: Sequence[RunFile]) -> JSON:
    """F1 of one row minus that of another, in points: paired by question and seed."""
    a, b, groups = _paired(ours, theirs)
    return mean_difference(a, b, groups).scaled(100).to_json()


def _retention(ours: Sequence[RunFile], reader: Sequence[RunFile]) -> JSON | None:
    """F1 of one row in percent of the reader's, paired likewise; None where the reader has nothing to retain."""
    a, b, groups = _paired(ours, reader)
    try:
        return mean_ratio(a, b, groups).scaled(100).to_json()
    except OptionsError:  # no right answer in some resample
        return None


def _paired(ours: Sequence[RunFile], theirs: Sequence[RunFile]) -> tuple[F1, F1, NDArray[np.int64] | None]:
    """F1 (N,) of the questions of two rows, means over the seeds, and what intervals resample."""
    values = [per_question(run.results, run.name) for run in (*ours, *theirs)]
    if len({value.ids_sha256 for value in values}) > 1:
        raise DataError("The evaluations of an ablation are of different questions. Delete `evaluate` in --out and give the command again.")
    a, b = (_mean_of_seeds(part) for part in (values[: len(ours)], values[len(ours) :]))  # (N,)
    return a, b, values[0].groups


def _mean_of_seeds(values: Sequence[PerQuestion]) -> F1:
    return np.asarray(np.mean([value.f1 for value in values], axis=0))

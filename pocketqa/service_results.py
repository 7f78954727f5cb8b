"""Results of kind "service": what stands under `results` in the run file of a race between servers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pocketqa.errors import OptionsError
from pocketqa.results import check_rows
from pocketqa.statistics import Interval
from pocketqa.types import JSON

POINT = ("users", "contestant", "count", "p50", "p99", "rate", "exact_match", "f1", "client_share", "server_share", "failures")
RATIO = ("users", "against", "of", "value", "low", "high")
MEASURES = ("p50", "p99", "rate")
COST = ("tokens", "windows", "client_ms", "forward_ms")


def service_results(
    workload: str,
    contestants: Mapping[str, str],
    points: Sequence[JSON],
    ratios: Sequence[JSON],
    *,
    costs: Sequence[JSON] = (),
    matrix_rate: JSON | None = None,
    bars: Sequence[JSON] = (),
    load: JSON | None = None,
    extra: JSON | None = None,
) -> JSON:
    """Results of kind "service".

    workload: what was asked, in words; contestants: name -> what it is, in words, ours first.
    points, one a contestant and number of users: "count" (answers), "p50" and "p99" (milliseconds), "rate" (answers a second, an interval),
    "exact_match" and "f1" (percent), "client_share" and "server_share" (CPU seconds a second), "failures";
    where known "same_answers", percent that equal the plain server's, and "same_spans", percent (an interval) that equal its own to the fewest users.
    ratios: how many times better ours is than another ("against") at so many "users": "of" is "p50", "p99" (times faster) or "rate" (times as many).
    costs, of ours at one user: "tokens", "windows", "client_ms", "forward_ms".  matrix_rate: "measured" and, for each contestant, "reached" TFLOP/s.
    bars: what was wanted, each with "against", "users", "of", "least" (against "A" means the better of the plain servers).
    load: "others" (share of all cores that other processes used), "busy" and "reasons".
    Raises OptionsError for entries that are missing or name no contestant.
    """
    for name, rows, keys in (("point", points, POINT), ("ratio", ratios, RATIO), ("cost", costs, COST)):
        check_rows(f"A {name} of a service run needs", rows, keys)
    named = {row["contestant"] for row in points} | {row["against"] for row in ratios}
    if unknown := sorted(named - set(contestants)):
        raise OptionsError(f"Expected the contestants {', '.join(contestants)}; found {', '.join(unknown)}.")
    if wrong := sorted({row["of"] for row in ratios} - set(MEASURES)):
        raise OptionsError(f"A ratio of a service run is of {', '.join(MEASURES)}; found {', '.join(wrong)}.")
    return {
        "workload": workload,
        "contestants": dict(contestants),
        "points": list(points),
        "ratios": list(ratios),
        "costs": list(costs),
        "matrix_rate": matrix_rate,
        "bars": list(bars),
        "busy": bool(load and load["busy"]),
        "load": load or {},
        **(extra or {}),
    }


def contestants_of(results: JSON) -> dict[str, str]:
    """Name and words of each contestant in the order of the points, ours first; a run file sorts its keys."""
    return {row["contestant"]: str(results["contestants"][row["contestant"]]) for row in results["points"]}


def ratio_row(users: int, against: str, of: str, interval: Interval) -> JSON:
    """A row of `ratios`."""
    return {"users": users, "against": against, "of": of, **interval.to_json(4)}


def judge(results: JSON, bar: JSON) -> JSON | None:
    """The ratio that a bar is about: against "A" the lowest, since the better of the plain servers counts; None where it was not measured."""
    plain = [name for name in results["contestants"] if name.startswith("A")] if bar["against"] == "A" else [bar["against"]]
    found = [row for row in results["ratios"] if row["against"] in plain and row["users"] == bar["users"] and row["of"] == bar["of"]]
    return min(found, key=lambda row: float(row["value"]), default=None)


def verdict(row: JSON, least: float) -> str:
    """Whether a bar is reached or missed: by the whole interval, or by the value alone; a single round shows neither."""
    if row.get("alone"):
        return "not shown: one round has no interval"
    if row["low"] >= least:
        return "reached"
    if row["value"] >= least:
        return "reached, the interval reaches below"
    return "missed, the interval reaches above" if row["high"] >= least else "missed"

"""Results of kind "load": the times of a load test, and the rates at which servers were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pocketqa.errors import OptionsError
from pocketqa.results import timing_results
from pocketqa.statistics import Interval, TimingSummary
from pocketqa.types import JSON

QUANTILES = (50, 90, 99)
POINT = ("contestant", "round", "rate", "seconds", "count", "failures", "p50", "p90", "p99", "found", "within")
FOUND = ("objective", "rates", "points")


def load_results(
    workload: str,
    timings: Mapping[str, TimingSummary],
    ratios: Mapping[str, Interval] | None = None,
    *,
    stages: JSON | None = None,
    where: JSON | None = None,
    quantiles: JSON | None = None,
    intervals: JSON | None = None,
    search: JSON | None = None,
    extra: JSON | None = None,
) -> JSON:
    """Results of kind "load".

    workload, timings, ratios: as of `timing_results`.  stages: contestant -> stage -> summary; where: contestant -> name of a part -> its mean
    milliseconds, which add up to "whole"; quantiles: contestant -> minimum, percentiles and maximum (101 values, milliseconds);
    intervals: contestant -> "p50", "p90" and "p99" with their ends (milliseconds).
    search: what was found of the highest rates: "objective" ("p99<250ms"), "rates" (contestant -> interval, or None where the objective held at no
    rate), "ratios" (contestant -> how many times the rate of that contestant ours has) and "points", made by `load_point`.
    Raises OptionsError where parts of the search are missing.
    """
    if search is not None:
        missing = [key for key in FOUND if key not in search]
        missing += sorted({key for row in search.get("points", ()) for key in POINT if key not in row})
        if missing:
            raise OptionsError(f"A search for the highest rate needs {', '.join(FOUND)}, and a point of it {', '.join(POINT)}; {missing} missing.")
    parts = {"stages": stages, "where": where, "quantiles": quantiles, "intervals": intervals, "search": search}
    return timing_results(workload, timings, ratios, extra={name: part for name, part in parts.items() if part} | (extra or {}))


def load_point(contestant: str, number: int, rate: float, seconds: float, times: Sequence[float], failures: int, found: float, within: bool) -> JSON:
    """A row of `points`: what was seen at one rate (requests a second) in so many seconds.

    number: of the round; times: milliseconds of the right answers; found: what the objective limits, None in the row where it is infinite.
    """
    percentiles = np.percentile(times, QUANTILES) if len(times) else [None] * len(QUANTILES)
    row: JSON = {"contestant": contestant, "round": number, "rate": rate, "seconds": round(seconds, 1), "count": len(times), "failures": failures}
    row |= {f"p{q}": None if value is None else round(float(value), 2) for q, value in zip(QUANTILES, percentiles, strict=True)}
    return row | {"found": None if math.isinf(found) else round(found, 2), "within": within}

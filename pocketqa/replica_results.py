"""Results of kind "replicas": one replica against two of half its threads, and what is lost when one of two ends."""

from __future__ import annotations

from collections.abc import Sequence

from pocketqa.results import check_rows
from pocketqa.types import JSON

POINT = ("setup", "count", "p50", "p90", "p99", "failures")
RATIO = ("of", "value", "low", "high")
EVENT = ("event", "sent", "statuses", "cut", "wrong", "longest", "clean")


def replica_results(
    workload: str,
    points: Sequence[JSON],
    ratios: Sequence[JSON],
    events: Sequence[JSON],
    *,
    void: Sequence[str] = (),
    load: JSON | None = None,
    extra: JSON | None = None,
) -> JSON:
    """Results of kind "replicas".

    workload: what was asked, in words.  points, one a set-up, one replica first: "count" (questions), "p50", "p90", "p99" (milliseconds from the time
    at which a question was due), "failures" (not answered with a 200).  ratios: how many times faster the second set-up is "of" a percentile.
    events: what came back when one of two replicas ended: "event" (in words), "sent", "statuses" (status -> count), "cut" (connections that ended),
    "wrong" (answers that are no span of their passage), "longest" (milliseconds), "clean" (nothing but answers and refusals).
    void: why runs say more about the client than about the set-ups.  load: "others" (share of all cores), "busy" and "reasons".
    Raises OptionsError for entries that are missing.
    """
    for name, rows, keys in (("point", points, POINT), ("ratio", ratios, RATIO), ("event", events, EVENT)):
        check_rows(f"The {name}s of a run of replicas need", rows, keys)
    return {
        "workload": workload,
        "points": list(points),
        "ratios": list(ratios),
        "events": list(events),
        "void": list(void),
        "busy": bool(load and load["busy"]),
        "load": load or {"others": None, "busy": False, "reasons": []},
        **(extra or {}),
    }

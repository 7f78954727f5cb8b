"""The tables of scale-out: two replicas against one, and what is lost when one of two ends."""

from __future__ import annotations

from collections.abc import Callable

from pocketqa.reporting.mobile_tables import busy_lines, joined, table_if_any
from pocketqa.reporting.tables import Runs, interval, model_cell, of_kind
from pocketqa.runs import RunFile
from pocketqa.statistics import Interval
from pocketqa.types import JSON

Link = Callable[[str, RunFile], str]

POINT_HEAD = ("behind the balancer", "p50", "p90", "p99", "questions", "not answered")
RATIO_HEAD = ("two replicas against one", "times faster [95 %]")
EVENT_HEAD = ("one of two replicas", "questions", "came back", "cut off", "wrong", "longest", "verdict")


def replica_lines(runs: Runs, link: Link) -> list[str]:
    """For each run both set-ups, their ratios, and what came back when a replica ended."""
    parts: list[list[str]] = []
    for name, run in of_kind(runs, "replicas").items():
        r = run.results
        parts.append([f"{', '.join(map(model_cell, run.subjects))}: {r['workload']}. {_where(r)}{link(name, run)}"])
        parts.append(table_if_any(POINT_HEAD, [_point_row(row) for row in r["points"]]))
        parts.append(table_if_any(RATIO_HEAD, [(row["of"], interval(Interval.from_json(row))) for row in r["ratios"]]))
        parts.append(table_if_any(EVENT_HEAD, [_event_row(row) for row in r["events"]]))
        parts.append([f"- Void: {reason}." for reason in r["void"]])
        parts.append(busy_lines(run))
    return joined(parts)


def _where(results: JSON) -> str:
    return "Servers and client on cores of their own. " if results.get("pinned") else "Servers and client share the cores. "


def _point_row(row: JSON) -> tuple[str, ...]:
    times = (f"{row[of]:.2f} ms" for of in ("p50", "p90", "p99"))
    return (row["setup"], *times, f"{row['count']:,}", f"{row['failures']:,}")


def _event_row(row: JSON) -> tuple[str, ...]:
    statuses = ", ".join(f"{count:,} with {status}" for status, count in row["statuses"].items())
    verdict = "nothing but answers and clean refusals" if row["clean"] else "not clean"
    return (row["event"], f"{row['sent']:,}", statuses, f"{row['cut']:,}", f"{row['wrong']:,}", f"{row['longest']:.0f} ms", verdict)

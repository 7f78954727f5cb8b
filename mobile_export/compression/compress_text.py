"""What `pocketqa compress` prints for people."""

from __future__ import annotations

import shlex
from collections import Counter

from mobile_export.targets import MIXED
from mobile_export.verification.verify_text import block
from pocketqa.statistics import Interval
from pocketqa.types import JSON

MEGABYTE = 1e6


def summary(report: JSON, data: str | None) -> str:
    """The points of a search, the new bundle, the next command.  data: the file that was measured on, where there was one."""
    lines = [_front(report), ""] if report["scheme"] == MIXED else []
    if report["out"] is None and report["scheme"] != MIXED:
        sound = not report["verification"]["problems"]
        why = f"it is not shown to lose less than {report['max_f1_drop']:g} F1" if sound else "it is not sound"
        return f"{block(report['verification'])}\nNothing was written: {why}."
    if report["out"] is None:
        nearest = min((point["f1_loss"] for point in report["points"]), key=lambda loss: float(loss["high"]))
        lines += [
            f"Nothing was written: of the points measured none is shown to lose less than {report['max_f1_drop']:g} F1; the nearest loses "
            f"{_interval(nearest)} on {report['questions']:,} questions.",
            "Ask more questions (--limit), which makes the intervals narrower, allow a larger --max-f1-drop, or take --scheme int8.",
        ]
        return "\n".join(lines)
    before, after = report["bytes_before"], report["bytes"]
    lines += [
        f"Wrote {report['out']}: {after['package'] / MEGABYTE:.2f} MB, was {before['package'] / MEGABYTE:.2f} MB "
        f"(zipped {after['zipped'] / MEGABYTE:.2f}, was {before['zipped'] / MEGABYTE:.2f}; 1 MB = 10^6 bytes)",
        "",
        block(report["verification"]),
        f"Next: pocketqa verify {shlex.quote(report['out'])} --data {shlex.quote(data or 'DATA.json')} --reference MODEL"
        "    (MODEL: the checkpoint that was exported)",
    ]
    return "\n".join(lines)


def _front(report: JSON) -> str:
    """The Pareto front as it was measured."""
    lines = [
        f"{report['name']} for {report['target']}: float16 has F1 {report['float16_f1']:.2f} on {report['questions']:,} questions",
        f"{'MB of weights':>14}{'F1':>8}  {'F1 lost, 95 % interval':24}schemes",
    ]
    for place, point in enumerate(report["points"]):
        counts = Counter(point["chosen"].values())
        schemes = ", ".join(f"{count} x {scheme}" for scheme, count in sorted(counts.items()))
        mark = f"  <- the smallest within {report['max_f1_drop']:g}" if place == report["selected"] else ""
        lines.append(f"{point['bytes'] / MEGABYTE:>14.2f}{point['f1']:>8.2f}  {_interval(point['f1_loss']):24}{schemes}{mark}")
    return "\n".join(lines)


def _interval(record: JSON) -> str:
    interval = Interval.from_json(record)
    return f"{interval.value:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"

"""What `pocketqa verify` prints for people."""

from __future__ import annotations

from collections.abc import Sequence

from mobile_export.verification.comparison import too_few
from pocketqa.statistics import Interval
from pocketqa.types import JSON

SHOWN = 10  # problems, and differing questions
MEGABYTE = 1e6


def block(report: JSON) -> str:
    """Everything about one bundle."""
    rows = [
        ("size", _sizes(report["bytes"])),
        ("engine", f"{report['engine']['engine']} {report['engine']['version']}, {report['engine']['threads']} threads"),
        ("golden vectors", _golden(report["golden"])),
        ("trace", "none in the bundle" if report["trace"] is None else f"{len(report['trace'])} differences"),
        ("hazards", f"{len(report['hazards'])}"),
        ("not finite, overflow", _watched(report)),
        *(("warning", warning) for warning in report["warnings"]),
    ]
    if report["results"]:
        rows += _results(report["results"])
    rows += [("not checked", text) for text in report["not_checked"]]
    title = f"{report['bundle']}: {report['name']}, {report['target']} {report['scheme']} ({report['format']}, {report['layout']} layout)"
    lines = [title, *(f"  {name:22}{text}" for name, text in rows), *(f"  WRONG: {text}" for text in report["problems"][:SHOWN])]
    if (more := len(report["problems"]) - SHOWN) > 0:
        lines.append(f"  ... and {more} more")
    return "\n".join([*lines, f"  {_verdict(report)}", ""])


def overview(reports: Sequence[JSON]) -> str:
    """One row a bundle."""
    head = ("bundle", "MB", "EM", "F1", "F1 loss", "same spans", "")
    rows = [head, *(_row(report) for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _row(report: JSON) -> tuple[str, ...]:
    results = report["results"]
    cells = [report["bundle"], f"{report['bytes']['package'] / MEGABYTE:.1f}"]
    cells += [f"{results['exact_match']:.2f}", f"{results['f1']:.2f}"] if results else ["", ""]
    agreement = results["agreement"] if results else None
    cells += [_interval(agreement["f1_loss"]), f"{agreement['same_spans']:.2f} %"] if agreement else ["", ""]
    return (*cells, _verdict(report))


def _results(results: JSON) -> list[tuple[str, str]]:
    intervals, agreement, gate = results["intervals"], results["agreement"], results["gate"]
    rows = [
        ("questions", f"{results['count']:,} in {results['seconds'] / 60:.1f} min"),
        ("exact match", _interval(intervals["exact_match"])),
        ("F1", _interval(intervals["f1"])),
    ]
    if agreement:
        rows += [
            ("exact match lost", _interval(agreement["exact_match_loss"])),
            ("F1 lost", _interval(agreement["f1_loss"])),
            ("same spans", f"{agreement['same_spans']:.2f} %, {agreement['differing_count']} of {agreement['count']:,} differ"),
            ("logits", f"differ by at most {agreement['max_difference']:.4g}, by {agreement['mean_difference']:.4g} on average; {_psnr(agreement)}"),
            *_differing(agreement),
        ]
    if gate:
        outcome = "passed" if gate["passed"] else "FAILED"
        counts = gate["questions"], gate["least_questions"]
        few = f"{too_few(*counts)}; " if counts[0] < counts[1] else ""
        rows.append(("gate", f"{outcome}: {few}upper end {gate['f1_loss']['high']:.3f} of the F1 loss, limit {gate['limit']:g}"))
    return rows


def _differing(agreement: JSON) -> list[tuple[str, str]]:
    """The questions that the reference was surest of, among those answered otherwise."""
    rows = []
    for question in agreement["differing"][:SHOWN]:
        gap = "alone" if question["gap"] is None else f"gap {question['gap']:.4f}"
        rows.append(("  differs", f"{question['id']}, {gap}: {question['reference']!r} became {question['artefact']!r}"))
    if agreement["differing"]:
        limit, every = agreement["close_calls"]["limit"], "all" if agreement["close_calls"]["all"] else "not all"
        rows.append(("close calls", f"{every} of them had a gap below {limit:g} logits between the reference's two best spans"))
    return rows


def _golden(golden: JSON) -> str:
    asked = f"{golden['questions']} questions, {golden['windows']} windows"
    if "share" not in golden:
        return f"{asked}: {len(golden['problems'])} problems"
    allowed = "" if golden["tolerance"] is None else f" ({golden['tolerance']:.1%} allowed)"
    return f"{asked}: logits differ by at most {golden['max_difference']:.4g}, {golden['share']:.2%} of their spread{allowed}"


def _sizes(sizes: JSON) -> str:
    package, weights, zipped = (f"{sizes[name] / MEGABYTE:.2f} MB" for name in ("package", "weights", "zipped"))
    return f"{package}, of which weights {weights}; zipped {zipped} (1 MB = 10^6 bytes)"


def _watched(report: JSON) -> str:
    if not report["watched"]:
        return "not looked at: the engine shows nothing of its operations"
    counts = f"{_total(report['non_finite'])}, {_total(report['overflow'])} values on {report['watched']} windows"
    return counts + "".join(f"; the largest is {value:.4g} in {operation}" for operation, value in report["largest"].items())


def _psnr(agreement: JSON) -> str:
    return "no noise" if agreement["psnr"] is None else f"PSNR {agreement['psnr']:.1f} dB"


def _verdict(report: JSON) -> str:
    if report["problems"]:
        return "BROKEN"
    return "sound" if report["passed"] else "GATE FAILED"


def _total(counts: JSON) -> int:
    return sum(counts.values())


def _interval(record: JSON) -> str:
    interval = Interval.from_json(record)
    return f"{interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]"

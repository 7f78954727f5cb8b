"""Figures from run files: quality beside size and latency, stages and distributions of latency, Pareto fronts, the zoo, and
those of training (training_figures.py) and of the service (service_figures.py).

matplotlib draws them (extra `report`), without a window system and without anybody's settings, so that the same run files give the same bytes with
the same matplotlib.
"""

from __future__ import annotations

import itertools
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from pocketqa.reporting.drawing import (
    BLACK,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    LABEL_WIDTH,
    MARKERS,
    ORANGE,
    SKY,
    STYLE,
    VERMILION,
    WIDE_SIZES,
    Picture,
    drawing_of,
    error_bar,
    height_of,
    legend,
    logarithmic,
    png,
    scale,
)
from pocketqa.reporting.load_figures import load_pictures
from pocketqa.reporting.mobile_tables import pareto, verifications
from pocketqa.reporting.service_figures import service_pictures
from pocketqa.reporting.tables import Runs, evaluations, of_kind, order_of
from pocketqa.reporting.training_figures import training_pictures
from pocketqa.runs import SPLITS, RunFile
from pocketqa.statistics import Interval
from pocketqa.types import JSON

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["Picture", "Point", "pictures", "quality_points"]

STAGES = (("tokenise", ORANGE, "////"), ("forward", BLUE, ""), ("decode", GREEN, "xxxx"))
QUANTILES = 101  # of a latency: minimum, percentiles, maximum
MODE_ORDER = ("full", "quick", "rapid")


@dataclass(frozen=True, slots=True)
class Point:
    """A form of a model: its F1 with interval, bytes and median latency (ms), as far as they are known."""

    model: str
    form: str
    f1: Interval
    size: float | None
    latency: float | None


def pictures(runs: Runs, titles: dict[str, str]) -> list[Picture]:
    """Every figure that these runs have something for.  titles: section of each split.  Needs matplotlib."""
    import matplotlib.style

    with matplotlib.style.context(["default", STYLE]):  # the second alone would add to the settings of whoever runs this
        return list(_pictures(runs, titles))


def _pictures(runs: Runs, titles: dict[str, str]) -> Iterator[Picture]:
    for split in SPLITS:
        points = [point for point in quality_points(runs, split) if point.size is not None]
        if points:
            yield _quality(points, split, titles[split])
    for name, run in of_kind(runs, "compression").items():
        if len(run.results["points"]) > 1:
            yield _front(name, run)
    for kind, section in (("latency", "Latency"), ("load", "Load")):
        for name, run in of_kind(runs, kind).items():
            if "zoo" not in run.results and run.results["timings"]:
                yield _latency(name, run, section)
    for name, run in of_kind(runs, "latency").items():
        if any("latency" in row for row in run.results.get("zoo", ())):
            yield _zoo(name, run)
    yield from training_pictures(runs)
    yield from service_pictures(runs)
    yield from load_pictures(runs)


def quality_points(runs: Runs, split: str) -> list[Point]:
    """Evaluations and verifications on a split, the last of each form, with the bytes and the latency that other runs have of the same weights."""
    points: dict[tuple[str, ...], Point] = {}
    found = (*evaluations(runs, split).values(), *verifications(runs, split).values())
    wholes: Counter[str] = Counter()
    for run in found:
        wholes[run.data[0].sha256] = max(wholes[run.data[0].sha256], run.results["count"])
    for run in sorted(found, key=lambda run: order_of(run.subjects[0])):
        subject, r = run.subjects[0], run.results
        timed = _latency_of(runs, run)
        verified = run.kind == "verification"
        size = r["bytes"]["package"] if verified else timed[0] if timed else None
        form = f"{r['target']} {r['scheme']}" if verified else f"{subject.engine} {subject.precision}"
        if verified and r["layout"] != "standard":
            form += f" {r['layout']}"
        if len(wholes) > 1:
            form += f" on {run.data[0].name}"
        if r["count"] < wholes[run.data[0].sha256]:  # scores of a sample do not compare with those of the whole file
            form += f", {r['count']:,} questions"
        f1 = Interval.from_json(r["intervals"]["f1"])
        points[subject.name, subject.sha256, form] = Point(subject.name, form, f1, size, timed[1] if timed else None)
    return list(points.values())


def _latency_of(runs: Runs, wanted: RunFile) -> tuple[float | None, float] | None:
    """Bytes and median milliseconds of a run's weights in its form: on SQuAD's lengths, with one thread, in the strictest mode, where there are."""
    subject = wanted.subjects[0]
    engines = {"coreml", "interpreter"} if subject.engine == "interpreter" else {subject.engine}  # the interpreter stands in for Core ML
    found = []
    for name, run in of_kind(runs, "latency").items():
        r = run.results
        for s in run.subjects:
            label = f"{s.name}, {s.engine} {s.precision}"
            if label in r["timings"] and s.sha256 == subject.sha256 and s.precision == subject.precision and s.engine in engines:
                mode = MODE_ORDER.index(r["mode"]) if r.get("mode") in MODE_ORDER else len(MODE_ORDER)
                rank = (not str(r["workload"]).startswith("squad"), s.threads or 0, mode, name)
                found.append((rank, r.get("bytes", {}).get(label, {}).get("package"), _milliseconds(r["timings"][label], "p50")))
    return min(found)[1:] if found else None


def _quality(points: Sequence[Point], split: str, section: str) -> Picture:
    """F1 against size, and against latency where any is known; a colour a model, a shape a form."""
    models, forms = (list(dict.fromkeys(getattr(point, name) for point in points)) for name in ("model", "form"))
    timed = [point for point in points if point.latency is not None]
    drawing, axes = drawing_of(4.6 + 0.2 * ((len(models) + len(forms)) // 4), 2 if timed else 1)
    panels = [(axes[0], "size, MB (10⁶ bytes)", [(point, point.size / 1e6) for point in points if point.size is not None])]
    if timed:
        panels.append((axes[1], "median latency, ms", [(point, point.latency) for point in timed if point.latency is not None]))
    for axis, label, places in panels:
        for point, x in places:
            colour, marker = COLOURS[models.index(point.model) % len(COLOURS)], MARKERS[forms.index(point.form) % len(MARKERS)]
            axis.errorbar(
                x, point.f1.value, error_bar(point.f1), fmt=marker, color=colour, ecolor=colour, elinewidth=0.8, capsize=2, markersize=7, alpha=0.9
            )
        axis.set_xlabel(label)
        scale(axis, [x for _, x in places], WIDE_SIZES)
    axes[0].set_ylabel("F1, percent, with 95 % interval")
    keys = [(model, COLOURS[i % len(COLOURS)], "_") for i, model in enumerate(models)]
    keys += [(form, GREY, MARKERS[i % len(MARKERS)]) for i, form in enumerate(forms)]
    legend(drawing, keys)
    best, least = max(points, key=lambda p: p.f1.value), min(points, key=lambda p: p.size or 0)
    alt = (
        f"Scatter of F1 against size{' and against latency' if timed else ''} for {len(points)} forms of {', '.join(models)} on {section}. "
        f"Highest F1: {best.model} {best.form} with {best.f1.value:.2f}. "
        f"Smallest: {least.model} {least.form} with {(least.size or 0) / 1e6:.1f} MB and F1 {least.f1.value:.2f}."
    )
    caption = (
        f"{section}: F1 beside size{' and latency' if timed else ''}. Intervals are those of each form alone; differences are paired and narrower."
    )
    return Picture(f"quality-{split}", section, caption, alt, png(drawing))


def _front(name: str, run: RunFile) -> Picture:
    """Bytes against F1 of every combination that was tried, the front as a line, the budget where there is one."""
    r = run.results
    points = sorted(r["points"], key=lambda point: (point["bytes"], point["f1"]))
    sizes = [point["bytes"] / 1e6 for point in points]
    losses = [Interval.from_json(point["f1_loss"]) for point in points]
    front = sorted(pareto(points))
    drawing, (axis,) = drawing_of(4.6, 1)
    for size, loss, i in zip(sizes, losses, itertools.count(), strict=False):
        colour = BLUE if i in front else GREY
        axis.errorbar(size, loss.value, error_bar(loss), fmt="o" if i in front else "x", color=colour, elinewidth=0.8, capsize=2, markersize=6)
    axis.plot([sizes[i] for i in front], [losses[i].value for i in front], color=BLUE, linewidth=1.2)
    keys = [("on the front", BLUE, "o"), ("not on it", GREY, "x")]
    if r["max_f1_drop"] is not None:
        axis.axhline(r["max_f1_drop"], color=VERMILION, linestyle="--", linewidth=1)
        keys.append((f"budget: {r['max_f1_drop']:g} lost", VERMILION, "--"))
    chosen = [i for i, point in enumerate(points) if r["selected"] is not None and point is r["points"][r["selected"]]]
    for i in chosen:
        axis.plot(
            sizes[i], losses[i].value, marker="o", markersize=14, markerfacecolor="none", markeredgecolor=VERMILION, markeredgewidth=1.5, linestyle=""
        )
        keys.append(("selected", VERMILION, "$\\bigcirc$"))
    axis.invert_yaxis()
    axis.set_xlabel("weights, MB (10⁶ bytes)")
    axis.set_ylabel("F1 lost, percent points, with 95 % interval\n(up is better)")
    legend(drawing, keys)
    kept = "".join(f" Selected: {sizes[i]:.1f} MB, {losses[i].value:+.2f} points lost." for i in chosen)
    alt = f"{len(points)} combinations of precisions, {sizes[0]:.1f} to {sizes[-1]:.1f} MB; {len(front)} of them on the Pareto front.{kept}"
    return Picture(f"front-{_stem(name)}", "Compression", f"{run.name}: bytes against the F1 lost; {r['workload']}.", alt, png(drawing))


def _latency(name: str, run: RunFile, section: str) -> Picture:
    """Stages as bars where they were timed, and the distribution, one row a contestant."""
    r = run.results
    labels = list(r["timings"])
    stages: JSON = {label: found for label, found in r.get("stages", {}).items() if label in r["timings"]}
    drawing, axes = drawing_of(1.3 + height_of(labels), 2 if stages else 1)
    if stages:
        _stage_bars(axes[0], labels, stages)
    _distributions(axes[-1], labels, r)
    for axis in axes:
        axis.set_ylim(len(labels) - 0.5, -0.5)
        axis.grid(visible=False, axis="y")
    axes[0].set_yticks(range(len(labels)), [textwrap.fill(label, LABEL_WIDTH) for label in labels])
    keys: list[tuple[str, str, str]] = [(stage, colour, f"bar{hatch}") for stage, colour, hatch in STAGES] if stages else []
    spread = [("p25 to p75", SKY, "bar"), ("p1 to p99", GREY, "_")] if r.get("quantiles") else [("p50 to p99", GREY, "_")]
    legend(drawing, [*keys, *spread, ("p50", BLACK, "|"), ("p90", VERMILION, "D")])
    middles = ", ".join(f"{label} {_milliseconds(r['timings'][label], 'p50'):.2f} ms" for label in labels)
    flag = " The machine was busy, so these times are not to be trusted." if r.get("busy") else ""
    alt = f"Latency of {len(labels)} contestants{', by stage and' if stages else ','} as distributions. Medians: {middles}.{flag}"
    caption = f"{run.name}: {r['workload']}.{' Bars are medians of each stage.' if stages else ''}{flag}"
    return Picture(f"latency-{_stem(name)}", section, caption, alt, png(drawing))


def _stage_bars(axis: Axes, labels: Sequence[str], stages: JSON) -> None:
    for row, label in enumerate(labels):
        left = 0.0
        for stage, colour, hatch in STAGES:
            if stage not in stages.get(label, {}):
                continue
            value = _milliseconds(stages[label][stage], "p50")
            axis.barh(row, value, 0.55, left, color=colour, hatch=hatch, edgecolor="white", linewidth=0.3)
            left += value
        axis.annotate(f" {left:,.2f}", (left, row), va="center", fontsize=8)
    axis.set_xlabel("medians of the stages, ms")
    axis.margins(x=0.16)
    axis.set_xlim(left=0)


def _distributions(axis: Axes, labels: Sequence[str], r: JSON) -> None:
    values = []
    for row, label in enumerate(labels):
        quantiles = r.get("quantiles", {}).get(label, [])
        t = {key: _milliseconds(r["timings"][label], key) for key in ("p50", "p90", "p99")}
        low = t["p50"]
        if len(quantiles) == QUANTILES:  # in milliseconds
            low = quantiles[1]
            axis.plot((quantiles[25], quantiles[75]), (row, row), color=SKY, linewidth=9, solid_capstyle="butt")
        axis.plot((low, t["p99"]), (row, row), color=GREY, linewidth=1.4)
        axis.plot(t["p50"], row, marker="|", color=BLACK, markersize=13, markeredgewidth=2)
        axis.plot(t["p90"], row, marker="D", color=VERMILION, markersize=5)
        values += [low, t["p99"]]
    axis.set_xlabel("latency of a query, ms")
    if len(axis.figure.axes) > 1:
        axis.tick_params(labelleft=False)
    if not scale(axis, values):
        axis.set_xlim(left=0)


def _zoo(name: str, run: RunFile) -> Picture:
    """Times faster than BERT-base: here with interval, and as published."""
    rows = [row for row in run.results["zoo"] if "latency" in row]
    drawing, (axis,) = drawing_of(1.2 + height_of([row["name"] for row in rows]), 1)
    for at, row in enumerate(rows):
        ratio = Interval.from_json(row["speed_up"])
        axis.errorbar(ratio.value, at, xerr=error_bar(ratio), fmt="o", color=BLUE, capsize=2, markersize=6)
        for said in row["published"]:
            if "speed_up" in said:
                axis.plot(said["speed_up"]["value"], at, marker="D", color=VERMILION, markerfacecolor="none", markersize=7, linestyle="")
    axis.axvline(1, color=GREY, linewidth=0.8)
    logarithmic(axis, [row["speed_up"][end] for row in rows for end in ("low", "high")])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), [textwrap.fill(row["name"], LABEL_WIDTH) for row in rows])
    axis.set_xlabel("times faster than BERT-base (logarithmic)")
    legend(drawing, [("here, with 95 % interval", BLUE, "o"), ("as published, on other hardware", VERMILION, "D open")])
    ours = ", ".join(f"{row['name']} {row['speed_up']['value']:.2f}" for row in rows)
    flag = " The machine was busy, so these times are not to be trusted." if run.results.get("busy") else ""
    alt = f"How many times faster than BERT-base {len(rows)} models are, here and as published. Here: {ours}.{flag}"
    caption = f"The zoo beside its papers: {run.results['workload']}.{flag}"
    return Picture(f"zoo-{_stem(name)}", "Zoo", caption, alt, png(drawing))


def _milliseconds(summary: JSON, key: str) -> float:
    return float(summary[key]) * {"s": 1e3, "ms": 1.0, "us": 1e-3}[summary["unit"]]


def _stem(name: str) -> str:
    return PurePath(name).stem

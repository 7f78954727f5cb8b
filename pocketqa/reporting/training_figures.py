"""Figures of training: ablations with the differences the paper gives, and what each step adds to the speed of training."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import PurePath

from pocketqa.reporting.drawing import BLUE, GREEN, GREY, LABEL_WIDTH, SKY, VERMILION, Picture, drawing_of, error_bar, height_of, legend, png
from pocketqa.reporting.tables import Runs, of_kind
from pocketqa.runs import RunFile
from pocketqa.statistics import Interval


def training_pictures(runs: Runs) -> Iterator[Picture]:
    """Every figure that these runs have something for."""
    for name, run in of_kind(runs, "ablation").items():
        if any(row["difference"] for row in run.results["rows"]):
            yield _ablation(name, run)
    for name, run in of_kind(runs, "training-speed").items():
        if run.results["waterfall"]:
            yield _waterfall(name, run)


def _ablation(name: str, run: RunFile) -> Picture:
    """The difference of each row with its interval, of each seed, and the paper's."""
    rows = [row for row in run.results["rows"] if row["difference"]]
    labels = [row["words"] for row in rows]
    drawing, (axis,) = drawing_of(1.4 + height_of(labels), 1)
    for at, row in enumerate(rows):
        difference = Interval.from_json(row["difference"])
        axis.errorbar(difference.value, at, xerr=error_bar(difference), fmt="o", color=BLUE, capsize=3, markersize=6)
        seeds = [one["difference"] for one in row["seeds"]]
        axis.plot(seeds, [at + 0.22] * len(seeds), marker="|", color=GREY, linestyle="", markersize=7)
        if row["paper"] is not None:
            axis.plot(row["paper"], at - 0.22, marker="D", color=VERMILION, markerfacecolor="none", markersize=6, linestyle="")
    axis.axvline(0, color=GREY, linewidth=0.8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_yticks(range(len(rows)), [textwrap.fill(label, LABEL_WIDTH) for label in labels])
    axis.set_xlabel("difference, percent points (right is better)")
    keys = [("F1 here, with 95 % interval", BLUE, "o"), ("of each seed", GREY, "|")]
    if any(row["paper"] is not None for row in rows):
        keys.append(("GLUE mean in the paper: another measure", VERMILION, "D open"))
    legend(drawing, keys)
    found = "; ".join(f"{row['words']} {row['difference']['value']:+.2f}" for row in rows)
    alt = f"Differences of F1 of {len(rows)} rows of an ablation, each to the row it is compared with: {found}."
    caption = (
        f"{run.name}: {run.results['measure']}. The paper's differences are of a mean over GLUE tasks, so sizes do not compare; signs and order may."
    )
    return Picture(f"ablation-{PurePath(name).stem}", "Ablation", caption, alt, png(drawing))


def _waterfall(name: str, run: RunFile) -> Picture:
    """Tokens per second after each step; what the step added stands out."""
    steps = run.results["waterfall"]
    labels = [str(row["step"]) for row in steps]
    drawing, (axis,) = drawing_of(1.3 + height_of(labels), 1)
    before = 0.0
    for at, row in enumerate(steps):
        rate = float(row["tokens_per_second"])
        axis.barh(at, min(before, rate) if at else rate, 0.6, color=SKY)
        if at:
            axis.barh(at, rate - before, 0.6, left=before, color=GREEN if rate >= before else VERMILION, hatch="////" if rate >= before else "xxxx")
        axis.annotate(f" {rate:,.0f}", (max(rate, before), at), va="center", fontsize=8)
        before = rate
    axis.set_ylim(len(steps) - 0.5, -0.5)
    axis.set_yticks(range(len(steps)), [textwrap.fill(label, LABEL_WIDTH) for label in labels])
    axis.set_xlabel("tokens a second")
    axis.margins(x=0.12)
    axis.grid(visible=False, axis="y")
    legend(drawing, [("reached before", SKY, "bar"), ("added by the step", GREEN, "bar////"), ("lost by it", VERMILION, "barxxxx")])
    flag = " The machine was busy, so these times are not to be trusted." if run.results.get("busy") else ""
    found = ", ".join(f"{row['step']} {row['tokens_per_second']:,.0f}" for row in steps)
    alt = f"Tokens a second of training after each of {len(steps)} steps: {found}.{flag}"
    return Picture(f"speed-{PurePath(name).stem}", "Training speed", f"{run.name}: {run.results['workload']}.{flag}", alt, png(drawing))

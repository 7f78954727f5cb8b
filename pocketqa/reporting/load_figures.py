"""Saturation: the 99th percentile of the times over the rate of requests, a line a contestant, as a search for the highest rate saw it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import PurePath

from pocketqa.reporting.drawing import BLACK, COLOURS, GREY, MARKERS, Picture, both_logarithmic, drawing_of, legend, png
from pocketqa.reporting.load_tables import order_of
from pocketqa.reporting.tables import Runs, of_kind
from pocketqa.runs import RunFile
from pocketqa.types import JSON

SECTION = "Load"
HEIGHT = 4.2  # inches
TICKS = [digit * 10**power for power in range(-1, 5) for digit in (1, 2, 5)]  # requests a second


def load_pictures(runs: Runs) -> Iterator[Picture]:
    """One for each run that searched."""
    for name, run in of_kind(runs, "load").items():
        if run.results.get("search", {}).get("points"):
            yield _saturation(name, run)


def _saturation(name: str, run: RunFile) -> Picture:
    search = run.results["search"]
    drawing, (axis,) = drawing_of(HEIGHT, 1)
    keys, said = [], []
    for at, who in enumerate(order_of(search)):
        seen = curve(search, who)
        if not seen:
            continue
        colour, marker = COLOURS[at % len(COLOURS)], MARKERS[at % len(MARKERS)]
        axis.plot([rate for rate, _, _ in seen], [p99 for _, p99, _ in seen], color=colour, linewidth=1)
        for within in (True, False):
            chosen = [(rate, p99) for rate, p99, held in seen if held is within]
            fill = colour if within else "white"
            axis.plot([x for x, _ in chosen], [y for _, y in chosen], marker, color=colour, markerfacecolor=fill, markersize=6)
        keys.append((who, colour, marker))
        rate = search["rates"][who]
        said.append(f"{who} {rate['value']:.1f} a second" if rate else f"{who} none")
        if rate:
            axis.axvline(rate["value"], color=colour, linewidth=0.8, linestyle="--")
    rates = [float(point["rate"]) for point in search["points"]]
    ticks = [tick for tick in TICKS if min(rates) <= tick <= max(rates)]
    both_logarithmic(axis, "requests a second", "p99 of an answer's time, ms", ticks)
    keys += [("hollow: over the bound, or failures", GREY, "o open"), ("dashed: highest rate within it", BLACK, "--")]
    legend(drawing, keys)
    flag = " The machine was busy, so these times are not to be trusted." if run.results.get("busy") else ""
    alt = f"99th percentile over the rate of requests. Highest rates within {search['objective']}: {', '.join(said)}.{flag}"
    caption = f"{run.name}: {run.results['workload']}; each mark is the median of its rounds.{flag}"
    return Picture(f"saturation-{PurePath(name).stem}", SECTION, caption, alt, png(drawing))


def curve(search: JSON, who: str) -> list[tuple[float, float, bool]]:
    """(rate, p99 in ms, whether the objective held in most rounds) of one contestant, by rate; a rate without any right answer is left out."""
    found: dict[float, list[JSON]] = {}
    for point in search["points"]:
        if point["contestant"] == who and point["p99"] is not None:
            found.setdefault(float(point["rate"]), []).append(point)
    return [
        (rate, statistics.median(float(point["p99"]) for point in points), 2 * sum(point["within"] for point in points) > len(points))
        for rate, points in sorted(found.items())
    ]

"""What the figures share: colours, sizes, axes, legends, bytes.

Colours are those of Okabe and Ito (Color Universal Design, 2008), which are told apart with every kind of colour vision; where colour says something,
a shape or a hatch says it too.  The background is white, so that a figure looks the same on paper and on a dark page.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pocketqa.statistics import Interval
from pocketqa.types import JSON

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE, GREY = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#767676",
)  # fmt: skip
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "h", "p")
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#DDDDDD", "axes.axisbelow": True}
WIDTH, DOTS = 9.0, 150  # inches, dots an inch
ROW, LABEL_WIDTH = 0.42, 36  # inches a bar, characters of a line of its label
WIDE_RANGE, WIDE_SIZES = 20.0, 4.0  # from where on an axis is logarithmic: largest over smallest


@dataclass(frozen=True, slots=True)
class Picture:
    """One figure: the stem of its file, the section of RESULTS.md that it belongs to, its caption, what it shows in words, and its bytes."""

    name: str
    section: str
    caption: str
    alt: str
    png: bytes


def error_bar(interval: Interval) -> list[list[float]]:
    """How far an interval reaches below and above its value; never negative, since a stored F1 is rounded and may lie a little outside."""
    return [[max(0.0, interval.value - interval.low)], [max(0.0, interval.high - interval.value)]]


def height_of(labels: Sequence[str]) -> float:
    """Inches that a row for each label takes."""
    return sum(ROW + 0.14 * (len(textwrap.wrap(label, LABEL_WIDTH)) - 1) for label in labels)


def scale(axis: Axes, values: Sequence[float], wide: float = WIDE_RANGE) -> bool:
    """A logarithmic axis where values are far apart; whether it is one."""
    if not values or min(values) <= 0 or max(values) < wide * min(values):
        return False
    logarithmic(axis, values)
    return True


def logarithmic(axis: Axes, values: Sequence[float]) -> None:
    """Labels at 1, 2 and 5 of each power of ten, at the powers alone where there are many."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(values) < 300 * min(values) else (1,)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def both_logarithmic(axis: Axes, below: str, left: str, ticks: Sequence[float] = ()) -> None:
    """Both axes, with their labels; ticks: where the lower one has its own."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
        one.set_minor_formatter(NullFormatter())
    if ticks:
        axis.set_xticks(sorted(set(ticks)))
    axis.set_xlabel(below)
    axis.set_ylabel(left)


def drawing_of(height: float, panels: int, shared: bool = True) -> tuple[Drawing, list[Axes]]:
    """An empty drawing of so many inches, and its panels side by side, which share what stands on the left unless they are not `shared`."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(WIDTH, height), dpi=DOTS, layout="constrained")
    axes = drawing.subplots(1, panels, squeeze=False, sharey=shared)
    return drawing, list(axes[0])


def legend(drawing: Drawing, keys: Sequence[tuple[str, str, str]]) -> None:
    """Below the panels.  keys: text, colour, and a marker ("D open" for a hollow one), "_" or "--" for a line, or "bar" with a hatch."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    for text, colour, shape in keys:
        if shape.startswith("bar"):
            handles.append(Patch(facecolor=colour, hatch=shape.removeprefix("bar"), edgecolor="white", label=text))
        else:
            marker, _, hollow = shape.partition(" ")
            looks: JSON = {"linestyle": "", "marker": marker, "markersize": 7, "markerfacecolor": "none" if hollow else colour}
            if shape in ("_", "--"):
                looks = {"linestyle": "-" if shape == "_" else "--", "linewidth": 2.5 if shape == "_" else 1.2}
            handles.append(Line2D([], [], color=colour, label=text, **looks))
    drawing.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False, fontsize=8)


def png(drawing: Drawing) -> bytes:
    """The drawing as a PNG without date or version."""
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png", metadata={"Software": None})  # which would hold the version of matplotlib
    return buffer.getvalue()

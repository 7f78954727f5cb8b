"""Figures of the service: answers a second and median time over the number of users, and what an answer costs over tokens and windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING

from pocketqa.reporting.drawing import COLOURS, GREEN, GREY, MARKERS, ORANGE, Picture, both_logarithmic, drawing_of, legend, png
from pocketqa.reporting.tables import Runs, of_kind
from pocketqa.runs import RunFile
from pocketqa.service_results import contestants_of
from pocketqa.types import JSON

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTION = "Service"
HEIGHT = 3.6  # inches
STAGE_LOOKS = (("forward_ms", "forward pass", "s"), ("tokenise_ms", "tokenising", "^"), ("decode_ms", "decoding", "D"))


def service_pictures(runs: Runs) -> Iterator[Picture]:
    """Every figure that these runs have something for."""
    for name, run in of_kind(runs, "service").items():
        if len({row["users"] for row in run.results["points"]}) > 1:
            yield _users(name, run)
        if len(run.results["costs"]) > 1:
            yield _costs(name, run)


def _users(name: str, run: RunFile) -> Picture:
    """Answers a second on the left, median milliseconds on the right, over users, a line a contestant."""
    r = run.results
    drawing, (rates, times) = drawing_of(HEIGHT, 2, shared=False)
    keys = []
    said = []
    for at, who in enumerate(contestants_of(r)):
        rows = sorted((row for row in r["points"] if row["contestant"] == who), key=lambda row: int(row["users"]))
        if not rows:
            continue
        looks: JSON = {"color": COLOURS[at], "marker": MARKERS[at], "markersize": 6}
        users = [row["users"] for row in rows]
        values = [row["rate"]["value"] for row in rows]
        below = [max(0.0, row["rate"]["value"] - row["rate"]["low"]) for row in rows]
        above = [max(0.0, row["rate"]["high"] - row["rate"]["value"]) for row in rows]
        rates.errorbar(users, values, yerr=[below, above], capsize=3, **looks)
        times.plot(users, [row["p50"] for row in rows], **looks)
        keys.append((who, COLOURS[at], MARKERS[at]))
        said.append(f"{who} " + ", ".join(f"{row['rate']['value']:.0f} a second and {row['p50']:.0f} ms at {row['users']}" for row in rows))
    for axis, label in ((rates, "answers a second"), (times, "median time of an answer, ms")):
        both_logarithmic(axis, "users", label, [row["users"] for row in r["points"]])
    legend(drawing, keys)
    alt = f"Answers a second and median time over the number of users: {'; '.join(said)}.{_flag(r)}"
    words = "; ".join(f"{who}: {what}" for who, what in contestants_of(r).items())
    return Picture(f"service-users-{PurePath(name).stem}", SECTION, f"{run.name}: {r['workload']}. {words}.{_flag(r)}", alt, png(drawing))


def _costs(name: str, run: RunFile) -> Picture:
    """Milliseconds over the tokens of a request, in all and by stage, a panel a model; a hollow marker stands for several windows."""
    rows = run.results["costs"]
    roles = list(dict.fromkeys(row.get("role", "") for row in rows))
    drawing, axes = drawing_of(HEIGHT, len(roles))
    for axis, role in zip(axes, roles, strict=True):
        mine = sorted((row for row in rows if row.get("role", "") == role), key=lambda row: int(row["tokens"]))
        _line(axis, mine, "client_ms", COLOURS[0], "o")
        for colour, (key, _, marker) in zip((COLOURS[1], ORANGE, GREEN), STAGE_LOOKS, strict=True):
            _line(axis, mine, key, colour, marker)
        both_logarithmic(axis, "tokens of the request", "ms" if axis is axes[0] else "", [])
        axis.set_title(role, fontsize=9)
    keys = [("whole answer, as the client sees it", COLOURS[0], "o")]
    keys += [(words, colour, marker) for colour, (_, words, marker) in zip((COLOURS[1], ORANGE, GREEN), STAGE_LOOKS, strict=True)]
    legend(drawing, [*keys, ("hollow: more than one window", GREY, "o open")])
    ends = [
        f"{role} {mine[0]['client_ms']:.1f} ms for {mine[0]['tokens']:,} tokens to {mine[-1]['client_ms']:,.0f} ms for {mine[-1]['tokens']:,}"
        for role in roles
        if (mine := sorted((row for row in rows if row.get("role", "") == role), key=lambda row: int(row["tokens"])))
    ]
    alt = f"Time of an answer over the tokens of its request, one user: {'; '.join(ends)}.{_flag(run.results)}"
    caption = f"{run.name}: what an answer costs as the passage grows, one user.{_flag(run.results)}"
    return Picture(f"service-costs-{PurePath(name).stem}", SECTION, caption, alt, png(drawing))


def _line(axis: Axes, rows: Sequence[JSON], key: str, colour: str, marker: str) -> None:
    found = [(row["tokens"], row[key], row["windows"] > 1) for row in rows if row.get(key, 0) > 0]
    axis.plot([x for x, _, _ in found], [y for _, y, _ in found], color=colour, linewidth=1)
    for hollow in (False, True):
        chosen = [(x, y) for x, y, many in found if many is hollow]
        axis.plot([x for x, _ in chosen], [y for _, y in chosen], marker, color=colour, markersize=5, markerfacecolor="none" if hollow else colour)


def _flag(results: JSON) -> str:
    return " The machine was busy, so these times are not to be trusted." if results.get("busy") else ""

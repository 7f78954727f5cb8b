"""Which combinations of schemes are worth measuring: the front from all float16 to the smallest, and the places on it where the budget lies."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pocketqa.statistics import Interval

NEAR = 0.01  # of all bytes: a search that has come as near as this to its budget is at its end

Schemes = Mapping[str, str]  # weight -> scheme; fp16 where it is not mentioned


@dataclass(frozen=True, slots=True)
class Change:
    """A weight takes a smaller scheme, which saves so many bytes."""

    name: str
    scheme: str
    saved: int


@dataclass(frozen=True, slots=True)
class Point:
    """A combination that was measured.  bytes: of all float constants; loss: of F1 against the float16 bundle, percent points."""

    schemes: Schemes
    bytes: int
    f1: float
    loss: Interval


def greedy_changes(sizes: Mapping[str, Mapping[str, int]], costs: Mapping[str, Mapping[str, float]]) -> list[Change]:
    """The changes that lead from all float16 to the smallest, always the one next that costs least for each byte it saves.

    sizes: weight -> scheme -> bytes, fp16 among them; costs: weight -> scheme -> cost, that of fp16 being 0.  Of each weight only the lower convex
    hull of its schemes is used: the least cost for each byte is then also the next in size, and each combination on the way the cheapest of its size
    if costs add up (the greedy solution of the multiple-choice knapsack, Sinha and Zoltners 1979).
    """
    changes: list[tuple[float, int, Change]] = []
    for name, scheme_bytes in sizes.items():
        steps = _hull([(scheme_bytes[scheme], costs[name].get(scheme, 0.0), scheme) for scheme in scheme_bytes])
        for (bytes_before, cost_before, _), (bytes_after, cost_after, scheme) in itertools.pairwise(steps):
            saved = bytes_before - bytes_after
            changes.append(((cost_after - cost_before) / saved, len(changes), Change(name, scheme, saved)))
    return [change for _, _, change in sorted(changes, key=lambda item: item[:2])]


def front_of(changes: Sequence[Change]) -> list[dict[str, str]]:
    """The combinations on the way, all float16 (nothing mentioned) first."""
    nothing: dict[str, str] = {}
    return list(itertools.accumulate(changes, lambda state, change: {**state, change.name: change.scheme}, initial=nothing))


def explore(changes: Sequence[Change], total: int, evaluate: Callable[[Schemes], Point], most: int, budget: float) -> list[Point]:
    """Measure up to `most` combinations and return their points, largest first.  total: bytes of all weights in float16.

    Half of them are spread evenly over the front from its end to half of the bytes, where the losses are; the others halve the distance between the
    smallest that is within the budget and the next that is not.  Where a single change lies between the two (the word table may be half of all), the
    front is continued without it.
    """
    found: dict[str, Point] = {}
    front, sizes = front_of(changes), _sizes_along(changes, total)
    for wanted in np.linspace(sizes[-1], total / 2, max(1, most // 2)):
        state = front[min(range(len(front)), key=lambda place: abs(sizes[place] - wanted))]
        found[key_of(state)] = found.get(key_of(state)) or evaluate(state)
    while len(found) < most:
        front, sizes = front_of(changes), _sizes_along(changes, total)
        known = {place: found[key_of(state)] for place, state in enumerate(front) if key_of(state) in found}
        best = max((place for place, point in known.items() if point.loss.high < budget), default=0)  # 0 is float16, which loses nothing
        beyond = min((place for place in known if place > best), default=None)
        if beyond is None and best < len(front) - 1:  # a continued front, of which nothing is known yet
            place = len(front) - 1
        elif beyond is not None and beyond > best + 1:
            place = min(range(best + 1, beyond), key=lambda i: abs(2 * sizes[i] - sizes[best] - sizes[beyond]))
        elif beyond is not None and changes[best].saved >= NEAR * total:
            blocked = changes[best].name
            changes = [change for i, change in enumerate(changes) if i < best or change.name != blocked]
            continue
        else:
            break
        found[key_of(front[place])] = evaluate(front[place])
    return sorted(found.values(), key=lambda point: -point.bytes)


def key_of(state: Schemes) -> str:
    """The same text for the same combination, in whatever order."""
    return json.dumps(dict(state), sort_keys=True)


def _sizes_along(changes: Sequence[Change], total: int) -> list[int]:
    """Bytes of each combination of `front_of(changes)`."""
    return list(itertools.accumulate((change.saved for change in changes), lambda size, saved: size - saved, initial=total))


def _hull(options: Sequence[tuple[int, float, str]]) -> list[tuple[int, float, str]]:
    """Of (bytes, cost, scheme), from the largest down, those on the lower convex hull: each further byte saved costs more than the last."""
    hull: list[tuple[int, float, str]] = []
    for option in _undominated(options):
        while len(hull) > 1 and (option[1] - hull[-2][1]) * (hull[-2][0] - hull[-1][0]) <= (hull[-1][1] - hull[-2][1]) * (hull[-2][0] - option[0]):
            hull.pop()
        hull.append(option)
    return hull


def _undominated(options: Sequence[tuple[int, float, str]]) -> Iterator[tuple[int, float, str]]:
    """From the largest down, those that no smaller one undercuts in cost; the largest, which is the start, in any case."""
    ordered = sorted(options, key=lambda option: (-option[0], -option[1]))
    for place, option in enumerate(ordered):
        if place == 0 or (option[0] < ordered[0][0] and all(other[1] > option[1] for other in ordered[place + 1 :])):
            yield option

"""The highest rate at which an objective holds: strides up until it does not, then halving, on a grid of rates a tenth apart.

The grid is the same for whatever is measured, so that rates can be compared and a later search can begin where an earlier one ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.objectives import Objective
from loadtest.open_loop import MAX_LAG, VoidRun, why_void
from pocketqa import runs

STEP = 1.1  # from one rate of the grid to the next
START_RATE = 4.0  # requests a second at which a first search begins
LOWEST, HIGHEST = 0.5, 20_000.0  # requests a second
STRIDE = 8  # at most so many rates of the grid at once while one end is unknown: about twice the rate
MIN_REQUESTS = 100  # expected in a step, which at low rates takes longer for it
TRIES = 3  # of a step in which the client was too late
LOOKS = 2  # at a rate before it is said to be too high: one hiccup of the machine is not the limit of a server

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Seen:
    """What came of a step.  times: milliseconds of the right answers; lags: seconds, of all requests; answering: `times` from when they were sent."""

    times: Sequence[float]
    failures: int
    lags: Sequence[float]
    answering: Sequence[float] = ()


Measure = Callable[[float, float], Seen]  # of a rate (requests a second) and a duration (seconds)


@dataclass(slots=True)
class Found:
    """What the searches for one contestant found: the highest rate of each round, None where the objective held at none, and every step."""

    rates: list[float | None] = field(default_factory=list)
    points: list[Row] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Terms:
    """Of a search: what has to hold, seconds of a step (see `step_seconds`), and the client's lag that is allowed in any case (seconds)."""

    objective: Objective
    seconds: float
    max_lag: float = MAX_LAG


def find_rate(found: Found, contestant: str, search: RateSearch, terms: Terms, measure: Measure, say: Callable[[str], None]) -> None:
    """Search once more, and add to `found`.  Raises VoidRun for a step in which the client was late TRIES times."""
    number = len(found.rates) + 1
    while (rate := search.rate) is not None:
        duration = step_seconds(rate, terms.seconds)
        for _ in range(LOOKS):
            seen = in_time(rate, duration, measure, terms.max_lag, say, terms.objective)
            value = terms.objective.found(seen.times, seen.failures)
            within = value < terms.objective.limit
            found.points.append(runs.load_point(contestant, number, rate, duration, seen.times, seen.failures, value, within))
            say(f"{rate:g} requests a second for {duration:.0f} s: {terms.objective.verdict(contestant, seen.times, seen.failures)}")
            if within:
                break
        search.note(within)
    found.rates.append(search.best)


def in_time(rate: float, seconds: float, measure: Measure, max_lag: float, say: Callable[[str], None], objective: Objective | None = None) -> Seen:
    """What is seen at a rate, again where the client was late.  Raises VoidRun when it was late TRIES times.

    objective: where it is missed even if times count from when requests were sent, the client's lateness changes nothing, and the step stands.
    """
    for _ in range(TRIES):
        seen = measure(rate, seconds)
        reason = why_void(seen.lags, [time / 1000 for time in seen.times], max_lag)
        if not reason or (objective is not None and seen.answering and not objective.met(seen.answering, seen.failures)):
            return seen
        say(f"{rate:g} requests a second: void, {reason}")
    raise VoidRun(f"Expected {rate:g} requests a second to be sent in time, found {TRIES} times: {reason}. Leave the client a core of its own.")


def step_seconds(rate: float, seconds: float) -> float:
    """How long a step at `rate` a second takes: `seconds`, or until MIN_REQUESTS can be expected."""
    return max(seconds, MIN_REQUESTS / rate)


@dataclass(slots=True)
class RateSearch:
    """`rate` is the next one to try, until it is None; `note` says how that went; `best` is the highest at which the objective held."""

    start: float
    stride: int = STRIDE
    _passed: int | None = None
    _failed: int | None = None

    @property
    def rate(self) -> float | None:
        """Requests a second to try next; None once the highest is found."""
        at = self._next()
        return None if at is None else _rate(at)

    @property
    def best(self) -> float | None:
        """The highest rate so far at which the objective held, below all at which it did not; None where there is none."""
        return None if self._passed is None else _rate(self._passed)

    def note(self, within: bool) -> None:
        """Whether the objective held at `rate`."""
        at = self._next()
        if at is None:
            raise ValueError("Expected no more results: the search is over.")
        if self._passed is not None or self._failed is not None:
            self.stride = min(2 * self.stride, STRIDE)
        if within:
            self._passed = at
        else:
            self._failed = at

    def _next(self) -> int | None:
        lowest, highest = _place(LOWEST), _place(HIGHEST)
        if self._passed is None and self._failed is None:
            return min(max(_place(self.start), lowest), highest)
        if self._failed is None:
            assert self._passed is not None
            return None if self._passed == highest else min(self._passed + self.stride, highest)
        if self._passed is None:
            return None if self._failed == lowest else max(self._failed - self.stride, lowest)
        return None if self._failed - self._passed <= 1 else (self._failed + self._passed) // 2


def _place(rate: float) -> int:
    return round(math.log(rate, STEP))


def _rate(place: int) -> float:
    """With three significant digits."""
    return float(f"{STEP**place:.3g}")

"""What a forward pass costs, learned from those that were measured: seconds for (rows, length), also where that shape was never seen.

Four parts.  A table of measured shapes.  A smooth curve through them, a + b x tokens + c x tokens x length (the last term is attention), for shapes
that were not measured, or long ago.  And one factor for the speed of the machine at the moment: when something else takes half of its cores, every
shape slows down alike, and comparing a shape measured before with one measured since would teach the wrong lesson.  And what each window costs
besides its pass: requests are read and answered while others are computed, on the same cores.  What a batch brings at once is paid by the pass after
it, so it counts for the window, not for the pass that it holds up: else passes by themselves would seem dear wherever batches come before them.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, int]  # rows, padded length

HALF_LIFE = 300.0  # seconds after which a measurement counts half, so that no shape is judged for ever by what it once took
_MEMORY = 16.0  # measurements that a shape's mean remembers
_SEEDED = 8.0  # measurements that one made in quiet counts for
_PRIOR = 1.0  # measurements that the curve counts for, beside those of the shape itself
_SPEED_GAIN = 0.25
_OUTLIER = 3.0  # a measurement this many times off its shape's mean is taken as if it were this many times off
_SPEED_STEP = 2.0  # one measurement does not tell of more
_LEAST = 0.05  # share of a pass that is its own, whatever else the processor was busy with
_HANDLED = 0.98  # of what is remembered of the handling of windows, the share that stays from one pass to the next
_REFIT = 32  # measurements between two fits; a new shape fits at once
_UNSEEN = (1e-3, 1e-5, 0.0)  # the curve before anything was measured: of the right order for a small model on a few cores


@dataclass(slots=True)
class _Measured:
    mean: float  # seconds at speed 1
    weight: float
    when: float


class Cost:
    """Seconds of the forward passes of one model."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._table: dict[Shape, _Measured] = {}
        self._curve: tuple[float, float, float] = _UNSEEN
        self._speed = 1.0
        self._since_fit = 0
        self._handling = self._handled = 0.0  # seconds of handling, and for how many windows
        self._met: set[Shape] = set()

    def seconds(self, rows: int, length: int) -> float:
        """Predicted seconds of a forward pass of `rows` windows padded to `length`, with what is done for them besides."""
        handling = self._handling / self._handled if self._handled else 0.0
        return self._speed * self._steady((rows, length)) + rows * handling

    def seed(self, rows: int, length: int, seconds: float) -> None:
        """A measurement made while warming up, alone on the machine: it sets the mean and leaves the speed alone."""
        self._table[rows, length] = _Measured(seconds / self._speed, _SEEDED, self._clock())
        self._fit()

    def observe(self, rows: int, length: int, seconds: float, handling: float = 0.0) -> None:
        """A measurement made while serving.  handling: of its seconds, those that went to the requests around it.

        The first of a shape is not learned from: an engine may prepare itself for a new shape, and a batch that seemed dear for that would not be
        taken again for a long time.
        """
        shape = (rows, length)
        if shape not in self._table and shape not in self._met:
            self._met.add(shape)
            return
        expected = self._steady(shape)
        handling = min(handling, (1 - _LEAST) * seconds)
        seconds -= handling
        self._handling = _HANDLED * self._handling + handling
        self._handled = _HANDLED * self._handled + rows
        ratio = seconds / (self._speed * expected)
        self._speed *= min(max(ratio, 1 / _SPEED_STEP), _SPEED_STEP) ** _SPEED_GAIN
        steady = seconds / self._speed
        known = self._table.get(shape)
        if known is None:
            self._table[shape] = _Measured(steady, 1.0, self._clock())
            self._fit()
            return
        weight = min(self._weight(known), _MEMORY)
        if weight > 1.0:
            steady = min(max(steady, known.mean / _OUTLIER), known.mean * _OUTLIER)
        known.mean += (steady - known.mean) / (weight + 1.0)
        known.weight, known.when = weight + 1.0, self._clock()
        self._since_fit += 1
        if self._since_fit >= _REFIT:
            self._fit()

    def _steady(self, shape: Shape) -> float:
        (constant, linear, square), (_, tokens, attention) = self._curve, _terms(shape)
        curve = constant + linear * tokens + square * attention
        known = self._table.get(shape)
        if known is None:
            return curve
        weight = self._weight(known)
        return (weight * known.mean + _PRIOR * curve) / (weight + _PRIOR)

    def _weight(self, known: _Measured) -> float:
        return known.weight * math.exp2((known.when - self._clock()) / HALF_LIFE)

    def _fit(self) -> None:
        """Least squares of the relative errors over the table, without negative terms: a pass never gets quicker by growing."""
        self._since_fit = 0
        shapes = list(self._table)
        means = np.array([self._table[shape].mean for shape in shapes])  # (S,)
        weights = np.sqrt([self._weight(self._table[shape]) for shape in shapes]) / means  # (S,)
        # What the measurements leave open (one shape says nothing of the others) a faint pull decides: towards the present curve, scaled to fit.
        terms = np.array([_terms(shape) for shape in shapes])  # (S, 3)
        present = np.array(self._curve) * np.exp(np.log(means / (terms @ np.array(self._curve))).mean())
        terms = np.vstack((terms, _PULL))  # (S + 3, 3)
        wanted = np.concatenate((means, _PULL @ present))  # (S + 3,)
        scale = np.concatenate((weights, 1e-3 / (_PULL @ present)))  # (S + 3,)
        least = math.inf
        for chosen in _SUBSETS:
            curve = np.zeros(3)
            curve[list(chosen)] = np.linalg.lstsq(terms[:, chosen] * scale[:, None], wanted * scale, rcond=None)[0]
            error = float((((terms @ curve - wanted) * scale) ** 2).sum())
            if (curve >= 0).all() and error < least:
                least = error
                self._curve = (float(curve[0]), float(curve[1]), float(curve[2]))


_PULL = np.array([[1.0, 64.0, 64.0 * 64], [1.0, 512.0, 512.0 * 128], [1.0, 4096.0, 4096.0 * 384]])  # (3, 3) terms of three spread-out shapes
_SUBSETS = [subset for size in (3, 2, 1) for subset in itertools.combinations(range(3), size)]


def _terms(shape: Shape) -> tuple[float, float, float]:
    tokens = float(shape[0] * shape[1])
    return 1.0, tokens, tokens * shape[1]

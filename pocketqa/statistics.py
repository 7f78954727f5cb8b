"""Summaries of timings, and bootstrap intervals of means, paired differences and ratios.

Every interval is the percentile interval of the non-parametric bootstrap: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
Paired figures resample pairs (chapter 8: the unit that is independent is the unit that is drawn), and with `groups` whole groups are drawn, since
the questions of one passage or article are not independent of each other.  One group alone would always be drawn as it is, and its interval have no
width: its values are drawn then.  Of one value alone there is no interval at all, which `Interval.alone` keeps in mind.

A resample is held as how often each unit was drawn, (R, U): means are then products of matrices, and medians cumulative sums in one fixed order.
Legend: N values, U units (the values themselves, or the groups), R resamples of one chunk, K columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketqa.errors import OptionsError
from pocketqa.types import JSON

RESAMPLES = 10_000
LEVEL = 0.95
RULE_OF_THREE = 300.0
"""Percent times questions: where none of N was lost, 3 / N of all may be, at a confidence of 95 % (Hanley and Lippman-Hand, JAMA 249, 1983)."""

FEW_GROUPS = 20
STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101,
)  # fmt: skip
"""97.5 % quantiles of Student's t with 1, 2, ... degrees of freedom, for intervals of LEVEL."""

CHUNK_ELEMENTS = 4_000_000  # drawn units held at once: 32 MB of 64-bit counts
TIME_UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6}

Values = NDArray[np.float64]
Groups = Sequence[str] | Sequence[int] | NDArray[np.int_]


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its interval, in the unit of the estimate.  alone: it is of one value, and its ends say nothing."""

    value: float
    low: float
    high: float
    alone: bool = False

    def scaled(self, factor: float) -> Interval:
        """The same interval in another unit (100 for percent); a negative factor exchanges the ends."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.value * factor, low, high, self.alone)

    def to_json(self, digits: int = 6) -> JSON:
        """{"value", "low", "high"}, rounded; with "alone" where it is."""
        ends = {name: round(value, digits) for name, value in (("value", self.value), ("low", self.low), ("high", self.high))}
        return ends | ({"alone": True} if self.alone else {})

    @classmethod
    def from_json(cls, record: JSON) -> Interval:
        """The inverse of to_json."""
        return cls(float(record["value"]), float(record["low"]), float(record["high"]), bool(record.get("alone", False)))


@dataclass(frozen=True, slots=True)
class TimingSummary:
    """Durations in one number each: mean and percentiles, in `unit`."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    unit: str = "ms"

    def to_json(self, digits: int = 4) -> JSON:
        """All fields, rounded."""
        return {name: round(value, digits) if isinstance(value, float) else value for name, value in asdict(self).items()}


def summarise_times(seconds: ArrayLike, unit: str = "ms") -> TimingSummary:
    """Summary of durations (N,) given in seconds.  Percentiles interpolate linearly between order statistics (numpy's default).

    Raises OptionsError for no values, values that are negative or not finite, or an unknown unit.
    """
    if unit not in TIME_UNITS:
        raise OptionsError(f"The unit of a timing summary must be one of {', '.join(TIME_UNITS)}, found {unit!r}.")
    values = _checked(seconds)
    if values.min() < 0:
        raise OptionsError(f"Durations cannot be negative, found {values.min()} s.")
    p50, p90, p99 = (float(p) for p in np.percentile(values, (50, 90, 99)) * TIME_UNITS[unit])
    return TimingSummary(len(values), float(values.mean() * TIME_UNITS[unit]), p50, p90, p99, unit)


def mean_interval(values: ArrayLike, groups: Groups | None = None, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL) -> Interval:
    """Mean of values (N,) with its bootstrap interval."""
    checked = _checked(values)
    interval = percentile_interval(float(checked.mean()), resampled_means(checked[:, None], groups, resamples, seed)[:, 0], level)
    return replace(interval, alone=len(checked) == 1)


def mean_difference(
    first: ArrayLike, second: ArrayLike, groups: Groups | None = None, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval:
    """mean(first) - mean(second) of paired values (N,), with its paired bootstrap interval."""
    a, b = _checked_pair(first, second)
    return mean_interval(a - b, groups, resamples=resamples, seed=seed, level=level)


def loss_interval(reference: ArrayLike, ours: ArrayLike, groups: Groups | None = None) -> Interval:
    """mean(reference) - mean(ours) of paired scores (N,) between 0 and 1, for a gate: with its paired bootstrap interval.

    The bootstrap takes few groups for more than they are.  With fewer than FEW_GROUPS the interval is no narrower than that of values without groups,
    and than Student's t with G - 1 degrees of freedom times the cluster-robust standard error (Cameron and Miller 2015, section VI).
    """
    found, count = mean_difference(reference, ours, groups), 0 if groups is None else count_groups(groups)
    if not 1 < count < FEW_GROUPS:
        return found
    difference = np.subtract(*_checked_pair(reference, ours))
    sums = np.bincount(_units(groups, len(difference))[1], weights=difference - difference.mean())  # (G,)
    half = STUDENT[count - 2] * math.sqrt(count / (count - 1) * float(sums @ sums)) / len(difference)
    alone = mean_difference(reference, ours)
    low, high = min(found.low, alone.low, found.value - half), max(found.high, alone.high, found.value + half)
    return replace(found, low=max(-1.0, low), high=min(1.0, high))


def mean_ratio(
    first: ArrayLike, second: ArrayLike, groups: Groups | None = None, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval:
    """mean(first) / mean(second) of paired values (N,), with its paired bootstrap interval.  The second mean must be positive in every resample."""
    a, b = _checked_pair(first, second)
    means = resampled_means(np.stack((a, b), axis=1), groups, resamples, seed)  # (resamples, 2)
    if b.mean() <= 0 or means[:, 1].min() <= 0:
        raise OptionsError(f"A ratio needs a positive mean below the line, found {b.mean()} (lowest in a resample: {means[:, 1].min()}).")
    return replace(percentile_interval(float(a.mean() / b.mean()), means[:, 0] / means[:, 1], level), alone=len(a) == 1)


def median_ratio(
    first: ArrayLike, second: ArrayLike, groups: Groups | None = None, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval:
    """median(first) / median(second) of paired values (N,), with its paired bootstrap interval: how many times slower `first` is."""
    return quantile_ratio(first, second, 0.5, groups, resamples=resamples, seed=seed, level=level)


def quantile_ratio(
    first: ArrayLike,
    second: ArrayLike,
    quantile: float,
    groups: Groups | None = None,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """The ratio of a quantile (0.99 for p99) of paired values (N,), first over second, with its paired bootstrap interval."""
    a, b = _checked_pair(first, second)
    if b.min() <= 0:
        raise OptionsError(f"A ratio of quantiles needs positive values below the line, found {b.min()}.")
    units, membership = _units(groups, len(a))
    ratios = [
        _weighted_quantiles(a, drawn, membership, quantile) / _weighted_quantiles(b, drawn, membership, quantile)
        for drawn in draws(units, resamples, seed, width=len(a))
    ]
    found = percentile_interval(float(np.quantile(a, quantile) / np.quantile(b, quantile)), np.concatenate(ratios), level)
    return replace(found, alone=units == 1)


def quantile_interval(
    values: ArrayLike, quantile: float, groups: Groups | None = None, *, resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Interval:
    """A quantile (0.99 for p99) of values (N,) with its bootstrap interval."""
    checked = _checked(values)
    units, membership = _units(groups, len(checked))
    found = [_weighted_quantiles(checked, drawn, membership, quantile) for drawn in draws(units, resamples, seed, width=len(checked))]
    return percentile_interval(float(np.quantile(checked, quantile)), np.concatenate(found), level)


def passes_gate(loss: Interval, limit: float, questions: int) -> bool:
    """Whether a loss of F1 is shown to be small: the upper end of its interval lies below the limit, both in percent points, and there were enough
    questions for that: of a few, none may happen to be lost, and their interval is [0, 0].
    """
    return loss.high < limit and questions >= least_questions(limit)


def least_questions(limit: float) -> int:
    """Fewest questions that can show a loss below `limit` percent points.  One shows nothing."""
    return max(2, math.ceil(RULE_OF_THREE / limit - 1e-9))  # rounding must not ask for one more


def resampled_means(values: Values, groups: Groups | None = None, resamples: int = RESAMPLES, seed: int = 0) -> Values:
    """(resamples, K) means of the columns of values (N, K), all columns from the same draws: sums of the drawn units over the sum of their sizes."""
    units, membership = _units(groups, len(values))
    sums = np.zeros((units, values.shape[1]))  # (U, K)
    np.add.at(sums, membership, values)
    sizes = np.bincount(membership, minlength=units).astype(np.float64)  # (U,)
    parts = []
    for drawn in draws(units, resamples, seed):
        weights = drawn.astype(np.float64)  # (R, U)
        parts.append((weights @ sums) / (weights @ sizes)[:, None])  # (R, K)
    return np.concatenate(parts)


def percentile_interval(value: float, resampled: Values, level: float = LEVEL) -> Interval:
    """The percentile interval of an estimate whose resampled values are (R,)."""
    if not 0 < level < 1:
        raise OptionsError(f"The level of an interval lies between 0 and 1, found {level}.")
    low, high = np.quantile(resampled, ((1 - level) / 2, (1 + level) / 2))
    return Interval(value, float(low), float(high))


def _weighted_quantiles(values: Values, drawn: NDArray[np.int64], membership: NDArray[np.int64], quantile: float) -> Values:
    """(R,) quantiles of values (N,) repeated as often as their unit was drawn (R, U), linear between order statistics as numpy's are."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    cumulative = np.cumsum(drawn[:, membership[order]], axis=1)  # (R, N) how many drawn values are at or below each
    place = (cumulative[:, -1:] - 1) * quantile  # (R, 1) position among the drawn values, from 0
    below, above = (ordered[(cumulative > end).argmax(axis=1)] for end in (np.floor(place), np.ceil(place)))
    return np.asarray(below + (above - below) * (place[:, 0] % 1))


def draws(units: int, resamples: int, seed: int, width: int | None = None) -> Iterator[NDArray[np.int64]]:
    """Resamples in chunks: how often each of `units` was drawn when as many are drawn with replacement, (R, U); of one seed always the same.

    width: columns of what the caller makes of them, where it is larger than `units`.
    """
    if resamples < 1:
        raise OptionsError(f"At least one resample is needed, found {resamples}.")
    random = np.random.default_rng(seed)
    rows = max(1, CHUNK_ELEMENTS // max(units, width or units))
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        chosen = random.integers(0, units, size=(count, units))  # (R, U)
        chosen += np.arange(count)[:, None] * units
        yield np.bincount(chosen.ravel(), minlength=count * units).reshape(count, units)


def count_groups(groups: Groups) -> int:
    """How many different ones there are; with fewer than two, values are resampled in their place."""
    return len(set(groups))


def _units(groups: Groups | None, count: int) -> tuple[int, NDArray[np.int64]]:
    """Number of units and the unit (N,) of each value."""
    if groups is not None and len(groups) != count:
        raise OptionsError(f"Expected one group for each of {count} values, found {len(groups)}.")
    if groups is not None:
        numbers = {group: number for number, group in enumerate(sorted(set(groups)))}  # an array of texts takes the room of the longest for each
        if len(numbers) > 1:
            return len(numbers), np.array([numbers[group] for group in groups], dtype=np.int64)
    return count, np.arange(count, dtype=np.int64)


def _checked(values: ArrayLike) -> Values:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise OptionsError(f"Expected a non-empty list of numbers, found shape {array.shape}.")
    if not np.isfinite(array).all():
        raise OptionsError(f"Expected finite numbers, found {array[~np.isfinite(array)][0]} at position {int((~np.isfinite(array)).argmax())}.")
    return array


def _checked_pair(first: ArrayLike, second: ArrayLike) -> tuple[Values, Values]:
    a, b = _checked(first), _checked(second)
    if len(a) != len(b):
        raise OptionsError(f"Paired values need the same count, found {len(a)} and {len(b)}.")
    return a, b

"""Scores of classification and regression tasks, with intervals, comparisons and means over tasks, from stored predictions alone.

The point values in a run file come from scikit-learn and scipy (distillation/glue/task_metrics.py).  Here the same metrics are computed for
thousands of resamples at once, with numpy, so that a report needs neither library; the two are compared whenever a run file is read.

Legend: N examples, R resamples of one chunk.  Values are in percent.
"""

from __future__ import annotations

import base64
import functools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketqa.errors import DataError, OptionsError
from pocketqa.statistics import LEVEL, RESAMPLES, Interval, draws, percentile_interval
from pocketqa.types import JSON

METRICS = ("matthews", "accuracy", "f1", "pearson", "spearman")
OF_SCORES = ("pearson", "spearman")  # of a real number; the others are of classes
# Six of GLUE's nine tasks: without the three whose training data are large.  A mean over them is not the GLUE score, which is of nine.
SIX = ("cola", "sst2", "mrpc", "stsb", "rte", "wnli")
SLACK = 1e-3  # percent: stored values are rounded

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PerExample:
    """What a model said of each example, and what is right: classes, or real numbers."""

    predictions: Values  # (N,)
    labels: Values  # (N,)
    metrics: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """First minus second in percent points, and the first in percent of the second (retention), both with paired intervals."""

    difference: Interval
    retention: Interval | None  # None where the second's score is not above 0 in every resample
    count: int


def classification_results(
    task: str, metrics: Mapping[str, float], predictions: ArrayLike, labels: ArrayLike, *, seed: int | None = None, extra: JSON | None = None
) -> JSON:
    """Results of kind "classification".

    metrics: name -> percent, as the field's libraries compute them; the score of the task is their mean.  predictions, labels (N,): classes, or real
    numbers for Pearson and Spearman.  seed: of the training, where it is known.  Raises OptionsError where the metrics are not those of the values.
    """
    names = tuple(metrics)
    if unknown := [name for name in names if name not in METRICS] or (["none"] if not names else []):
        raise OptionsError(f"Expected metrics out of {', '.join(METRICS)}, found {', '.join(unknown)}.")
    real = any(name in OF_SCORES for name in names)
    kind = np.dtype("<f4") if real else np.dtype(np.uint8)
    said, right = (np.asarray(values).astype(kind) for values in (predictions, labels))
    if said.ndim != 1 or said.shape != right.shape or not len(said):
        raise OptionsError(f"Expected one prediction a label, found shapes {said.shape} and {right.shape}.")
    values = PerExample(said.astype(np.float64), right.astype(np.float64), names)
    ours = dict(zip(names, _metrics(values, np.ones((1, len(said))))[0], strict=True))
    if wrong := [name for name in names if abs(ours[name] - metrics[name]) > SLACK]:
        raise OptionsError(f"{wrong[0]} is given as {metrics[wrong[0]]:.4f}, but the predictions have {ours[wrong[0]]:.4f}.")
    score = sum(metrics.values()) / len(names)
    return {
        "task": task,
        "metrics": {name: round(value, 6) for name, value in metrics.items()},
        "score": round(score, 6),
        "count": len(said),
        "seed": seed,
        "intervals": {"score": score_interval(values, score).to_json(), "level": LEVEL, "resamples": RESAMPLES, "resampled": "examples"},
        "per_example": {"type": kind.str, "predictions": _pack(said), "labels": _pack(right)},
        **(extra or {}),
    }


def per_example(results: JSON, name: str = "run file") -> PerExample:
    """The stored predictions.  Raises DataError when they are missing, damaged or contradict the score beside them."""
    try:
        packed, metrics = results["per_example"], results["metrics"]
        kind = np.dtype(packed["type"])
        said, right = (np.frombuffer(zlib.decompress(base64.b64decode(packed[key], validate=True)), kind) for key in ("predictions", "labels"))
        values = PerExample(said.astype(np.float64), right.astype(np.float64), tuple(key for key in METRICS if key in metrics))
        count, score = int(results["count"]), float(results["score"])
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError(f"{name}: expected the prediction of each example, found {found}. Measure again with: pocketqa evaluate --task") from None
    if not len(said) == len(right) == count or count == 0:
        raise DataError(f"{name}: expected the predictions of {count} examples, found {len(said)} and {len(right)} labels.")
    ours = float(_scores(values, np.ones((1, count)))[0])
    if abs(ours - score) > SLACK or abs(sum(metrics.values()) / len(metrics) - score) > SLACK:
        raise DataError(f"{name}: the score is given as {score:.3f}, but its predictions have {ours:.3f}: it was edited.")
    return values


def commonest_class(results: JSON) -> JSON | None:
    """What always naming the commonest class would score on the same examples; None where labels are real numbers."""
    values = per_example(results)
    if any(name in OF_SCORES for name in values.metrics):
        return None
    classes, counts = np.unique(values.labels, return_counts=True)
    said = np.full_like(values.labels, classes[counts.argmax()])
    found = _metrics(PerExample(said, values.labels, values.metrics), np.ones((1, len(said))))[0]
    return classification_results(results["task"], dict(zip(values.metrics, map(float, found), strict=True)), said, values.labels)


def compare_tasks(first: JSON, second: JSON, names: tuple[str, str] = ("first", "second")) -> TaskComparison:
    """Paired comparison of two runs on the same examples.  Raises DataError when task or examples differ."""
    a, b = _check_same(first, second, names)
    return _compared(float(first["score"]), float(second["score"]), resampled_scores(a), resampled_scores(b), len(a.labels))


def compare_means(first: Sequence[JSON], second: Sequence[JSON]) -> TaskComparison:
    """The same for the mean of several tasks: each task's examples are resampled apart from the others'.  The tasks stand in one order in both."""
    if [one["task"] for one in first] != [one["task"] for one in second]:
        raise DataError("The means of different tasks cannot be compared.")
    pairs = [_check_same(ours, theirs, ("first", "second")) for ours, theirs in zip(first, second, strict=True)]
    means = []
    for results, values in zip((first, second), zip(*pairs, strict=True), strict=True):
        resampled = [resampled_scores(value, seed=i) for i, value in enumerate(values)]
        means.append((sum(float(one["score"]) for one in results) / len(results), np.mean(resampled, axis=0)))
    return _compared(means[0][0], means[1][0], means[0][1], means[1][1], len(first))


def _check_same(first: JSON, second: JSON, names: tuple[str, str]) -> tuple[PerExample, PerExample]:
    """Both runs' predictions.  Raises DataError where they are not of the same examples."""
    a, b = per_example(first, names[0]), per_example(second, names[1])
    if first["task"] != second["task"] or not np.array_equal(a.labels, b.labels):
        task = first["task"]
        raise DataError(
            f"{names[0]} and {names[1]} are of different examples ({task}), so they cannot be compared in pairs. Evaluate both on the same file."
        )
    return a, b


def mean_of_tasks(results: Sequence[JSON]) -> Interval:
    """The mean score of several tasks, with its interval."""
    resampled = [resampled_scores(per_example(one), seed=i) for i, one in enumerate(results)]
    return percentile_interval(sum(float(one["score"]) for one in results) / len(results), np.mean(resampled, axis=0))


def score_interval(values: PerExample, score: float) -> Interval:
    """A score with its interval over examples."""
    return percentile_interval(score, resampled_scores(values))


def resampled_scores(values: PerExample, resamples: int = RESAMPLES, seed: int = 0) -> Values:
    """(resamples,) scores; of two models on the same examples with the same seed they are of the same draws, and so paired."""
    return _resampled(values.predictions.tobytes(), values.labels.tobytes(), values.metrics, resamples, seed)


@functools.lru_cache(maxsize=64)  # a report compares one run with several others
def _resampled(predictions: bytes, labels: bytes, metrics: tuple[str, ...], resamples: int, seed: int) -> Values:
    values = PerExample(np.frombuffer(predictions), np.frombuffer(labels), metrics)
    found = np.concatenate([_scores(values, drawn.astype(np.float64)) for drawn in draws(len(values.labels), resamples, seed)])
    found.setflags(write=False)
    return found


def _compared(first: float, second: float, a: Values, b: Values, count: int) -> TaskComparison:
    difference = percentile_interval(first - second, a - b)
    retention = percentile_interval(first / second, a / b).scaled(100) if second > 0 and b.min() > 0 else None
    return TaskComparison(difference, retention, count)


def _scores(values: PerExample, weights: Values) -> Values:
    """(R,) means of the metrics, where example n counts weights[:, n] times; weights (R, N)."""
    return np.asarray(_metrics(values, weights).mean(axis=1))


def _metrics(values: PerExample, weights: Values) -> Values:
    """(R, metrics) in percent."""
    said, right = values.predictions, values.labels
    columns = []
    for name in values.metrics:
        if name == "accuracy":
            columns.append(weights @ (said == right) / weights.sum(axis=1))
        elif name == "pearson":
            columns.append(_correlation(said[None] - said.mean(), right[None] - right.mean(), weights))
        elif name == "spearman":
            columns.append(_correlation(_ranks(said, weights), _ranks(right, weights), weights))
        else:
            columns.append(_of_confusion(name, said, right, weights))
    return 100 * np.stack(columns, axis=1)


def _of_confusion(name: str, said: Values, right: Values, weights: Values) -> Values:
    """(R,) F1 of class 1, or the correlation of Matthews (1975); 0 where a class is never said or never right, as in scikit-learn."""
    tp, fp, fn, tn = (weights @ ((said == s) & (right == r)) for s, r in ((1, 1), (1, 0), (0, 1), (0, 0)))  # (R,) each
    if name == "f1":
        above, below = 2 * tp, 2 * tp + fp + fn
    else:
        above, below = tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return np.asarray(np.divide(above, below, out=np.zeros_like(below), where=below > 0))


def _correlation(a: Values, b: Values, weights: Values) -> Values:
    """(R,) Pearson's correlation of a and b, (1, N) or (R, N); 0 where one of them is constant."""
    total = weights.sum(axis=1, keepdims=True)  # (R, 1)
    a = a - (weights * a).sum(axis=1, keepdims=True) / total
    b = b - (weights * b).sum(axis=1, keepdims=True) / total
    above, square_a, square_b = (np.einsum("rn,rn,rn->r", weights, *pair) for pair in ((a, b), (a, a), (b, b)))
    below = np.sqrt(square_a * square_b)
    return np.asarray(np.divide(above, below, out=np.zeros_like(below), where=below > 1e-12))


def _ranks(values: Values, weights: Values) -> Values:
    """(R, N) ranks in each resample, equal values sharing their mean rank."""
    _, level = np.unique(values, return_inverse=True)  # (N,)
    order = np.argsort(level, kind="stable")
    first = np.flatnonzero(np.diff(level[order], prepend=-1))  # (L,) where each level begins
    at_level = np.add.reduceat(weights[:, order], first, axis=1)  # (R, L)
    ranks = np.cumsum(at_level, axis=1) - (at_level - 1) / 2
    return np.asarray(ranks[:, level])


def _pack(values: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode("ascii")

"""The official metrics of GLUE and IMDb, by scikit-learn and scipy, in percent.

Wang et al. 2019, section 3: Matthews correlation for CoLA; accuracy and F1 of class 1 for MRPC and QQP; Pearson and Spearman correlation for STS-B;
accuracy for the others.  Where a task has two, its score is their mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from distillation.glue.classification import Task

Values = NDArray[np.float64]


def task_metrics(task: Task, predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Each metric of the task in percent.  A correlation with a constant is 0, as is F1 where class 1 is never said."""
    said, right = np.asarray(predictions, dtype=np.float64), np.asarray(labels, dtype=np.float64)  # (N,)
    return {name: 100 * _METRICS[name](said, right) for name in task.metrics}


def task_score(task: Task, predictions: ArrayLike, labels: ArrayLike) -> float:
    """The mean of the task's metrics, in percent."""
    return float(np.mean(list(task_metrics(task, predictions, labels).values())))


def _matthews(said: Values, right: Values) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(right.astype(int), said.astype(int)))


def _accuracy(said: Values, right: Values) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(right.astype(int), said.astype(int)))


def _f1(said: Values, right: Values) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(right.astype(int), said.astype(int), zero_division=0))


def _pearson(said: Values, right: Values) -> float:
    from scipy.stats import pearsonr

    return _correlation(pearsonr, said, right)


def _spearman(said: Values, right: Values) -> float:
    from scipy.stats import spearmanr

    return _correlation(spearmanr, said, right)


def _correlation(function: Callable[..., Any], said: Values, right: Values) -> float:
    if len(said) < 2 or np.ptp(said) == 0 or np.ptp(right) == 0:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nearly constant values, whose correlation is still what it is
        return float(function(said, right).statistic)


_METRICS: dict[str, Callable[[Values, Values], float]] = {
    "matthews": _matthews,
    "accuracy": _accuracy,
    "f1": _f1,
    "pearson": _pearson,
    "spearman": _spearman,
}

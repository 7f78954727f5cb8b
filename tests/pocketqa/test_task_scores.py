"""Scores of tasks from stored predictions: against scikit-learn and scipy, also in resamples; comparisons; edits are found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as official

from pocketqa import runs, statistics, task_scores
from pocketqa.errors import DataError, OptionsError
from pocketqa.task_scores import PerExample

RANDOM = np.random.default_rng(5)
RIGHT = (RANDOM.random(120) < 0.6).astype(float)
SAID = np.where(RANDOM.random(120) < 0.8, RIGHT, 1 - RIGHT)
REAL = np.round(RANDOM.random(90) * 20) / 4  # many equal ones, as in STS-B
GUESS = (REAL + RANDOM.normal(size=90)).astype(np.float32).astype(float)


def of_classes(said: np.ndarray, right: np.ndarray) -> dict[str, float]:
    return {
        "matthews": 100 * official.matthews_corrcoef(right, said),
        "accuracy": 100 * official.accuracy_score(right, said),
        "f1": 100 * official.f1_score(right, said, zero_division=0),
    }


def of_numbers(said: np.ndarray, right: np.ndarray) -> dict[str, float]:
    return {"pearson": 100 * stats.pearsonr(said, right).statistic, "spearman": 100 * stats.spearmanr(said, right).statistic}


@pytest.mark.parametrize(("said", "right", "theirs"), [(SAID, RIGHT, of_classes), (GUESS, REAL, of_numbers), (np.round(GUESS), REAL, of_numbers)])
def test_every_metric_of_every_resample_is_the_official_one(said, right, theirs) -> None:
    for name in theirs(said, right):
        values = PerExample(said, right, (name,))
        found = task_scores.resampled_scores(values, resamples=40, seed=3)
        drawn = np.concatenate(list(statistics.draws(len(said), 40, 3)))  # (40, N)
        for score, times in zip(found, drawn, strict=True):
            again = np.repeat(np.arange(len(said)), times)
            assert score == pytest.approx(theirs(said[again], right[again])[name], abs=1e-9)


def test_what_is_constant_scores_nothing() -> None:
    ones = np.ones(10)
    right = np.array([0, 1] * 5, dtype=float)
    for name in ("matthews", "pearson", "spearman"):
        assert task_scores.resampled_scores(PerExample(ones, right, (name,)), 3).tolist() == [0, 0, 0]
    assert task_scores.resampled_scores(PerExample(0 * ones, right, ("f1",)), 3).tolist() == [0, 0, 0]


def results(said=SAID, right=RIGHT, task="mrpc", seed=0, names=("accuracy", "f1"), **extra):
    values = of_numbers(said, right) if set(names) <= {"pearson", "spearman"} else of_classes(said, right)
    return runs.classification_results(task, {name: values[name] for name in names}, said, right, seed=seed, extra={"title": task.upper(), **extra})


def test_results_hold_score_interval_and_predictions() -> None:
    found = results()
    assert found["score"] == pytest.approx((found["metrics"]["accuracy"] + found["metrics"]["f1"]) / 2)
    low, high = found["intervals"]["score"]["low"], found["intervals"]["score"]["high"]
    assert low < found["score"] < high
    stored = task_scores.per_example(found)
    np.testing.assert_array_equal(stored.predictions, SAID)
    np.testing.assert_array_equal(stored.labels, RIGHT)
    numbers = results(GUESS, REAL, "stsb", names=("pearson", "spearman"))
    np.testing.assert_array_equal(task_scores.per_example(numbers).predictions, GUESS)


def test_an_interval_of_accuracy_is_that_of_a_mean() -> None:
    found = results(names=("accuracy",))
    expected = runs.mean_interval((SAID == RIGHT).astype(float)).scaled(100)
    assert (found["intervals"]["score"]["low"], found["intervals"]["score"]["high"]) == pytest.approx((expected.low, expected.high), abs=1e-5)


def test_the_commonest_class_scores_what_the_official_metrics_give_it() -> None:
    share = RIGHT.mean()  # more than half of them are ones
    for given, expected in (
        (results(), {"accuracy": 100 * share, "f1": 100 * 2 * share / (1 + share)}),
        (results(1 - SAID, 1 - RIGHT, names=("accuracy",)), {"accuracy": 100 * share}),
        (results(names=("matthews",)), {"matthews": 0.0}),
    ):
        blind = task_scores.commonest_class(given)
        assert blind is not None and blind["metrics"] == pytest.approx(expected, abs=1e-5)
    assert task_scores.commonest_class(results(GUESS, REAL, "stsb", names=("pearson", "spearman"))) is None


def test_comparisons_are_paired() -> None:
    better = np.where(np.arange(120) < 30, RIGHT, SAID)
    outcome = runs.compare_tasks(results(better, names=("accuracy",)), results(names=("accuracy",)))
    difference = runs.mean_difference(better == RIGHT, SAID == RIGHT).scaled(100)
    kept = runs.mean_ratio(better == RIGHT, SAID == RIGHT).scaled(100)
    assert (outcome.difference.value, outcome.difference.low, outcome.difference.high) == pytest.approx(
        (difference.value, difference.low, difference.high), abs=1e-4
    )
    assert outcome.retention is not None
    assert (outcome.retention.value, outcome.retention.low, outcome.retention.high) == pytest.approx((kept.value, kept.low, kept.high), abs=1e-4)
    same = runs.compare_tasks(results(), results())
    assert same.difference == runs.Interval(0, 0, 0)
    assert same.retention == runs.Interval(100, 100, 100)


def test_nothing_is_retained_of_a_score_that_may_be_zero() -> None:
    chance = np.arange(120) % 2
    outcome = runs.compare_tasks(results(names=("matthews",)), results(chance.astype(float), names=("matthews",)))
    assert outcome.retention is None


def test_means_of_tasks_resample_each_task() -> None:
    two = [results(names=("accuracy",)), results(GUESS, REAL, "stsb", names=("pearson", "spearman"))]
    mean = task_scores.mean_of_tasks(two)
    assert mean.value == pytest.approx((two[0]["score"] + two[1]["score"]) / 2)
    widths = [one["intervals"]["score"]["high"] - one["intervals"]["score"]["low"] for one in two]
    assert max(widths) / 2 * 0.8 < mean.high - mean.low < sum(widths) / 2  # independent: the square root of the sum of squares
    assert task_scores.compare_means(two, two).difference.value == 0
    with pytest.raises(DataError, match="different tasks"):
        task_scores.compare_means(two, two[::-1])
    with pytest.raises(DataError, match=r"different examples \(stsb\)"):
        task_scores.compare_means(two, [two[0], results(GUESS[::-1], REAL[::-1], "stsb", names=("pearson", "spearman"))])


def test_other_examples_and_edits_are_refused() -> None:
    with pytest.raises(DataError, match="different examples"):
        runs.compare_tasks(results(), results(SAID[::-1], RIGHT[::-1]))
    with pytest.raises(DataError, match="different examples"):
        runs.compare_tasks(results(), results(task="qqp"))
    found = results()
    for damage, message in (
        ({"score": 99.0}, "edited"),
        ({"metrics": {"accuracy": 99.0, "f1": 99.0}}, "edited"),
        ({"count": 3}, "predictions of 3 examples"),
        ({"per_example": {**found["per_example"], "labels": "!!"}}, "expected the prediction of each example"),
        ({"per_example": {}}, "pocketqa evaluate --task"),
    ):
        with pytest.raises(DataError, match=message):
            task_scores.per_example({**found, **damage})


def test_contradicting_parts_are_refused() -> None:
    with pytest.raises(OptionsError, match="accuracy is given as 99"):
        runs.classification_results("sst2", {"accuracy": 99.0}, SAID, RIGHT)
    with pytest.raises(OptionsError, match="found none"):
        runs.classification_results("sst2", {}, SAID, RIGHT)
    with pytest.raises(OptionsError, match="found bleu"):
        runs.classification_results("sst2", {"bleu": 1.0}, SAID, RIGHT)
    with pytest.raises(OptionsError, match="one prediction a label"):
        runs.classification_results("sst2", {"accuracy": 1.0}, SAID[:3], RIGHT)


def test_twenty_five_thousand_reviews_fit_into_a_run_file(tmp_path) -> None:
    right = np.arange(25_000) % 2
    said = np.where(np.random.default_rng(0).random(25_000) < 0.9, right, 1 - right)
    accuracy = 100 * float((said == right).mean())
    found = runs.classification_results("imdb", {"accuracy": accuracy}, said, right, extra={"title": "IMDb"})
    subject = runs.Subject("student", "student", "a" * 64)
    run = runs.RunFile("classification", "imdb student", (subject,), (), "pocketqa evaluate", "2026-01-31T12:00:00Z", {}, found)
    assert runs.write(run, tmp_path).stat().st_size < 20_000

"""Objectives of a load test, and the search for the highest rate that keeps one."""

from __future__ import annotations

import math

import pytest

from loadtest.objectives import Objective
from loadtest.rate_search import HIGHEST, LOWEST, RateSearch, step_seconds

TIMES = [float(time) for time in range(1, 101)]  # 1 to 100 ms


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("p99<250ms", Objective("p99", 250.0)),
        (" student p50 < 40 ms ", Objective("p50", 40.0, "student")),
        ("max<2s", Objective("max", 2000.0)),
        ("p99.9<1.5s", Objective("p99.9", 1500.0)),
        ("teacher errors<0.1%", Objective("errors", 0.1, "teacher")),
    ],
)
def test_forms(text: str, wanted: Objective) -> None:
    assert Objective.parse(text) == wanted
    assert Objective.parse(str(wanted)) == wanted


@pytest.mark.parametrize("text", ["", "p99", "p99<250", "p99>250ms", "errors<1ms", "p99<5%", "nobody p99<1s", "p100<1s", "p99<-1ms"])
def test_anything_else_is_named(text: str) -> None:
    with pytest.raises(ValueError, match='such as "p99<250ms"') as raised:
        Objective.parse(text)
    assert repr(text) in str(raised.value)


def test_what_is_found_is_the_order_statistic_at_or_above_the_quantile() -> None:
    # Of 1 to 100 the 99th percentile lies at place 0.99 * 99 = 98.01 from 0, so between 99 and 100: the upper one is taken.
    assert Objective("p99", 1).found(TIMES, 0) == 100.0
    assert Objective("p50", 1).found(TIMES, 0) == 51.0
    assert Objective("max", 1).found(TIMES, 0) == 100.0
    assert Objective("errors", 1).found(TIMES, 25) == 20.0


def test_a_failure_is_an_answer_that_never_came() -> None:
    assert Objective("p50", 1).found(TIMES, 50) == 76.0  # place 0.5 * 149 = 74.5, rounded up to 75, from 0
    assert math.isinf(Objective("p99", 1).found(TIMES, 2))
    assert not Objective("p99", 1e9).met(TIMES, 2)
    assert Objective("p99", 1e9).verdict("student", TIMES, 2) == "student p99<1e+09ms: MISSED, found an answer that never came"


def test_below_the_limit_is_met_and_at_it_is_not() -> None:
    assert Objective("max", 100.5).met(TIMES, 0)
    assert not Objective("max", 100.0).met(TIMES, 0)
    assert Objective("p50", 60.0).verdict("teacher", TIMES, 0) == "teacher p50<60ms: met, found 51ms"


def test_without_a_request_nothing_is_met() -> None:
    assert not Objective("errors", 50).met([], 0)


def searched(capacity: float, start: float, stride: int = 8) -> tuple[float | None, list[float]]:
    """The best rate, and all that were tried, where up to `capacity` is within the bound."""
    search, tried = RateSearch(start, stride), []
    while (rate := search.rate) is not None:
        tried.append(rate)
        search.note(rate <= capacity)
    return search.best, tried


@pytest.mark.parametrize("capacity", [0.6, 1.0, 3.7, 47.0, 1234.0])
@pytest.mark.parametrize("start", [0.5, 10.0, 5000.0])
def test_the_highest_rate_is_found_within_a_tenth(capacity: float, start: float) -> None:
    best, tried = searched(capacity, start)
    assert best is not None
    assert capacity / 1.105 <= best <= capacity  # rates have three digits
    assert len(set(tried)) == len(tried) <= 20


def test_a_search_that_begins_at_the_answer_needs_two_steps() -> None:
    best, _ = searched(47.0, 10.0)
    assert best is not None
    again, tried = searched(47.0, best, stride=1)
    assert again == best
    assert tried == [best, pytest.approx(1.1 * best, rel=0.01)]


def test_a_search_that_begins_far_from_it_lengthens_its_stride() -> None:
    best, tried = searched(47.0, 5.0, stride=1)
    assert best is not None
    assert 47.0 / 1.105 <= best <= 47.0
    assert len(tried) <= 10  # 24 rates of the grid lie between


def test_a_search_ends_at_the_ends_of_the_grid() -> None:
    assert searched(0.0, 10.0)[0] is None
    assert searched(0.0, 10.0)[1][-1] == pytest.approx(LOWEST, rel=0.05)
    assert searched(1e9, 10.0)[0] == pytest.approx(HIGHEST, rel=0.05)


def test_no_more_results_are_taken_once_it_is_over() -> None:
    search = RateSearch(1.0)
    while search.rate is not None:
        search.note(search.rate < 2)
    with pytest.raises(ValueError, match="over"):
        search.note(True)


def test_a_step_at_a_low_rate_takes_longer() -> None:
    assert step_seconds(100, 20) == 20
    assert step_seconds(0.5, 20) == 200  # a p99 wants a hundred requests

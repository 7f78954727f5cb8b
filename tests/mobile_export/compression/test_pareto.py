"""The front of combinations, and the search along it for a budget, by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mobile_export.compression.pareto import Change, Point, Schemes, explore, front_of, greedy_changes
from pocketqa.statistics import Interval


def front(sizes: dict[str, dict[str, int]], costs: dict[str, dict[str, float]]) -> list[dict[str, str]]:
    return front_of(greedy_changes(sizes, costs))


def test_the_front_by_hand() -> None:
    sizes = {"a": {"fp16": 100, "int8": 50, "palette4": 25}, "b": {"fp16": 200, "int8": 100, "palette6": 75, "palette4": 50}}
    costs = {"a": {"int8": 1.0, "palette4": 6.0}, "b": {"int8": 1.0, "palette6": 5.0, "palette4": 3.0}}
    # for each byte: a int8 1/50, a palette4 5/25; b int8 1/100, b palette4 2/50; palette6 of b is larger and worse than its palette4
    assert greedy_changes(sizes, costs) == [
        Change("b", "int8", 100),
        Change("a", "int8", 50),
        Change("b", "palette4", 50),
        Change("a", "palette4", 25),
    ]
    assert front(sizes, costs)[:3] == [{}, {"b": "int8"}, {"b": "int8", "a": "int8"}]


def test_the_front_leaves_out_schemes_above_the_hull() -> None:
    sizes = {"a": {"fp16": 100, "int8": 50, "palette6": 40, "palette4": 20}}
    # from fp16 palette6 costs 6/60 a byte, and from there palette4 3/20; int8, 6/50, would cost more for fewer bytes
    assert front(sizes, {"a": {"int8": 6.0, "palette6": 6.0, "palette4": 9.0}}) == [{}, {"a": "palette6"}, {"a": "palette4"}]
    assert front(sizes, {"a": {"int8": 1.0, "palette6": 8.0, "palette4": 9.0}}) == [{}, {"a": "int8"}, {"a": "palette4"}]
    assert front(sizes, {"a": {"int8": 0.0, "palette6": 0.0, "palette4": 0.0}}) == [{}, {"a": "palette4"}]
    assert front({"a": {"fp16": 100, "palette4": 50, "int4": 50}}, {"a": {"palette4": 2.0, "int4": 1.0}}) == [{}, {"a": "int4"}]  # of equal size


def test_the_front_is_convex_and_ends_at_the_smallest() -> None:
    random = np.random.default_rng(1)
    names = [f"w{i}" for i in range(12)]
    sizes = {name: {"fp16": 1000, "int8": 510, "palette6": 400, "palette4": 260} for name in names}
    costs = {name: dict(zip(("int8", "palette6", "palette4"), np.sort(random.exponential(1, 3)).tolist(), strict=True)) for name in names}
    states = front(sizes, costs)
    totals = [sum(sizes[name][state.get(name, "fp16")] for name in names) for state in states]
    harm = [sum(costs[name].get(state.get(name, "fp16"), 0) for name in names) for state in states]
    slopes = -np.diff(harm) / np.diff(totals)
    assert (np.diff(totals) < 0).all() and (np.diff(slopes) >= -1e-12).all()
    assert states[-1] == dict.fromkeys(names, "palette4")


class Field:
    """80 weights that may each save a little, at a loss of 1/80 each, and what was asked of them."""

    def __init__(self, loss: Callable[[int], float] = lambda changed: changed / 80) -> None:
        self.changes = [Change(f"w{i}", "palette4", 80) for i in range(80)]
        self.loss = loss
        self.asked: list[int] = []

    def evaluate(self, state: Schemes) -> Point:
        self.asked.append(len(state))
        loss = self.loss(len(state))
        return Point(state, 8080 - 80 * len(state), 80.0, Interval(loss, loss - 1, loss))

    def explore(self, most: int, budget: float) -> list[Point]:
        return explore(self.changes, 8080, self.evaluate, most, budget)


def test_points_close_in_on_the_budget() -> None:
    field = Field()
    points = field.explore(most=8, budget=0.71)
    assert field.asked[:4] == [80, 70, 60, 50]  # spread from the end to half of the bytes
    assert field.asked[4:] == [55, 57, 56]  # between the last within, 50, and the first beyond, 60: 56 (0.7) is within, 57 is not
    assert [len(point.schemes) for point in points][:3] == [50, 55, 56]


def test_a_change_that_is_too_much_is_left_out() -> None:
    big = Change("words", "palette4", 3000)
    others = [Change(f"w{i}", "palette4", 50) for i in range(20)]
    asked: list[int] = []

    def evaluate(state: Schemes) -> Point:
        asked.append(4000 - sum(change.saved for change in (*others, big) if change.name in state))
        loss = 5.0 if "words" in state else len(state) / 20
        return Point(state, asked[-1], 80.0, Interval(loss, loss, loss))

    points = explore([*others[:10], big, *others[10:]], 4000, evaluate, most=8, budget=0.81)
    assert asked[:3] == [0, 500, 3500]  # the front goes from 3500 bytes to 500 in one change
    assert asked[3] == 3000  # and without it to here
    best = min((point for point in points if point.loss.high < 0.81), key=lambda point: point.bytes)
    assert "words" not in best.schemes and len(best.schemes) == 16


def test_points_end_early_where_the_smallest_is_within() -> None:
    field = Field(lambda changed: 0.0)
    field.explore(most=8, budget=1)
    assert sorted(field.asked) == [50, 60, 70, 80]
    alone = Field(lambda changed: 0.0)
    alone.explore(most=1, budget=1)
    assert alone.asked == [80]


def test_points_go_up_to_float16_where_none_is_within() -> None:
    field = Field(lambda changed: 2.0)
    field.explore(most=8, budget=1)
    assert len(field.asked) == 8 and min(field.asked) < 10

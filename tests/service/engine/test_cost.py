"""The learned cost: what it says of shapes that were measured, of others, of a machine that slows down, and of measurements that mislead."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.engine.cost import HALF_LIFE, Cost


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def linear(rows: int, length: int) -> float:
    """2 ms and 10 microseconds a token."""
    return 0.002 + 1e-5 * rows * length


def attention(rows: int, length: int) -> float:
    """1 ms, 10 microseconds a token, and 50 nanoseconds for each pair of positions of a row."""
    return 0.001 + 1e-5 * rows * length + 5e-8 * rows * length**2


SEEDS = [(1, 64), (1, 128), (1, 384), (4, 128), (8, 128), (4, 384)]


def seeded(truth: object, clock: Clock | None = None) -> Cost:
    cost = Cost(clock or Clock())
    for shape in SEEDS:
        cost.seed(*shape, truth(*shape))  # type: ignore[operator]
    return cost


@pytest.mark.parametrize("truth", [linear, attention])
def test_shapes_never_measured_follow_from_those_that_were(truth: object) -> None:
    cost = seeded(truth)
    for shape in [(2, 128), (1, 256), (16, 128), (8, 384), (3, 192), *SEEDS]:
        assert cost.seconds(*shape) == pytest.approx(truth(*shape), rel=0.05)  # type: ignore[operator]


def test_a_shape_that_breaks_the_rule_is_remembered_as_it_is() -> None:
    cost = seeded(linear)
    for _ in range(60):
        cost.observe(8, 128, 3 * linear(8, 128))
        for shape in SEEDS:
            if shape != (8, 128):
                cost.observe(*shape, linear(*shape))
    assert cost.seconds(8, 128) == pytest.approx(3 * linear(8, 128), rel=0.15)
    assert cost.seconds(1, 128) == pytest.approx(linear(1, 128), rel=0.15)


def test_a_machine_that_slows_down_slows_every_shape_down() -> None:
    cost = seeded(linear)
    for _ in range(40):
        cost.observe(1, 128, 2 * linear(1, 128))
        cost.observe(4, 128, 2 * linear(4, 128))
    # (1, 384) was not measured since, and still both are compared at one speed.
    assert cost.seconds(1, 384) / cost.seconds(1, 128) == pytest.approx(linear(1, 384) / linear(1, 128), rel=0.1)
    assert cost.seconds(1, 384) == pytest.approx(2 * linear(1, 384), rel=0.15)


def test_handling_counts_for_the_windows_it_was_for_not_for_the_pass_that_it_holds_up() -> None:
    cost, each = seeded(linear), 0.002
    for _ in range(100):
        cost.observe(8, 128, linear(8, 128) + each, each)  # after a window by itself
        cost.observe(1, 128, linear(1, 128) + 8 * each, 8 * each)  # after eight
    assert cost.seconds(1, 128) == pytest.approx(linear(1, 128) + each, rel=0.05)
    assert cost.seconds(8, 128) == pytest.approx(linear(8, 128) + 8 * each, rel=0.05)
    assert cost.seconds(4, 384) == pytest.approx(linear(4, 384) + 4 * each, rel=0.05)


def test_a_pass_is_never_all_handling() -> None:
    cost = seeded(linear)
    for _ in range(100):
        cost.observe(1, 128, linear(1, 128), 1.0)  # as where it is counted on other cores as well
    assert cost.seconds(1, 128) == pytest.approx(linear(1, 128), rel=0.05)


def test_a_batch_of_a_new_shape_does_not_seem_dear_for_being_the_first_of_it() -> None:
    cost = seeded(linear)
    before = cost.seconds(6, 96), cost.seconds(1, 128)
    cost.observe(6, 96, 2.5 * linear(6, 96))  # the engine prepares itself
    assert (cost.seconds(6, 96), cost.seconds(1, 128)) == before
    for _ in range(20):
        cost.observe(6, 96, 1.2 * linear(6, 96))
        cost.observe(1, 128, linear(1, 128))
    assert cost.seconds(6, 96) == pytest.approx(1.2 * linear(6, 96), rel=0.05)
    assert cost.seconds(1, 128) == pytest.approx(linear(1, 128), rel=0.05)


def test_one_stall_changes_little() -> None:
    cost = seeded(linear)
    for _ in range(10):
        cost.observe(1, 128, linear(1, 128))
    cost.observe(1, 128, 100 * linear(1, 128))
    assert cost.seconds(1, 128) < 1.5 * linear(1, 128)
    for _ in range(10):
        cost.observe(1, 128, linear(1, 128))
    assert cost.seconds(1, 128) == pytest.approx(linear(1, 128), rel=0.2)


def test_what_was_measured_long_ago_gives_way_to_the_curve() -> None:
    clock = Clock()
    cost = seeded(linear, clock)
    cost.seed(16, 128, 10 * linear(16, 128))  # a stall while warming up
    assert cost.seconds(16, 128) > 4 * linear(16, 128)
    clock.now += 8 * HALF_LIFE
    for shape in SEEDS:
        for _ in range(6):
            cost.observe(*shape, linear(*shape))
    assert cost.seconds(16, 128) < 1.5 * linear(16, 128)


def test_predictions_stay_positive_and_finite_whatever_is_measured() -> None:
    draw = np.random.default_rng(0)
    cost = Cost(Clock())
    for _ in range(300):
        shape = int(draw.choice([1, 2, 4, 8, 16])), int(draw.choice([32, 64, 128, 384, 512]))
        cost.observe(*shape, float(10 ** draw.uniform(-5, 1)))
        found = [cost.seconds(rows, length) for rows in (1, 3, 64) for length in (32, 512)]
        assert all(math.isfinite(seconds) and seconds > 0 for seconds in found)


def test_before_anything_is_measured_a_batch_is_taken_to_pay() -> None:
    cost = Cost(Clock())
    assert 0 < cost.seconds(8, 128) < 8 * cost.seconds(1, 128)

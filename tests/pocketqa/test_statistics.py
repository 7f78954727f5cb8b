"""Timing summaries and bootstrap intervals against values worked by hand, normal theory and brute force."""

import itertools
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from pocketqa import runs
from pocketqa.errors import OptionsError
from pocketqa.statistics import (
    FEW_GROUPS,
    STUDENT,
    Interval,
    count_groups,
    least_questions,
    loss_interval,
    mean_interval,
    median_ratio,
    quantile_ratio,
    resampled_means,
)


def test_groups_named_by_long_texts_take_little_memory() -> None:
    values, passages = np.arange(4000) % 7, [f"{number % 2000} says" for number in range(4000)]
    short = mean_interval(values, passages)
    passages[0] = passages[2000] = "0 says" + "a" * 1_000_000
    tracemalloc.start()
    try:
        assert mean_interval(values, passages, resamples=100).value == short.value
        assert count_groups(passages) == 2000
        assert tracemalloc.get_traced_memory()[1] < 400e6  # an array of them would take 16 GB
    finally:
        tracemalloc.stop()


def test_timing_summary_by_hand():
    summary = runs.summarise_times(np.arange(1, 102) / 1000)  # 1 to 101 ms: percentile q is 1 + q exactly
    assert (summary.count, summary.unit) == (101, "ms")
    np.testing.assert_allclose((summary.mean, summary.p50, summary.p90, summary.p99), (51, 51, 91, 100))
    assert runs.summarise_times([0.5], unit="s").to_json() == {"count": 1, "mean": 0.5, "p50": 0.5, "p90": 0.5, "p99": 0.5, "unit": "s"}


@pytest.mark.parametrize("bad", [[], [0.1, float("nan")], [-1.0], [[0.1]]])
def test_timing_summary_refuses(bad):
    with pytest.raises(OptionsError):
        runs.summarise_times(bad)
    with pytest.raises(OptionsError, match="unit"):
        runs.summarise_times([0.1], unit="minutes")


def test_mean_interval_equals_the_whole_bootstrap_distribution():
    values = np.array([0.0, 1.0, 5.0, 7.0])
    every = [np.mean(drawn) for drawn in itertools.product(values, repeat=4)]  # all 256 resamples, equally likely
    found = runs.mean_interval(values, resamples=200_000)
    assert found.value == 3.25
    # With so many resamples the ends fall on the neighbouring atoms of the exact distribution at most.
    low, high = np.quantile(every, 0.025), np.quantile(every, 0.975)
    assert abs(found.low - low) <= 0.25 and abs(found.high - high) <= 0.25


def test_coverage_on_normal_data():
    random = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        interval = runs.mean_interval(random.normal(3.0, 2.0, size=80), resamples=1000, seed=trial)
        hits += interval.low <= 3.0 <= interval.high
    assert 0.90 <= hits / 300 <= 0.98


def test_width_is_that_of_the_normal_theory():
    values = np.random.default_rng(2).normal(size=2000)
    interval = runs.mean_interval(values)
    half = 1.959964 * values.std() / np.sqrt(2000)
    np.testing.assert_allclose((interval.value - interval.low, interval.high - interval.value), half, rtol=0.04)


def test_same_seed_same_interval_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(3).random(50)
    whole = runs.mean_interval(values, seed=7)
    assert runs.mean_interval(values, seed=7) == whole != runs.mean_interval(values, seed=8)
    monkeypatch.setattr("pocketqa.statistics.CHUNK_ELEMENTS", 1024)
    chunked = runs.mean_interval(values, seed=7)
    np.testing.assert_allclose((chunked.low, chunked.high), (whole.low, whole.high))


def test_paired_difference_of_equals_is_exactly_zero():
    values = np.random.default_rng(4).random(100)
    assert runs.mean_difference(values, values) == runs.Interval(0.0, 0.0, 0.0)
    shifted = runs.mean_difference(values + 0.25, values)
    np.testing.assert_allclose((shifted.value, shifted.low, shifted.high), 0.25)


def test_pairing_is_used():
    random = np.random.default_rng(5)
    easy_or_hard = random.normal(0, 10, size=400)  # what both models share, and what pairs remove
    a, b = easy_or_hard + random.normal(1, 1, size=400), easy_or_hard + random.normal(0, 1, size=400)
    difference = runs.mean_difference(a, b)
    expected = 1.959964 * (a - b).std() / 20
    np.testing.assert_allclose((difference.high - difference.low) / 2, expected, rtol=0.06)
    assert difference.low > 0


def test_groups_are_drawn_whole():
    # Two groups of unlike size and value: a resample is (A, A), (A, B), (B, A) or (B, B).
    values, groups = np.array([0.0, 0.0, 0.0, 8.0]), ["A", "A", "A", "B"]
    means = {0.0, 2.0, 8.0}  # 0 = (A, A), 2 = 8 / 4 = one of each, 8 = (B, B)
    drawn = resampled_means(values[:, None], groups, 4000)[:, 0]
    assert set(np.unique(drawn)) == means
    np.testing.assert_allclose([np.mean(drawn == mean) for mean in (0.0, 2.0, 8.0)], (0.25, 0.5, 0.25), atol=0.03)


def test_groups_widen_the_interval_of_alike_values():
    values = np.repeat(np.random.default_rng(6).random(20), 50)  # every group says the same thing fifty times
    groups = np.repeat(np.arange(20), 50)
    alone, grouped = runs.mean_interval(values), runs.mean_interval(values, groups)
    np.testing.assert_allclose((grouped.high - grouped.low) / (alone.high - alone.low), np.sqrt(50), rtol=0.1)


@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1, 1, 2, 3, 3, 3]])
def test_ratio_of_medians_against_brute_force(groups):
    random = np.random.default_rng(7)
    a, b = random.lognormal(1, 1, size=9), random.lognormal(0, 1, size=9)
    found = runs.median_ratio(a, b, groups, resamples=500, seed=11)
    members = [np.flatnonzero(np.asarray(groups if groups is not None else range(9)) == unit) for unit in range(4 if groups else 9)]
    draws = np.random.default_rng(11).integers(0, len(members), size=(500, len(members)))
    ratios = []
    for draw in draws:
        chosen = np.concatenate([members[unit] for unit in draw])
        ratios.append(np.median(a[chosen]) / np.median(b[chosen]))
    np.testing.assert_allclose((found.low, found.high), np.quantile(ratios, (0.025, 0.975)))
    assert found.value == np.median(a) / np.median(b)


def test_of_one_group_its_values_are_drawn():
    values, other = [0.0, 1.0, 1.0, 0.0, 1.0], [1.0, 1.0, 2.0, 1.0, 3.0]
    for group in (["a"] * 5, [7] * 5):
        assert runs.mean_interval(values, group) == runs.mean_interval(values) != runs.Interval(0.6, 0.6, 0.6)
        assert runs.mean_difference(values, other, group) == runs.mean_difference(values, other)
        assert runs.median_ratio(values, other, group) == runs.median_ratio(values, other)
        assert runs.quantile_interval(other, 0.9, group) == runs.quantile_interval(other, 0.9)


def test_of_one_value_no_gate_passes():
    loss = runs.mean_difference([1.0], [1.0], ["a"]).scaled(100)
    assert not runs.passes_gate(loss, 400, 1)  # however wide the limit
    assert loss.alone and runs.Interval.from_json(loss.to_json()).alone  # a verification keeps it so


def test_ratio_of_means():
    random = np.random.default_rng(8)
    b = random.random(200) + 0.5
    exact = runs.mean_ratio(0.9 * b, b)
    np.testing.assert_allclose((exact.value, exact.low, exact.high), 0.9)
    with pytest.raises(OptionsError, match="positive mean"):
        runs.mean_ratio(b, np.zeros(200))


def test_intervals_refuse_what_cannot_be_paired():
    with pytest.raises(OptionsError, match="3 and 2"):
        runs.mean_difference([1, 2, 3], [1, 2])
    with pytest.raises(OptionsError, match="one group for each of 3"):
        runs.mean_interval([1, 2, 3], groups=["a"])
    with pytest.raises(OptionsError, match="level"):
        runs.mean_interval([1, 2, 3], level=95)
    with pytest.raises(OptionsError, match="positive values"):
        runs.median_ratio([1.0, 2.0], [0.0, 1.0])


def test_gate_looks_at_the_upper_end():
    assert runs.passes_gate(runs.Interval(0.1, -0.1, 0.29), 0.3, 1000)
    assert not runs.passes_gate(runs.Interval(0.1, -0.1, 0.3), 0.3, 1000)
    assert not runs.passes_gate(runs.Interval(0.0, -9.0, 9.0), 0.3, 1000)


def test_few_questions_of_which_none_is_lost_pass_no_gate():
    nothing = runs.mean_difference([1.0] * 50, [1.0] * 50).scaled(100)
    assert (nothing.low, nothing.high) == (0, 0) and not runs.passes_gate(nothing, 0.3, 50)
    assert [least_questions(limit) for limit in (0.3, 0.6, 1.0, 7.0, 500.0)] == [1000, 500, 300, 43, 2]
    assert [runs.passes_gate(nothing, 0.3, count) for count in (999, 1000)] == [False, True]


def test_a_gate_seldom_passes_what_loses_more():
    """One question in a hundred lost, against a limit of 0.3."""
    random = np.random.default_rng(9)
    passed = {count: 0 for count in (50, 1000)}
    for trial in range(200):
        for count in passed:
            lost = (random.random(count) < 0.01).astype(float)
            passed[count] += runs.passes_gate(runs.mean_interval(lost, resamples=200, seed=trial).scaled(100), 0.3, count)
    assert passed[50] == 0 and passed[1000] <= 4


def test_a_loss_in_few_groups_has_a_wide_interval():
    # differences 0, 0 | 0.2, 0 with mean 0.05: group sums of what is beyond it -0.1 and 0.1; 12.706 x sqrt(2 x 0.02) / 4 = 0.6353
    found = loss_interval([1, 1, 1, 1], [1, 1, 0.8, 1], ["a", "a", "b", "b"])
    assert [found.value, found.low, found.high] == pytest.approx([0.05, 0.05 - 0.6353, 0.05 + 0.6353])
    reference, ours = np.ones(1000), np.ones(1000)
    ours[[0, 1, 2, 3, 4, 500, 501, 502, 503, 504]] = 0.5  # the same in both articles, so that drawing articles says nothing of it
    articles = ["a"] * 500 + ["b"] * 500
    alike, alone = runs.mean_difference(reference, ours, articles), runs.mean_difference(reference, ours)
    assert runs.passes_gate(alike.scaled(100), 0.6, 1000)
    found = loss_interval(reference, ours, articles)
    assert [found.low, found.high] == pytest.approx([alone.low, alone.high])
    assert not runs.passes_gate(found.scaled(100), 0.6, 1000)
    for groups in (None, ["one"] * 1000, [f"{i % 20}" for i in range(1000)]):  # none, one, and enough
        assert loss_interval(reference, ours, groups) == runs.mean_difference(reference, ours, groups)
    assert [round(value, 3) for value in stats.t.ppf(0.975, np.arange(1, FEW_GROUPS - 1))] == list(STUDENT)


def test_a_gate_on_few_articles_seldom_passes_what_loses_as_much_as_its_limit():
    random = np.random.default_rng(4)
    passed = dict.fromkeys((2, 5), 0)
    for _ in range(100):
        for count in passed:
            groups = np.arange(300) % count
            rates = np.clip(random.normal(0.05, 0.03, count), 0, 1)  # articles differ in what they lose, 5 points on average
            lost = (random.random(300) < rates[groups]).astype(float)
            passed[count] += runs.passes_gate(loss_interval(lost, np.zeros(300), groups).scaled(100), 5.0, 300)
    assert max(passed.values()) <= 8, passed  # 2.5 are meant; by the bootstrap of articles alone it is some 20 of two


def test_scaling_keeps_the_ends_in_order():
    assert runs.Interval(1, 0, 3).scaled(-1) == runs.Interval(-1, -3, 0)
    assert runs.Interval.from_json(runs.Interval(0.1, 0.0, 0.2).to_json()) == runs.Interval(0.1, 0.0, 0.2)


def test_quantile_ratios_are_those_of_numpy() -> None:
    random = np.random.default_rng(3)
    first, second = random.gamma(2.0, 3.0, 60) + 1, random.gamma(2.0, 1.0, 60) + 1
    groups = np.repeat(np.arange(20), 3)
    for quantile in (0.25, 0.5, 0.99):
        found = quantile_ratio(first, second, quantile, groups, resamples=400, seed=5)
        assert found.value == pytest.approx(np.quantile(first, quantile) / np.quantile(second, quantile))
        # The same resamples drawn and expanded one by one.
        chosen = np.random.default_rng(5).integers(0, 20, size=(400, 20))
        rows = [np.concatenate([np.flatnonzero(groups == group) for group in drawn]) for drawn in chosen]
        ratios = [np.quantile(first[row], quantile) / np.quantile(second[row], quantile) for row in rows]
        assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, (0.025, 0.975))))
    assert median_ratio(first, second, groups, resamples=400, seed=5) == quantile_ratio(first, second, 0.5, groups, resamples=400, seed=5)


def test_a_ratio_of_quantiles_by_hand() -> None:
    second = np.ones(200)
    first = np.concatenate((np.full(150, 2.0), np.full(50, 5.0)))  # fewer than 21 slow ones would have to be drawn for another p90 than 5
    assert quantile_ratio(first, second, 0.9, resamples=2000) == Interval(5.0, 5.0, 5.0)
    assert quantile_ratio(first, second, 0.5, resamples=200) == Interval(2.0, 2.0, 2.0)
    rare = np.concatenate((np.full(181, 2.0), np.full(19, 5.0)))  # 21 or more of 19 are drawn in about a third of the resamples
    found = quantile_ratio(rare, second, 0.9, resamples=2000)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 5.0)
    with pytest.raises(OptionsError, match="same count"):
        quantile_ratio(np.ones(3), np.ones(4), 0.9)


def test_a_ratio_of_quantiles_that_every_resample_shares() -> None:
    second = np.linspace(1, 2, 50)
    found = quantile_ratio(3 * second, second, 0.9, resamples=200)
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))


def test_pairs_of_a_ratio_of_quantiles_are_resampled_together() -> None:
    draw = np.random.default_rng(0)
    pace = draw.lognormal(0, 1, 300)  # a machine whose speed changes a hundredfold, for both alike
    paired = quantile_ratio(2 * pace * draw.normal(1, 0.01, 300), pace, 0.9, resamples=500)
    shuffled = quantile_ratio(2 * pace, draw.permutation(pace), 0.9, resamples=500)
    assert paired.high - paired.low < 0.2 * (shuffled.high - shuffled.low)

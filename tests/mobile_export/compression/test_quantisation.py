"""Weights in fewer bits, against values worked by hand and against exhaustive search."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mobile_export.compression.quantisation import Integers, Palette, Sparse, best_palette, block_size, channel_axis, quantise, stored_bytes
from pocketqa.errors import OptionsError


def halves(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float16)


def test_int8_by_hand() -> None:
    # 2 / 127 = 1032.06 * 2^-16, and float16 is counted in 2^-16 there: the scale is 1033 * 2^-16, and 1 becomes 63.44, -0.5 -31.7, 0.1 6.3
    form = quantise(np.array([[2, 1, -0.5, 0.1], [0, 0, 0, 0], [0, -127, 64, 1]], np.float16), "int8")
    assert isinstance(form, Integers)
    assert form.data.tolist() == [[127, 63, -32, 6], [0, 0, 0, 0], [0, -127, 64, 1]]
    assert form.scale.tolist() == [[1033 * 2**-16], [1], [1]]
    assert form.scale.dtype == np.float16 and form.axis == 0


@pytest.mark.parametrize(
    ("scheme", "most", "shape", "shared"),  # shared: the weight as channels or blocks x values that share a scale
    [
        ("int8", 127, (40, 64), (40, 64)),
        ("int8", 127, (1, 24, 32), (24, 32)),
        ("int8", 127, (16, 96, 1, 1), (16, 96)),
        ("int4", 7, (40, 64), (80, 32)),
        ("int4", 7, (1, 24, 32), (24, 32)),
        ("int4", 7, (16, 96, 1, 1), (48, 32)),
    ],
)
def test_integers_end_within_half_a_step(scheme: str, most: int, shape: tuple[int, ...], shared: tuple[int, int]) -> None:
    weight = halves(*shape)
    weight.reshape(-1)[5] = 3e-5  # a channel with subnormal values does not disturb the rest
    form = quantise(weight, scheme)
    assert isinstance(form, Integers)
    assert np.abs(form.data).max() <= most
    exact = weight.astype(np.float64).reshape(shared)
    steps = np.abs(exact).max(1, keepdims=True) / most
    error = np.abs(form.decode().astype(np.float64).reshape(shared) - exact)
    assert (error <= steps * 0.501 + np.abs(exact) * 2**-10).all()
    assert form.scale.size == steps.size


def test_the_rows_of_one_channel_do_not_share_a_scale_with_others() -> None:
    weight = np.concatenate((halves(1, 64), 100 * halves(1, 64, seed=1)))
    error = np.abs(quantise(weight, "int8").decode().astype(np.float64) - weight)
    assert error[0].max() < 0.01 < error[1].max()


def test_very_small_weights_keep_their_precision() -> None:
    weight = (halves(8, 64).astype(np.float32) * 1e-3).astype(np.float16)  # scales of some 1e-5 are float16 subnormals
    form = quantise(weight, "int8")
    assert np.abs(form.data if isinstance(form, Integers) else 0).max() <= 127
    assert np.abs(form.decode().astype(np.float64) - weight).max() < 1e-5


@pytest.mark.parametrize("seed", range(8))
def test_the_palette_is_the_best_there_is(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.unique(random.normal(size=11))
    counts = random.integers(1, 6, len(values))
    for size in (1, 2, 3, 5):
        found = best_palette(values, counts, size)
        least = min(spread(values, counts, cuts) for cuts in itertools.combinations(range(1, len(values)), size - 1))
        assert len(found) == size
        assert (counts * ((values[:, None] - found) ** 2).min(1)).sum() == pytest.approx(least)


def spread(values: np.ndarray, counts: np.ndarray, cuts: tuple[int, ...]) -> float:
    """Squared distances from the means of the intervals between the cuts."""
    edges = [0, *cuts, len(values)]
    parts = [(values[a:b], counts[a:b]) for a, b in itertools.pairwise(edges)]
    return float(sum((n * (v - np.average(v, weights=n)) ** 2).sum() for v, n in parts))


def test_a_palette_by_hand() -> None:
    # two far groups and a lone value: with four entries each value of {0, 0.25} and {8, 9} keeps its own
    weight = np.array([[0, 0, 0, 0.25], [8, 8, 9, 9]], np.float16)
    form = quantise(weight, "palette4")
    assert isinstance(form, Palette)
    assert form.table.tolist()[:4] == [0, 0.25, 8, 9] and len(form.table) == 16
    assert form.indices.tolist() == [[0, 0, 0, 1], [2, 2, 3, 3]]
    assert np.array_equal(form.decode(), weight)


@pytest.mark.parametrize(("scheme", "bits"), [("palette4", 4), ("palette6", 6)])
def test_every_value_takes_the_nearest_entry(scheme: str, bits: int) -> None:
    weight = halves(48, 64)
    form = quantise(weight, scheme)
    assert isinstance(form, Palette)
    assert len(form.table) == 2**bits and form.indices.max() < 2**bits
    nearest = np.abs(weight[..., None].astype(np.float64) - form.table).min(-1)
    assert np.allclose(np.abs(form.decode().astype(np.float64) - weight), nearest, atol=1e-7)


def test_sparse_by_hand() -> None:
    form = quantise(np.array([[1, -2, 3, -4], [0.5, 0.5, 0.5, 8]], np.float16), "sparse", sparsity=0.25)
    assert isinstance(form, Sparse)
    assert form.mask.tolist() == [[True, True, True, True], [False, False, True, True]]  # of equal ones the first go
    assert form.kept.tolist() == [1, -2, 3, -4, 0.5, 8]
    assert form.decode().tolist() == [[1, -2, 3, -4], [0, 0, 0.5, 8]]


def test_bytes_by_hand() -> None:
    shape = (100, 64)
    assert stored_bytes(shape, "fp16") == 12_800
    assert stored_bytes(shape, "int8") == 6_400 + 100 * 2
    assert stored_bytes(shape, "int8", zero_points=True) == 6_400 + 100 * 3
    assert stored_bytes(shape, "int4") == 3_200 + 100 * 2 * 2  # two blocks of 32 a row
    assert stored_bytes(shape, "palette6") == 4_800 + 64 * 2
    assert stored_bytes(shape, "palette4") == 3_200 + 16 * 2
    assert stored_bytes(shape, "sparse", 0.75) == 1_600 * 2 + 800


@pytest.mark.parametrize(("size", "block"), [(768, 32), (384, 32), (312, 26), (1200, 30), (20, 20), (37, 1)])
def test_blocks_divide_the_row(size: int, block: int) -> None:
    assert block_size((8, size)) == block
    assert quantise(halves(4, size), "int4").decode().shape == (4, size)


def test_channels_are_the_first_axis_longer_than_one() -> None:
    assert [channel_axis(shape) for shape in ((5, 3), (1, 7, 3), (1, 1, 4, 2), (1, 1))] == [0, 1, 2, 0]


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(OptionsError, match="int8, int4, palette6, palette4, sparse; found 'int2'"):
        quantise(halves(4, 4), "int2")

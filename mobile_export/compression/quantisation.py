"""Float16 weights in fewer bits: integers with a scale a channel or block, palettes, sparse values.  Numbers only; `constexpr.py` writes them.

    form = quantise(weight, "palette4")
    form.decode()                       # what a program that stores this form computes with

Why not the functions of coremltools 9.0, whose formats these are?  Its integers are rounded in float16 arithmetic and end beyond half a step from
the weight, an all-zero row divides by zero, and its palettes come from two rounds of k-means over every value, by another package.  A float16 tensor
has at most 63,488 distinct values, few enough to find the best palette there is, sooner (`best_palette`).

Shapes: C channels (the first axis longer than one: outputs of a linear map or a convolution, rows of a table), B blocks of a channel, N values of
a weight, V distinct ones among them, K values kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pocketqa.errors import OptionsError

BITS = {"int8": 8, "int4": 4, "palette6": 6, "palette4": 4}
BLOCK = 32  # values that share a scale in int4, as in Apple's guide
SPARSITY = 0.5  # share of the values that become zero

Halves = NDArray[np.float16]
Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Integers:
    """`data` (shape) times `scale`, which has the rank of the weight, C scales along `axis` and B along the next for blocks, else 1."""

    data: NDArray[np.int8]
    scale: Halves
    bits: int
    axis: int

    def decode(self) -> Halves:
        """The weight (shape)."""
        repeats = [size // scales for size, scales in zip(self.data.shape, self.scale.shape, strict=True)]
        scale = self.scale.astype(np.float32)
        for axis, count in enumerate(repeats):
            if count > 1 and scale.shape[axis] > 1:
                scale = scale.repeat(count, axis)
        return np.asarray(self.data * scale, np.float16)


@dataclass(frozen=True, slots=True, eq=False)
class Palette:
    """`indices` (shape) into `table` (2^bits,)."""

    indices: NDArray[np.uint8]
    table: Halves
    bits: int

    def decode(self) -> Halves:
        """The weight (shape)."""
        return self.table[self.indices]


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """`kept` (K,) where `mask` (shape) is True, zeros elsewhere."""

    mask: NDArray[np.bool_]
    kept: Halves

    def decode(self) -> Halves:
        """The weight (shape)."""
        weight = np.zeros(self.mask.shape, np.float16)
        weight[self.mask] = self.kept
        return weight


Form = Integers | Palette | Sparse


def quantise(weight: Halves, scheme: str, sparsity: float = SPARSITY) -> Form:
    """A finite float16 weight of rank 2 or more in a scheme.  Raises OptionsError for an unknown scheme."""
    if scheme == "sparse":
        return _prune(weight, sparsity)
    if scheme not in BITS:
        raise OptionsError(f"Expected a scheme among {', '.join(BITS)}, sparse; found {scheme!r}.")
    if scheme.startswith("palette"):
        return _palettise(weight, BITS[scheme])
    return _round(weight, BITS[scheme])


def stored_bytes(shape: tuple[int, ...], scheme: str, sparsity: float = SPARSITY, zero_points: bool = False) -> int:
    """Bytes of a weight's data, scales and tables, known before anything is computed; fp16 too.

    zero_points: programs before iOS 18 store one with each scale of int8, though it is zero.
    """
    count = math.prod(shape)
    if scheme == "fp16":
        return 2 * count
    if scheme == "sparse":
        return 2 * (count - int(count * sparsity)) + -(-count // 8)
    bits = BITS[scheme]
    data = -(-count * bits // 8)
    if scheme.startswith("palette"):
        return data + (2 << bits)
    return data + math.prod(_scale_shape(shape, bits)) * (3 if zero_points else 2)


def channel_axis(shape: tuple[int, ...]) -> int:
    """The first axis longer than one."""
    return next((axis for axis, size in enumerate(shape) if size > 1), 0)


def block_size(shape: tuple[int, ...]) -> int:
    """Values along the axis after the channels' that share a scale: BLOCK, or the largest divisor of that axis below it.

    BERT's 768 takes 32, TinyBERT's 312 takes 26.
    """
    size = shape[channel_axis(shape) + 1]
    return next(block for block in range(min(BLOCK, size), 0, -1) if size % block == 0)


def _scale_shape(shape: tuple[int, ...], bits: int) -> tuple[int, ...]:
    axis = channel_axis(shape)
    scales = [1] * len(shape)
    scales[axis] = shape[axis]
    if bits == 4:
        scales[axis + 1] = shape[axis + 1] // block_size(shape)
    return tuple(scales)


def _round(weight: Halves, bits: int) -> Integers:
    """Symmetric integers: round(w / scale), scale = largest magnitude of the channel or block / (2^(bits - 1) - 1), rounded up to a float16.

    Rounded up, so that no value is clipped and each ends within half a step.
    """
    shape, most = weight.shape, 2 ** (bits - 1) - 1
    scales = _scale_shape(shape, bits)
    split = [part for size, count in zip(shape, scales, strict=True) for part in (count, size // count)]
    within = tuple(range(1, 2 * len(shape), 2))  # axes of the values that share a scale
    blocks = weight.astype(np.float32).reshape(split)
    exact = np.abs(blocks).max(within, keepdims=True) / np.float32(most)
    scale = exact.astype(np.float16)
    scale = np.where(scale < exact, np.nextafter(scale, np.float16(np.inf)), scale)
    scale[scale == 0] = 1  # all zeros, which any scale stores
    data = np.rint(blocks / scale.astype(np.float32)).astype(np.int8)
    return Integers(data.reshape(shape), scale.reshape(scales), bits, channel_axis(shape))


def _palettise(weight: Halves, bits: int) -> Palette:
    """The best table, each of its entries rounded to float16, and the nearest entry of each value."""
    codes = np.ascontiguousarray(weight).view(np.uint16)  # (shape)
    counts = np.bincount(codes.ravel(), minlength=1 << 16)  # (65536,) how often each float16 occurs
    used = np.flatnonzero(counts).astype(np.uint16)  # (V,)
    values = used.view(np.float16).astype(np.float64)  # (V,)
    order = np.argsort(values, kind="stable")
    table = np.unique(best_palette(values[order], counts[used[order]], 2**bits).astype(np.float16))
    middles = (table[1:].astype(np.float64) + table[:-1]) / 2
    nearest = np.zeros(1 << 16, np.uint8)
    nearest[used] = np.searchsorted(middles, values)
    table = np.concatenate((table, np.zeros(2**bits - len(table), np.float16)))  # fewer distinct values than entries: the rest is not used
    return Palette(nearest[codes], table, bits)


def best_palette(values: Reals, counts: NDArray[np.int64], size: int) -> Reals:
    """The `size` entries with the least sum of squared distances from distinct, ascending values (V,) that occur counts (V,) times.

    In one dimension the clusters are intervals, so dynamic programming finds the optimum: the best split of the first i values into j intervals
    follows from those into j - 1, and the place of the last cut never moves left as i grows, which halves the search at each level.
    Wu, Optimal Quantization by Matrix Searching (1991); Gronlund et al., arXiv 1701.07204, section 2 (divide and conquer).
    """
    total = len(values)
    if total <= size:
        return values
    zeroth, first, second = (np.concatenate(([0.0], np.cumsum(counts * values**power))) for power in (0, 1, 2))  # (V + 1,)

    def cost(begin: NDArray[np.intp], end: NDArray[np.intp]) -> Reals:
        """Squared distances of values begin..end from their mean."""
        total_of = first[end] - first[begin]
        return np.asarray(second[end] - second[begin] - total_of**2 / (zeroth[end] - zeroth[begin]))

    ends = np.arange(1, total + 1)
    best = np.concatenate(([0.0], cost(np.zeros_like(ends), ends)))  # (V + 1,) least cost of the first i values in one interval, then two, ...
    cuts = []
    for intervals in range(2, size + 1):
        best, cut = _one_more(best, cost, intervals, total)
        cuts.append(cut)
    edges = [total]
    for cut in reversed(cuts):
        edges.append(int(cut[edges[-1]]))
    edge = np.array([0, *edges[::-1]])
    return np.asarray(np.diff(first[edge]) / np.diff(zeroth[edge]))


def _one_more(best: Reals, cost: Callable[[NDArray[np.intp], NDArray[np.intp]], Reals], intervals: int, total: int) -> tuple[Reals, NDArray[np.intp]]:
    """(V + 1,) least cost of the first i values in one interval more than `best` has, and where the last of them begins.

    All ranges of one level of the recursion are searched together: each takes its middle i, tries every cut that is left to it, and parts in two.
    """
    least, cut = np.full(total + 1, np.inf), np.zeros(total + 1, np.intp)
    low, high = np.array([intervals]), np.array([total])  # ranges of i to fill in, ascending
    from_cut, to_cut = low - 1, high - 1  # cuts that are left to each
    while len(low):
        middle = (low + high) // 2
        lengths = np.minimum(to_cut, middle - 1) - from_cut + 1
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        tried = np.arange(lengths.sum()) - np.repeat(starts - from_cut, lengths)
        costs = best[tried] + cost(tried, np.repeat(middle, lengths))
        least[middle] = np.minimum.reduceat(costs, starts)
        hits = np.flatnonzero(costs == np.repeat(least[middle], lengths))
        cut[middle] = tried[hits[np.searchsorted(hits, starts)]]  # the first hit of each range
        ranges = np.stack((low, middle - 1, from_cut, cut[middle], middle + 1, high, cut[middle], to_cut), axis=1).reshape(-1, 4)
        low, high, from_cut, to_cut = ranges[ranges[:, 0] <= ranges[:, 1]].T
    return least, cut


def _prune(weight: Halves, sparsity: float) -> Sparse:
    """The share `sparsity` of smallest magnitudes left out, of equal ones those that come first."""
    magnitudes = np.abs(weight).view(np.uint16).ravel()  # the bits of positive floats are in the order of their values, and whole numbers sort sooner
    mask = np.ones(weight.size, np.bool_)
    mask[np.argsort(magnitudes, kind="stable")[: int(weight.size * sparsity)]] = False
    shaped = mask.reshape(weight.shape)
    return Sparse(shaped, weight[shaped])

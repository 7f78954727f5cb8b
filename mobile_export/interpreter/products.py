"""The operations of an ML program that sum: products, normalisations, reductions."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from mobile_export.interpreter.kernels import Ints, Tensors, kernel

ONEDNN = platform.machine() in ("x86_64", "AMD64") and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
LARGE = 2**20  # multiplications from which a call of oneDNN pays


def product(x: Tensor, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (*, N, K) times the transpose of y (*, M, K), plus bias (M,): (*, N, M) float32.

    By oneDNN, matrix by matrix: PyTorch itself leaves float32 to MKL, which uses half the width of an AMD processor's vector units.
    """
    rows, columns = x.shape[-2], y.shape[-2]
    if not ONEDNN or rows * columns * x.shape[-1] < LARGE:
        return x @ y.mT if bias is None else x @ y.mT + bias
    multiply: Any = torch.ops.mkldnn._linear_pointwise
    if y.ndim == 2:
        flat: Tensor = multiply(x.reshape(-1, x.shape[-1]).contiguous(), y.contiguous(), bias, "none", [], "")  # (prod * N, M)
        return flat.view(*x.shape[:-1], columns)
    lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
    xs, ys = (t.expand(*lead, *t.shape[-2:]).contiguous().flatten(0, -3) for t in (x, y))  # (prod *, N, K) (prod *, M, K); strides would be slow
    result = xs.new_empty(len(xs), rows, columns)
    for place, (left, right) in enumerate(zip(xs, ys, strict=True)):
        result[place] = multiply(left, right, bias, "none", [], "")
    return result.view(*lead, rows, columns)


@kernel()
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return product(x, weight, bias) if x.ndim > 1 else product(x[None], weight, bias)[0]


@kernel()
def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    if not (x.ndim and y.ndim and x.is_floating_point() and y.is_floating_point()):
        raise ValueError("a product of other values than arrays of floats is not known here")
    x, y = x.mT if transpose_x and x.ndim > 1 else x, y.mT if transpose_y and y.ndim > 1 else y
    return product(x, y.mT) if x.ndim > 1 and y.ndim > 1 else torch.matmul(x, y)


@kernel()
def _einsum(values: Tensors, equation: str) -> Tensor:
    return torch.einsum(equation, *values)


@kernel()
def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """x (N, C, *D), weight (O, C / groups, *K) -> (N, O, *D')."""
    spatial = x.ndim - 2
    strides, dilations = strides or (1,) * spatial, dilations or (1,) * spatial
    pads = _conv_pads(pad_type, pad, weight.shape[2:], strides, dilations)
    if any(pads):
        x = functional.pad(x, [p for axis in reversed(range(spatial)) for p in pads[2 * axis : 2 * axis + 2]])
    elif math.prod(weight.shape[2:]) == math.prod(strides) == groups == 1:  # a product of matrices, and quicker as one
        mixed = product(weight.flatten(1), x.flatten(2).mT)  # (N, O, prod D)
        mixed = mixed if bias is None else mixed + bias[:, None]
        return mixed.reshape(*mixed.shape[:2], *x.shape[2:])
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[spatial - 1]
    return convolve(x, weight, bias, strides, 0, dilations, groups)


def _conv_pads(pad_type: str, pad: Ints | None, kernel: Sequence[int], strides: Ints, dilations: Ints) -> Ints:
    """Padding before and after each spatial axis."""
    if pad_type == "valid":
        return (0,) * (2 * len(kernel))
    if pad_type == "custom":
        return pad or (0,) * (2 * len(kernel))
    extents = [(size - 1) * dilation for size, dilation in zip(kernel, dilations, strict=True)]
    if pad_type != "same" or any(stride != 1 for stride in strides) or any(extent % 2 for extent in extents):
        raise ValueError(f"padding of type {pad_type!r} is known only as 'same' of odd kernels with strides of 1")
    return tuple(extent // 2 for extent in extents for _ in range(2))


@kernel()
def _scaled_dot_product_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    scores = query @ key.mT / math.sqrt(query.shape[-1])  # (..., L, S)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value


@kernel()
def _softmax(x: Tensor, axis: int = -1) -> Tensor:
    return x.softmax(axis)


@kernel()
def _layer_norm(x: Tensor, axes: Ints | None = None, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    places = sorted(axis % x.ndim for axis in (range(x.ndim) if axes is None else axes))
    if places == list(range(places[0], x.ndim)):
        return functional.layer_norm(x, x.shape[places[0] :], gamma, beta, epsilon)
    centred = x - x.mean(places, keepdim=True)
    normed = centred * torch.rsqrt(centred.square().mean(places, keepdim=True) + epsilon)
    shape = [size if axis in places else 1 for axis, size in enumerate(x.shape)]
    normed = normed if gamma is None else normed * gamma.reshape(shape)
    return normed if beta is None else normed + beta.reshape(shape)


@kernel()
def _batch_norm(x: Tensor, mean: Tensor, variance: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    return functional.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


@kernel()
def _instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """x (N, C, *D), over *D."""
    return functional.instance_norm(x, weight=gamma, bias=beta, eps=epsilon)


@kernel()
def _l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Over the last three axes."""
    return x * torch.rsqrt(x.square().sum((-3, -2, -1), keepdim=True) + epsilon)


REDUCTIONS: dict[str, Callable[[Tensor, Ints, bool], Tensor]] = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: x.logsumexp(axes, keep),
    "reduce_max": lambda x, axes, keep: x.amax(axes, keep),
    "reduce_mean": lambda x, axes, keep: x.mean(axes, keep),
    "reduce_min": lambda x, axes, keep: x.amin(axes, keep),
    "reduce_sum": lambda x, axes, keep: x.sum(axes, keep),
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keep),
}


def _register_reduction(name: str, function: Callable[[Tensor, Ints, bool], Tensor]) -> None:
    @kernel(name, exact=name in ("reduce_max", "reduce_min"))
    def reduce(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        return function(x, tuple(range(x.ndim)) if axes is None else axes, keep_dims)


for _name, _function in REDUCTIONS.items():
    _register_reduction(_name, _function)


@kernel(exact=True)
def _reduce_argmax(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmax(axis, keep_dims)


@kernel(exact=True)
def _reduce_argmin(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
    return x.argmin(axis, keep_dims)


@kernel()
def _cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    ordered = x.flip(axis) if reverse else x
    total = ordered.cumsum(axis)
    total = total - ordered if exclusive else total
    return total.flip(axis) if reverse else total

"""The operations of an ML program that move values and compute none: shapes, slices, look-ups, fillings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mobile_export.interpreter.kernels import IOS17, Bools, Ints, Number, Tensors, kernel


@kernel(exact=True)
def _shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


@kernel(exact=True)
def _reshape(x: Tensor, shape: Ints, opset: int) -> Tensor:
    """-1 is what is left; 0 is the size of x at this place, counted from the last one (before iOS 17 the ranks must then be equal)."""
    if 0 in shape and opset < IOS17 and len(shape) != x.ndim:
        raise ValueError(f"a size of 0 needs {len(shape)} axes, found {x.ndim}")
    sizes = [1] * (len(shape) - x.ndim) + list(x.shape[max(0, x.ndim - len(shape)) :])  # of x, aligned at the last axis
    return x.reshape([own or kept for own, kept in zip(shape, sizes, strict=True)])


@kernel(exact=True)
def _transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


@kernel(exact=True)
def _expand_dims(x: Tensor, axes: Ints) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@kernel(exact=True)
def _squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Axes of another size than 1 stay, as in torch."""
    return x.squeeze() if axes is None else x.squeeze(axes)


@kernel(exact=True)
def _concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    values = [value.reshape(1) if value.ndim == 0 else value for value in values]
    if not interleave:
        return torch.cat(values, axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)


@kernel(exact=True)
def _stack(values: Tensors, axis: int) -> Tensor:
    return torch.stack(values, axis)


@kernel(exact=True)
def _split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> tuple[Tensor, ...]:
    if split_sizes is None:
        if not num_splits or x.shape[axis] % num_splits:
            raise ValueError(f"{x.shape[axis]} values do not divide into {num_splits} parts")
        split_sizes = (x.shape[axis] // num_splits,) * num_splits
    return torch.split_with_sizes(x, split_sizes, axis)


@kernel(exact=True)
def _slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Bools | None = None,
    end_mask: Bools | None = None,
    squeeze_mask: Bools | None = None,
) -> Tensor:
    """As numpy's x[begin:end:stride]; where masked, from the beginning, to the end, or at the one index `begin`."""
    for axis in reversed(range(x.ndim)):  # from the last, since squeezing renumbers the axes behind
        if squeeze_mask and squeeze_mask[axis]:
            x = x.select(axis, begin[axis])
            continue
        step = stride[axis] if stride else 1
        first = None if begin_mask and begin_mask[axis] else begin[axis]
        last = None if end_mask and end_mask[axis] else end[axis]
        places = range(x.shape[axis])[first:last:step]
        if step > 0:
            x = x.narrow(axis, places.start, len(range(places.start, places.stop)) if len(places) else 0)
            x = x if step == 1 else x[(slice(None),) * axis + (slice(None, None, step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return x


@kernel(exact=True)
def _slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """size -1: all that remain."""
    for axis, (first, length) in enumerate(zip(begin, size, strict=True)):
        first %= x.shape[axis]
        x = x.narrow(axis, first, x.shape[axis] - first if length == -1 else length)
    return x


@kernel(exact=True)
def _reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.flip(tuple(range(x.ndim)) if axes is None else axes)


@kernel(exact=True)
def _tile(x: Tensor, reps: Ints) -> Tensor:
    return x.repeat(reps)


@kernel(exact=True)
def _pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: Number = 0.0) -> Tensor:
    """`pad`: before and after each of the last axes."""
    count = len(pad) // 2
    if mode == "constant":
        return functional.pad(x, [p for axis in reversed(range(count)) for p in pad[2 * axis : 2 * axis + 2]], value=constant_val)
    for place in range(count):
        axis = x.ndim - count + place
        size, before, after = x.shape[axis], pad[2 * place], pad[2 * place + 1]
        places = range(-before, size + after)
        if mode == "replicate":
            source = [min(max(at, 0), size - 1) for at in places]
        elif mode == "reflect" and max(before, after) < size:
            source = [size - 1 - abs(size - 1 - abs(at)) for at in places]
        else:
            raise ValueError(f"padding of mode {mode!r} by {before} and {after} of {size} values is not known here")
        x = x.index_select(axis, torch.tensor(source, dtype=torch.int64))
    return x


@kernel(exact=True)
def _fill(shape: Ints, value: Number = 0.0) -> Tensor:
    return torch.full(shape, value)


@kernel(exact=True)
def _fill_like(ref_tensor: Tensor, value: Number = 0.0) -> Tensor:
    return torch.full(ref_tensor.shape, value)


@kernel()
def _range_1d(start: Number, end: Number, step: Number) -> Tensor:
    return torch.arange(start, end, step)


@kernel(exact=True)
def _one_hot(indices: Tensor, one_hot_vector_size: int, axis: int = -1, on_value: Number = 1, off_value: Number = 0) -> Tensor:
    hot = indices.unsqueeze(-1) == torch.arange(one_hot_vector_size, dtype=torch.int32)  # (*indices, size)
    return torch.where(hot.movedim(-1, axis), on_value, off_value)


@kernel(exact=True)
def _gather(x: Tensor, indices: Tensor, opset: int, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """x[:axis] + indices[batch_dims:] + x[axis + 1:], the first `batch_dims` axes going together."""
    places = _whole(indices, x.shape[axis], opset)
    axis %= x.ndim
    if batch_dims == 0:
        return x.index_select(axis, places.reshape(-1)).reshape((*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]))
    taken = [_gather(row, own, opset, axis - 1, batch_dims - 1) for row, own in zip(x, indices, strict=True)]
    return torch.stack(taken)


@kernel(exact=True)
def _gather_along_axis(x: Tensor, indices: Tensor, opset: int, axis: int = 0, validate_indices: bool = False) -> Tensor:
    return x.gather(axis, _whole(indices, x.shape[axis], opset))


@kernel(exact=True)
def _gather_nd(x: Tensor, indices: Tensor, opset: int, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """x[:batch_dims] + indices[batch_dims:-1] + what is left of x; the last axis of `indices` (K) holds places along K axes of x."""
    depth = indices.shape[-1]
    sizes = x.shape[batch_dims : batch_dims + depth]
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for axis, size in enumerate(sizes):
        flat = flat * size + _whole(indices[..., axis], size, opset)
    return _gather(x.flatten(batch_dims, batch_dims + depth - 1), flat, opset, batch_dims, batch_dims)


def _whole(indices: Tensor, size: int, opset: int) -> Tensor:
    """Before iOS 17, negative indices count from the end; afterwards they are out of bounds, which torch refuses."""
    whole = indices.long()
    return torch.where(whole < 0, whole + size, whole) if opset < IOS17 else whole

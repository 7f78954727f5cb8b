"""Run a saved package's operations one by one, in float64, so that tests can ask what the saved bytes compute.

Written from the definitions of the operations, not from coremltools' own evaluation; an operation or argument that it does not know is an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from mobile_export.mlprogram import Constant, Operation, Program

REAL = np.float64
KINDS: dict[str, Any] = {"fp16": REAL, "fp32": REAL, "int32": np.int32, "int16": np.int16, "uint16": np.uint16, "bool": np.bool_}


def replay(program: Program, ids: Any) -> tuple[Any, Any]:
    """Start and end logits (1, T) of ids (1, T)."""
    values: dict[str, Any] = {program.inputs[0].name: np.asarray(ids, np.int32)}
    for operation in program.operations:
        if operation.type == "const":
            values[operation.name] = _widen(operation.attributes["val"])
        else:
            values[operation.name] = _run(operation, values)
            _check_shape(operation, values[operation.name])
    start, end = (values[feature.name] for feature in program.outputs)
    return start, end


def _widen(constant: Constant) -> Any:
    return constant.value.astype(REAL) if constant.value.dtype.kind == "f" else constant.value


def _check_shape(operation: Operation, value: Any) -> None:
    declared = operation.outputs[0].shape
    assert len(declared) == np.ndim(value), operation
    assert all(size in (None, found) for size, found in zip(declared, np.shape(value), strict=True)), (operation.name, declared, np.shape(value))


def _run(operation: Operation, values: dict[str, Any]) -> Any:
    bound = {key: [values[b] if isinstance(b, str) else _widen(b) for b in group] for key, group in operation.inputs.items()}
    lists = {"values"}  # of concat; every other argument has one value
    arguments = {key: group if key in lists else group[0] for key, group in bound.items()}
    return _OPERATIONS[operation.type](**arguments)


def _slice(x: Any, begin: Any, end: Any, stride: Any = None, begin_mask: Any = None, end_mask: Any = None, squeeze_mask: Any = None) -> Any:
    index: list[Any] = []
    for axis in range(x.ndim):
        first = None if begin_mask is not None and begin_mask[axis] else int(begin[axis])
        last = None if end_mask is not None and end_mask[axis] else int(end[axis])
        step = 1 if stride is None else int(stride[axis])
        index.append(int(begin[axis]) if squeeze_mask is not None and squeeze_mask[axis] else slice(first, last, step))
    return x[tuple(index)]


def _layer_norm(x: Any, axes: Any, gamma: Any, beta: Any, epsilon: Any) -> Any:
    axis = tuple(int(a) for a in axes)
    centred = x - x.mean(axis, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis, keepdims=True) + epsilon) * gamma + beta


def _softmax(x: Any, axis: Any) -> Any:
    powers = np.exp(x - x.max(int(axis), keepdims=True))
    return powers / powers.sum(int(axis), keepdims=True)


def _gelu(x: Any, mode: Any) -> Any:
    return torch.nn.functional.gelu(torch.from_numpy(x), approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[str(mode)]).numpy()


def _matmul(x: Any, y: Any, transpose_x: Any = False, transpose_y: Any = False) -> Any:
    return (np.swapaxes(x, -1, -2) if transpose_x else x) @ (np.swapaxes(y, -1, -2) if transpose_y else y)


def _gather(x: Any, indices: Any, axis: Any, batch_dims: Any = 0, validate_indices: Any = False) -> Any:
    assert batch_dims == 0 and not validate_indices
    assert np.all((np.asarray(indices) >= 0) & (np.asarray(indices) < x.shape[int(axis)]))
    return np.take(x, np.asarray(indices, np.int64), int(axis))


def _cast(x: Any, dtype: Any) -> Any:
    result = np.asarray(x).astype(KINDS[str(dtype)])
    assert np.array_equal(result, x), f"a cast to {dtype} changes values"
    return result


def _concat(values: Any, axis: Any, interleave: Any = False) -> Any:
    assert not interleave
    return np.concatenate([np.atleast_1d(value) for value in values], int(axis))


_OPERATIONS: dict[str, Any] = {
    "add": lambda x, y: x + y,
    "cast": _cast,
    "concat": _concat,
    "equal": lambda x, y: x == y,
    "expand_dims": lambda x, axes: np.expand_dims(x, tuple(int(a) for a in axes)),
    "fill": lambda shape, value: np.full(tuple(int(s) for s in shape), value),
    "fill_like": lambda ref_tensor, value: np.full_like(ref_tensor, value),
    "gather": _gather,
    "gelu": _gelu,
    "greater": lambda x, y: x > y,
    "greater_equal": lambda x, y: x >= y,
    "layer_norm": _layer_norm,
    "linear": lambda x, weight, bias: x @ weight.T + bias,
    "logical_and": lambda x, y: x & y,
    "matmul": _matmul,
    "mul": lambda x, y: x * y,
    "not_equal": lambda x, y: x != y,
    "reduce_min": lambda x, axes, keep_dims: x.min(tuple(int(a) for a in axes), keepdims=bool(keep_dims)),
    "relu": lambda x: np.maximum(x, 0),
    "reshape": lambda x, shape: x.reshape(tuple(int(s) for s in shape)),
    "select": lambda cond, a, b: np.where(cond, a, b),
    "shape": lambda x: np.array(x.shape, np.int64),
    "slice_by_index": _slice,
    "softmax": _softmax,
    "sub": lambda x, y: x - y,
    "transpose": lambda x, perm: np.transpose(x, tuple(int(p) for p in perm)),
}

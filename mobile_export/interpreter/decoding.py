"""Compressed weights of an ML program as values: the `constexpr_*` operations of iOS 16 and iOS 18, written from their definitions.

Definitions: coremltools, converters/mil/mil/ops/defs/iOS16/constexpr_ops.py and iOS18/compression.py.  In programs up to iOS 17 their arguments are
attributes; from iOS 18 on they are inputs, and one of them may use what another left (sparse and palettised, palettised and quantised).

    for info in weights(open_program("Student.mlpackage")).values():
        print(info.name, info.shape, info.scheme, info.stored_bytes, info.users)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobile_export.interpreter.blobs import numpy_dtype, stored_bits, unpack
from mobile_export.interpreter.mlprogram import Constant, Operation, Program
from pocketqa.errors import EngineError

Array = NDArray[Any]
COMPRESSED = "constexpr_"


@dataclass(frozen=True, slots=True, eq=False)
class WeightInfo:
    """A large float constant, as operations see it.

    name: of the value that operations use; also the key of `Interpreter(replace=...)`.
    dtype: of the decoded values in the program, float16 or float32.
    stored_bytes: in the weight file or the specification, with scales, tables and masks, without the records between blobs.
    scheme: fp16, fp32, int8, uint8, int4, ..., paletteN (N bits), sparse, or several joined by "+" as in "sparse+palette4".
    users: names of the operations that take it.
    value: decodes it, (shape) float32.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored_bytes: int
    scheme: str
    users: tuple[str, ...]
    value: Callable[[], NDArray[np.float32]]


def is_constant(operation: Operation) -> bool:
    """Whether an operation is a constant, plain or compressed."""
    return operation.type == "const" or operation.type.startswith(COMPRESSED)


def constant_values(program: Program) -> dict[str, Array]:
    """Every named constant of a program by the name that operations use, compressed ones decoded, in its declared type.

    Raises EngineError naming the operation for a compressed form that is not known or contradicts itself.
    """
    values: dict[str, Array] = {}
    for operation in program.operations:
        if is_constant(operation):
            values.update(decode(operation, values))
    return values


def weights(program: Program, least: int = 1024) -> dict[str, WeightInfo]:
    """The float constants of at least `least` values that operations take, by name, in program order."""
    producers = {output.name: operation for operation in program.operations if is_constant(operation) for output in operation.outputs}
    users: dict[str, list[str]] = {name: [] for name in producers}
    for operation in program.operations:
        if not is_constant(operation):
            for name in dict.fromkeys(b for bound in operation.inputs.values() for b in bound if isinstance(b, str) and b in users):
                users[name].append(operation.name)
    found = {}
    for operation in program.operations:
        if is_constant(operation):
            for output in operation.outputs:
                shape = tuple(size for size in output.shape if size is not None)
                if output.dtype.startswith("float") and users[output.name] and np.prod(shape) >= least:
                    found[output.name] = _weight(output.name, output.dtype, shape, producers, tuple(users[output.name]))
    return found


def decode(operation: Operation, values: Mapping[str, Array]) -> dict[str, Array]:
    """What a constant operation leaves, by the names of its outputs; `values`: of the constants before it."""
    if operation.type == "const":
        return {operation.outputs[0].name: operation.attributes["val"].value}
    decoder = _DECODERS.get(operation.type)
    if decoder is None:
        raise EngineError(f"Operation {operation.name!r} is of type {operation.type!r}, a compressed form that is not known here.")
    arguments = {key: values[bound] if isinstance(bound, str) else bound.value for key, bound in _arguments(operation).items()}
    try:
        results = decoder(**arguments)
    except (TypeError, ValueError, IndexError) as error:  # an argument that is absent or unknown, shapes or indices that do not fit
        raise EngineError(f"Operation {operation.name!r} of type {operation.type!r} cannot be decoded: {error}.") from error
    for output, result in zip(operation.outputs, results, strict=True):
        if result.shape != output.shape or result.dtype != numpy_dtype(output.dtype):
            raise EngineError(
                f"Operation {operation.name!r} of type {operation.type!r}: expected {output.dtype} {output.shape} as declared for "
                f"{output.name!r}, decoded {result.dtype} {result.shape}."
            )
    return {output.name: result for output, result in zip(operation.outputs, results, strict=True)}


def _arguments(operation: Operation) -> dict[str, str | Constant]:
    """Attributes (up to iOS 17) and inputs (iOS 18), which have one value each."""
    attributes: dict[str, str | Constant] = {key: value for key, value in operation.attributes.items() if key != "name"}
    return attributes | {key: bound for key, (bound,) in operation.inputs.items()}


def _affine_dequantize(quantized_data: Array, zero_point: Array, scale: Array, axis: Array) -> tuple[Array]:
    """iOS 16: scale * (quantized_data - zero_point), both of them scalars or vectors along `axis`."""

    def along_axis(parameter: Array) -> Array:
        if parameter.ndim == 0:
            return parameter.astype(np.float32)
        shape = [1] * quantized_data.ndim
        shape[int(axis)] = -1
        return parameter.astype(np.float32).reshape(shape)

    return (((quantized_data.astype(np.float32) - along_axis(zero_point)) * along_axis(scale)).astype(scale.dtype),)


def _shift_scale(data: Array, scale: Array, offset: Array | None = None) -> tuple[Array]:
    """iOS 18: scale * (data - offset) in the type of scale; one scale and offset for each block of data."""
    blocks = _blocks(scale.shape, data.shape)
    values = data.astype(scale.dtype)
    if offset is not None:
        values = values - offset.astype(scale.dtype)[blocks]
    return (scale[blocks] * values,)


def _blocks(parts: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Array, ...]:
    """Indices that repeat an array of `parts` over `shape`, each of its values over a block of shape[d] / parts[d]."""
    if len(parts) != len(shape) or any(size % part for size, part in zip(shape, parts, strict=True)):
        raise ValueError(f"values of shape {shape} do not divide into {parts} blocks")
    return np.ix_(*(np.arange(size) // (size // part) for size, part in zip(shape, parts, strict=True)))


def _lut_to_dense(indices: Array, lut: Array, shape: Array | None = None, vector_axis: Array | None = None) -> tuple[Array]:
    """Values looked up in a table.

    iOS 16 (with `shape`): one table (2^N,) for indices of N bits, packed into bytes.  iOS 18: a table (..., 2^N, V) for each block of the indices,
    whose entries of V values are laid out along `vector_axis`.
    """
    if shape is not None:
        bits = lut.size.bit_length() - 1
        count = int(np.prod(shape, dtype=np.int64))
        unpacked = indices if bits == 8 else unpack(indices, f"uint{bits}", count)
        return (lut[unpacked].reshape(shape.tolist()),)
    vectors = lut[(*_blocks(lut.shape[:-2], indices.shape), indices)]  # (*indices, V)
    if vector_axis is None:
        if lut.shape[-1] != 1:
            raise ValueError(f"entries of {lut.shape[-1]} values need a vector_axis")
        return (vectors[..., 0],)
    axis = int(vector_axis) % indices.ndim
    dense = list(indices.shape)
    dense[axis] *= lut.shape[-1]
    return (np.moveaxis(vectors, -1, axis + 1).reshape(dense),)


def _sparse_to_dense(nonzero_data: Array, mask: Array, shape: Array | None = None) -> tuple[Array]:
    """Values where the mask has a 1, zeros elsewhere.  iOS 16 (with `shape`): the mask is packed, eight bits a byte; iOS 18: it is uint1 (shape)."""
    if shape is not None:
        mask = unpack(mask, "uint1", int(np.prod(shape, dtype=np.int64))).reshape(shape.tolist())
    dense = np.zeros(mask.shape, nonzero_data.dtype)
    dense[mask != 0] = nonzero_data
    return (dense,)


def _lut_to_sparse(indices_mask: Array, indices_nonzero_data: Array, lut: Array, vector_axis: Array | None = None) -> tuple[Array, Array]:
    """iOS 18: (mask, values where it has a 1) of a table looked up at sparse indices."""
    (indices,) = _sparse_to_dense(indices_nonzero_data, indices_mask)
    (dense,) = _lut_to_dense(indices, lut, vector_axis=vector_axis)
    mask = indices_mask if vector_axis is None else np.repeat(indices_mask, lut.shape[-1], int(vector_axis))
    return mask, dense[mask != 0]


def _sparse_shift_scale(data_mask: Array, nonzero_data: Array, scale: Array, offset: Array | None = None) -> tuple[Array, Array]:
    """iOS 18: (mask, values where it has a 1) of `_shift_scale` on sparse data."""
    (data,) = _sparse_to_dense(nonzero_data, data_mask)
    (dense,) = _shift_scale(data, scale, offset)
    return data_mask, dense[data_mask != 0]


def _cast(source_val: Array, output_dtype: Array) -> tuple[Array]:
    names = {"fp32": np.float32, "fp16": np.float16}
    if (name := str(output_dtype)) not in names:
        raise ValueError(f"a cast to {name!r} is not known here")
    return (source_val.astype(names[name]),)


_DECODERS: dict[str, Callable[..., tuple[Array, ...]]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _shift_scale,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_shift_scale,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}


def _weight(name: str, dtype: str, shape: tuple[int, ...], producers: Mapping[str, Operation], users: tuple[str, ...]) -> WeightInfo:
    chain = _chain(producers[name], producers)
    parts = [value for operation in chain for key, value in operation.attributes.items() if key != "name"]
    parts += [bound for operation in chain for values in operation.inputs.values() for bound in values if isinstance(bound, Constant)]

    def value() -> NDArray[np.float32]:
        values: dict[str, Array] = {}
        for operation in chain:
            values.update(decode(operation, values))
        return values[name].astype(np.float32)

    stored = sum(part.stored_bytes for part in parts if part.value.dtype.kind != "U")
    return WeightInfo(name, shape, dtype, stored, _scheme(chain, dtype), users, value)


def _chain(operation: Operation, producers: Mapping[str, Operation]) -> list[Operation]:
    """The operation and those whose values it takes, these first, each once."""
    chain: dict[str, Operation] = {}
    for bound in (b for values in operation.inputs.values() for b in values if isinstance(b, str)):
        chain |= {before.name: before for before in _chain(producers[bound], producers)}
    return list((chain | {operation.name: operation}).values())


def _scheme(chain: Iterable[Operation], dtype: str) -> str:
    """How a weight is stored, in one word for each compressing operation, the last first."""
    words = [word for operation in chain if (word := _word(operation))]
    return "+".join(reversed(words)) or {"float16": "fp16", "float32": "fp32"}[dtype]


def _word(operation: Operation) -> str:
    arguments = _arguments(operation)

    def dtype(key: str) -> str:
        bound = arguments.get(key)
        return bound.dtype if isinstance(bound, Constant) else ""

    match operation.type.removeprefix(COMPRESSED):
        case "affine_dequantize":
            return dtype("quantized_data")
        case "blockwise_shift_scale":
            return dtype("data")
        case "sparse_blockwise_shift_scale":
            return dtype("nonzero_data")
        case "lut_to_dense" | "lut_to_sparse":
            table = arguments["lut"]
            if "shape" in arguments and isinstance(table, Constant):  # iOS 16, where indices are bytes
                return f"palette{table.value.size.bit_length() - 1}"
            return f"palette{stored_bits(dtype('indices') or dtype('indices_nonzero_data'))}"
        case "sparse_to_dense":
            return "sparse"
    return ""

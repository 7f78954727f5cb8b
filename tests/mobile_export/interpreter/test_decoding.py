"""Compressed weights: against coremltools' definitions on random values, and in packages that coremltools compressed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_export.interpreter.blobs import SUB_BYTE, numpy_dtype, stored_bytes, unpack
from mobile_export.interpreter.decoding import constant_values, decode, weights
from mobile_export.interpreter.mlprogram import Constant, Operation, Value, open_program
from mobile_export.tools import import_coremltools, quiet
from pocketqa.errors import EngineError

import_coremltools()  # without its warnings; tests then import parts of it
DRAW = np.random.default_rng(0)


def constant(value: Any, dtype: str) -> Constant:
    return Constant("c", dtype, np.asarray(value, numpy_dtype(dtype) if dtype != "str" else None))


def operation(kind: str, outputs: list[tuple[str, tuple[int, ...]]], arguments: Mapping[str, Constant | str], attributes: bool = False) -> Operation:
    """A constexpr operation; with its arguments as attributes, as before iOS 18, or as inputs."""
    values = tuple(Value(f"out{place}", dtype, shape) for place, (dtype, shape) in enumerate(outputs))
    if attributes:
        return Operation(f"constexpr_{kind}", "w", {}, {key: value for key, value in arguments.items() if isinstance(value, Constant)}, values)
    return Operation(f"constexpr_{kind}", "w", {key: (value,) for key, value in arguments.items()}, {}, values)


def decoded(op: Operation, **before: Any) -> Any:
    return next(reversed(decode(op, before).values()))  # of a mask and values, the values


def integers(dtype: str, shape: tuple[int, ...]) -> Any:
    bits, signed = SUB_BYTE.get(dtype, 8), dtype.startswith("int")
    low = -(2 ** (bits - 1)) if signed else 0
    return DRAW.integers(low, low + 2**bits, shape).astype(numpy_dtype(dtype))


def test_unpacks_the_example_of_the_definition() -> None:
    packed = np.array([0b01101100, 0b11], np.uint8)  # indices 0, 3, 2, 1 of two bits each, the first lowest; then 3
    assert unpack(packed, "uint2", 5).tolist() == [0, 3, 2, 1, 3]
    assert unpack(np.array([0b10000001, 0b1000], np.uint8), "int4", 3).tolist() == [1, -8, -8]


@pytest.mark.parametrize("dtype", list(SUB_BYTE))
@pytest.mark.parametrize("count", [1, 7, 8, 24, 101])
def test_unpacks_every_width(dtype: str, count: int) -> None:
    values = integers(dtype, (count,))
    bits = np.unpackbits(values.view(np.uint8)[:, None], axis=1, bitorder="little")[:, : SUB_BYTE[dtype]]
    packed = np.packbits(bits.reshape(-1), bitorder="little")
    assert len(packed) == stored_bytes(dtype, count)
    np.testing.assert_array_equal(unpack(packed, dtype, count), values)


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize(("shape", "axis"), [((6, 4), 0), ((6, 4), -1), ((2, 3, 4), 1), ((5,), 0)])
def test_affine_dequantize_of_ios16(dtype: str, shape: tuple[int, ...], axis: int) -> None:
    from coremltools.converters.mil.mil.ops.defs.iOS16.constexpr_ops import constexpr_affine_dequantize as reference

    data = integers(dtype, shape)
    for vector in (True, False):
        size = (shape[axis],) if vector else ()
        scale, zero = (DRAW.random(size) * 0.1).astype(np.float16), np.asarray(integers(dtype, size))
        arguments = {"quantized_data": constant(data, dtype), "zero_point": constant(zero, dtype), "axis": constant(axis, "int32")}
        found = decoded(operation("affine_dequantize", [("float16", shape)], arguments | {"scale": constant(scale, "float16")}, True))
        np.testing.assert_array_equal(found, reference.decompress(data, zero, np.asarray(scale), axis))
        by_hand = [
            np.float32(s) * (np.float32(q) - np.float32(z))
            for q, s, z in zip(
                np.moveaxis(data, axis, 0).reshape(shape[axis], -1),
                np.broadcast_to(scale, shape[axis]),
                np.broadcast_to(zero, shape[axis]),
                strict=True,
            )
        ]
        np.testing.assert_array_equal(np.moveaxis(found, axis, 0).reshape(shape[axis], -1), np.array(by_hand).astype(np.float16))


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_tables_of_ios16(bits: int) -> None:
    from coremltools.converters.mil.mil.ops.defs.iOS16.constexpr_ops import constexpr_lut_to_dense as reference
    from coremltools.optimize._utils import pack_elements_into_bits

    shape = (5, 7)
    indices = DRAW.integers(0, 2**bits, shape).astype(np.uint8)
    lut, packed = DRAW.standard_normal(2**bits).astype(np.float16), pack_elements_into_bits(indices.reshape(-1), bits)
    arguments = {"indices": constant(packed, "uint8"), "lut": constant(lut, "float16"), "shape": constant(shape, "uint32")}
    found = decoded(operation("lut_to_dense", [("float16", shape)], arguments, True))
    np.testing.assert_array_equal(found, lut[indices])
    np.testing.assert_array_equal(found, reference.decompress(lut, packed, np.array(shape)))


def test_sparse_weights_of_ios16() -> None:
    dense = DRAW.standard_normal((5, 9)).astype(np.float16) * (DRAW.random((5, 9)) < 0.4)
    mask = np.packbits((dense != 0).reshape(-1), bitorder="little")
    arguments = {"nonzero_data": constant(dense[dense != 0], "float16"), "mask": constant(mask, "uint8"), "shape": constant((5, 9), "uint32")}
    np.testing.assert_array_equal(decoded(operation("sparse_to_dense", [("float16", (5, 9))], arguments, True)), dense)


@pytest.mark.parametrize("dtype", ["int4", "uint4", "int8", "uint8"])
@pytest.mark.parametrize(("shape", "blocks"), [((6, 8), (6, 2)), ((6, 8), (3, 1)), ((4, 6, 8), (1, 3, 8)), ((8,), (4,))])
def test_shift_and_scale_of_ios18(dtype: str, shape: tuple[int, ...], blocks: tuple[int, ...]) -> None:
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_blockwise_shift_scale as reference

    data, offset = integers(dtype, shape), integers(dtype, blocks)
    for kind in (np.float16, np.float32):
        scale = DRAW.random(blocks).astype(kind)
        arguments = {"data": constant(data, dtype), "scale": constant(scale, scale.dtype.name)}
        plain = decoded(operation("blockwise_shift_scale", [(scale.dtype.name, shape)], arguments))
        np.testing.assert_array_equal(plain, reference.decompress(data, scale, None))
        shifted = decoded(operation("blockwise_shift_scale", [(scale.dtype.name, shape)], arguments | {"offset": constant(offset, dtype)}))
        np.testing.assert_array_equal(shifted, reference.decompress(data, scale, offset))
        repeated = [np.kron(part.astype(np.float64), np.ones([s // b for s, b in zip(shape, blocks, strict=True)])) for part in (scale, offset)]
        np.testing.assert_allclose(shifted, repeated[0] * (data - repeated[1]), rtol=1e-3)


@pytest.mark.parametrize(("groups", "size", "axis"), [((1, 1), 1, None), ((2, 1), 1, None), ((1, 3), 1, None), ((1, 1), 2, 0), ((2, 1), 4, -1)])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_tables_of_ios18(bits: int, groups: tuple[int, int], size: int, axis: int | None) -> None:
    from coremltools.converters.mil.mil.ops.defs.iOS18.compression import constexpr_lut_to_dense as reference

    indices = DRAW.integers(0, 2**bits, (4, 6)).astype(np.uint8)
    lut = DRAW.standard_normal((*groups, 2**bits, size)).astype(np.float16)
    arguments = {"indices": constant(indices, f"uint{bits}"), "lut": constant(lut, "float16")}
    if axis is not None:
        arguments["vector_axis"] = constant(axis, "int32")
    expected = reference.decompress(indices, lut, None if axis is None else np.int32(axis))
    np.testing.assert_array_equal(decoded(operation("lut_to_dense", [("float16", expected.shape)], arguments)), expected)


def test_sparse_weights_of_ios18_with_tables_and_scales() -> None:
    from coremltools.converters.mil.mil.ops.defs.iOS18 import compression

    mask = (DRAW.random((4, 6)) < 0.5).astype(np.uint8)
    count = int(mask.sum())
    indices, lut = DRAW.integers(0, 4, count).astype(np.uint8), DRAW.standard_normal((1, 1, 4, 2)).astype(np.float16)
    arguments = {"indices_mask": constant(mask, "uint1"), "indices_nonzero_data": constant(indices, "uint2"), "lut": constant(lut, "float16")}
    wide, values = compression.constexpr_lut_to_sparse.decompress(mask, indices, lut, np.int32(1))
    both = decode(
        operation("lut_to_sparse", [("uint1", wide.shape), ("float16", values.shape)], arguments | {"vector_axis": constant(1, "int32")}), {}
    )
    np.testing.assert_array_equal(both["out0"], wide)
    np.testing.assert_array_equal(both["out1"], values)
    dense = decoded(operation("sparse_to_dense", [("float16", wide.shape)], {"mask": "m", "nonzero_data": "v"}), m=both["out0"], v=both["out1"])
    np.testing.assert_array_equal(dense, compression.constexpr_sparse_to_dense.decompress(values, wide))

    data, scale, offset = integers("int4", (count,)), DRAW.random((4, 1)).astype(np.float16), integers("int4", (4, 1))
    arguments = {"data_mask": constant(mask, "uint1"), "nonzero_data": constant(data, "int4"), "scale": constant(scale, "float16")}
    op = operation("sparse_blockwise_shift_scale", [("uint1", (4, 6)), ("float16", (count,))], arguments | {"offset": constant(offset, "int4")})
    _, expected = compression.constexpr_sparse_blockwise_shift_scale.decompress(mask, data, scale, offset)
    np.testing.assert_array_equal(decoded(op), expected)


def test_cast() -> None:
    value = DRAW.standard_normal(5).astype(np.float16)
    arguments = {"source_val": constant(value, "float16"), "output_dtype": constant("fp32", "str")}
    np.testing.assert_array_equal(decoded(operation("cast", [("float32", (5,))], arguments, True)), value.astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "output", "arguments", "message"),
    [
        ("blockwise_shift", (2, 4), {}, "'w' is of type 'constexpr_blockwise_shift', a compressed form that is not known"),
        ("blockwise_shift_scale", (2, 4), {"data": ("int8", (2, 4)), "scale": ("float16", (2, 3))}, "'w'.*do not divide into"),
        ("blockwise_shift_scale", (2, 5), {"data": ("int8", (2, 4)), "scale": ("float16", (2, 2))}, r"'w'.*expected float16 \(2, 5\)"),
        ("blockwise_shift_scale", (2, 4), {"data": ("int8", (2, 4))}, "'w'.*scale"),
        ("blockwise_shift_scale", (2, 4), {"data": ("int8", (2, 4)), "scale": ("float16", (2, 2)), "axis": ("int32", ())}, "'w'.*axis"),
        ("lut_to_dense", (2, 4), {"indices": ("uint8", (2, 4)), "lut": ("float16", (1, 1, 2, 1))}, "'w'"),
        ("lut_to_dense", (2, 8), {"indices": ("uint1", (2, 4)), "lut": ("float16", (1, 1, 2, 2))}, "'w'.*vector_axis"),
        ("sparse_to_dense", (2, 4), {"nonzero_data": ("float16", (9,)), "mask": ("uint1", (2, 4))}, "'w'"),
        ("cast", (2,), {"source_val": ("float16", (2,)), "output_dtype": ("str", ())}, "'w'.*cast"),
    ],
)
def test_names_what_it_cannot_decode(kind: str, output: tuple[int, ...], arguments: dict[str, Any], message: str) -> None:
    held = {
        key: constant(np.full(shape, "int32") if dtype == "str" else np.full(shape, 3 if dtype == "uint8" else 1), dtype)
        for key, (dtype, shape) in arguments.items()
    }
    with pytest.raises(EngineError, match=message):
        decode(operation(kind, [("float16", output)], held), {})


@functools.cache
def model(target: str) -> Any:
    """An embedding and two products, as coremltools holds them."""
    ct = import_coremltools()
    from coremltools.converters.mil.mil import Builder as mb

    table, first, second = (np.random.default_rng(size).standard_normal(shape).astype(np.float16) for size, shape in enumerate(SHAPES.values()))

    @mb.program(  # type: ignore[untyped-decorator]
        input_specs=[mb.TensorSpec((1, 8), dtype=ct.converters.mil.mil.types.int32)], opset_version=getattr(ct.target, target)
    )
    def program(ids: Any) -> Any:
        x = mb.gather(x=mb.const(val=table, name="table"), indices=ids, axis=0)
        x = mb.linear(x=x, weight=mb.const(val=first, name="first"), bias=np.zeros(64, np.float16))
        return mb.linear(x=x, weight=mb.const(val=second, name="second"), bias=np.zeros(32, np.float16))

    with quiet():
        return ct.convert(program, convert_to="mlprogram", minimum_deployment_target=getattr(ct.target, target), skip_model_load=True)


SHAPES = {"table": (48, 16), "first": (64, 16), "second": (32, 64)}
EVERYWHERE: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "int8": ("int8", lambda o, m: quantize(o, m, mode="linear_symmetric", dtype="int8")),
    "uint8 with zero points": ("uint8", lambda o, m: quantize(o, m, mode="linear", dtype="uint8")),
    "4-bit palette": ("palette4", lambda o, m: palettize(o, m, mode="kmeans", nbits=4)),
    "6-bit palette": ("palette6", lambda o, m: palettize(o, m, mode="uniform", nbits=6)),
    "1-bit palette": ("palette1", lambda o, m: palettize(o, m, mode="uniform", nbits=1)),
    "sparse": ("sparse", lambda o, m: prune(o, m)),
}
IOS18: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "int4 by blocks": ("int4", lambda o, m: quantize(o, m, mode="linear", dtype="int4", granularity="per_block", block_size=8)),
    "uint4 by blocks": ("uint4", lambda o, m: quantize(o, m, mode="linear", dtype="uint4", granularity="per_block", block_size=4)),
    "3-bit palettes": ("palette3", lambda o, m: palettize(o, m, mode="uniform", nbits=3, granularity="per_grouped_channel", group_size=8)),
    "palette of pairs": ("palette4", lambda o, m: palettize(o, m, mode="kmeans", nbits=4, cluster_dim=2)),
    "sparse palette": ("sparse+palette4", lambda o, m: palettize(o, prune(o, m), joint=True, mode="uniform", nbits=4)),
    "sparse int8": ("sparse+int8", lambda o, m: quantize(o, prune(o, m), joint=True, mode="linear_symmetric", dtype="int8")),
}


def quantize(optimize: Any, model: Any, joint: bool = False, **options: Any) -> Any:
    config = optimize.OptimizationConfig(global_config=optimize.OpLinearQuantizerConfig(weight_threshold=512, **options))
    return optimize.linear_quantize_weights(model, config, joint_compression=joint)


def palettize(optimize: Any, model: Any, joint: bool = False, **options: Any) -> Any:
    config = optimize.OptimizationConfig(global_config=optimize.OpPalettizerConfig(weight_threshold=512, **options))
    return optimize.palettize_weights(model, config, joint_compression=joint)


def prune(optimize: Any, model: Any) -> Any:
    config = optimize.OptimizationConfig(global_config=optimize.OpMagnitudePrunerConfig(target_sparsity=0.6, weight_threshold=512))
    return optimize.prune_weights(model, config)


@pytest.mark.parametrize(("target", "form"), [*(("iOS16", form) for form in EVERYWHERE), *(("iOS18", form) for form in EVERYWHERE | IOS18)])
def test_decodes_what_coremltools_compresses(target: str, form: str, tmp_path: Path) -> None:
    import coremltools.optimize.coreml as optimize

    scheme, compress = (EVERYWHERE | IOS18)[form]
    with quiet():
        compressed = compress(optimize, model(target))
        compressed.save(str(tmp_path / "compressed.mlpackage"))
        optimize.decompress_weights(compressed).save(str(tmp_path / "reference.mlpackage"))
    found, reference = (weights(open_program(tmp_path / f"{name}.mlpackage"), least=512) for name in ("compressed", "reference"))
    assert set(found) == set(reference)
    for name, info in found.items():
        assert (info.scheme, info.dtype, info.users, info.shape) == (scheme, "float16", reference[name].users, reference[name].shape)
        assert 0 < info.stored_bytes < reference[name].stored_bytes == 2 * np.prod(info.shape)
        assert reference[name].scheme == "fp16"
        np.testing.assert_array_equal(info.value(), reference[name].value())
        np.testing.assert_array_equal(constant_values(open_program(tmp_path / "compressed.mlpackage"))[name], reference[name].value())
    assert sorted(info.shape for info in found.values()) == sorted(SHAPES.values())

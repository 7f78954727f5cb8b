"""Compressed constants in a saved program, beside those that coremltools writes for the same program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_export.compression import constexpr
from mobile_export.compression.quantisation import Form, quantise
from mobile_export.formats.coreml import lay_out
from mobile_export.interpreter.blobs import unpack
from mobile_export.interpreter.decoding import weights
from mobile_export.interpreter.mlprogram import Constant, Operation, Program, open_program
from mobile_export.tools import import_coremltools, quiet
from tests.mobile_export.bundles import bundle_of, package_of

THRESHOLD = 2048


def original(target: str) -> Path:
    return package_of(bundle_of("distilbert", "--target", target, "--length", "64"))


def by_us(target: str, scheme: str, out: Path) -> Program:
    def choose(name: str, values: np.ndarray) -> Form | None:
        return quantise(values, scheme) if values.ndim > 1 and values.size > THRESHOLD else None

    constexpr.rewrite(original(target), out / "raw", choose)
    lay_out(out / "raw", out / "ours.mlpackage", lambda specification: None)
    return open_program(out / "ours.mlpackage")


def by_coremltools(target: str, scheme: str, out: Path) -> Program:
    ct = import_coremltools()
    with quiet():
        import coremltools.optimize.coreml as optimize

        common = {"weight_threshold": THRESHOLD}
        linear: dict[str, Any] = {"mode": "linear_symmetric", **common}
        passes: dict[str, tuple[Callable[..., Any], Any]] = {
            "int8": (optimize.linear_quantize_weights, lambda: optimize.OpLinearQuantizerConfig(dtype="int8", **linear)),
            "int4": (
                optimize.linear_quantize_weights,
                lambda: optimize.OpLinearQuantizerConfig(dtype="int4", granularity="per_block", block_size=32, **linear),
            ),
            "palette4": (optimize.palettize_weights, lambda: optimize.OpPalettizerConfig(mode="kmeans", nbits=4, **common)),
            "palette6": (optimize.palettize_weights, lambda: optimize.OpPalettizerConfig(mode="kmeans", nbits=6, **common)),
            "sparse": (optimize.prune_weights, lambda: optimize.OpMagnitudePrunerConfig(target_sparsity=0.5, **common)),
        }
        compress, config = passes[scheme]
        model = ct.models.MLModel(str(original(target)), skip_model_load=True)
        compress(model, optimize.OptimizationConfig(global_config=config())).save(str(out / "theirs.mlpackage"))
    return open_program(out / "theirs.mlpackage")


def form_of(operation: Operation) -> Any:
    """Type and, of each argument, where it stands, its type and shape."""

    def described(key: str, value: str | Constant) -> Any:
        assert isinstance(value, Constant)
        # of values of equal magnitude coremltools leaves out all, we no more than asked: the number of those kept may differ by some
        return value.dtype, value.value.shape if key != "nonzero_data" else value.value.ndim

    attributes = {key: described(key, value) for key, value in operation.attributes.items() if key != "name"}
    inputs = {key: [described(key, value) for value in bound] for key, bound in operation.inputs.items()}
    return operation.type, attributes, inputs, [(output.dtype, output.shape) for output in operation.outputs]


def compressed(program: Program) -> list[Operation]:
    return [operation for operation in program.operations if operation.type.startswith("constexpr_")]


@pytest.mark.parametrize(
    ("target", "scheme", "apart"),  # apart: how far decoded values may be from theirs; palettes are found by other means, sparse keeps what it keeps
    [
        ("ios16", "int8", 0.02), ("ios16", "palette6", 0.2), ("ios16", "sparse", 0.0),
        ("ios18", "int4", 0.2), ("ios18", "palette4", 0.5), ("ios18", "sparse", 0.0),
    ],
)  # fmt: skip
def test_the_operations_are_those_that_coremltools_writes(target: str, scheme: str, apart: float, tmp_path: Path) -> None:
    ours, theirs = by_us(target, scheme, tmp_path), by_coremltools(target, scheme, tmp_path)
    assert len(compressed(ours)) == 5  # words, and two feed-forward matrices in each of two layers
    assert [form_of(operation) for operation in compressed(ours)] == [form_of(operation) for operation in compressed(theirs)]
    if target == "ios18":  # why coremltools does not write them: it wraps the gather a second time
        assert theirs.operation_types()["select"] > ours.operation_types()["select"]
    values, expected = weights(ours), weights(theirs)
    for mine, other in zip(compressed(ours), compressed(theirs), strict=True):
        differences = np.abs(values[mine.name].value() - expected[other.name].value())
        assert np.count_nonzero(differences > apart) <= (4 if scheme == "sparse" else 0)  # equal magnitudes, see above


@pytest.mark.parametrize("target", ["ios16", "ios18"])
def test_nothing_else_of_the_program_changes(target: str, tmp_path: Path) -> None:
    before, after = open_program(original(target)), by_us(target, "int8", tmp_path)
    assert [operation.name for operation in after.operations] == [operation.name for operation in before.operations]
    kept = [operation for operation in after.operations if not operation.type.startswith("constexpr_")]
    same = {operation.name: operation for operation in before.operations}
    assert all(operation.type == same[operation.name].type and operation.outputs == same[operation.name].outputs for operation in kept)
    assert after.specification == before.specification
    assert after.metadata == before.metadata


@pytest.mark.parametrize("bits", [1, 4, 6])
def test_packing_is_what_unpacking_expects(bits: int) -> None:
    values = np.random.default_rng(bits).integers(0, 2**bits, 103).astype(np.uint8)
    packed = constexpr.pack(values, bits)
    assert len(packed) == -(-103 * bits // 8)
    assert np.array_equal(unpack(packed, f"uint{bits}", 103), values)


def test_packing_by_hand() -> None:
    # 6 bits each: 000001 000010 000011 111111 -> from the least significant bit up 01, then 2 << 6, ...
    assert constexpr.pack(np.array([1, 2, 3, 63], np.uint8), 6).tolist() == [0b10_000001, 0b0011_0000, 0b111111_00]

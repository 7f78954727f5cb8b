"""Every operation that the interpreter knows, against PyTorch in float64 on random shapes; and the operations of our exports among them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mobile_export.interpreter import products
from mobile_export.interpreter.mlprogram import Constant, Feature, Operation, Program, Value, open_program
from mobile_export.interpreter.operations import KERNELS
from mobile_export.interpreter.planning import plan, rounded, run
from pocketqa.errors import EngineError
from tests.mobile_export.bundles import bundle_of, package_of
from tests.mobile_export.operation_cases import CASES, Arguments, Draw, Expected, Stored

DTYPES = {torch.float64: "float16", torch.int64: "int32", torch.int32: "int32", torch.bool: "bool"}
CASTS = ("int16", "uint16", "int8", "uint8")


def compute(kind: str, arguments: Arguments, expected: Expected, opset: int = 6, widen: bool = True) -> list[Tensor]:
    """What the interpreter makes of one operation with these arguments, declared to leave what is expected."""
    values: dict[str, Tensor] = {}
    inputs: dict[str, tuple[str | Constant, ...]] = {}
    for key, argument in arguments.items():
        names: list[str | Constant] = []
        for place, item in enumerate(argument if key == "values" else [argument]):
            if isinstance(item, Tensor):
                values[f"{key}{place}"] = item
                names.append(f"{key}{place}")
            else:
                plain = item.values.numpy() if isinstance(item, Stored) else np.array(item)
                dtype = {"f": "float16", "i": "int32", "b": "bool", "U": "str"}[plain.dtype.kind]
                names.append(Constant(f"{key}{place}", dtype, plain if dtype == "str" else plain.astype(dtype)))
        inputs[key] = tuple(names)
    results = expected if isinstance(expected, tuple) else (expected,)
    dtypes = [arguments["dtype"] if arguments.get("dtype") in CASTS else DTYPES[result.dtype] for result in results]
    outputs = tuple(Value(f"out{place}", dtypes[place], tuple(result.shape)) for place, result in enumerate(results))
    (step,) = plan(program_of(Operation(kind, "it", inputs, {}, outputs), opset), {})
    return [rounded(step.operation, *pair) for pair in zip(outputs, run(step, values, widen or not step.kernel.exact), strict=True)]


def program_of(operation: Operation, opset: int = 6) -> Program:
    ids, logits = Feature("input_ids", "int32", ((1, 8),), ""), Feature("start_logits", "float32", ((1, 8),), "")
    return Program(Path("x.mlpackage"), opset, f"CoreML{opset}", (ids,), (logits,), (operation,), {})


@pytest.mark.parametrize("kind", sorted(CASES))
def test_computes_what_pytorch_does(kind: str) -> None:
    for seed in range(12):
        for place, make in enumerate(CASES[kind]):
            arguments, expected = make(Draw(100 * seed + place))
            found = compute(kind, arguments, expected)
            for result, reference in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
                if reference.dtype == torch.float64:
                    assert result.dtype == torch.float16
                    torch.testing.assert_close(result, reference.half(), rtol=2**-10, atol=2**-14)  # the last bit of float16
                    assert float((result == reference.half()).double().mean()) > 0.8 or result.numel() < 20
                else:
                    assert torch.equal(result, reference.to(result.dtype))
            if KERNELS[kind].exact:
                narrow = compute(kind, arguments, expected, widen=False)
                assert all(torch.equal(left, right) for left, right in zip(found, narrow, strict=True))


def test_no_operation_is_untested() -> None:
    assert set(CASES) == set(KERNELS)


EXPORTS = {
    "bert": ("bert",),
    "bert, several lengths": ("bert", "--target", "ios17", "--lengths", "32,64"),
    "distilbert": ("distilbert", "--target", "ios18", "--length", "32"),
    "bert for the Neural Engine": ("bert", "--target", "ios16", "--length", "32", "--layout", "ane"),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_operations_of_our_exports_are_tested(name: str) -> None:
    types = open_program(package_of(bundle_of(*EXPORTS[name]))).operation_types()
    assert sorted(set(types) - set(CASES)) == []


@pytest.mark.parametrize("onednn", [True, False])
def test_large_products(monkeypatch: pytest.MonkeyPatch, onednn: bool) -> None:
    """As large as those of real models, where another library computes them; values in other orders than that of their shape."""
    monkeypatch.setattr(products, "ONEDNN", onednn and products.ONEDNN)
    draw = Draw(0)
    x, weight, bias = draw.normal(3, 96, 64), draw.normal(128, 64), draw.normal(128)
    exact = functional.linear(x.double(), weight.double(), bias.double())
    y = draw.normal(64, 3, 96).permute(1, 0, 2)  # (3, 64, 96), of other strides
    pairs = [
        (products.product(x.float(), weight.float(), bias.float()), exact),
        (products.product(x.float().mT, y.float()[:1]), x.double().mT @ y.double()[:1].mT),
        (products.product(x.float(), x.float()[None]), (x.double() @ x.double().mT)[None]),
    ]
    for found, reference in pairs:
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), reference, rtol=1e-5, atol=1e-4)


def test_shapes_with_zeros_follow_the_opset() -> None:
    x = Draw(0).normal(2, 50)
    (found,) = compute("reshape", {"x": x, "shape": [1, 0, -1, 0]}, x.double().reshape(1, 1, 2, 50), opset=7)
    assert torch.equal(found, x.reshape(1, 1, 2, 50))
    with pytest.raises(EngineError, match="a size of 0 needs 4 axes, found 2"):
        compute("reshape", {"x": x, "shape": [1, 0, -1, 0]}, x.double().reshape(1, 1, 2, 50), opset=6)


@pytest.mark.parametrize("kind", ["gather", "gather_along_axis"])
def test_negative_indices_follow_the_opset(kind: str) -> None:
    x, indices = Draw(0).normal(5), torch.tensor([-1, 1], dtype=torch.int32)
    expected = x.double()[[-1, 1]]
    assert torch.equal(compute(kind, {"x": x, "indices": indices}, expected, opset=6)[0], expected.half())
    with pytest.raises(EngineError, match=f"'it' of type '{kind}' cannot be computed"):
        compute(kind, {"x": x, "indices": indices}, expected, opset=7)
    with pytest.raises(EngineError, match=f"'it' of type '{kind}' cannot be computed"):
        compute(kind, {"x": x, "indices": torch.tensor([5, 0], dtype=torch.int32)}, expected, opset=6)


X = torch.ones(2, 3, dtype=torch.float16)


@pytest.mark.parametrize(
    ("kind", "arguments", "expected", "message"),
    [
        ("lstm", {"x": X}, X.double(), "'it' is of type 'lstm', which is not known here"),
        ("relu", {"x": X, "alpha": 1.0}, X.double(), "'it' of type 'relu' has arguments that are not known here: alpha"),
        ("mul", {"x": X}, X.double(), "'it' of type 'mul' lacks: y"),
        ("relu", {"x": X}, X.double().mT, r"'it' of type 'relu': expected float16 \(3, 2\) as declared, found float32 \(2, 3\)"),
        ("relu", {"x": X}, X.bool(), "'it' of type 'relu': expected bool"),
        ("real_div", {"x": X.int(), "y": X.int()}, X.int(), "'it' of type 'real_div' cannot be computed: a quotient of integers"),
        ("gelu", {"x": X, "mode": "SWISH"}, X.double(), "'it' of type 'gelu' cannot be computed: 'SWISH'"),
        ("cast", {"x": X, "dtype": "int32"}, X.double(), "'it' of type 'cast': int32 does not give float16 as declared"),
        ("conv", {"x": X[None], "weight": torch.ones(2, 2, 2).half(), "pad_type": "same"}, X.double(), "'it' of type 'conv'.*padding"),
        ("pad", {"x": X, "pad": [3, 0], "mode": "reflect"}, X.double(), "'it' of type 'pad'.*reflect"),
        ("split", {"x": X, "axis": 1, "num_splits": 2}, (X.double(),), "'it' of type 'split'.*3 values do not divide into 2"),
        ("matmul", {"x": X, "y": X}, X.double(), "'it' of type 'matmul' cannot be computed"),
    ],
)
def test_names_the_operation_that_it_cannot_compute(kind: str, arguments: Arguments, expected: Expected, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        compute(kind, arguments, expected)


def test_names_types_and_constants_that_are_not_known() -> None:
    strange = Operation("relu", "it", {"x": ("x0",)}, {}, (Value("out", "float64", (2, 3)),))
    with pytest.raises(EngineError, match="'it' of type 'relu' leaves types that are not known here: float64"):
        plan(program_of(strange), {})
    attribute = Operation("relu", "it", {"x": ("x0",)}, {"fused": Constant("it.fused", "bool", np.array(True))}, (Value("out", "float16", (2, 3)),))
    with pytest.raises(EngineError, match="arguments that are not known here: fused"):
        plan(program_of(attribute), {})
    double = Operation("relu", "it", {"x": (Constant("it.x", "float64", np.ones(2)),)}, {}, (Value("out", "float16", (2,)),))
    with pytest.raises(EngineError, match=r"constant 'it\.x' is of type float64"):
        plan(program_of(double), {})


def test_a_default_is_of_the_operations_own_type() -> None:
    """log adds 1e-45 where nothing is said: something in float32, nothing in float16."""
    assert float(compute("log", {"x": torch.zeros(1).half()}, torch.zeros(1).double())[0]) == -math.inf

"""What is found in a program that a phone would not compute, or not where it should."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mobile_export.checkpoint.checkpoints import open_checkpoint
from mobile_export.export import main
from mobile_export.formats import coreml
from mobile_export.interpreter.mlprogram import Constant, Feature, Operation, Program, Value, open_program
from mobile_export.networks import checks, windows
from mobile_export.targets import find_target
from mobile_export.verification.hazards import find_hazards, find_warnings
from pocketqa.errors import EngineError
from tests.mobile_export.bundles import bundle_of, package_of
from tests.packaged import checkpoint


def program_of(*operations: Operation) -> Program:
    ids, logits = Feature("input_ids", "int32", ((1, 8),), ""), Feature("start_logits", "float32", ((1, 8),), "")
    return Program(Path("x.mlpackage"), 6, "CoreML5", (ids,), (logits,), operations, {})


def layer_norm(epsilon: Constant | str) -> Operation:
    return Operation("layer_norm", "norm_1", {"epsilon": (epsilon,)}, {}, (Value("norm_1", "float16", (1, 8)),))


def const(name: str, value: object, dtype: str) -> Operation:
    array = np.array(value, dtype)
    return Operation("const", name, {}, {"val": Constant(name, dtype, array)}, (Value(name, dtype, array.shape),))


def operation(kind: str, dtype: str) -> Operation:
    return Operation(kind, f"{kind}_1", {}, {}, (Value(f"{kind}_1", dtype, (1, 8)),))


SOUND = program_of(const("eps", 2.0**-23, "float16"), layer_norm("eps"), const("mask", [-1e4, 65504], "float16"), const("one", -1e4, "float32"))


def test_a_sound_program_has_none() -> None:
    assert find_hazards(SOUND, 6) == []


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 65536.0, np.finfo(np.float32).min])
def test_values_that_float16_does_not_hold(value: float) -> None:
    assert "constant 'mask' holds 1 value(s)" in find_hazards(program_of(const("mask", [0.0, value], "float32")), 6)[0]


def test_a_mask_at_the_very_end_of_float16() -> None:
    assert "constant 'mask' is -65504" in find_hazards(program_of(const("mask", -65504.0, "float16")), 6)[0]


@pytest.mark.parametrize(
    "program",
    [program_of(layer_norm(Constant("e", "float32", np.array(1e-12, np.float32)))), program_of(const("e", 1e-12, "float16"), layer_norm("e"))],
)
def test_epsilons_that_float16_does_not_hold(program: Program) -> None:
    assert "epsilon of layer_norm 'norm_1' is zero" in find_hazards(program, 6)[0]


def test_another_version_and_other_types_of_inputs_and_outputs() -> None:
    assert find_hazards(SOUND, 7) == ["the specification version must be 7 for the target, found 6"]
    floats = replace(SOUND, inputs=(Feature("input_ids", "float32", ((1, 8),), ""),), outputs=(Feature("start_logits", "float16", ((1, 8),), ""),))
    assert [hazard.split(" must")[0] for hazard in find_hazards(floats, 6)] == ["input 'input_ids'", "output 'start_logits'"]


STOCK_MASK = torch.finfo(torch.float32).min  # what transformers adds to the scores of padding


def test_an_export_with_the_stock_mask_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "MASKED", STOCK_MASK)
    with pytest.raises(EngineError, match="float16"):
        main([str(checkpoint("bert")), "--target", "ios16", "--out", str(tmp_path / "bundle"), "--length", "32"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("layout", ["standard", "ane"])
def test_the_stock_mask_is_found_in_the_saved_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    opened = open_checkpoint(str(checkpoint("bert")))
    agreement = checks.check_agreement(opened.model, opened.vocabulary.markers, (32,))
    monkeypatch.setattr(coreml, "check_agreement", lambda *_, **__: agreement)  # float32 would refuse it first
    monkeypatch.setattr(windows, "MASKED", STOCK_MASK)
    with pytest.raises(EngineError, match=r"not safe on a phone.*1 value\(s\) that are not finite in float16"):
        coreml.export_package(opened, tmp_path / "Bert.mlpackage", find_target("ios16"), (32,), layout)


def test_warnings_count_what_leaves_the_neural_engine() -> None:
    program = program_of(
        *SOUND.operations, operation("gather", "float16"), operation("gather", "float16"), operation("equal", "bool"), operation("cast", "float32")
    )
    assert find_warnings(program, find_target("ios16")) == [
        "gather (2) looks rows up, which the Neural Engine does not do",
        "bool results (1): the Neural Engine computes in float16, so they leave it",
    ]
    assert find_warnings(program, find_target("iphone7plus")) == []  # it has no Neural Engine to leave


def test_the_word_embeddings_leave_the_neural_engine() -> None:
    warnings = find_warnings(open_program(package_of(bundle_of("distilbert"))), find_target("ios16"))
    assert "gather (1) looks rows up, which the Neural Engine does not do" in warnings

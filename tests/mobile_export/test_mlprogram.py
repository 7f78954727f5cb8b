"""Reading packages, and the hazards found in them."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mobile_export.export import main
from mobile_export.hazards import find_hazards
from mobile_export.mlprogram import Constant, Feature, Operation, Program, Value, open_program
from pocketqa.errors import CorruptFolder, IncompleteFolder
from tests.tiny import tiny_distilbert

SPECIFICATION = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packages")
    main([str(tiny_distilbert(root / "model")), "--target", "ios16", "--out", str(root / "Tiny.mlpackage"), "--length", "32"])
    return root / "Tiny.mlpackage"


@pytest.fixture
def copy(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy.mlpackage"))


def test_reads_operations_types_and_constants(package: Path) -> None:
    program = open_program(package)
    types = program.operation_types()
    assert (types["layer_norm"], types["softmax"], types["linear"]) == (5, 2, 13)  # two layers of six products, and the head
    assert "const" not in types
    names = {value.name for operation in program.operations for value in operation.outputs} | {"input_ids"}
    used = {b for operation in program.operations for bound in operation.inputs.values() for b in bound if isinstance(b, str)}
    assert used <= names
    in_file = {c.blob: c.value for c in program.constants() if c.blob is not None}
    assert (1, 32, 32) in {value.shape for value in in_file.values()}  # the position table, cut to 32 of 512 rows
    records = 64 * (1 + len(in_file))
    assert sum(value.nbytes for value in in_file.values()) + records == pytest.approx((package / WEIGHTS).stat().st_size, rel=0.05)
    assert next(value for name, value in program.named_constants().items() if name in used).value.size > 0


def test_says_what_is_missing(copy: Path, tmp_path: Path) -> None:
    (copy / WEIGHTS).unlink()
    with pytest.raises(IncompleteFolder, match=r"weight\.bin"):
        open_program(copy)
    with pytest.raises(IncompleteFolder, match="pocketqa export MODEL"):
        open_program(tmp_path)


def test_says_what_is_damaged(copy: Path) -> None:
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFolder, match="weight file"):
        open_program(copy)
    (copy / WEIGHTS).write_bytes(whole[:4] + b"\x07" + whole[5:])
    with pytest.raises(CorruptFolder, match="version 2, found 7"):
        open_program(copy)
    (copy / WEIGHTS).write_bytes(whole)
    specification = (copy / SPECIFICATION).read_bytes()
    (copy / SPECIFICATION).write_bytes(specification[: len(specification) // 2])
    with pytest.raises(CorruptFolder, match="not a Core ML specification"):
        open_program(copy)
    (copy / "Manifest.json").write_text(json.dumps({"itemInfoEntries": {}}), encoding="utf-8")
    with pytest.raises(CorruptFolder, match=r"Manifest\.json"):
        open_program(copy)


def program_of(*operations: Operation) -> Program:
    ids, logits = Feature("input_ids", "int32", ((1, 8),), ""), Feature("start_logits", "float32", ((1, 8),), "")
    return Program(Path("x.mlpackage"), 6, "CoreML5", (ids,), (logits,), operations, {})


def layer_norm(epsilon: Constant | str) -> Operation:
    return Operation("layer_norm", "norm_1", {"epsilon": (epsilon,)}, {}, (Value("norm_1", "float16", (1, 8)),))


def const(name: str, value: object, dtype: str) -> Operation:
    array = np.array(value, dtype)
    return Operation("const", name, {}, {"val": Constant(name, dtype, array)}, (Value(name, dtype, array.shape),))


def test_hazards_name_the_place() -> None:
    sound = program_of(const("eps", 2.0**-23, "float16"), layer_norm("eps"), const("mask", [-1e4, 65504], "float16"))
    assert find_hazards(sound, 6) == []
    assert find_hazards(sound, 7) == ["the specification version must be 7 for the target, found 6"]
    assert (
        "epsilon of layer_norm 'norm_1' is zero" in find_hazards(program_of(layer_norm(Constant("e", "float32", np.array(1e-12, np.float32)))), 6)[0]
    )
    assert "epsilon of layer_norm 'norm_1' is zero" in find_hazards(program_of(const("eps", 1e-12, "float16"), layer_norm("eps")), 6)[0]
    for value in (np.inf, -np.inf, np.nan, 65536.0, np.finfo(np.float32).min):
        assert "constant 'mask' holds 1 value(s)" in find_hazards(program_of(const("mask", [0.0, value], "float32")), 6)[0]
    floats = replace(sound, inputs=(Feature("input_ids", "float32", ((1, 8),), ""),), outputs=(Feature("start_logits", "float16", ((1, 8),), ""),))
    assert [hazard.split(" must")[0] for hazard in find_hazards(floats, 6)] == ["input 'input_ids'", "output 'start_logits'"]

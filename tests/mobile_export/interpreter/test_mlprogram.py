"""Reading packages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mobile_export.export import main
from mobile_export.interpreter.mlprogram import open_program
from pocketqa.errors import CorruptFolder, IncompleteFolder
from tests.tiny import tiny_distilbert

SPECIFICATION = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packages")
    main([str(tiny_distilbert(root / "model")), "--target", "ios16", "--out", str(root / "bundle"), "--length", "32"])
    return root / "bundle" / "Model.mlpackage"


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

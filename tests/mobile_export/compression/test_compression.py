"""Plans, written packages and the check on them, on tiny bundles."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_export.bundle import Bundle, open_bundle, sizes
from mobile_export.compression.compression import _difference, check_package, compress_bundle, compressible, group_of, plan, table
from mobile_export.compression.quantisation import quantise
from mobile_export.interpreter.decoding import weights
from mobile_export.interpreter.interpreter import Interpreter
from mobile_export.interpreter.mlprogram import open_program
from pocketqa.errors import EngineError, OptionsError
from tests.mobile_export.bundles import bundle_of, edit_program, package_of
from tests.packaged import random_batch, workspace

ROOT = Path(__file__).parents[3]
LENGTH = 96
LARGE = {  # of the tiny DistilBERT: name -> (rows, columns); its attention matrices (32, 32) and its head (2, 32) are below the threshold
    "position_table_to_fp16": (96, 32),
    "layers_0_feed_in_weight_to_fp16": (128, 32),
    "layers_0_feed_out_weight_to_fp16": (32, 128),
    "layers_1_feed_in_weight_to_fp16": (128, 32),
    "layers_1_feed_out_weight_to_fp16": (32, 128),
}
VERSIONS = {"ios16": 7, "ios18": 9}


def fp16(target: str) -> Bundle:
    return open_bundle(bundle_of("distilbert", "--target", target, "--length", str(LENGTH)))


def compress(target: str, scheme: str, out: Path) -> Bundle:
    """All large weights in one scheme."""
    parent = fp16(target)
    return compress_bundle(parent, out, scheme, {part.name: part.scheme for part in plan(open_program(parent.package), scheme, scheme)})


@functools.cache
def compressed(target: str, scheme: str) -> Bundle:
    """The same, made once; to be copied before it is changed."""
    return compress(target, scheme, Path(workspace().name) / f"compressed-{target}-{scheme}")


def vocabulary() -> int:
    return len(fp16("ios16").vocabulary.read_text(encoding="utf-8").splitlines())


def on_disk(*blobs: int) -> int:
    """Bytes in the weight file: a record of 64 and the data, to a multiple of 64."""
    return sum(64 + -(-size // 64) * 64 for size in blobs)


FORMS: dict[tuple[str, str], Callable[[int, int], tuple[int, ...]]] = {  # bytes of the parts of a weight of rows x columns
    ("ios16", "int8"): lambda r, c: (r * c, r, 2 * r),  # data, zero points, scales
    ("ios16", "palette6"): lambda r, c: (r * c * 6 // 8, 128),
    ("ios16", "palette4"): lambda r, c: (r * c // 2, 32),
    ("ios16", "sparse"): lambda r, c: (r * c, r * c // 8),  # half of the float16 values, and the mask
    ("ios18", "int8"): lambda r, c: (r * c, 2 * r),
    ("ios18", "int4"): lambda r, c: (r * c // 2, 2 * r * (c // 32)),
    ("ios18", "palette4"): lambda r, c: (r * c // 2, 32),
}


@pytest.mark.parametrize(("target", "scheme"), FORMS)
def test_sizes_versions_and_logits_of_every_scheme(target: str, scheme: str) -> None:
    parent, made = fp16(target), compressed(target, scheme)
    parts = FORMS[target, scheme]
    shapes = [(vocabulary(), 32), *LARGE.values()]
    saved = sum(on_disk(2 * rows * columns) - on_disk(*parts(rows, columns)) for rows, columns in shapes)
    assert sizes(parent)["weights"] - sizes(made)["weights"] == saved
    assert made.scheme == scheme and made.manifest.config["specification"] == VERSIONS[target]
    assert set(made.manifest.config["compression"]["weights"].values()) == {scheme}
    before, after = (open_program(bundle.package) for bundle in (parent, made))
    assert after.metadata["pocketqa.scheme"] == scheme
    ids = random_batch(3, LENGTH).ids
    start, end = (np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(Interpreter(before).run(ids), Interpreter(after).run(ids), strict=True))
    assert min(start, end) > {"int8": 0.999, "palette6": 0.98, "palette4": 0.8, "int4": 0.8, "sparse": 0.2}[scheme]
    open_bundle(made.path)  # every file has its sha256


def test_the_plan_says_what_becomes_of_every_group() -> None:
    program = open_program(fp16("ios18").package)
    parts = plan(program, "int4")
    assert {part.group: part.scheme for part in parts} == {
        "word embeddings": "int8",
        "positions": "int8",
        "layer 0 feed-forward": "int4",
        "layer 1 feed-forward": "int4",
        "biases, norms, small": "fp16",
    }
    assert {part.name for part in parts if part.scheme != "fp16"} == {"words_to_fp16", *LARGE}
    assert next(part for part in parts if part.name == "layers_1_feed_in_weight_to_fp16").after == 128 * 32 // 2 + 128 * 2
    assert {part.group: part.scheme for part in plan(program, "int8", embeddings="fp16")}["word embeddings"] == "fp16"
    rows = table(parts).splitlines()
    assert rows[1].split() == ["word", "embeddings", "1", f"{2 * 32 * vocabulary():,}", f"{34 * vocabulary():,}", "int8"]
    assert rows[-2].split()[:3] == ["biases,", "norms,", "small"] and rows[-2].endswith("fp16")
    assert rows[-1].split()[1] == str(len(parts))


def test_groups_come_from_the_names_of_the_export() -> None:
    names = ("layers_3_attention_out_weight_to_fp16", "layers_11_feed_in_weight", "span_head_weight", "transform_weight")
    assert [group_of(name) for name in names] == ["layer 3 attention", "layer 11 feed-forward", "head", "other"]


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
def test_a_sparsity_outside_0_to_1_is_refused(sparsity: float) -> None:
    with pytest.raises(OptionsError, match="between 0 and 1"):
        plan(open_program(fp16("ios16").package), "sparse", sparsity=sparsity)


def test_what_is_compressed_is_not_compressed_again() -> None:
    with pytest.raises(OptionsError, match="scheme fp16, found int8 in words_to_fp16"):
        compressible(open_program(compressed("ios16", "int8").package))


def test_the_same_bytes_whatever_the_hash_seed(tmp_path: Path) -> None:
    other = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    code = (
        "import sys; from pathlib import Path\n"
        "from mobile_export.bundle import open_bundle; from mobile_export.interpreter.mlprogram import open_program\n"
        "from mobile_export.compression.compression import compress_bundle, plan\n"
        "parent = open_bundle(sys.argv[1]); parts = plan(open_program(parent.package), 'palette4', 'palette4')\n"
        "compress_bundle(parent, Path(sys.argv[2]), 'palette4', {part.name: part.scheme for part in parts})"
    )
    command = [sys.executable, "-c", code, str(fp16("ios16").path), str(tmp_path / "there")]
    subprocess.run(command, check=True, cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": other}, capture_output=True, timeout=120)
    roots = compressed("ios16", "palette4").path, tmp_path / "there"
    here, there = ({file.relative_to(root): digest(file) for file in root.rglob("*") if file.is_file()} for root in roots)
    assert here == there


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_failed_check_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobile_export.compression.compression.quantise", lambda values, scheme, sparsity: halved(values, scheme))
    with pytest.raises(EngineError, match=r"nothing was written: .*\(int8\): \d+ values are further than half a step"):
        compress("ios16", "int8", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def halved(values: np.ndarray, scheme: str) -> Any:
    """A pass that divides a weight by what it should not."""
    return quantise((values / 2).astype(np.float16), scheme)


class Case:
    """A compressed package, and how to spoil one part of a weight of it in place."""

    def __init__(self, scheme: str, out: Path) -> None:
        self.target = "ios18" if scheme == "int4" else "ios16"
        self.bundle = Path(shutil.copytree(compressed(self.target, scheme).path, out))
        self.package = package_of(self.bundle)
        self.schemes = dict.fromkeys(("words_to_fp16", *LARGE), scheme)

    def spoil(self, part: str, change: Callable[[np.ndarray], object], name: str = "words_to_fp16") -> None:
        program = open_program(self.package)
        operation = next(operation for operation in program.operations if operation.name == name)
        constant = (operation.attributes | {key: bound[0] for key, bound in operation.inputs.items()})[part]
        assert not isinstance(constant, str) and constant.blob is not None
        file = self.package / "Data/com.apple.CoreML/weights/weight.bin"
        content = bytearray(file.read_bytes())
        start = int(np.frombuffer(content, "<u8", 1, constant.blob + 16)[0])
        dtype = np.uint8 if constant.dtype in ("int4", "uint4") else np.dtype(constant.dtype)
        change(np.frombuffer(content, dtype, constant.stored_bytes // np.dtype(dtype).itemsize, start))
        file.write_bytes(content)

    def check(self) -> None:
        check_package(open_program(fp16(self.target).package), open_program(self.package), self.schemes)


def scaled(values: np.ndarray) -> None:
    values[7] *= np.float16(1.02)


@pytest.mark.parametrize(
    ("scheme", "part", "change"),
    [
        ("int8", "scale", scaled),
        ("int8", "zero_point", lambda values: values.__setitem__(3, 1)),
        ("int8", "quantized_data", lambda values: values.__setitem__(100, values[100] + 2)),
        ("int4", "scale", lambda values: values.__imul__(np.float16(1.05))),
        ("palette4", "lut", scaled),
        ("palette4", "lut", lambda values: values.__setitem__(slice(None), 0)),
        ("palette4", "indices", lambda values: values.__setitem__(slice(10), 0)),
        ("sparse", "nonzero_data", scaled),
        ("sparse", "mask", lambda values: values.__setitem__(slice(None), np.roll(values, 1))),
    ],
)
def test_a_weight_that_is_not_stored_right_is_found(scheme: str, part: str, change: Callable[[np.ndarray], None], tmp_path: Path) -> None:
    case = Case(scheme, tmp_path / "made")
    case.check()
    case.spoil(part, change)
    with pytest.raises(EngineError, match=rf"words_to_fp16 \({scheme}\): "):
        case.check()


@pytest.mark.parametrize(("scheme", "shape"), [("int8", (4, 64)), ("int4", (4, 64))])
def test_a_weight_that_decodes_to_infinity_is_found(scheme: str, shape: tuple[int, int]) -> None:
    weight = np.zeros(shape, np.float32)
    weight[1, 5] = 65504  # whose scale, rounded up, leads beyond float16
    decoded = weight.copy()
    assert _difference(weight, decoded, scheme, 0.5) == ""
    decoded[1, 5] = np.inf
    assert _difference(weight, decoded, scheme, 0.5) == "1 values are further than half a step from the original"


def test_a_weight_that_was_skipped_and_changed_is_found(tmp_path: Path) -> None:
    """As the pass of coremltools leaves it that divides by scales, and then declines (pull request 2777): float16 still, and not the original."""
    parent, case = open_program(fp16("ios16").package), Case("int8", tmp_path / "made")
    with pytest.raises(EngineError, match="words_to_fp16 is stored as fp16, not as int8"):
        check_package(parent, parent, {"words_to_fp16": "int8"})
    case.spoil("val", lambda values: values.__imul__(np.float16(0.5)), "layers_0_query_weight_to_fp16")
    with pytest.raises(EngineError, match=r"layers_0_query_weight_to_fp16 \(fp16\): \d+ values have changed"):
        case.check()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda block: block.operations.pop(next(i for i, o in enumerate(block.operations) if o.type == "softmax")), "in another order"),
        (lambda block: next(o for o in block.operations if o.type == "gelu").attributes.clear(), "is not that of the original"),
        (lambda block: setattr(next(o for o in block.operations if o.type == "softmax"), "type", "relu"), "is not that of the original"),
    ],
)
def test_a_change_of_the_operations_is_found(change: Callable[[Any], None], says: str, tmp_path: Path) -> None:
    case = Case("int8", tmp_path / "made")
    edit_program(case.bundle, change)
    with pytest.raises(EngineError, match=says):
        case.check()


def test_a_raised_version_is_found() -> None:
    program, raised = (open_program(fp16(target).package) for target in ("ios16", "ios18"))
    with pytest.raises(EngineError, match="the specification version is 9, was 7"):
        check_package(program, raised, {})


def test_weights_decode_to_what_was_quantised() -> None:
    before = weights(open_program(fp16("ios16").package))
    for scheme in ("int8", "palette4", "sparse"):
        after = weights(open_program(compressed("ios16", scheme).package))
        for name in ("words_to_fp16", *LARGE):
            assert np.array_equal(after[name].value(), quantise(before[name].value().astype(np.float16), scheme).decode().astype(np.float32))

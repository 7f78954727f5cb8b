"""Bundles exported once from tiny checkpoints and shared by tests, which must copy before they change anything."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mobile_export.bundle import open_bundle
from mobile_export.export import main
from mobile_export.verification import verification
from mobile_export.verification.artefact import Artefact, reader_of
from pocketqa import squad
from pocketqa.folders import file_hashes
from tests.packaged import model_folder, workspace

SPECIFICATION, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"


@functools.cache
def bundle_of(kind: str, *options: str) -> Path:
    """The bundle of `model_folder(kind)`; `options` are words of `pocketqa export`."""
    out = Path(workspace().name) / f"bundle-{kind}{'-'.join(('', *options)).replace('--', '')}"
    words = list(options) or ["--target", "ios16", "--length", "96"]
    assert main([str(model_folder(kind)), *words, "--out", str(out)]) == 0
    return out


def copy_of_bundle(kind: str, target: Path) -> Path:
    """A copy of `bundle_of(kind)`, to be changed."""
    return Path(shutil.copytree(bundle_of(kind), target))


def package_of(bundle: Path) -> Path:
    """The model in a bundle."""
    return bundle / str(json.loads((bundle / "manifest.json").read_bytes())["config"]["package"])


def reseal(bundle: Path, **config: Any) -> Path:
    """Write the sha256 of every file into the manifest again, as a faulty conversion would have left them; and other entries of its config."""
    file = bundle / "manifest.json"
    manifest = json.loads(file.read_bytes())
    manifest["config"].update(config)
    manifest["files"] = file_hashes(bundle)
    file.write_text(json.dumps(manifest), encoding="utf-8")
    return bundle


def edit_program(bundle: Path, change: Callable[[Any], None]) -> Path:
    """Change the protobuf of a bundle's program (`Model.mlProgram.functions["main"]`'s block)."""
    from coremltools.proto import Model_pb2

    file = package_of(bundle) / SPECIFICATION
    model: Any = Model_pb2.Model()
    model.ParseFromString(file.read_bytes())
    function = model.mlProgram.functions["main"]
    change(function.block_specializations[function.opset])
    file.write_bytes(model.SerializeToString(deterministic=True))
    return reseal(bundle)


def edit_weight(bundle: Path, name: str, change: Callable[[Any], None]) -> Path:
    """Change the float16 values of a named constant in place."""
    from mobile_export.interpreter.mlprogram import open_program

    constant = open_program(package_of(bundle)).named_constants()[name]
    assert constant.blob is not None and constant.dtype == "float16"
    file = package_of(bundle) / WEIGHTS
    content = bytearray(file.read_bytes())
    start = int(np.frombuffer(content, "<u8", 1, constant.blob + 16)[0])
    values = np.frombuffer(content, "<f2", constant.value.size, start).reshape(constant.value.shape)
    change(values)
    file.write_bytes(content)
    return reseal(bundle)


def answer_itself(bundle: Path, file: Path) -> Path:
    """Make the answers of a SQuAD file those of a bundle: its F1 is 100, and every change of an answer is a loss."""
    opened, asked = open_bundle(bundle), squad.load(file)
    measured = verification.measure_with(reader_of(opened), opened.window, asked, ())
    answers = {e.id: {"text": measured.texts[e.id], "answer_start": span[1]} for e, span in zip(asked, measured.spans, strict=True)}
    document = json.loads(file.read_text(encoding="utf-8"))
    for entry in (entry for article in document["data"] for paragraph in article["paragraphs"] for entry in paragraph["qas"]):
        entry["answers"] = [answers[entry["id"]]]
    file.write_text(json.dumps(document), encoding="utf-8")
    return file


class InProcess:
    """What `IsolatedRuntime` offers, without the seconds that another process takes to start."""

    def __init__(self, path: Path, engine: str | None = None, threads: int | None = None, unit: str = "all") -> None:
        artefact = Artefact(path, engine, threads, unit)
        self.facts = json.loads(json.dumps(artefact.facts()))
        self.info, self.lengths, self.max_batch = artefact.runtime.info, artefact.runtime.lengths, artefact.runtime.max_batch
        self.forward, self.watch, self.trace = artefact.runtime.forward, artefact.watch, artefact.trace

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        return None

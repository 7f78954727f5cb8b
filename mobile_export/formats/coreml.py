"""A question-answering checkpoint as a Core ML package: a float16 ML program that needs nothing but token ids.

    checkpoint = open_checkpoint("models/student")
    exported = export_package(checkpoint, Path("Student.mlpackage"), find_target("ios16"), (384,))

Contract of the packages (their own descriptions say the same): input `input_ids` (1, T) int32, a window `[CLS] question [SEP] passage [SEP]` padded
with the pad id to one of the package's lengths; outputs `start_logits` and `end_logits` (1, T) float32, raw, with arbitrary finite values on
padding.  Attention mask and token types are derived inside (`windows.py`).

The bytes are a function of checkpoint, target, layout, lengths and tool versions: every package is laid out here, not by coremltools, whose random
identifiers, date and unordered maps would make every export another file.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mobile_export.formats.metadata import END, INPUT, START, write_metadata
from mobile_export.interpreter.mlprogram import open_program
from mobile_export.networks.checks import Agreement, check_agreement
from mobile_export.networks.network import export_network
from mobile_export.targets import DEFAULT_LAYOUT, DEFAULT_LENGTHS, Target
from mobile_export.tools import check_can_write, import_coremltools, quiet
from mobile_export.verification.hazards import find_hazards, find_warnings
from pocketqa.errors import EngineError
from pocketqa.folders import sha256_file

if TYPE_CHECKING:
    from mobile_export.checkpoint.checkpoints import Checkpoint

SPECIFICATION = Path("com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("com.apple.CoreML/weights")

Describe = Callable[[Any], None]
"""Fills the description of a Core ML `Model` protobuf."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A package that was written and checked.  `warnings`: what is not wrong but worth knowing, such as operations off the Neural Engine."""

    path: Path
    agreement: Agreement
    warnings: tuple[str, ...]


def export_package(checkpoint: Checkpoint, path: Path, target: Target, lengths: Sequence[int], layout: str = DEFAULT_LAYOUT) -> Exported:
    """Check, convert, write and re-read the package at `path`, where nothing may be.  `lengths` ascending, as `check_lengths` gives them.

    Raises EngineError where a check fails; what was written is then left for the caller to remove, who writes a bundle in a folder of its own.
    """
    check_can_write()
    agreement = check_agreement(checkpoint.model, checkpoint.vocabulary.markers, lengths, layout=layout)
    with tempfile.TemporaryDirectory(prefix=".converted-", dir=path.parent) as workshop:  # on the same disk, so that moving copies nothing
        raw = Path(workshop) / "converted.mlpackage"
        _convert(checkpoint, raw, target, lengths, layout)
        lay_out(raw, path, partial(write_metadata, checkpoint=checkpoint, target=target, lengths=lengths, layout=layout))
    program = open_program(path)
    if hazards := find_hazards(program, target.specification):
        raise EngineError(f"The converted program is not safe on a phone, so nothing was written: {'; '.join(hazards[:5])}.")
    return Exported(path, agreement, tuple(find_warnings(program, target)))


def lay_out(raw_package: Path, finished: Path, describe: Describe) -> None:
    """Write a package of coremltools again, with our description, maps in order, and identifiers that follow from the content.

    The weight file is moved out of `raw_package`.
    """
    from coremltools.proto import Model_pb2

    specification: Any = Model_pb2.Model()
    specification.ParseFromString((raw_package / "Data" / SPECIFICATION).read_bytes())
    describe(specification)
    data = finished / "Data"
    (data / WEIGHTS).mkdir(parents=True)
    shutil.move(raw_package / "Data" / WEIGHTS / "weight.bin", data / WEIGHTS / "weight.bin")
    (data / SPECIFICATION).write_bytes(specification.SerializeToString(deterministic=True))
    (finished / "Manifest.json").write_text(json.dumps(_manifest(data), indent=4, sort_keys=True) + "\n", encoding="utf-8")


def _convert(checkpoint: Checkpoint, raw: Path, target: Target, lengths: Sequence[int], layout: str) -> None:
    """Trace the network and let coremltools write its package to `raw`."""
    ct = import_coremltools()
    network = export_network(checkpoint.model, checkpoint.vocabulary.markers, lengths, layout=layout)
    default = DEFAULT_LENGTHS[0] if DEFAULT_LENGTHS[0] in lengths else max(lengths)
    shape = (1, default) if len(lengths) == 1 else ct.EnumeratedShapes([(1, length) for length in lengths], default=(1, default))
    trace: Any = torch.jit.trace
    try:
        with quiet(), torch.inference_mode(False), torch.no_grad():
            # check_trace would run the network twice more and compare it with itself; `checks.py` has compared it with the checkpoint
            traced = trace(network, torch.zeros((1, default), dtype=torch.int32), check_trace=False)
            ct.convert(
                traced,
                inputs=[ct.TensorType(INPUT, shape=shape, dtype=np.int32)],
                outputs=[ct.TensorType(START, dtype=np.float32), ct.TensorType(END, dtype=np.float32)],
                convert_to="mlprogram",
                compute_precision=ct.precision.FLOAT16,
                minimum_deployment_target=getattr(ct.target, target.coreml),
                skip_model_load=True,
                package_dir=str(raw),
            )
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError, KeyError) as error:
        raise EngineError(f"Coremltools could not convert the network: {type(error).__name__}: {error}") from error


def _manifest(data: Path) -> dict[str, Any]:
    """Manifest.json of a package whose files lie in `data`; an item's identifier is derived from its bytes."""
    model, weights = _identifier(data / SPECIFICATION), _identifier(data / WEIGHTS / "weight.bin")
    items = {
        model: {"author": "com.apple.CoreML", "description": "CoreML Model Specification", "name": "model.mlmodel", "path": SPECIFICATION.as_posix()},
        weights: {"author": "com.apple.CoreML", "description": "CoreML Model Weights", "name": "weights", "path": WEIGHTS.as_posix()},
    }
    return {"fileFormatVersion": "1.0.0", "itemInfoEntries": items, "rootModelIdentifier": model}


def _identifier(file: Path) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_OID, sha256_file(file))).upper()

"""A question-answering checkpoint as a Core ML package: a float16 ML program that needs nothing but token ids.

    checkpoint = open_checkpoint("models/student")
    exported = export_package(checkpoint, Path("Student.mlpackage"), find_target("ios16"), (384,))

Contract of the packages (their own descriptions say the same): input `input_ids` (1, T) int32, a window `[CLS] question [SEP] passage [SEP]` padded
with the pad id to one of the package's lengths; outputs `start_logits` and `end_logits` (1, T) float32, raw, with arbitrary finite values on
padding.  Attention mask and token types are derived inside (`network.py`).

The bytes are a function of checkpoint, target, lengths and tool versions: the package is laid out here, not by coremltools, whose random
identifiers, date and unordered maps would make every export another file.
"""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mobile_export.checkpoints import Checkpoint
from mobile_export.checks import Agreement, check_agreement
from mobile_export.hazards import find_hazards
from mobile_export.metadata import END, INPUT, START, write_metadata
from mobile_export.mlprogram import open_program
from mobile_export.network import SpanNetwork, parts_of
from mobile_export.targets import DEFAULT_LENGTHS, Target
from mobile_export.tools import check_can_write, import_coremltools, quiet
from pocketqa.errors import EngineError
from pocketqa.folders import atomic_folder, sha256_file

SPECIFICATION = Path("com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("com.apple.CoreML/weights")


@dataclass(frozen=True, slots=True)
class Exported:
    """A package that was written and checked."""

    path: Path
    agreement: Agreement


def export_package(checkpoint: Checkpoint, path: Path, target: Target, lengths: Sequence[int], replace: bool = False) -> Exported:
    """Check, convert, write and re-read the package at `path`.  `lengths` ascending, as `check_lengths` gives them.

    The package appears whole or not at all.  Raises FolderError where `path` holds something (unless `replace`), EngineError where a check fails.
    """
    check_can_write()
    agreement = check_agreement(checkpoint.model, checkpoint.vocabulary.markers, lengths, checkpoint.vocabulary.cls_id)
    with atomic_folder(path, replace) as finished, tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=finished.parent) as workshop:
        raw = Path(workshop) / "converted.mlpackage"
        _convert(checkpoint, raw, target, lengths)
        _lay_out(raw, finished, checkpoint, target, lengths)
        if hazards := find_hazards(open_program(finished), target.specification):
            raise EngineError(f"The converted program is not safe on a phone, so nothing was written: {'; '.join(hazards[:5])}.")
    return Exported(path, agreement)


def _convert(checkpoint: Checkpoint, raw: Path, target: Target, lengths: Sequence[int]) -> None:
    """Trace the network and let coremltools write its package to `raw`."""
    ct = import_coremltools()
    network = SpanNetwork(parts_of(checkpoint.model), checkpoint.vocabulary.markers, lengths).eval()
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


def _lay_out(raw: Path, finished: Path, checkpoint: Checkpoint, target: Target, lengths: Sequence[int]) -> None:
    """Write the converted model again with our metadata, maps in order and identifiers that follow from the content."""
    from coremltools.proto import Model_pb2

    specification: Any = Model_pb2.Model()
    specification.ParseFromString((raw / "Data" / SPECIFICATION).read_bytes())
    write_metadata(specification, checkpoint, target, lengths)
    data = finished / "Data"
    (data / WEIGHTS).parent.mkdir(parents=True)
    (raw / "Data" / WEIGHTS).rename(data / WEIGHTS)
    (data / SPECIFICATION).write_bytes(specification.SerializeToString(deterministic=True))
    (finished / "Manifest.json").write_text(json.dumps(_manifest(data), indent=4, sort_keys=True) + "\n", encoding="utf-8")


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

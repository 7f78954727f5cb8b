"""How many bytes a model takes: as files, zipped as a download, and by the bits of each parameter."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path

from mobile_export.bundle import open_bundle
from mobile_export.bundle import sizes as bundle_sizes
from mobile_export.checkpoint.geometry import parameters_of
from mobile_export.timing.contestants import Contestant
from pocketqa.folders import MANIFEST, ModelFolder
from pocketqa.runtimes.forms import INT8, form_folder
from pocketqa.types import JSON

PRECISION_BITS = {"fp32": 32, "fp16": 16, "int8": 8, "6 bits": 6, "4 bits": 4}
CHUNK = 1 << 20


def by_precision(parameters: int) -> dict[str, int]:
    """Bytes of so many parameters at each precision: parameters x bits / 8, without scales, tables or graph."""
    return {name: parameters * bits // 8 for name, bits in PRECISION_BITS.items()}


def sizes_of(contestant: Contestant) -> JSON:
    """Bytes of what is loaded: "package" (weights and graph), "weights", "zipped"; for a model folder also "parameters" and "by_precision"."""
    if contestant.form == "bundle":
        return dict(bundle_sizes(open_bundle(contestant.path)))
    folder = ModelFolder(contestant.path)
    parameters = parameters_of(folder.weights)
    files, weights = [folder.weights, *([folder.graph] if folder.graph.is_file() else [])], folder.weights.stat().st_size
    if contestant.precision == INT8:
        files = [file for file in form_folder(folder, contestant.engine).iterdir() if file.name != MANIFEST]
        weights = max(file.stat().st_size for file in files)  # OpenVINO keeps them apart from its graph, ONNX within
    return {
        "package": sum(file.stat().st_size for file in files),
        "weights": weights,
        "zipped": deflated(files),
        "parameters": parameters,
        "by_precision": by_precision(parameters),
    }


def deflated(files: Iterable[Path]) -> int:
    """Bytes of files compressed as a zip archive does."""
    total = 0
    for path in files:
        squeeze = zlib.compressobj(6, zlib.DEFLATED, -15)
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                total += len(squeeze.compress(chunk))
        total += len(squeeze.flush())
    return total

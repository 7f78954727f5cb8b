"""Forms of a model folder: the same model in int8, made and judged by `pocketqa package MODEL --form NAME`, kept beside its weights.

    MODEL/forms/onnx-int8/        model.onnx, manifest.json              for ONNX Runtime
    MODEL/forms/openvino-int8/    model.xml, model.bin, manifest.json    for OpenVINO

The manifest's parent is the sha256 of the weights that the form was made from.  A form is no part of the folder's own manifest, and goes when the
folder is packaged again from other weights.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from pocketqa.errors import CorruptFolder, IncompleteFolder, StaleGraph
from pocketqa.folders import MANIFEST, Manifest, ModelFolder, sha256_file

FOLDER = "forms"
INT8 = "int8"
FORMS = {"onnxruntime": ("onnx-int8", "model.onnx"), "openvino": ("openvino-int8", "model.xml")}  # engine -> form it computes in int8, its graph


def form_folder(folder: ModelFolder, engine: str) -> Path:
    """Where the engine's form is or would be."""
    return folder.path / FOLDER / FORMS[engine][0]


def has_form(folder: ModelFolder, engine: str) -> bool:
    """Whether a form for the engine was made; `find_form` tells whether it is sound."""
    return (form_folder(folder, engine) / MANIFEST).is_file()


def find_form(folder: ModelFolder, engine: str) -> Path:
    """The graph of the engine's form, every file compared with its sha256 and the parent with the folder's weights.

    Raises IncompleteFolder, CorruptFolder, StaleGraph, each with the command that makes the form.
    """
    name, graph = FORMS[engine]
    place = form_folder(folder, engine)
    command = f"pocketqa package {shlex.quote(str(folder.path))} --form {name} --data FILE"
    if not has_form(folder, engine):
        raise IncompleteFolder(f"Expected the form {name} in {folder.path / FOLDER}, found none. Make it on a development split with: {command}")
    manifest = read_form(place)
    wrong = [file for file, expected in manifest.files.items() if not (place / file).is_file() or sha256_file(place / file) != expected]
    if wrong or graph not in manifest.files:
        raise CorruptFolder(
            f"{place}: {', '.join(wrong) or graph} missing or not what was written (sha256 in {MANIFEST}). Make it again with: {command}"
        )
    if manifest.parent != sha256_file(folder.weights):
        raise StaleGraph(f"{place} was made from other weights than {folder.weights}. Make it again with: {command}")
    return place / graph


def read_form(place: Path) -> Manifest:
    """The manifest of a form.  Raises CorruptFolder."""
    try:
        return Manifest.from_json(json.loads((place / MANIFEST).read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CorruptFolder(f"Expected a readable manifest at {place / MANIFEST}, found: {error}. Delete {place} and make the form again.") from None

"""The Open Inference Protocol as its specification writes it down: the schemas of open_inference_rest.yaml, and what its text adds about tensors.

https://github.com/kserve/open-inference-protocol/tree/main/specification/protocol
"""

from __future__ import annotations

import math
from typing import Any

_TEXT, _TEXTS, _INTEGERS = {"type": "string"}, {"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "integer"}}
_METADATA_TENSOR = {"type": "object", "required": ["name", "datatype", "shape"], "properties": {"name": _TEXT, "datatype": _TEXT, "shape": _INTEGERS}}
_TENSOR = {
    "type": "object",
    "required": ["name", "shape", "datatype", "data"],
    "properties": {"name": _TEXT, "shape": _INTEGERS, "datatype": _TEXT, "parameters": {"type": "object"}, "data": {"type": "array"}},
}
SCHEMAS: dict[str, Any] = {
    "metadata_server_response": {
        "type": "object",
        "required": ["name", "version", "extensions"],
        "properties": {"name": _TEXT, "version": _TEXT, "extensions": _TEXTS},
    },
    "metadata_model_response": {
        "type": "object",
        "required": ["name", "platform"],
        "properties": {
            "name": _TEXT,
            "versions": _TEXTS,
            "platform": _TEXT,
            "inputs": {"type": "array", "items": _METADATA_TENSOR},
            "outputs": {"type": "array", "items": _METADATA_TENSOR},
        },
    },
    "ready_model_response": {"type": "object", "required": ["name", "ready"], "properties": {"name": _TEXT, "ready": {"type": "boolean"}}},
    "live_server_response": {"type": "object", "required": ["live"], "properties": {"live": {"type": "boolean"}}},
    "inference_request": {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": _TEXT,
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": _TENSOR},
            "outputs": {"type": "array", "items": {"type": "object", "required": ["name"], "properties": {"name": _TEXT}}},
        },
    },
    "inference_response": {
        "type": "object",
        "required": ["model_name", "outputs"],
        "properties": {"model_name": _TEXT, "model_version": _TEXT, "id": _TEXT, "outputs": {"type": "array", "items": _TENSOR}},
    },
    "error_response": {"type": "object", "required": ["error"], "properties": {"error": _TEXT}},
}
_TYPES: dict[str, type | tuple[type, ...]] = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
# JSON's kind of each datatype that occurs here.
_ELEMENTS: dict[str, type | tuple[type, ...]] = {"BYTES": str, "FP32": (int, float), "INT64": int}


def check(name: str, document: Any) -> None:
    """Fails where a document is not what the specification's schema of that name says, or a tensor's data are not what its shape and datatype say."""
    _check(SCHEMAS[name], document, name)
    for tensor in [*document.get("inputs", []), *document.get("outputs", [])] if name.startswith("inference") else []:
        if "data" in tensor:
            assert len(tensor["data"]) == math.prod(tensor["shape"]), tensor
            assert all(isinstance(value, _ELEMENTS[tensor["datatype"]]) for value in tensor["data"]), tensor


def _check(schema: dict[str, Any], found: Any, place: str) -> None:
    right: bool = isinstance(found, _TYPES[schema["type"]])
    assert right, f"{place}: expected {schema['type']}, found {found!r}"
    for name in schema.get("required", ()):
        assert name in found, f"{place}: {name} is missing"
    for name, inner in schema.get("properties", {}).items():
        if name in found:
            _check(inner, found[name], f"{place}.{name}")
    for at, item in enumerate(found if "items" in schema else ()):
        _check(schema["items"], item, f"{place}[{at}]")

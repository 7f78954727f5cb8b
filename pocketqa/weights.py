"""Where the weights lie: the header of a safetensors file, the external data of an ONNX graph, and whether the two still agree.

A model folder holds each weight once.  model.onnx has none of its own; its initialisers are external data that name a place in
model.safetensors.  Anything that writes model.safetensors anew (`save_pretrained`, for one) moves those places, and an engine would then
compute with other bytes without a word.  Hence `check_links`, before a session is opened.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketqa.errors import CorruptFolder, StaleGraph

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}

# Numbers of onnx.proto3: fields of ModelProto, GraphProto, TensorProto and StringStringEntryProto, and values of TensorProto.DataType.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_EXTERNAL = 1, 2, 8, 13
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_ONNX_TYPES = {1: "F32", 2: "U8", 3: "I8", 5: "I16", 6: "I32", 7: "I64", 9: "BOOL", 10: "F16", 11: "F64", 16: "BF16"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf wire types


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Place and form of one tensor in a safetensors file."""

    dtype: str  # as safetensors writes it: "F16", "F32", ...
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    length: int  # bytes


@dataclass(frozen=True, slots=True)
class ExternalEntry:
    """One initialiser of an ONNX graph whose bytes lie in another file."""

    name: str
    location: str  # the file, relative to the graph
    tensor: TensorEntry


def repair_command(folder: Path) -> str:
    """The command that makes a model folder again from the weights it holds."""
    quoted = shlex.quote(str(folder))
    return f"pocketqa package {quoted} --out {quoted} --force"


def safetensors_header(path: Path) -> dict[str, TensorEntry]:
    """Name -> dtype, shape, absolute offset, length of every tensor.  Raises CorruptFolder where the file is not whole.

    The format: 8 bytes little-endian length, so many bytes of JSON, then the tensors; offsets in the JSON count from the end of the JSON.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_length = int.from_bytes(file.read(8), "little")
            if header_length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError(f"the header should have {header_length} bytes in a file of {size}")
            document = json.loads(file.read(header_length))
        entries = {
            str(name): _tensor_entry(str(name), fields, 8 + header_length, size) for name, fields in document.items() if name != "__metadata__"
        }
    except OSError as error:
        raise CorruptFolder(f"Expected weights at {path}, which cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFolder(f"Expected a whole safetensors file at {path}, found: {error}. Copy the file again from where it came from.") from None
    return entries


def external_entries(graph: Path) -> list[ExternalEntry]:
    """The external initialisers of an ONNX graph, in its order.  Raises CorruptFolder where the file is not ONNX.

    Read with a protobuf reader of a few lines, because the `onnx` package is no part of a serving install.
    """
    try:
        data = memoryview(graph.read_bytes())
        entries = []
        for model_field, graph_bytes in _fields(data):
            if model_field == _MODEL_GRAPH:
                tensors = (value for field, value in _fields(_as_bytes(graph_bytes)) if field == _GRAPH_INITIALIZER)
                entries += [entry for tensor in tensors if (entry := _external_entry(_as_bytes(tensor))) is not None]
    except OSError as error:
        raise CorruptFolder(f"Expected an ONNX graph at {graph}, which cannot be read: {error.strerror}.") from None
    except (ValueError, IndexError, TypeError) as error:
        raise CorruptFolder(f"Expected an ONNX graph at {graph}, found bytes that are none: {error}.") from None
    return entries


def check_links(graph: Path, weights: Path) -> None:
    """Compare every external initialiser (name, type, shape, offset, length) with the tensors of the weight file.

    Raises StaleGraph that names the first mismatch and the command that repairs it.
    """
    entries = external_entries(graph)
    tensors = safetensors_header(weights)
    if not entries:
        raise _stale(graph, f"Expected {graph} to point into {weights.name} for its weights; it points nowhere.")
    for entry in entries:
        if entry.location != weights.name:
            raise _stale(graph, f"Expected {entry.name} of {graph} to lie in {weights.name}, found {entry.location!r}.")
        found = tensors.get(entry.name)
        if found != entry.tensor:
            raise _stale(
                graph,
                f"{weights} was written anew after {graph.name} was made: expected {entry.name} as {_words(entry.tensor)}; found {_words(found)}.",
            )


def _stale(graph: Path, message: str) -> StaleGraph:
    return StaleGraph(f"{message} Make the folder again with: {repair_command(graph.parent)}")


def _words(tensor: TensorEntry | None) -> str:
    if tensor is None:
        return "no such tensor"
    return f"{tensor.dtype} {list(tensor.shape)} at byte {tensor.offset}, {tensor.length} bytes"


def _tensor_entry(name: str, fields: dict[str, list[int]], base: int, size: int) -> TensorEntry:
    dtype, shape, (begin, end) = str(fields["dtype"]), tuple(int(n) for n in fields["shape"]), fields["data_offsets"]
    if dtype in ELEMENT_BYTES and end - begin != math.prod(shape) * ELEMENT_BYTES[dtype]:
        raise ValueError(f"{name} should be {dtype} {list(shape)} but has {end - begin} bytes")
    if not 0 <= begin <= end <= size - base:
        raise ValueError(f"{name} should end at byte {base + end} of a file of {size}")
    return TensorEntry(dtype, shape, base + begin, end - begin)


def _external_entry(tensor: memoryview) -> ExternalEntry | None:
    """The external place of a TensorProto, or None where its values lie in the graph itself."""
    dims: list[int] = []
    name, kind, places = "", 0, {}
    for field, value in _fields(tensor):
        if field == _TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else _packed_varints(value)
        elif field == _TENSOR_TYPE and isinstance(value, int):
            kind = value
        elif field == _TENSOR_NAME:
            name = bytes(_as_bytes(value)).decode()
        elif field == _TENSOR_EXTERNAL:
            pair = {number: bytes(_as_bytes(part)).decode() for number, part in _fields(_as_bytes(value))}
            places[pair.get(_ENTRY_KEY, "")] = pair.get(_ENTRY_VALUE, "")
    if not places:
        return None
    dtype = _ONNX_TYPES.get(kind, f"type {kind}")
    length = int(places.get("length", -1))
    return ExternalEntry(name, places.get("location", ""), TensorEntry(dtype, tuple(dims), int(places.get("offset", 0)), length))


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a protobuf message: integers for varints and fixed widths, bytes for the rest."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == _BYTES:
            width, at = _varint(data, at)
        elif wire in (_FIXED32, _FIXED64):
            width = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + width > len(data):
            raise ValueError(f"a field of {width} bytes at byte {at} of {len(data)}")
        part = data[at : at + width]
        at += width
        yield number, part if wire == _BYTES else int.from_bytes(part, "little")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError(f"a number of more than 64 bits before byte {at}")


def _packed_varints(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


def _as_bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError(f"the number {value} where a message should stand")
    return value

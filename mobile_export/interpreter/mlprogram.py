"""Read a saved `.mlpackage`: its specification, operations and constants, from the bytes on disk and nothing else.

    program = open_program("Student.mlpackage")
    program.specification, [feature.name for feature in program.inputs], program.operation_types()
    for constant in program.constants(): ...

Runs wherever coremltools can be imported (its protobuf classes are used); the weight file is read by `blobs.py`, as a memory map.

A package is Manifest.json, which names Data/com.apple.CoreML/model.mlmodel (a protobuf `Model`) and .../weights/weight.bin.  Compressed weights are
operations `constexpr_*`, whose constants are kept here as they are stored; `decoding.py` makes values of them.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mobile_export.interpreter.blobs import SUB_BYTE, WeightFile, numpy_dtype, stored_bytes, unpack
from mobile_export.tools import import_coremltools
from pocketqa.errors import CorruptFolder, IncompleteFolder
from pocketqa.types import JSON

_NUMPY_NAMES = {  # names of MIL's DataType -> ours, which are numpy's but for the types of fewer than eight bits
    "FLOAT16": "float16",
    "FLOAT32": "float32",
    "FLOAT64": "float64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "BOOL": "bool",
    "STRING": "str",
    "INT4": "int4",
    "UINT1": "uint1",
    "UINT2": "uint2",
    "UINT3": "uint3",
    "UINT4": "uint4",
    "UINT6": "uint6",
}
_FEATURE_TYPES = {65568: "float32", 65552: "float16", 65600: "float64", 131104: "int32", 131080: "int8"}  # ArrayFeatureType.ArrayDataType


@dataclass(frozen=True, slots=True)
class Feature:
    """An input or output of the model.  `shapes`: all it takes, the default first; none for an output whose shape follows the input's."""

    name: str
    dtype: str
    shapes: tuple[tuple[int, ...], ...]
    description: str


@dataclass(frozen=True, slots=True)
class Value:
    """The name, type and shape of what an operation leaves; a dimension of None varies."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A value stored in the program or in the weight file.

    name: of the constant, or `operation.argument` where it is written into an operation.
    dtype: as stored; of fewer than eight bits, uint1, uint2, uint3, uint4, uint6 or int4.
    value: numbers or booleans with their shape (below eight bits, one byte a value); strings as an array of str.
    blob: offset in the weight file, None for a value inside the specification.
    """

    name: str
    dtype: str
    value: NDArray[Any]
    blob: int | None = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of the values as stored, without the record of the weight file."""
        return stored_bytes(self.dtype, self.value.size)


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One operation.  `inputs` maps an argument to what is bound to it: names of values, or constants written in place."""

    type: str
    name: str
    inputs: dict[str, tuple[str | Constant, ...]]
    attributes: dict[str, Constant]
    outputs: tuple[Value, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A package as read.  `operations` are those of the main function in order, constants among them."""

    path: Path
    specification: int
    opset: str
    inputs: tuple[Feature, ...]
    outputs: tuple[Feature, ...]
    operations: tuple[Operation, ...]
    metadata: dict[str, str]
    about: dict[str, str] = field(default_factory=dict)

    def constants(self) -> Iterator[Constant]:
        """Every constant once: named ones by the name that operations use, the others as `operation.argument`."""
        for operation in self.operations:
            yield from operation.attributes.values()
            for bound in operation.inputs.values():
                yield from (value for value in bound if isinstance(value, Constant))

    def named_constants(self) -> dict[str, Constant]:
        """Constants that operations refer to by name."""
        return {op.outputs[0].name: op.attributes["val"] for op in self.operations if op.type == "const"}

    def operation_types(self) -> dict[str, int]:
        """How often each operation type occurs, constants aside, most frequent first."""
        counts = Counter(operation.type for operation in self.operations if operation.type != "const")
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class Weights(Protocol):
    """Where a program's large constants lie: a weight file, or what stands in for it."""

    def read(self, name: str, offset: int, dtype: str, count: int) -> NDArray[Any]:
        """Values (count,) of the constant whose record the program places at `offset`."""
        ...


def open_program(package: str | Path) -> Program:
    """Read a package.  Raises IncompleteFolder (files missing), CorruptFolder (not an ML program, unknown types), MissingExtra (no coremltools)."""
    path = Path(package)
    specification_file, weight_file = _package_files(path)
    return read_program(path, specification_file, WeightFile(weight_file) if weight_file else None)


def read_program(path: Path, specification_file: Path, weights: Weights | None) -> Program:
    """The program of a specification file, with weights from anywhere.  `path` names it in errors.  Raises as `open_program`."""
    proto = _parse(specification_file)
    if proto.WhichOneof("Type") != "mlProgram":
        raise CorruptFolder(f"{path}: expected an ML program, found a Core ML model of type {proto.WhichOneof('Type')!r}")
    if "main" not in proto.mlProgram.functions:
        raise CorruptFolder(f"{path}: expected a function 'main', found {', '.join(proto.mlProgram.functions) or 'none'}")
    function = proto.mlProgram.functions["main"]
    reader = _Reader(path, weights)
    block = function.block_specializations[function.opset]
    return Program(
        path=path,
        specification=proto.specificationVersion,
        opset=function.opset,
        inputs=tuple(_feature(path, feature) for feature in proto.description.input),
        outputs=tuple(_feature(path, feature) for feature in proto.description.output),
        operations=tuple(reader.operation(operation) for operation in block.operations),
        metadata=dict(sorted(proto.description.metadata.userDefined.items())),
        about={
            "description": proto.description.metadata.shortDescription,
            "author": proto.description.metadata.author,
            "licence": proto.description.metadata.license,
            "version": proto.description.metadata.versionString,
        },
    )


def describe(package: str | Path) -> JSON:
    """What a saved package is, as JSON: specification version, inputs, outputs, operation types, metadata, sizes in bytes."""
    program = open_program(package)
    sizes = package_bytes(program.path)
    return {
        "package": str(program.path),
        "specification_version": program.specification,
        "opset": program.opset,
        "inputs": [_feature_json(feature) for feature in program.inputs],
        "outputs": [_feature_json(feature) for feature in program.outputs],
        "operations": program.operation_types(),
        "metadata": program.metadata,
        "about": program.about,
        "bytes": sizes,
    }


def package_bytes(package: Path) -> dict[str, int]:
    """Bytes of the whole package and of its weight file."""
    files = [file for file in package.rglob("*") if file.is_file()]
    return {"package": sum(file.stat().st_size for file in files), "weights": sum(file.stat().st_size for file in files if file.name == "weight.bin")}


class _Reader:
    """Turns protobuf operations into ours."""

    def __init__(self, path: Path, weights: Weights | None) -> None:
        from coremltools.proto import MIL_pb2

        self.path, self.weights = path, weights
        self.type_names: dict[int, str] = {number: name for name, number in MIL_pb2.DataType.items()}

    def operation(self, proto: Any) -> Operation:
        if proto.blocks:
            raise CorruptFolder(f"{self.path}: operation of type {proto.type!r} holds blocks (control flow), which no export of this project has")
        outputs = tuple(Value(output.name, *self._tensor_type(output.type)) for output in proto.outputs)
        name = outputs[0].name if outputs else proto.type
        inputs = {
            key: tuple(
                binding.name if binding.WhichOneof("binding") == "name" else self._constant(f"{name}.{key}", binding.value)
                for binding in argument.arguments
            )
            for key, argument in sorted(proto.inputs.items())
        }
        attributes = {key: self._constant(name if key == "val" else f"{name}.{key}", value) for key, value in sorted(proto.attributes.items())}
        return Operation(proto.type, name, inputs, attributes, outputs)

    def _tensor_type(self, proto: Any) -> tuple[str, tuple[int | None, ...]]:
        if proto.WhichOneof("type") != "tensorType":
            raise CorruptFolder(f"{self.path}: expected tensors only, found a value of type {proto.WhichOneof('type')}")
        tensor = proto.tensorType
        shape = tuple(int(d.constant.size) if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
        return self._dtype(tensor.dataType), shape

    def _dtype(self, number: int) -> str:
        name = self.type_names.get(number, str(number))
        if name not in _NUMPY_NAMES:
            raise CorruptFolder(f"{self.path}: values of type {name} are not known here")
        return _NUMPY_NAMES[name]

    def _constant(self, name: str, proto: Any) -> Constant:
        dtype, dims = self._tensor_type(proto.type)
        shape = tuple(size for size in dims if size is not None)
        if len(shape) != len(dims):
            raise CorruptFolder(f"{self.path}: constant {name} has a variable shape")
        count = math.prod(shape)
        if proto.WhichOneof("value") == "blobFileValue":
            if self.weights is None:
                raise CorruptFolder(f"{self.path}: constant {name} lies in a weight file, but the package has none")
            offset = int(proto.blobFileValue.offset)
            return Constant(name, dtype, self.weights.read(name, offset, dtype, count).reshape(shape), offset)
        tensor = proto.immediateValue.tensor
        kind = tensor.WhichOneof("value")
        if kind is None:  # an empty list is stored as nothing
            return Constant(name, dtype, np.zeros(shape, numpy_dtype(dtype)))
        stored = getattr(tensor, kind).values
        if kind != "bytes":
            flat = np.array(list(stored), dtype=dtype)
        elif dtype in SUB_BYTE:
            flat = unpack(np.frombuffer(stored, np.uint8), dtype, count)
        else:
            flat = np.frombuffer(stored, dtype)
        if flat.size != count:
            raise CorruptFolder(f"{self.path}: expected {count} values of {dtype} for {name}, found {flat.size}")
        return Constant(name, dtype, flat.reshape(shape))


def _package_files(path: Path) -> tuple[Path, Path | None]:
    manifest_file = path / "Manifest.json"
    if not manifest_file.is_file():
        raise IncompleteFolder(
            f"Expected a Core ML package at {path}, found no Manifest.json. Make one with: pocketqa export MODEL --target ios16 --out {path}"
        )
    try:
        manifest = json.loads(manifest_file.read_text(encoding="utf-8"))
        items = manifest["itemInfoEntries"]
        specification = path / "Data" / items[manifest["rootModelIdentifier"]]["path"]
        weights = [path / "Data" / item["path"] / "weight.bin" for item in items.values() if item["name"] == "weights"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFolder(f"{manifest_file} cannot be read: {error}") from error
    missing = [file for file in (specification, *weights) if not file.is_file()]
    if missing:
        raise IncompleteFolder(f"{path}: files that its manifest names are missing: {', '.join(str(file.relative_to(path)) for file in missing)}")
    return specification, weights[0] if weights else None


def _parse(file: Path) -> Any:
    import_coremltools()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are another package

    proto = Model_pb2.Model()
    try:
        proto.ParseFromString(file.read_bytes())
    except DecodeError as error:
        raise CorruptFolder(f"{file} is not a Core ML specification: {error}") from error
    return proto


def _feature(path: Path, proto: Any) -> Feature:
    array = proto.type.multiArrayType
    if proto.type.WhichOneof("Type") != "multiArrayType" or array.dataType not in _FEATURE_TYPES:
        raise CorruptFolder(f"{path}: input or output {proto.name!r} is not an array of a known type")
    shapes = [tuple(array.shape), *(tuple(shape.shape) for shape in array.enumeratedShapes.shapes)]
    return Feature(proto.name, _FEATURE_TYPES[array.dataType], tuple(dict.fromkeys(shape for shape in shapes if shape)), proto.shortDescription)


def _feature_json(feature: Feature) -> JSON:
    return {"name": feature.name, "dtype": feature.dtype, "shapes": [list(shape) for shape in feature.shapes], "description": feature.description}

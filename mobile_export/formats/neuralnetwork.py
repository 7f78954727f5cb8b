"""The older Core ML type `neuralnetwork`, in which systems before iOS 16 store weights in 8 bits (.mlmodel).

    write_network(package, out)      # from a saved float16 ML program: the .mlmodel, and beside it what `program_of` needs
    program_of(bundle)               # the ML program with every constant read back from the .mlmodel

The layers are coremltools' translation of the saved program.  Matrices (`innerProduct`, `embeddingND`) are stored in 8 bits with a scale and a least
value for each of their rows, as `LinearQuantizationParams` of NeuralNetwork.proto defines; biases, LayerNorm weights and positions stay in float16,
without loss.  No machine but Apple's runs these layers.  But every number in them is a constant of the program, rounded: so the program with the
numbers that the file holds is executed instead (`pocketqa verify`).  What remains unchecked is the translation of the operations to layers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mobile_export.interpreter.mlprogram import Constant, Operation, Program, open_program, read_program
from mobile_export.tools import import_coremltools, quiet
from pocketqa.errors import CorruptFolder, EngineError
from pocketqa.types import JSON

if TYPE_CHECKING:
    from mobile_export.bundle import Bundle

PROGRAM = Path("program/model.mlmodel")  # the ML program's specification, without its weight file
PLACES = Path("weights.json")
FORMAT = 1
LEVELS = 255  # steps of 8 bits
MATRICES = {"innerProduct": "outputChannels", "embeddingND": "embeddingSize"}  # layers whose `weights` are stored in 8 bits -> field with their rows

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One array of numbers in a layer.  `rows`: of a matrix that is stored in 8 bits, 1 for all others."""

    layer: str
    field: str
    rows: int
    params: Any


@dataclass(frozen=True, slots=True)
class Place:
    """Where a constant of the program lies in the network; `transposed`: as the transpose of its matrix."""

    layer: str
    field: str
    transposed: bool


def write_network(package: Path, out: Path) -> None:
    """Write the program of `package` as an 8-bit network to `out`, and program/ and weights.json beside it.

    Raises EngineError where coremltools cannot translate it, or where a constant is not found among the layers again.
    """
    from coremltools.proto import Model_pb2

    from mobile_export.bundle import SPECIFICATION
    from mobile_export.formats.metadata import carried_metadata

    specification: Any = Model_pb2.Model()
    specification.ParseFromString((package / SPECIFICATION).read_bytes())
    program = open_program(package)
    network = _translate(package, specification)
    slots = list(_slots(network))
    places = _places(program, slots)
    for slot in slots:
        _quantise(slot) if slot.rows > 1 else _halve(slot)
    network.description.CopyFrom(specification.description)
    carried_metadata(package / SPECIFICATION, "int8")(network)
    out.write_bytes(network.SerializeToString(deterministic=True))
    (out.parent / PROGRAM).parent.mkdir()
    (out.parent / PROGRAM).write_bytes(specification.SerializeToString(deterministic=True))
    document = {"format": FORMAT, "constants": {name: [place.layer, place.field, place.transposed] for name, place in sorted(places.items())}}
    (out.parent / PLACES).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def program_of(bundle: Bundle) -> Program:
    """The ML program that a neuralnetwork bundle was made from, with the constants that its .mlmodel holds.  Raises CorruptFolder."""
    weights = NetworkWeights(bundle.package, bundle.path / PLACES)
    program = read_program(bundle.package, bundle.path / PROGRAM, weights)
    return replace(program, operations=tuple(_restated(operation, weights) for operation in program.operations))


def _restated(operation: Operation, weights: NetworkWeights) -> Operation:
    """An operation whose small constant, written into the program, is replaced by what the network holds of it."""
    constant = operation.attributes.get("val")
    if operation.type != "const" or constant is None or constant.blob is not None:
        return operation
    if constant.name not in weights.names and not _is_real(constant):
        return operation
    values = weights.read(constant.name, 0, constant.dtype, constant.value.size).reshape(constant.value.shape)
    return replace(operation, attributes=operation.attributes | {"val": replace(constant, value=values)})


class NetworkWeights:
    """The numbers of a .mlmodel by the names of the program's constants."""

    def __init__(self, model: Path, places: Path) -> None:
        """Raises CorruptFolder where either file cannot be read."""
        self.model = model
        self._slots = {(slot.layer, slot.field): slot for slot in _slots(_parse(model))}
        try:
            document: JSON = json.loads(places.read_bytes())
            self._places = {name: Place(*entry) for name, entry in document["constants"].items()}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFolder(f"Expected the places of weights at {places}, found: {error}.") from None

    @property
    def names(self) -> frozenset[str]:
        """Constants that have a place."""
        return frozenset(self._places)

    def read(self, name: str, offset: int, dtype: str, count: int) -> NDArray[Any]:
        """Values (count,) of a constant, decoded and rounded to its own type."""
        place = self._places.get(name)
        slot = self._slots.get((place.layer, place.field)) if place else None
        if place is None or slot is None:
            raise CorruptFolder(f"{self.model}: expected a place for the constant {name}, found none. Make the bundle again.")
        values = decode(slot)
        if values.size != count:
            raise CorruptFolder(f"{self.model}: expected {count} values of {name} in {place.layer}.{place.field}, found {values.size}.")
        if place.transposed:
            values = values.reshape(slot.rows, -1).T.reshape(-1)
        return values.astype(dtype)


def decode(slot: Slot) -> Values:
    """The numbers of a slot as they count (n,): float32, float16, or 8 bits with scale and bias, or an index into a table (NeuralNetwork.proto).

    Raises CorruptFolder for any other form.
    """
    params = slot.params
    if params.floatValue:
        return np.array(params.floatValue, np.float32)
    if params.float16Value:
        return np.frombuffer(params.float16Value, "<f2").astype(np.float32)
    quantisation = params.quantization
    kind = quantisation.WhichOneof("QuantizationType")
    if quantisation.numberOfBits != 8 or kind is None:
        raise CorruptFolder(f"Layer {slot.layer}: expected {slot.field} in float32, float16 or 8 bits, found another form.")
    stored = np.frombuffer(params.rawValue, np.uint8)
    if kind == "lookupTableQuantization":
        return np.array(quantisation.lookupTableQuantization.floatValue, np.float32)[stored]
    scale, bias = (np.array(part, np.float32) for part in (quantisation.linearQuantization.scale, quantisation.linearQuantization.bias))
    if not len(scale) == len(bias) or len(scale) not in (1, slot.rows) or len(stored) % len(scale):
        raise CorruptFolder(f"Layer {slot.layer}: expected one scale and bias a row of {slot.field}, found {len(scale)} and {len(bias)}.")
    rows: Values = stored.reshape(len(scale), -1) * scale[:, None] + bias[:, None]
    return rows.reshape(-1)


def _translate(package: Path, specification: Any) -> Any:
    """The program as a network in float32, a `Model` protobuf."""
    ct = import_coremltools()
    from coremltools.converters.mil.frontend.milproto.load import load

    try:
        with quiet():
            program = load(specification, specification.specificationVersion, file_weights_dir=str(package / "Data/com.apple.CoreML/weights"))
            return ct.convert(program, source="milinternal", convert_to="neuralnetwork", skip_model_load=True).get_spec()
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError, KeyError) as error:
        raise EngineError(f"Coremltools could not translate {package} to layers: {type(error).__name__}: {error}") from error


def _parse(model: Path) -> Any:
    import_coremltools()
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]  # its stubs are another package

    network: Any = Model_pb2.Model()
    try:
        network.ParseFromString(model.read_bytes())
    except (OSError, DecodeError) as error:
        raise CorruptFolder(f"{model} is not a Core ML model: {error}") from error
    if network.WhichOneof("Type") != "neuralNetwork":
        raise CorruptFolder(f"{model}: expected a model of type neuralNetwork, found {network.WhichOneof('Type')}")
    return network


def _slots(network: Any) -> Iterator[Slot]:
    """Every array of numbers in the layers, in their order."""
    for layer in network.neuralNetwork.layers:
        kind = layer.WhichOneof("layer")
        parameters = getattr(layer, kind)
        for field in parameters.DESCRIPTOR.fields:
            if field.message_type and field.message_type.name == "WeightParams" and parameters.HasField(field.name):
                rows = getattr(parameters, MATRICES[kind]) if field.name == "weights" and kind in MATRICES else 1
                yield Slot(layer.name, field.name, rows, getattr(parameters, field.name))


def _places(program: Program, slots: list[Slot]) -> dict[str, Place]:
    """Where each array of the program went, found by its values; of several alike, in the order of the program.

    Raises EngineError where one of the weight file, or of real numbers, is in no layer.
    """
    stored: dict[bytes, list[tuple[Slot, bool]]] = {}
    for slot in slots:
        values = decode(slot)
        stored.setdefault(_key(values), []).append((slot, False))
        if slot.rows > 1:
            stored.setdefault(_key(values.reshape(slot.rows, -1).T), []).append((slot, True))
    places: dict[str, Place] = {}
    taken: set[tuple[str, str]] = set()
    for constant in program.named_constants().values():
        if constant.value.size < 2 or constant.value.dtype.kind not in "fiu":
            continue
        found = stored.get(_key(constant.value), [])
        free = [(slot, transposed) for slot, transposed in found if (slot.layer, slot.field) not in taken] or found
        if not free and constant.blob is None and not _is_real(constant):
            continue  # a shape or an order of axes, which layers have as parameters
        if not free:
            raise EngineError(
                f"The network holds no copy of the constant {constant.name}, so it could not be checked; nothing was written. "
                "Export with --scheme fp16 instead."
            )
        slot, transposed = free[0]
        taken.add((slot.layer, slot.field))
        places[constant.name] = Place(slot.layer, slot.field, transposed)
    return places


def _is_real(constant: Constant) -> bool:
    return constant.value.dtype.kind == "f" and constant.value.size > 1


def _key(values: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(values, np.float32).tobytes()


def _quantise(slot: Slot) -> None:
    """Store a matrix in 8 bits: each row from its least to its greatest value in 255 equal steps."""
    values = decode(slot).reshape(slot.rows, -1)  # (rows, columns)
    least = values.min(1)
    scale = (values.max(1) - least) / np.float32(LEVELS)
    steps = np.where(scale > 0, scale, np.float32(1))
    stored = np.rint((values - least[:, None]) / steps[:, None]).astype(np.uint8)
    params = slot.params
    params.Clear()
    params.quantization.numberOfBits = 8
    params.quantization.linearQuantization.scale.extend(scale.tolist())
    params.quantization.linearQuantization.bias.extend(least.tolist())
    params.rawValue = stored.tobytes()


def _halve(slot: Slot) -> None:
    """Store numbers in float16 where nothing is lost: weights are float16 in the program."""
    values = decode(slot)
    with np.errstate(over="ignore"):
        halves = values.astype("<f2")
    if np.array_equal(halves.astype(np.float32), values):
        slot.params.Clear()
        slot.params.float16Value = halves.tobytes()

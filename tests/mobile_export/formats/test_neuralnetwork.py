"""The 8-bit network for systems before iOS 16: what is stored, and that all of it is read back."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_export.bundle import Bundle, derive_bundle, open_bundle
from mobile_export.formats import neuralnetwork
from mobile_export.formats.neuralnetwork import program_of, write_network
from mobile_export.interpreter.interpreter import Interpreter
from mobile_export.interpreter.mlprogram import Constant, Operation, Program, Value, open_program
from pocketqa.errors import CorruptFolder, EngineError
from tests.mobile_export.bundles import bundle_of

TARGET = ("--target", "iphone7plus", "--length", "64")


@pytest.fixture(scope="module")
def original() -> Program:
    """The float16 program of the same model and target."""
    return open_program(open_bundle(bundle_of("bert", *TARGET)).package)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(bundle_of("bert", *TARGET, "--scheme", "int8"))


@pytest.fixture
def copy(tmp_path: Path) -> Bundle:
    return open_bundle(shutil.copytree(bundle_of("bert", *TARGET, "--scheme", "int8"), tmp_path / "copy"))


def network_of(bundle: Bundle) -> Any:
    from coremltools.proto import Model_pb2

    model: Any = Model_pb2.Model()
    model.ParseFromString(bundle.package.read_bytes())
    return model


def weights(program: Program) -> dict[str, Any]:
    """The arrays of real numbers."""
    return {
        name: constant.value for name, constant in program.named_constants().items() if constant.value.dtype.kind == "f" and constant.value.size > 1
    }


def test_the_model_loads_before_ios_16_and_keeps_its_contract(bundle: Bundle) -> None:
    model = network_of(bundle)
    assert (model.WhichOneof("Type"), bundle.package.name, bundle.format) == ("neuralNetwork", "TinyBert.mlmodel", "neuralnetwork")
    assert model.specificationVersion == bundle.manifest.config["specification"] <= 6  # iOS 15 loads 6
    (feature,) = model.description.input
    assert (feature.name, list(feature.type.multiArrayType.shape)) == ("input_ids", [1, 64])
    assert feature.type.multiArrayType.dataType == feature.type.multiArrayType.INT32
    assert [feature.name for feature in model.description.output] == ["start_logits", "end_logits"]
    assert model.description.metadata.userDefined["pocketqa.scheme"] == "int8"


def test_matrices_are_stored_in_8_bits_and_the_rest_without_loss(bundle: Bundle, original: Program) -> None:
    stored, exact = weights(program_of(bundle)), weights(original)
    assert list(stored) == list(exact)
    eight_bit = 0
    for name, values in exact.items():
        assert (stored[name].dtype, stored[name].shape) == (values.dtype, values.shape)
        if values.ndim != 2:  # positions, biases, LayerNorm weights
            np.testing.assert_array_equal(stored[name], values)
            continue
        eight_bit += 1
        axis = 0 if name.startswith(("words", "token_types")) else 1  # tables have a scale a column, products one a row
        step = np.ptp(values.astype(np.float64), axis=axis, keepdims=True) / 255
        rounding = np.abs(values).max() * 2.0**-10  # of float16
        assert np.all(np.abs(stored[name].astype(np.float64) - values) <= step / 2 + rounding), name
    assert eight_bit == 15  # two layers of six products, the head, words and token types
    assert bundle.package.stat().st_size < 0.75 * original.path.joinpath("Data/com.apple.CoreML/weights/weight.bin").stat().st_size


def test_our_decoding_is_that_of_coremltools(bundle: Bundle) -> None:
    from coremltools.models.neural_network.quantization_utils import _dequantize_nn_spec

    model, theirs = network_of(bundle), network_of(bundle)
    for layer in theirs.neuralNetwork.layers:  # float16 is no quantisation to it
        kind = layer.WhichOneof("layer")
        for field in ("bias", "scale", "data"):
            params: Any = getattr(getattr(layer, kind), field, None)
            if getattr(params, "float16Value", b""):
                values = np.frombuffer(params.float16Value, "<f2").astype(np.float32)
                params.Clear()
                params.floatValue.extend(values.tolist())
    matrices = [layer for layer in theirs.neuralNetwork.layers if layer.WhichOneof("layer") in ("innerProduct", "embeddingND")]
    del theirs.neuralNetwork.layers[:]
    theirs.neuralNetwork.layers.extend(matrices)
    _dequantize_nn_spec(theirs.neuralNetwork)
    expected = {(slot.layer, slot.field): slot for slot in neuralnetwork._slots(theirs)}
    compared = 0
    for slot in neuralnetwork._slots(model):
        if slot.rows > 1:
            reference = np.array(expected[slot.layer, slot.field].params.floatValue, np.float32)
            np.testing.assert_allclose(neuralnetwork.decode(slot), reference, rtol=0, atol=1e-6)
            compared += 1
    assert compared == 15


def test_the_decoded_program_answers_nearly_as_the_original(bundle: Bundle, original: Program) -> None:
    ids = np.array([[2, *range(10, 30), 3, *range(40, 70), 3, *[0] * 11]], np.int32)
    for exact, found in zip(Interpreter(original).run(ids), Interpreter(program_of(bundle)).run(ids), strict=True):
        difference = np.abs(exact - found)[0, :53]
        assert 0 < difference.max() < 0.1 * np.ptp(exact[0, :53])


@pytest.mark.parametrize("field", ["rawValue", "float16Value"])
def test_a_changed_byte_of_any_array_changes_the_program(copy: Bundle, field: str) -> None:
    before, model = weights(program_of(copy)), network_of(copy)
    slots = [slot for slot in neuralnetwork._slots(model) if getattr(slot.params, field)]
    slot = slots[len(slots) // 2]
    content = bytearray(getattr(slot.params, field))
    content[len(content) // 2 | 1] ^= 0x40  # an odd byte: of a float16 the one with sign and exponent
    setattr(slot.params, field, bytes(content))
    copy.package.write_bytes(model.SerializeToString(deterministic=True))
    after = weights(program_of(copy))
    assert sum(not np.array_equal(before[name], after[name]) for name in before) == 1


def test_every_array_of_the_network_is_a_constant_of_the_program(bundle: Bundle) -> None:
    places = {tuple(place[:2]) for place in json.loads((bundle.path / "weights.json").read_bytes())["constants"].values()}
    large = {(slot.layer, slot.field) for slot in neuralnetwork._slots(network_of(bundle)) if neuralnetwork.decode(slot).size > 1}
    assert large <= places


def test_equal_arrays_keep_a_place_each(original: Program) -> None:
    """Fresh biases are all zero: were both read from one layer, a change of the other would pass unseen."""
    from coremltools.proto import NeuralNetwork_pb2

    def zeros(name: str) -> Operation:
        return Operation("const", name, {}, {"val": Constant(name, "float16", np.zeros(4, np.float16))}, (Value(name, "float16", (4,)),))

    slots = [neuralnetwork.Slot(layer, "bias", 1, NeuralNetwork_pb2.WeightParams(floatValue=[0.0] * 4)) for layer in ("first", "second")]
    places = neuralnetwork._places(replace(original, operations=(zeros("a"), zeros("b"))), slots)
    assert {name: place.layer for name, place in places.items()} == {"a": "first", "b": "second"}


def test_compressing_a_float16_bundle_gives_the_model_of_an_export(bundle: Bundle, tmp_path: Path) -> None:
    parent = open_bundle(bundle_of("bert", *TARGET))
    copy = derive_bundle(parent, tmp_path / "derived", lambda path: write_network(parent.package, path), scheme="int8", compression={})
    assert copy.package.read_bytes() == bundle.package.read_bytes()
    assert (copy.path / "weights.json").read_bytes() == (bundle.path / "weights.json").read_bytes()
    assert copy.manifest == bundle.manifest


def test_several_lengths_stay_several(tmp_path: Path) -> None:
    bundle = open_bundle(bundle_of("distilbert", "--target", "ios15", "--lengths", "32,64", "--scheme", "int8"))
    array = network_of(bundle).description.input[0].type.multiArrayType
    assert {tuple(shape.shape) for shape in array.enumeratedShapes.shapes} == {(1, 32), (1, 64)}
    start, _ = Interpreter(program_of(bundle)).run(np.array([[2, 9, 3, *range(10, 38), 3]], np.int32))
    assert start.shape == (1, 32)


def test_stock_tools_open_it(bundle: Bundle) -> None:
    import coremltools

    model = coremltools.models.MLModel(str(bundle.package), skip_model_load=True)
    assert model.get_spec().WhichOneof("Type") == "neuralNetwork"


@pytest.mark.parametrize("dropped", ["words_to_fp16", "span_head_bias_to_fp16"])  # in the weight file, and in the program itself
def test_a_constant_without_a_place_is_refused(copy: Bundle, dropped: str) -> None:
    document = json.loads((copy.path / "weights.json").read_bytes())
    del document["constants"][dropped]
    (copy.path / "weights.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(CorruptFolder, match=f"place for the constant {dropped}"):
        program_of(copy)


def test_other_models_are_refused(copy: Bundle, original: Program) -> None:
    copy.package.write_bytes((original.path / "Data/com.apple.CoreML/model.mlmodel").read_bytes())
    with pytest.raises(CorruptFolder, match="expected a model of type neuralNetwork, found mlProgram"):
        program_of(copy)
    copy.package.write_bytes(b"\xff\xff")
    with pytest.raises(CorruptFolder, match="not a Core ML model"):
        program_of(copy)


def test_a_constant_that_has_no_place_refuses_the_network(original: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translate = neuralnetwork._translate

    def forgetful(package: Path, specification: Any) -> Any:
        network = translate(package, specification)
        next(slot for slot in neuralnetwork._slots(network) if slot.field == "bias").params.floatValue[0] += 1.0
        return network

    monkeypatch.setattr(neuralnetwork, "_translate", forgetful)
    with pytest.raises(EngineError, match="holds no copy of the constant"):
        write_network(original.path, tmp_path / "x.mlmodel")
    assert list(tmp_path.iterdir()) == []

"""The ONNX graph of each family: what it computes, that its weights are the file's, and the properties that make it quick."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from mobile_export.checkpoint.sources import load_model, read_config
from mobile_export.formats.graph import OPSETS, export_graph
from mobile_export.formats.graph_families import ACTIVATIONS
from mobile_export.networks import parts
from mobile_export.package import package
from pocketqa.errors import FolderError
from pocketqa.folders import ModelFolder
from pocketqa.runtimes import open_runtime, openvino
from pocketqa.types import Batch, SpanLogits
from pocketqa.weights import external_entries, safetensors_header
from tests.packaged import random_batch, workspace
from tests.tiny import MOBILEBERT_VARIANTS, tiny_bert, tiny_distilbert, tiny_mobilebert, tiny_tinybert

LAYERS = 2
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "bert": tiny_bert,
    "distilbert": tiny_distilbert,
    "tinybert": tiny_tinybert,
    "mobilebert": tiny_mobilebert,
}
ENGINES = [("onnxruntime", "fp32"), ("openvino", "fp32"), ("openvino", "bf16")]


@functools.cache
def made(family: str) -> ModelFolder:
    """The model folder of a tiny checkpoint of that family."""
    place = Path(workspace().name) / f"graph-{family}"
    package(str(FAMILIES[family](place / "checkpoint")), place / "model", say=lambda line: None)
    return ModelFolder(place / "model")


def graph_of(folder: ModelFolder) -> onnx.GraphProto:
    return onnx.load(str(folder.graph), load_external_data=False).graph


def largest_difference(a: SpanLogits, b: SpanLogits, batch: Batch) -> float:
    """Over the positions that are no padding."""
    real = batch.mask > 0
    return max(float(np.abs(x - y)[real].max()) for x, y in ((a.start, b.start), (a.end, b.end)))


def assert_equals_pytorch(folder: ModelFolder, engine: str) -> None:
    exact, tested = open_runtime(folder, "pytorch"), open_runtime(folder, engine, precision="fp32", threads=1)
    for rows, length in ((1, 1), (1, 40), (5, 33)):
        batch = random_batch(rows, length, seed=length)  # rows of different lengths
        expected = exact.forward(batch)
        assert largest_difference(expected, tested.forward(batch), batch) < 2e-6 * max(5, np.abs(expected.start).max()), (rows, length)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_equals_pytorch_for_ragged_rows(engine: str, family: str) -> None:
    assert_equals_pytorch(made(family), engine)


@pytest.mark.parametrize("variant", MOBILEBERT_VARIANTS)
def test_variants_of_mobilebert_equal_pytorch(variant: str, tmp_path: Path) -> None:
    package(str(tiny_mobilebert(tmp_path / "checkpoint", **MOBILEBERT_VARIANTS[variant])), tmp_path / "model", say=lambda line: None)
    assert_equals_pytorch(ModelFolder(tmp_path / "model"), "onnxruntime")


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_activations_equal_pytorch(activation: str, tmp_path: Path) -> None:
    source = tiny_bert(tmp_path / "checkpoint")
    config = (source / "config.json").read_text().replace('"hidden_act": "gelu"', f'"hidden_act": "{activation}"')
    (source / "config.json").write_text(config)
    assert f'"{activation}"' in config and set(ACTIVATIONS) == set(parts.ACTIVATIONS)
    package(str(source), tmp_path / "model", say=lambda line: None)
    assert_equals_pytorch(ModelFolder(tmp_path / "model"), "onnxruntime")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_a_row_that_is_all_padding_is_finite_and_harms_no_other(engine: str, precision: str, family: str) -> None:
    if precision == "bf16" and not openvino.computes_bf16():
        pytest.skip("this CPU does not compute bf16")
    runtime = open_runtime(made(family), engine, precision=precision, threads=1)
    batch = random_batch(3, 24)
    others = runtime.forward(batch)
    ids, mask = batch.ids.copy(), batch.mask.copy()
    ids[1], mask[1] = 0, 0
    found = runtime.forward(Batch(ids, batch.token_types, mask))
    assert np.isfinite(found.start).all() and np.isfinite(found.end).all()
    np.testing.assert_array_equal(found.start[[0, 2]], others.start[[0, 2]])


@pytest.mark.parametrize("family", ["bert", "distilbert", "tinybert"])  # a word of MobileBERT is made of its neighbours too, padding or not
def test_padding_gets_no_share_at_all(family: str) -> None:
    """Whatever stands in the padding, the logits are the same to the last bit: exp(MASKED) is zero."""
    runtime = open_runtime(made(family), "onnxruntime", threads=1)
    batch = random_batch(3, 24)
    real = batch.mask > 0
    filled = Batch(np.where(real, batch.ids, 7).astype(np.int32), batch.token_types, batch.mask)
    assert not real.all() and largest_difference(runtime.forward(batch), runtime.forward(filled), batch) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_is_linked_and_none_is_copied(family: str) -> None:
    folder = made(family)
    entries = external_entries(folder.graph)
    assert sorted(entry.name for entry in entries) == sorted(safetensors_header(folder.weights))
    inside = [tensor for tensor in graph_of(folder).initializer if not tensor.external_data]
    assert sum(len(tensor.raw_data) for tensor in inside) < 1000


@pytest.mark.parametrize("family", FAMILIES)
def test_no_shape_is_read_but_the_length(family: str) -> None:
    """Constant shapes, and one mask (B, 1, 1, T) for all layers: nothing is expanded to (B, A, T, T)."""
    graph = graph_of(made(family))
    operators = Counter(node.op_type for node in graph.node)
    assert not {"Expand", "Where", "Equal", "ConstantOfShape", "Unsqueeze"} & set(operators)
    assert [list(node.input) for node in graph.node if node.op_type == "Shape"] == [["input_ids"]]
    constants = {tensor.name for tensor in graph.initializer}
    assert all(node.input[1] in constants for node in graph.node if node.op_type == "Reshape")
    assert sum("attention_mask" in node.input for node in graph.node) == 1 and operators["Softmax"] == LAYERS


@pytest.mark.parametrize("family", FAMILIES)
def test_openvino_fuses_attention_as_well_as_with_fixed_lengths(family: str) -> None:
    """With fixed lengths it fuses the attention of every layer, where the processor has the instructions for it."""
    folder = made(family)
    core = openvino.silent_openvino().Core()
    left = []
    for fixed in (False, True):
        model = core.read_model(str(folder.graph))
        if fixed:
            model.reshape({port.get_any_name(): [1, 384] for port in model.inputs})
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
        kinds = Counter(node.get_rt_info()["layerType"] for node in compiled.get_runtime_model().get_ops())
        left.append({kind: kinds[kind] for kind in ("Softmax", "Select", "Broadcast")})
    assert left[0] == left[1]
    assert left[0]["Select"] == left[0]["Broadcast"] == 0 and left[0]["Softmax"] in (0, LAYERS)


@pytest.mark.parametrize("family", FAMILIES)
def test_operator_sets_differ_in_nothing_but_their_number(family: str, tmp_path: Path) -> None:
    folder = made(family)
    model = load_model(folder.path, read_config(folder.path))
    (tmp_path / "model.safetensors").write_bytes(folder.weights.read_bytes())
    for opset in OPSETS:
        export_graph(model, tmp_path / "model.onnx", tmp_path / "model.safetensors", opset)
        found = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
        assert found.opset_import[0].version == opset and found.graph == graph_of(folder)


def test_weights_that_are_not_those_of_the_model_are_refused(tmp_path: Path) -> None:
    folder = made("bert")
    model = load_model(folder.path, read_config(folder.path))
    name, tensors = "bert.encoder.layer.1.output.dense.weight", load_file(folder.weights)
    for change, message in (
        (tensors[name].astype(np.float32), r"Expected bert\.encoder.*weight as F16 \[32, 128\] in w, found F32"),
        (np.ascontiguousarray(tensors[name].T), r"found F16 \[128, 32\]"),
        (None, "found none"),
    ):
        save_file({key: value for key, value in (tensors | {name: change}).items() if value is not None}, tmp_path / "w")
        with pytest.raises(FolderError, match=message):
            export_graph(model, tmp_path / "model.onnx", tmp_path / "w")
    assert not (tmp_path / "model.onnx").exists()


def test_what_no_graph_is_written_for_is_refused(tmp_path: Path) -> None:
    folder = made("bert")
    model = load_model(folder.path, read_config(folder.path) | {"hidden_act": "silu"})
    with pytest.raises(FolderError, match="activation 'silu' is not one of gelu"):
        export_graph(model, tmp_path / "model.onnx", folder.weights)

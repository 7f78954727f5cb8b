"""`pocketqa package MODEL --form NAME`, run whole on tiny model folders: what it leaves, how it computes, what it refuses and then leaves behind."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from mobile_export.formats import forms_onnx, forms_openvino
from mobile_export.formats.forms import Sample, make_form
from mobile_export.formats.forms_onnx import UNSIGNED, Way, candidates
from mobile_export.package import package
from mobile_export.verification import comparison
from pocketqa import Reader, metrics, squad, statistics
from pocketqa.__main__ import main as pocketqa
from pocketqa.errors import CorruptFolder, DataError, EngineError, FolderError, IncompleteFolder, OptionsError, StaleGraph
from pocketqa.evaluation import judged, predict
from pocketqa.folders import ModelFolder, sha256_file
from pocketqa.golden import Golden, replay
from pocketqa.runtimes import open_runtime
from pocketqa.runtimes.forms import FORMS, find_form
from pocketqa.runtimes.onnx import OnnxRuntime
from pocketqa.types import NoAnswer, Request, SpanLogits
from tests.packaged import checkpoint, copy_of, model_folder, random_batch, workspace
from tests.tiny import tiny_distilbert, tiny_squad

FILES = {"onnx-int8": {"model.onnx", "manifest.json"}, "openvino-int8": {"model.xml", "model.bin", "manifest.json"}}
PRODUCTS = 2 * 6 + 1  # two layers of query, key, value, output and feed-forward twice; the head


@functools.cache
def data(kind: str) -> Path:
    """Questions whose right answers are those of the tiny model itself: whatever a form answers otherwise is a loss."""
    path = tiny_squad(Path(workspace().name) / f"development-{kind}.json", paragraphs=12)
    document = json.loads(path.read_text())
    answers = predict(Reader.open(model_folder(kind), engine="onnxruntime"), squad.load(path)).texts
    for article in document["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                text = answers[entry["id"]]
                entry["answers"] = [{"text": text, "answer_start": paragraph["context"].index(text)}]
    path.write_text(json.dumps(document))
    return path


@pytest.fixture
def quick(monkeypatch):
    """Only one way of quantising is tried."""
    monkeypatch.setattr(forms_onnx, "SMOOTHINGS", (0.8,))
    monkeypatch.setattr(forms_onnx, "WAYS", forms_onnx.WAYS[:1])
    monkeypatch.setattr(forms_openvino, "SMOOTHINGS", (0.85,))


@pytest.fixture
def few_will_do(monkeypatch):
    """A gate is not refused for the few questions of `data`."""
    monkeypatch.setattr(statistics, "RULE_OF_THREE", 0.0)


@functools.cache
def formed(form: str, kind: str) -> Path:
    """A copy of the tiny model folder with that form."""
    path = copy_of(kind, Path(workspace().name) / f"formed-{form}-{kind}")
    make_form(path, form, str(data(kind)), max_f1_loss=60, say=lambda line: None)
    return path


def engine_of(form: str) -> str:
    return next(engine for engine, (name, _) in FORMS.items() if name == form)


@pytest.mark.parametrize("form", FILES)
def test_the_command_run_whole(form, quick, tmp_path, capsys):
    folder = ModelFolder(copy_of("distilbert", tmp_path / "model"))
    before = folder.verify()
    assert pocketqa(["package", str(folder.path), "--form", form, "--data", str(data("distilbert")), "--max-f1-loss", "60"]) == 0
    place = folder.path / "forms" / form
    assert {path.name for path in place.iterdir()} == FILES[form] and os.listdir(place.parent) == [form]
    assert folder.verify() == before
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("F1 loss ") and "95 % interval" in line and "on 36 questions of development-distilbert.json" in line for line in lines)
    assert lines[-1] == f"Next: pocketqa evaluate {folder.path} --data FILE --engine {engine_of(form)} --precision int8"
    manifest = json.loads((place / "manifest.json").read_text())
    assert (manifest["kind"], manifest["name"], manifest["parent"]) == ("form", "tiny-distilbert", sha256_file(folder.weights))
    assert set(manifest["files"]) == FILES[form] - {"manifest.json"}
    gate = manifest["config"]["gate"]
    assert (gate["split"], gate["questions"], gate["max_f1_loss"], gate["sha256"]) == ("development", 36, 60.0, sha256_file(data("distilbert")))
    loss, examples = gate["f1_loss"], squad.load(data("distilbert"))
    exact = 100 * metrics.per_question(predict(Reader.open(folder.path, engine="onnxruntime"), examples).texts, examples)[1].mean()
    assert loss["low"] <= loss["value"] <= loss["high"] < 60 and loss["value"] == pytest.approx(exact - gate["f1"], abs=1e-3)
    assert manifest["config"]["products"] == PRODUCTS


@pytest.mark.parametrize("form", FILES)
def test_evaluate_opens_the_form(form, quick, capsys):
    arguments = ["--data", str(data("distilbert")), "--engine", engine_of(form), "--precision", "int8", "--json"]
    assert pocketqa(["evaluate", str(formed(form, "distilbert")), *arguments]) == 0
    found = json.loads(capsys.readouterr().out)
    gate = json.loads((find_form(ModelFolder(formed(form, "distilbert")), engine_of(form)).parent / "manifest.json").read_text())["config"]["gate"]
    assert found["precision"] == "int8" and found["f1"] == pytest.approx(gate["f1"], abs=1e-3)


@pytest.mark.parametrize(
    ("form", "bf16", "taken"),
    [
        ("openvino-int8", True, ("openvino", "int8")),
        ("openvino-int8", False, ("openvino", "int8")),
        ("onnx-int8", True, ("openvino", "bf16")),
        ("onnx-int8", False, ("onnxruntime", "int8")),
    ],
)
def test_auto_takes_a_form_that_is_there(form, bf16, taken, quick, monkeypatch):
    """int8 in OpenVINO is the quickest, then its bf16, then int8 in ONNX Runtime."""
    opened = []

    class Opened:
        def __init__(self, folder, precision=None, threads=None, form=None):
            opened.append(("openvino", "int8" if form else precision))

    monkeypatch.setattr("pocketqa.runtimes.openvino.computes_bf16", lambda: bf16)
    monkeypatch.setattr("pocketqa.runtimes.openvino.OpenVinoRuntime", Opened)
    folder = ModelFolder(formed(form, "distilbert"))
    runtime = open_runtime(folder)
    assert (opened or [(runtime.info.engine, runtime.info.precision)]) == [taken]
    if form == "onnx-int8":
        assert open_runtime(folder, precision="int8").info.engine == "onnxruntime"  # whatever OpenVINO could do
    assert open_runtime(folder, precision="fp32").info.precision == "fp32"


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("form", FILES)
def test_a_form_is_near_the_model_and_not_the_model(form, kind, quick):
    folder = ModelFolder(formed(form, kind))
    exact, form_runtime = open_runtime(folder, "pytorch"), open_runtime(folder, engine_of(form), precision="int8")
    assert form_runtime.info.precision == "int8"
    for length in (9, 64):
        batch = random_batch(1, length, seed=length)
        expected, found = exact.forward(batch), form_runtime.forward(batch)
        apart = max(np.abs(expected.start - found.start).max(), np.abs(expected.end - found.end).max())
        assert 1e-3 < apart < 0.25 * np.ptp(expected.start)  # the tiny models have no channels to spare
    assert replay(Reader.open(folder.path, engine=engine_of(form), precision="int8"), Golden.load(folder.golden)) == []


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_every_weight_product_is_an_integer_product(kind, quick):
    graph = onnx.load(str(find_form(ModelFolder(formed("onnx-int8", kind)), "onnxruntime"))).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("MatMulInteger") == PRODUCTS and operators.count("MatMul") == 2 * 2  # attention has no weights
    large = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2 and tensor.dims[0] > 2}
    kinds = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in large.values()}
    assert kinds <= {"INT8", "UINT8", "FLOAT16", "FLOAT"}
    floats = [tensor.dims for tensor in large.values() if tensor.data_type == onnx.TensorProto.FLOAT]
    assert [list(dims) for dims in floats] in ([], [[512, 32]])  # positions, which are cut before they are looked up
    size = sum(file.stat().st_size for file in find_form(ModelFolder(formed("onnx-int8", kind)), "onnxruntime").parent.iterdir())
    assert size < 2 * (model_folder(kind) / "model.safetensors").stat().st_size + 100_000


def test_a_window_gets_the_same_logits_whatever_others_are_asked(quick):
    folder = ModelFolder(formed("onnx-int8", "distilbert"))
    reader = Reader.open(folder.path, engine="onnxruntime", precision="int8")
    assert reader.runtime.max_batch == 1
    requests = [
        Request("Where is Anna?", ("Anna is in the kitchen.",)),
        Request("Who is in the attic with the lamp?", ("Bruno is in the attic, he said.",)),
    ]
    together = reader.forward(reader.encode(requests))
    for row, request in enumerate(requests):
        alone = reader.forward(reader.encode([request]))
        np.testing.assert_array_equal(together.start[row, : alone.start.shape[1]], alone.start[0])
    batch = random_batch(2, 40)  # why the rule: one batch has one scale
    first = random_batch(1, 40)
    assert np.abs(reader.runtime.forward(batch).start[0] - reader.runtime.forward(first).start[0]).max() > 1e-4
    assert open_runtime(ModelFolder(formed("openvino-int8", "distilbert")), "openvino", "int8").max_batch is None


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_folding_and_smoothing_change_no_value_in_float32(kind, tmp_path):
    model = ModelFolder(model_folder(kind))
    batch = random_batch(1, 33)
    expected = OnnxRuntime(model).forward(batch)
    folded = forms_onnx.fold(model)
    peaks = forms_onnx._peaks(folded, Sample(model, squad.load(data("distilbert")), seed=0), tmp_path / "peaks.onnx")
    assert len(forms_onnx.products(folded)) == PRODUCTS
    weights = {tensor.name for tensor in folded.graph.initializer}
    assert not [node.name for node in folded.graph.node if node.op_type in ("Cast", "Transpose") and node.input[0] in weights]
    for smoothing in (None, 0.5, 0.9):
        onnx.save(forms_onnx._smoothed(folded, peaks, smoothing), str(tmp_path / "model.onnx"))
        found = OnnxRuntime(model, form=tmp_path / "model.onnx").forward(batch)
        np.testing.assert_allclose(found.start, expected.start, atol=1e-4)
        np.testing.assert_allclose(found.end, expected.end, atol=1e-4)


def test_the_scale_of_smoothing_by_hand():
    scale = forms_onnx._scale(np.array([16.0, 1.0, 0.0], np.float32), [np.array([[1, -4], [0.25, 0], [1, 1]]), np.array([[2.0], [0.1], [9]])], 0.5)
    np.testing.assert_allclose(scale, [4 / 2, 1 / 0.5, 1])


def test_unsigned_weights_come_second_and_only_where_they_are_closer():
    signed, reduced = Way(0.8), Way(0.8, reduced=True)
    unsigned = Way(0.8, UNSIGNED)
    assert candidates({signed: 0.10, reduced: 0.09, unsigned: 0.05}) == [reduced, unsigned]
    assert candidates({signed: 0.04, reduced: 0.30, unsigned: 0.05}) == [signed]
    assert candidates({unsigned: 0.5}) == [unsigned]


def test_the_same_bytes_each_time(tmp_path, quick):
    path = copy_of("distilbert", tmp_path / "model")
    make_form(path, "onnx-int8", str(data("distilbert")), max_f1_loss=60, say=lambda line: None)
    assert sha256_file(path / "forms/onnx-int8/model.onnx") == sha256_file(formed("onnx-int8", "distilbert") / "forms/onnx-int8/model.onnx")


def unfolded(model: ModelFolder) -> onnx.ModelProto:
    """The graph as it stands in the folder, with its weights in it."""
    return onnx.load(str(model.graph))


@pytest.mark.parametrize(("form", "module"), [("onnx-int8", forms_onnx), ("openvino-int8", forms_openvino)])
def test_weights_that_the_quantiser_passes_over_are_refused(form, module, tmp_path, monkeypatch):
    """On an unfolded graph both quantisers skip every weight and say nothing."""
    monkeypatch.setattr(module, "fold", unfolded)
    path = copy_of("distilbert", tmp_path / "model")
    with pytest.raises(
        EngineError, match=rf"Expected {PRODUCTS} products of weights in int8, found \d; left .*MatMul.* and \d+ more\. The form was not"
    ):
        make_form(path, form, str(data("distilbert")), max_f1_loss=60, say=lambda line: None)
    assert not (path / "forms").exists()


def test_a_form_that_fails_its_gate_is_not_kept(tmp_path, quick, few_will_do, capsys):
    path = copy_of("distilbert", tmp_path / "model")
    arguments = [
        "package",
        str(path),
        "--form",
        "onnx-int8",
        "--data",
        str(data("distilbert")),
        "--max-f1-loss",
        "0.0001",
        "--limit",
        "30",
        "--seed",
        "3",
    ]
    assert pocketqa(arguments) == 2
    message = capsys.readouterr().err
    assert "was not kept" in message and "below 0.0001 points" in message and "leave out --limit" in message
    assert "on 30 questions of development-distilbert.json (development split, a sample with seed 3)" in message
    assert not (path / "forms").exists() and ModelFolder(path).verify().name == "tiny-distilbert"


def test_too_few_questions_are_refused_before_any_work(tmp_path):
    path = copy_of("distilbert", tmp_path / "model")
    said: list[str] = []
    with pytest.raises(OptionsError, match="too few questions: 36, at least 500"):
        make_form(path, "onnx-int8", str(data("distilbert")), say=said.append)
    assert said == [] and not (path / "forms").exists()


def test_squad_dev_judges_no_form(tmp_path, monkeypatch):
    ids = sorted(example.id for example in squad.load(data("distilbert")))
    monkeypatch.setattr(comparison, "SQUAD_DEV", hashlib.sha256("\n".join(ids).encode()).hexdigest())
    with pytest.raises(OptionsError, match=r"found the questions of SQuAD dev in .*development-distilbert\.json"):
        make_form(copy_of("distilbert", tmp_path / "model"), "onnx-int8", str(data("distilbert")), limit=9, max_f1_loss=60)


def test_an_earlier_form_stays_where_a_new_one_fails(tmp_path, quick, few_will_do):
    path = shutil.copytree(formed("onnx-int8", "distilbert"), tmp_path / "model")
    with pytest.raises(EngineError, match="was not kept"):
        make_form(path, "onnx-int8", str(data("distilbert")), max_f1_loss=0.0001, say=lambda line: None)
    assert find_form(ModelFolder(path), "onnxruntime").is_file() and os.listdir(path / "forms") == ["onnx-int8"]


def test_a_way_whose_golden_questions_fail_gives_way_to_the_next(tmp_path, few_will_do, monkeypatch):
    from mobile_export.formats import forms

    folder = copy_of("distilbert", tmp_path / "model")
    said: list[str] = []
    tries = iter([["Golden question 'x': expected a, found b."], []])
    monkeypatch.setattr(forms, "replay", lambda *_: next(tries))
    monkeypatch.setattr(forms, "_quantised", lambda engine, model, sample, out, say: map(dict, [[("way", 1)], [("way", 2)]]))
    monkeypatch.setattr(forms, "_open", lambda engine, model, out: OnnxRuntime(model))
    with contextlib.suppress(FolderError, OSError, KeyError):  # nothing was written that a manifest could name
        make_form(folder, "onnx-int8", str(data("distilbert")), say=said.append)
    assert sum("Judging it" in line for line in said) == 2 and any("answers otherwise" in line for line in said)


def test_unanswerable_questions_do_not_dilute_a_gate(tmp_path):
    said: list[str] = []
    examples = squad.load(tiny_squad(tmp_path / "two.json", impossible=True))
    kept = judged(examples, NoAnswer(), said.append)
    assert 0 < len(kept) < len(examples) and not any(example.is_impossible for example in kept) and "left out" in said[0]
    assert judged(examples, NoAnswer(True), said.append) == list(examples)
    with pytest.raises(DataError, match="found none"):
        judged([example for example in examples if example.is_impossible], NoAnswer(), said.append)


def test_a_form_that_answers_the_golden_questions_otherwise_is_not_kept(tmp_path, quick, monkeypatch):
    forward = OnnxRuntime.forward

    def wrong(self: OnnxRuntime, batch):
        logits = forward(self, batch)
        return SpanLogits(logits.start, logits.end[:, ::-1].copy() * 1.5) if self.info.precision == "int8" else logits

    monkeypatch.setattr(OnnxRuntime, "forward", wrong)
    path = copy_of("distilbert", tmp_path / "model")
    with pytest.raises(EngineError, match=r"answers otherwise than the model\. Golden question"):
        make_form(path, "onnx-int8", str(data("distilbert")), max_f1_loss=99, say=lambda line: None)
    assert not (path / "forms").exists()


def test_packaging_again_keeps_forms_of_the_same_weights_and_drops_others(tmp_path, quick, capsys):
    path = shutil.copytree(formed("onnx-int8", "distilbert"), tmp_path / "model")
    assert pocketqa(["package", str(path), "--out", str(path), "--force"]) == 0
    assert find_form(ModelFolder(path), "onnxruntime").is_file() and "Dropping" not in capsys.readouterr().out
    other = tiny_distilbert(tmp_path / "other", seed=1)
    assert pocketqa(["package", str(other), "--out", str(path), "--force"]) == 0
    assert not (path / "forms").exists() and "Dropping the form onnx-int8: it was made from other weights" in capsys.readouterr().out


@pytest.mark.parametrize("form", FILES)
def test_forms_that_are_missing_stale_or_damaged(form, quick, tmp_path):
    engine = engine_of(form)
    folder = ModelFolder(copy_of("distilbert", tmp_path / "model"))
    command = f"pocketqa package {folder.path} --form {form} --data FILE"
    with pytest.raises(IncompleteFolder, match="found none") as missing:
        open_runtime(folder, engine, "int8")
    assert command in str(missing.value)
    shutil.copytree(formed(form, "distilbert") / "forms", folder.path / "forms")
    assert open_runtime(folder, engine, "int8").info.precision == "int8"

    package(str(tiny_distilbert(tmp_path / "other", seed=1)), tmp_path / "changed", say=lambda line: None)
    shutil.copytree(folder.path / "forms", tmp_path / "changed" / "forms")
    with pytest.raises(StaleGraph, match="made from other weights") as stale:
        open_runtime(ModelFolder(tmp_path / "changed"), engine, "int8")
    assert f"pocketqa package {tmp_path / 'changed'} --form {form} --data FILE" in str(stale.value)

    weights = folder.path / "forms" / form / ("model.onnx" if engine == "onnxruntime" else "model.bin")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptFolder, match=f"{weights.name} missing or not what was written") as damaged:
        open_runtime(folder, engine, "int8")
    assert command in str(damaged.value)
    (folder.path / "forms" / form / "manifest.json").write_text("{")
    with pytest.raises(CorruptFolder, match="readable manifest"):
        open_runtime(folder, engine, "int8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "found neither"),
        (["--out", "x", "--form", "onnx-int8"], "found both"),
        (["--form", "onnx-int8"], "--form needs --data FILE"),
        (["--form", "onnx-int8", "--data", "x", "--name", "n", "--force"], "--name, --force cannot be used with --form"),
        (["--out", "x", "--data", "y"], "--data cannot be used with --out"),
        (["--out", "x", "--seed", "5", "--split", "training", "--max-f1-loss", "9"], "--seed, --split, --max-f1-loss cannot be used with --out"),
        (["--form", "onnx-int8", "--data", "x", "--max-f1-loss", "0"], "between 0 and 100 points, found 0"),
    ],
)
def test_options_that_cannot_be(arguments, message, capsys):
    assert pocketqa(["package", str(checkpoint("distilbert")), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_choices_are_not_made_on_squad_dev():
    with pytest.raises(OptionsError, match="not made on SQuAD dev"):
        make_form(model_folder("distilbert"), "onnx-int8", str(data("distilbert")), split="squad-dev")


def test_a_checkpoint_has_no_forms(tmp_path):
    with pytest.raises(IncompleteFolder, match="not a whole model folder"):
        make_form(checkpoint("distilbert"), "onnx-int8", str(data("distilbert")), say=lambda line: None)


def test_json_is_one_line_on_stdout(tmp_path, capsys):
    path = copy_of("distilbert", tmp_path / "model")
    assert pocketqa(["package", str(path), "--form", "onnx-int8", "--data", str(data("distilbert")), "--max-f1-loss", "60", "--json"]) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    assert made["folder"] == str(path / "forms" / "onnx-int8") and made["products"] == PRODUCTS and len(made["tried"]) == 4 + 7
    assert made["distance"] == min(way["distance"] for way in made["tried"] if way["weights"] == made["weights"])
    assert "Quantising" in captured.err

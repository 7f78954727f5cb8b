"""What verification says of sound and of spoilt bundles, and of differences worked out by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_export.bundle import open_bundle
from mobile_export.formats.coreml_runtime import CoreMLRuntime
from mobile_export.verification import artefact, verification
from mobile_export.verification.artefact import Artefact, code_hash, engine_for, reader_of
from mobile_export.verification.comparison import compare_measured, gate, is_squad_dev, psnr
from mobile_export.verification.isolated import IsolatedRuntime
from mobile_export.verification.verification import asked_in_app, check_bundle, span_options, verify_bundle
from pocketqa import squad
from pocketqa.errors import CorruptFolder, DataError, EngineError, IncompleteFolder, OptionsError, VocabularyMismatch
from pocketqa.evaluation import Measured, measure, open_reader
from pocketqa.features import Tokenizer, collate
from pocketqa.types import JSON, NoAnswer, QAExample, Request, RuntimeInfo, Scores, WindowOptions
from tests.mobile_export.bundles import InProcess, bundle_of, copy_of_bundle, edit_program, edit_weight, package_of, reseal
from tests.packaged import model_folder
from tests.tiny import tiny_squad

INTERPRETER = Path(artefact.__file__).parents[1] / "interpreter"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_of_bundle("distilbert", tmp_path / "bundle")


def checked(bundle: Path) -> JSON:
    with InProcess(bundle) as runtime:
        return check_bundle(open_bundle(bundle), runtime)  # type: ignore[arg-type]


# ---- sound bundles


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_sound_bundle_has_no_problems(kind: str) -> None:
    found = checked(bundle_of(kind))
    assert found["problems"] == []
    assert found["golden"]["share"] < 0.01
    assert found["golden"]["questions"] >= 3
    assert (found["non_finite"], found["overflow"], found["hazards"]) == ({}, {}, [])
    assert found["operations"]["linear"] >= 12
    assert found["largest"]
    assert any("Neural Engine" in text for text in found["not_checked"])


def test_an_artefact_answers_as_its_checkpoint(tmp_path: Path) -> None:
    """Logits of the saved program against PyTorch, through the whole reader."""
    examples = squad.load(tiny_squad(tmp_path / "tiny.json", paragraphs=4, questions=3))
    bundle = open_bundle(bundle_of("bert"))
    found = measure(reader_of(bundle), examples, window_options=bundle.window, span_options=span_options(examples, bundle.window, NoAnswer()))
    wanted = measure(
        open_reader(str(model_folder("bert")), "pytorch", "fp32"),
        examples,
        window_options=bundle.window,
        span_options=span_options(examples, bundle.window, NoAnswer()),
    )
    ratio = psnr(np.concatenate((found.start, found.end)), np.concatenate((wanted.start, wanted.end)))
    assert ratio is not None
    assert ratio > 50
    agreement = compare_measured(found, wanted, examples)
    assert all(question["gap"] < 0.2 for question in agreement["differing"])


# ---- spoilt bundles


def test_a_broken_weight_is_named(copy: Path) -> None:
    names: list[str] = []

    def first_linear(block: Any) -> None:
        names.extend(o.inputs["weight"].arguments[0].name for o in block.operations if o.type == "linear")

    edit_program(copy, first_linear)

    def spoil(values: Any) -> None:
        values[3] *= 1.5

    edit_weight(copy, names[4], spoil)
    found = checked(copy)
    assert any(names[4] in problem for problem in found["problems"]), found["problems"]


def test_a_large_change_is_seen_without_a_trace(copy: Path) -> None:
    (copy / "trace.json").unlink(missing_ok=True)
    names: list[str] = []
    edit_program(copy, lambda block: names.extend(o.inputs["weight"].arguments[0].name for o in block.operations if o.type == "linear"))

    def spoil(values: Any) -> None:
        values[:] = values[::-1].copy()

    edit_weight(copy, names[2], spoil)
    found = checked(copy)
    assert any(problem.startswith("Golden question") and "of their spread" in problem for problem in found["problems"])
    assert any("no trace" in text for text in found["not_checked"])


def test_exchanged_heads_are_called_so(copy: Path) -> None:
    def exchange(block: Any) -> None:
        names = {"start_logits": "end_logits", "end_logits": "start_logits"}
        for operation in block.operations:
            for output in operation.outputs:
                output.name = names.get(output.name, output.name)

    (copy / "trace.json").unlink(missing_ok=True)
    found = checked(edit_program(copy, exchange))
    assert any("start_logits and end_logits are exchanged" in problem for problem in found["problems"])
    lossy = checked(reseal(copy, scheme="palette4"))  # a scheme without a tolerance
    assert any("exchanged" in problem for problem in lossy["problems"])


def test_an_unsafe_mask_is_caught(copy: Path) -> None:
    changed = []

    def spoil(block: Any) -> None:
        for operation in block.operations:
            for value in (*operation.attributes.values(), *(a.value for i in operation.inputs.values() for a in i.arguments)):
                data = value.immediateValue.tensor.bytes.values
                if len(data) == 2 and abs(float(np.frombuffer(data, "<f2")[0])) == 1e4:
                    value.immediateValue.tensor.bytes.values = np.array([np.copysign(np.inf, np.frombuffer(data, "<f2")[0])], "<f2").tobytes()
                    changed.append(operation.outputs[0].name)

    found = checked(edit_program(copy, spoil))
    assert changed
    assert any("not finite in float16" in hazard for hazard in found["hazards"])
    assert found["non_finite"]
    assert any("values that are not finite" in problem for problem in found["problems"])


def test_another_vocabulary_is_caught(copy: Path) -> None:
    document = json.loads((copy / "tokenizer.json").read_bytes())
    vocabulary = document["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    (copy / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    problems = checked(reseal(copy))["problems"]
    assert any(problem.startswith("Golden question") and "token ids are others" in problem for problem in problems)
    assert any(problem.startswith("Golden text") for problem in problems)


def test_a_raised_version_is_caught(copy: Path) -> None:
    found = checked(reseal(copy, target="ios15"))
    assert any("specification version must be 6" in problem for problem in found["problems"])


def test_an_unreadable_trace_says_so(copy: Path) -> None:
    (copy / "trace.json").write_text("{", encoding="utf-8")
    with pytest.raises(CorruptFolder, match="trace in JSON"):
        Artefact(reseal(copy)).trace()


# ---- the process


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IsolatedRuntime]:
    """A child whose every opened file is written down by an audit hook of Python's."""
    folder = tmp_path_factory.mktemp("watched")
    log = folder / "opened.txt"
    (folder / "sitecustomize.py").write_text(
        "import os, sys\n"
        f"log = os.open({str(log)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
        "sys.addaudithook(lambda event, args: os.write(log, f'{args[0]}\\n'.encode()) if event == 'open' else None)\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        with IsolatedRuntime(bundle_of("distilbert"), threads=1) as runtime:
            runtime.facts["log"] = str(log)
            yield runtime


def test_the_child_computes_what_the_interpreter_computes(isolated: IsolatedRuntime) -> None:
    bundle = open_bundle(bundle_of("distilbert"))
    here = reader_of(bundle, threads=1)
    encoded = here.encode([Request("Who?", ("The red lamp of Anna is in the kitchen.",))] * 2, bundle.window)
    batch = collate(encoded.windows, 96, here.tokenizer.pad_id)
    there = isolated.forward(batch)
    np.testing.assert_array_equal(there.start, here.runtime.forward(batch).start)
    np.testing.assert_array_equal(there.end, here.runtime.forward(batch).end)
    assert (isolated.lengths, isolated.max_batch) == ((96,), None)
    assert isolated.watch(batch).keys() == Artefact(bundle.path).watch(batch).keys()
    assert isolated.trace() == Artefact(bundle.path).trace()


def test_the_child_reads_the_bundle_and_no_other_model(isolated: IsolatedRuntime) -> None:
    opened = Path(isolated.facts["log"]).read_text(encoding="utf-8").splitlines()
    bundle = bundle_of("distilbert")
    assert str(package_of(bundle) / "Data/com.apple.CoreML/weights/weight.bin") in opened
    models = [path for path in opened if path.endswith((".safetensors", ".onnx", "config.json")) and not path.startswith(str(bundle))]
    assert models == []
    assert not [path for path in opened if path.startswith(str(model_folder("distilbert")))]


def test_errors_of_the_child_arrive_as_they_are(copy: Path) -> None:
    (copy / "vocab.txt").unlink()
    with pytest.raises(IncompleteFolder, match=r"vocab\.txt missing"):
        IsolatedRuntime(copy)


@pytest.mark.parametrize(("ending", "says"), [("os._exit(3)", r"status 3; what it said"), ("os.kill(os.getpid(), 9)", "is there enough memory")])
def test_a_child_that_dies_is_said(ending: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(f"import os\n{ending}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match=says):
        IsolatedRuntime(bundle_of("distilbert"))


# ---- comparison and gate


def measured(texts: list[str], f1: list[float], gaps: list[float], logits: list[float]) -> Measured:
    ids = [str(i) for i in range(len(texts))]
    values = np.array(f1)
    scores = Scores(100 * float((values == 1).mean()), 100 * float(values.mean()), len(texts))
    spans = tuple((0, 0, len(text)) for text in texts)
    both = np.array(logits, dtype=np.float32)
    return Measured(
        dict(zip(ids, texts, strict=True)), spans, np.array(gaps), (values == 1).astype(float), values, scores, both[::2], both[1::2], 1.0
    )


EXAMPLES = [QAExample(str(i), "q", "c", (), title=f"article {i // 2}") for i in range(4)]


def test_differences_are_those_worked_by_hand() -> None:
    reference = measured(["a", "bb", "ccc", "d"], [1, 1, 0.5, 0], [3.0, 0.04, 0.01, 2.0], [8, -6, 4, 2])
    artefact = measured(["a", "b", "cc", "d"], [1, 0.5, 0.5, 0], [3, 3, 3, 3], [8.1, -6, 3.9, 2.2])
    found = compare_measured(artefact, reference, EXAMPLES)
    assert found["f1_loss"]["value"] == pytest.approx(12.5)
    assert found["exact_match_loss"]["value"] == pytest.approx(25)
    assert (found["f1_loss"]["low"], found["f1_loss"]["high"]) == (-100, 100)  # two articles say nothing of others: 12.5 -+ 12.706 x 0.5 / 4
    assert (found["same_spans"], found["differing_count"]) == (50, 2)
    assert [(q["id"], q["gap"], q["reference"], q["artefact"]) for q in found["differing"]] == [("1", 0.04, "bb", "b"), ("2", 0.01, "ccc", "cc")]
    assert found["close_calls"] == {"limit": 0.05, "all": True}
    assert found["max_difference"] == pytest.approx(0.2, abs=1e-6)
    assert found["mean_difference"] == pytest.approx(0.1, abs=1e-6)
    assert found["psnr"] == pytest.approx(20 * np.log10(8 / np.sqrt(0.06 / 4)), abs=0.01)
    surer = compare_measured(artefact, replace(reference, gaps=np.array([3.0, np.inf, 0.01, 2.0])), EXAMPLES)
    assert surer["close_calls"]["all"] is False
    assert surer["differing"][0]["gap"] is None
    json.dumps(surer, allow_nan=False)


def test_the_same_twice_has_no_noise_and_no_loss() -> None:
    same = measured(["a", "b", "c", "d"], [1, 0, 0.5, 1], [1, 1, 1, 1], [1, 2, 3, 4])
    found = compare_measured(same, same, EXAMPLES)
    assert (found["psnr"], found["max_difference"], found["same_spans"], found["differing"]) == (None, 0, 100, [])
    counts = {"questions": 4, "least_questions": 1000}  # four of which none is lost show nothing
    assert gate("fp16", found) == {"limit": 0.3, "f1_loss": {"value": 0, "low": 0, "high": 0}, "passed": False} | counts


@pytest.mark.parametrize(
    ("scheme", "limit", "high", "passed"),
    [("fp16", None, 0.29, True), ("fp16", None, 0.3, False), ("int8", None, 0.59, True), ("int4", 1.0, 1.2, False)],
)
def test_the_gate_is_on_the_upper_end(scheme: str, limit: float | None, high: float, passed: bool) -> None:
    found = gate(scheme, {"count": 1000, "f1_loss": {"value": 0.1, "low": -0.1, "high": high}}, limit)
    assert found is not None
    assert found["passed"] is passed


def test_schemes_without_a_limit_have_no_gate() -> None:
    assert gate("palette4", {"count": 1000, "f1_loss": {"value": 9, "low": 8, "high": 10}}) is None


@pytest.mark.full
def test_squad_dev_is_known_by_its_questions(data_folder: Path) -> None:
    assert is_squad_dev(str(data_folder / "squad" / "dev-v1.1.json"))


def test_questions_that_an_app_refuses_are_left_out(tmp_path: Path) -> None:
    bundle, said = open_bundle(bundle_of("distilbert", "--target", "ios16", "--length", "48")), list[str]()
    tokenizer, most = Tokenizer(bundle.tokenizer), bundle.window.max_question_tokens
    long, fits = (QAExample(name, question, "The lamp is in the hall. " * 9, ()) for name, question in (("long", "where " * 6), ("fits", "Who?")))
    assert tokenizer.count_tokens(fits.question) <= most == 12 < tokenizer.count_tokens(long.question)
    with pytest.raises(OptionsError, match="Raise max_tokens"):  # what asking it all the same comes to
        measure(reader_of(bundle), [long], window_options=bundle.window)
    assert asked_in_app([long, fits], bundle, said.append) == [fits]
    assert said == [f"1 questions of more than 12 tokens are left out: an app with {bundle.path} refuses them"]
    with pytest.raises(DataError, match="at most 12 tokens"):
        asked_in_app([long], bundle, said.append)


def test_other_tokens_are_no_comparison() -> None:
    one, two = (measured(["a"] * 4, [1] * 4, [1] * 4, [1.0] * size) for size in (4, 6))
    with pytest.raises(VocabularyMismatch, match="2 and 3 passage tokens"):
        compare_measured(one, two, EXAMPLES)


# ---- engines


def test_engines_follow_the_format() -> None:
    bundle = open_bundle(bundle_of("distilbert"))
    assert engine_for(bundle) == "interpreter"
    assert engine_for(bundle, "coreml") == "coreml"
    with pytest.raises(OptionsError, match="does not run"):
        engine_for(bundle, "executorch")
    with pytest.raises(OptionsError, match="interpreter, coreml, executorch, found 'tflite'"):
        engine_for(bundle, "tflite")


def test_core_ml_takes_a_window_at_a_time() -> None:
    class Model:
        """Has the interface of coremltools' MLModel."""

        def __init__(self) -> None:
            self.shapes: list[tuple[int, ...]] = []

        def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
            ids = inputs["input_ids"]
            assert ids.dtype == np.int32
            self.shapes.append(ids.shape)
            return {"start_logits": ids * 2.0, "end_logits": ids * 3.0}

    model = Model()
    reader = reader_of(open_bundle(bundle_of("distilbert")))
    windows = reader.encode([Request("Who?", ("Anna is in the hall.",)), Request("Where?", ("Bruno.",))]).windows
    batch = collate(windows, 96, 0)
    logits = CoreMLRuntime(model, (96,), RuntimeInfo("coreml-ne", "macOS 15", "fp16", 1)).forward(batch)
    assert model.shapes == [(1, 96), (1, 96)]
    np.testing.assert_array_equal(logits.start, batch.ids * 2.0)
    np.testing.assert_array_equal(logits.end, batch.ids * 3.0)
    with pytest.raises(EngineError, match="window of 96 tokens: no such unit"):
        CoreMLRuntime(Broken(), (96,), RuntimeInfo("coreml-ne", "macOS 15", "fp16", 1)).forward(batch)


class Broken:
    def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("no such unit")


def test_spans_are_those_that_no_border_cuts() -> None:
    impossible = [replace(EXAMPLES[0], is_impossible=True)]
    assert span_options(EXAMPLES, WindowOptions(), NoAnswer()).max_answer_tokens == 30
    assert span_options(EXAMPLES, WindowOptions(64, 21, 16), NoAnswer()).max_answer_tokens == 11
    assert span_options(impossible, WindowOptions(), NoAnswer(trained=True)).no_answer is True
    assert span_options(impossible, WindowOptions(), NoAnswer()).no_answer is False


def test_the_hash_of_the_code_covers_what_the_interpreter_computes_with() -> None:
    ours = re.compile(r"^from mobile_export\.(\w+(?:\.\w+)?)", re.MULTILINE)
    imported = {name for source in INTERPRETER.glob("*.py") for name in ours.findall(source.read_text(encoding="utf-8"))}
    outside = {name for name in imported if not name.startswith("interpreter.")}
    assert outside <= {"tools", "formats.metadata"}  # these compute nothing in it
    assert len(code_hash()) == 64


def test_results_hold_what_a_run_file_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "IsolatedRuntime", InProcess)
    examples = squad.load(tiny_squad(tmp_path / "tiny.json", paragraphs=2, questions=2))
    found = verify_bundle(open_bundle(bundle_of("distilbert")), examples=examples)
    assert found["passed"] is True
    assert found["results"]["count"] == 4
    assert (found["results"]["agreement"], found["results"]["gate"]) == (None, None)

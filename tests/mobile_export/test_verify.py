"""`pocketqa verify`, run whole on tiny bundles."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_export.export import main as export
from mobile_export.verification import verification
from mobile_export.verify import main
from pocketqa import evaluation, runs
from pocketqa.errors import CorruptFolder, EngineError, IncompleteFolder, OptionsError
from pocketqa.runtimes.pytorch import PyTorchRuntime
from pocketqa.types import JSON, Batch, SpanLogits
from tests.mobile_export.bundles import InProcess, bundle_of, copy_of_bundle, edit_program, edit_weight, package_of, reseal
from tests.packaged import checkpoint, model_folder
from tests.tiny import tiny_mobilebert, tiny_squad

ROOT = Path(__file__).parents[2]
Verify = Callable[..., tuple[int, JSON]]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tiny_squad(tmp_path / "dev.json", paragraphs=6, questions=3))


@pytest.fixture
def verify(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Verify:
    """The command with --json, in this process and with a cache of its own: exit status and document."""
    monkeypatch.setattr(verification, "IsolatedRuntime", InProcess)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

    def run(*words: object) -> tuple[int, JSON]:
        capsys.readouterr()
        status = main([*map(str, words), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def spoilt(path: Path) -> Path:
    """A bundle whose weights are noise, as a scheme so coarse would leave them that no difference of logits is called wrong."""
    copy = copy_of_bundle("distilbert", path)
    (copy / "trace.json").unlink(missing_ok=True)
    names: list[str] = []
    edit_program(copy, lambda block: names.extend(o.inputs["weight"].arguments[0].name for o in block.operations if o.type == "linear"))
    for name in names[:-1]:  # the head's two rows would only be exchanged
        edit_weight(copy, name, lambda values: values.__setitem__(slice(None), np.roll(values, 1, axis=0)))
    return reseal(copy, scheme="palette4")


@pytest.fixture
def no_checkpoint() -> Iterator[None]:
    """Nothing of the model that the bundle was made from is where it was."""
    bundle_of("distilbert")
    folders = [model_folder("distilbert"), checkpoint("distilbert")]
    for folder in folders:
        folder.rename(folder.with_suffix(".away"))
    yield
    for folder in folders:
        folder.with_suffix(".away").rename(folder)


def test_the_whole_command_without_the_checkpoint(tmp_path: Path, data: str, no_checkpoint: None) -> None:
    bundle = copy_of_bundle("distilbert", tmp_path / "elsewhere" / "bundle")
    command = [sys.executable, "-m", "pocketqa", "verify", str(bundle), "--data", data, "--threads", "1", "--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr
    for expected in ("golden vectors", "exact match", "F1", "not checked", "  sound"):
        assert expected in done.stdout
    assert "lost" not in done.stdout


def test_a_bundle_alone_is_checked_in_seconds(verify: Verify) -> None:
    status, document = verify(bundle_of("bert"))
    (report,) = document["bundles"]
    assert (status, document["passed"], report["problems"], report["results"]) == (0, True, [], None)
    assert (report["target"], report["scheme"], report["format"], report["lengths"]) == ("ios16", "fp16", "mlprogram", [96])
    assert report["bytes"]["package"] > report["bytes"]["weights"] > 0


def test_beside_its_checkpoint(verify: Verify, data: str, tmp_path: Path) -> None:
    model = model_folder("bert")
    words = ("--data", data, "--split", "development", "--reference", model, "--run-file", tmp_path / "runs", "--role", "student")
    status, document = verify(bundle_of("bert"), *words)
    (report,) = document["bundles"]
    results, agreement = report["results"], report["results"]["agreement"]
    assert status == (0 if results["gate"]["passed"] else 1)
    assert agreement["psnr"] > 50
    assert agreement["count"] == results["count"] == 18
    assert (results["gate"]["limit"], results["gate"]["questions"], results["gate"]["least_questions"]) == (0.3, 18, 1000)
    (file,) = (tmp_path / "runs").iterdir()
    run = runs.read(file)
    assert run.kind == "verification"
    assert (run.subjects[0].engine, run.subjects[0].precision, run.subjects[0].role) == ("interpreter", "fp16", "student")
    assert run.data[0].split == "development"
    assert run.results["f1"] == results["f1"]
    assert run.results["agreement"]["reference"]["engine"] == "pytorch"
    assert any("Neural Engine" in text for text in run.not_checked)
    reader = evaluation.open_reader(str(model), "pytorch", "fp32")
    assert run.subjects[0].sha256 == reader.model_hash
    lost = runs.compare(run, run).f1  # a verification can be compared question by question
    assert (lost.low, lost.high) == (0, 0)


def test_a_reference_from_elsewhere_may_say_no_answer_where_its_bundle_may(verify: Verify, tmp_path: Path) -> None:
    """As its export was told: the checkpoint itself says nothing of it."""
    source, out = checkpoint("bert"), tmp_path / "bundle"
    export([str(source), "--target", "ios16", "--length", "96", "--no-answer", "--no-answer-threshold", "-100", "--out", str(out)])
    document = json.loads(tiny_squad(tmp_path / "dev.json", paragraphs=6, questions=3).read_text(encoding="utf-8"))
    for paragraph in (paragraph for article in document["data"] for paragraph in article["paragraphs"]):
        for entry in paragraph["qas"]:
            entry |= {"answers": [], "is_impossible": True}
    (tmp_path / "dev.json").write_text(json.dumps(document), encoding="utf-8")
    _, report = verify(out, "--data", tmp_path / "dev.json", "--reference", source, "--max-f1-loss", 50)
    results = report["bundles"][0]["results"]
    assert (results["f1"], results["agreement"]["f1_loss"]["value"]) == (100, 0)  # by a threshold so low, both decline


def test_the_reference_answers_once_for_several_bundles(verify: Verify, data: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = []
    forward = PyTorchRuntime.forward

    def counted(self: PyTorchRuntime, batch: Batch) -> SpanLogits:
        rows.append(batch.shape[0])
        return forward(self, batch)

    other = copy_of_bundle("distilbert", tmp_path / "other")  # its export asks PyTorch too
    monkeypatch.setattr(PyTorchRuntime, "forward", counted)
    words = ("--data", data, "--reference", model_folder("distilbert"), "--no-cache", "--max-f1-loss", 50)
    status, document = verify(bundle_of("distilbert"), other, *words)
    assert [report["bundle"] for report in document["bundles"]] == [bundle_of("distilbert").name, "other"]
    first, second = (report["results"]["agreement"] for report in document["bundles"])
    assert first == second
    assert status == 0
    alone = len(rows)
    verify(bundle_of("distilbert"), *words)
    assert len(rows) == 2 * alone
    verify(bundle_of("distilbert"), *words, "--reference-engine", "onnxruntime")
    assert len(rows) == 2 * alone


def test_a_gate_that_fails_is_status_1(verify: Verify, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = spoilt(tmp_path / "spoilt")
    words = ("--data", data, "--reference", model_folder("distilbert"))
    verify(bundle_of("distilbert"), *words)  # leaves logits of the same windows, which are not this bundle's
    status, document = verify(bundle, *words, "--max-f1-loss", 0.001)
    (report,) = document["bundles"]
    assert (status, report["problems"], report["results"]["gate"]["passed"]) == (1, [], False)
    assert report["results"]["agreement"]["same_spans"] < 100
    assert report["results"]["gate"]["limit"] == 0.001
    status, document = verify(bundle, *words)
    assert (status, document["bundles"][0]["results"]["gate"]) == (0, None)  # palettes have no gate of their own
    assert main([str(bundle), *map(str, words), "--max-f1-loss", "0.001"]) == 1
    printed = capsys.readouterr().out
    for expected in (
        "gate                  FAILED: too few questions: 18, at least 300,000; upper end",
        "  GATE FAILED",
        "became",
        "close calls",
        "MB",
    ):
        assert expected in printed


def test_a_broken_bundle_is_status_1_and_answers_no_questions(verify: Verify, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = reseal(spoilt(tmp_path / "spoilt"), scheme="fp16")
    status, document = verify(bundle, "--data", data, "--run-file", tmp_path / "runs")
    assert (status, document["passed"], document["bundles"][0]["results"]) == (1, False, None)
    assert not (tmp_path / "runs").exists()
    assert main([str(bundle), str(bundle_of("distilbert"))]) == 1
    printed = capsys.readouterr().out
    assert "WRONG: Golden question" in printed
    assert printed.splitlines()[-2].endswith("BROKEN")
    assert printed.splitlines()[-1].endswith("sound")


def test_short_windows_are_asked_what_an_app_with_them_takes(verify: Verify, tmp_path: Path) -> None:
    data = tiny_squad(tmp_path / "short.json", paragraphs=4, questions=3)
    document = json.loads(data.read_text(encoding="utf-8"))
    asked = [entry for article in document["data"] for paragraph in article["paragraphs"] for entry in paragraph["qas"]]
    for number, entry in enumerate(asked):
        entry["question"] = "Who?" if number < 5 else "where " * 30
    data.write_text(json.dumps(document), encoding="utf-8")
    words = ("--data", data, "--reference", model_folder("distilbert"), "--max-f1-loss", 100)
    status, found = verify(bundle_of("distilbert", "--target", "ios16", "--length", "48"), *words)
    assert status == 0 and found["bundles"][0]["results"]["count"] == 5


def test_a_mobilebert_whose_padding_is_felt_is_sound(verify: Verify, tmp_path: Path) -> None:
    """The last [SEP] has [PAD] beside it in a bundle: what the bundle is held against is padded as it is."""
    from safetensors.torch import load_file, save_file

    model = tiny_mobilebert(tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["mobilebert.embeddings.word_embeddings.weight"][0] = 3.0
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    bundle = tmp_path / "bundle"
    assert export([str(model), "--target", "ios16", "--length", "96", "--out", str(bundle)]) == 0
    one = tiny_squad(tmp_path / "one.json", paragraphs=1, questions=1)  # no longer window beside it, to which it would be padded anyway
    _, document = verify(bundle, "--data", one, "--reference", model)
    (report,) = document["bundles"]
    assert report["problems"] == [] and report["golden"]["share"] < 0.01
    assert report["results"]["agreement"]["psnr"] > 50


def test_an_interrupted_run_goes_on(verify: Verify, data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CHUNK", 4)
    words = (bundle_of("distilbert"), "--data", data, "--reference", model_folder("distilbert"), "--max-f1-loss", 50)
    _, straight = verify(*words, "--no-cache")
    counts = {"whole": 0, "second": 0}

    class Interrupted(InProcess):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            whole = self.forward

            def forward(batch: Batch) -> SpanLogits:
                counts["whole"] += 1
                if counts["whole"] == 4:  # one for the golden vectors, two of the data
                    raise KeyboardInterrupt
                return whole(batch)

            self.forward = forward

    class Counted(InProcess):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            whole = self.forward

            def forward(batch: Batch) -> SpanLogits:
                counts["second"] += 1
                return whole(batch)

            self.forward = forward

    monkeypatch.setattr(verification, "IsolatedRuntime", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        verify(*words)
    monkeypatch.setattr(verification, "IsolatedRuntime", Counted)
    _, resumed = verify(*words)
    assert without_times(resumed) == without_times(straight)
    again = counts["second"]
    _, kept = verify(*words)
    assert without_times(kept) == without_times(straight)
    assert counts["second"] - again < again  # nothing but the golden vectors


def without_times(document: JSON) -> JSON:
    for report in document["bundles"]:
        report["results"].pop("seconds", None)
    return document


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    copy = copy_of_bundle("distilbert", tmp_path / "bundle")
    weights = package_of(copy) / "Data/com.apple.CoreML/weights/weight.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CorruptFolder, match=r"weight\.bin differ"):
        main([str(copy)])
    weights.unlink()
    with pytest.raises(IncompleteFolder, match=r"weight\.bin missing"):
        main([str(copy)])
    with pytest.raises(IncompleteFolder, match="pocketqa export"):
        main([str(tmp_path / "nothing")])


def test_options_that_contradict_are_said_at_once(tmp_path: Path, data: str) -> None:
    bundle = str(bundle_of("distilbert"))
    with pytest.raises(OptionsError) as refused:
        main([bundle, bundle, "--limit", "3", "--max-f1-loss", "-1", "--threads", "0", "--compute-unit", "ne", "--run-file", "x.json"])
    for expected in ("--limit needs --data", "needs --reference", "above 0", "at least 1", "--engine coreml", "must be a folder"):
        assert expected in str(refused.value)
    with pytest.raises(OptionsError, match="made from another one"):
        main([bundle, "--data", data, "--reference", str(model_folder("bert"))])
    with pytest.raises(OptionsError, match="does not run"):
        main([bundle, "--engine", "executorch"])


@pytest.mark.skipif(platform.system() == "Darwin", reason="needs macOS not to be there")
def test_core_ml_elsewhere_is_an_error(verify: Verify) -> None:
    with pytest.raises(EngineError, match="on macOS only"):
        verify(bundle_of("distilbert"), "--engine", "coreml", "--compute-unit", "ne")


def test_an_eight_bit_network_is_checked_through_its_program(verify: Verify, data: str) -> None:
    bundle = bundle_of("distilbert", "--target", "ios15", "--scheme", "int8", "--length", "96")
    status, document = verify(bundle, "--data", data, "--reference", model_folder("distilbert"), "--max-f1-loss", 50)
    (report,) = document["bundles"]
    assert (report["format"], report["scheme"], report["problems"]) == ("neuralnetwork", "int8", [])
    assert report["results"]["agreement"]["psnr"] > 20
    assert status == 0
    assert any("layers" in text for text in report["not_checked"])


def test_an_executorch_bundle_runs_in_executorch(verify: Verify, data: str, tmp_path: Path) -> None:
    bundle = bundle_of("distilbert", "--target", "executorch", "--scheme", "fp32", "--length", "96")
    words = ("--data", data, "--reference", model_folder("distilbert"), "--max-f1-loss", 50, "--run-file", tmp_path / "run.json")
    status, document = verify(bundle, *words)
    (report,) = document["bundles"]
    assert (status, report["problems"], report["engine"]["engine"], report["engine"]["precision"]) == (0, [], "executorch", "fp32")
    assert report["results"]["agreement"]["same_spans"] == 100
    assert report["results"]["agreement"]["max_difference"] < 1e-3
    assert runs.read(tmp_path / "run.json").results["operations"] == {}
    shutil.rmtree(tmp_path / "xdg")

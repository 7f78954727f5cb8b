"""`pocketqa compress`, run whole on tiny bundles."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mobile_export.bundle import open_bundle
from mobile_export.compress import main
from mobile_export.compression import mixed
from mobile_export.verification import comparison, isolated, verification
from pocketqa import runs, squad, statistics
from pocketqa.errors import FolderError, OptionsError
from pocketqa.types import JSON
from tests.mobile_export.bundles import InProcess, answer_itself, bundle_of
from tests.tiny import tiny_squad

FILES = {"vocab.txt", "tokenizer.json", "golden.json", "manifest.json"}  # beside the model and what explains it
FEED_FORWARD = {f"layers_{layer}_feed_{side}_weight_to_fp16" for layer in (0, 1) for side in ("in", "out")}
Compress = Callable[..., tuple[int, JSON]]


def parent(target: str) -> Path:
    return bundle_of("distilbert", "--target", target, "--length", "96")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(tiny_squad(tmp_path / "dev.json", paragraphs=4, questions=3))


@pytest.fixture(autouse=True)
def in_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in (isolated, mixed, verification):
        monkeypatch.setattr(module, "IsolatedRuntime", InProcess)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def compress(capsys: pytest.CaptureFixture[str]) -> Compress:
    """The command with --json: exit status and document."""

    def run(*words: object) -> tuple[int, JSON]:
        capsys.readouterr()
        status = main([*map(str, words), "--json"])
        return status, json.loads(capsys.readouterr().out)

    return run


def test_a_smaller_bundle_and_what_is_said_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    assert main([str(parent("ios18")), "--scheme", "int4", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "embeddings in int8: each token reads its row" in said.err
    rows = {line[:22].strip(): line.split()[-1] for line in said.err.splitlines()}
    assert (rows["word embeddings"], rows["feed-forward"], rows["biases, norms, small"]) == ("int8", "int4", "fp16")
    assert f"Wrote {out}: " in said.out and "golden vectors" in said.out and "sound" in said.out
    assert f"Next: pocketqa verify {out} --data DATA.json --reference MODEL" in said.out
    made, before = open_bundle(out), open_bundle(parent("ios18"))
    assert (made.scheme, made.target, made.lengths) == ("int4", before.target, before.lengths)
    assert (made.window, made.model_hash) == (before.window, before.model_hash)
    assert {path.name for path in out.iterdir()} >= FILES | {made.package.name}
    assert (out / "golden.json").read_bytes() == before.golden.read_bytes()


def test_the_loss_of_f1_beside_the_float16_bundle(compress: Compress, data: str, tmp_path: Path) -> None:
    words = (parent("ios16"), "--scheme", "palette6", "--data", data, "--limit", 8, "--run-file", tmp_path / "runs")
    status, document = compress(*words, "--out", tmp_path / "small")
    assert status == 0 and document["questions"] == 8
    (point,) = document["points"]
    assert point["bytes"] == document["bytes"]["weights"] < document["bytes_before"]["weights"]
    assert point["f1_loss"]["low"] <= point["f1_loss"]["value"] <= point["f1_loss"]["high"]
    assert document["verification"]["results"]["count"] == 8
    (file,) = (tmp_path / "runs").iterdir()
    run = runs.read(file)
    assert run.kind == "compression" and run.results["points"] == [point] and run.results["selected"] == 0
    (subject,) = run.subjects
    assert (subject.precision, subject.engine, subject.sha256) == ("palette6", "interpreter", open_bundle(parent("ios16")).model_hash)
    assert (run.data[0].count, run.data[0].split) == (8, "development") and run.not_checked


@pytest.fixture
def few_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RULE_OF_THREE", 0.0)


def test_a_budget_that_is_not_shown_to_be_kept_is_status_1(
    compress: Compress, data: str, tmp_path: Path, few_will_do: None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (parent("ios16"), "--scheme", "palette4", "--data", answer_itself(parent("ios16"), Path(data)), "--max-f1-drop")
    status, document = compress(*words, 0.5, "--out", tmp_path / "none")
    loss = document["points"][0]["f1_loss"]
    assert loss["low"] <= loss["value"] and 0.5 < loss["value"] < loss["high"] < 100
    assert (status, document["passed"], document["out"]) == (1, False, None)
    status, document = compress(*words, (loss["value"] + loss["high"]) / 2, "--out", tmp_path / "between")  # the value is within, the interval not
    assert (status, document["passed"]) == (1, False)
    assert not list(tmp_path.glob("*none*")) + list(tmp_path.glob("*between*"))
    status, document = compress(*words, 200, "--out", tmp_path / "wide")
    assert status == 0 and document["selected"] == 0 and document["passed"]
    before = (tmp_path / "wide" / "manifest.json").read_bytes()
    assert main([*map(str, words), "0.5", "--out", str(tmp_path / "wide"), "--force"]) == 1
    assert "Nothing was written: it is not shown to lose less than 0.5 F1." in capsys.readouterr().out
    assert (tmp_path / "wide" / "manifest.json").read_bytes() == before and open_bundle(tmp_path / "wide").scheme == "palette4"


@pytest.mark.parametrize("scheme", ["int8", "mixed"])
def test_too_few_questions_for_a_budget_are_refused_before_any_work(compress: Compress, data: str, tmp_path: Path, scheme: str) -> None:
    words = (parent("ios16"), "--scheme", scheme, "--data", data, "--max-f1-drop", 0.6, "--out", tmp_path / "out")
    with pytest.raises(OptionsError, match="too few questions: 12, at least 500"):
        compress(*words)
    assert not (tmp_path / "out").exists()


def test_squad_dev_is_not_taken_for_a_development_split(compress: Compress, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = sorted(example.id for example in squad.load(data))
    monkeypatch.setattr(comparison, "SQUAD_DEV", hashlib.sha256("\n".join(ids).encode()).hexdigest())
    words = (parent("ios16"), "--scheme", "palette6", "--data", data, "--limit", 4, "--out", tmp_path / "out", "--run-file", tmp_path / "run.json")
    with pytest.raises(OptionsError, match="holds the questions of SQuAD dev, found --split development"):
        compress(*words)
    assert compress(*words, "--split", "squad-dev")[0] == 0 and runs.read(tmp_path / "run.json").data[0].split == "squad-dev"


def test_mixed_writes_the_smallest_within_the_budget(compress: Compress, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (parent("ios18"), "--scheme", "mixed", "--data", data, "--sample", 3, "--points", 3)
    status, document = compress(*words, "--max-f1-drop", 200, "--out", tmp_path / "mixed", "--run-file", tmp_path / "run.json")
    assert status == 0
    chosen = document["points"][document["selected"]]
    assert chosen["bytes"] == min(point["bytes"] for point in document["points"])
    made = open_bundle(tmp_path / "mixed")
    written = made.manifest.config["compression"]["weights"]
    assert made.scheme == "mixed" and set(written) == {"words_to_fp16", "position_table_to_fp16", *FEED_FORWARD}
    assert chosen["chosen"]["layers_1_feed_in"] == written["layers_1_feed_in_weight_to_fp16"]
    assert set(document["sensitivity"]["words"]) == {"int8", "palette6", "int4", "palette4"}
    run = runs.read(tmp_path / "run.json")
    assert run.results["sensitivity"] == document["sensitivity"] and run.results["max_f1_drop"] == 200
    assert main([str(word) for word in (*words, "--max-f1-drop", 200, "--out", tmp_path / "again")]) == 0  # from the logits that were kept
    said = capsys.readouterr().out
    assert "float16 has F1" in said and "<- the smallest within 200" in said and "on 12 questions" in said


def test_nothing_is_written_where_no_point_is_within_the_budget(
    data: str, tmp_path: Path, few_will_do: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mixed"
    answer_itself(parent("ios16"), Path(data))
    words = [str(parent("ios16")), "--scheme", "mixed", "--data", data, "--sample", "3", "--points", "1", "--max-f1-drop", "1e-9", "--out", str(out)]
    words += ["--run-file", str(tmp_path / "run.json")]
    assert main(words) == 1
    assert runs.read(tmp_path / "run.json").results["selected"] is None
    said = capsys.readouterr().out
    assert not out.exists()
    assert "Nothing was written" in said and "Ask more questions (--limit)" in said


def test_an_iphone_7_plus_gets_the_older_type(compress: Compress, tmp_path: Path) -> None:
    status, _ = compress(parent("iphone7plus"), "--scheme", "int8", "--out", tmp_path / "network")
    made = open_bundle(tmp_path / "network")
    assert status == 0 and made.format == "neuralnetwork" and made.package.suffix == ".mlmodel"
    with pytest.raises(OptionsError, match="--embeddings cannot be chosen for iphone7plus"):
        compress(parent("iphone7plus"), "--scheme", "int8", "--embeddings", "fp16", "--out", tmp_path / "other")


@pytest.mark.parametrize(
    ("target", "words", "says"),
    [
        ("ios16", ["--scheme", "int4"], "The scheme int4 needs the target ios18; found ios16"),
        ("ios16", ["--scheme", "int8", "--embeddings", "int4"], "The scheme int4 needs the target ios18"),
        ("iphone7plus", ["--scheme", "palette4"], "The scheme palette4 needs the target ios16, ios17, ios18; found iphone7plus"),
        ("ios16", ["--scheme", "mixed"], "--scheme mixed needs --max-f1-drop and --data"),
        ("ios16", ["--scheme", "mixed", "--max-f1-drop", "1", "--data", "x.json", "--embeddings", "int8"], "leave --embeddings out"),
        ("ios16", ["--scheme", "int8", "--limit", "3", "--run-file", "x"], "--limit needs --data; --run-file needs --data"),
        ("ios16", ["--scheme", "int8", "--max-f1-drop", "0", "--data", "x.json"], "must be above 0 percent points, found 0"),
        ("ios16", ["--scheme", "int8", "--sparsity", "0.7"], "--sparsity belongs to the scheme sparse"),
        ("ios16", ["--scheme", "sparse", "--sparsity", "1.5"], "between 0 and 1, the share of weights that become zero; found 1.5"),
        ("ios16", ["--scheme", "int8", "--threads", "0", "--points", "0"], "--points must be at least 1, found 0; --threads must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_refused(target: str, words: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(OptionsError) as error:
        main([str(parent(target)), *words, "--out", str(tmp_path / "out")])
    assert says in str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_float16_program_is_refused(compress: Compress, tmp_path: Path) -> None:
    compress(parent("ios16"), "--scheme", "int8", "--out", tmp_path / "small")
    with pytest.raises(OptionsError, match=r"Expected a Core ML bundle of scheme fp16, found int8 \(mlprogram\)"):
        compress(tmp_path / "small", "--scheme", "palette4", "--out", tmp_path / "smaller")


def test_a_bundle_is_never_replaced_by_what_is_made_from_it(compress: Compress, data: str, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(parent("ios16"), tmp_path / "bundle"))
    (tmp_path / "link").symlink_to(bundle)
    before = (bundle / "manifest.json").read_bytes()
    for out in (bundle, bundle / ".." / "bundle", tmp_path / "link", tmp_path):
        with pytest.raises(OptionsError, match="Expected --out to be another folder than the bundle"):
            compress(bundle, "--scheme", "int8", "--data", data, "--max-f1-drop", 1, "--out", out, "--force")
    assert (bundle / "manifest.json").read_bytes() == before and open_bundle(bundle).scheme == "fp16"


def test_a_folder_in_the_way_stays(compress: Compress, tmp_path: Path) -> None:
    out = tmp_path / "small"
    compress(parent("ios16"), "--scheme", "int8", "--out", out)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(FolderError, match="--force"):
        compress(parent("ios16"), "--scheme", "palette4", "--out", out)
    assert (out / "manifest.json").read_bytes() == before
    assert compress(parent("ios16"), "--scheme", "palette4", "--out", out, "--force")[0] == 0
    assert open_bundle(out).scheme == "palette4"

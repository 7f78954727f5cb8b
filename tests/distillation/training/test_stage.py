"""What a training verb leaves: flags, the folder of an unfinished run, and a finish that a kill anywhere does not harm."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForMaskedLM

from distillation.training import card, checkpoints, stage
from distillation.training.keeping import Keeping
from distillation.training.stage import Stage
from pocketqa.errors import TrainingError
from pocketqa.folders import ModelFolder
from pocketqa.types import NoAnswer
from tests.distillation.training.test_checkpoints import tiny_lm
from tests.tiny import tiny_bert

SUMMARY = {"parameters": 1234, "steps": 5, "tokens": 60, "seconds": 7.0, "data": [{"file": "a.txt", "sha256": "0" * 64, "rows": 12}]}


def parsed(*words: str) -> Stage:
    parser = argparse.ArgumentParser()
    Stage.add_flags(parser)
    return Stage.of(parser.parse_args(list(words)))


def test_flags() -> None:
    plain = parsed("--out", "runs/teacher")
    assert plain == Stage(Path("runs/teacher"), "teacher", Keeping(Path("runs/teacher.run")))
    assert (plain.work, plain.keeping.state) == (Path("runs/teacher.run"), Path("runs/teacher.run/state"))
    ways = ["--checkpoint-every", "500", "--keep", "2", "--evaluate-every", "100", "--save-every", "9.5", "--log-every", "0", "--tensorboard"]
    words = ["--name", "N", "--license", "mit", *ways]
    given = parsed("--out", "x", *words, "--run-file", "runs")
    assert given == Stage(Path("x"), "N", Keeping(Path("x.run"), 9.5, 0.0, 500, 2, 100, True), Path("runs"), "mit")


def test_flags_that_make_no_sense_are_all_named() -> None:
    with pytest.raises(TrainingError, match=r"--save-every must be at least 0, found -1.0; --keep must be at least 1, found 0"):
        parsed("--out", "x", "--save-every", "-1", "--keep", "0")


@pytest.mark.parametrize("out", [".", "..", "a/..", "/"])
def test_a_folder_without_a_name_of_its_own_is_refused(out: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parsed("--out", out)
    assert "expected a folder with a name of its own" in capsys.readouterr().err


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    parsed("--out", str(tmp_path))  # empty
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(TrainingError, match="is not empty"):
            parsed("--out", str(path))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_bert(tmp_path_factory.mktemp("source") / "tiny"))


def begun(folder: Path, source: str) -> Stage:
    """A run that has all its steps behind it."""
    made = parsed("--out", str(folder / "out"), "--license", "mit")
    assert made.begin(source) == made.work
    checkpoints.save_state(made.keeping.state, {"model.x": torch.zeros(1)}, {"step": 5})
    return made


def finish(made: Stage, source: str, model: Any) -> None:
    made.finish(model, tokenizer_from=source, parent="parent", summary=SUMMARY, seed=4, no_answer=NoAnswer(True, 0.5))


def test_it_finishes_with_a_whole_folder(tmp_path: Path, source: str) -> None:
    made, model = begun(tmp_path, source), tiny_lm()
    (made.work / ".best.abc.partial").mkdir()  # left by a kill
    checkpoints.save_state(made.keeping.folder / "state.old", {"model.x": torch.zeros(1)}, {"step": 4})
    checkpoints.save_checkpoint(made.work / "checkpoint-4", model, made.work, {})
    finish(made, source, model)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    expected = {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "manifest.json", "README.md", "checkpoint-4"}
    found = {path.name for path in made.out.iterdir()}
    assert expected <= found
    assert found - expected <= {"tokenizer_config.json", "special_tokens_map.json", "generation_config.json"}
    manifest = ModelFolder(made.out).read_manifest()
    assert (manifest.kind, manifest.name, manifest.parent, manifest.seed) == ("checkpoint", "out", "parent", 4)
    assert manifest.no_answer == NoAnswer(True, 0.5)
    assert manifest.config == SUMMARY
    assert "checkpoint-4/model.safetensors" in manifest.files
    assert "license: mit" in (made.out / "README.md").read_text()
    opened = AutoModelForMaskedLM.from_pretrained(made.out).state_dict()
    assert all(torch.equal(opened[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("at", ["leftovers", "card", "write_manifest", "replace"])
def test_a_kill_while_finishing_loses_nothing(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    class Killed(BaseException):
        pass

    def kill(*arguments: object, **named: object) -> None:
        raise Killed

    def kill_last(one: Path, other: Path) -> None:
        if other == made.out:
            raise Killed
        return replace(one, other)

    made, replace = begun(tmp_path, source), os.replace
    place: dict[str, tuple[object, str, object]] = {
        "leftovers": (Stage, "_remove_leftovers", kill),
        "card": (card, "write", kill),
        "write_manifest": (stage, "write_manifest", kill),
        "replace": (os, "replace", kill_last),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*place[at])
        with pytest.raises(Killed):
            finish(made, source, tiny_lm())
    assert not made.out.exists()
    again = parsed("--out", str(tmp_path / "out"))
    again.begin(source)
    assert checkpoints.read_progress(again.keeping.state)["step"] == 5
    finish(again, source, tiny_lm())
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert ModelFolder(again.out).read_manifest().seed == 4


def test_a_source_that_is_not_there_is_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"Expected a tokenizer in .*no-such-folder.*Name a folder"):
        parsed("--out", str(tmp_path / "out")).begin(str(tmp_path / "no-such-folder"))


def test_a_full_disk_while_finishing_is_told_of(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    made, model = begun(tmp_path, source), tiny_lm()
    with monkeypatch.context() as patch:
        patch.setattr(model, "save_pretrained", full)
        with pytest.raises(TrainingError, match=r"No space left on device. What was saved before is untouched"):
            finish(made, source, model)
        patch.setattr(os, "replace", full)
        with pytest.raises(TrainingError, match="make room there"):
            finish(made, source, tiny_lm())
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(TrainingError, match="make room there"):
            made.begin(source)
    finish(made, source, model)
    assert json.loads((made.out / "manifest.json").read_text())["seed"] == 4

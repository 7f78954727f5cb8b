"""States and checkpoint folders: what they hold, tied weights, students beside projections, full disks, flipped bits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForMaskedLM, BertConfig, BertForMaskedLM

from distillation.training import checkpoints
from pocketqa.errors import TrainingError
from pocketqa.folders import ModelFolder, sha256_file
from tests.tiny import flip, tiny_bert


def tiny_lm(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16, pad_token_id=0
    )
    return BertForMaskedLM(config)


def stepped(model: nn.Module) -> torch.optim.AdamW:
    """An optimiser that has moments."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    sum(parameter.square().sum() for parameter in model.parameters()).backward()  # type: ignore[union-attr]
    optimizer.step()
    return optimizer


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoints.state_tensors(model, optimizer).items()}


def test_a_state_comes_back_as_it_was_with_tied_weights_written_once(tmp_path: Path) -> None:
    model = tiny_lm()
    optimizer = stepped(model)
    before = everything(model, optimizer)
    assert "model.cls.predictions.decoder.weight" not in before
    assert sum(name.endswith("exp_avg") for name in before) == len(list(model.parameters()))
    checkpoints.save_state(tmp_path / "state", before, {"step": 3, "loss": 0.1})
    progress = checkpoints.read_progress(tmp_path / "state")
    assert (progress["step"], progress["loss"]) == (3, 0.1)
    other = tiny_lm(seed=1)
    optimizer = stepped(other)
    checkpoints.restore(other, optimizer, checkpoints.read_tensors(tmp_path / "state", progress))
    after = everything(other, optimizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert other.cls.predictions.decoder.weight is other.bert.embeddings.word_embeddings.weight


def test_a_state_of_another_model_is_not_taken(tmp_path: Path) -> None:
    model = tiny_lm()
    tensors = everything(model, stepped(model))
    other = nn.Linear(2, 2)
    with pytest.raises(KeyError, match="under other names"):
        checkpoints.restore(other, torch.optim.AdamW(other.parameters()), tensors)


def test_the_state_before_stays_until_the_next_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"model.x": torch.arange(4.0)}
    checkpoints.save_state(tmp_path / "state", tensors, {"step": 1})

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(TrainingError, match=r"No space left on device. What was saved before is untouched: make room there"):
        checkpoints.save_state(tmp_path / "state", tensors, {"step": 2})
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert checkpoints.read_progress(tmp_path / "state")["step"] == 1
    checkpoints.save_state(tmp_path / "state", tensors, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert checkpoints.read_progress(tmp_path / "state")["step"] == 2


def test_every_flipped_bit_of_progress_is_noticed(tmp_path: Path) -> None:
    checkpoints.save_state(tmp_path / "state", {"model.x": torch.arange(4.0)}, {"step": 10, "identity": "abc", "loss": 0.25})
    path = tmp_path / "state" / "progress.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in (0, 3):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = checkpoints.read_progress(tmp_path / "state")
            except TrainingError as error:
                assert "progress.json is damaged" in str(error)
            else:
                assert chr(whole[place]).isspace()  # between two entries, where nothing is lost
                assert found["step"] == 10


def test_a_state_whose_predecessor_alone_is_there_is_found(tmp_path: Path) -> None:
    assert checkpoints.find_state(tmp_path / "state") is None
    checkpoints.save_state(tmp_path / "state.old", {"model.x": torch.zeros(1)}, {"step": 1})
    assert checkpoints.find_state(tmp_path / "state") == tmp_path / "state.old"
    (tmp_path / "state").mkdir()
    with pytest.raises(TrainingError, match=r"progress\.json is damaged"):
        checkpoints.read_progress(tmp_path / "state")


def test_a_checkpoint_of_a_run_opens_like_any_other_and_holds_the_student_alone(tmp_path: Path) -> None:
    source = tiny_bert(tmp_path / "source")
    run = tmp_path / "name.run"
    run.mkdir()
    checkpoints.save_tokenizer(str(source), run)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = tiny_lm()
            self.projection = nn.Linear(8, 4)

    pair = Pair()
    checkpoints.save_checkpoint(run / "best", pair, run, {"step": 7})
    assert {path.name for path in (run / "best").iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt", "manifest.json"}
    opened = AutoModelForMaskedLM.from_pretrained(run / "best").state_dict()
    assert all(torch.equal(opened[name], value) for name, value in pair.student.state_dict().items())
    manifest = ModelFolder(run / "best").read_manifest()
    assert (manifest.kind, manifest.name, manifest.config["step"]) == ("checkpoint", "name-best", 7)
    expected = {name: value.clone() for name, value in pair.student.state_dict().items()}
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(1.0)
    checkpoints.load_best(run, pair)
    assert all(torch.equal(value, expected[name]) for name, value in pair.student.state_dict().items())
    content = bytearray((run / "best" / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (run / "best" / "model.safetensors").write_bytes(content)
    with pytest.raises(TrainingError, match=r"best/model.safetensors is damaged"):
        checkpoints.load_best(run, pair)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(2, 2)
    checkpoints.save_checkpoint(tmp_path / "best", model, tmp_path, {"step": 1})
    before = sha256_file(tmp_path / "best" / "model.safetensors")

    def full(tensors: object, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with torch.no_grad():
        model.weight.zero_()
    with pytest.raises(TrainingError, match="make room there"):
        checkpoints.save_checkpoint(tmp_path / "best", model, tmp_path, {"step": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert sha256_file(tmp_path / "best" / "model.safetensors") == before
    assert json.loads((tmp_path / "best" / "manifest.json").read_text())["config"]["step"] == 1


def test_the_last_numbered_checkpoints_stay(tmp_path: Path) -> None:
    for step in (500, 1000, 1500, 90):
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-mine").mkdir()
    checkpoints.prune(tmp_path, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1000", "checkpoint-1500", "checkpoint-mine"}


def test_starts_are_left_whole(tmp_path: Path) -> None:
    source = tiny_bert(tmp_path / "source")
    model = tiny_lm()
    checkpoints.save_start(model, str(source), tmp_path / "start", {"step": "student"})
    assert ModelFolder(tmp_path / "start").read_manifest().parent == sha256_file(source / "model.safetensors")
    assert "bert.embeddings.word_embeddings.weight" in load_file(tmp_path / "start" / "model.safetensors")
    with pytest.raises(TrainingError, match="is not empty"):
        checkpoints.save_start(model, str(source), tmp_path / "start", {})


def test_a_start_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_bert(tmp_path / "source")

    def full(*given: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "write_manifest", full)
    with pytest.raises(TrainingError, match=r"Expected to write to .*start, found: .*No space left on device.*make room there"):
        checkpoints.save_start(tiny_lm(), str(source), tmp_path / "start", {"step": "student"})
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_weights_in_several_files_are_named_by_all_of_them(tmp_path: Path) -> None:
    tiny_lm().save_pretrained(tmp_path / "a", max_shard_size="2KB")
    assert len(checkpoints.weight_files(str(tmp_path / "a"))) > 1
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = checkpoints.weights_hash(str(tmp_path / "a"))
    assert first == checkpoints.weights_hash(str(tmp_path / "b"))
    for shard in checkpoints.weight_files(str(tmp_path / "b")):
        flip(shard)
        assert checkpoints.weights_hash(str(tmp_path / "b")) != first
        flip(shard)
    tiny_lm().save_pretrained(tmp_path / "one")
    assert checkpoints.weights_hash(str(tmp_path / "one")) == sha256_file(tmp_path / "one" / "model.safetensors")


def test_a_configuration_counts_in_the_key_and_not_in_the_name_of_a_model(tmp_path: Path) -> None:
    tiny_lm().save_pretrained(tmp_path)
    names, keys = set(), set()
    for epsilon in ("1e-12", "1e-05"):
        (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text().replace("1e-12", epsilon))
        names.add(checkpoints.weights_hash(str(tmp_path)))
        keys.add(checkpoints.model_key(str(tmp_path)))
    assert (len(names), len(keys)) == (1, 2)


def test_a_model_of_the_hub_is_named_by_the_commit_that_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    found = [checkpoints.weights_hash("owner/name")]
    for commit in ("a" * 40, "b" * 40):
        cache = tmp_path / "models--owner--name"
        (cache / "snapshots" / commit).mkdir(parents=True)
        (cache / "snapshots" / commit / "config.json").write_text("{}")
        (cache / "refs").mkdir(exist_ok=True)
        (cache / "refs" / "main").write_text(commit)
        found.append(checkpoints.weights_hash("owner/name"))
    assert len(set(found)) == 3
    assert len(set(map(checkpoints.model_key, ("owner/name", "owner/other", "no/name/of/a/model")))) == 3

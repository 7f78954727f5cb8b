"""Two processes that sum their gradients over gloo, against one: same losses, same weights, and only the main one writes."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertForMaskedLM

from distillation.training import loop, processes
from tests.distillation.small_training import stop, train
from tests.tiny import tiny_bert, tiny_squad

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """What two processes left of the trainings in small_training.main, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distillation.small_training", str(folder)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **{key: str(value) for key, value in environment(rank, port).items()}},
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=280)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], printed
    assert "stopped:" not in printed[1]
    assert "processes" not in printed[1]
    return folder, printed


def environment(rank: int, port: int) -> dict[str, object]:
    """What a launcher sets."""
    return {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


def losses_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = load_file(folder / "state" / "training_state.safetensors")
    return tensors


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_two_processes_have_the_losses_and_weights_of_one(tmp_path: Path, two: tuple[Path, list[str]]) -> None:
    train(tmp_path)
    ours, theirs = losses_of(tmp_path), losses_of(two[0] / "plain")
    assert [line["step"] for line in theirs] == list(range(1, 21))
    for name in ("loss", "loss_ce", "loss_size", "tokens", "lr"):
        assert [line[name] for line in theirs] == pytest.approx([line[name] for line in ours], abs=1e-5)
    assert apart(state_of(tmp_path), state_of(two[0] / "plain")) < 1e-5  # weights and both moments


def test_only_the_main_process_writes(two: tuple[Path, list[str]]) -> None:
    assert {path.name for path in two[0].iterdir()} == {"plain", "dropout", "stopped", "handed-on"}


def test_a_signal_to_one_stops_both_and_they_go_on_bit_for_bit(two: tuple[Path, list[str]]) -> None:
    folder, printed = two
    assert "stopped: Stopped at step 10 of 20" in printed[0]
    assert losses_of(folder / "stopped") == losses_of(folder / "dropout")
    assert apart(state_of(folder / "stopped"), state_of(folder / "dropout")) == 0.0


def test_one_process_goes_on_where_two_stopped(tmp_path: Path, two: tuple[Path, list[str]]) -> None:
    said: list[str] = []
    train(two[0] / "handed-on", say=said.append)
    assert said[0] == "resuming at step 10, with 1 process(es) in place of 2: the same batches, but other dropout"
    train(tmp_path)
    expected = [line["loss"] for line in losses_of(tmp_path)]
    assert [line["loss"] for line in losses_of(two[0] / "handed-on")] == pytest.approx(expected, abs=1e-5)
    assert apart(state_of(tmp_path), state_of(two[0] / "handed-on")) < 1e-5


def test_the_dropout_of_two_processes_differs(two: tuple[Path, list[str]]) -> None:
    first, second = (re.findall(r"^seed (\d+)$", said, re.MULTILINE) for said in two[1])
    assert (first, second) == ([str(loop.step_seed(3, 0, 0))], [str(loop.step_seed(3, 0, 1))])
    assert len({loop.step_seed(3, step, rank) for step in range(3) for rank in range(3)}) == 9


def test_one_process_is_alone() -> None:
    assert (processes.rank(), processes.world(), processes.is_main()) == (0, 1, True)
    assert processes.add({"rows": 2.0}) == {"rows": 2.0}
    assert processes.add_up([{"a": 1.0}, {"a": 2.0, "b": 3.0}, {}]) == {"a": 3.0, "b": 3.0}
    assert processes.from_main("value") == "value"
    weight = nn.Parameter(torch.ones(2))
    processes.sum_gradients([weight])
    assert weight.grad is None
    processes.wait()


def test_a_signal_that_nobody_sends_stops_nothing(tmp_path: Path) -> None:
    with pytest.raises(loop.Stopped):
        train(tmp_path, at={18: stop})
    _, result = train(tmp_path, at={19: stop})  # in the last step there is nothing left to stop
    assert result.steps == 20


@pytest.mark.full
@pytest.mark.parametrize(("launcher", "work"), [("torchrun", "alone"), ("accelerate", "alone"), ("torchrun", "taught"), ("torchrun", "distill")])
def test_launchers(tmp_path: Path, launcher: str, work: str) -> None:
    base, data = tiny_bert(tmp_path / "base"), tiny_squad(tmp_path / "tiny.json", paragraphs=8, questions=4)
    words = ["finetune", str(base), "--data", str(data), "--dev", str(data), "--doc-stride", "16", "--max-question-tokens", "40", "--epochs", "2"]
    if work == "taught":
        words += ["--teacher", str(tiny_bert(tmp_path / "reader", layers=4, seed=1))]
    if work == "distill":
        words = ["distill", *language_teacher(tmp_path / "teacher"), "--tokens", "4000", "--heldout-tokens", "0"]
    exact = ["--max-tokens", "64", "--batch-tokens", "160", "--accumulation", "3", "--dropout", "0", "--precision", "fp32", "--log-every", "0"]
    launch = {
        "one": [sys.executable],
        "torchrun": [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2"],
        "accelerate": [str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
    }
    for name in ("one", launcher):
        command = [*launch[name], "-m", "pocketqa", *words, "--out", str(tmp_path / name / "out"), *exact]  # a cache of its own beside each
        alone = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=alone)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count('"losses"') == 1
        assert ("2 processes, each on cpu, gradients summed by gloo" in done.stderr) == (name != "one")
    one, both = tmp_path / "one" / "out", tmp_path / launcher / "out"
    ours, theirs = losses_of(one), losses_of(both)
    assert len(ours) > 4 and ours[0].keys() > {"alone": {"loss"}, "taught": {"loss_ce", "loss_squad"}, "distill": {"loss_ce", "loss_cos"}}[work]
    assert [line["loss"] for line in theirs] == pytest.approx([line["loss"] for line in ours], abs=1e-5)
    assert apart(load_file(one / "model.safetensors"), load_file(both / "model.safetensors")) < 1e-4


def language_teacher(folder: Path) -> list[str]:
    """A teacher whose language head counts as trained, and text, as `pocketqa distill` takes them."""
    tiny_bert(folder)
    BertForMaskedLM.from_pretrained(folder).save_pretrained(folder)
    text = folder.with_name("text.txt")
    text.write_text("The red lamp of Anna is in the kitchen. The blue chair of Bruno is in the hall.\n\n" * 60)
    return [str(folder), "--corpus", str(text)]

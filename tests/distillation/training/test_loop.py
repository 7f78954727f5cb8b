"""The training loop against a plain one, split in several ways, stopped in several ways; what it refuses and how it says so."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from distillation.training import loop, recipes
from distillation.training.checkpoints import load_best
from distillation.training.recipes import Recipe
from distillation.training.reporting import means
from pocketqa.errors import MissingExtra, TrainingError
from tests.distillation.small_training import RECIPE, Classifier, loss_function, make_batch, plan_of, stop, train


def losses_of(folder: Path) -> list[dict[str, Any]]:
    """Steps and losses of a log, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "tokens_per_second"} for line in lines]


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def apart(one: torch.nn.Module, other: torch.nn.Module) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_it_trains_as_a_plain_loop_does(tmp_path: Path) -> None:
    recipe = replace(RECIPE, clip=0.5, weight_decay=0.1)
    ours, result = train(tmp_path, recipe=recipe)
    theirs = Classifier()
    matrices = [theirs.body[0].weight, theirs.head.weight]
    vectors = [theirs.body[0].bias, *theirs.body[1].parameters(), theirs.head.bias, theirs.rare]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], lr=recipe.learning_rate, betas=(0.9, 0.98), eps=1e-6
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: [0.5, 1.0][step] if step < 2 else (20 - step) / 18)
    losses = []
    for number, step in enumerate(plan_of()):
        rows = sum(len(part) for part in step)
        total = torch.zeros(())
        for part in step:
            batch = make_batch(part, number)
            logits = theirs(batch)
            total = total + (F.cross_entropy(logits, batch.y) + 0.01 * logits.square().sum(dim=1).mean()) * len(part) / rows
        total.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total.item())
    assert [line["loss"] for line in losses_of(tmp_path)] == pytest.approx(losses, abs=1e-6)
    assert apart(ours, theirs) < 1e-5
    assert result.losses["loss"] == pytest.approx(sum(losses[-2:]) / 2, abs=1e-5)
    assert (result.steps, result.tokens) == (20, 20 * 12 * 5)
    assert losses[-1] < losses[0]


def test_a_step_may_be_split_into_more_micro_batches(tmp_path: Path) -> None:
    one, _ = train(tmp_path / "one")
    two, _ = train(tmp_path / "two", split=2)
    assert [a["loss"] for a in losses_of(tmp_path / "one")] == pytest.approx([b["loss"] for b in losses_of(tmp_path / "two")], abs=1e-6)
    assert apart(one, two) < 1e-5


def test_a_term_that_a_step_lacks_counts_as_zero() -> None:
    assert means([{"loss": 1.0}, {"loss": 2.0, "loss_cos": 3.0}]) == {"loss": 1.5, "loss_cos": 1.5}
    assert means([]) == {}


def test_settings_of_trainings_before_a_field_came_are_those_of_now() -> None:
    assert "schedule" not in recipes.settings_of(Recipe()) and recipes.settings_of(Recipe())["warmup"] == 0.06
    assert recipes.settings_of(Recipe(schedule="constant"))["schedule"] == "constant"


def test_learning_rate_by_hand() -> None:
    recipe = Recipe(learning_rate=1.0, warmup=0.2)
    assert [loop.learning_rate(step, 10, recipe) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 0.125]
    assert loop.learning_rate(0, 1, recipe) == 1.0
    constant = replace(recipe, schedule="constant")
    assert [loop.learning_rate(step, 10, constant) for step in (0, 1, 2, 9)] == [0.5, 1.0, 1.0, 1.0]
    assert loop.learning_rate(0, 10, replace(constant, warmup=0.0)) == 1.0


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, loop.LoopResult, list[dict[str, Any]]]:
    """Twenty steps with dropout, never stopped."""
    folder = tmp_path_factory.mktemp("straight")
    model, result = train(folder, dropout=0.2)
    return model, result, losses_of(folder)


def assert_equal(folder: Path, model: Classifier, result: loop.LoopResult, straight: Any) -> None:
    assert same(model, straight[0])
    assert result.losses == straight[1].losses
    assert losses_of(folder) == straight[2]  # bit for bit, each step once


def test_twenty_steps_equal_ten_a_sigterm_and_ten(tmp_path: Path, straight: Any) -> None:
    with pytest.raises(loop.Stopped, match="Stopped at step 10 of 20"):
        train(tmp_path, dropout=0.2, at={10: stop})  # a step of three micro-batches, of which one is computed
    said: list[str] = []
    model, result = train(tmp_path, dropout=0.2, say=said.append)
    assert said[0] == "resuming at step 10"
    assert_equal(tmp_path, model, result, straight)


def test_a_stop_waits_for_a_micro_batch_and_not_for_a_step(tmp_path: Path, straight: Any) -> None:
    computed: list[int] = []

    def attempt(stop_after: int) -> None:
        model = Classifier(0.2)
        loss_of = loss_function(model)

        def counted(batch: Any, counts: Any) -> Any:
            computed.append(len(batch.x))
            if len(computed) == stop_after:
                stop()
            return loss_of(batch, counts)

        keeping = loop.Keeping(tmp_path, save_every=1e9, log_every=0.0)
        result = loop.run(model, plan_of(), make_batch, counted, RECIPE, keeping, "same", say=lambda line: None)
        assert_equal(tmp_path, model, result, straight)

    for after, where in ((2, 0), (3 * 4 + 1, 4)):  # in the very first step; in the first micro-batch of the fifth
        computed.clear()
        with pytest.raises(loop.Stopped, match=f"Stopped at step {where} of 20"):
            attempt(after)
        assert len(computed) == after
    attempt(0)


def test_a_step_of_one_micro_batch_is_finished(tmp_path: Path) -> None:
    model = Classifier()

    def stops(indices: Any, step: int) -> Any:
        stop()
        return make_batch(indices, step)

    plan = [step[:1] for step in plan_of()]
    with pytest.raises(loop.Stopped, match="Stopped at step 1 of 20"):
        loop.run(model, plan, stops, loss_function(model), RECIPE, loop.Keeping(tmp_path), "same", say=lambda line: None)


def test_twenty_steps_equal_ten_a_kill_while_saving_and_ten(tmp_path: Path, straight: Any) -> None:
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from distillation.training import checkpoints\n"
        "from tests.distillation.small_training import train\n"
        "whole, saves = checkpoints.save_file, []\n"
        "def save_file(tensors, path):\n"
        "    whole(tensors, path)\n"
        "    saves.append(path)\n"
        "    if len(saves) == 11:\n"
        "        os.truncate(path, 500)\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoints.save_file = save_file\n"
        "train(Path(sys.argv[1]), dropout=0.2, save_every=0.0)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=Path(__file__).parents[3], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert losses_of(tmp_path)[-1]["step"] == 11  # told of, but not saved
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 1')  # a line that was cut off
    said: list[str] = []
    model, result = train(tmp_path, dropout=0.2, say=said.append)
    assert said[0] == "resuming at step 10"
    assert_equal(tmp_path, model, result, straight)


def test_a_kill_between_the_renames_loses_nothing(tmp_path: Path, straight: Any) -> None:
    with pytest.raises(loop.Stopped):
        train(tmp_path, dropout=0.2, at={9: stop})
    (tmp_path / "state").rename(tmp_path / "state.old")
    with pytest.raises(loop.Stopped, match="step 15"):
        train(tmp_path, dropout=0.2, at={15: stop})
    assert not (tmp_path / "state.old").exists()
    assert_equal(tmp_path, *train(tmp_path, dropout=0.2), straight)


def test_a_full_disk_is_told_of_and_nothing_is_lost(tmp_path: Path, straight: Any) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))  # a file of the state is larger, the log is not

    with pytest.raises(loop.Stopped, match="step 10"):
        train(tmp_path, dropout=0.2, at={10: stop}, log_every=1e9)
    try:
        with pytest.raises(TrainingError, match=r"File too large.*What was saved before is untouched: make room there"):
            train(tmp_path, dropout=0.2, at={14: fill}, save_every=0.0, log_every=1e9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert json.loads((tmp_path / "state" / "progress.json").read_text())["step"] == 14
    assert not list(tmp_path.glob("*.partial"))
    model, result = train(tmp_path, dropout=0.2)
    assert same(model, straight[0])
    assert result.losses == straight[1].losses


@pytest.mark.parametrize(("file", "place"), [("training_state.safetensors", -1), ("training_state.safetensors", 40), ("progress.json", 12)])
def test_a_flipped_bit_in_a_state_is_noticed_and_the_file_named(tmp_path: Path, file: str, place: int) -> None:
    with pytest.raises(loop.Stopped):
        train(tmp_path, at={9: stop})
    path = tmp_path / "state" / file
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=rf"{file} is damaged.*Delete .*state to start this stage again"):
        train(tmp_path)


def test_a_state_without_one_of_its_files_is_damaged_too(tmp_path: Path) -> None:
    with pytest.raises(loop.Stopped):
        train(tmp_path, at={9: stop})
    (tmp_path / "state" / "training_state.safetensors").unlink()
    with pytest.raises(TrainingError, match=r"training_state.safetensors is damaged"):
        train(tmp_path)


def test_a_state_of_another_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(loop.Stopped):
        train(tmp_path, at={9: stop})
    for other in ({"identity": "other"}, {"steps": 19}):
        with pytest.raises(TrainingError, match=r"state belongs to a run with other data, options or starting weights. Give another --out"):
            train(tmp_path, **other)


def test_a_state_of_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(loop.Stopped):
        train(tmp_path, at={9: stop})
    monkeypatch.setattr("tests.distillation.small_training.CLASSES", 4)
    with pytest.raises(TrainingError, match="state is of another model"):
        train(tmp_path)


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil() -> None:
        monkeypatch.setattr(F, "cross_entropy", lambda logits, y, reduction: logits.sum() * math.nan)

    with pytest.raises(TrainingError, match=r"found nan \(loss nan, loss_ce nan, loss_size 0.\d+\) at step 7; the last saved state is in .*state"):
        train(tmp_path, at={7: spoil}, save_every=0.0)
    monkeypatch.undo()
    said: list[str] = []
    train(tmp_path, say=said.append)
    assert said[0] == "resuming at step 7"  # what was saved is sound


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    class Rooted(Classifier):
        def forward(self, batch: Any) -> torch.Tensor:
            return super().forward(batch) + (self.rare * 0).sum().sqrt()  # a finite value with a slope that is not

    model = Rooted()
    with pytest.raises(TrainingError, match="Expected a finite gradient, found a norm of nan"):
        loop.run(model, plan_of(), make_batch, loss_function(model), RECIPE, loop.Keeping(tmp_path), "rooted", say=lambda line: None)
    assert same(model, Rooted())


def test_numbered_checkpoints_and_the_best(tmp_path: Path) -> None:
    scores = iter([1.0, 5.0, 2.0, 5.0, 3.0])
    seen: list[Classifier] = []

    def score(model: Classifier) -> float:
        assert not model.training
        assert not torch.is_grad_enabled()
        value = next(scores)
        if value == 5.0 and not seen:
            seen.append(Classifier())
            seen[0].load_state_dict(model.state_dict())
        return value

    model, result = train(tmp_path, score=score, evaluate_every=4, checkpoint_every=6, keep=2)
    assert (result.best_step, result.best_score) == (8, 5.0)  # the first of two that are equal
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {"checkpoint-12", "checkpoint-18"}
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"model.safetensors", "manifest.json"}
    assert json.loads((tmp_path / "best" / "manifest.json").read_text())["config"]["score"] == 5.0
    assert not same(model, seen[0])
    load_best(tmp_path, model)
    assert same(model, seen[0])
    assert [line["score"] for line in losses_of(tmp_path) if "score" in line] == [1.0, 5.0, 2.0, 5.0, 3.0]
    assert model.training


def test_the_best_is_still_known_after_a_stop(tmp_path: Path) -> None:
    with pytest.raises(loop.Stopped):
        train(tmp_path, at={9: stop}, score=lambda model: 2.0, evaluate_every=4)
    _, result = train(tmp_path, score=lambda model: 1.0, evaluate_every=4)
    assert (result.best_step, result.best_score) == (4, 2.0)


def test_what_a_run_kept_that_was_killed_before_its_first_state_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    for name in ("best", "checkpoint-300"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("of another run")
    train(tmp_path, checkpoint_every=6, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "state") == ["checkpoint-12", "checkpoint-18"]


def test_a_score_that_is_not_finite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="finite development score after step 5, found nan"):
        train(tmp_path, score=lambda model: math.nan, evaluate_every=5)


def test_what_cannot_be_run_is_said_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pocketqa\[train\]"):
        train(tmp_path / "out", tensorboard=True)
    with pytest.raises(TrainingError, match="development data for --evaluate-every"):
        train(tmp_path / "out", evaluate_every=2)
    if not torch.cuda.is_available():
        with pytest.raises(TrainingError, match="a GPU for --precision fp16, found a CPU"):
            train(tmp_path / "out", recipe=replace(RECIPE, precision="fp16"))
    assert not (tmp_path / "out").exists()


def test_a_process_without_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillation.training.processes.world", lambda: 4)
    with pytest.raises(TrainingError, match=r"a micro-batch for each of the 4 processes, found steps of 3. Give --accumulation 4"):
        train(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bf16_is_near_fp32_and_keeps_its_weights_in_fp32(tmp_path: Path) -> None:
    exact, _ = train(tmp_path / "fp32")
    rounded, _ = train(tmp_path / "bf16", recipe=replace(RECIPE, precision="bf16"))
    assert 0 < apart(exact, rounded) < 0.1
    assert {value.dtype for value in rounded.state_dict().values()} == {torch.float32}


def test_fp16_scales_its_loss_and_goes_on_with_the_same_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused on a CPU, which computes it all the same."""
    monkeypatch.setattr(loop, "check", lambda *given: None)
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**20, growth_interval=5))  # the first steps overflow
    half = replace(RECIPE, precision="fp16")
    model, _ = train(tmp_path / "straight", recipe=half, dropout=0.2)
    with pytest.raises(loop.Stopped):
        train(tmp_path / "stopped", recipe=half, dropout=0.2, at={9: stop})
    scale = json.loads((tmp_path / "stopped" / "state" / "progress.json").read_text())["scaler"]["scale"]
    assert 1 < scale < 2.0**20
    assert same(model, train(tmp_path / "stopped", recipe=half, dropout=0.2)[0])
    assert losses_of(tmp_path / "straight")[-1] == losses_of(tmp_path / "stopped")[-1]
    assert not same(model, Classifier(0.2))
    assert all(value.isfinite().all() for value in model.state_dict().values())


@pytest.mark.parametrize(("number", "as_usual"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_second_ctrl_c_acts_as_usual(number: int, as_usual: bool) -> None:
    from distillation.training.processes import StopSignal

    caught: list[int] = []
    before = signal.signal(number, lambda number, frame: caught.append(number))
    try:
        with StopSignal() as asked:
            os.kill(os.getpid(), number)
            assert (asked.asked, caught) == (True, [])
            os.kill(os.getpid(), number)
            assert caught == ([number] if as_usual else [])
    finally:
        signal.signal(number, before)


def test_progress_says_losses_speed_and_time_left(tmp_path: Path) -> None:
    said: list[str] = []
    train(tmp_path, say=said.append)
    assert len(said) == 20
    assert said[0].startswith("step 1/20  loss ")
    assert "tokens/s" in said[0]
    assert said[-1].endswith("0 min 00 s left")


def test_tensorboard_has_the_curves_of_a_resumed_run_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped, unused-ignore]

    with pytest.raises(loop.Stopped):
        train(tmp_path, at={9: stop}, tensorboard=True)
    train(tmp_path, score=lambda model: 0.5, evaluate_every=20, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 21))
    expected = [line["loss"] for line in losses_of(tmp_path) if "loss" in line]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(expected, abs=1e-6)
    assert {"loss_ce", "lr", "gradient_norm", "tokens_per_second", "score"} <= set(events.Tags()["scalars"])

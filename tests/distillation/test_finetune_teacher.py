"""`pocketqa finetune --teacher` whole on tiny models: soft targets from the disk, TinyBERT, patient, several teachers, questions without labels."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from distillation import finetune
from distillation.knowledge.transfer import Trained, Transfer
from distillation.models import modeling
from distillation.models.teachers import reading_teachers
from distillation.questions import question_losses
from distillation.questions.data import NO_TARGET, NegativeOptions, TrainingBatch, to_batch, training_windows, unlabelled_windows
from distillation.questions.finetune_recipe import ReaderRecipe
from distillation.questions.question_losses import loss_function
from distillation.training import recipes
from pocketqa import squad
from pocketqa.errors import TrainingError
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder
from tests.tiny import tiny_base, tiny_bert, tiny_distilbert, tiny_mobilebert, tiny_squad

SMALL = ["--max-tokens", "64", "--doc-stride", "16", "--max-question-tokens", "40", "--batch-tokens", "640", "--epochs", "1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_squad(tmp_path_factory.mktemp("data") / "tiny.json", paragraphs=4, questions=3)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("teacher") / "bert", layers=4)


def tune(model: Path, data: Path, out: Path, *flags: str) -> dict[str, Any]:
    assert finetune.main([str(model), "--data", str(data), "--out", str(out), *SMALL, *flags]) == 0
    config: dict[str, Any] = ModelFolder(out).read_manifest().config
    return config


def test_soft_targets_from_the_disk_are_those_of_the_teacher(
    tmp_path: Path, data: Path, teacher: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = tiny_distilbert(tmp_path / "start", seed=3)
    flags = ["--teacher", str(teacher), "--cache", str(tmp_path / "cache"), "--precision", "fp32"]
    first = tune(start, data, tmp_path / "a", *flags)
    assert "windows to read, once" in capsys.readouterr().err

    def never(sources: object) -> None:
        raise AssertionError("the teacher must not be loaded")

    monkeypatch.setattr(question_losses, "reading_teachers", never)
    second = tune(start, data, tmp_path / "b", *flags)
    assert "logits from the cache" in capsys.readouterr().err
    assert first["losses"] == second["losses"]
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    assert all((a[name] == b[name]).all() for name in a)


def test_soft_targets_from_the_disk_give_the_losses_of_a_teacher_that_runs(
    tmp_path: Path, data: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, second = tiny_distilbert(tmp_path / "start", seed=3), tiny_bert(tmp_path / "second", seed=9)
    flags = ["--teacher", str(teacher), str(second), "--unlabelled", str(data), "--precision", "fp32", "--batch-tokens", "200", "--log-every", "0"]
    tune(start, data, tmp_path / "cached", *flags)
    assert len(list((tmp_path / "teacher-cache").iterdir())) == 2
    monkeypatch.setattr(finetune, "teachers_of", lambda sources, *rest: (reading_teachers(sources), []))
    tune(start, data, tmp_path / "live", *flags)
    ours, theirs = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("cached", "live"))
    assert len(ours) == len(theirs) > 5
    for name in ("loss", "loss_ce", "loss_squad"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], rel=1e-4)


def test_tinybert_intermediate_then_prediction(tmp_path: Path, data: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tiny_distilbert(tmp_path / "start", hidden=16)
    flags = ["--teacher", str(teacher), "--dev", str(data)]
    ways = ["--log-every", "0", "--checkpoint-every", "1"]
    first = tune(start, data, tmp_path / "one", *flags, "--recipe", "tinybert_intermediate", "--learning-rate", "1e-3", *ways)
    assert "layers: 0 from 1, 1 from 3" in (said := capsys.readouterr().err)
    assert "is not scored" in said
    one = tmp_path / "one"
    following = f"pocketqa finetune {one} --teacher {teacher} --data train-v1.1.json --recipe tinybert_prediction --out {one}-reader"
    assert f"next: {following}\n" in said  # neither evaluate nor package takes what has no head
    assert set(first["losses"]) == {"loss", "loss_squad", "loss_hidden", "loss_attention"}
    log = [json.loads(line) for line in (tmp_path / "one" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"]
    (*_, numbered) = (tmp_path / "one").glob("checkpoint-*")
    for folder in (tmp_path / "one", numbered):
        assert not any("qa_outputs" in name or "projection" in name for name in load_file(folder / "model.safetensors"))
    second = tune(tmp_path / "one", data, tmp_path / "two", *flags, "--recipe", "tinybert_prediction")
    assert set(second["losses"]) == {"loss", "loss_ce", "loss_squad"}
    assert second["losses"]["loss"] == pytest.approx(second["losses"]["loss_ce"], abs=1e-4)
    assert "development" in second


def test_a_stopped_run_with_a_teacher_goes_on_bit_for_bit(tmp_path: Path, data: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tiny_distilbert(tmp_path / "start", hidden=16)
    flags = ["--teacher", str(teacher), "--alpha-hidden", "1", "--batch-tokens", "200", "--dropout", "0.1", "--log-every", "0"]
    straight = tune(start, data, tmp_path / "straight", *flags)
    made: list[int] = []

    def stops(*given: Any) -> TrainingBatch:
        made.append(len(made))
        if len(made) == 4:
            signal.raise_signal(signal.SIGTERM)
        return to_batch(*given)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "to_batch", stops)
        assert finetune.main([str(start), "--data", str(data), "--out", str(tmp_path / "resumed"), *SMALL, *flags]) == 143
    assert 0 < json.loads((tmp_path / "resumed.run" / "state" / "progress.json").read_text())["step"] < straight["steps"]
    resumed = tune(start, data, tmp_path / "resumed", *flags)
    assert (resumed["losses"], resumed["tokens"]) == (straight["losses"], straight["tokens"])
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "resumed"))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


def test_patient(tmp_path: Path, data: Path, teacher: Path) -> None:
    start = tiny_distilbert(tmp_path / "start")
    config = tune(start, data, tmp_path / "out", "--teacher", str(teacher), "--recipe", "patient", "--layer-map", "1,-")
    parts = config["losses"]
    expected = 0.7 * parts["loss_ce"] + 0.3 * parts["loss_squad"] + 500 * parts["loss_patient"]
    assert parts["loss"] == pytest.approx(expected, rel=0.02)


def test_several_teachers_and_questions_without_labels(tmp_path: Path, data: Path, teacher: Path) -> None:
    more = tiny_squad(tmp_path / "more.json", paragraphs=2, questions=2, seed=5)
    second = tiny_bert(tmp_path / "second", seed=9)
    start = tiny_mobilebert(tmp_path / "start")
    config = tune(start, data, tmp_path / "out", "--teacher", str(teacher), str(second), "--unlabelled", f"{more}@0.5", "--kl-over-padding")
    assert len(config["teacher"]) == 2
    assert [source.get("unlabelled", False) for source in config["data"]] == [False, True]
    assert config["data"][1]["questions"] == 2
    assert not (tmp_path / "teacher-cache").exists()  # what padding gets is different in every batch


def test_the_loss_of_one_batch(data: Path, teacher: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(teacher / "tokenizer.json")
    recipe = ReaderRecipe(max_tokens=64, doc_stride=16, max_question_tokens=40, negative_windows=0.0, wrong_paragraph=0.0)
    examples = squad.load(str(data))[:4]
    windows = training_windows(examples, tokenizer, recipe.windows(), NegativeOptions(0.0, 0.0), 0)
    unknown = unlabelled_windows(examples[:1], tokenizer, recipe.windows())
    assert {(item.start, item.labelled) for item in unknown} == {(NO_TARGET, False)}
    batch = to_batch([*windows, *unknown], tokenizer.pad_id)
    assert batch.counts == {"rows": len(windows) + len(unknown), "labelled": len(windows), "tokens": batch.tokens}
    student = modeling.load_reader(str(tiny_distilbert(tmp_path / "s"))).eval()
    big = modeling.load_reader(str(teacher)).eval()
    for over_padding in (False, True):
        recipe = ReaderRecipe(kl_over_padding=over_padding)
        loss_of = loss_function(Trained(student, Transfer(student.config, big.config, recipe)), [big], recipe, distilled=True)
        with torch.no_grad():
            parts = {name: value.item() for name, value in loss_of(batch, batch.counts).parts.items()}
            ours, theirs = (model(**modeling.inputs_of(model, batch.ids, batch.mask, batch.token_types)) for model in (student, big))
        gold = kl = 0.0
        for row in range(len(batch.ids)):
            places = torch.ones_like(batch.allowed[row]) if over_padding else batch.allowed[row]
            for side, targets in (("start_logits", batch.starts), ("end_logits", batch.ends)):
                mine, goal = getattr(ours, side)[row].double(), getattr(theirs, side)[row].double()
                p, q = torch.softmax(goal[places] / 2, -1), torch.softmax(mine[places] / 2, -1)
                kl += 4 * float((p * (p / q).log()).sum()) / 2 / len(batch.ids)
                if row < len(windows):
                    allowed = batch.allowed[row]
                    gold += float(mine[allowed].logsumexp(-1) - mine[targets[row]]) / 2 / len(windows)
        assert parts == pytest.approx({"loss": 0.5 * gold + 0.5 * kl, "loss_ce": kl, "loss_squad": gold}, rel=1e-4)


def test_what_does_not_fit_is_refused(tmp_path: Path, data: Path, teacher: Path) -> None:
    start = tiny_distilbert(tmp_path / "start", layers=3)
    common = [str(start), "--data", str(data), "--out", str(tmp_path / "out"), *SMALL]
    with pytest.raises(TrainingError, match="need a --teacher"):
        finetune.main([*common, "--unlabelled", str(data)])
    for ways in (["--unlabelled", str(data)], ["--alpha-squad", "0"], ["--alpha-hidden", "1"]):
        with pytest.raises(TrainingError, match="Losses between layers, --alpha-squad 0 and --unlabelled need a --teacher, found none"):
            finetune.main([*common, "--no-teacher", *ways])
    with pytest.raises(TrainingError, match="--alpha-ce 0 leaves out"):
        finetune.main([*common, "--teacher", str(teacher), "--unlabelled", str(data), "--alpha-ce", "0"])
    with pytest.raises(TrainingError, match=r"cannot be run: --layer-map needs a loss between layers"):
        finetune.main([*common, "--teacher", str(teacher), "--layer-map", "1,2,3"])
    with pytest.raises(TrainingError, match=r"--dev-limit takes a sample of --dev, found none"):
        finetune.main([*common, "--dev-limit", "5"])
    base = tiny_base(tmp_path / "base")
    with pytest.raises(TrainingError, match=r"no trained question-answering head.*pocketqa finetune"):
        finetune.main([*common, "--teacher", str(base)])
    shallow = tiny_bert(tmp_path / "shallow", layers=2)
    with pytest.raises(TrainingError, match="A student of 3 layers cannot learn layer by layer from a teacher of 2"):
        finetune.main([*common, "--teacher", str(shallow), "--alpha-hidden", "1"])
    with pytest.raises(TrainingError, match="must not both be 0"):
        recipes.resolve(ReaderRecipe, None, {"alpha_ce": 0.0, "alpha_squad": 0.0})


@pytest.mark.parametrize(
    ("ways", "named"),
    [
        (["--recipe", "squad_paper"], "--temperature, --alpha-ce, --alpha-squad"),
        (["--recipe", "tinybert_prediction"], "--temperature, --alpha-ce, --alpha-squad"),
        (["--alpha-squad", "0.1", "--temperature", "7", "--layer-map", "9,9,9,9"], "--layer-map, --temperature, --alpha-squad"),
        (["--alpha-hidden", "1"], "--alpha-hidden"),
    ],
)
def test_what_is_said_of_a_teacher_that_is_not_there_is_refused(tmp_path: Path, ways: list[str], named: str) -> None:
    with pytest.raises(TrainingError, match=rf"Expected a --teacher for {named}, found none\. Name one, or leave these out"):
        finetune.main(["no-such-folder", "--data", "none.json", "--out", str(tmp_path / "out"), *ways])


def test_a_recipe_for_a_teacher_serves_without_one_where_that_is_said(tmp_path: Path, data: Path) -> None:
    start = tiny_distilbert(tmp_path / "start")
    config = tune(start, data, tmp_path / "out", "--recipe", "squad_paper", "--no-teacher", *SMALL)
    assert (set(config["losses"]), config["recipe"]["learning_rate"]) == ({"loss"}, 5e-5)


def test_a_teacher_of_too_few_positions_is_refused(tmp_path: Path, data: Path) -> None:
    start, short = tiny_distilbert(tmp_path / "start"), tiny_bert(tmp_path / "short", positions=48)
    with pytest.raises(TrainingError, match=r"Expected 64 positions in .*short, for sequences of --max-tokens .*, found 48\. Lower --max-tokens"):
        tune(start, data, tmp_path / "out", "--teacher", str(short))


@pytest.mark.parametrize("name", ["squad_paper", "tinybert_intermediate", "tinybert_prediction", "patient"])
def test_presets_read(name: str) -> None:
    assert recipes.resolve(ReaderRecipe, name, {}).problems() == []

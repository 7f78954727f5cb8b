"""`pocketqa finetune --task` and `evaluate --task` run whole on tiny models: what they leave, that they learn, resume, choose and refuse."""

from __future__ import annotations

import json
import math
import random
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from distillation import classify, evaluate, finetune
from distillation.glue import task_data, task_losses, task_model
from distillation.glue.classification import TASKS, TaskBatch
from distillation.glue.task_recipe import TaskRecipe
from distillation.questions.teacher_cache import LOGITS
from distillation.training import processes
from distillation.training.stage import Stage
from pocketqa import report, runs
from pocketqa.errors import DataError, OptionsError, TrainingError, VocabularyMismatch
from pocketqa.folders import ModelFolder
from tests.tiny import flip, tiny_bert, tiny_distilbert, tiny_mobilebert

SMALL = ["--max-tokens", "32", "--batch-tokens", "512", "--batch-rows", "8", "--precision", "fp32", "--learning-rate", "2e-3", "--dropout", "0"]
LEFT = {
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt", "manifest.json",
    "log.jsonl", "README.md",
}  # fmt: skip


def glue(folder: Path, task: str = "sst2", count: int = 48) -> Path:
    """Sentences that are positive where something is red; for STS-B, pairs whose score is the number of words that they share."""
    pick = random.Random(1)
    for split, many in (("train", count), ("dev", count // 2)):
        rows = ["sentence1\tsentence2\tlabel" if task == "stsb" else "sentence\tlabel"]
        for _ in range(many):
            words = [pick.choice(["red", "blue"]), pick.choice(["lamp", "chair"]), pick.choice(["here", "there"])]
            label: object = int(words[0] == "red")
            if task == "stsb":
                other = [pick.choice(["red", "blue"]), pick.choice(["lamp", "chair"]), pick.choice(["here", "there"])]
                label = f"{sum(a == b for a, b in zip(words, other, strict=True))}.5\t".rstrip("\t")
                rows.append(f"{' '.join(words)}\t{' '.join(other)}\t{label}")
            else:
                rows.append(f"the {' '.join(words)}\t{label}")
        path = folder / task / f"{split}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glue")
    for task in ("sst2", "stsb"):
        glue(folder, task)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    command = [str(tiny_bert(folder / "reader")), "--task", "sst2", "--data", str(data), "--out", str(folder / "sst2"), "--epochs", "8", *SMALL]
    assert classify.main([*command, "--role", "teacher", "--run-file", str(folder / "runs")]) == 0
    return folder


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# ---- losses


def batch(labels: torch.Tensor, teacher: torch.Tensor | None = None) -> TaskBatch:
    ids = torch.zeros((len(labels), 1), dtype=torch.long)
    return TaskBatch(ids, ids, ids, labels, teacher, len(labels))


def test_losses_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs, labels = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    gold = math.log(1 + math.exp(-2)) + math.log(2)
    assert task_losses.gold_loss(outputs, labels, TASKS["rte"]).item() == pytest.approx(gold)
    teacher = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-2))  # of the likelier class at temperature 2
    kl = (0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p))) + (q * math.log(q / 0.5) + (1 - q) * math.log((1 - q) / 0.5))
    assert task_losses.soft_loss(outputs, teacher, TASKS["rte"], 2.0).item() == pytest.approx(4 * kl)
    scores, right, said = torch.tensor([[1.0], [3.0]]), torch.tensor([2.0, 5.0]), torch.tensor([[1.5], [3.0]])
    assert task_losses.gold_loss(scores, right, TASKS["stsb"]).item() == 5.0
    assert task_losses.soft_loss(scores, said, TASKS["stsb"], 2.0).item() == 0.25
    monkeypatch.setattr(task_losses, "outputs_of", lambda model, item: outputs[: len(item.labels)])
    recipe = TaskRecipe(alpha_ce=0.25, alpha_gold=0.75, temperature=2.0)
    loss_of = task_losses.loss_function(torch.nn.Identity(), TASKS["rte"], recipe)
    terms = loss_of(batch(labels, teacher), {"rows": 8.0})
    assert terms.total.item() == pytest.approx((0.25 * 4 * kl + 0.75 * gold) / 8)
    assert set(terms.parts) == {"loss", "loss_ce", "loss_gold"}
    alone = loss_of(batch(labels), {"rows": 2.0})
    assert alone.total.item() == pytest.approx(gold / 2)  # without a teacher the labels weigh 1


# ---- whole runs


def test_from_a_reader_to_a_teacher_to_a_student_and_a_report(tmp_path: Path, data: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.name for path in (teacher / "sst2").iterdir()} == LEFT
    assert logged(teacher / "sst2")[-1]["loss"] < 0.3
    start = tiny_distilbert(tmp_path / "start")
    folder = str(teacher / "runs")
    common = [str(start), "--task", "sst2", "--data", str(data), *SMALL, "--run-file", folder, "--epochs", "2"]
    assert classify.main([*common, "--out", str(tmp_path / "student"), "--role", "student", "--teacher", str(teacher / "sst2")]) == 0
    assert finetune.main([*common, "--out", str(tmp_path / "control"), "--role", "control"]) == 0  # the verb itself
    printed = capsys.readouterr()
    assert f"teacher {teacher / 'sst2'}: 48 examples to read, once, into {tmp_path / 'teacher-cache'}" in printed.err
    assert "the last epoch is taken" in printed.err
    assert {path.name for path in (tmp_path / "student").iterdir()} == LEFT
    assert {"loss", "loss_ce", "loss_gold"} <= logged(tmp_path / "student")[-1].keys()
    manifest = ModelFolder(tmp_path / "student").read_manifest()
    assert manifest.config["task"] == "sst2"
    assert manifest.config["teacher"] == ModelFolder(teacher / "sst2").read_manifest().files["model.safetensors"]
    assert json.loads((tmp_path / "student" / "config.json").read_text())["id2label"] == {"0": "0", "1": "1"}

    found = runs.read_all(folder)
    kinds = sorted((run.kind, run.name) for run in found.values())
    assert kinds == sorted((kind, f"sst2 {role} seed 0") for kind in ("classification", "training") for role in ("teacher", "student", "control"))
    out = tmp_path / "RESULTS.md"
    assert report.main(["--runs", folder, "--out", str(out), "--no-readme"]) == 0
    page = out.read_text(encoding="utf-8").split("## Classification")[1]
    student = next(line for line in page.splitlines() if line.startswith("| SST-2 | 24 | student |"))
    assert "not measured" not in student

    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "student"), "--task", "SST-2", "--data", str(data), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["score"], again["count"]) == (manifest.config["development"]["score"], 24)
    path = tmp_path / "again.json"
    assert evaluate.main([str(tmp_path / "student"), "--task=sst2", "--data", str(data / "sst2" / "dev.tsv"), "--run-file", str(path)]) == 0
    assert runs.read(path).results["metrics"] == manifest.config["development"]["metrics"]


def test_stsb_is_learnt_as_a_number(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tiny_bert(tmp_path / "start")
    common = ["--task", "stsb", "--data", str(data), *SMALL]
    assert classify.main([str(start), *common, "--out", str(tmp_path / "teacher"), "--epochs", "6"]) == 0
    command = [str(tmp_path / "start"), *common, "--teacher", str(tmp_path / "teacher"), "--out", str(tmp_path / "student"), "--epochs", "1"]
    assert classify.main(command) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(made["development"]["metrics"]) == {"pearson", "spearman"}
    first = made["losses"]
    assert first["loss"] == pytest.approx(0.5 * first["loss_ce"] + 0.5 * first["loss_gold"], rel=1e-3)


def test_seeds_are_trained_once_each_and_give_a_median(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tiny_distilbert(tmp_path / "start")
    common = [str(start), "--task", "sst2", "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "1", *SMALL]
    assert classify.main([*common, "--seeds", "1", "2"]) == 0
    capsys.readouterr()
    assert classify.main([*common, "--seeds", "1", "2", "3", "--run-file", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("is finished already") == 2
    made = [json.loads(line) for line in printed.out.splitlines()]
    scores = sorted(one["development"]["score"] for one in made)
    assert f"median of 3 seeds: {scores[1]:.2f}" in printed.err
    assert [one["recipe"]["seed"] for one in made] == [1, 2, 3]
    assert {ModelFolder(tmp_path / "out" / f"seed-{seed}").read_manifest().name for seed in (1, 2, 3)} == {"out"}
    weights = [load_file(tmp_path / "out" / f"seed-{seed}" / "model.safetensors")["classifier.weight"] for seed in (1, 2)]
    assert (weights[0] != weights[1]).any()
    assert printed.err.count("its score is not in ") == 2  # the first call kept no run files
    again = ["--task", "sst2", "--data", str(data), "--role", "out", "--run-file", str(tmp_path / "runs")]
    assert f"pocketqa evaluate {shlex.join([str(tmp_path / 'out' / 'seed-1'), *again])}" in printed.err
    assert evaluate.main([str(tmp_path / "out" / "seed-1"), *again]) == 0
    ours, later = (
        next(run for run in runs.read_all(tmp_path / "runs").values() if (run.kind, run.results.get("seed")) == ("classification", seed))
        for seed in (3, 1)
    )
    assert later.subjects[0].role == ours.subjects[0].role
    assert [later.results[key] for key in ("start", "teacher", "settings", "max_tokens")] == [
        ours.results[key] for key in ("start", "teacher", "settings", "max_tokens")
    ]


def test_a_teacher_is_run_once_for_all_seeds(tmp_path: Path, data: Path, teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tiny_distilbert(tmp_path / "start")
    common = [str(start), "--task", "sst2", "--data", str(data), *SMALL, "--epochs", "0.5", "--teacher", str(teacher / "sst2")]
    assert classify.main([*common, "--out", str(tmp_path / "out"), "--seeds", "1", "2"]) == 0
    said = capsys.readouterr().err
    assert (said.count("48 examples to read, once"), said.count("from the cache")) == (1, 1)
    (kept,) = (tmp_path / "teacher-cache").iterdir()
    assert {path.name for path in (tmp_path / "out" / "seed-2").iterdir()} == LEFT
    rows = np.fromfile(kept / LOGITS, dtype="<f4").reshape(48, 2)
    tokenizer = AutoTokenizer.from_pretrained(teacher / "sst2")
    first = (data / "sst2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1].split("\t")[0]
    with torch.no_grad():
        own = AutoModelForSequenceClassification.from_pretrained(teacher / "sst2").eval()(**tokenizer(first, return_tensors="pt")).logits[0]
    assert rows[0] == pytest.approx(own.numpy(), abs=1e-4)
    flip(kept / LOGITS)
    with pytest.raises(TrainingError, match=r"teacher cache .* is damaged: expected sha256 .*Delete"):
        classify.main([*common, "--out", str(tmp_path / "other"), "--cache", str(kept.parent)])


def test_a_finished_seed_of_other_settings_data_or_models_is_refused(tmp_path: Path, data: Path, teacher: Path) -> None:
    start, other = tiny_distilbert(tmp_path / "start"), tiny_distilbert(tmp_path / "other", seed=1)
    common = [str(start), "--task", "sst2", "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "0.5", *SMALL, "--seeds", "1"]
    assert classify.main(common) == 0
    assert classify.main([*common, "--log-every", "1", "--role", "student"]) == 0  # neither changes what was trained
    glue(tmp_path / "fewer", count=40)
    for change, named in (
        (["--learning-rate", "1e-3"], r"--learning-rate \(there 0\.002, here 0\.001\)"),
        (["--teacher", str(teacher / "sst2")], r"--teacher \(there None, here "),
        (["--data", str(tmp_path / "fewer")], r"--data \(there .*--dev \(there "),
    ):
        with pytest.raises(TrainingError, match=rf"out/seed-1 was trained with other settings, data or models than this call has: {named}.*delete"):
            classify.main([*common, *change])
    with pytest.raises(TrainingError, match="this call has: MODEL "):
        classify.main([str(other), *common[1:]])


def test_a_mobilebert_is_trained_too(tmp_path: Path, data: Path) -> None:
    start = tiny_mobilebert(tmp_path / "start")
    assert classify.main([str(start), "--task", "sst2", "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "0.5", *SMALL]) == 0
    assert evaluate.main([str(tmp_path / "out"), "--task", "sst2", "--data", str(data)]) == 0


def test_an_interrupted_training_goes_on_exactly(tmp_path: Path, data: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = tiny_distilbert(tmp_path / "start")
    common = [str(start), "--task", "sst2", "--data", str(data), *SMALL, "--dropout", "0.1", "--epochs", "2", "--teacher", str(teacher / "sst2")]
    common += ["--save-every", "0"]
    assert classify.main([*common, "--out", str(tmp_path / "straight")]) == 0
    whole, calls = task_data.to_batch, []

    def dies(*arguments: object) -> TaskBatch:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(classify, "to_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        classify.main([*common, "--out", str(tmp_path / "resumed")])
    assert not (tmp_path / "resumed").exists()
    monkeypatch.setattr(classify, "to_batch", whole)
    monkeypatch.setattr(classify, "predict", None)  # the teacher's outputs are there already
    monkeypatch.setattr(task_model, "predict", None)
    with pytest.raises(TypeError):  # the development score needs it, at the end
        classify.main([*common, "--out", str(tmp_path / "resumed")])
    monkeypatch.undo()
    edited = shutil.copytree(data / "sst2", tmp_path / "edited" / "sst2")
    (edited / "train.tsv").write_text((edited / "train.tsv").read_text().replace("lamp", "chair", 1))
    other = tiny_distilbert(tmp_path / "other", seed=9)
    for words in ([*common, "--learning-rate", "1e-5"], [*common, "--data", str(edited.parent)], [str(other), *common[1:]]):
        with pytest.raises(TrainingError, match="other data, options or starting weights"):
            classify.main([*words, "--out", str(tmp_path / "resumed")])
    assert classify.main([*common, "--out", str(tmp_path / "resumed")]) == 0
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "resumed"))
    assert all((first[name] == second[name]).all() for name in first)


def test_the_best_epoch_is_chosen_on_held_out_training_data(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = tiny_distilbert(tmp_path / "start")
    command = [str(start), "--task", "sst2", "--data", str(data), "--out", str(tmp_path / "out"), *SMALL, "--epochs", "3"]
    assert classify.main([*command, "--held-out", "0.25"]) == 0
    printed = capsys.readouterr()
    made = json.loads(printed.out)
    assert made["data"][0]["kept_apart"] == 12
    assert made["best_step"] in (5, 10, 14, 15)
    assert "examples kept apart from the training data" in printed.err
    best, final = (load_file(path / "model.safetensors") for path in (tmp_path / "out" / "best", tmp_path / "out"))
    assert all((best[name] == final[name]).all() for name in final)
    ours, theirs = (ModelFolder(path).read_manifest() for path in (tmp_path / "out" / "best", tmp_path / "out"))
    assert (ours.seed, ours.parent) == (theirs.seed, theirs.parent)


def test_the_best_epoch_is_read_by_all_before_the_main_process_moves_it(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []

    def noted(name: str, of: object, attribute: str) -> None:
        whole = getattr(of, attribute)

        def also(*given: object, **named: object) -> object:
            happened.append(name)
            return whole(*given, **named)

        monkeypatch.setattr(of, attribute, also)

    noted("read", classify, "load_best")
    noted("waited", processes, "wait")
    noted("moved", Stage, "finish")
    command = [str(tiny_distilbert(tmp_path / "start")), "--task", "sst2", "--data", str(data), "--out", str(tmp_path / "out"), *SMALL]
    assert classify.main([*command, "--epochs", "1", "--held-out", "0.25"]) == 0
    assert happened[happened.index("read") :][:3] == ["read", "waited", "moved"]


def test_a_training_file_without_a_development_split(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(tiny_distilbert(tmp_path / "start")), "--task", "sst2", "--data", str(data / "sst2" / "train.tsv"), *SMALL, "--epochs", "0.5"]
    assert classify.main([*command, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "no development score" in printed.err
    assert "development" not in json.loads(printed.out)


# ---- bad input


def test_bad_calls(tmp_path: Path, data: Path, teacher: Path) -> None:
    start = tiny_distilbert(tmp_path / "start")
    common = [str(start), "--task", "sst2", "--data", str(data), "--out", str(tmp_path / "out"), *SMALL]
    with pytest.raises(OptionsError, match="Expected one of the tasks"):
        classify.main([*common, "--task", "squad"])
    with pytest.raises(OptionsError, match="Expected a folder for --run-file"):
        classify.main([*common, "--run-file", "x.json"])
    with pytest.raises(OptionsError, match="Nothing is chosen by the development set"):
        classify.main([*common, "--evaluate-every", "2"])
    with pytest.raises(OptionsError, match="--seeds of at least 0, found -1"):
        classify.main([*common, "--seeds", "-1"])
    for tokens in ("0", "-4", "2", "1000"):
        with pytest.raises(OptionsError, match=f"Expected --max-tokens between 8 and .*; found {tokens}"):
            evaluate.main([str(teacher / "sst2"), "--task", "sst2", "--data", str(data), "--max-tokens", tokens])
    with pytest.raises(OptionsError, match="different --seeds, found 1 1"):
        classify.main([*common, "--seeds", "1", "1"])
    with pytest.raises(TrainingError, match=r"--max-tokens \(600\) must not exceed.*--alpha-ce and --alpha-gold must not both be 0"):
        taught = ["--teacher", str(teacher / "sst2"), "--alpha-ce", "0", "--alpha-gold", "0"]
        classify.main([*common, "--max-tokens", "600", "--batch-tokens", "600", *taught])
    with pytest.raises(TrainingError, match="Expected a --teacher for --temperature, --alpha-gold, found none"):
        classify.main(["no-such-folder", *common[1:], "--alpha-gold", "0", "--temperature", "4"])
    short = tiny_bert(tmp_path / "short", positions=24)
    for models in ([str(short), *common[1:]], [*common, "--teacher", str(short)]):
        with pytest.raises(TrainingError, match=r"Expected 32 positions in .*short, .*found 24\. Lower --max-tokens"):
            classify.main(models)
    with pytest.raises(TrainingError, match="found one of no task"):
        classify.main([*common, "--teacher", str(teacher / "reader")])
    with pytest.raises(DataError, match=r"Expected dev\.tsv"):
        classify.main([*common, "--data", str(tmp_path)])
    with pytest.raises(VocabularyMismatch, match="found two"):
        classify.main([str(tiny_distilbert(tmp_path / "cased", cased=True)), *common[1:], "--teacher", str(teacher / "sst2")])
    with pytest.raises(TrainingError, match="is not empty"):
        classify.main([*common, "--out", str(start)])
    with pytest.raises(TrainingError, match="trained on SST-2, found one of no task"):
        evaluate.main([str(start), "--task", "sst2", "--data", str(data)])

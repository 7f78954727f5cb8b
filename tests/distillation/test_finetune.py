"""`pocketqa grow`, `student` and `finetune` run whole on tiny models: what they leave, that they learn, that they resume exactly."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from distillation import evaluate, finetune, grow, student
from distillation.questions.data import DataSource, NegativeOptions, TrainingBatch, to_batch, training_windows
from distillation.questions.finetune_recipe import ReaderRecipe
from distillation.questions.harder import auroc
from distillation.training import recipes
from distillation.training.checkpoints import save_state
from pocketqa import runs, squad
from pocketqa.errors import CorruptFolder, DataError, TrainingError
from pocketqa.evaluation import evaluation_windows, open_reader, predict
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder
from pocketqa.types import NoAnswer
from tests.tiny import flip, tiny_base, tiny_bert, tiny_squad

CHECKPOINT_FILES = {
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "manifest.json",
}
SMALL = ["--max-tokens", "64", "--doc-stride", "16", "--max-question-tokens", "40", "--batch-tokens", "320", "--dropout", "0.1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_squad(tmp_path_factory.mktemp("data") / "tiny.json", paragraphs=8, questions=4)


def steps_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_whole_way_from_a_base_to_a_distilled_student(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_base(tmp_path / "base", layers=2)
    assert grow.main([str(base), "--layers", "4", "--out", str(tmp_path / "grown")]) == 0
    assert {path.name for path in (tmp_path / "grown").iterdir()} == CHECKPOINT_FILES
    teacher = [str(tmp_path / "grown"), "--data", str(data), "--dev", str(data), "--out", str(tmp_path / "teacher"), "--epochs", "2", *SMALL]
    assert finetune.main(teacher) == 0
    assert {path.name for path in (tmp_path / "teacher").iterdir()} == CHECKPOINT_FILES | {"README.md", "log.jsonl"}
    assert not (tmp_path / "teacher.run").exists()
    assert student.main([str(tmp_path / "teacher"), "--layers", "2", "--out", str(tmp_path / "start")]) == 0
    capsys.readouterr()
    command = [str(tmp_path / "start"), "--teacher", str(tmp_path / "teacher"), "--data", f"{data}@0.5", "--out", str(tmp_path / "student"), *SMALL]
    assert finetune.main([*command, "--epochs", "1.5", "--precision", "fp32", "--run-file", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    assert summary["data"][0]["questions"] == 16
    assert "pocketqa package" in printed.err
    (run,) = runs.read_all(tmp_path / "runs").values()
    assert (run.kind, run.results["steps"], run.results["questions"]) == ("training", summary["steps"], 16)
    manifest = ModelFolder(tmp_path / "student").read_manifest()
    assert manifest.kind == "checkpoint"
    assert manifest.config["recipe"]["precision"] == "fp32"
    assert manifest.config["steps"] == summary["steps"] == steps_of(tmp_path / "student")[-1]["step"]
    assert manifest.parent == ModelFolder(tmp_path / "start").read_manifest().files["model.safetensors"]
    config = json.loads((tmp_path / "student" / "config.json").read_text())
    assert (config["model_type"], config["n_layers"]) == ("distilbert", 2)
    teacher_manifest = ModelFolder(tmp_path / "teacher").read_manifest()
    assert teacher_manifest.no_answer.trained
    assert teacher_manifest.no_answer.threshold == teacher_manifest.config["development"]["no_answer_threshold"]


def test_what_follows_a_student_names_its_teacher_only_if_that_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader, base = tiny_bert(tmp_path / "reader"), tiny_base(tmp_path / "base")
    for teacher, said in ((reader, f" --teacher {reader}"), (base, "")):
        out = tmp_path / f"from-{teacher.name}"
        assert student.main([str(teacher), "--layers", "1", "--out", str(out)]) == 0
        assert f"next: pocketqa finetune {out}{said} --data train-v1.1.json --out {out}-finetuned\n" in capsys.readouterr().err


def test_a_data_set_of_the_hub_is_known_by_its_windows(tmp_path: Path, data: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    job = finetune._parse([str(base), "--data", str(data), "--out", str(tmp_path / "out"), *SMALL])
    tokenizer = Tokenizer(base / "tokenizer.json")
    windows = training_windows(squad.load(data), tokenizer, job.recipe.windows(), NegativeOptions(0.0, 0.0), 0)
    moved = [dataclasses.replace(windows[0], start=windows[0].start - 1), *windows[1:]]
    for source, told in ((DataSource("owner/name"), True), (DataSource(str(data)), False)):
        given = dataclasses.replace(job, sources=(source,))
        same, *others = (finetune._identity(given, tokenizer, some) for some in (windows, windows[1:], moved))
        assert [other != same for other in others] == [told, told]


def test_training_lowers_the_loss(tmp_path: Path, data: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    command = [str(base), "--data", str(data), "--out", str(tmp_path / "out"), "--epochs", "9", "--learning-rate", "2e-3", *SMALL]
    assert finetune.main([*command, "--wrong-paragraph", "0", "--negative-windows", "0"]) == 0
    manifest = ModelFolder(tmp_path / "out").read_manifest()
    assert manifest.config["losses"]["loss"] < 2.5  # uniform over about 45 positions would be 3.8
    assert not manifest.no_answer.trained


def test_checkpoints_on_the_way_are_scored_as_they_were_in_the_run(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(data.read_text())
    for article in document["data"]:
        whole = " ".join(paragraph["context"] for paragraph in article["paragraphs"])
        for paragraph in article["paragraphs"]:
            paragraph["context"] += f" {whole}" * 8  # several windows
    (tmp_path / "dev.json").write_text(json.dumps(document))
    base, out, dev = tiny_bert(tmp_path / "base"), tmp_path / "out", str(tmp_path / "dev.json")
    ways = ["--evaluate-every", "5", "--checkpoint-every", "5", "--precision", "fp32", "--seed", "3", "--learning-rate", "1e-3", "--epochs", "1"]
    assert finetune.main([str(base), "--data", str(data), "--dev", dev, "--dev-limit", "12", "--out", str(out), *SMALL, *ways]) == 0
    finished = ModelFolder(out).read_manifest()
    assert finished.no_answer.trained
    for folder in (out / "best", *out.glob("checkpoint-*")):
        manifest = ModelFolder(folder).read_manifest()
        assert (manifest.no_answer, manifest.seed, manifest.parent) == (NoAnswer(trained=True), 3, finished.parent)
    capsys.readouterr()
    assert evaluate.main([str(out / "best"), "--data", dev, "--limit", "12", "--precision", "fp32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["f1"] == pytest.approx(ModelFolder(out / "best").read_manifest().config["score"])


def test_questions_without_an_answer_are_learnt_and_the_threshold_is_chosen_on_them(tmp_path: Path) -> None:
    data, dev = (tiny_squad(tmp_path / f"{name}.json", impossible=True, seed=seed) for seed, name in enumerate(("train", "dev")))
    base, out = tiny_bert(tmp_path / "base"), tmp_path / "out"
    command = [str(base), "--data", str(data), "--dev", str(dev), "--out", str(out), "--wrong-paragraph", "0", "--precision", "fp32", *SMALL]
    assert finetune.main([*command, "--epochs", "1"]) == 0
    manifest = ModelFolder(out).read_manifest()
    assert (manifest.config["data"][0]["unanswerable"], manifest.config["data"][0]["wrong_paragraphs"]) == (6, 0)
    report = manifest.config["development"]
    assert (report["count"], report["unanswerable"], "wrong_paragraphs" in report) == (18, 6, False)
    assert manifest.no_answer == NoAnswer(True, report["no_answer_threshold"])
    reader, examples = open_reader(str(out), precision="fp32"), squad.load(dev)
    predicted = predict(reader, examples, evaluation_windows())
    own = np.array([example.is_impossible for example in examples])
    assert auroc(predicted.margins[~own], predicted.margins[own]) == pytest.approx(report["no_answer_auroc"])
    assert (predicted.margins[own] > report["no_answer_threshold"]).mean() == pytest.approx(report["unanswerable_refused"])


def test_twenty_steps_equal_ten_a_kill_and_ten(tmp_path: Path, data: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    common = [str(base), "--data", str(data), "--epochs", "1", "--log-every", "0", *SMALL]
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    assert finetune.main([*common, "--out", str(straight)]) == 0
    program = (
        "import sys, time, distillation.finetune as f\n"
        "import distillation.training.loop as l\n"
        "run = f.run\n"
        "def slow(model, plan, make_batch, *rest, **named):\n"
        "    def later(*arguments):\n"
        "        time.sleep(0.1)\n"
        "        return make_batch(*arguments)\n"
        "    return run(model, plan, later, *rest, **named)\n"
        "f.run = slow\n"
        "sys.exit(f.main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *common, "--out", str(resumed)],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step "):
            break
    process.send_signal(signal.SIGTERM)
    with process:
        message = process.stderr.read()
    assert process.returncode == 143
    assert "Stopped at step" in message
    assert not resumed.exists()
    assert finetune.main([*common, "--out", str(resumed)]) == 0
    assert 0 < int(message.split("Stopped at step ")[1].split()[0]) < steps_of(straight)[-1]["step"]
    first, second = load_file(straight / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    ours, theirs = (ModelFolder(folder).read_manifest().config for folder in (straight, resumed))
    assert ours["losses"] == theirs["losses"]
    assert ours["tokens"] == theirs["tokens"]


def test_a_state_of_another_run_is_refused_and_a_damaged_one_named(tmp_path: Path, data: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    common = [str(base), "--data", str(data), "--out", str(tmp_path / "out"), *SMALL]
    state = tmp_path / "out.run" / "state"
    save_state(state, {"model.x": torch.zeros(1)}, {"identity": "another", "steps": 1})
    with pytest.raises(TrainingError, match="other data, options or starting weights"):
        finetune.main(common)
    (state / "progress.json").write_text("{")
    with pytest.raises(TrainingError, match="is damaged"):
        finetune.main(common)


def test_a_run_goes_on_with_the_same_model_and_the_same_words_alone(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_bert(tmp_path / "base")
    common = [str(base), "--data", str(data), "--out", str(tmp_path / "out"), *SMALL]

    def stops(*given: Any) -> TrainingBatch:
        signal.raise_signal(signal.SIGTERM)
        return to_batch(*given)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "to_batch", stops)
        assert finetune.main(common) == 143
    for name, before, after in (("config.json", "1e-12", "1e-05"), ("tokenizer.json", '"q"', '"Q"')):
        content = (base / name).read_text()
        assert before in content
        (base / name).write_text(content.replace(before, after))
        with pytest.raises(TrainingError, match="other data, options or starting weights"):
            finetune.main(common)
        (base / name).write_text(content)
    more, edited = tiny_bert(tmp_path / "more", seed=1), data.with_name("edited.json")
    edited.write_text(data.read_text().replace("Anna", "anna"))  # the same tokens
    for changed in (["--learning-rate", "1e-5"], ["--data", str(edited)], ["--data", f"{data}@0.9"], ["--teacher", str(more)]):
        with pytest.raises(TrainingError, match="other data, options or starting weights"):
            finetune.main([*common, *changed])
    assert finetune.main(common) == 0


def test_damaged_weights_are_refused(tmp_path: Path, data: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    command = ["--data", str(data), "--out", str(tmp_path / "out"), *SMALL]
    assert student.main([str(base), "--layers", "2", "--out", str(tmp_path / "start")]) == 0
    start = tmp_path / "start"
    for name, before, after in (("config.json", '"n_heads": 2', '"n_heads": 4'), ("tokenizer.json", '"q"', '"Q"')):
        content = (start / name).read_text()
        assert before in content
        (start / name).write_text(content.replace(before, after))
        with pytest.raises(CorruptFolder, match=rf"start/{name} differs from what was saved: .* Copy the folder again from where it came from"):
            finetune.main([str(start), *command])
        (start / name).write_text(content)
    flip(start / "model.safetensors")
    for model in ([str(start)], [str(base), "--teacher", str(start)]):
        with pytest.raises(CorruptFolder, match=r"start/model\.safetensors differs from what was saved"):
            finetune.main([*model, *command])
    weights = base / "model.safetensors"  # of a folder without a manifest
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CorruptFolder, match=r"Expected a whole safetensors file at .*base/model\.safetensors, found"):
        finetune.main([str(base), *command])
    weights.write_bytes(whole + b"more")  # which the library alone notices
    with pytest.raises(TrainingError, match=r"Expected model\.safetensors of a bert in .*base"):
        finetune.main([str(base), *command])


def test_questions_that_are_too_long_are_counted_apart(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(data.read_text())
    paragraph = document["data"][0]["paragraphs"][0]
    for entry in paragraph["qas"][:3]:
        entry["question"] = "where " * 50
    (tmp_path / "long.json").write_text(json.dumps(document))
    base = tiny_bert(tmp_path / "base")
    more = ["--unlabelled", str(tmp_path / "long.json"), "--teacher", str(base)]
    assert finetune.main([str(base), "--data", str(tmp_path / "long.json"), *more, "--out", str(tmp_path / "out"), *SMALL]) == 0
    assert "long.json: 3 questions left out: no token, or more than --max-question-tokens 40" in capsys.readouterr().err
    sources = ModelFolder(tmp_path / "out").read_manifest().config["data"]
    assert [(source["questions"], source["questions_left_out"]) for source in sources] == [(29, 3), (29, 3)]


def test_runs_of_several_seeds_are_scored_on_the_same_questions(tmp_path: Path, data: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    common = [str(base), "--data", f"{data}@0.1", "--dev", str(data), "--dev-limit", "7", "--learning-rate", "1e-12", *SMALL, "--epochs", "0.1"]
    reports = []
    for seed in ("0", "1", "2"):
        assert finetune.main([*common, "--seed", seed, "--out", str(tmp_path / seed)]) == 0
        reports.append(ModelFolder(tmp_path / seed).read_manifest().config["development"] | {"seconds": 0})
    assert reports[0] == reports[1] == reports[2]  # of what is one and the same model


def test_a_run_file_that_cannot_be_written_loses_nothing(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_bert(tmp_path / "base")
    (tmp_path / "file").touch()
    common = [str(base), "--data", f"{data}@0.1", "--out", str(tmp_path / "out"), "--run-file", str(tmp_path / "file" / "runs"), *SMALL]
    with pytest.raises(TrainingError, match=r"Expected to write a run file at .*file/runs.*cannot be written.* The checkpoint in .*out is whole"):
        finetune.main(common)
    assert json.loads(capsys.readouterr().out) == ModelFolder(tmp_path / "out").read_manifest().config


def test_a_finished_folder_is_not_overwritten(tmp_path: Path, data: Path) -> None:
    base = tiny_bert(tmp_path / "base")
    with pytest.raises(TrainingError, match="is not empty"):
        finetune.main([str(base), "--data", str(data), "--out", str(base)])


def test_windows_longer_than_the_model_has_positions_are_refused_before_anything_is_computed(tmp_path: Path, data: Path) -> None:
    base = tiny_bert(tmp_path / "base", positions=60)
    common = [str(base), "--data", str(data), "--out", str(tmp_path / "out"), *SMALL]
    with pytest.raises(TrainingError, match=r"Expected 64 positions in .*base, for sequences of --max-tokens .*found 60\. Lower --max-tokens"):
        finetune.main([*common, "--max-tokens", "60"])
    assert finetune.main([*common, "--max-tokens", "56", "--max-question-tokens", "30"]) == 0


def test_a_development_split_that_cannot_be_scored_is_refused_before_anything_is_computed(tmp_path: Path, data: Path) -> None:
    base = tiny_bert(tmp_path / "base", positions=64)
    common = [str(base), "--data", str(data), "--out", str(tmp_path / "out"), *SMALL]
    long = json.loads(data.read_text())
    long["data"][0]["paragraphs"][0]["context"] += " and so on" * 40
    (tmp_path / "long.json").write_text(json.dumps(long))
    with pytest.raises(TrainingError, match=r"long.json is scored in windows of up to \d+ tokens, and the model has 64 positions\. Leave --dev out"):
        finetune.main([*common, "--dev", str(tmp_path / "long.json")])
    for paragraph in (paragraph for article in long["data"] for paragraph in article["paragraphs"]):
        paragraph["context"] = paragraph["context"][: 40 * len("and so on")]
        paragraph["qas"][0]["question"] = "why " * 300
    (tmp_path / "wordy.json").write_text(json.dumps(long))
    with pytest.raises(DataError, match="cannot be asked"):
        finetune.main([*common, "--dev", str(tmp_path / "wordy.json")])
    mixed = json.loads(data.read_text())
    (sampled,) = squad.load(data, 1, finetune.DEVELOPMENT_SEED)
    for question in (question for article in mixed["data"] for paragraph in article["paragraphs"] for question in paragraph["qas"]):
        question["answers"] = [] if question["id"] == sampled.id else question["answers"]
    (tmp_path / "mixed.json").write_text(json.dumps(mixed))
    with pytest.raises(DataError, match="expected answerable questions to choose a threshold on, found none"):
        finetune.main([*common, "--dev", str(tmp_path / "mixed.json"), "--dev-limit", "1"])
    assert not list(tmp_path.glob("out*/state"))


def test_recipes_from_file_and_flags(tmp_path: Path) -> None:
    import argparse

    file = tmp_path / "recipe.toml"
    file.write_text("epochs = 3\nlearning_rate = 5e-5\n")
    parser = argparse.ArgumentParser()
    recipes.add_flags(parser, ReaderRecipe)
    recipe = recipes.from_arguments(parser.parse_args(["--recipe", str(file), "--epochs", "4"]), ReaderRecipe)
    assert (recipe.epochs, recipe.learning_rate, recipe.temperature) == (4.0, 5e-5, 2.0)
    with pytest.raises(TrainingError, match=r"--beta1 must be below 1, found 1\.0; --beta2 must be below 1, found 1\.0"):
        recipes.from_arguments(parser.parse_args(["--beta1", "1", "--beta2", "1"]), ReaderRecipe)
    with pytest.raises(TrainingError, match=r"--epochs must be above 0.*--precision must be bf16 or fp16 or fp32"):
        recipes.from_arguments(parser.parse_args(["--epochs", "-1", "--precision", "int3"]), ReaderRecipe)
    file.write_text("epoch = 3\nwarmup = 'no'\n")
    with pytest.raises(TrainingError, match=r"unknown field 'epoch'; warmup must be float, found 'no'"):
        recipes.from_arguments(parser.parse_args(["--recipe", str(file)]), ReaderRecipe)


def test_the_recipe_file_of_the_paper_reads() -> None:
    import argparse

    parser = argparse.ArgumentParser()
    recipes.add_flags(parser, ReaderRecipe)
    recipe = recipes.from_arguments(parser.parse_args(["--recipe", "squad_paper"]), ReaderRecipe)
    assert (recipe.epochs, recipe.learning_rate, recipe.batch_tokens // recipe.max_tokens) == (3.0, 5e-5, 8)

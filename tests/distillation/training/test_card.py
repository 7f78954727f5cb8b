"""Model cards: front matter that the Hub reads, what the manifest knows, and scores of run files of these weights only."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from distillation.training import card
from distillation.training.checkpoints import weights_hash
from pocketqa import runs
from pocketqa.folders import write_manifest
from pocketqa.runs import DataFile, RunFile, Subject
from pocketqa.types import JSON, Scores
from tests.tiny import tiny_bert

SUMMARY: JSON = {
    "parameters": 48354,
    "teacher": "ab" * 32,
    "data": [{"file": "train v1.json", "sha256": "cd" * 32, "questions": 1200, "unanswerable": 0, "windows": 1300}],
    "steps": 1500,
    "tokens": 2_000_000,
    "seconds": 5400.0,
    "losses": {"loss": 0.5, "loss_ce": 0.25},
    "recipe": {"learning_rate": 0.0002, "precision": "bf16"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("card") / "folder")


def evaluation(weights: str) -> RunFile:
    exact, f1 = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.5, 1.0, 1.0])
    results = runs.evaluation_results(Scores(75.0, 87.5, 4), exact, f1, ["a", "b", "c", "d"])
    subject = Subject("student", "student", weights)
    return RunFile("evaluation", "student", (subject,), (DataFile("dev.json", "0" * 64, 4, "development"),), "", "2026-01-31T12:00:00Z", {}, results)


def written(folder: Path, *given: RunFile, base: str = "bert-base-uncased", license_id: str | None = None, summary: JSON = SUMMARY) -> str:
    card.write(folder, "Student", base, summary, license_id, given)
    return (folder / "README.md").read_text()


def test_front_matter(folder: Path) -> None:
    text = written(folder)
    front = text.split("---\n")[1]
    assert front == (
        "license: unknown\nlibrary_name: transformers\npipeline_tag: question-answering\nbase_model: bert-base-uncased\n"
        'datasets:\n- "train v1.json"\ntags:\n- pocketqa\n- knowledge-distillation\n'
    )
    assert "license: apache-2.0\n" in written(folder, license_id="apache-2.0")
    alone = written(folder, summary={"parameters": 5})
    assert "knowledge-distillation" not in alone
    assert "datasets" not in alone


def test_yaml_reads_it() -> None:
    import yaml  # type: ignore[import-untyped, unused-ignore]

    for text in ("plain", "with space", "1.0", "no", "a: b", "- x", "#", 'quote"', "Größe", "@x", "a/b-c_d.e"):
        assert yaml.safe_load(f"key: {card._yaml(text)}") == {"key": text}


def test_what_the_manifest_knows(folder: Path) -> None:
    text = written(folder)
    assert "# Student\n\nA BertForQuestionAnswering of 48,354 parameters, trained with PocketQA from bert-base-uncased." in text
    assert "a teacher (weights abababababab)" in text
    assert f"sha256 {weights_hash(str(folder))}" in text
    assert "| train v1.json | 1,200 questions, 1,300 windows | cdcdcdcdcdcd |" in text
    assert "1,500 optimiser steps, 2,000,000 tokens, 1.50 hours." in text
    assert "loss 0.5000, loss_ce 0.2500." in text
    assert "| learning_rate | 0.0002 |" in text
    assert "2 teachers (weights abababababab, cdcdcdcdcdcd)" in written(folder, summary={**SUMMARY, "teachers": ["ab" * 32, "cd" * 32]})


def test_a_folder_is_named_by_its_manifest_and_never_by_its_place(folder: Path, tmp_path: Path) -> None:
    assert card.base_name("owner/name") == "owner/name"
    start = tmp_path / "secret" / "start"
    start.mkdir(parents=True)
    assert card.base_name(str(start)) == "start"
    write_manifest(start, kind="checkpoint", name="first-teacher")
    assert card.base_name(str(start)) == "first-teacher"
    assert "secret" not in written(folder, base=str(start))


def test_scores_are_those_of_run_files_of_these_weights(folder: Path) -> None:
    assert "No run file has measured these weights yet." in written(folder)
    assert "No run file has measured these weights yet." in written(folder, evaluation("f" * 64))
    run = evaluation(weights_hash(str(folder)))
    text = written(folder, run)
    assert re.search(r"\| dev.json \| exact match \| 75.00 \[\d+.\d+, 100.00\] \| 4 \| evaluation-student-2026-01-31.json \|", text)
    assert re.search(r"\| dev.json \| F1 \| 87.50 \[", text)


def test_the_score_of_a_task(folder: Path) -> None:
    results = runs.classification_results("rte", {"accuracy": 75.0}, [0, 1, 1, 0], [0, 1, 1, 1])
    subject = Subject("student", "student", weights_hash(str(folder)))
    data = (DataFile("rte.tsv", "0" * 64, 4, "development"),)
    run = RunFile("classification", "student", (subject,), data, "", "2026-01-31T12:00:00Z", {}, results)
    assert re.search(r"\| rte.tsv \| rte \| 75.00 \[\d+.\d+, 100.00\] \| 4 \| classification-student-2026-01-31.json \|", written(folder, run))


def test_the_development_split_of_a_training(folder: Path) -> None:
    results = runs.training_results(
        questions=5, steps=1, tokens=9, seconds=1.0, loss=1.0, best=Scores(60.0, 70.0, 10), development={"file": "dev.json"}
    )
    subject = Subject("student", "student", weights_hash(str(folder)))
    data = (DataFile("train.json", "0" * 64, 5, "training"),)
    run = RunFile("training", "student", (subject,), data, "", "2026-01-31T12:00:00Z", {}, results)
    assert "| dev.json | F1 | 70.00 | 10 | training-student-2026-01-31.json |" in written(folder, run)

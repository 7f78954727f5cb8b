"""Model cards: front matter that the Hub reads, what the manifest knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillation.training import card
from distillation.training.checkpoints import weights_hash
from pocketqa.folders import write_manifest
from pocketqa.types import JSON
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


def written(folder: Path, base: str = "bert-base-uncased", license_id: str | None = None, summary: JSON = SUMMARY) -> str:
    card.write(folder, "Student", base, summary, license_id)
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


def test_the_score_that_the_training_took_of_itself(folder: Path) -> None:
    assert "## Scores" not in written(folder)
    scored = {
        **SUMMARY,
        "development": {
            "file": "dev.json",
            "sha256": "0" * 64,
            "exact_match": 60.0,
            "f1": 70.126,
            "count": 10,
            "no_answer_threshold": -1.5,
            "seconds": 3.5,
        },
    }
    assert "## Scores\n\nOn dev.json, one training: exact match 60.00, F1 70.13.\n" in written(folder, summary=scored)
    assert "On text kept apart from the training, one training: perplexity 9.50." in written(folder, summary={"development": {"perplexity": 9.5}})

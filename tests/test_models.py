"""The bundled pair: whole, of the size it claims, described, and answering."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pocketqa import Reader, metrics, squad
from pocketqa.folders import ModelFolder, safetensors_header, sha256_file
from pocketqa.golden import Golden, replay
from pocketqa.reporting.pairs import read_pairs

MODELS = Path(__file__).parent.parent / "models"
SAMPLES = Path(__file__).parent.parent / "pocketqa" / "samples.json"
PAIR = ("teacher", "student")


@pytest.fixture(scope="module")
def readers() -> dict[str, Reader]:
    return {name: Reader.open(MODELS / name, engine="onnxruntime", threads=1) for name in PAIR}


@pytest.mark.parametrize(("name", "family", "layers", "millions"), [("teacher", "bert", 12, 33.2), ("student", "distilbert", 6, 22.6)])
def test_size_and_architecture(name: str, family: str, layers: int, millions: float) -> None:
    folder = ModelFolder(MODELS / name)
    config = json.loads(folder.config.read_text(encoding="utf-8"))
    assert config["model_type"] == family
    assert config["num_hidden_layers" if family == "bert" else "n_layers"] == layers
    tensors = safetensors_header(folder.weights).values()
    assert {tensor.dtype for tensor in tensors} == {"F16"}
    assert sum(math.prod(tensor.shape) for tensor in tensors) / 1e6 == pytest.approx(millions, abs=0.05)


def test_the_pair_stays_small_enough_to_clone() -> None:
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) < 120e6


def test_both_say_no_answer_and_share_a_vocabulary(readers: dict[str, Reader]) -> None:
    assert all(reader.no_answer.trained and reader.no_answer.threshold is not None for reader in readers.values())
    assert readers["teacher"].tokenizer.vocabulary_hash == readers["student"].tokenizer.vocabulary_hash


@pytest.mark.parametrize("name", PAIR)
def test_the_last_of_the_listed_pairs_is_the_bundled_one(name: str) -> None:
    digits = getattr(read_pairs(MODELS.parent / "pairs.toml")[-1], name)
    assert sha256_file(ModelFolder(MODELS / name).weights).startswith(digits) and digits


@pytest.mark.parametrize("name", PAIR)
def test_golden_questions_are_answered_as_recorded(readers: dict[str, Reader], name: str) -> None:
    assert replay(readers[name], Golden.load(ModelFolder(MODELS / name).golden)) == []


@pytest.mark.parametrize("name", PAIR)
def test_most_of_our_own_questions_are_answered(readers: dict[str, Reader], name: str) -> None:
    examples = [example for example in squad.load(SAMPLES) if example.answers]
    predictions = {e.id: readers[name].answer(e.question, e.context).best.text for e in examples}
    assert metrics.score(predictions, examples).f1 > 60


@pytest.mark.parametrize("name", PAIR)
def test_cards_say_where_the_pair_comes_from(name: str) -> None:
    card = (MODELS / name / "README.md").read_text(encoding="utf-8")
    body = card.split("---\n", 2)[2]
    first = next(line for line in body.splitlines() if line.strip())
    assert "ancestor" in first
    for fact in ("SQuADShifts", "Natural Questions", "CC BY-SA 4.0", "control", "has itself seen"):
        assert fact in card, fact

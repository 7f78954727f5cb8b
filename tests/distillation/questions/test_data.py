"""Training windows, negatives and the order of batches."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation.questions.data import (
    DataSource,
    NegativeOptions,
    epoch_batches,
    padded,
    to_batch,
    training_windows,
    usual_answer,
)
from distillation.questions.harder import wrong_paragraphs
from pocketqa import squad
from pocketqa.errors import DataError
from pocketqa.features import Tokenizer
from pocketqa.types import JSON, GoldAnswer, QAExample, WindowOptions
from tests.tiny import tiny_bert, tiny_squad

OPTIONS = WindowOptions(max_tokens=48, doc_stride=12, max_question_tokens=30)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny_bert(tmp_path_factory.mktemp("tiny")) / "tokenizer.json")


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> list[QAExample]:
    return squad.load(tiny_squad(tmp_path_factory.mktemp("data") / "tiny.json", paragraphs=6, questions=4, impossible=True))


def test_targets_are_the_answer_or_the_cls_token(tokenizer: Tokenizer, examples: list[QAExample]) -> None:
    windows = training_windows(examples, tokenizer, OPTIONS, NegativeOptions(windows=1.0, wrong_paragraph=0.0), seed=0)
    positives = [item for item in windows if item.end > 0]
    assert len(positives) >= sum(bool(e.answers) for e in examples)
    assert any(item.end == 0 for item in windows)
    pairs = {(e.context, answer.text) for e in examples for answer in e.answers}
    for item in positives:
        begin, end = int(item.window.offsets[item.start, 0]), int(item.window.offsets[item.end, 1])
        assert any(context[begin:end] == text for context, text in pairs)


def test_negative_windows_can_be_left_out(tokenizer: Tokenizer, examples: list[QAExample]) -> None:
    answerable = [e for e in examples if e.answers]
    windows = training_windows(answerable, tokenizer, OPTIONS, NegativeOptions(windows=0.0, wrong_paragraph=0.0), seed=0)
    assert all(item.end > 0 for item in windows)


def test_wrong_paragraphs_stay_in_the_article_and_hold_no_answer(tokenizer: Tokenizer, examples: list[QAExample]) -> None:
    answerable = [e for e in examples if e.answers]
    wrong = wrong_paragraphs(answerable, 100, seed=3)
    assert wrong
    assert wrong == wrong_paragraphs(answerable, 100, seed=3)
    assert wrong_paragraphs(answerable, 3, seed=3) == wrong[:3]
    share = NegativeOptions(windows=0.0, wrong_paragraph=0.25)
    assert sum(item.wrong_paragraph for item in training_windows(answerable, tokenizer, OPTIONS, share, seed=0)) == round(0.25 * len(answerable))
    originals = {e.id: e for e in answerable}
    for example in wrong:
        original = originals[example.id.removesuffix("-wrong-paragraph")]
        assert example.is_impossible
        assert example.context != original.context
        assert example.context in {e.context for e in answerable if e.title == original.title}
        assert not any(answer.text.lower() in example.context.lower() for answer in original.answers)


def test_the_usual_answer_is_the_most_frequent_then_the_first() -> None:
    a, b, c = GoldAnswer("the kitchen", 0), GoldAnswer("kitchen", 4), GoldAnswer("kitchen", 4)
    assert usual_answer(QAExample("1", "q", "the kitchen", (a, b, c))) == b
    assert usual_answer(QAExample("1", "q", "the kitchen", (a, b))) == a
    assert usual_answer(QAExample("1", "q", "the kitchen")) is None


@given(st.lists(st.integers(16, 384), min_size=1, max_size=300), st.integers(384, 4000), st.integers(0, 5))
def test_each_window_is_seen_once_an_epoch_within_the_token_budget(lengths: list[int], budget: int, seed: int) -> None:
    array = np.array(lengths)
    batches = epoch_batches(array, budget, seed)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) * array[batch].max() <= budget for batch in batches)
    again = epoch_batches(array, budget, seed)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_padding_is_small_because_lengths_are_sorted_in_pools() -> None:
    lengths = np.random.default_rng(0).integers(60, 384, size=5000)
    batches = epoch_batches(lengths, 6000, seed=0)
    padded = sum(len(b) * lengths[b].max() for b in batches)
    assert 1 - lengths.sum() / padded < 0.05


def test_batches_mark_passage_and_cls_as_allowed(tokenizer: Tokenizer, examples: list[QAExample]) -> None:
    windows = training_windows(examples[:3], tokenizer, OPTIONS, NegativeOptions(1.0, 0.0), seed=0)
    batch = to_batch(windows, tokenizer.pad_id)
    for row, item in enumerate(windows):
        expected = np.zeros(batch.ids.shape[1], dtype=bool)
        expected[: len(item.window)] = item.window.context_mask
        expected[0] = True
        assert np.array_equal(batch.allowed[row].numpy(), expected)
        assert batch.mask[row].sum().item() == len(item.window)
    assert batch.tokens == sum(len(item.window) for item in windows)


def test_a_paragraph_under_two_titles_belongs_to_both() -> None:
    shared, other = "The mill stands.", "The bridge fell."
    examples = [
        QAExample("1", "What stands?", shared, (GoldAnswer("mill", 4),), False, "Mills"),
        QAExample("2", "What is it that stands?", shared, (GoldAnswer("mill", 4),), False, "Buildings"),
        QAExample("3", "What fell?", other, (GoldAnswer("bridge", 4),), False, "Buildings"),
    ]
    wrong = wrong_paragraphs(examples, 3, seed=0)
    assert {(example.question, example.context) for example in wrong} <= {("What is it that stands?", other), ("What fell?", shared)}


def test_wrong_paragraphs_of_questions_without_titles() -> None:
    untitled = [QAExample(str(n), f"What is {n}?", f"Passage {n} says x{n}.", (GoldAnswer(f"x{n}", 15),)) for n in range(6)]
    titled = [replace(example, id=f"t{example.id}", title="Numbers") for example in untitled]
    assert {example.id for example in wrong_paragraphs([*untitled, *titled], 12, seed=0)} == {f"t{n}-wrong-paragraph" for n in range(6)}
    assert len(wrong_paragraphs(untitled, 12, seed=0)) == 6  # with no title anywhere, a file is one article


def test_a_hub_data_set_without_a_split_trains_on_its_training_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked: list[str] = []
    row = {"id": "1", "title": "Mills", "context": "Ada built it.", "question": "Who?", "answers": {"text": ["Ada"], "answer_start": [0]}}

    def load_dataset(name: str, split: str) -> list[JSON]:
        asked.append(split)
        return [row]

    module = types.ModuleType("datasets")
    module.__dict__["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert len(DataSource.parse("squad").load(0)) == len(DataSource.parse("squad:validation").load(0)) == 1
    assert asked == ["train", "validation"]


def test_batches_have_few_shapes_and_never_more_positions_than_asked_for() -> None:
    lengths = np.random.default_rng(0).integers(20, 129, size=400)
    batches = epoch_batches(lengths, 512, seed=0)
    shapes = {(len(batch), padded(int(lengths[batch].max()))) for batch in batches}
    assert {length % 8 for _, length in shapes} == {0}
    assert max(rows * length for rows, length in shapes) <= 512
    assert [padded(longest) for longest in (1, 8, 9, 384)] == [8, 8, 16, 384]


def test_shares_of_a_file(tmp_path: Path) -> None:
    path = tiny_squad(tmp_path / "tiny.json", paragraphs=4, questions=5)
    assert len(DataSource.parse(f"{path}@0.25").load(seed=0)) == 5
    assert len(DataSource.parse(str(path)).load(seed=0)) == 20
    with pytest.raises(DataError, match="between 0 and 1"):
        DataSource.parse("file.json@1.5")
    assert DataSource.parse("me@home.json") == DataSource("me@home.json")

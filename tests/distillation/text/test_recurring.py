"""Questions out of raw text: sentences, spans that recur and the question itself, worked out by hand; and the verb run whole."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from distillation import cloze as verb
from distillation.text.recurring import cloze, passages, recurring_spans, sentences
from pocketqa import squad
from pocketqa.errors import DataError

MILL = (
    "The Harbour Mill was built by Ada Marsh in 1911. Its stones came from the quarry of Mr. J. Bell near Whitby. "
    "In 1911 the Harbour Mill ground wheat for the whole of the old town."
)


def spans(passage: str) -> list[list[str]]:
    return [[passage[place.start : place.end] for place in span] for span in recurring_spans(passage, sentences(passage))]


def test_sentences_end_neither_at_initials_nor_at_abbreviations() -> None:
    assert [MILL[start:end].split()[0] for start, end in sentences(MILL)] == ["The", "Its", "In"]
    assert [MILL[start:end][-1] for start, end in sentences(MILL)] == [".", ".", "."]


def test_a_document_is_cut_between_sentences() -> None:
    assert list(passages(MILL, 1000)) == [MILL]
    assert [len(piece.split()) for piece in passages(MILL, 25)] == [22, 14]
    assert " ".join(passages(MILL, 1)) == MILL
    assert list(passages("", 10)) == []


def test_spans_recur_in_two_sentences_and_the_longest_counts() -> None:
    # "Mill" and "Harbour" are parts of the longer one; "the" is a function word; "old" and "built" occur once.
    assert spans(MILL) == [["Harbour Mill", "Harbour Mill"], ["1911", "1911"]]


@pytest.mark.parametrize(
    ("passage", "expected"),
    [
        ("Rome is old. People like rome.", []),  # not a name both times
        ("Rome, Rome and Rome are in one sentence.", []),
        ("The old stone bridge fell. They mourned the old stone bridge.", [["old stone bridge", "old stone bridge"]]),
        ("It opened (New York). A new shop in York: New York.", [["New York", "New York"]]),
        ("She came in May; he left. In May he left.", [["May", "May"]]),
        ("", []),
    ],
)
def test_what_counts_as_a_span(passage: str, expected: list[list[str]]) -> None:
    assert spans(passage) == expected


def test_a_question_asks_for_what_the_rest_of_the_passage_says() -> None:
    made = {cloze(MILL, random.Random(seed)) for seed in range(40)}
    questions = {found.question: found for found in made if found is not None}
    assert set(questions) == {
        "The what was built by Ada Marsh in 1911?",
        "What was built by Ada Marsh in 1911, The?",
        "The Harbour Mill was built by Ada Marsh in what year?",
        "What year The Harbour Mill was built by Ada Marsh in?",
        "In 1911 the what ground wheat for the whole of the old town?",
        "What ground wheat for the whole of the old town, In 1911 the?",
        "In what year the Harbour Mill ground wheat for the whole of the old town?",
        "What year the Harbour Mill ground wheat for the whole of the old town, In?",
    }
    first = questions["The what was built by Ada Marsh in 1911?"]
    assert first.context == MILL[MILL.index("Its stones") :]
    assert first.answers == (("Harbour Mill", first.context.index("Harbour Mill")),)
    last = questions["In what year the Harbour Mill ground wheat for the whole of the old town?"]
    assert last.context == MILL[: MILL.index(" In 1911")]
    assert last.answers == (("1911", MILL.index("1911")),)


def test_a_passage_that_repeats_nothing_makes_no_question() -> None:
    assert cloze("The mill stands in Rome. It was built by Ada Marsh in the year 1911.", random.Random(0)) is None
    assert cloze("Rome fell. Rome rose.", random.Random(0)) is None  # too short to ask about


def corpus(folder: Path) -> Path:
    path = folder / "corpus.txt"
    path.write_text(
        "\n\n".join(MILL.replace("1911", str(1900 + n)).replace("Harbour", f"Harbour{n}") for n in range(30)) + "\n\nNothing here.\n", "utf-8"
    )
    return path


def test_the_verb_leaves_a_squad_file_that_is_the_same_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = corpus(tmp_path)
    for name in ("a.json.gz", "b.json.gz"):
        assert verb.main(["--corpus", str(source), "--out", str(tmp_path / name), "--limit", "8", "--seed", "3", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"questions": 8, "passages": 31, "out": str(tmp_path / name), "seed": 3}
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()
    examples = squad.load(tmp_path / "a.json.gz")
    assert len(examples) == 8
    assert len({example.context for example in examples}) == 8  # one a passage
    assert all(example.context[answer.start :].startswith(answer.text) for example in examples for answer in example.answers)
    assert verb.main(["--corpus", str(source), "--out", str(tmp_path / "all.json")]) == 0
    assert "30 questions from 31 passages" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "all.json").read_text("utf-8"))["data"][0]["paragraphs"]) == 30
    assert gzip.decompress((tmp_path / "a.json.gz").read_bytes())


def test_a_text_without_an_end_is_cut_between_paragraphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "lines.txt"
    source.write_text("\n".join([MILL] * 10), "utf-8")
    command = ["--corpus", str(source), "--out", str(tmp_path / "all.json"), "--max-words", "1000", "--json"]
    for longest, passages_ in ((verb.LONGEST_TEXT, 1), (2 * len(MILL), 5)):
        monkeypatch.setattr(verb, "LONGEST_TEXT", longest)
        assert verb.main(command) == 0
        assert json.loads(capsys.readouterr().out)["passages"] == passages_


@pytest.mark.parametrize(
    ("text", "more", "says"),
    [
        ("One sentence alone.", [], "none in 1"),
        (MILL, ["--limit", "0"], "--limit and --max-words of at least 1"),
        (MILL, ["--out", "cloze.txt"], "--out to end with .json"),
        (MILL, ["--out", "missing/cloze.json"], "Expected a folder at .*missing to write cloze.json in"),
    ],
)
def test_bad_input_leaves_nothing(tmp_path: Path, text: str, more: list[str], says: str) -> None:
    source = tmp_path / "corpus.txt"
    source.write_text(text, "utf-8")
    with pytest.raises(DataError, match=says):
        verb.main(["--corpus", str(source), "--out", str(tmp_path / "out.json"), *more])
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]

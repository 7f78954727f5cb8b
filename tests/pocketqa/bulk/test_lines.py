"""Lines of JSON to answers: the same as one question at a time, and a reason in the place of each line that cannot be answered."""

from __future__ import annotations

import json
import re

import pytest

from pocketqa.bulk.blocks import Line
from pocketqa.bulk.lines import Asked, answer_lines
from pocketqa.errors import EngineError
from pocketqa.types import NoAnswer, SpanOptions, WindowOptions
from tests.pocketqa import little

QUESTION = "Who built the mill?"


@pytest.fixture
def reader(tmp_path):
    made = little.reader(tmp_path)
    made.runtime = little.pointing_at(made.tokenizer, "ada")
    return made


def answered(reader, *records: object, options: SpanOptions | None = None):
    data = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    made = answer_lines(reader, [Line(number, line) for number, line in enumerate(data, 1)], Asked(spans=options or SpanOptions()))
    assert made.output.count(b"\n") == len(records)
    return [json.loads(line) for line in made.output.splitlines()], made.problems


def test_answers_stand_in_the_order_of_the_lines(reader):
    found, problems = answered(
        reader,
        {"id": "long", "question": QUESTION, "context": "the river and the bridge " * 20 + "by Ada in the mill"},
        {"question": QUESTION, "context": "🙂 Ada"},
        {"id": 7, "question": QUESTION, "context": ["The bridge.", "Built by Ada."], "further": "is left alone"},
    )
    assert problems == ()
    assert [(one["line"], one.get("id"), one["answer"], one["start"], one["end"], one["passage"]) for one in found] == [
        (1, "long", "Ada", 503, 506, 0),
        (2, None, "Ada", 2, 5, 0),
        (3, 7, "Ada", 9, 12, 1),
    ]
    assert "id" not in found[1] and all(0.5 < one["score"] <= 1 for one in found)
    assert list(found[0]) == ["line", "id", "answer", "start", "end", "passage", "score"]


def test_every_line_is_answered_as_it_is_alone(tmp_path):
    reader = little.reader(tmp_path)  # logits that look random, and windows of many lengths
    records = [{"question": QUESTION, "context": " ".join(little.WORDS[i % 12] for i in range(start, 3 * start + 5))} for start in range(40)]
    found, _ = answered(reader, *records)
    for record, one in zip(records, found, strict=True):
        best = reader.answer(record["question"], record["context"]).best
        assert (one["answer"], one["start"], one["end"], one["score"]) == (best.text, best.start, best.end, round(best.score, 6))


def test_several_answers_and_no_answer(reader):
    (one,), _ = answered(reader, {"question": QUESTION, "context": "Ada, by Ada"}, options=SpanOptions(top_k=2))
    assert [(a["answer"], a["start"]) for a in one["answers"]] == [("Ada", 0), ("Ada", 8)]
    assert (one["answer"], one["start"], "no_answer" in one) == ("Ada", 0, False)
    reader.no_answer = NoAnswer(trained=True, threshold=-100.0)
    (one,), _ = answered(reader, {"question": QUESTION, "context": "The river"}, options=SpanOptions(no_answer=True))
    assert (one["answer"], one["start"], one["end"], one["no_answer"], one["score"]) == ("", 0, 0, True, 1.0)


def test_longer_questions_where_they_are_wanted(reader):
    asked = {"question": " ".join([QUESTION] * 20), "context": "by Ada"}
    (refused,), problems = answered(reader, asked)
    assert "raise max_question_tokens" in refused["error"] and len(problems) == 1
    made = answer_lines(reader, [Line(1, json.dumps(asked).encode())], Asked(windows=WindowOptions(max_question_tokens=200)))
    assert json.loads(made.output)["answer"] == "Ada"


GOOD = {"question": QUESTION, "context": "Ada"}
BAD = [
    (b"{", "Expected a JSON object such as .*, found: Expecting property name .* at column 2"),
    (b" ", "found: an empty line"),
    (b"[1]", "found list"),
    (b'"text"', "found str"),
    (b'{"n": ' + b"9" * 5000 + b"}", "found one that cannot be read"),
    (b"[" * 100_000, "found one that cannot be read"),
    (b'{"question": "caf\xe9"}', "Expected UTF-8, found byte 0xe9 at byte 17 of the line"),
    ({"context": "Ada"}, "Expected a text for 'question', found no such key among 'context'"),
    ({}, "found no such key among none at all"),
    (GOOD | {"question": None}, "Expected a text for 'question', found NoneType"),
    (GOOD | {"context": []}, "a list of texts for 'context', found list"),
    (GOOD | {"context": ["Ada", 3]}, "a list of texts for 'context', found list"),
    (GOOD | {"context": " \n"}, "The passage is empty"),
    (GOOD | {"question": ""}, "The question is empty"),
    (GOOD | {"question": "who " * 65}, "The question has 65 tokens; at most 64"),
    (GOOD | {"context": "Ada \ud800"}, "not valid Unicode"),
    (GOOD | {"id": True}, "Expected a text or a whole number for 'id', found bool"),
    (GOOD | {"id": [1]}, "for 'id', found list"),
    (GOOD | {"id": "\udfff"}, "valid Unicode for 'id', found a lone surrogate"),
]  # fmt: skip


def test_bad_lines_say_why_and_the_others_are_answered(reader):
    mixed = [record for bad, _ in BAD for record in (bad, GOOD)]
    found, problems = answered(reader, *mixed)
    assert [one["answer"] for one in found[1::2]] == ["Ada"] * len(BAD)
    for (_, says), one, problem in zip(BAD, found[::2], problems, strict=True):
        assert problem.line == one["line"] and problem.message == one["error"] and "answer" not in one
        assert re.search(says, one["error"]), (says, one["error"])


def test_a_bad_line_keeps_its_id(reader):
    (one,), (problem,) = answered(reader, {"id": "seven", "question": QUESTION})
    assert one["id"] == problem.name == "seven"


def test_a_line_that_was_too_long(reader):
    made = answer_lines(reader, [Line(4, None)], Asked())
    assert "at most 1,048,576 bytes" in json.loads(made.output)["error"] and json.loads(made.output)["line"] == 4


def test_a_byte_order_mark_counts_on_the_first_line_only(reader):
    found, problems = answered(reader, b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"\xef\xbb\xbf" + json.dumps(GOOD).encode())
    assert found[0]["answer"] == "Ada" and [problem.line for problem in problems] == [2]


def test_what_is_no_fault_of_a_line_is_raised(reader):
    def fail(batch):
        raise EngineError("broken")

    reader.runtime = little.ChosenRuntime(fail)
    with pytest.raises(EngineError, match="broken"):
        answered(reader, GOOD)

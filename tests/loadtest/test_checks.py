"""What a response must be, one deviation at a time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest

from loadtest.checks import STAGES, Checked, WrongAnswer, check_response, request_body
from loadtest.pairs import Half, Log, ratios, table, where
from loadtest.questions import Question, draws, load_questions

CONTEXT = "The mill 👩‍🍳 was built by Ada Marsh in 1911."
START = CONTEXT.index("Ada")
QUESTION = Question(7, "mill-1", "Who built the mill?", CONTEXT, ("Ada Marsh", "Marsh"))
ASKED = request_body(QUESTION, "student", top_k=2, no_answer=False)


def body(**changes: Any) -> dict[str, Any]:
    answer = {"text": "Ada Marsh", "start": START, "end": START + 9, "score": 0.75, "source": 0, "is_no_answer": False}
    answer |= changes.pop("answer", {})
    return {"model": "student", "answers": [answer], "windows": 1, "tokens": 20} | changes


TIMES = (0.2, 0.0, 6.5, 0.3, 7.1)
HEADERS = {f"x-{stage}-ms": str(time) for stage, time in zip(STAGES, TIMES, strict=True)}


def check(document: object, asked: dict[str, Any] = ASKED, headers: dict[str, str] = HEADERS, question: Question = QUESTION) -> Checked:
    return check_response(200, headers, json.dumps(document).encode(), question, asked)


def test_a_right_response_is_scored_against_the_gold_answers() -> None:
    assert check(body()) == Checked(stages=TIMES, exact=1.0, f1=1.0)


def test_the_best_answer_is_the_one_that_is_scored() -> None:
    answers = [
        {"text": "by Ada Marsh", "start": START - 3, "end": START + 9, "score": 0.5, "source": 0, "is_no_answer": False},
        *body()["answers"],
    ]
    assert check(body(answers=answers)) == Checked(TIMES, 0.0, 0.8)  # 2 of 3 words right, 2 of 2 found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"answer": {"start": START + 1}}, "the passage's own words 'da Marsh'"),
        ({"answer": {"text": "ada marsh"}}, "the passage's own words 'Ada Marsh'"),
        ({"answer": {"end": 10_000}}, "a span within the passage"),
        ({"answer": {"start": -9, "end": -1}}, "a span within the passage"),
        ({"answer": {"source": 1}}, "of passage 1"),
        ({"answer": {"score": 1.01}}, "a score between 0 and 1"),
        ({"answer": {"score": float("nan")}}, "a score between 0 and 1"),
        ({"answer": {"is_no_answer": True, "text": "", "start": 0, "end": 0}}, "expected a span"),
        ({"model": "teacher"}, "expected an answer of the student"),
        ({"answers": []}, "1 to 2 answers, found 0"),
        ({"answers": [body()["answers"][0]] * 3}, "1 to 2 answers, found 3"),
        ({"answers": ["Ada Marsh"]}, "the fields of /v1/answer"),
    ],
)
def test_each_deviation_is_named(change: dict[str, Any], says: str) -> None:
    with pytest.raises(WrongAnswer, match=says):
        check(body(**change))


@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (429, b'{"error": "busy"}', "expected status 200, found 429: .*busy"),
        (500, b"", "found 500 and an empty body"),
        (0, None, "no response"),
        (200, b"<html>", "expected JSON, found: <html>"),
        (200, b"", "expected JSON"),
        (200, b"[]", "the fields of /v1/answer"),
        (200, b"\xff" * 500, "…"),
    ],
)
def test_what_is_no_answer_at_all(status: int, content: bytes | None, says: str) -> None:
    with pytest.raises(WrongAnswer, match=says):
        check_response(status, HEADERS, content, QUESTION, ASKED)


def test_no_answer_counts_only_where_it_was_allowed() -> None:
    asked = request_body(QUESTION, "student", top_k=1, no_answer=True)
    none = body(answer={"is_no_answer": True, "text": "", "start": 0, "end": 0})
    assert check(none, asked) == Checked(TIMES, 0.0, 0.0)
    unanswerable = Question(8, "mill-2", "Who sold the mill?", CONTEXT, ("",))
    assert check(none, asked, question=unanswerable) == Checked(TIMES, 1.0, 1.0)


@pytest.mark.parametrize("value", [None, "-1.0", "nan", "inf", "soon"])
def test_each_stage_has_its_milliseconds_in_a_header(value: str | None) -> None:
    headers = {name: text for name, text in HEADERS.items() if name != "x-queue-ms"} | ({} if value is None else {"x-queue-ms": value})
    with pytest.raises(WrongAnswer, match="milliseconds in the header x-queue-ms, found"):
        check(body(), headers=headers)


def test_every_round_asks_every_question_once_and_each_model_first_half_of_the_time() -> None:
    questions = load_questions()
    drawn = list(itertools.islice(draws(questions, seed=3), 20 * len(questions)))
    for first in range(0, len(drawn), len(questions)):
        assert {question.id for question, _ in drawn[first : first + len(questions)]} == {question.id for question in questions}
    assert {tuple(sorted(order)) for _, order in drawn} == {("student", "teacher")}
    share = sum(order[0] == "teacher" for _, order in drawn) / len(drawn)
    assert 0.45 < share < 0.55
    assert drawn == list(itertools.islice(draws(questions, seed=3), len(drawn)))
    assert drawn != list(itertools.islice(draws(questions, seed=3, stream=1), len(drawn)))


def test_unanswerable_questions_are_asked_only_where_no_answer_is_allowed() -> None:
    assert all(question.golds != ("",) for question in load_questions())
    extra = len(load_questions(unanswerable=True)) - len(load_questions())
    assert extra == sum(question.golds == ("",) for question in load_questions(unanswerable=True)) > 0


@pytest.fixture
def make_log() -> Callable[[], Log]:
    def make() -> Log:
        log = Log()
        for number in range(30):
            question = Question(number, str(number), "?", CONTEXT, ("Ada",))
            student, teacher = (1.0, 0.5, 5.0, 0.5, 7.5), (1.0, 0.5, 10.0, 0.5, 12.5)
            found = {
                "student": Half(10.0 + number, 0.25, Checked(student, 0.0, 0.5)),
                "teacher": Half(2 * (10.0 + number), 0.25, Checked(teacher, 1, 1)),
            }
            log.add(question, found)
        log.add(question, {"teacher": Half(10_000.0, 0.25, Checked(teacher, 1.0, 1.0)), "student": Half(4.0, 3.0, None)})
        return log

    return make


def test_a_pair_with_a_failure_counts_for_its_models_and_not_for_the_ratio(make_log: Callable[[], Log]) -> None:
    log = make_log()
    assert (log.models["student"].requests, log.models["student"].failures) == (31, 1)
    assert (log.models["teacher"].requests, log.models["teacher"].failures) == (31, 0)
    found = ratios(log)
    assert found is not None
    assert found.forward is not None
    assert (found.client.value, found.client.low, found.client.high) == (2.0, 2.0, 2.0)  # each pair is exactly 2 to 1
    assert found.forward.value == 2.0
    assert "30 pairs of 30 questions" in table(log)


def test_workers_exchanges_add_up_and_are_sent_once(make_log: Callable[[], Log]) -> None:
    worker, master = make_log(), Log()
    message = json.loads(json.dumps(worker.take()))  # plain values: they travel as a message
    master.merge(message)
    assert table(master) == table(make_log())
    master.merge(worker.take())
    assert table(master) == table(make_log())


def test_a_log_without_exchanges_is_a_table_too() -> None:
    assert "there is no ratio" in table(Log())


def test_where_the_time_went_adds_up(make_log: Callable[[], Log]) -> None:
    student = make_log().models["student"]
    # 30 answers of 10 to 39 ms, 24.5 on average: 0.25 until they were sent, 7.5 in the server, of which its four stages took 7.
    wanted = {"sent late": 0.25, "tokenise": 1.0, "queue": 0.5, "forward": 5.0, "decode": 0.5, "other in the server": 0.5}
    assert where(student) == pytest.approx(wanted | {"network and HTTP": 24.5 - 0.25 - 7.5, "whole": 24.5})
    slowest = where(student, slowest=True)
    assert slowest is not None
    assert slowest["whole"] == 39.0  # the 99th percentile lies between 38 and 39
    assert where(Log().models["student"]) is None
    assert "slowest 1 % of the student" in table(make_log())


def test_failures_are_late_too_and_have_no_times(make_log: Callable[[], Log]) -> None:
    log = make_log()
    assert sorted(set(log.lags())) == [0.25, 3.0]
    assert (len(log.lags()), len(log.latencies())) == (62, 61)

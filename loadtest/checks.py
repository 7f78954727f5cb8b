"""What makes a response right: status, shape, and answers that are spans of the passage that was sent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.questions import Question
from pocketqa import metrics

SHOWN = 200  # characters of an unexpected body to quote
STAGES = ("tokenise", "queue", "forward", "decode", "total")


class WrongAnswer(Exception):
    """A response that a client could not use; the message says what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What is kept of a right response: milliseconds of each of STAGES, and the best answer's scores, each 0 to 1."""

    stages: tuple[float, ...]
    exact: float
    f1: float


def request_body(question: Question, model: str, top_k: int, no_answer: bool) -> dict[str, Any]:
    """The body of POST /v1/answer."""
    return {"question": question.text, "context": question.context, "model": model, "top_k": top_k, "no_answer": no_answer}


def check_response(status: int, headers: Mapping[str, str], content: bytes | None, question: Question, asked: dict[str, Any]) -> Checked:
    """Read and judge a response to `asked`; headers: names in lower case.  Raises WrongAnswer."""
    if status != 200:
        raise WrongAnswer(f"expected status 200, found {status}{_quoted(content)}" if status else "no response: the connection failed or was closed")
    try:
        body = json.loads(content or b"")
    except ValueError:
        raise WrongAnswer(f"expected JSON, found{_quoted(content)}") from None
    try:
        best = _check_body(body, question, asked)
    except (KeyError, TypeError, AttributeError) as error:
        raise WrongAnswer(f"expected the fields of /v1/answer, found{_quoted(content)} ({type(error).__name__}: {error})") from None
    exact, overlap = metrics.exact_match(best, question.golds), metrics.f1(best, question.golds, squad2=asked["no_answer"])
    return Checked(tuple(_milliseconds(headers, f"x-{stage}-ms") for stage in STAGES), exact, overlap)


def _milliseconds(headers: Mapping[str, str], name: str) -> float:
    """How long a stage took, as the server measured it."""
    try:
        found = float(headers[name])
    except (KeyError, ValueError):
        raise WrongAnswer(f"expected milliseconds in the header {name}, found {headers.get(name)!r}") from None
    if not (math.isfinite(found) and found >= 0):
        raise WrongAnswer(f"expected milliseconds in the header {name}, found {found}")
    return found


def _check_body(body: dict[str, Any], question: Question, asked: dict[str, Any]) -> str:
    """The text of the best answer."""
    if body["model"] != asked["model"]:
        raise WrongAnswer(f"expected an answer of the {asked['model']}, found one of the {body['model']!r}")
    answers = body["answers"]
    if not 1 <= len(answers) <= asked["top_k"]:
        raise WrongAnswer(f"expected 1 to {asked['top_k']} answers, found {len(answers)}")
    for answer in answers:
        _check_answer(answer, question.context, asked["no_answer"])
    return str(answers[0]["text"])


def _check_answer(answer: dict[str, Any], context: str, no_answer: bool) -> None:
    if not 0 <= answer["score"] <= 1:  # false for NaN too
        raise WrongAnswer(f"expected a score between 0 and 1, found {answer['score']}")
    if answer["is_no_answer"]:
        if not no_answer or answer["text"]:
            raise WrongAnswer(f"expected a span of the passage, found no answer with the text {answer['text']!r}")
        return
    start, end = answer["start"], answer["end"]
    if answer["source"] != 0 or not 0 <= start < end <= len(context):
        raise WrongAnswer(f"expected a span within the passage of {len(context)} characters, found {start} to {end} of passage {answer['source']}")
    if answer["text"] != context[start:end]:
        raise WrongAnswer(f"expected the passage's own words {context[start:end]!r} at {start} to {end}, found {answer['text']!r}")


def _quoted(content: bytes | None) -> str:
    text = (content or b"").decode("utf-8", errors="replace")
    return f": {text[:SHOWN]}{'…' if len(text) > SHOWN else ''}" if text else " and an empty body"

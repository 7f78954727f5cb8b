"""Hugging Face's question answering: what `InferenceClient.question_answering` and `@huggingface/inference` send, answered as they expect.

Where the task's reference implementation is silently lenient (unknown parameters, questions cut short, scores above 1) this one refuses, or counts as
everywhere else in the service.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import replace

from fastapi import APIRouter, Response

from pocketqa.errors import InputError
from pocketqa.types import Answer, WindowOptions
from service.api import PROBE_METHODS, STAGE_HEADERS, NamedModel, RunningService, stage_headers
from service.body import LARGE, StrictRoute
from service.errors import MODEL_ERRORS, QUESTION_ERRORS, InvalidRequest, UnknownModel, documented
from service.protocols.huggingface_schemas import (
    LONGEST_ANSWER,
    QuestionAnsweringAnswer,
    QuestionAnsweringColumns,
    QuestionAnsweringPair,
    QuestionAnsweringParameters,
    QuestionAnsweringRequest,
)
from service.protocols.lists import ask_all, check_size, longest
from service.protocols.words import aligned
from service.questions import Question, read_question
from service.schemas import CompareRequest, Health, PlainError, Role
from service.settings import Settings
from service.state import Service

router = APIRouter(route_class=StrictRoute, tags=["Hugging Face"])

Answers = QuestionAnsweringAnswer | list[QuestionAnsweringAnswer]

# Two answers in one word become one when they are widened to it, so more are looked at than are wanted.
_SPARE = 2
_MOST_ANSWERS = 100
_THEIR_NAMES = {
    "max_tokens": "max_seq_len", "max_answer_tokens": "max_answer_len", "max_question_tokens": "max_question_len",
    "no_answer": "handle_impossible_answer",
}  # fmt: skip
_OUR_NAME = re.compile(r"\b(" + "|".join(_THEIR_NAMES) + r")\b")
_HEADERS = STAGE_HEADERS | {
    "x-compute-type": {"description": "What computed: cpu.", "schema": {"type": "string"}},
    "x-compute-time": {"description": "Seconds from the parsed body to the answers.", "schema": {"type": "number"}},
}
_RESPONSES = documented(QUESTION_ERRORS, "/") | {200: {"headers": _HEADERS}}
# Without the last, FastAPI documents a validation error of its own where a path has a parameter.
_HEALTH_RESPONSES = documented((*MODEL_ERRORS, UnknownModel), "/health") | {"4XX": {"model": PlainError, "description": "Any other refusal"}}
_SUMMARY = "Answer questions in Hugging Face's form"


@router.post("/", summary=f"{_SUMMARY}, by the student", responses=_RESPONSES)
@router.post("/predict", summary=f"{_SUMMARY}, by the student", responses=_RESPONSES)
async def predict(body: QuestionAnsweringRequest, response: Response, service: RunningService) -> Answers | list[Answers]:
    """One object for a pair, a list where top_k is more than 1, and a list of these for a list of pairs. An error is {"error": text}."""
    return await _answer("student", body, response, service)


@router.post("/models/{model}", summary=f"{_SUMMARY}, by one of the models", responses=_RESPONSES | documented((UnknownModel,), "/"))
async def predict_by(model: NamedModel, body: QuestionAnsweringRequest, response: Response, service: RunningService) -> Answers | list[Answers]:
    """As POST /predict, by the model that the path names."""
    return await _answer(model, body, response, service)


@router.get("/health", summary="Will questions be answered?", responses=documented(MODEL_ERRORS, "/health"))
@router.api_route("/health", methods=PROBE_METHODS, include_in_schema=False)
async def health(service: RunningService) -> Health:
    """200 once the models are warm, as Hugging Face's `health_check` asks."""
    service.check_ready()
    return Health(status="ready")


@router.get("/models/{model}/health", summary="Will a model's questions be answered?", responses=_HEALTH_RESPONSES)
async def health_of(model: NamedModel, service: RunningService) -> Health:
    """As GET /health: the client puts this behind the address that it was given."""
    return await health(service)


async def _answer(role: Role, body: QuestionAnsweringRequest, response: Response, service: Service) -> Answers | list[Answers]:
    began = time.perf_counter()
    parameters = body.parameters or QuestionAnsweringParameters()
    pairs = _pairs(body.inputs)
    check_size(len(pairs), sum(len(context) for _, context in pairs), service.settings)
    try:
        questions = [_question(question, context, parameters, service.settings) for question, context in pairs]
        answered = await ask_all(service, role, questions)
    except InputError as error:  # the library's messages name the library's options
        raise type(error)(_OUR_NAME.sub(lambda name: _THEIR_NAMES[name[1]], str(error))) from None
    response.headers.update(stage_headers(longest(answered)))
    response.headers.update({"x-compute-type": "cpu", "x-compute-time": f"{time.perf_counter() - began:.6f}"})

    def show() -> list[Answers]:
        return [_shown(each.result.answers, context, parameters) for each, (_, context) in zip(answered, pairs, strict=True)]

    items = show() if sum(len(context) for _, context in pairs) < LARGE else await asyncio.to_thread(show)
    return items[0] if isinstance(body.inputs, QuestionAnsweringPair) else items


def _pairs(inputs: QuestionAnsweringPair | QuestionAnsweringColumns | list[QuestionAnsweringPair]) -> list[tuple[str, str]]:
    """Each question beside its passage."""
    if isinstance(inputs, QuestionAnsweringPair):
        inputs = [inputs]
    if isinstance(inputs, list):
        return [(pair.question, pair.context) for pair in inputs]
    questions = inputs.question
    contexts = [inputs.context] * len(questions) if isinstance(inputs.context, str) else inputs.context
    if len(contexts) != len(questions):
        raise InvalidRequest(f"inputs: expected one context or one for each question, found {len(questions)} questions and {len(contexts)} contexts")
    return list(zip(questions, contexts, strict=True))


def _question(question: str, context: str, parameters: QuestionAnsweringParameters, settings: Settings) -> Question:
    wanted = parameters.top_k or 1
    body = CompareRequest(
        question=question,
        context=context,
        top_k=wanted,
        max_answer_tokens=parameters.max_answer_len,
        no_answer=bool(parameters.handle_impossible_answer),
        max_tokens=parameters.max_seq_len or WindowOptions().max_tokens,
        doc_stride=parameters.doc_stride,
    )
    read = read_question(body, settings)
    if parameters.max_answer_len is None:
        read = replace(read, max_answer_tokens=min(LONGEST_ANSWER, read.max_answer_tokens))
    if parameters.max_question_len is not None:
        read = replace(read, windows=replace(read.windows, max_question_tokens=parameters.max_question_len))
    return replace(read, top_k=min(_MOST_ANSWERS, _SPARE * wanted)) if wanted > 1 and parameters.whole_words else read


def _shown(answers: Sequence[Answer], context: str, parameters: QuestionAnsweringParameters) -> Answers:
    wanted = parameters.top_k or 1
    chosen = aligned(answers, [context], wanted) if parameters.whole_words else answers
    made = [QuestionAnsweringAnswer(score=each.score, start=each.start, end=each.end, answer=each.text) for each in chosen]
    return made if wanted > 1 else made[0]

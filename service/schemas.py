"""What the API takes and gives.  Types are strict (no "3" for 3), unknown keys are refused, offsets are Unicode code points."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pocketqa.types import MAX_WINDOW_TOKENS, SpanOptions, WindowOptions
from service.settings import MOST_REQUESTS

Role = Literal["teacher", "student"]

_WINDOWS, _SPANS = WindowOptions(), SpanOptions()
# Half of the default overlap: what a token's best window is sure to hold after it.
LONGEST_ANSWER_TOKENS = _WINDOWS.doc_stride // 2

Text = Annotated[str, Field(min_length=1, pattern=r"\S")]

_QUESTION = "Who designed the bridge?"
_CONTEXT = "The Kestrel Bridge was designed by Marguerite Oldcastle and opened in 1931."
_TIMINGS: JsonValue = {"tokenise": 0.2, "queue": 0.1, "forward": 6.4, "decode": 0.3, "total": 7.2}
_ANSWER: JsonValue = {"text": "Marguerite Oldcastle", "start": 35, "end": 55, "score": 0.91, "source": 0, "is_no_answer": False}


class Strict(BaseModel):
    """Base of what is taken: types as they are in JSON, no other keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class CompareRequest(Strict):
    """A question put to one passage or several."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"question": _QUESTION, "context": _CONTEXT}]})

    question: Text = Field(description="The question.")
    context: Text | Annotated[list[Text], Field(min_length=1, fail_fast=True)] = Field(
        description="The passage, or a list of passages to search together."
    )
    top_k: Annotated[int, Field(ge=1, le=100)] = Field(_SPANS.top_k, description="How many answers, best first; they do not overlap one another.")
    max_answer_tokens: Annotated[int, Field(ge=1, le=LONGEST_ANSWER_TOKENS)] | None = Field(
        None, description=f"Longest answer in tokens. null: {_SPANS.max_answer_tokens}, or what doc_stride allows where that is less."
    )
    no_answer: bool | None = Field(
        None,
        description='Whether "no answer in this passage" may win. null: yes for a model trained with unanswerable questions, no for another. '
        "true is an error for a model that was not trained with them.",
    )
    max_tokens: Annotated[int, Field(ge=32, le=MAX_WINDOW_TOKENS)] = Field(
        _WINDOWS.max_tokens, description="Tokens of one window; a longer passage is read in several."
    )
    doc_stride: Annotated[int, Field(ge=0, lt=MAX_WINDOW_TOKENS)] | None = Field(
        None, description=f"Tokens that neighbouring windows share. null: {_WINDOWS.doc_stride}, or half of max_tokens where that is less."
    )


class AnswerRequest(CompareRequest):
    """A question put to one passage or several, for one of the models."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"question": _QUESTION, "context": _CONTEXT, "model": "student", "top_k": 1}]})

    model: Role = Field("student", description="Which model answers.")


class AnswersRequest(Strict):
    """Several questions at once, each with a passage, a model and options of its own."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"requests": [{"question": _QUESTION, "context": _CONTEXT}, {"question": "When was it opened?", "context": _CONTEXT}]}]
        }
    )

    requests: Annotated[list[AnswerRequest], Field(min_length=1, max_length=MOST_REQUESTS, fail_fast=True)] = Field(
        description="What POST /v1/answer takes, several times."
    )


class AnswerItem(BaseModel):
    """One answer: a span of a passage, or the statement that there is none."""

    model_config = ConfigDict(json_schema_extra={"examples": [_ANSWER]})

    text: str = Field(description='The words of the passage; "" for no answer.')
    start: int = Field(description="First code point in the passage (as Python counts; JavaScript counts UTF-16 units).")
    end: int = Field(description="One past the last code point.")
    score: float = Field(ge=0, le=1, description="Share among all admissible spans of all windows and passages, and no-answer where it competes.")
    source: int = Field(description="Which passage of the list, from 0.")
    is_no_answer: bool


class Timings(BaseModel):
    """Milliseconds spent on one request."""

    model_config = ConfigDict(json_schema_extra={"examples": [_TIMINGS]})

    tokenise: float = Field(description="Text to windows.")
    queue: float = Field(description="Waiting for the cores.")
    forward: float = Field(description="The neural network.")
    decode: float = Field(description="Logits to answers.")
    total: float = Field(description="From the first stage to the last, the ways between threads included.")


class AnswerResponse(BaseModel):
    """Answers of one model, best first."""

    model: Role
    answers: list[AnswerItem]
    windows: int = Field(description="Model inputs that the passages were cut into.")
    tokens: int = Field(description="Tokens of all windows.")
    timings: Timings


class ModelAnswers(BaseModel):
    """One side of a comparison."""

    name: str
    engine: str
    precision: str
    answers: list[AnswerItem]
    timings: Timings


class Agreement(BaseModel):
    """How far the two best answers agree."""

    same_span: bool = Field(description="The same place, or both say that there is no answer.")
    same_text: bool
    f1: float = Field(ge=0, le=1, description="Overlap of their words, as SQuAD's evaluation counts it.")


class CompareResponse(BaseModel):
    """Teacher and student on the same windows."""

    teacher: ModelAnswers
    student: ModelAnswers
    agreement: Agreement
    speed_ratio: float | None = Field(description="Teacher's forward time over student's: how many times faster the student was, this once.")
    first: Role = Field(description="Which model ran first; drawn anew for each request, so that neither gains from warm caches.")
    windows: int
    tokens: int


class NoAnswerSupport(BaseModel):
    """Whether a model can say that a passage holds no answer."""

    supported: bool
    threshold: float | None = Field(description="How far its score must exceed the best span's, in logits.")


class ModelInfo(BaseModel):
    """One of the models and what computes it."""

    name: str
    role: Role
    engine: str
    engine_version: str
    precision: str
    threads: int
    layers: int | None
    hidden_size: int | None
    parameters: int | None
    weights_bytes: int | None
    weights_sha256: str
    no_answer: NoAnswerSupport


class Limits(BaseModel):
    """The most that one request may ask for."""

    body_bytes: int
    question_chars: int
    context_chars: int
    contexts: int
    windows: int
    top_k: int
    requests: int = Field(description="Questions in one body, where a list of them is taken.")


class ModelsResponse(BaseModel):
    """What is served, within which limits, by which version."""

    models: list[ModelInfo]
    limits: Limits
    shadow: float = Field(description="Share of the student's requests that are put to the teacher too, out of the way of all others, to compare.")
    version: str


class SampleQuestion(BaseModel):
    """A question that comes with a sample passage."""

    question: str
    is_impossible: bool = Field(description="The passage does not hold the answer.")


class Sample(BaseModel):
    """A sample passage with questions."""

    title: str
    context: str
    questions: list[SampleQuestion]


class SamplesResponse(BaseModel):
    """Passages and questions of our own writing, to try the models with."""

    samples: list[Sample]


class Health(BaseModel):
    """The answer of a probe."""

    status: Literal["alive", "ready"]


class ErrorDetail(BaseModel):
    """What went wrong and what to do next."""

    code: str
    message: str
    hint: str | None = None


class ErrorBody(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail


class AnswersResponse(BaseModel):
    """What POST /v1/answer would have answered to each request, in their order: answers, or an error."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "results": [
                        {"model": "student", "answers": [_ANSWER], "windows": 1, "tokens": 28, "timings": _TIMINGS},
                        {"error": {"code": "limit_exceeded", "message": "At most 20 answers (top_k) are taken, found 50."}},
                    ]
                }
            ]
        }
    )

    results: list[AnswerResponse | ErrorBody]


class PlainError(BaseModel):
    """An error in the shape of Hugging Face and of the Open Inference Protocol: one text."""

    error: str

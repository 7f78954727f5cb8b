"""What Hugging Face's question answering takes and gives: the task's published specification, typed strictly."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from pocketqa.types import MAX_WINDOW_TOKENS
from service.schemas import LONGEST_ANSWER_TOKENS, Strict, Text
from service.settings import MOST_REQUESTS

LONGEST_ANSWER = 15  # tokens; the specification's default for max_answer_len

_PAIR: JsonValue = {"question": "Who designed the bridge?", "context": "The Kestrel Bridge was designed by Marguerite Oldcastle and opened in 1931."}


class QuestionAnsweringPair(Strict):
    """One question on one passage."""

    question: Text
    context: Text


class QuestionAnsweringColumns(Strict):
    """Several questions, each on a passage of its own or all on one."""

    question: Annotated[list[Text], Field(min_length=1, max_length=MOST_REQUESTS)]
    context: Text | Annotated[list[Text], Field(min_length=1, max_length=MOST_REQUESTS, fail_fast=True)]


class QuestionAnsweringParameters(Strict):
    """Options of the task. The older names in camelCase (topK, docStride, maxAnswerLen ...) are understood as well; others are refused."""

    top_k: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None, description="How many answers. Absent, null, 1: one object; more: a list."
    )
    doc_stride: Annotated[int, Field(ge=0, lt=MAX_WINDOW_TOKENS)] | None = Field(default=None, description="Tokens that neighbouring windows share.")
    max_seq_len: Annotated[int, Field(ge=32, le=MAX_WINDOW_TOKENS)] | None = Field(default=None, description="Tokens of a window, question included.")
    max_answer_len: Annotated[int, Field(ge=1, le=LONGEST_ANSWER_TOKENS)] | None = Field(
        default=None, description=f"Longest answer in tokens. Absent or null: {LONGEST_ANSWER}, or what doc_stride allows where that is less."
    )
    max_question_len: Annotated[int, Field(ge=1, le=MAX_WINDOW_TOKENS)] | None = Field(
        default=None, description="Longest question in tokens; a longer one is refused, since a cut question is another question."
    )
    handle_impossible_answer: bool | None = Field(
        default=None, description='Whether "no answer", the empty text, may win. Absent or null: no. true is an error for a model not trained for it.'
    )
    align_to_words: bool | None = Field(default=None, description="Whether answers are widened to whole words. Absent or null: yes.")

    @property
    def whole_words(self) -> bool:
        """Whether answers are widened."""
        return self.align_to_words is not False

    @model_validator(mode="before")
    @classmethod
    def _older_names(cls, found: Any) -> Any:
        if not isinstance(found, dict):
            return found
        renamed = {_OLDER_NAMES.get(name, name): value for name, value in found.items()}
        if len(renamed) != len(found):
            raise ValueError("a parameter stands there under its older and its newer name; which value is meant?")
        return renamed


_OLDER_NAMES = {re.sub(r"_(\w)", lambda match: match[1].upper(), name): name for name in QuestionAnsweringParameters.model_fields}


class QuestionAnsweringRequest(Strict):
    """A question, or several, in the form of Hugging Face's task."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"inputs": _PAIR, "parameters": {"top_k": 1}}]})

    inputs: (
        QuestionAnsweringPair
        | QuestionAnsweringColumns
        | Annotated[list[QuestionAnsweringPair], Field(min_length=1, max_length=MOST_REQUESTS, fail_fast=True)]
    ) = Field(description="A pair; or a list of questions with one context or as many; or a list of pairs. A list is answered by a list.")
    parameters: QuestionAnsweringParameters | None = Field(default=None, description="Options, the same for every question.")


class QuestionAnsweringAnswer(BaseModel):
    """One answer: a span of the passage, or the empty text where "no answer" won."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"score": 0.91, "start": 35, "end": 55, "answer": "Marguerite Oldcastle"}]})

    score: float = Field(ge=0, le=1, description="Share among all admissible spans, and no-answer where it competes.")
    start: int = Field(description="First code point in the passage.")
    end: int = Field(description="One past the last code point.")
    answer: str

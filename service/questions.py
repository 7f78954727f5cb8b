"""From a request body to the library's own types, within the limits of this service."""

from __future__ import annotations

from dataclasses import dataclass

from pocketqa.errors import TextError
from pocketqa.features import Encoded
from pocketqa.reader import Reader
from pocketqa.spans import longest_safe_answer
from pocketqa.types import SPECIAL_TOKENS, NoAnswer, Request, SpanOptions, WindowOptions
from service.errors import LimitExceeded
from service.schemas import CompareRequest
from service.settings import Settings

# Windows are counted exactly once they are made; before, an estimate this many times over the limit refuses to make them.
_ESTIMATE_SLACK = 8


@dataclass(frozen=True, slots=True)
class Question:
    """A checked request and how it is to be read."""

    request: Request
    windows: WindowOptions
    top_k: int
    max_answer_tokens: int
    no_answer: bool | None

    def span_options(self, no_answer: NoAnswer) -> SpanOptions:
        """Options for one model; no-answer is left to what the model was trained for unless the caller decided."""
        wanted = no_answer.trained if self.no_answer is None else self.no_answer
        return SpanOptions(max_answer_tokens=self.max_answer_tokens, top_k=self.top_k, no_answer=wanted)


def read_question(body: CompareRequest, settings: Settings) -> Question:
    """The question of a body.  Raises LimitExceeded naming limit and value found, OptionsError for contradictory options."""
    contexts = (body.context,) if isinstance(body.context, str) else tuple(body.context)
    for found, most, what in (
        (len(body.question), settings.max_question_chars, "characters in the question"),
        (len(contexts), settings.max_contexts, "passages in context"),
        (sum(map(len, contexts)), settings.max_context_chars, "characters in context"),
        (body.top_k, settings.max_top_k, "answers (top_k)"),
    ):
        if found > most:
            raise LimitExceeded(f"At most {most:,} {what} are taken, found {found:,}.")
    stride = min(WindowOptions().doc_stride, body.max_tokens // 2) if body.doc_stride is None else body.doc_stride
    options = WindowOptions(max_tokens=body.max_tokens, doc_stride=stride, max_question_tokens=_longest_question(body.max_tokens))
    longest = body.max_answer_tokens or min(SpanOptions().max_answer_tokens, longest_safe_answer(stride))
    return Question(Request(body.question, contexts), options, body.top_k, longest, body.no_answer)


def encode(reader: Reader, question: Question, max_windows: int) -> Encoded:
    """The windows of a question.  Raises LimitExceeded for too many, TextError and OptionsError as the tokenizer does."""
    # A step of a few tokens would make a window of nearly every token; a token has about one character at the least.
    if sum(map(len, question.request.contexts)) > _ESTIMATE_SLACK * max_windows:
        taken = SPECIAL_TOKENS + reader.tokenizer.count_tokens(question.request.question) + question.windows.doc_stride
        step = question.windows.max_tokens - taken
        if step > 0:  # else the tokenizer says that there is no room
            estimate = sum(len(context) // step for context in question.request.contexts) // _ESTIMATE_SLACK
            _check_windows(estimate, max_windows, "at least about ")
    try:
        encoded = reader.encode([question.request], question.windows)
    except TextError as error:
        raise TextError(_in_reach(str(error), question.windows)) from None
    _check_windows(len(encoded.windows), max_windows, "")
    return encoded


def _longest_question(max_tokens: int) -> int:
    """Tokens of a question where a request does not say it."""
    return min(WindowOptions().max_question_tokens, max_tokens // 2)


def _in_reach(message: str, options: WindowOptions) -> str:
    """The sentence on a question of too many tokens, with what a request that did not choose their number can do."""
    if options.max_question_tokens != _longest_question(options.max_tokens):
        return message
    advice = "Shorten it." if options.max_question_tokens == WindowOptions().max_question_tokens else "Shorten it or raise max_tokens."
    return message.replace("Shorten it or raise max_question_tokens.", advice)


def _check_windows(found: int, most: int, about: str) -> None:
    if found > most:
        raise LimitExceeded(
            f"At most {most:,} windows are read for one request; this one needs {about}{found:,}. Send less text, or lower doc_stride."
        )

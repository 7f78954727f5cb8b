"""The values that flow through PocketQA, from the file to the answer.

Legend for shapes: N examples or requests, W windows, B rows of one batch, T token positions of a window or batch.
Character positions are Unicode code points (what Python counts), never bytes or UTF-16 units.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketqa.errors import OptionsError

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]

MAX_WINDOW_TOKENS = 512  # the position table of every BERT-family model served here
SPECIAL_TOKENS = 3  # [CLS] question [SEP] passage [SEP]


@dataclass(frozen=True, slots=True)
class GoldAnswer:
    """One annotator's answer: its text and the code point at which it starts in the context."""

    text: str
    start: int


@dataclass(frozen=True, slots=True)
class QAExample:
    """One question on one context, as read from a SQuAD-format file."""

    id: str
    question: str
    context: str
    answers: tuple[GoldAnswer, ...] = ()
    is_impossible: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One question put to one or more passages."""

    question: str
    contexts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WindowOptions:
    """How question and passage become windows of a fixed budget.

    max_tokens: positions of a window, special tokens included.
    doc_stride: tokens that two neighbouring windows of a passage share (the overlap, as in transformers; Google's BERT code gives the same name to
        the step).  128 is the value of the BERT SQuAD recipe.
    max_question_tokens: a longer question is an error, since a cut question is another question.
    """

    max_tokens: int = 384
    doc_stride: int = 128
    max_question_tokens: int = 64

    def __post_init__(self) -> None:
        problems = []
        if not 16 <= self.max_tokens <= MAX_WINDOW_TOKENS:
            problems.append(f"max_tokens must be between 16 and {MAX_WINDOW_TOKENS}, found {self.max_tokens}")
        if not 1 <= self.max_question_tokens <= self.max_tokens - SPECIAL_TOKENS - 1:
            problems.append(
                f"max_question_tokens must leave room for the passage: between 1 and max_tokens - {SPECIAL_TOKENS + 1}"
                f" = {self.max_tokens - SPECIAL_TOKENS - 1}, found {self.max_question_tokens}"
            )
        if not 0 <= self.doc_stride < self.max_tokens:
            problems.append(f"doc_stride (the overlap) must be between 0 and max_tokens - 1 = {self.max_tokens - 1}, found {self.doc_stride}")
        if problems:
            raise OptionsError("; ".join(problems))


@dataclass(frozen=True, slots=True)
class SpanOptions:
    """Which spans may be answers, and how many are wanted.

    max_answer_tokens: longest span in tokens.
    top_k: number of answers, best first.
    no_answer: let "no answer in this passage" compete with the spans (only for checkpoints trained with unanswerable questions).
    no_answer_threshold: how far the no-answer score must exceed the best span's to win (logits; the official "null score difference").
        None takes the model's own, chosen on a development split.
    overlaps: return spans that overlap a better one too ("Broncos" beside "Denver Broncos").
    """

    max_answer_tokens: int = 30
    top_k: int = 1
    no_answer: bool = False
    no_answer_threshold: float | None = None
    overlaps: bool = False

    def __post_init__(self) -> None:
        problems = []
        if not 1 <= self.max_answer_tokens <= MAX_WINDOW_TOKENS:
            problems.append(f"max_answer_tokens must be between 1 and {MAX_WINDOW_TOKENS}, found {self.max_answer_tokens}")
        if not 1 <= self.top_k <= 100:
            problems.append(f"top_k must be between 1 and 100, found {self.top_k}")
        if self.no_answer_threshold is not None and not np.isfinite(self.no_answer_threshold):
            problems.append(f"no_answer_threshold must be finite, found {self.no_answer_threshold}")
        if problems:
            raise OptionsError("; ".join(problems))


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """[CLS] question [SEP] part of a passage [SEP], unpadded."""

    ids: Ints  # (T,)
    token_types: Ints  # (T,) 0 for question, 1 for passage and its [SEP]
    offsets: Ints  # (T, 2) code points of each passage token in its passage; 0 0 elsewhere
    context_mask: Bools  # (T,) True on passage tokens
    max_context: Bools  # (T,) True on passage tokens that have their best context in this window
    request: int  # which request of the encoded list
    source: int  # which passage of that request
    first_token: int  # index in the passage's tokens of this window's first passage token

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Windows padded to one length, ready for an engine."""

    ids: Ints  # (B, T)
    token_types: Ints  # (B, T)
    mask: Ints  # (B, T) 1 on tokens, 0 on padding

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T)."""
        return self.ids.shape[0], self.ids.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class SpanLogits:
    """What a runtime returns: one start and one end logit a position."""

    start: Floats  # (B, T)
    end: Floats  # (B, T)


@dataclass(frozen=True, slots=True)
class Answer:
    """A span of a passage, or the statement that there is none.

    start, end: code points in the passage `source`, end exclusive; `text == passage[start:end]`.  No answer has text "", start = end = 0.
    score: share of this answer among all admissible spans (and no-answer, where allowed), in [0, 1].
    """

    text: str
    start: int
    end: int
    score: float
    source: int = 0
    is_no_answer: bool = False


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Seconds spent in each stage of one request."""

    tokenise: float = 0.0
    queue: float = 0.0
    forward: float = 0.0
    decode: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all stages."""
        return self.tokenise + self.queue + self.forward + self.decode


@dataclass(frozen=True, slots=True)
class Result:
    """The answers to one request, best first (at least one unless nothing was admissible), with timings and sizes."""

    answers: tuple[Answer, ...]
    timings: StageTimings = field(default_factory=StageTimings)
    windows: int = 0
    tokens: int = 0

    @property
    def best(self) -> Answer:
        """The first answer."""
        return self.answers[0]


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """Whether a checkpoint was trained with unanswerable questions, and the threshold chosen for it on a development split."""

    trained: bool = False
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """What computes the logits: engine and version, precision of the arithmetic, threads."""

    engine: str
    version: str
    precision: str
    threads: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Exact match and F1 in percent over `count` questions, in total and by group."""

    exact_match: float
    f1: float
    count: int
    by_question_word: dict[str, Scores] = field(default_factory=dict)
    by_answer_words: dict[str, Scores] = field(default_factory=dict)


JSON = dict[str, Any]

"""Golden vectors: what the checkpoint itself computes, in numbers, for the tests of an app and for `pocketqa verify`.

golden.json of a bundle:

    {"format": 1, "engine": "PyTorch 2.x fp32", "window": {"max_tokens", "doc_stride", "max_question_tokens"},
     "questions": [{"question", "context",
                    "windows": [{"ids": [...], "start_logits": [...], "end_logits": [...]}],       without padding, as many as the passage needs
                    "answer": {"text", "start", "end", "utf16_start", "utf16_end", "score"},        code points, and what Swift's NSRange counts
                    "gap": 1.25}],                                                                 best span's logits minus the next one's
     "texts": [{"text", "ids", "utf16": [[start, end], ...],                                       the tokenizer alone, on awkward text
                "whole": [[start, end], ...]}]}                                                    the answer that each token alone would be

The questions are this project's own (pocketqa/samples.json): one on each passage, and one of the passages is longer than any window.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketqa import spans, squad
from pocketqa.errors import CorruptFolder, InputError, OptionsError
from pocketqa.features import Encoded, Tokenizer, collate
from pocketqa.golden import DIGITS, TWO_BEST
from pocketqa.types import JSON, MAX_WINDOW_TOKENS, NoAnswer, Request, SpanLogits, SpanOptions, Window, WindowOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pocketqa.runtimes.base import Runtime

FORMAT = 1
SAMPLES = Path(squad.__file__).with_name("samples.json")
SCORE_DIGITS = 6
MOST_WINDOWS = 8  # of one question: short windows would fill the file with numbers
SHORT_QUESTION = "Who?"  # where windows are too short for a real one

AWKWARD_TEXTS = (
    "It's a well-known café: crème brûlée, £3.50 (or ¥500)!",
    "e\u0301clair naïve Ångström ŁÓDŹ İstanbul Straße ΣΊΣΥΦΟΣ",
    "東京タワーは333メートル。한국어 서울",
    "tabs\tand\nlines\r\nnon\u00a0breaking\u2003wide\u200bzero\ufeffmark\u0007bell\ufffdlost",
    "\U0001f469\u200d\U0001f680 flies 🚀🚀 with \U0001f44d\U0001f3fd and \u2764\ufe0f €5 ½ x² … “quoted” \u2018text\u2019 — dash\u2013dash",
    "[CLS] typed [SEP] by [PAD] a [MASK] user [UNK]",
    "donaudampfschifffahrtsgesellschaftskapitän" * 3,
    "हिन्दी ไทย עִבְרִית العَرَبِيَّة",
    "a_b*c/d\\e|f~g`h^i+j=k<l>m#n$o%p&q@r",
    "press #\ufe0f\u20e3 or *\ufe0f\u20e3 in \U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",
)
"""Text on which tokenizers differ: accents composed and not, capitals of other alphabets, ideographs, control and zero-width characters, emoji made
of several code points, special tokens that a user types, words beyond WordPiece's 100 characters, vowel signs, every ASCII sign, keys and a flag
made of several code points, of which some are tokens and some are dropped."""


def golden_vectors(
    model: PreTrainedModel, tokenizer: Tokenizer, window: WindowOptions, no_answer: NoAnswer | None = None, lengths: Sequence[int] = ()
) -> str:
    """The text of golden.json, computed by the checkpoint in float32, one window at a time and in one thread: the same bytes on every run.

    lengths: those of the bundle, ascending.  Windows are padded to them where the model feels padding: MobileBERT mixes each position with the next.
    Raises OptionsError where the windows are too short for any question.
    """
    import torch

    from pocketqa.runtimes.pytorch import PyTorchRuntime

    questions = []
    padded = lengths if getattr(model.config, "trigram_input", False) else ()
    with _one_thread():
        runtime = PyTorchRuntime(model)
        for question, context in golden_pairs():
            if encoded := _fitting(tokenizer, question, context, window):
                questions.append(_question(encoded, _logits(runtime, encoded, padded, tokenizer.pad_id), no_answer))
    if not questions:
        raise OptionsError(f"Windows of {window.max_tokens} tokens have no room for a question. Choose a greater --length.")
    document = {
        "format": FORMAT,
        "engine": f"PyTorch {torch.__version__} fp32",
        "window": asdict(window),
        "questions": questions,
        "texts": [_text(tokenizer, text) for text in AWKWARD_TEXTS],
    }
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"


def read_vectors(path: Path) -> JSON:
    """golden.json of a bundle.  Raises CorruptFolder."""
    try:
        document: JSON = json.loads(path.read_bytes())
        if document["format"] != FORMAT:
            raise ValueError(f"format {document['format']!r}; a newer PocketQA may read it")
        if not document["questions"]:
            raise ValueError("no questions")
        return document
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptFolder(f"Expected golden vectors of format {FORMAT} at {path}, found: {error}.") from None


def golden_pairs() -> Sequence[tuple[str, str]]:
    """The first answerable question on each sample passage."""
    pairs: dict[str, str] = {}
    for example in squad.load(SAMPLES):
        if not example.is_impossible:
            pairs.setdefault(example.context, example.question)
    return [(question, context) for context, question in pairs.items()]


def utf16_length(text: str) -> int:
    """What Swift's NSString and NSRange count."""
    return len(text.encode("utf-16-le")) // 2


def _fitting(tokenizer: Tokenizer, question: str, context: str, window: WindowOptions) -> Encoded | None:
    """The windows of a question, which short windows replace by a shorter one; a passage that makes too many is halved.  None where nothing fits."""
    for asked in (question, SHORT_QUESTION):
        text = context
        try:
            encoded = tokenizer.encode([Request(asked, (text,))], window)
            while len(encoded.windows) > MOST_WINDOWS:
                text = text[: len(text) // 2].rsplit(" ", 1)[0]
                encoded = tokenizer.encode([Request(asked, (text,))], window)
            return encoded
        except InputError:
            continue
    return None


def _logits(runtime: Runtime, encoded: Encoded, lengths: Sequence[int], pad_id: int) -> SpanLogits:
    """Logits (W, T), each window by itself, since batches of other sizes would round otherwise, and padded to the least of the lengths, if any."""
    longest = max(map(len, encoded.windows))
    start = np.zeros((len(encoded.windows), longest), np.float32)  # (W, T)
    end = np.zeros_like(start)  # (W, T)
    for row, window in enumerate(encoded.windows):
        length = next((length for length in lengths if length >= len(window)), None)
        logits = runtime.forward(collate([window], length, pad_id))
        start[row, : len(window)], end[row, : len(window)] = logits.start[0, : len(window)], logits.end[0, : len(window)]
    return SpanLogits(start, end)


def _question(encoded: Encoded, logits: SpanLogits, no_answer: NoAnswer | None) -> JSON:
    request = encoded.requests[0]
    context = request.contexts[0]
    answers = spans.decode(encoded, logits, _span_options(encoded), no_answer)[0].answers
    best = answers[0]
    windows = [_window(window, logits.start[row], logits.end[row]) for row, window in enumerate(encoded.windows)]
    return {
        "question": request.question,
        "context": context,
        "windows": windows,
        "answer": {
            "text": best.text,
            "start": best.start,
            "end": best.end,
            "utf16_start": utf16_length(context[: best.start]),
            "utf16_end": utf16_length(context[: best.end]),
            "score": round(best.score, SCORE_DIGITS),
        },
        "gap": round(math.log(best.score / answers[1].score), DIGITS) if len(answers) > 1 else 0.0,
    }


def _span_options(encoded: Encoded) -> SpanOptions:
    """The two best spans, as long as no border of windows can cut them (the rule of `QuestionAnswering.swift` too)."""
    longest = min(TWO_BEST.max_answer_tokens, spans.longest_safe_answer(encoded.options.doc_stride))
    return replace(TWO_BEST, max_answer_tokens=longest)


def _window(window: Window, start: NDArray[np.float32], end: NDArray[np.float32]) -> JSON:
    return {"ids": window.ids.tolist(), "start_logits": _rounded(start[: len(window)]), "end_logits": _rounded(end[: len(window)])}


def _text(tokenizer: Tokenizer, text: str) -> JSON:
    """A text by itself: its token ids, and where in it each token and the whole characters around it stand, in UTF-16 units."""
    window = tokenizer.encode([Request("?", (text,))], WindowOptions(MAX_WINDOW_TOKENS)).windows[0]
    inside = window.context_mask
    places = window.offsets[inside].tolist()
    return {
        "text": text,
        "ids": window.ids[inside].tolist(),
        "utf16": [[utf16_length(text[:place]) for place in token] for token in places],
        "whole": [[utf16_length(text[:place]) for place in spans.whole_characters(text, *token)] for token in places],
    }


def _rounded(logits: NDArray[np.float32]) -> list[float]:
    return [round(float(value), DIGITS) for value in logits]


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

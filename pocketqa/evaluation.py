"""A reader on a data file: its answers, what each of them scores, and the logits behind them.

`predict` keeps the answers only and serves evaluation; `measure` keeps what a comparison with another form of the same model needs.

Legend: N examples, W windows of one chunk, T positions, P passage tokens of all windows (one in two windows counts twice).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketqa import metrics, spans
from pocketqa.errors import DataError, OptionsError, TextError, TrainingError
from pocketqa.features import Encoded, Tokenizer, padded_flags
from pocketqa.folders import ModelFolder, safetensors_header, sha256_file
from pocketqa.reader import Reader
from pocketqa.runtimes import open_runtime
from pocketqa.types import Floats, NoAnswer, QAExample, Request, Result, Scores, SpanLogits, SpanOptions, WindowOptions

CHUNK = 256  # questions encoded, computed and decoded at once
LONG_QUESTION = 256  # evaluation refuses no question: every SQuAD question is far shorter
PROGRESS_SECONDS = 10.0

Span = tuple[int, int, int]  # passage, first code point, one past the last; (-1, 0, 0) says that there is no answer
Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Answers by question id, and the quantity a no-answer threshold is compared with."""

    texts: dict[str, str]
    margins: Floats  # (N,) null score minus best span score, in the order of the examples
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What a reader made of every example, in their order.

    gaps: logits between the best and the second-best answer, the measure of how close a call it was (infinite where there is only one).
    start, end: logits of every passage token of every window; of two readers of one vocabulary they are of the same tokens.
    seconds: of the whole.
    """

    texts: dict[str, str]
    spans: tuple[Span, ...]  # (N,)
    gaps: Values  # (N,)
    exact: Values  # (N,) 0 or 1
    f1: Values  # (N,) 0 to 1
    scores: Scores
    start: Floats  # (P,)
    end: Floats  # (P,)
    seconds: float


def evaluation_windows(options: WindowOptions | None = None) -> WindowOptions:
    """The window options with room for long questions: to refuse one would change the score."""
    options = options or WindowOptions()
    return replace(options, max_question_tokens=min(LONG_QUESTION, options.max_tokens - 8))


def longest_window(tokenizer: Tokenizer, examples: Sequence[QAExample]) -> int:
    """Tokens of the longest window in which the examples will be asked.  Raises DataError where one of them cannot be."""
    return max(len(window) for _, encoded in _encoded(tokenizer, examples, evaluation_windows()) for window in encoded.windows)


def check_askable(tokenizer: Tokenizer, examples: Sequence[QAExample], window_options: WindowOptions, span_options: SpanOptions) -> None:
    """Finds before a run what would end it in its midst.  Raises DataError for a question that cannot be asked, OptionsError for answers so long that
    the windows of a passage do not overlap enough.
    """
    for _, encoded in _encoded(tokenizer, examples, window_options):
        spans.check_overlap(encoded.windows, span_options, window_options.doc_stride)


def judged(examples: Sequence[QAExample], no_answer: NoAnswer, say: Callable[[str], None]) -> list[QAExample]:
    """The examples that a gate on F1 may look at: a model that cannot say "no answer" is wrong on every unanswerable one, before and after, and those
    would only dilute what it loses.  Raises DataError where none is left.
    """
    kept = [example for example in examples if no_answer.trained or not example.is_impossible]
    if not kept:
        raise DataError("Expected questions that their passages answer, found none, and the model was not trained to say that there is no answer.")
    if left := len(examples) - len(kept):
        say(f"{left:,} questions without an answer are left out: the model was not trained for them (`package --no-answer` says that one was)")
    return kept


def open_reader(source: str, engine: str = "auto", precision: str | None = None, threads: int | None = None) -> Reader:
    """A packaged folder through any engine, or a trained checkpoint through PyTorch."""
    folder = ModelFolder(Path(source))
    if folder.graph.exists():
        return Reader.open(source, engine=engine, precision=precision, threads=threads)
    if engine not in {"auto", "pytorch"}:
        raise OptionsError(f"{source} is not a packaged model, so only PyTorch can run it. Package it first: pocketqa package {source} --out DIR")
    _check_head(folder)
    runtime = open_runtime(folder, "pytorch", precision, threads)
    name, no_answer = folder.path.name, NoAnswer()
    if folder.manifest.exists():
        manifest = folder.read_manifest()
        name, no_answer = manifest.name, manifest.no_answer
    return Reader(Tokenizer(folder.tokenizer), runtime, name, sha256_file(folder.weights), no_answer)


def predict(
    reader: Reader,
    examples: Sequence[QAExample],
    window_options: WindowOptions | None = None,
    span_options: SpanOptions | None = None,
    progress: bool = False,
) -> Predictions:
    """The best answer to every question, in chunks, so that memory stays flat on any file."""
    began = time.monotonic()
    texts: dict[str, str] = {}
    margins = []
    for chunk, encoded, logits, results in _answered(reader, examples, window_options, span_options, progress):
        texts |= {example.id: result.best.text for example, result in zip(chunk, results, strict=True)}
        margins.append(spans.null_margins(encoded, logits, span_options))
    return Predictions(texts, np.concatenate(margins), time.monotonic() - began)


def measure(
    reader: Reader,
    examples: Sequence[QAExample],
    *,
    window_options: WindowOptions | None = None,
    span_options: SpanOptions | None = None,
    progress: bool = False,
) -> Measured:
    """Answers, spans, gaps, scores and logits of every question; about 1.5 kB an example stay in memory.

    window_options: None takes those of the SQuAD recipe; either way long questions are let in.  span_options: `top_k` and `overlaps` are chosen here.
    """
    began = time.monotonic()
    two_best = replace(span_options or SpanOptions(), top_k=2, overlaps=True)
    texts: dict[str, str] = {}
    found: list[Span] = []
    gaps: list[float] = []
    starts, ends = [], []
    for chunk, encoded, logits, results in _answered(reader, examples, evaluation_windows(window_options), two_best, progress):
        for example, result in zip(chunk, results, strict=True):
            best = result.best
            texts[example.id] = best.text
            found.append((-1, 0, 0) if best.is_no_answer else (best.source, best.start, best.end))
            gaps.append(_gap(result))
        on_passage = padded_flags((window.context_mask for window in encoded.windows), logits.start.shape[1])  # (W, T)
        starts.append(logits.start[on_passage])
        ends.append(logits.end[on_passage])
    exact, f1 = metrics.per_question(texts, examples)
    scores = metrics.summarise(exact, f1, examples)
    seconds = time.monotonic() - began
    return Measured(texts, tuple(found), np.array(gaps), exact, f1, scores, np.concatenate(starts), np.concatenate(ends), seconds)


def read_predictions(path: str) -> dict[str, str]:
    """A JSON object from question id to answer text.  Raises DataError naming the entry that is not."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8").removeprefix("\ufeff"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a JSON object of question id -> answer text: {error}.") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected a JSON object of question id -> answer text, found {type(document).__name__}.")
    for key, value in document.items():
        if not isinstance(value, str):
            raise DataError(f"{path}: expected text as the answer to {key!r}, found {value!r}. No answer is the empty text.")
    return document


def _answered(
    reader: Reader, examples: Sequence[QAExample], window_options: WindowOptions | None, span_options: SpanOptions | None, progress: bool
) -> Iterator[tuple[Sequence[QAExample], Encoded, SpanLogits, list[Result]]]:
    """Chunk by chunk: the examples, their windows, the logits (W, T) and the answers; tells rate and time left on standard error."""
    began = told = time.monotonic()
    done = 0
    for chunk, encoded in _encoded(reader.tokenizer, examples, window_options):
        logits = reader.forward(encoded)
        yield chunk, encoded, logits, reader.decode(encoded, logits, span_options)
        done, now = done + len(chunk), time.monotonic()
        if progress and now - told > PROGRESS_SECONDS:
            left = (now - began) / done * (len(examples) - done)
            rate = f"{done}/{len(examples)} questions, {done / (now - began):.1f} a second, {left / 60:.1f} min left"
            print(f"{reader.name} ({reader.info.engine} {reader.info.precision}): {rate}", file=sys.stderr, flush=True)
            told = now


def _encoded(
    tokenizer: Tokenizer, examples: Sequence[QAExample], window_options: WindowOptions | None
) -> Iterator[tuple[Sequence[QAExample], Encoded]]:
    for at in range(0, len(examples), CHUNK):
        chunk = examples[at : at + CHUNK]
        try:
            encoded = tokenizer.encode([Request(e.question, (e.context,)) for e in chunk], window_options)
        except TextError as error:
            if len(chunk) > 1:  # of which one it does not say
                list(_encoded(tokenizer, chunk[: len(chunk) // 2], window_options))
                list(_encoded(tokenizer, chunk[len(chunk) // 2 :], window_options))
            why = str(error).replace("Shorten it or raise max_question_tokens.", "Shorten it, or leave it out.")
            raise DataError(f"The question {chunk[0].id!r} cannot be asked: {why}") from None
        yield chunk, encoded


def _gap(result: Result) -> float:
    if len(result.answers) < 2:
        return float("inf")
    best, second = (answer.score for answer in result.answers)
    return float(np.log(best / second)) if second > 0 else float("inf")  # scores are shares of exp(logits): their ratio gives the difference


def _check_head(folder: ModelFolder) -> None:
    if not folder.weights.is_file():
        raise TrainingError(f"Expected a packaged folder or a trained checkpoint with model.safetensors at {folder.path}, found none.")
    if "qa_outputs.weight" not in safetensors_header(folder.weights):
        raise TrainingError(f"{folder.path} has no question-answering head. Train one with: pocketqa finetune {folder.path} --data FILE --out DIR")

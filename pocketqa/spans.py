"""Start and end logits to answers.

z(i, j) = start_i + end_j over every admissible span of every window and passage of a request: i and j on passage tokens, i <= j, at most
max_answer_tokens long, and counted only in the window where token i has its most context, so that no span of an overlap counts twice.
score(i, j) = exp z(i, j) / (sum of exp z over admissible spans + exp(null - threshold) when no-answer is allowed),
worked in the log domain.  null is the lowest start + end logit of [CLS] over the windows: there is no answer only if no window
holds one (the rule of Google's BERT run_squad.py); the threshold shifts it, so that the order of scores is the thresholded decision.
Training compares tokens with those of their own window alone, so that logits of several windows have no common scale.  Where the checkpoint was
trained with questions without an answer (NoAnswer.trained; windows that lack the answer of a question that has one do not make it so), they are taken
beside their window's [CLS], as by Alberti et al. 2019 ("A BERT baseline for the Natural Questions"): z is then how much likelier a span is than that
its window holds no answer, and null is 0.

Legend: W windows of one request, T positions, L longest span in tokens.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pocketqa.errors import EngineError, OptionsError
from pocketqa.features import Encoded, padded_flags
from pocketqa.types import Answer, Floats, NoAnswer, Request, Result, SpanLogits, SpanOptions, StageTimings, Window

SARA_AM = "\u0e33\u0eb3"  # of Thai and Lao: a vowel with a mark in it
ZERO_WIDTH_JOINER = "\u200d"
LONGEST_CHARACTER = 32  # code points: Unicode's stream-safe text has at most 30 marks in a row, and no emoji has as many parts
FIRST_MARK = "\u0300"  # of all that joins: letters of most texts need no look into Unicode's tables
WINDOWS_AT_ONCE = 8  # of one array z: temporaries stay below a megabyte, and short passages are not padded to a long one far from them


def decode(encoded: Encoded, logits: SpanLogits, options: SpanOptions | None = None, no_answer: NoAnswer | None = None) -> list[Result]:
    """Answers of every encoded request from logits (W, T) over all of its windows.

    Raises OptionsError for no-answer from a checkpoint not trained for it and for spans longer than the overlap can hold; EngineError
    for logits of another shape or not finite.
    """
    options, no_answer = options or SpanOptions(), no_answer or NoAnswer()
    check_options(encoded, options, no_answer)
    threshold = _null_threshold(options, no_answer)
    _check_logits(encoded, logits)
    results = []
    for request, (first, last) in zip(encoded.requests, encoded.ranges, strict=True):
        began = time.perf_counter()
        windows = encoded.windows[first:last]
        start, end = logits.start[first:last], logits.end[first:last]
        answers = _decode_request(request, windows, start, end, options, threshold, _beside(start, end, no_answer.trained))
        tokens = sum(len(window) for window in windows)
        results.append(Result(answers, StageTimings(decode=time.perf_counter() - began), len(windows), tokens))
    return results


def check_options(encoded: Encoded, options: SpanOptions, no_answer: NoAnswer | None = None) -> None:
    """Raises what `decode` would raise about options, so that a caller can ask before a forward pass is spent."""
    _null_threshold(options, no_answer or NoAnswer())
    for first, last in encoded.ranges:
        check_overlap(encoded.windows[first:last], options, encoded.options.doc_stride)


def null_margins(encoded: Encoded, logits: SpanLogits, options: SpanOptions | None = None) -> Floats:
    """(N,) null score minus best span score of a checkpoint that was trained for it: the quantity that a no-answer threshold is compared with."""
    options = options or SpanOptions()
    margins = np.zeros(len(encoded.requests), dtype=np.float32)
    for r, (first, last) in enumerate(encoded.ranges):
        start, end = logits.start[first:last], logits.end[first:last]
        beside = _beside(start, end, trained=True)
        z = span_scores(encoded.windows[first:last], start, end, options.max_answer_tokens, beside)
        margins[r] = (_nulls(start, end) - beside).min() - z.max()
    return margins


def _nulls(start: Floats, end: Floats) -> NDArray[np.float64]:
    """(W,) start + end logit of [CLS]."""
    return start[:, 0].astype(np.float64) + end[:, 0]


def _beside(start: Floats, end: Floats, trained: bool) -> NDArray[np.float64]:
    """(W,) what the scores of each window are taken beside: of several, [CLS] where the checkpoint was trained with windows without an answer."""
    return _nulls(start, end) if trained and len(start) > 1 else np.zeros(len(start))


def span_scores(windows: tuple[Window, ...], start: Floats, end: Floats, max_answer_tokens: int, beside: NDArray[np.float64]) -> NDArray[np.float64]:
    """z (L, W, T): entry [d, w, i] is the score of the span from i to i + d of window w, -inf where it is not admissible.  beside: (W,)."""
    length = max(len(window) for window in windows)
    starts = np.where(padded_flags((w.max_context for w in windows), length), start[:, :length] - beside[:, None], -np.inf)  # (W, T)
    ends = np.where(padded_flags((w.context_mask for w in windows), length), end[:, :length].astype(np.float64), -np.inf)  # (W, T)
    longest = min(max_answer_tokens, length)
    z = np.full((longest, *starts.shape), -np.inf)
    for d in range(longest):
        np.add(starts[:, : length - d], ends[:, d:], out=z[d, :, : length - d])
    return z


def _decode_request(
    request: Request,
    windows: tuple[Window, ...],
    start: Floats,
    end: Floats,
    options: SpanOptions,
    threshold: float | None,
    beside: NDArray[np.float64],
) -> tuple[Answer, ...]:
    chunks = [slice(first, first + WINDOWS_AT_ONCE) for first in range(0, len(windows), WINDOWS_AT_ONCE)]
    scores = [span_scores(windows[chunk], start[chunk], end[chunk], options.max_answer_tokens, beside[chunk]) for chunk in chunks]
    null = -np.inf if threshold is None else float((_nulls(start, end) - beside).min()) - threshold
    top = max(null, *(float(z.max()) for z in scores))
    log_total = top + np.log(sum(_sum_exp(z, top) for z in scores) + np.exp(null - top))
    answers = _best_spans(request, windows, scores, options, log_total)
    if threshold is not None:
        answers.append(Answer("", 0, 0, float(np.exp(null - log_total)), is_no_answer=True))
        answers.sort(key=lambda answer: -answer.score)  # stable: a span wins a tie
    return tuple(answers[: options.top_k])


def _best_spans(
    request: Request, windows: tuple[Window, ...], scores: Sequence[NDArray[np.float64]], options: SpanOptions, log_total: float
) -> list[Answer]:
    """The top_k spans by score (in ties the first in the passages, then the shortest); looks at more candidates until enough are distinct.

    scores: z of WINDOWS_AT_ONCE windows each.
    """
    wanted = 1 if options.top_k == 1 else 32 * options.top_k
    while True:
        # All that tie with the last one wanted are looked at too: bf16 logits have few digits, and the best answer must not depend on top_k.
        least = max(float(z.max()) for z in scores) if wanted == 1 else _least_of(scores, wanted)
        chosen = _distinct(request, windows, scores, least, options, log_total)
        if len(chosen) == options.top_k or wanted >= sum(np.count_nonzero(np.isfinite(z)) for z in scores):
            return chosen
        wanted *= 8


def _sum_exp(z: NDArray[np.float64], top: float) -> float:
    shifted = z - top
    return float(np.exp(shifted, out=shifted).sum())


def _least_of(scores: Sequence[NDArray[np.float64]], count: int) -> float:
    """The least of the `count` largest scores, or of all admissible ones where there are fewer."""
    largest = [_largest(z[z > -np.inf], count) for z in scores]  # without those: NumPy's partition is slow where many are equal
    return float(_largest(np.concatenate(largest), count).min())


def _largest(values: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """The `count` largest of values (N,), or all where there are fewer, in no order."""
    return values if len(values) <= count else np.partition(values, len(values) - count)[len(values) - count :].copy()  # lets go of the others


def _distinct(
    request: Request, windows: tuple[Window, ...], scores: Sequence[NDArray[np.float64]], least: float, options: SpanOptions, log_total: float
) -> list[Answer]:
    found = []
    for number, z in enumerate(scores):
        for d, w, i in zip(*np.unravel_index(np.flatnonzero(z >= least), z.shape), strict=True):
            window = windows[number * WINDOWS_AT_ONCE + w]
            begin, end = int(window.offsets[i, 0]), int(window.offsets[i + d, 1])
            found.append((-float(z[d, w, i]), window.source, begin, end))
    chosen: list[Answer] = []
    for negative, source, begin, end in sorted(found):
        if not options.overlaps and overlaps_any(chosen, source, begin, end):
            continue  # as most do: their characters need no look
        context = request.contexts[source]
        begin, end = whole_characters(context, begin, end)
        # Several tokens may stand on one character (Hangul), so even overlapping spans are kept once each.
        taken = any((a.source, a.start, a.end) == (source, begin, end) for a in chosen)
        if taken if options.overlaps else overlaps_any(chosen, source, begin, end):
            continue
        chosen.append(Answer(context[begin:end], begin, end, min(1.0, float(np.exp(-negative - log_total))), source))
        if len(chosen) == options.top_k:
            break
    return chosen


def overlaps_any(answers: Sequence[Answer], source: int, begin: int, end: int) -> bool:
    """Whether a span of a passage has a character in common with one of the answers."""
    return any(a.source == source and begin < a.end and a.start < end for a in answers)


def whole_characters(text: str, begin: int, end: int) -> tuple[int, int]:
    """`begin` and `end` moved outwards over combining marks, variation selectors, emoji modifiers, tags (of flags), joined emoji and parts of Hangul
    syllables, so that no visible character is cut; each by LONGEST_CHARACTER code points at most.
    """
    first, last = begin - LONGEST_CHARACTER, end + LONGEST_CHARACTER
    while begin > first and _inside(text, begin):
        begin -= 1
    while end < last and _inside(text, end):
        end += 1
    return begin, end


def _inside(text: str, place: int) -> bool:
    """Whether what stands before a place and what follows it are one visible character."""
    if not 0 < place < len(text):
        return False
    before, following = text[place - 1], text[place]
    if before < FIRST_MARK and following < FIRST_MARK:
        return False
    if following == ZERO_WIDTH_JOINER:
        return place + 1 < len(text)  # with nothing behind it, it joins nothing
    category = unicodedata.category(following)
    if category[0] in "ZP" or category == "Cc":
        return False  # also behind a joiner, with which words of Malayalam end
    return (
        (before == ZERO_WIDTH_JOINER and place > 1)
        or category in {"Mn", "Me", "Mc"}
        or "\U0001f3fb" <= following <= "\U0001f3ff"
        or "\U000e0020" <= following <= "\U000e007f"
        or following in SARA_AM
        or ("\u1100" <= before <= "\u11ff" and "\u1160" <= following <= "\u11ff")  # a syllable of Hangul in parts
    )


def _null_threshold(options: SpanOptions, no_answer: NoAnswer) -> float | None:
    if not options.no_answer:
        return None
    if not no_answer.trained:
        raise OptionsError(
            "This model was not trained with unanswerable questions, so it cannot say that a passage holds no answer. Ask without no_answer."
        )
    if options.no_answer_threshold is not None:
        return options.no_answer_threshold
    return no_answer.threshold or 0.0


def longest_safe_answer(overlap: int) -> int:
    """Tokens of the longest span that no border of windows can cut: in an overlap of o, a token's best window holds (o - 1) // 2 tokens after it."""
    return max(1, (overlap - 1) // 2 + 1)


def check_overlap(windows: tuple[Window, ...], options: SpanOptions, overlap: int) -> None:
    """Raises OptionsError where the longest answer could be cut by a border of these windows."""
    longest = longest_safe_answer(overlap)
    if options.max_answer_tokens > longest and any(w.first_token > 0 for w in windows):
        raise OptionsError(
            f"Answers of {options.max_answer_tokens} tokens need windows that overlap by at least {2 * options.max_answer_tokens - 1}; "
            f"doc_stride is {overlap}. "
            f"Raise doc_stride or lower max_answer_tokens to {longest}."
        )


def _check_logits(encoded: Encoded, logits: SpanLogits) -> None:
    longest = max((len(window) for window in encoded.windows), default=0)
    for name, values in (("start", logits.start), ("end", logits.end)):
        if values.ndim != 2 or values.shape[0] != len(encoded.windows) or values.shape[1] < longest:
            raise EngineError(f"Expected {name} logits of shape ({len(encoded.windows)}, at least {longest}), found {values.shape}.")
        if not np.isfinite(values).all():
            raise EngineError(f"The engine returned {name} logits that are not finite: the weights or the precision overflow.")

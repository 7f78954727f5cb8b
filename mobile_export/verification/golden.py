"""A bundle's golden vectors put to its artefact: does it still compute what the checkpoint computed in PyTorch?

They catch what a hash cannot, a conversion that went wrong: other weights, exchanged outputs, a lost mask, a vocabulary that is not the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pocketqa.evaluation import Values
from pocketqa.features import Encoded
from pocketqa.reader import Reader
from pocketqa.spans import longest_safe_answer
from pocketqa.types import JSON, MAX_WINDOW_TOKENS, Request, Result, SpanLogits, SpanOptions, WindowOptions

# Largest difference of a logit, as a share of the spread of the question's golden logits.  float32 engines differ by rounding only; float16 rounds
# after each operation, with 11 bits; int8 keeps weights within half a step of 1/127 of the largest in their row.  Coarser schemes change logits by
# design, and how much that costs is for the gate to say: of them only what no precision can do is called wrong.
TOLERANCE = {"fp32": 0.005, "fp16": 0.02, "int8": 0.15}


@dataclass(frozen=True, slots=True, eq=False)
class _Question:
    """Logits of one golden question, all windows joined: positions S, those of [CLS] and of passage tokens.

    The others mean nothing, and padding may move them: MobileBERT mixes each position with the next one, so the last [SEP] with [PAD].
    """

    about: str
    found: Values  # (2, S) start and end
    golden: Values  # (2, S)


def replay_vectors(reader: Reader, vectors: JSON, scheme: str) -> JSON:
    """Put the golden questions to a bundle's reader.  Raises EngineError where it cannot compute.

    "problems": what is wrong, in sentences; "max_difference", "mean_difference" of all logits; "share": the largest difference as a share of its
    question's spread of logits, and "tolerance", what the scheme allows of it (None: anything).
    """
    options = WindowOptions(**vectors["window"])
    questions = vectors["questions"]
    encoded = reader.encode([Request(q["question"], (q["context"],)) for q in questions], options)
    if problems := _other_tokens(encoded, questions) + _other_texts(reader, vectors["texts"]):
        return {"questions": len(questions), "windows": len(encoded.windows), "problems": problems}
    logits = reader.forward(encoded)
    seen = [_joined(encoded, logits, number, q) for number, q in enumerate(questions)]
    tolerance = TOLERANCE.get(scheme)
    result: JSON = {"questions": len(questions), "windows": len(encoded.windows), "tolerance": tolerance}
    if infinite := [q for q in seen if not np.isfinite(q.found).all()]:
        return result | {"problems": [f"{q.about} {int((~np.isfinite(q.found)).sum())} logits are not finite." for q in infinite]}
    differences = [np.abs(q.found - q.golden) for q in seen]  # (2, S) each
    shares = [float(difference.max() / np.ptp(q.golden)) for difference, q in zip(differences, seen, strict=True)]
    every = np.concatenate(differences, axis=1)  # (2, all)
    problems = _wrong_logits(seen, shares, tolerance) or _wrong_answers(reader.decode(encoded, logits, _spans(options)), questions, seen, tolerance)
    if exchanged := _exchanged(seen):
        problems = [exchanged]
    found = {"max_difference": float(every.max()), "mean_difference": float(every.mean()), "share": max(shares)}
    return result | {name: round(value, 6) for name, value in found.items()} | {"problems": problems}


def _other_tokens(encoded: Encoded, questions: Sequence[JSON]) -> list[str]:
    problems = []
    for question, (first, last) in zip(questions, encoded.ranges, strict=True):
        ids = [window.ids.tolist() for window in encoded.windows[first:last]]
        if ids != [window["ids"] for window in question["windows"]]:
            problems.append(f"{_about(question)} its token ids are others; the tokenizer is not the checkpoint's, or cuts windows otherwise.")
    return problems


def _other_texts(reader: Reader, texts: Sequence[JSON]) -> list[str]:
    """The tokenizer alone, on awkward text."""
    encoded = reader.encode([Request("?", (text["text"],)) for text in texts], WindowOptions(MAX_WINDOW_TOKENS))
    wrong = [t["text"] for t, window in zip(texts, encoded.windows, strict=True) if window.ids[window.context_mask].tolist() != t["ids"]]
    return [f"Golden text {text!r}: its token ids are others; the tokenizer is not the checkpoint's." for text in wrong]


def _joined(encoded: Encoded, logits: SpanLogits, number: int, question: JSON) -> _Question:
    first, last = encoded.ranges[number]
    meant = [np.flatnonzero(window.context_mask | (np.arange(len(window)) == 0)) for window in encoded.windows[first:last]]
    found = [np.concatenate([part[first + w, places] for w, places in enumerate(meant)]) for part in (logits.start, logits.end)]
    golden = [
        np.concatenate([np.array(window[name])[places] for window, places in zip(question["windows"], meant, strict=True)])
        for name in ("start_logits", "end_logits")
    ]
    return _Question(_about(question), np.array(found, dtype=np.float64), np.array(golden, dtype=np.float64))


def _wrong_logits(seen: Sequence[_Question], shares: Sequence[float], tolerance: float | None) -> list[str]:
    if tolerance is None:
        return []
    return [
        f"{q.about} logits differ from the checkpoint's by up to {share:.3f} of their spread; {tolerance:g} is allowed."
        for q, share in zip(seen, shares, strict=True)
        if share > tolerance
    ]


def _wrong_answers(results: Sequence[Result], questions: Sequence[JSON], seen: Sequence[_Question], tolerance: float | None) -> list[str]:
    """Answers that differ although the checkpoint's lead was larger than what the tolerance can move: two spans of two logits each."""
    if tolerance is None:
        return []
    problems = []
    for question, q, result in zip(questions, seen, results, strict=True):
        expected, best = question["answer"], result.best
        if (best.start, best.end) != (expected["start"], expected["end"]) and question["gap"] > 4 * tolerance * np.ptp(q.golden):
            problems.append(f"{q.about} expected the answer {expected['text']!r}, found {best.text!r}.")
    return problems


def _spans(options: WindowOptions) -> SpanOptions:
    """The rule of the golden answers: no span that a border of windows can cut."""
    return SpanOptions(max_answer_tokens=min(SpanOptions().max_answer_tokens, longest_safe_answer(options.doc_stride)))


def _exchanged(seen: Sequence[_Question]) -> str | None:
    """Whether the artefact's start logits are nearer to the golden end logits than to the golden start logits, and the other way round."""
    straight = sum(float(((q.found - q.golden) ** 2).sum()) for q in seen)
    crossed = sum(float(((q.found - q.golden[::-1]) ** 2).sum()) for q in seen)
    if crossed < straight / 2:  # of mere noise, either may be a little less
        return "The outputs start_logits and end_logits are exchanged: each is nearer to what the checkpoint gives as the other."
    return None


def _about(question: JSON) -> str:
    return f"Golden question {question['question']!r}:"

"""Golden questions: what the exact model answered when a folder was packaged, and whether an engine still says the same.

A service replays them as it warms up.  They catch what hashes cannot: an engine, a processor or a precision that computes something else.
Texts may differ only where two spans were close (`gap`), since a coarser precision may then swap them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pocketqa.errors import CorruptFolder
from pocketqa.types import JSON, Request, Result, SpanOptions

if TYPE_CHECKING:
    from pocketqa.features import Encoded
    from pocketqa.reader import Reader
    from pocketqa.types import SpanLogits

FORMAT = 1
DIGITS = 4  # of logits and gaps in the file
TWO_BEST = SpanOptions(top_k=2, overlaps=True)

# Largest difference of a logit, as a share of the spread of the question's logits.  fp32 engines differ by rounding only; bf16 keeps 8 bits of
# mantissa, and its errors add up over the layers.  A wrong weight or a lost mask shows as a share near 1.
TOLERANCE = {"fp32": 0.005}
COARSE_TOLERANCE = 0.1  # bf16 and other reduced precisions


@dataclass(frozen=True, slots=True)
class GoldenQuestion:
    """One question with the answer of the model in fp32.

    gap: logits between the best span and the next one (a span of other places, overlapping or not); tokens: positions of all windows;
    start_logit, end_logit: the largest of all positions; spread: largest minus smallest of all logits.
    """

    question: str
    context: str
    text: str
    gap: float
    tokens: int
    start_logit: float
    end_logit: float
    spread: float


@dataclass(frozen=True, slots=True)
class Golden:
    """The golden questions of a folder and the engine that answered them."""

    engine: str
    questions: tuple[GoldenQuestion, ...]

    def to_json(self) -> str:
        """The text of golden.json."""
        document = {"format": FORMAT, "engine": self.engine, "questions": [asdict(question) for question in self.questions]}
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, path: Path) -> Golden:
        """Read golden.json.  Raises CorruptFolder."""
        try:
            document: JSON = json.loads(path.read_bytes())
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r}; a newer PocketQA may read it")
            questions = tuple(GoldenQuestion(**entry) for entry in document["questions"])
            if not questions:
                raise ValueError("no questions")
            return cls(str(document["engine"]), questions)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CorruptFolder(f"Expected golden questions of format {FORMAT} at {path}, found: {error}.") from None


def record(reader: Reader, pairs: Sequence[tuple[str, str]]) -> Golden:
    """Put (question, context) pairs to the exact model and keep what it says."""
    questions = []
    for question, context in pairs:
        encoded, logits, result = _ask(reader, question, context)
        seen = _seen(encoded, logits)
        questions.append(
            GoldenQuestion(
                question=question,
                context=context,
                text=result.best.text,
                gap=_gap(result),
                tokens=result.tokens,
                start_logit=_round(seen[0].max()),
                end_logit=_round(seen[1].max()),
                spread=_round(np.concatenate(seen).max() - np.concatenate(seen).min()),
            )
        )
    info = reader.info
    return Golden(f"{info.engine} {info.version} {info.precision}", tuple(questions))


def replay(reader: Reader, golden: Golden) -> list[str]:
    """Put the golden questions to a reader.  Returns what differs, in sentences; an empty list is good."""
    tolerance = TOLERANCE.get(reader.info.precision, COARSE_TOLERANCE)
    problems = []
    for expected in golden.questions:
        encoded, logits, result = _ask(reader, expected.question, expected.context)
        about = f"Golden question {expected.question!r}:"
        if result.tokens != expected.tokens:
            problems.append(f"{about} expected {expected.tokens} tokens, found {result.tokens}; the tokenizer is not the one that was packaged.")
            continue
        allowed = tolerance * expected.spread + 10.0**-DIGITS  # the second term: rounding in the file
        start, end = (float(values.max()) for values in _seen(encoded, logits))
        for name, found, wanted in (("start", start, expected.start_logit), ("end", end, expected.end_logit)):
            if abs(found - wanted) > allowed:
                problems.append(f"{about} expected a largest {name} logit of {wanted:.4f}, found {found:.4f} (allowed difference {allowed:.4f}).")
        # A span's score is the sum of two logits, and two spans are compared.
        if result.best.text != expected.text and expected.gap > 4 * allowed:
            problems.append(f"{about} expected the answer {expected.text!r}, found {result.best.text!r}.")
    return problems


def _ask(reader: Reader, question: str, context: str) -> tuple[Encoded, SpanLogits, Result]:
    encoded = reader.encode([Request(question, (context,))])
    logits = reader.forward(encoded)
    return encoded, logits, reader.decode(encoded, logits, TWO_BEST)[0]


def _seen(encoded: Encoded, logits: SpanLogits) -> tuple[np.ndarray, np.ndarray]:
    """Start and end logits on tokens, padding left out."""
    real = np.arange(logits.start.shape[1]) < np.array([len(window) for window in encoded.windows])[:, None]  # (W, T)
    return logits.start[real], logits.end[real]


def _gap(result: Result) -> float:
    if len(result.answers) < 2:
        return 0.0
    best, second = result.answers[0].score, result.answers[1].score
    return _round(np.log(best / max(second, 1e-30)))  # scores are shares of exp(logits), so their ratio gives the difference


def _round(value: float | np.floating) -> float:
    return round(float(value), DIGITS)

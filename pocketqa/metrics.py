"""Exact match and F1 as the official SQuAD evaluation scripts compute them (Rajpurkar et al. 2016, evaluate-v1.1; 2018, evaluate-v2.0).

The two scripts differ in one rule: when prediction or gold answer normalises to nothing ("the", ""), version 2.0 gives F1 = 1 if both do and 0
otherwise, while version 1.1 gives F1 = 0.  `score` follows version 2.0 when the data hold an unanswerable question, and 1.1 otherwise.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pocketqa.errors import DataError
from pocketqa.types import QAExample, Scores

_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = str.maketrans("", "", string.punctuation)
QUESTION_WORDS = ("what", "who", "how", "when", "which", "where", "why")
ANSWER_LENGTHS = (("1 word", 1), ("2-3 words", 3), ("4-7 words", 7), ("8 or more words", 10**9))


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals any normalised gold answer, else 0.0."""
    normalized = normalize_answer(prediction)
    return float(any(normalized == normalize_answer(gold) for gold in golds))


def f1(prediction: str, golds: Sequence[str], *, squad2: bool = False) -> float:
    """Best harmonic mean of token precision and recall over the gold answers, 0 to 1; `squad2` selects the rule for empty answers."""
    return max((_f1_one(prediction, gold, squad2) for gold in golds), default=0.0)


def _f1_one(prediction: str, gold: str, squad2: bool) -> float:
    predicted, wanted = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if squad2 and not (predicted and wanted):
        return float(predicted == wanted)
    same = sum((Counter(predicted) & Counter(wanted)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(predicted), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


def per_question(predictions: Mapping[str, str], examples: Sequence[QAExample]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact match (N,) and F1 (N,), each 0 to 1.

    A question without a prediction scores 0, as in the 1.1 script (the 2.0 script leaves it out of the mean, which rewards silence).
    Raises DataError when no prediction belongs to any question.
    """
    if not examples:
        raise DataError("Expected at least one question to score, found none.")
    if not any(example.id in predictions for example in examples):
        raise DataError(
            f"None of the {len(predictions)} predictions has the id of a question (the first id is {examples[0].id!r}). Is it the right data file?"
        )
    squad2 = any(example.is_impossible for example in examples)
    exact, overlap = np.zeros(len(examples)), np.zeros(len(examples))
    for i, example in enumerate(examples):
        prediction = predictions.get(example.id)
        if prediction is not None:
            golds = gold_texts(example, squad2=squad2)
            exact[i] = exact_match(prediction, golds)
            overlap[i] = f1(prediction, golds, squad2=squad2)
    return exact, overlap


def gold_texts(example: QAExample, *, squad2: bool) -> list[str]:
    """The answers to compare with; [""] for an unanswerable question (and, in 2.0, where every answer normalises to nothing)."""
    texts = [answer.text for answer in example.answers]
    if squad2:
        texts = [text for text in texts if normalize_answer(text)]
    return texts or [""]


def score(predictions: Mapping[str, str], examples: Sequence[QAExample]) -> Scores:
    """Scores in percent, in total, by question word and by the length of the first gold answer in words."""
    exact, overlap = per_question(predictions, examples)
    return summarise(exact, overlap, examples)


def summarise(exact: NDArray[np.float64], overlap: NDArray[np.float64], examples: Sequence[QAExample]) -> Scores:
    """Scores in percent from per-question values (N,) in 0 to 1."""
    return Scores(
        100 * float(exact.mean()),
        100 * float(overlap.mean()),
        len(examples),
        _grouped(exact, overlap, examples, question_word),
        _grouped(exact, overlap, examples, _answer_words),
    )


def question_word(example: QAExample) -> str:
    """The first question word in the question, or "other"."""
    words = re.findall(r"[a-z]+", example.question.lower())
    return next((word for word in words if word in QUESTION_WORDS), "other")


def _answer_words(example: QAExample) -> str:
    if not example.answers:
        return "no answer"
    words = len(example.answers[0].text.split())
    return next(name for name, most in ANSWER_LENGTHS if words <= most)


def _grouped(
    exact: NDArray[np.float64], overlap: NDArray[np.float64], examples: Iterable[QAExample], key: Callable[[QAExample], str]
) -> dict[str, Scores]:
    keys = np.array([key(example) for example in examples])
    return {
        str(name): Scores(100 * float(exact[keys == name].mean()), 100 * float(overlap[keys == name].mean()), int((keys == name).sum()))
        for name in sorted(set(keys.tolist()))
    }

"""Harder ways to ask the questions of a data file: of whole articles in place of paragraphs, and of paragraphs that do not answer them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pocketqa.errors import DataError
from pocketqa.squad import LONGEST_ARTICLE
from pocketqa.statistics import mean_difference
from pocketqa.types import JSON, GoldAnswer, QAExample

BETWEEN = "\n\n"  # paragraphs of an article


def whole_articles(examples: Sequence[QAExample], everything: Sequence[QAExample], name: str) -> list[QAExample]:
    """The same questions, each of all paragraphs of its article one after the other.

    everything: all examples of the file, whose paragraphs make the articles.  Raises DataError where a question has no title to tell its article by.
    """
    paragraphs: dict[str, dict[str, int]] = {}  # title -> paragraph -> where it begins in the article
    for example in everything:
        if not example.title.strip():
            raise DataError(
                f"{name}: the question {example.id!r} has no title of an article (one that more than {LONGEST_ARTICLE:,} letters share is none). "
                "Whole articles need titles: take such questions out of the file."
            )
        article = paragraphs.setdefault(example.title, {})
        if example.context not in article:
            article[example.context] = sum(len(paragraph) + len(BETWEEN) for paragraph in article)
    joined = {title: BETWEEN.join(article) for title, article in paragraphs.items()}
    made = []
    for example in examples:
        shift = paragraphs[example.title][example.context]
        answers = tuple(GoldAnswer(answer.text, answer.start + shift) for answer in example.answers)
        made.append(replace(example, context=joined[example.title], answers=answers))
    return made


def wrong_paragraphs(examples: Sequence[QAExample], count: int, seed: int) -> list[QAExample]:
    """Up to `count` questions put to another paragraph of the same article that does not contain any of their answers' texts.

    Questions without a title are left out; where none has one, any paragraph counts as of the same article.
    """
    articles: dict[str, list[str]] = defaultdict(list)
    for title, context in dict.fromkeys((example.title, example.context) for example in examples):  # one paragraph may stand under several titles
        articles[title].append(context)
    rng = np.random.default_rng(seed)
    made: list[QAExample] = []
    for i in rng.permutation(len(examples)):
        if len(made) == count:
            break
        example, others = examples[i], articles[examples[i].title]
        if not example.answers or (not example.title and len(articles) > 1):
            continue  # nothing tells whether another paragraph answers it, or which are of its article
        for j in rng.integers(len(others), size=4):  # a few draws find one in any article with more than a handful of paragraphs
            text = others[j].lower()
            if others[j] != example.context and not any(answer.text.lower() in text for answer in example.answers):
                made.append(QAExample(f"{example.id}-wrong-paragraph", example.question, others[j], (), True, example.title))
                break
    return made


def auroc(negatives: NDArray[np.float32], positives: NDArray[np.float32]) -> float:
    """Area under the ROC curve: probability that a positive exceeds a negative, ties counting half (the Mann-Whitney statistic)."""
    ordered = np.sort(negatives)
    below = np.searchsorted(ordered, positives, side="left")
    not_above = np.searchsorted(ordered, positives, side="right")
    return float((below + not_above).mean() / (2 * len(negatives)))


def refusals(right: NDArray[np.float32], f1: NDArray[np.float64], groups: Sequence[str], wrong: NDArray[np.float32], threshold: float | None) -> JSON:
    """What a reader does with paragraphs that do not answer, for a run file.

    right, f1 (N,): margins and F1 of questions of their own paragraphs; groups: what intervals resample; wrong (M,): margins of questions of wrong
    paragraphs.  auroc: how often a wrong paragraph has the larger margin.  At the threshold, above which a question is refused (None: the reader
    has none): shares refused, and the F1 that refusing costs, in points.
    """
    found: JSON = {"auroc": round(auroc(right, wrong), 6), "wrong_paragraphs": len(wrong), "threshold": threshold}
    if threshold is None:
        return found
    kept = right <= threshold  # (N,)
    cost = mean_difference(f1, f1 * kept, groups).scaled(100)
    shares = {"refused_wrong": float((wrong > threshold).mean()), "refused_right": float((~kept).mean())}
    return {**found, **{name: round(share, 6) for name, share in shares.items()}, "f1_cost": cost.to_json()}

"""Exact match and F1 against another implementation of the official SQuAD 2.0 script, that of the library transformers."""

from __future__ import annotations

from itertools import product

import pytest
from transformers.data.metrics import squad_metrics

from pocketqa import metrics

TEXTS = (
    "",
    " \t\n ",
    "the",
    "A, an; THE!",
    "...",
    "The Beatles",
    "beatles",
    "the-the",
    "theatre of another",
    "a.b.c.",
    "U.S.A.",
    "usa",
    "$1,000.50",
    "1,000 .50",
    "10–12",
    "«São Paulo»",
    "são  paulo",
    "Sa\u0303o Paulo",
    "İstanbul'un İSTANBUL",
    "STRASSE straße",
    "東京 the 東京",
    "東京",
    "zero\u200bwidth zero\u00a0width",
    "the cat the cat sat",
    "cat cat cat sat on a mat",
    "it's its",
    "an_underscore a_b _the_",
    "née Ångström Ａ the",
    "l'an 2000, a\u0301 la carte",
)


@pytest.mark.parametrize("text", TEXTS)
def test_normalisation(text: str) -> None:
    assert metrics.normalize_answer(text) == squad_metrics.normalize_answer(text)


def test_exact_match_and_f1_of_every_pair() -> None:
    for prediction, gold in product(TEXTS, TEXTS):
        assert metrics.exact_match(prediction, [gold]) == squad_metrics.compute_exact(gold, prediction), (prediction, gold)
        expected = squad_metrics.compute_f1(gold, prediction)
        assert metrics.f1(prediction, [gold], squad2=True) == pytest.approx(expected), (prediction, gold)
        empty = not (metrics.normalize_answer(prediction) and metrics.normalize_answer(gold))
        assert metrics.f1(prediction, [gold]) == pytest.approx(0.0 if empty else expected), (prediction, gold)  # version 1.1


def test_the_best_of_several_answers_counts() -> None:
    for prediction in TEXTS:
        golds = [gold for gold in TEXTS if gold != prediction]
        assert metrics.exact_match(prediction, golds) == max(squad_metrics.compute_exact(gold, prediction) for gold in golds)
        assert metrics.f1(prediction, golds, squad2=True) == pytest.approx(max(squad_metrics.compute_f1(gold, prediction) for gold in golds))

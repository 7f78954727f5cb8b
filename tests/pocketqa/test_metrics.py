"""Exact match and F1 against values worked by hand and against a second implementation written from the published definition."""

import re
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketqa import metrics
from pocketqa.errors import DataError
from pocketqa.types import GoldAnswer, QAExample


def example(identity: str, *golds: str, question: str = "What is it?") -> QAExample:
    return QAExample(identity, question, " ".join(golds) or "context", tuple(GoldAnswer(gold, 0) for gold in golds), is_impossible=not golds)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Cat.", "cat"),
        ("an apple a day", "apple day"),
        ("Theatre, anthem", "theatre anthem"),  # articles are whole words
        ("the-end", "theend"),  # punctuation goes first, and leaves no space: the official order
        ("U.S.A.", "usa"),
        ("$1,000.50", "100050"),
        ("«Ada»", "«ada»"),  # punctuation is ASCII only
        ("it’s", "it’s"),
        ("\u00c9TUDE\u00a0an\u2003oak\n", "étude oak"),  # Unicode white space separates
        ("İ", "i\u0307"),
        ("a", ""),
        ("...", ""),
        ("", ""),
    ],
)
def test_normalisation_by_hand(text, normal):
    assert metrics.normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("the Denver Broncos", ["Denver Broncos"], 1, 1),
        ("Denver", ["Denver Broncos"], 0, 2 / 3),  # precision 1, recall 1/2
        ("in 1850 by Ada", ["Ada"], 0, 0.4),  # precision 1/4, recall 1
        ("Ada Ada", ["Ada"], 0, 2 / 3),  # a token counts as often as it stands in both
        ("Ada Ada", ["Ada Ada King"], 0, 0.8),
        ("Ada", ["Charles", "Ada", "Ada King"], 1, 1),  # the best of several golds
        ("King Ada", ["Ada King"], 0, 1),  # F1 does not look at the order
        ("Charles", ["Ada"], 0, 0),
        ("", ["Ada"], 0, 0),
    ],
)
def test_scores_by_hand(prediction, golds, exact, f1):
    assert metrics.exact_match(prediction, golds) == exact
    for squad2 in (False, True):
        assert metrics.f1(prediction, golds, squad2=squad2) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("prediction", "gold", "first", "second"), [("", "", 0, 1), ("the", "", 0, 1), ("the", "a", 0, 1), ("Ada", "", 0, 0), ("", "Ada", 0, 0)]
)
def test_empty_answers_in_the_two_versions(prediction, gold, first, second):
    assert metrics.f1(prediction, [gold]) == first  # evaluate-v1.1: no common token
    assert metrics.f1(prediction, [gold], squad2=True) == second  # evaluate-v2.0: right when both are empty
    assert metrics.exact_match(prediction, [gold]) == second


def test_unanswerable_questions():
    examples = [example("yes", "Ada"), example("none"), example("wrongly")]
    found = metrics.score({"yes": "Ada King", "none": "", "wrongly": "Ada"}, examples)
    assert (found.exact_match, found.f1) == pytest.approx((100 / 3, 100 * (2 / 3 + 1) / 3)) and found.count == 3
    assert found.by_answer_words["no answer"].count == 2


def test_version_one_data_keep_version_one_rules():
    # In 1.1 data a gold of articles only can be matched exactly but has F1 0; with an unanswerable question beside it, 2.0 drops such golds.
    the = example("the", "the")
    assert [values.tolist() for values in metrics.per_question({"the": "a"}, [the])] == [[1.0], [0.0]]
    exact, f1 = metrics.per_question({"the": "a", "none": ""}, [the, example("none")])
    assert (exact.tolist(), f1.tolist()) == ([1, 1], [1, 1])


def test_questions_without_a_prediction_score_nothing():
    exact, f1 = metrics.per_question({"b": "Ada", "unknown": "x"}, [example("a", "Ada"), example("b", "Ada")])
    assert (exact.tolist(), f1.tolist()) == ([0, 1], [0, 1])
    # also where they are unanswerable: silence about a question is not "no answer"
    assert metrics.per_question({"a": "Ada"}, [example("a", "Ada"), example("none")])[1].tolist() == [1, 0]


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="at least one question"):
        metrics.score({}, [])
    with pytest.raises(DataError, match="first id is 'a'"):
        metrics.score({"z": "Ada"}, [example("a", "Ada")])


def test_groups():
    examples = [
        example("1", "Ada", question="In which year, and by whom?"),
        example("2", "Ada King of Lovelace", question="WHO was she?"),
        example("3", "one two three four five six seven eight", question="Name it."),
        example("4", "Ada", question="Whose is it?"),
    ]
    found = metrics.score({"1": "Ada", "2": "Ada", "3": "x", "4": "Ada"}, examples)
    assert {name: part.count for name, part in found.by_question_word.items()} == {"which": 1, "who": 1, "other": 2}
    assert {name: part.count for name, part in found.by_answer_words.items()} == {"1 word": 2, "4-7 words": 1, "8 or more words": 1}
    assert found.by_question_word["other"].exact_match == 50
    total = sum(part.f1 * part.count for part in found.by_answer_words.values()) / 4
    assert total == pytest.approx(found.f1)


# ---- a second implementation, from the published definition: lower case; strip ASCII punctuation; strip a, an, the; split at white space; precision
# and recall over the multiset of tokens


def reference_tokens(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    words = re.split(r"(\W+)", kept)  # articles stand between non-word characters
    return "".join(" " if word in {"a", "an", "the"} else word for word in words).split()


def reference_f1(prediction: str, gold: str) -> float:
    left, same = reference_tokens(gold), 0
    total = len(reference_tokens(prediction)) + len(left)
    for token in reference_tokens(prediction):
        if token in left:
            left.remove(token)
            same += 1
    return 2 * same / total if same else 0.0  # 2PR / (P + R), with P and R written out


TEXTS = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.sampled_from(["a", "an", "the", "The", "Ada", "ada.", "king", "King's", "1,000", "-", "é", "\u00a0", "a-the", "_the", "the’s"]), max_size=8
    ).map(" ".join),
)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_against_the_second_implementation(prediction, golds):
    assert metrics.normalize_answer(prediction) == " ".join(reference_tokens(prediction))
    assert metrics.exact_match(prediction, golds) == any(reference_tokens(prediction) == reference_tokens(gold) for gold in golds)
    assert metrics.f1(prediction, golds) == pytest.approx(max(reference_f1(prediction, gold) for gold in golds))


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=4))
def test_what_always_holds(prediction, golds):
    exact, f1 = metrics.exact_match(prediction, golds), metrics.f1(prediction, golds, squad2=True)
    assert 0 <= f1 <= 1 and (exact == 0 or f1 == 1)
    assert metrics.f1(prediction, golds[::-1], squad2=True) == f1
    assert metrics.exact_match(golds[0], golds) == 1
    assert metrics.normalize_answer(metrics.normalize_answer(prediction).upper()) == metrics.normalize_answer(prediction.upper())


def test_order_of_the_values_is_that_of_the_examples():
    examples = [example(str(i), "Ada") for i in range(5)]
    exact, _ = metrics.per_question({str(i): "Ada" if i % 2 else "x" for i in reversed(range(5))}, examples)
    np.testing.assert_array_equal(exact, [0, 1, 0, 1, 0])

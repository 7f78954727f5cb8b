"""Span decoding against a brute-force reference over the definition, and cases worked by hand."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketqa import spans
from pocketqa.errors import EngineError, OptionsError
from pocketqa.features import Encoded, Tokenizer
from pocketqa.types import NoAnswer, Request, SpanLogits, SpanOptions, WindowOptions
from tests.pocketqa import little

ENGLAND = "\U0001f3f4" + "".join(chr(0xE0000 + ord(letter)) for letter in "gbeng") + "\U000e007f"
WORDS = ("the", "mill", "was", "built", "by", "Ada", "in", "1850", "bridge,", "x")
TRAINED = NoAnswer(trained=True, threshold=0.5)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(little.tokenizer_file(tmp_path_factory.mktemp("little")))


def encode(tokenizer: Tokenizer, *contexts: str, max_tokens: int = 384, overlap: int = 128) -> Encoded:
    return tokenizer.encode([Request("who?", contexts)], WindowOptions(max_tokens, overlap, 4))


def random_logits(encoded: Encoded, seed: int, scale: float = 3.0, padding: int = 0) -> SpanLogits:
    shape = (len(encoded.windows), max(map(len, encoded.windows)) + padding)
    random = np.random.default_rng(seed)
    start, end = (random.normal(0, scale, size=shape).astype(np.float32) for _ in range(2))
    return SpanLogits(start, end)


def admissible(encoded: Encoded, logits: SpanLogits, longest: int, trained: bool = True) -> list[tuple[float, int, int, int]]:
    """Every span as (z, passage, first code point, last code point), from the definition in the module's docstring; one request only."""
    found = []
    for w, window in enumerate(encoded.windows):
        beside = float(logits.start[w, 0]) + float(logits.end[w, 0]) if trained and len(encoded.windows) > 1 else 0.0
        for i in range(len(window)):
            for j in range(i, min(i + longest, len(window))):
                if window.context_mask[i] and window.context_mask[j] and window.max_context[i]:
                    z = (float(logits.start[w, i]) - beside) + float(logits.end[w, j])
                    found.append((z, window.source, int(window.offsets[i, 0]), int(window.offsets[j, 1])))
    return found


def reference(
    encoded: Encoded, logits: SpanLogits, options: SpanOptions, threshold: float, trained: bool = True
) -> list[tuple[float, int, int, int]]:
    """(score, passage, start, end) of the answers, best first; passage -1 is no answer."""
    every = admissible(encoded, logits, options.max_answer_tokens, trained)
    null = -threshold if len(encoded.windows) > 1 else float(logits.start[0, 0]) + float(logits.end[0, 0]) - threshold
    terms = [z for z, *_ in every] + ([null] if options.no_answer else [])
    total = math.fsum(math.exp(z) for z in terms)
    chosen: list[tuple[float, int, int, int]] = []
    for z, source, begin, end in sorted(every, key=lambda span: (-span[0], *span[1:])):
        rivals = [span for span in chosen if span[1] == source]
        same, touching = ((begin, end) == span[2:] for span in rivals), (begin < span[3] and span[2] < end for span in rivals)
        taken = any(same if options.overlaps else touching)
        if not taken and len(chosen) < options.top_k:
            chosen.append((math.exp(z) / total, source, begin, end))
    if options.no_answer:
        chosen = sorted([*chosen, (math.exp(null) / total, -1, 0, 0)], key=lambda span: -span[0])
    return chosen[: options.top_k]


PASSAGES = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join), min_size=1, max_size=3)
OPTIONS = st.builds(SpanOptions, max_answer_tokens=st.integers(1, 4), top_k=st.integers(1, 12), no_answer=st.booleans(), overlaps=st.booleans())


@given(PASSAGES, OPTIONS, st.integers(0, 10**6), st.integers(16, 40), st.integers(0, 9))
def test_against_brute_force(tokenizer, contexts, options, seed, max_tokens, padding):
    encoded = encode(tokenizer, *contexts, max_tokens=max_tokens, overlap=8)
    logits = random_logits(encoded, seed, padding=padding)
    (result,) = spans.decode(encoded, logits, options, TRAINED)
    expected = reference(encoded, logits, options, threshold=0.5)
    assert [(-1 if a.is_no_answer else a.source, a.start, a.end) for a in result.answers] == [span[1:] for span in expected]
    np.testing.assert_allclose([a.score for a in result.answers], [span[0] for span in expected], rtol=1e-9)
    assert all(a.text == contexts[a.source][a.start : a.end] for a in result.answers)
    assert result.windows == len(encoded.windows) and result.tokens == encoded.tokens


@given(PASSAGES, st.integers(0, 10**6), st.booleans())
def test_scores_of_all_spans_sum_to_one(tokenizer, contexts, seed, no_answer):
    encoded = encode(tokenizer, *(context[:20] for context in contexts))
    logits = random_logits(encoded, seed)
    (result,) = spans.decode(encoded, logits, SpanOptions(max_answer_tokens=2, top_k=100, no_answer=no_answer, overlaps=True), TRAINED)
    assert len(result.answers) == len(admissible(encoded, logits, 2)) + no_answer < 100
    assert sum(answer.score for answer in result.answers) == pytest.approx(1)


@given(PASSAGES, st.integers(0, 10**6), st.integers(2, 10), st.booleans())
def test_more_answers_begin_with_the_same_ones_even_in_ties(tokenizer, contexts, seed, top_k, overlaps):
    # Engines that compute in bf16 give logits of few digits, so equal scores are common.
    encoded = encode(tokenizer, *contexts, max_tokens=24, overlap=8)
    logits = random_logits(encoded, seed)
    coarse = SpanLogits(np.rint(logits.start / 3), np.rint(logits.end / 3))
    few, many = (spans.decode(encoded, coarse, SpanOptions(max_answer_tokens=4, top_k=count, overlaps=overlaps))[0].answers for count in (1, top_k))
    assert few[0] == many[0]
    expected = reference(encoded, coarse, SpanOptions(max_answer_tokens=4, top_k=top_k, overlaps=overlaps), 0.0, trained=False)
    assert [(a.source, a.start, a.end) for a in many] == [span[1:] for span in expected]


@pytest.mark.parametrize("top_k", [1, 7])
def test_many_windows_against_brute_force(tokenizer, top_k):
    text = " ".join(np.random.default_rng(1).choice(WORDS, size=300))
    encoded = encode(tokenizer, text, "by Ada", text[:200], max_tokens=20, overlap=8)
    assert len(encoded.windows) > 3 * spans.WINDOWS_AT_ONCE
    options = SpanOptions(max_answer_tokens=4, top_k=top_k, no_answer=True)
    for seed, scale in ((0, 3.0), (1, 0.1)):
        logits = random_logits(encoded, seed, scale)
        (result,) = spans.decode(encoded, logits, options, TRAINED)
        expected = reference(encoded, logits, options, threshold=0.5)
        assert [(-1 if a.is_no_answer else a.source, a.start, a.end) for a in result.answers] == [span[1:] for span in expected]
        np.testing.assert_allclose([a.score for a in result.answers], [span[0] for span in expected], rtol=1e-9)


@pytest.mark.parametrize("top_k", [1, 5])
def test_memory_of_ranking_is_that_of_the_scores(tokenizer, top_k):
    for contexts in (("the mill " * 6000,), ("the mill " * 170, *["by Ada"] * 3000)):
        encoded = encode(tokenizer, *contexts)
        logits = random_logits(encoded, 2)
        scores = sum(30 * len(window) * 8 for window in encoded.windows)  # bytes; short passages need no room of a long one
        tracemalloc.start()
        spans.decode(encoded, logits, SpanOptions(top_k=top_k))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.6 * scores


def test_by_hand(tokenizer):
    encoded = encode(tokenizer, "by Ada")  # [CLS] who ? [SEP] by ada [SEP]: passage tokens at 4 and 5
    start = np.array([[9, 9, 9, 9, 0, math.log(2), 9]], dtype=np.float32)
    end = np.array([[9, 9, 9, 9, 0, math.log(3), 9]], dtype=np.float32)
    # exp z: "by" 1, "by Ada" 3, "Ada" 6; nothing outside the passage counts, nor a span that ends before it begins
    (result,) = spans.decode(encoded, SpanLogits(start, end), SpanOptions(top_k=5, overlaps=True))
    assert [(a.text, round(a.score, 6)) for a in result.answers] == [("Ada", 0.6), ("by Ada", 0.3), ("by", 0.1)]
    (result,) = spans.decode(encoded, SpanLogits(start, end), SpanOptions(top_k=5))
    assert [a.text for a in result.answers] == ["Ada", "by"]
    assert result.best.text == "Ada" and result.timings.decode > 0
    (result,) = spans.decode(encoded, SpanLogits(start, end), SpanOptions(top_k=5, max_answer_tokens=1, overlaps=True))
    assert [(a.text, round(a.score, 6)) for a in result.answers] == [("Ada", round(6 / 7, 6)), ("by", round(1 / 7, 6))]


def test_no_answer_by_hand(tokenizer):
    encoded = encode(tokenizer, "by Ada")
    start, end = np.zeros((1, 7), dtype=np.float32), np.zeros((1, 7), dtype=np.float32)
    start[0, 0] = math.log(6)  # three spans with exp z = 1 each, no answer with exp = 6
    logits = SpanLogits(start, end)
    (result,) = spans.decode(encoded, logits, SpanOptions(top_k=9, no_answer=True, overlaps=True), NoAnswer(trained=True))
    assert result.best.is_no_answer and result.best.score == pytest.approx(6 / 9) and len(result.answers) == 4
    # the threshold is a distance in logits: log 6 more is needed to come level, where a span wins
    for threshold, wins in ((math.log(6) - 0.01, True), (math.log(6) + 0.01, False), (100.0, False)):
        (result,) = spans.decode(encoded, logits, SpanOptions(no_answer=True, no_answer_threshold=threshold), NoAnswer(True, -50.0))
        assert result.best.is_no_answer is wins
    (result,) = spans.decode(encoded, logits, SpanOptions(no_answer=True), NoAnswer(True, 50.0))
    assert not result.best.is_no_answer  # None takes the model's own threshold


def test_no_answer_needs_every_window_to_say_so(tokenizer):
    encoded = encode(tokenizer, "by Ada", "the mill")
    start, end = (np.full((2, 7), -5, dtype=np.float32) for _ in range(2))
    start[0, 0], start[1, 0] = 20, -40  # the first passage says "not here", the second does not
    (result,) = spans.decode(encoded, SpanLogits(start, end), SpanOptions(no_answer=True), NoAnswer(trained=True))
    assert not result.best.is_no_answer
    assert spans.null_margins(encoded, SpanLogits(start, end)).tolist() == [-45 + 10]


def test_windows_are_compared_beside_their_own_no_answer(tokenizer):
    encoded = encode(tokenizer, "by Ada", "the mill")
    start, end = (np.zeros((2, 7), dtype=np.float32) for _ in range(2))
    ada, mill = (int(np.flatnonzero(encoded.windows[w].context_mask)[1]) for w in range(2))
    start[0, ada] = end[0, ada] = 6
    start[1, mill] = end[1, mill] = 5
    start[0, 0] = end[0, 0] = 8  # the first passage has the larger logits, and says that it does not answer
    logits = SpanLogits(start, end)
    assert spans.decode(encoded, logits, SpanOptions(no_answer=False), TRAINED)[0].best.text == "mill"
    assert spans.decode(encoded, logits, SpanOptions(no_answer=True), TRAINED)[0].best.text == "mill"
    assert spans.null_margins(encoded, logits).tolist() == [-10]
    assert spans.decode(encoded, logits)[0].best.text == "Ada"  # a model that knows no "no answer" has only its logits


def test_two_places_of_one_text_are_two_answers(tokenizer):
    encoded = encode(tokenizer, "Ada by Ada", "Ada")
    logits = SpanLogits(np.zeros((2, 8), dtype=np.float32), np.zeros((2, 8), dtype=np.float32))
    (result,) = spans.decode(encoded, logits, SpanOptions(max_answer_tokens=1, top_k=9))
    assert [(a.source, a.start, a.text) for a in result.answers] == [(0, 0, "Ada"), (0, 4, "by"), (0, 7, "Ada"), (1, 0, "Ada")]
    np.testing.assert_allclose([a.score for a in result.answers], 1 / 4)


def test_a_span_in_an_overlap_counts_once(tokenizer):
    text = " ".join(["the", "mill", "was", "built", "by", "Ada"] * 5)
    encoded = encode(tokenizer, text, max_tokens=16, overlap=6)
    assert len(encoded.windows) > 3
    zeros = np.zeros((len(encoded.windows), 16), dtype=np.float32)
    (result,) = spans.decode(encoded, SpanLogits(zeros, zeros), SpanOptions(max_answer_tokens=3, top_k=100, overlaps=True))
    places = [(a.start, a.end) for a in result.answers]
    assert len(places) == len(set(places)) == 30 + 29 + 28  # every span of one, two and three tokens, exactly once
    np.testing.assert_allclose([a.score for a in result.answers], 1 / 87)


def test_requests_are_decoded_apart(tokenizer):
    requests = [Request("who?", ("by Ada",)), Request("who?", ("the mill", "the bridge"))]
    encoded = tokenizer.encode(requests)
    logits = random_logits(encoded, 1)
    together = spans.decode(encoded, logits, SpanOptions(top_k=3))
    for number, (first, last) in enumerate(encoded.ranges):
        alone = tokenizer.encode([requests[number]])
        single = spans.decode(alone, SpanLogits(logits.start[first:last], logits.end[first:last]), SpanOptions(top_k=3))[0]
        assert single.answers == together[number].answers
    margins = spans.null_margins(encoded, logits, SpanOptions(max_answer_tokens=2))
    for margin, (first, last) in zip(margins, encoded.ranges, strict=True):
        part = SpanLogits(logits.start[first:last], logits.end[first:last])
        alone = tokenizer.encode([requests[0 if first == 0 else 1]])
        null = 0.0 if last - first > 1 else float(part.start[0, 0] + part.end[0, 0])
        assert margin == pytest.approx(null - max(z for z, *_ in admissible(alone, part, 2)), abs=1e-5)


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_large_logits_do_not_overflow(tokenizer, shift):
    encoded = encode(tokenizer, "the mill was built by Ada")
    logits = random_logits(encoded, 3)
    expected = spans.decode(encoded, logits)[0].best
    found = spans.decode(encoded, SpanLogits(logits.start + np.float32(shift), logits.end))[0].best
    assert (found.start, found.end) == (expected.start, expected.end)
    assert found.score == pytest.approx(expected.score, rel=0.01)  # float32 holds 1e4 to three digits behind the point


# ---- characters


@pytest.mark.parametrize(
    ("text", "span", "whole"),
    [
        ("cafe\u0301 x", (0, 4), (0, 5)),  # combining acute
        ("क्षि।", (0, 1), (0, 2)),  # vowel killer
        ("👍🏽!", (0, 1), (0, 2)),  # skin tone
        ("👩\u200d👧\u200d👦!", (0, 1), (0, 5)),  # a family is one picture
        ("☃\ufe0f!", (0, 1), (0, 2)),  # variation selector
        (f"a {ENGLAND}!", (2, 3), (2, 9)),
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8", (1, 2), (0, 3)),  # two syllables of Hangul in parts (NFD)
        ("\u1112\u1161\u11ab\u1100\u116e\u11a8", (3, 4), (3, 6)),
        ("\u0e17\u0e33!", (0, 1), (0, 2)),  # Thai sara am
        ("plain", (2, 3), (2, 3)),
        ("end", (0, 3), (0, 3)),
        ("a\u200d", (0, 1), (0, 1)),  # a joiner with nothing behind it joins nothing
        ("cafe\u0301 x", (4, 7), (3, 7)),  # and the beginnings
        ("का ष", (1, 4), (0, 4)),  # a spacing vowel sign
        ("x 👍🏽!", (3, 5), (2, 5)),
        ("👩\u200d👧\u200d👦!", (4, 6), (0, 6)),
        (f"a {ENGLAND}!", (8, 10), (2, 10)),
        ("\u0301x", (0, 2), (0, 2)),  # there is nothing before it
        ("\u200dx", (1, 2), (1, 2)),
        ("Marsh\u200d built", (0, 5), (0, 6)),  # a joiner may end a word
        ("അവന്\u200d, പറഞ്ഞു", (0, 4), (0, 5)),
        ("അവന്\u200dറ", (0, 4), (0, 6)),  # or stand inside it
    ],
)
def test_characters_stay_whole(text, span, whole):
    assert spans.whole_characters(text, *span) == whole


def test_joiners_without_end_make_no_endless_character(tokenizer):
    text = "+\u200d" * 5000  # all of it one character, if each joined; so that no second answer would be found among the spans
    assert spans.whole_characters(text, 5000, 5001) == (5000 - 32, 5001 + 32)
    encoded = encode(tokenizer, text)
    answers = spans.decode(encoded, random_logits(encoded, seed=0), SpanOptions(top_k=3))[0].answers
    assert len(answers) == 3
    assert all(64 < answer.end - answer.start <= 2 * 32 + 2 * 30 for answer in answers)


def test_an_answer_keeps_its_marks(tokenizer):
    text = "by Ade\u0301 in 1850"
    encoded = encode(tokenizer, text)
    window = encoded.windows[0]
    last = int(np.flatnonzero(window.offsets[:, 1] >= text.index("\u0301"))[0])
    first = int(np.flatnonzero(window.offsets[:, 0] == 3)[0])
    start, end = (np.zeros((1, len(window)), dtype=np.float32) for _ in range(2))
    start[0, first] = end[0, last] = 20
    assert spans.decode(encoded, SpanLogits(start, end))[0].best.text == "Ade\u0301"


def test_an_answer_does_not_begin_inside_a_character(tokenizer):
    text = "by Ade\u0301 in 1850"
    encoded = encode(tokenizer, text)
    window = encoded.windows[0]
    last = int(np.flatnonzero(window.offsets[:, 1] >= text.index("\u0301"))[0])
    window.offsets[last] = text.index("\u0301"), text.index(" in")  # as of a vocabulary that has marks
    start, end = (np.zeros((1, len(window)), dtype=np.float32) for _ in range(2))
    start[0, last] = end[0, last] = 20
    best = spans.decode(encoded, SpanLogits(start, end))[0].best
    assert (best.text, best.start, best.end) == ("e\u0301", 5, 7)


# ---- refusals


def test_no_answer_from_a_model_not_trained_for_it(tokenizer):
    encoded = encode(tokenizer, "by Ada")
    for no_answer in (None, NoAnswer(trained=False, threshold=1.0)):
        with pytest.raises(OptionsError, match="not trained with unanswerable questions"):
            spans.decode(encoded, random_logits(encoded, 0), SpanOptions(no_answer=True), no_answer)


def test_answers_longer_than_the_overlap_can_hold(tokenizer):
    long = encode(tokenizer, "the mill " * 30, max_tokens=32, overlap=9)
    with pytest.raises(OptionsError, match=r"overlap by at least 59; doc_stride is 9.*max_answer_tokens to 5"):
        spans.decode(long, random_logits(long, 0), SpanOptions(max_answer_tokens=30))
    spans.decode(long, random_logits(long, 0), SpanOptions(max_answer_tokens=5))
    short = encode(tokenizer, "the mill", "the mill", max_tokens=32, overlap=9)  # two windows, but of two passages
    spans.decode(short, random_logits(short, 0), SpanOptions(max_answer_tokens=30))


def test_logits_that_are_wrong(tokenizer):
    encoded = encode(tokenizer, "by Ada")
    good = np.zeros((1, 7), dtype=np.float32)
    for bad in (np.zeros((1, 6)), np.zeros((2, 7)), np.zeros(7)):
        with pytest.raises(EngineError, match=r"end logits of shape \(1, at least 7\)"):
            spans.decode(encoded, SpanLogits(good, bad.astype(np.float32)))
    for value in (np.nan, np.inf):
        broken = good.copy()
        broken[0, 2] = value
        with pytest.raises(EngineError, match="start logits that are not finite"):
            spans.decode(encoded, SpanLogits(broken, good))

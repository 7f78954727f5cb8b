"""Windows, max-context, gold spans and batches, against brute force over the same definition."""

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketqa import features, spans
from pocketqa.errors import CorruptFolder, OptionsError, TextError
from pocketqa.features import Tokenizer
from pocketqa.types import GoldAnswer, Request, WindowOptions
from tests.pocketqa import little

SHAPES = st.tuples(st.integers(1, 200), st.integers(2, 60), st.integers(0, 59)).filter(lambda shape: shape[2] < shape[1])
PIECES = (
    "the",
    "mill",
    "Ada",
    "étude",
    "e\u0301tude",
    "👍🏽",
    "👩\u200d👧",
    "שלום",
    "مرحبا",
    "世界",
    "U.S.",
    "1850",
    ",",
    "\t",
    "\n",
    "  ",
    "\u200f",
    "☃",
    "[SEP]",
    "-",
)
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=60).map(" ".join).filter(lambda text: bool(text.strip("\t\n \u200f")))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(little.tokenizer_file(tmp_path_factory.mktemp("little")))


# ---- windows over token counts


@given(SHAPES)
def test_windows_cover_every_token_and_share_the_overlap(shape):
    tokens, capacity, overlap = shape
    starts = features.window_starts(tokens, capacity, overlap)
    covered = set()
    for begin in starts:
        covered |= set(range(begin, min(begin + capacity, tokens)))
    assert covered == set(range(tokens))
    assert all(second - first == capacity - overlap for first, second in itertools.pairwise(starts))
    assert len(starts) == 1 or starts[-2] + capacity < tokens  # no window that adds nothing


@given(SHAPES)
def test_max_context_against_brute_force(shape):
    tokens, capacity, overlap = shape
    starts = features.window_starts(tokens, capacity, overlap)
    found = features.max_context_windows(tokens, starts, capacity)
    for token in range(tokens):
        scores = []
        for window, begin in enumerate(starts):
            end = min(begin + capacity, tokens) - 1
            if begin <= token <= end:
                scores.append((min(token - begin, end - token), -window))
        assert found[token] == -max(scores)[1]


@given(SHAPES)
def test_a_short_span_is_whole_in_the_window_of_its_first_token(shape):
    tokens, capacity, overlap = shape
    starts = features.window_starts(tokens, capacity, overlap)
    owner = features.max_context_windows(tokens, starts, capacity)
    longest = spans.longest_safe_answer(overlap)
    for token in range(tokens):
        end = min(starts[owner[token]] + capacity, tokens)
        assert min(token + longest, tokens) <= end


# ---- windows of text


@given(TEXTS, st.integers(16, 40), st.integers(0, 8))
def test_windows_of_text(tokenizer, text, max_tokens, overlap):
    question = "who?"
    encoded = tokenizer.encode([Request(question, (text,))], WindowOptions(max_tokens, overlap, 4))
    whole = tokenizer.encode([Request(question, (text,))], WindowOptions(512, 0, 4)).windows[0]
    passage = whole.ids[whole.context_mask]
    asked = [tokenizer.cls_id, *tokenizer._fast.encode(question, add_special_tokens=False).ids, tokenizer.sep_id]
    owners = np.zeros(len(passage), dtype=int)
    covered = np.zeros(len(passage), dtype=bool)
    for window in encoded.windows:
        size = int(window.context_mask.sum())
        part = slice(window.first_token, window.first_token + size)
        assert len(window) == len(asked) + size + 1 <= max_tokens
        assert window.ids.tolist() == [*asked, *passage[part], tokenizer.sep_id]
        assert window.token_types.tolist() == [0] * len(asked) + [1] * (size + 1)
        assert np.flatnonzero(window.context_mask).tolist() == list(range(len(asked), len(asked) + size))
        np.testing.assert_array_equal(window.offsets[window.context_mask], whole.offsets[whole.context_mask][part])
        assert not window.offsets[~window.context_mask].any() and not window.max_context[~window.context_mask].any()
        covered[part] = True
        owners[part] += window.max_context[window.context_mask]
    assert covered.all() and (owners == 1).all()  # each token counts in exactly one window
    assert encoded.ranges == ((0, len(encoded.windows)),) and encoded.tokens == sum(map(len, encoded.windows))


@given(TEXTS)
def test_offsets_are_code_points_that_spell_the_tokens(tokenizer, text):
    window = tokenizer.encode([Request("who?", (text,))], WindowOptions(512, 0, 4)).windows[0]
    offsets = window.offsets[window.context_mask]
    assert (offsets[:, 0] < offsets[:, 1]).all() and (np.diff(offsets[:, 0]) >= 0).all() and offsets[-1, 1] <= len(text)
    for (begin, end), token in zip(offsets, window.ids[window.context_mask], strict=True):
        spelled = tokenizer._fast.id_to_token(int(token)).removeprefix("##")
        found = text[begin:end]
        assert found == found.strip() != ""
        assert spelled == "[UNK]" or spelled == "".join(tokenizer._fast.normalizer.normalize_str(found).split())


def test_words_in_other_scripts_have_their_own_places(tokenizer):
    text = "👍🏽 e\u0301tude: שלום Ada 世界 مرحبا"
    window = tokenizer.encode([Request("who?", (text,))]).windows[0]
    pieces = [text[begin:end] for begin, end in window.offsets[window.context_mask]]
    assert "Ada" in pieces and "世" in pieces and "界" in pieces  # every CJK character is a word
    assert "".join(pieces).replace("\u0301", "") in text.replace(" ", "").replace("\u0301", "")
    place = window.offsets[window.context_mask][pieces.index("Ada")]
    assert place.tolist() == [text.index("Ada"), text.index("Ada") + 3]


def test_special_tokens_in_a_text_are_ordinary_characters(tokenizer):
    window = tokenizer.encode([Request("[CLS] who [SEP]?", ("the [SEP] mill [PAD]",))], WindowOptions(max_question_tokens=30)).windows[0]
    assert (window.ids == tokenizer.sep_id).sum() == 2 and (window.ids == tokenizer.cls_id).sum() == 1
    assert not (window.ids == tokenizer.pad_id).any()


def test_requests_with_several_passages_stay_in_order(tokenizer):
    requests = [Request("who?", ("the mill", "by Ada " * 20)), Request("the?", ("in",))]
    encoded = tokenizer.encode(requests, WindowOptions(24, 4, 4))
    assert [(w.request, w.source) for w in encoded.windows[:2]] == [(0, 0), (0, 1)]
    assert encoded.ranges[0][1] == encoded.ranges[1][0] == len(encoded.windows) - 1
    assert encoded.requests == tuple(requests) and encoded.seconds > 0


# ---- gold spans


@given(st.data(), TEXTS, st.integers(16, 40), st.integers(0, 8))
def test_a_gold_span_that_fits_is_never_lost(tokenizer, data, text, max_tokens, overlap):
    begin = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(begin + 1, len(text)))
    answer = GoldAnswer(text[begin:end], begin)
    windows = tokenizer.encode([Request("who?", (text,))], WindowOptions(max_tokens, overlap, 4)).windows
    whole = tokenizer.encode([Request("who?", (text,))], WindowOptions(512, 0, 4)).windows[0]
    offsets = whole.offsets[whole.context_mask]
    touched = [i for i, (b, e) in enumerate(offsets) if b < end and e > begin]
    for window, found in zip(windows, features.gold_spans(windows, answer), strict=True):
        first, size = window.first_token, int(window.context_mask.sum())
        if touched and first <= touched[0] and touched[-1] < first + size:
            shift = int(window.context_mask.argmax()) - first
            assert found == (touched[0] + shift, touched[-1] + shift)
            assert window.offsets[found[0]][0] == offsets[touched[0]][0] and window.offsets[found[1]][1] == offsets[touched[-1]][1]
        else:
            assert found is None


def test_a_gold_span_inside_a_token_takes_the_whole_token(tokenizer):
    windows = tokenizer.encode([Request("who?", ("the mill was built",))]).windows
    assert features.gold_spans(windows, GoldAnswer("il", 5)) == [(5, 5)]  # [CLS] who ? [SEP] the mill
    assert features.gold_spans(windows, GoldAnswer(" ", 3)) == [None]


# ---- batches


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40),
    st.integers(1, 200),
    st.one_of(st.none(), st.integers(1, 5)),
    st.sampled_from([None, (64,), (16, 32, 64)]),
)
def test_batches_hold_every_window_once(tokenizer, sizes, budget, max_batch, lengths):
    windows = [tokenizer.encode([Request("who", ("the " * size,))], WindowOptions(512, 0, 4)).windows[0] for size in sizes if size + 4 <= 64]
    if not windows:
        return
    seen: list[int] = []
    widths = []
    for batch, rows in features.make_batches(windows, budget, lengths, max_batch, pad_id=0):
        count, width = batch.shape
        assert count == len(rows) and (max_batch is None or count <= max_batch) and (count == 1 or count * width <= budget)
        longest = max(len(windows[row]) for row in rows)
        assert width == (longest if lengths is None else min(fixed for fixed in lengths if fixed >= longest))
        for line, row in enumerate(rows):
            size = len(windows[row])
            assert batch.ids[line, :size].tolist() == windows[row].ids.tolist() and not batch.ids[line, size:].any()
            assert batch.token_types[line, :size].tolist() == windows[row].token_types.tolist() and not batch.token_types[line, size:].any()
            assert batch.mask[line].tolist() == [1] * size + [0] * (width - size)
        seen += rows.tolist()
        widths.append(width)
    assert sorted(seen) == list(range(len(windows))) and widths == sorted(widths, reverse=True)


def test_a_window_longer_than_the_engine_takes(tokenizer):
    windows = tokenizer.encode([Request("who", ("the " * 40,))]).windows
    with pytest.raises(OptionsError, match="Lower max_tokens to 32"):
        features.make_batches(windows, lengths=(16, 32))


# ---- errors and sharing


@pytest.mark.parametrize(
    ("question", "contexts", "message"),
    [
        (" ", ("x",), "The question is empty"),
        ("who?", (), "at least one passage"),
        ("who?", ("",), "The passage is empty"),
        ("who?", ("x", "\n"), "The passage 2 is empty"),
        ("who?", ("a\ud83d",), "lone surrogate .* code point 1"),
        ("\udc00", ("x",), "The question is not valid Unicode"),
        ("\u200f\u0001", ("x",), "question holds no word"),
        ("who?", ("x", "\u200f\u0001"), "Passage 2 of 2 holds no word"),
        ("the " * 65, ("x",), "65 tokens; at most 64"),
    ],
)
def test_text_that_cannot_be_used(tokenizer, question, contexts, message):
    with pytest.raises(TextError, match=message):
        tokenizer.encode([Request(question, contexts)])


def test_windows_without_room(tokenizer):
    options = WindowOptions(32, 24, 8)
    assert len(tokenizer.encode([Request("the " * 8, ("mill " * 21,))], options).windows) == 1  # fits, so the overlap does not matter
    with pytest.raises(OptionsError, match=r"leave 21 for the passage after a question of 8, which must exceed doc_stride = 24"):
        tokenizer.encode([Request("the " * 8, ("mill " * 22,))], options)


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CorruptFolder, match="pocketqa package"):
        Tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(CorruptFolder):
        Tokenizer(tmp_path / "absent.json")


def test_vocabulary_hash_follows_behaviour(tmp_path, tokenizer):
    (tmp_path / "other").mkdir()
    assert Tokenizer(little.tokenizer_file(tmp_path)).vocabulary_hash == tokenizer.vocabulary_hash
    assert Tokenizer(little.tokenizer_file(tmp_path / "other", ("other",))).vocabulary_hash != tokenizer.vocabulary_hash


def test_many_threads_with_settings_of_their_own(tokenizer):
    text = "the mill was built by Ada in 1850. " * 12
    settings = [WindowOptions(16 + i, i % 8, 4) for i in range(16)]
    expected = [[w.ids.tolist() for w in tokenizer.encode([Request("who?", (text,))], options).windows] for options in settings]
    failures: list[object] = []

    def work(index: int) -> None:
        try:
            for _ in range(20):
                found = [w.ids.tolist() for w in tokenizer.encode([Request("who?", (text,))], settings[index]).windows]
                if found != expected[index]:
                    failures.append(index)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_window_that_is_hardly_longer_takes_the_tokens_at_the_end():
    # The last token of 372 is in the second window only: a span that ends on it must count there, though that window holds one new token.
    starts = features.window_starts(372, 371, 128)
    owner = features.max_context_windows(372, starts, 371)
    assert starts == [0, 243]
    assert set(owner[372 - spans.longest_safe_answer(128) :].tolist()) == {1}

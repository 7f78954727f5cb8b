"""Text to windows to batches: WordPiece tokens, overlapping windows with max-context, gold spans, padding by length buckets.

Legend: N requests, W windows, B rows, T positions, C tokens of a passage.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Encoding
from tokenizers import Tokenizer as FastTokenizer

from pocketqa.errors import CorruptFolder, OptionsError, TextError
from pocketqa.types import SPECIAL_TOKENS, Batch, Bools, GoldAnswer, Ints, Request, Window, WindowOptions


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """Requests cut into windows; windows of one request stand together, in the order of its passages."""

    requests: tuple[Request, ...]
    windows: tuple[Window, ...]
    ranges: tuple[tuple[int, int], ...]  # (N,) first and one past the last window of each request
    options: WindowOptions
    seconds: float  # spent on making them

    @property
    def tokens(self) -> int:
        """Positions of all windows, without padding."""
        return sum(len(window) for window in self.windows)


class Tokenizer:
    """A WordPiece tokenizer whose settings never change after construction, and which is therefore safe to share between threads.

    Question and passage are encoded apart and joined here: truncation, padding and special tokens of the underlying object stay off for
    ever.  (Its settings live in shared mutable state; changing them from several threads fails with "Already borrowed".)  Special tokens
    written in a text ("[SEP]") are taken as ordinary characters.
    """

    def __init__(self, path: str | Path) -> None:
        try:
            self._fast = FastTokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CorruptFolder(
                f"Expected a fast tokenizer at {path}, found: {error}. Make the folder again with: pocketqa package CHECKPOINT --out DIR"
            ) from None
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = True
        ids = {name: self._fast.token_to_id(name) for name in ("[PAD]", "[CLS]", "[SEP]")}
        if missing := [name for name, value in ids.items() if value is None]:
            raise CorruptFolder(f"Expected a BERT vocabulary with [PAD], [CLS] and [SEP] at {path}; {', '.join(missing)} missing.")
        self.pad_id, self.cls_id, self.sep_id = ids["[PAD]"], ids["[CLS]"], ids["[SEP]"]
        self.vocabulary_hash = _behaviour_hash(self._fast)
        self.size = self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, requests: Iterable[Request], options: WindowOptions | None = None) -> Encoded:
        """Windows of all requests.  Raises TextError for empty or invalid text and OptionsError where a question leaves no room."""
        options = options or WindowOptions()
        began = time.perf_counter()
        requests = tuple(requests)  # they are gone through more than once
        for request in requests:
            _check_text(request)
        texts = [text for request in requests for text in (request.question, *request.contexts)]
        encodings = iter(self._fast.encode_batch(texts, add_special_tokens=False))
        windows: list[Window] = []
        ranges = []
        for r, request in enumerate(requests):
            first = len(windows)
            question = self._question(next(encodings), options)
            for s in range(len(request.contexts)):
                windows += self._windows(question, next(encodings), options, r, s, len(request.contexts))
            ranges.append((first, len(windows)))
        return Encoded(requests, tuple(windows), tuple(ranges), options, time.perf_counter() - began)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, without special tokens."""
        return len(self._fast.encode(text, add_special_tokens=False).ids)

    def _question(self, encoding: Encoding, options: WindowOptions) -> Ints:
        ids = np.array(encoding.ids, dtype=np.int32)  # (Q,)
        if len(ids) == 0:
            raise TextError("The question holds no word or sign that the vocabulary can represent.")
        if len(ids) > options.max_question_tokens:
            raise TextError(
                f"The question has {len(ids)} tokens; at most {options.max_question_tokens} are allowed. Shorten it or raise max_question_tokens."
            )
        return ids

    def _windows(self, question: Ints, encoding: Encoding, options: WindowOptions, request: int, source: int, sources: int) -> list[Window]:
        ids = np.array(encoding.ids, dtype=np.int32)  # (C,)
        offsets = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)  # (C, 2)
        if len(ids) == 0:
            which = f"Passage {source + 1} of {sources}" if sources > 1 else "The passage"
            raise TextError(f"{which} holds no word or sign that the vocabulary can represent.")
        capacity = options.max_tokens - SPECIAL_TOKENS - len(question)
        if len(ids) > capacity and capacity <= options.doc_stride:
            raise OptionsError(
                f"Windows of {options.max_tokens} tokens leave {capacity} for the passage after a question of {len(question)}, "
                f"which must exceed doc_stride = {options.doc_stride}. Raise max_tokens or lower doc_stride."
            )
        starts = window_starts(len(ids), capacity, options.doc_stride)
        best = max_context_windows(len(ids), starts, capacity)  # (C,)
        prefix = np.concatenate(([self.cls_id], question, [self.sep_id])).astype(np.int32)
        made = []
        for w, begin in enumerate(starts):
            part = slice(begin, min(begin + capacity, len(ids)))
            size, body = part.stop - begin, slice(len(prefix), len(prefix) + part.stop - begin)
            length = len(prefix) + size + 1
            token_types = np.zeros(length, dtype=np.int32)  # (T,)
            token_types[len(prefix) :] = 1
            window_offsets = np.zeros((length, 2), dtype=np.int32)  # (T, 2)
            window_offsets[body] = offsets[part]
            context_mask, max_context = np.zeros(length, dtype=np.bool_), np.zeros(length, dtype=np.bool_)  # (T,)
            context_mask[body] = True
            max_context[body] = best[part] == w
            all_ids = np.concatenate((prefix, ids[part], [self.sep_id])).astype(np.int32)  # (T,)
            made.append(Window(all_ids, token_types, window_offsets, context_mask, max_context, request, source, begin))
        return made


def window_starts(tokens: int, capacity: int, overlap: int) -> list[int]:
    """First passage token of each window: steps of capacity - overlap until the passage is covered."""
    starts = [0]
    while starts[-1] + capacity < tokens:
        starts.append(starts[-1] + capacity - overlap)
    return starts


def max_context_windows(tokens: int, starts: Sequence[int], capacity: int) -> Ints:
    """For each passage token (C,) the window in which it has the most context on its poorer side.

    The score is min(left, right), the earlier window winning ties: that of Google's BERT run_squad.py without its bonus of 0.01 x window length,
    which gives a long window its tokens up to the very end when the next one is hardly longer, so that spans across that end are lost.
    """
    best = np.full(tokens, -1)
    owner = np.zeros(tokens, dtype=np.int32)
    for w, begin in enumerate(starts):
        end = min(begin + capacity, tokens)
        positions = np.arange(begin, end)
        score = np.minimum(positions - begin, end - 1 - positions)
        better = score > best[begin:end]
        best[begin:end][better] = score[better]
        owner[begin:end][better] = w
    return owner


def gold_spans(windows: Sequence[Window], answer: GoldAnswer) -> list[tuple[int, int] | None]:
    """For each window of one passage, the positions (first, last inclusive) of an answer, or None where the window does not hold all of it.

    Tokens that touch the answer's characters belong to it, so an answer that ends inside a word takes the whole token.
    """
    begin, end = answer.start, answer.start + len(answer.text)
    touched = [np.flatnonzero(w.context_mask & (w.offsets[:, 1] > begin) & (w.offsets[:, 0] < end)) for w in windows]
    shifts = [w.first_token - int(w.context_mask.argmax()) for w in windows]  # position in the window -> token of the passage
    present = [(int(t[0]) + shift, int(t[-1]) + shift) for t, shift in zip(touched, shifts, strict=True) if len(t)]
    if not present:
        return [None] * len(windows)
    first, last = min(f for f, _ in present), max(last for _, last in present)
    return [
        (first - shift, last - shift) if len(t) and int(t[0]) + shift == first and int(t[-1]) + shift == last else None
        for t, shift in zip(touched, shifts, strict=True)
    ]


def make_batches(
    windows: Sequence[Window], max_batch_tokens: int = 16384, lengths: Sequence[int] | None = None, max_batch: int | None = None, pad_id: int = 0
) -> list[tuple[Batch, Ints]]:
    """Windows of similar length padded together, longest first; each with the indices (B,) of its windows.

    max_batch_tokens bounds rows x padded length (one row is always taken); `lengths` are the fixed lengths an engine accepts.
    """
    order = sorted(range(len(windows)), key=lambda i: (-len(windows[i]), i))
    batches: list[tuple[Batch, Ints]] = []
    at = 0
    while at < len(order):
        length = _padded(len(windows[order[at]]), lengths)
        rows = max(1, max_batch_tokens // length)
        chosen = order[at : at + min(rows, max_batch or rows)]
        batches.append((collate([windows[i] for i in chosen], length, pad_id), np.array(chosen, dtype=np.int32)))
        at += len(chosen)
    return batches


def collate(windows: Sequence[Window], length: int | None = None, pad_id: int = 0) -> Batch:
    """Windows padded to `length`, or to the longest of them."""
    length = length or max(len(window) for window in windows)
    ids = np.full((len(windows), length), pad_id, dtype=np.int32)  # (B, T)
    token_types, mask = np.zeros_like(ids), np.zeros_like(ids)  # (B, T)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = window.ids
        token_types[row, : len(window)] = window.token_types
        mask[row, : len(window)] = 1
    return Batch(ids, token_types, mask)


def padded_flags(flags: Iterable[Bools], length: int) -> Bools:
    """Per-window flags (T,) as one array (W, length), False on padding."""
    rows = list(flags)
    out = np.zeros((len(rows), length), dtype=np.bool_)
    for row, flag in enumerate(rows):
        out[row, : len(flag)] = flag
    return out


def _padded(length: int, lengths: Sequence[int] | None) -> int:
    if lengths is None:
        return length
    fitting = [fixed for fixed in lengths if fixed >= length]
    if not fitting:
        raise OptionsError(f"A window of {length} tokens exceeds the longest this engine takes ({max(lengths)}). Lower max_tokens to {max(lengths)}.")
    return min(fitting)


def _check_text(request: Request) -> None:
    if not isinstance(request.contexts, tuple | list):
        raise TextError(f"Expected the passages of a Request in a tuple, found {type(request.contexts).__name__}. Write one passage as (passage,).")
    if not request.contexts:
        raise TextError("Expected at least one passage, found none.")
    named = [("question", request.question)]
    named += [("passage" if len(request.contexts) == 1 else f"passage {i + 1}", text) for i, text in enumerate(request.contexts)]
    for name, text in named:
        if not isinstance(text, str):
            raise TextError(f"Expected a text as the {name}, found {type(text).__name__}.")
        if not text.strip():
            raise TextError(f"The {name} is empty.")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TextError(f"The {name} is not valid Unicode: a lone surrogate (half of a UTF-16 pair) at code point {error.start}.") from None


def _behaviour_hash(tokenizer: FastTokenizer) -> str:
    """sha256 of everything that decides the ids of a text: vocabulary, normaliser, pre-tokeniser."""
    document = json.loads(tokenizer.to_str())
    relevant = {key: document.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True, ensure_ascii=False).encode()).hexdigest()

"""A reader small enough to reason about: a vocabulary of letters, and a runtime whose logits the test decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from pocketqa.features import Tokenizer
from pocketqa.reader import Reader
from pocketqa.runtimes.base import Runtime
from pocketqa.types import Batch, Floats, NoAnswer, RuntimeInfo, SpanLogits

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,;:?!'\"()-«»¿é…🙂👍שלוםمرحبا世界"
WORDS = ("the", "mill", "was", "built", "by", "ada", "in", "who", "bridge", "river", "and", "of")


def tokenizer_file(folder: Path, words: tuple[str, ...] = WORDS) -> Path:
    """Write a WordPiece tokenizer.json of single letters, continued letters and a few words."""
    letters = list(dict.fromkeys(LETTERS))
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    fast = FastTokenizer(WordPiece({token: i for i, token in enumerate(dict.fromkeys(tokens))}, unk_token="[UNK]"))
    fast.normalizer = BertNormalizer(lowercase=True)
    fast.pre_tokenizer = BertPreTokenizer()
    fast.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    path = folder / "tokenizer.json"
    fast.save(str(path))
    return path


class HashRuntime:
    """Logits that depend on each token, its place and its neighbour, as a model's do, without any weights; safe between threads."""

    lengths: tuple[int, ...] | None = None
    max_batch: int | None = None

    def __init__(self, lengths: tuple[int, ...] | None = None, max_batch: int | None = None) -> None:
        self.lengths, self.max_batch = lengths, max_batch
        self.batches: list[tuple[int, int]] = []

    @property
    def info(self) -> RuntimeInfo:
        return RuntimeInfo("hash", "1", "fp32", 1)

    def forward(self, batch: Batch) -> SpanLogits:
        self.batches.append(batch.shape)
        ids = batch.ids.astype(np.int64) * batch.mask  # (B, T) padding plays no part
        places = np.arange(ids.shape[1])
        before = np.concatenate((np.zeros_like(ids[:, :1]), ids[:, :-1]), axis=1)
        return SpanLogits(_mix(ids * 31 + places * 7 + before * 131), _mix(ids * 17 + places * 13 + before * 71 + 5))


class ChosenRuntime(HashRuntime):
    """Logits from a function of the batch, made by the test."""

    def __init__(self, logits: Callable[[Batch], tuple[Floats, Floats]]) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, batch: Batch) -> SpanLogits:
        return SpanLogits(*self._logits(batch))


def reader(folder: Path, runtime: Runtime | None = None, no_answer: NoAnswer | None = None) -> Reader:
    """A reader over the little tokenizer."""
    return Reader(Tokenizer(tokenizer_file(folder)), runtime or HashRuntime(), "little", "f" * 64, no_answer)


def pointing_at(tokenizer: Tokenizer, word: str) -> ChosenRuntime:
    """A runtime that finds one word of the vocabulary wherever it stands in the passage, and is otherwise indifferent."""
    wanted = tokenizer._fast.token_to_id(word)

    def logits(batch: Batch) -> tuple[Floats, Floats]:
        hit = ((batch.ids == wanted) & (batch.token_types == 1)).astype(np.float32) * 9
        return hit, hit.copy()

    return ChosenRuntime(logits)


def _mix(values: np.ndarray) -> Floats:
    return ((values * 2654435761 % 2**32) / 2**32 * 10 - 5).astype(np.float32)

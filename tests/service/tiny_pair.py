"""A pair of models small enough to be worked out by hand: a WordPiece vocabulary made in code, and a runtime whose logits follow from the token ids.

Each runtime marks one word; an answer is the first marked word of the passage, and no answer where the passage does not hold it.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from pocketqa.features import Tokenizer
from pocketqa.reader import Reader
from pocketqa.types import Batch, NoAnswer, RuntimeInfo, SpanLogits
from service.models import ModelFacts, Pair, Served

WORDS = ["who", "built", "it", "the", "mill", "was", "by", "ada", "bell", "in", "rome", "?", ".", "😀", "🎉", "שלום", "עולם", "o", "##o", "x"]
HIT, ELSEWHERE, NULL = 6.0, -4.0, 1.0


def make_tokenizer(folder: Path, extra: tuple[str, ...] = ()) -> Tokenizer:
    """The service's tokenizer over a vocabulary of a few words, written as tokenizer.json."""
    vocabulary = {token: index for index, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *extra])}
    fast = FastTokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    fast.normalizer = BertNormalizer(lowercase=True)
    fast.pre_tokenizer = BertPreTokenizer()
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    return Tokenizer(folder / "tokenizer.json")


class WordRuntime:
    """Start and end logits are HIT where a token is the marked word, else ELSEWHERE; those of [CLS] are NULL."""

    lengths = None
    max_batch = None

    def __init__(self, word_id: int, cls_id: int, engine: str = "tiny", gate: threading.Event | None = None) -> None:
        self._word, self._cls, self._gate = word_id, cls_id, gate
        self._engine = engine
        self.running = 0
        self.most_running = 0
        self.calls = 0

    @property
    def info(self) -> RuntimeInfo:
        """One thread of plain numpy."""
        return RuntimeInfo(self._engine, np.__version__, "fp32", 1)

    def forward(self, batch: Batch) -> SpanLogits:
        """(B, T) -> logits (B, T)."""
        self.running += 1
        self.calls += 1
        self.most_running = max(self.most_running, self.running)
        if self._gate is not None:
            assert self._gate.wait(30)
        logits = np.where(batch.ids == self._word, HIT, ELSEWHERE).astype(np.float32)  # (B, T)
        logits[batch.ids == self._cls] = NULL
        self.running -= 1
        return SpanLogits(logits, logits.copy())


def make_served(role: str, tokenizer: Tokenizer, word: str, no_answer: NoAnswer | None = None, gate: threading.Event | None = None) -> Served:
    """A model that answers with `word`."""
    word_id = tokenizer._fast.token_to_id(word)
    runtime = WordRuntime(word_id, tokenizer.cls_id, gate=gate)
    reader = Reader(tokenizer, runtime, f"tiny-{role}", f"{role:0<64}", no_answer or NoAnswer(True, 0.0))
    layers = {"teacher": 12, "student": 6}[role]
    return Served(role, reader, ModelFacts(layers, 384, layers * 1000, layers * 2000))  # type: ignore[arg-type]


def make_pair(folder: Path, teacher: str = "ada", student: str = "ada", **options: object) -> Pair:
    """Teacher and student that answer with these words."""
    tokenizer = make_tokenizer(folder)
    return Pair(make_served("teacher", tokenizer, teacher, **options), make_served("student", tokenizer, student, **options))  # type: ignore[arg-type]

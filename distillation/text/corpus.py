"""A text corpus as rows of token ids for masked-language modelling, memory-mapped, and the order in which its rows are seen.

Legend: N rows, T positions, D documents.  A row is [CLS] tokens [SEP].
Packed: the text runs on from row to row, a [SEP] where one document ends and the next begins (RoBERTa's "full sentences", Liu et al. 2019), so that
nearly every row is full.  Otherwise a row never leaves its document, a long document is cut into even pieces, and batches hold rows of like length.
"""

from __future__ import annotations

import argparse
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distillation.questions.data import epoch_batches
from distillation.text.corpus_cache import COUNTS, DOCUMENTS, TOKENS, Vocabulary, cache_key, ready
from distillation.text.corpus_text import find_sources
from distillation.training.loop import Step
from pocketqa.errors import TrainingError
from pocketqa.folders import SHORT_HASH
from pocketqa.types import JSON

Rows = NDArray[np.int64]

SPECIAL_PER_ROW = 2  # [CLS] and [SEP]
BLOCK = 16  # rows that stand together are held out together, so that few documents lie on both sides
LARGEST_HELD_OUT = 0.1  # of a corpus
HELD_OUT_SEED = 0  # of the rows kept apart and of their masks: runs of several seeds, and stages that follow one another, are scored on the same text


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """How text becomes rows.  min_tokens: shorter rows are left out (11 or fewer in the released DistilBERT), [CLS] and [SEP] included."""

    max_tokens: int = 256
    packed: bool = True
    min_tokens: int = 12
    limit: int = 0  # read no further after so many tokens; 0: read everything


@dataclass(frozen=True, slots=True)
class CorpusArguments:
    """What a command line says of a corpus."""

    paths: tuple[str, ...]
    cache: Path
    limit: int  # tokens to read at most, 0: all

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser) -> None:
        """--corpus, --cache and --corpus-tokens."""
        words = "text files, folders of them, or Hub data sets NAME[@REVISION][:CONFIG[:SPLIT]][#COLUMN]"
        parser.add_argument("--corpus", nargs="+", required=True, metavar="TEXT", help=words)
        parser.add_argument(
            "--cache",
            type=Path,
            metavar="DIR",
            help="where tokenised text is kept (default: corpus-cache beside OUT; of a benchmark beside the model)",
        )
        parser.add_argument("--corpus-tokens", type=int, default=0, metavar="N", help="read no more of the corpus than N tokens (default: all)")

    @classmethod
    def of(cls, given: argparse.Namespace) -> CorpusArguments:
        """From a parsed command line that has --out as well."""
        return cls(tuple(given.corpus), given.cache or given.out.with_name("corpus-cache"), given.corpus_tokens)


class PlanRecipe(Protocol):
    """What a plan depends on, of a Recipe."""

    @property
    def epochs(self) -> float:
        """Passes over the rows."""

    @property
    def batch_tokens(self) -> int:
        """Of a micro-batch, padding included."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of one optimiser step."""

    @property
    def seed(self) -> int:
        """Of the order."""


class Corpus:
    """Rows of ids in memory-mapped files.  Only what is asked for is read."""

    def __init__(self, folder: Path, index: JSON, vocabulary: Vocabulary, options: CorpusOptions, key: str) -> None:
        self.vocabulary, self.options, self.key = vocabulary, options, key
        self.sources: list[JSON] = index["sources"]  # name, sha256, tokens, documents of each
        self.tokens, self.documents = int(index["tokens"]), int(index["documents"])
        self.counts: Rows = np.fromfile(folder / COUNTS, dtype="<i8")  # (V,) how often each id occurs
        self._ids = np.memmap(folder / TOKENS, dtype=vocabulary.dtype, mode="r")
        ends = np.fromfile(folder / DOCUMENTS, dtype="<i8")  # (D,)
        capacity = options.max_tokens - SPECIAL_PER_ROW
        first, last = _running(self._ids, vocabulary.sep_id, capacity) if options.packed else _pieces(ends, capacity)
        long_enough = last - first + SPECIAL_PER_ROW >= min(options.min_tokens, int((last - first).max()) + SPECIAL_PER_ROW)
        self._first, self._last = first[long_enough], last[long_enough]  # (N,) each
        self.lengths: Rows = self._last - self._first + SPECIAL_PER_ROW  # (N,)

    def __len__(self) -> int:
        return len(self.lengths)

    def row(self, index: int) -> Rows:
        """Ids (T,) of a row, [CLS] and [SEP] included."""
        row = np.empty(int(self.lengths[index]), dtype=np.int64)
        row[0], row[-1] = self.vocabulary.cls_id, self.vocabulary.sep_id
        row[1:-1] = self._ids[self._first[index] : self._last[index]]
        return row

    def say(self) -> str:
        """One line about the rows."""
        kind = "packed" if self.options.packed else "one document each"
        mean = float(self.lengths.mean())
        return f"{len(self):,} rows of at most {self.options.max_tokens} tokens, {kind}, {mean:.1f} on average; corpus {self.key[:SHORT_HASH]}"


def open_corpus(paths: Sequence[str], tokenizer: Path, options: CorpusOptions, cache: Path, say: Callable[[str], None] = lambda line: None) -> Corpus:
    """The corpus that `paths` name (see find_sources), tokenised unless the cache holds it already.

    tokenizer: a folder with tokenizer.json, or that file; cache: folder that holds one folder for each corpus and vocabulary.
    Raises DataError for text that is missing, empty, unreadable or binary; TrainingError for a cache that cannot be written.
    """
    if options.max_tokens <= SPECIAL_PER_ROW:
        raise TrainingError(f"Rows of {options.max_tokens} tokens leave no room beside [CLS] and [SEP]. Raise --max-tokens.")
    file = tokenizer / "tokenizer.json" if tokenizer.is_dir() else tokenizer
    vocabulary = Vocabulary.of(file)
    sources = find_sources(paths)
    key = cache_key(sources, vocabulary, options.limit)
    folder = cache / f"corpus-{key[:SHORT_HASH]}"
    index = ready(folder, sources, file, vocabulary, options.limit, say)
    return Corpus(folder, index, vocabulary, options, key)


def hold_out(lengths: Rows, tokens: int) -> tuple[Rows, Rows]:
    """Row numbers to train on and to keep apart, the second in blocks of neighbours of about `tokens` tokens, never more than LARGEST_HELD_OUT.

    The same ones for every run on a corpus that is cut into the same rows.
    """
    everything = np.arange(len(lengths))
    block = max(1, min(BLOCK, len(lengths) // 20))
    wanted = min(tokens, LARGEST_HELD_OUT * float(lengths.sum()))
    starts = everything[::block]
    sums = np.add.reduceat(lengths, starts) if len(lengths) else lengths  # tokens of each block
    order = np.random.default_rng((HELD_OUT_SEED, 1)).permutation(len(starts))
    chosen = order[np.cumsum(sums[order]) <= wanted]
    apart = np.isin(everything // block, chosen)
    return everything[~apart], everything[apart]


def plan_steps(lengths: Rows, recipe: PlanRecipe, rows: Rows | None = None, tokens: int = 0) -> list[Step]:
    """Every optimiser step of a training: shuffled rows in micro-batches of like lengths, at most recipe.batch_tokens each, padding included.

    rows: the row numbers to use (default: all).  tokens > 0: as many passes as that takes, else recipe.epochs passes; the last one may be cut.
    """
    rows = np.arange(len(lengths)) if rows is None else rows
    if not len(rows):
        raise TrainingError("The corpus gives no row to train on. Name more text, or lower --heldout-tokens.")
    taken = lengths[rows]
    passes = tokens / float(taken.sum()) if tokens else recipe.epochs
    whole, part = int(passes), passes - int(passes)
    if len(lengths) > np.iinfo(np.int32).max:
        raise TrainingError(f"The corpus gives {len(lengths):,} rows, more than can be counted. Read less of it with --corpus-tokens.")
    small = rows.astype(np.int32)  # and arrays, not lists: plans of hundreds of millions of rows lie in every process
    batches: list[array[int]] = []
    for epoch in range(whole + (part > 0)):
        made = [array("i", small[batch].tobytes()) for batch in epoch_batches(taken, recipe.batch_tokens, seed=recipe.seed * 1000 + epoch)]
        batches += made[: max(1, round(part * len(made)))] if epoch == whole else made
    return [batches[at : at + recipe.accumulation] for at in range(0, len(batches), recipe.accumulation)]


def plan_size(plan: Sequence[Step], lengths: Rows, padded: Callable[[int], int] = int) -> tuple[int, float]:
    """Tokens of a plan without padding, and the share of positions that are padding.  padded: the length of a batch by that of its longest row."""
    positions = tokens = 0
    for step in plan:
        for batch in step:
            chosen = lengths[list(batch)]
            tokens += int(chosen.sum())
            positions += len(batch) * padded(int(chosen.max()))
    return tokens, 1 - tokens / positions


def _running(ids: NDArray[np.unsignedinteger], sep_id: int, capacity: int) -> tuple[Rows, Rows]:
    """First and one past the last id of rows cut from the running text; a [SEP] at either end of a cut is left to the row's own."""
    first = np.arange(0, len(ids), capacity)  # (N,)
    last = np.minimum(first + capacity, len(ids))
    first = first + (ids[first] == sep_id)
    last = last - (ids[last - 1] == sep_id)
    kept = last > first
    return first[kept], last[kept]


def _pieces(ends: Rows, capacity: int) -> tuple[Rows, Rows]:
    """First and one past the last id of the even pieces of each document.  ends (D,): one past each document's [SEP]."""
    begins = np.concatenate(([0], ends[:-1]))  # (D,)
    sizes = ends - 1 - begins
    pieces = -(-sizes // capacity)
    document = np.repeat(np.arange(len(ends)), pieces)  # (N,)
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)  # (N,) of the piece in its document
    first = begins[document] + sizes[document] * number // pieces[document]
    last = begins[document] + sizes[document] * (number + 1) // pieces[document]
    return first, last

"""A corpus as token ids on disk: tokenised once, found again by the hashes of what went into it, checked whenever it is opened.

A cache folder holds
    tokens.bin      ids of all documents in a row, a [SEP] after each; unsigned 16-bit where the vocabulary allows, else 32-bit, little-endian
    documents.bin   one past the [SEP] of each document, 64-bit
    counts.bin      how often each id occurs (V,), 64-bit
    corpus.json     what it was made from, and the sha256 of the files above; written last
The folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from distillation.text.corpus_text import Source
from pocketqa.errors import DataError, FolderError, TrainingError
from pocketqa.features import Tokenizer
from pocketqa.folders import atomic_folder, sha256_file
from pocketqa.locks import one_maker
from pocketqa.types import JSON

FORMAT = 1
TOKENS, DOCUMENTS, COUNTS, INDEX = "tokens.bin", "documents.bin", "counts.bin", "corpus.json"
LINES_AT_ONCE, CHARACTERS_AT_ONCE = 1024, 4 << 20
UNKNOWN_SHARE = 0.5  # paragraphs with so many [UNK] are left out, as in the released DistilBERT's preparation
REPORT_SECONDS = 10.0
LEFTOVER_SECONDS = 600.0  # a live writer touches its folder far more often

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids and sizes that a corpus and its masks need."""

    size: int
    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    unk_id: int
    special: tuple[int, ...]  # all special tokens: never masked, never drawn
    sha256: str

    @classmethod
    def of(cls, path: Path) -> Vocabulary:
        """That of a tokenizer.json.  Raises CorruptFolder for a file that is none, TrainingError for one without [MASK] or [UNK]."""
        known, fast = Tokenizer(path), FastTokenizer.from_file(str(path))
        mask, unknown = fast.token_to_id("[MASK]"), fast.token_to_id("[UNK]")
        if mask is None or unknown is None:
            raise TrainingError(f"Expected a vocabulary with [MASK] and [UNK] at {path}, found none. Name a BERT whose tokenizer has them.")
        special = {known.pad_id, known.cls_id, known.sep_id, mask, unknown}
        special |= {number for number, token in fast.get_added_tokens_decoder().items() if token.special}
        return cls(known.size, known.pad_id, known.cls_id, known.sep_id, mask, unknown, tuple(sorted(special)), known.vocabulary_hash)

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Smallest type that holds every id."""
        return np.dtype("<u2") if self.size <= 1 << 16 else np.dtype("<u4")


def cache_key(sources: Sequence[Source], vocabulary: Vocabulary, limit: int) -> str:
    """sha256 of everything that decides the ids."""
    parts = [FORMAT, vocabulary.sha256, [source.sha256 for source in sources], limit]
    if limit:
        parts.append("whole lines")  # once a limit was only looked at after many lines
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def ready(folder: Path, sources: Sequence[Source], tokenizer: Path, vocabulary: Vocabulary, limit: int, say: Say) -> JSON:
    """Make sure that `folder` holds the tokenised corpus, and return its corpus.json.  A damaged one is named and made again."""
    if folder.exists():
        problem = damage(folder)
        if problem is None:
            return _found(folder, say)
        say(f"the cache {folder} is damaged ({problem}): tokenising again")
    try:
        with one_maker(folder, say):
            if folder.exists() and damage(folder) is None:  # another run was first
                return _found(folder, say)
            remove_leftovers(folder)
            with atomic_folder(folder, replace=True) as partial:
                return _tokenise(partial, sources, tokenizer, vocabulary, limit, say)
    except OSError as error:
        raise TrainingError(f"The cache could not be written to {folder.parent}: {error}. Free some room or name another --cache.") from None
    except FolderError as error:
        raise TrainingError(f"{error} (--cache names the place of tokenised text.)") from None


def _found(folder: Path, say: Say) -> JSON:
    index: JSON = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    say(f"corpus: {index['tokens']:,} tokens of {index['documents']:,} documents, from the cache {folder}")
    return index


def damage(folder: Path) -> str | None:
    """What is wrong with a cache folder, or None."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        for name, expected in index["files"].items():
            found = sha256_file(folder / name)
            if found != expected:
                return f"{name}: expected sha256 {expected[:12]}, found {found[:12]}"
        if set(index["files"]) != {TOKENS, DOCUMENTS, COUNTS} or index["format"] != FORMAT:
            return f"{INDEX} is of another format"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{INDEX} cannot be read: {error}"
    return None


def remove_leftovers(folder: Path) -> None:
    """Delete what killed runs left beside a cache: partial folders that nobody has touched for LEFTOVER_SECONDS."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        try:
            newest = max(path.stat().st_mtime for path in (left, *left.iterdir()))
        except OSError:
            continue
        if time.time() - newest > LEFTOVER_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _tokenise(folder: Path, sources: Sequence[Source], tokenizer: Path, vocabulary: Vocabulary, limit: int, say: Say) -> JSON:
    fast = FastTokenizer.from_file(str(tokenizer))
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True  # "[SEP]" written in a text is text
    with (folder / TOKENS).open("wb") as tokens, (folder / DOCUMENTS).open("wb") as documents:
        writer = _Writer(
            tokens, documents, fast, vocabulary, limit, ReadingProgress(sum(source.size for source in sources), "tokenising", "tokens", say)
        )
        counted = [writer.add(source) for source in sources]
    if not writer.tokens and writer.full:
        raise DataError(f"Expected a first paragraph of fewer than --corpus-tokens {limit:,} tokens, found a longer one. Raise --corpus-tokens.")
    if not writer.tokens:
        names = ", ".join(source.name for source in sources)
        raise DataError(f"Expected text in {names}, found no token ({writer.dropped} paragraphs were mostly unknown characters). Name other text.")
    writer.counts.astype("<i8").tofile(folder / COUNTS)
    index: JSON = {
        "format": FORMAT,
        "vocabulary": vocabulary.sha256,
        "sources": counted,
        "tokens": writer.tokens,
        "documents": writer.documents,
        "dropped_paragraphs": writer.dropped,
        "files": {name: sha256_file(folder / name) for name in (TOKENS, DOCUMENTS, COUNTS)},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    say(f"corpus: {writer.tokens:,} tokens of {writer.documents:,} documents; {writer.dropped} paragraphs left out as mostly [UNK]")
    return index


class _Writer:
    """Tokenises sources one after another, holding LINES_AT_ONCE lines or CHARACTERS_AT_ONCE in memory.

    limit: of the tokens, 0 for none.  The first line that does not fit, with the [SEP] of its document, ends the reading.
    """

    def __init__(
        self, tokens: IO[bytes], places: IO[bytes], fast: FastTokenizer, vocabulary: Vocabulary, limit: int, progress: ReadingProgress
    ) -> None:
        self.tokens = self.documents = self.dropped = 0
        self.full = False
        self.counts: NDArray[np.int64] = np.zeros(vocabulary.size, dtype=np.int64)  # (V,)
        self._tokens, self._places, self._fast, self._vocabulary, self._limit, self._progress = tokens, places, fast, vocabulary, limit, progress
        self._open = False  # whether a document has begun
        self._pending: list[NDArray[np.unsignedinteger]] = []

    def add(self, source: Source) -> JSON:
        """Append one source; returns its line for corpus.json."""
        tokens, documents = self.tokens, self.documents
        read = 0
        for batch in () if self.full else _batched(source.lines()):
            self._append([line for line, _ in batch])
            read = batch[-1][1]
            self._progress.say(read, self.tokens)
            if self.full:
                break
        self._end_document()
        self._flush()
        self._progress.done += source.size
        return {"name": source.name, "sha256": source.sha256, "tokens": self.tokens - tokens, "documents": self.documents - documents}

    def _append(self, lines: Sequence[str]) -> None:
        encoded = iter(self._fast.encode_batch_fast([line for line in lines if line], add_special_tokens=False))
        for line in lines:
            if not line:
                self._end_document()
                continue
            ids = np.array(next(encoded).ids, dtype=self._vocabulary.dtype)  # (n,)
            if len(ids) == 0 or (ids == self._vocabulary.unk_id).mean() >= UNKNOWN_SHARE:
                self.dropped += 1
                continue
            if self._limit and self.tokens + len(ids) + 1 > self._limit:
                self.full = True
                break
            self._write(ids)
            self._open = True
        self._flush()

    def _end_document(self) -> None:
        if self._open:
            self._write(np.array([self._vocabulary.sep_id], dtype=self._vocabulary.dtype))
            self._places.write(np.array([self.tokens], dtype="<i8").tobytes())
            self.documents += 1
            self._open = False

    def _write(self, ids: NDArray[np.unsignedinteger]) -> None:
        self._pending.append(ids)
        self.tokens += len(ids)

    def _flush(self) -> None:
        if self._pending:
            ids = np.concatenate(self._pending)
            self._tokens.write(ids.tobytes())
            self.counts += np.bincount(ids, minlength=len(self.counts))
            self._pending.clear()


class ReadingProgress:
    """A line now and then: what was made of the text so far, how much a second, share of the text read, time left."""

    def __init__(self, size: int, doing: str, what: str, say: Say) -> None:
        """size: of all the text, in bytes, tokens or any other unit."""
        self.done = 0  # of the size: the sources that are finished
        self._size, self._doing, self._what, self._say = size, doing, what, say
        self._began = self._last = time.monotonic()

    def say(self, read: int, made: int) -> None:
        """Report after REPORT_SECONDS.  read: of the size, what was read of the present source."""
        now = time.monotonic()
        if now - self._last < REPORT_SECONDS:
            return
        self._last, seconds, share = now, now - self._began, (self.done + read) / self._size if self._size else 0.0
        left = f", {100 * share:.0f} % read, {seconds * (1 - share) / share:.0f} s left" if share else ""
        self._say(f"{self._doing}: {made:,} {self._what}, {made / seconds:,.0f} a second{left}")


def _batched(lines: Iterator[tuple[str, int]]) -> Iterator[list[tuple[str, int]]]:
    batch, characters = [], 0
    for item in lines:
        batch.append(item)
        characters += len(item[0])
        if len(batch) == LINES_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch

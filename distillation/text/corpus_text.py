"""Text to train on, line by line: files plain or compressed, folders of them, and data sets of the Hugging Face Hub.

A line is a paragraph and a blank line ends a document; so does the end of a file.  A record of a Hub data set is a document.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import importlib
import io
import lzma
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from pocketqa.errors import DataError, MissingExtra
from pocketqa.folders import sha256_file

COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
MAX_LINE = 1 << 20  # characters of one piece of a line: a file without line breaks must not fill the memory
HUB_SECONDS = 15  # to wait for the Hub
TEXT_COLUMN = "text"

_HUB_NAME = re.compile(
    r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w.-]+))?(?::(?P<config>[\w.-]*))?(?::(?P<split>[\w.\[\]%:-]+))?(?:#(?P<column>.+))?"
)
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Source(Protocol):
    """One text: what it is called, the hash that stands for its content, its bytes on disk (0: unknown)."""

    @property
    def name(self) -> str:
        """For messages and manifests, without the folders of this machine."""

    @property
    def sha256(self) -> str:
        """Of the content."""

    @property
    def size(self) -> int:
        """Bytes to be read, 0 where nobody knows."""

    def lines(self) -> Iterator[tuple[str, int]]:
        """Each paragraph, "" after each document, and the bytes read so far.  Raises DataError."""


def find_sources(paths: Sequence[str]) -> list[Source]:
    """Every text that the words of a command line name: files, folders (their .txt files, compressed or not, in the order of their names), Hub names.

    A Hub name is NAME[@REVISION][:CONFIG[:SPLIT]][#COLUMN]; the split is "train" and the column "text" where none is given.  Raises DataError.
    """
    found: list[Source] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            found += [TextFile.of(file) for file in _files_of(path)]
        elif path.is_file():
            found.append(TextFile.of(path))
        elif (match := _HUB_NAME.fullmatch(text)) and not _looks_like_path(text):
            place = match["config"] or None, match["split"] or "train", match["column"] or TEXT_COLUMN
            found.append(HubText.of(match["name"], match["revision"], *place))
        else:
            raise DataError(f"Expected a text file, a folder of them or a Hub data set (NAME[:CONFIG[:SPLIT]][#COLUMN]), found nothing at {text!r}.")
    return found


@dataclass(frozen=True, slots=True)
class TextFile:
    """A UTF-8 file, plain or compressed."""

    path: Path
    sha256: str
    size: int

    @classmethod
    def of(cls, path: Path) -> TextFile:
        """Hash a file.  Raises DataError where it cannot be read."""
        try:
            return cls(path, sha256_file(path), path.stat().st_size)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}.") from None

    @property
    def name(self) -> str:
        """The file's name."""
        return self.path.name

    def lines(self) -> Iterator[tuple[str, int]]:
        """Each paragraph, "" after each document, and the (compressed) bytes read so far."""
        number = 0
        try:
            with self.path.open("rb") as raw, _unpacked(raw, self.path) as data, io.TextIOWrapper(data, encoding="utf-8-sig") as text:
                while line := text.readline(MAX_LINE):
                    number += 1
                    if "\0" in line:
                        raise DataError(f"{self.path}: expected text, found a zero byte in line {number}: a binary file. Name text files only.")
                    yield line.strip(), raw.tell()
        except UnicodeDecodeError:
            raise DataError(f"{self.path}: expected UTF-8 text, found other bytes after line {number}. Convert it or leave it out.") from None
        except DataError:
            raise
        except Exception as error:  # each compressor raises kinds of its own
            raise DataError(f"{self.path}: cannot be read beyond line {number}: {error}. Copy the file again from where it came from.") from None
        yield "", self.size


@dataclass(frozen=True, slots=True)
class HubText:
    """A column of a Hub data set, streamed."""

    dataset: str
    revision: str  # a commit
    config: str | None
    split: str
    column: str

    @classmethod
    def of(cls, dataset: str, revision: str | None, config: str | None, split: str, column: str) -> HubText:
        """Ask the Hub which commit is meant, unless one was named: the cache is keyed by it.  Raises DataError where the Hub does not answer."""
        if revision and _COMMIT.fullmatch(revision):
            return cls(dataset, revision, config, split, column)
        try:
            api = importlib.import_module("huggingface_hub").HfApi()
            commit = api.dataset_info(dataset, revision=revision, timeout=HUB_SECONDS).sha
        except ImportError:
            raise MissingExtra("datasets", "train", f"Reading {dataset!r} from the Hugging Face Hub (no file of that name exists)") from None
        except Exception as error:  # the library raises many kinds for "not found" and "not reachable"
            why = str(error).strip().splitlines()[0] if str(error).strip() else "no answer"
            raise DataError(
                f"{dataset!r} is neither a file nor a Hub data set that can be reached ({type(error).__name__}: {why}). "
                "Check the name and the network, or name files."
            ) from None
        return cls(dataset, str(commit), config, split, column)

    @property
    def name(self) -> str:
        """Name, configuration and split as they are typed, and the column unless it is "text"."""
        column = "" if self.column == TEXT_COLUMN else f"#{self.column}"
        return ":".join([self.dataset, self.config or "", self.split]) + column

    @property
    def sha256(self) -> str:
        """Of name and commit, which settle the content."""
        return hashlib.sha256(f"{self.name}@{self.revision}".encode()).hexdigest()

    @property
    def size(self) -> int:
        """Unknown."""
        return 0

    def lines(self) -> Iterator[tuple[str, int]]:
        """The lines of each record's text, "" after each record."""
        try:
            datasets = importlib.import_module("datasets")
        except ImportError:
            raise MissingExtra("datasets", "train", f"Reading {self.dataset!r} from the Hugging Face Hub") from None
        number = 0
        try:
            rows = iter(datasets.load_dataset(self.dataset, self.config, split=self.split, revision=self.revision, streaming=True))
            while (row := next(rows, None)) is not None:
                for line in self._text_of(row, number).splitlines():
                    if line.strip():
                        yield line.strip(), 0
                number += 1
                yield "", 0
        except DataError:
            raise
        except Exception as error:  # the library raises many kinds
            raise DataError(f"{self.name}: the Hub stopped after {number} records ({type(error).__name__}: {error}). Try again.") from None

    def _text_of(self, row: dict[str, Any], number: int) -> str:
        text = row.get(self.column)
        if not isinstance(text, str):
            raise DataError(
                f"{self.name}: expected text in a column {self.column!r}, found the columns {', '.join(map(str, row))} in record {number}. "
                "Name the column with the text after a #: NAME[@REVISION][:CONFIG[:SPLIT]]#COLUMN."
            )
        return text


def _files_of(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".") and _is_text(path)]
    if not files:
        raise DataError(f"{folder}: expected .txt files (or .txt{', .txt'.join(COMPRESSIONS)}), found none. Name the files themselves.")
    return files


def _is_text(path: Path) -> bool:
    return (path.with_suffix("") if path.suffix in COMPRESSIONS else path).suffix == ".txt"


def _looks_like_path(text: str) -> bool:
    text = text.partition("#")[0]
    return text.startswith((".", "/", "~")) or text.count("/") > 1 or Path(text.partition(":")[0]).suffix in (*COMPRESSIONS, ".txt", ".md", ".json")


def _unpacked(raw: IO[bytes], path: Path) -> contextlib.AbstractContextManager[IO[bytes]]:
    """The bytes inside a file, by its suffix."""
    stream: Any = raw
    if path.suffix == ".gz":
        stream = gzip.GzipFile(fileobj=raw)
    elif path.suffix == ".bz2":
        stream = bz2.BZ2File(raw)
    elif path.suffix == ".xz":
        stream = lzma.LZMAFile(raw)  # noqa: SIM115  (the caller's with closes it)
    elif path.suffix == ".zst":
        stream = _zstandard(raw)
    return cast(contextlib.AbstractContextManager[IO[bytes]], stream)


def _zstandard(raw: IO[bytes]) -> Any:
    with contextlib.suppress(ImportError):
        return importlib.import_module("compression.zstd").ZstdFile(raw)  # Python 3.14
    with contextlib.suppress(ImportError):
        return io.BufferedReader(importlib.import_module("zstandard").ZstdDecompressor().stream_reader(raw))
    raise DataError("Reading .zst needs Python 3.14 or the package zstandard. Install it with: pip install zstandard    or unpack the file.")

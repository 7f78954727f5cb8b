"""SQuAD 1.1 and 2.0 files, plain or compressed, or a Hub data set, as a list of QAExample.

The format: {"version": ..., "data": [{"title", "paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}],
"is_impossible"?}]}]}]} (Rajpurkar et al. 2016 and 2018).  `answer_start` counts Unicode code points.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pocketqa.errors import DataError, MissingExtra
from pocketqa.types import GoldAnswer, QAExample

LONGEST_ARTICLE = 200_000  # letters; the longest article of SQuAD has about half of them

_DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}


def load(source: str | Path, limit: int | None = None, seed: int = 0, split: str = "validation") -> list[QAExample]:
    """Read every question of a file (.json, optionally .gz, .bz2, .xz) or of a Hub data set ("squad", "owner/name", "squad_v2:train").

    split: of a Hub data set whose name says none.
    limit: keep a seeded sample of so many questions, spread over the whole file and left in its order.
    A question without answers is unanswerable, whether the file says `is_impossible` or not.
    A title that passages of more than LONGEST_ARTICLE letters share is no article's ("title unknown"): it is left out.
    Raises DataError naming file and record.
    """
    if limit is not None and limit < 1:
        raise DataError(f"A limit of questions must be at least 1, found {limit}.")
    if seed < 0:
        raise DataError(f"The seed of a sample must be at least 0, found {seed}.")
    path = Path(source)
    try:
        is_file, is_path, found = path.is_file(), _looks_like_path(str(source)), "a folder" if path.is_dir() else "nothing"
    except OSError as error:
        raise DataError(f"Expected a SQuAD-format file at {source}, but it cannot be read: {error.strerror}.") from None
    if is_file:
        examples = parse(_read_json(path), str(source))
    elif is_path:
        raise DataError(f"Expected a SQuAD-format file at {source}, found {found}.")
    else:
        examples = list(_from_hub(str(source), split))
    _refuse_duplicates(examples, str(source))
    examples = _without_shared_titles(examples)
    if limit is not None and limit < len(examples):
        keep = np.sort(np.random.default_rng(seed).permutation(len(examples))[:limit])
        examples = [examples[i] for i in keep]
    return examples


def source_hash(source: str | Path) -> str:
    """sha256 of a data file as it lies on disk, or of its name for a Hub data set, which has no file to hash."""
    path = Path(source)
    return hashlib.sha256(path.read_bytes() if path.is_file() else str(source).encode()).hexdigest()


def groups_of(examples: Sequence[QAExample]) -> list[str]:
    """What intervals resample: the article of each example, or its passage where nothing tells the article."""
    return [example.title or example.context for example in examples]


def parse(document: object, name: str = "document") -> list[QAExample]:
    """QAExamples of a SQuAD document already read from JSON; `name` stands in error messages."""
    examples = []
    for a, article in _items(_get(document, "data", name), f"{name}: data"):
        where_article = f"{name}: data[{a}]"
        title = str(article.get("title") or "")
        for p, paragraph in _items(_get(article, "paragraphs", where_article), f"{where_article}.paragraphs"):
            where = f"{where_article}.paragraphs[{p}]"
            context = _text(paragraph, "context", where)
            for q, record in _items(_get(paragraph, "qas", where), f"{where}.qas"):
                examples.append(_example(record, context, title, f"{where}.qas[{q}]"))
    if not examples:
        raise DataError(f"{name}: expected at least one question, found none.")
    return examples


def _example(record: dict[str, Any], context: str, title: str, where: str) -> QAExample:
    identity = record.get("id")
    if not isinstance(identity, str | int) or identity == "":
        raise DataError(f"{where}: expected a non-empty 'id', found {identity!r}.")
    where = f"{where} (id {identity})"
    impossible = record.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise DataError(f"{where}: expected true or false for 'is_impossible', found {impossible!r}.")
    answers = tuple(_answer(item, context, f"{where}.answers[{i}]") for i, item in _items(record.get("answers", []), f"{where}.answers"))
    if impossible and answers:
        raise DataError(
            f"{where}: 'is_impossible' is true, but there are {len(answers)} answers. Put them under 'plausible_answers' or correct the flag."
        )
    return QAExample(str(identity), _text(record, "question", where), context, answers, is_impossible=not answers, title=title)


def _answer(item: dict[str, Any], context: str, where: str) -> GoldAnswer:
    text, start = _text(item, "text", where), item.get("answer_start")
    if isinstance(start, bool) or not isinstance(start, int) or start < 0:
        raise DataError(f"{where}: expected a whole number of code points for 'answer_start', found {start!r}.")
    found = context[start : start + len(text)]
    if found != text:
        raise DataError(
            f"{where}: expected the answer {text!r} at code point {start} of the context, found {found!r}. Offsets count code points, not bytes."
        )
    return GoldAnswer(text, start)


def _read_json(path: Path) -> object:
    try:
        data = path.read_bytes()
        if (suffix := path.suffix.lower()) in _DECOMPRESSORS:
            data = _DECOMPRESSORS[suffix](data)
        return json.loads(data.decode("utf-8").removeprefix("\ufeff"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, found byte 0x{error.object[error.start]:02x} at position {error.start}.") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}: expected JSON, found an error at line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise DataError(f"{path}: expected SQuAD-format JSON, found lists or objects nested beyond any use.") from None
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read or decompressed: {error}.") from None


def _get(record: object, key: str, where: str) -> object:
    if not isinstance(record, dict):
        raise DataError(f"{where}: expected an object with the key {key!r}, found {type(record).__name__}.")
    if key not in record:
        raise DataError(f"{where}: expected the key {key!r}, found {', '.join(map(repr, list(record)[:8])) or 'an empty object'}.")
    return record[key]


def _items(value: object, where: str) -> Iterator[tuple[int, dict[str, Any]]]:
    if not isinstance(value, list):
        raise DataError(f"{where}: expected a list, found {type(value).__name__}.")
    for i, item in enumerate(value):
        if not isinstance(item, dict):
            raise DataError(f"{where}[{i}]: expected an object, found {type(item).__name__}.")
        yield i, item


def _text(record: dict[str, Any], key: str, where: str) -> str:
    value = _get(record, key, where)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: expected non-empty text for {key!r}, found {value!r}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: expected whole characters in {key!r}, found half of a surrogate pair at code point {error.start}.") from None
    return value


def _refuse_duplicates(examples: list[QAExample], name: str) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.id in seen:
            raise DataError(f"{name}: the id {example.id!r} occurs twice; predictions are kept by id, so each question needs its own.")
        seen.add(example.id)


def _without_shared_titles(examples: list[QAExample]) -> list[QAExample]:
    letters: Counter[str] = Counter()
    for title, context in {(example.title, example.context) for example in examples}:
        letters[title] += len(context)
    return [example if letters[example.title] <= LONGEST_ARTICLE else replace(example, title="") for example in examples]


def _looks_like_path(source: str) -> bool:
    path = Path(source)
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix.lower() in {".json", ".jsonl", *_DECOMPRESSORS} or path.exists()


def _from_hub(source: str, default: str) -> Iterator[QAExample]:
    name, _, split = source.partition(":")
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "train", f"Reading {source!r} from the Hugging Face Hub (no file of that name exists)") from None
    try:
        rows = datasets.load_dataset(name, split=split or default)
    except Exception as error:  # the library raises many kinds for "not found" and "not reachable"
        raise DataError(f"{source!r} is neither a file nor a Hub data set that can be reached ({type(error).__name__}: {error}).") from error
    for i, row in enumerate(rows):
        where = f"{source}: row {i}"
        try:
            golds = [{"text": t, "answer_start": s} for t, s in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{where}: expected SQuAD's columns (answers: text, answer_start), found {type(error).__name__}: {error}.") from None
        yield _example({**row, "answers": golds}, _text(row, "context", where), str(row.get("title") or ""), where)

"""Reading the examples of a task: tab-separated files as GLUE distributes them, CSV files, or a data set of the Hugging Face Hub.

Tab-separated files have no quoting: a quotation mark is a character like any other.  CSV files are quoted in the usual way.  There is a header,
but for GLUE's own files of CoLA.  Folders of tasks have their names in any of the usual ways (CoLA, cola; SST-2, sst2).
Both may be compressed (.gz, .bz2, .xz).  A label is the id of a class or its name; for STS-B a number.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from distillation.glue.classification import Task, TextExample, plain_name
from pocketqa.errors import DataError, MissingExtra

DECOMPRESSORS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
FORMATS = (".tsv", ".csv")
HEADERLESS = {"cola": ("source", "label", "mark", "sentence")}  # as GLUE distributes it
TORN = ("qqp",)  # whose distributed file has rows that lost columns
LARGEST = 5.0  # of the similarities of STS-B, which begin at 0 (Cer et al. 2017)
ENDINGS = tuple(f"{form}{packed}" for form in FORMATS for packed in ("", *DECOMPRESSORS))


def load_examples(source: str, task: Task, split: str, limit: int | None = None, seed: int = 0) -> list[TextExample]:
    """The examples of one split ("train", "dev", "test", ...) of a file, a folder of files or a Hub data set.

    limit: a seeded sample of so many, in the order of the file.  Raises DataError naming file and line.
    """
    if limit is not None and limit < 1:
        raise DataError(f"A limit of examples must be at least 1, found {limit}.")
    path = find_file(source, task, split)
    examples = list(_of_file(path, task)) if path else list(_of_hub(source, task, split))
    if not examples:
        raise DataError(f"{path or source}: expected at least one example of {task.title}, found none.")
    if limit is not None and limit < len(examples):
        keep = np.sort(np.random.default_rng(seed).permutation(len(examples))[:limit])
        examples = [examples[i] for i in keep]
    return examples


def find_file(source: str, task: Task, split: str) -> Path | None:
    """The file of a split: `source` itself, or SPLIT.tsv or the like in the folder or in its subfolder TASK; None for the name of a Hub data set.

    Raises DataError where there is a folder without it.
    """
    path = Path(source)
    if path.is_file():
        return path
    if not path.is_dir():
        if source.startswith((".", "/", "~")) or source.count("/") > 1 or path.suffix in (*FORMATS, *DECOMPRESSORS):
            raise DataError(f"Expected a file or folder of {task.title} at {source}, found nothing.")
        return None
    places = [folder for folder in (task_folder(path, task), path) if folder]
    for folder in places:
        for name in (split, f"{split}.full"):
            for ending in ENDINGS:
                if (folder / (name + ending)).is_file():
                    return folder / (name + ending)
    found = sorted(file.name for file in places[0].iterdir())[:12]
    raise DataError(f"Expected {split}.tsv (or .csv; .gz, .bz2, .xz) of {task.title} in {places[0]}, found {', '.join(found) or 'an empty folder'}.")


def task_folder(path: Path, task: Task) -> Path | None:
    """The folder of a task in a folder of tasks, its name written in any of the usual ways; None where there is none."""
    known = sorted(folder for folder in path.iterdir() if folder.is_dir()) if path.is_dir() else []
    return next((folder for folder in known if plain_name(folder.name) == task.name), None)


def source_name(source: str, task: Task, split: str) -> tuple[str, str]:
    """What stands in a run file: the name of the data, with the task, and sha256 of the file, or of the name of a Hub data set."""
    path = find_file(source, task, split)
    if path is None:
        return f"{source} {task.name} {split}", hashlib.sha256(f"{source} {task.name} {split}".encode()).hexdigest()
    return f"{task.name} {path.name}", hashlib.sha256(path.read_bytes()).hexdigest()


def _of_file(path: Path, task: Task) -> Iterator[TextExample]:
    suffix = path.suffixes[-2] if path.suffix in DECOMPRESSORS and len(path.suffixes) > 1 else path.suffix
    text = _read(path)
    if suffix == ".csv":
        csv.field_size_limit(sys.maxsize)
        rows: Iterable[Sequence[str]] = csv.reader(io.StringIO(text, newline=""))
    else:
        rows = (line.split("\t") for line in text.split("\n") if line.strip("\r"))
    header: list[str] | None = None
    torn = 0
    for number, row in enumerate(rows, 1):
        cells = [cell.rstrip("\r") for cell in row]
        if header is None:
            header, bare = _header(cells, task)
            columns = _columns(header, task, str(path))
            if not bare:
                continue
        if len(cells) != len(header) and task.name in TORN:
            torn += 1
        elif len(cells) != len(header):
            quoting = " (a tab-separated file has no quoting, so a text may not hold a tab)" if suffix != ".csv" else ""
            raise DataError(f"{path}, row {number}: expected {len(header)} columns, found {len(cells)}{quoting}.")
        else:
            first, second, label = (cells[i] if i is not None else None for i in columns)
            yield TextExample(first or "", second, _label(label or "", task, f"{path}, row {number}"))
    if torn:
        print(f"{path}: left out {torn} rows with other than {len(header or ())} columns, as others do of {task.title}", file=sys.stderr)


def _header(cells: Sequence[str], task: Task) -> tuple[list[str], bool]:
    """Names of columns, and whether the first row has none but is an example."""
    names, known = [name.strip() for name in cells], HEADERLESS.get(task.name, ())
    bare = len(names) == len(known) and not set(names) & {*task.first, *task.label}
    return (list(known), True) if bare else (names, False)


def _of_hub(source: str, task: Task, split: str) -> Iterator[TextExample]:
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", "train", f"Reading {source!r} from the Hugging Face Hub (no file of that name exists)") from None
    known = {"dev": "validation", "dev_matched": "validation_matched", "dev_mismatched": "validation_mismatched"}
    configuration = task.hub[1:] if source.rpartition("/")[2] == task.hub[0].rpartition("/")[2] else ()
    try:
        rows = datasets.load_dataset(source, *configuration, split=known.get(split, split))
    except Exception as error:  # the library raises many kinds for "not found" and "not reachable"
        raise DataError(f"{source!r} is neither a file nor a Hub data set that can be reached ({type(error).__name__}: {error}).") from error
    names = list(rows.column_names)
    first, second, label = (names[i] if i is not None else None for i in _columns(names, task, source))
    for number, row in enumerate(rows):
        yield TextExample(str(row[first]), None if second is None else str(row[second]), _label(str(row[label]), task, f"{source}: row {number}"))


def _columns(header: Sequence[str], task: Task, where: str) -> tuple[int, int | None, int]:
    """The columns of both texts and of the label, by the first of their names that is there; the same column is never taken twice."""
    taken: list[int] = []
    missing = []
    for names in (task.first, task.second, task.label):
        found = next((header.index(name) for name in names if name in header and header.index(name) not in taken), None)
        if found is not None:
            taken.append(found)
        elif names:
            missing.append(" or ".join(names))
    if missing:
        raise DataError(f"{where}: expected the columns of {task.title}, found {', '.join(header) or 'none'}; missing: {'; '.join(missing)}.")
    return taken[0], taken[1] if task.second else None, taken[-1]


def _label(text: str, task: Task, where: str) -> float:
    if task.real:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= LARGEST:
            raise DataError(f"{where}: expected a number from 0 to {LARGEST:g} as label of {task.title}, found {text!r}.{_hint(value)}")
        return value
    if text in task.classes:
        return float(task.classes.index(text))
    if text.isdigit() and int(text) < task.outputs:
        return float(text)
    names = ", ".join(f"{i} ({name})" if name != str(i) else name for i, name in enumerate(task.classes))
    raise DataError(f"{where}: expected a label of {task.title} ({names}), found {text!r}.{_hint(text)}")


def _hint(label: str | float) -> str:
    return " A hidden label: this split cannot be scored or trained on." if label in ("-1", -1.0) else ""


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
        return DECOMPRESSORS.get(path.suffix, bytes)(data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8, found byte 0x{error.object[error.start]:02x} at position {error.start}.") from None
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read or decompressed: {error}.") from None

"""Run files: what was measured, on which bytes, by which command, on what machine.  Every published number comes from one.

A run file is a small JSON document (below 100 kB) that is committed.  It names models and data by sha256 and file name only; commands are
stored without the paths and credentials of the machine.  The statistics and the shape of `results` come from the two modules imported here.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from pocketqa.environment import describe_environment
from pocketqa.errors import DataError, OptionsError
from pocketqa.load_results import load_point, load_results
from pocketqa.replica_results import replica_results
from pocketqa.results import (
    QUESTION_BY_QUESTION,
    REQUIRED,
    Comparison,
    PerQuestion,
    check_device,
    compare_results,
    compression_results,
    evaluation_results,
    export_results,
    ids_hash,
    per_question,
    timing_results,
    training_results,
    verification_results,
)
from pocketqa.service_results import judge, ratio_row, service_results, verdict
from pocketqa.speed_results import ablation_results, training_speed_results
from pocketqa.statistics import (
    Interval,
    TimingSummary,
    mean_difference,
    mean_interval,
    mean_ratio,
    median_ratio,
    passes_gate,
    quantile_interval,
    quantile_ratio,
    summarise_times,
)
from pocketqa.task_scores import TaskComparison, classification_results, compare_tasks
from pocketqa.types import JSON, RuntimeInfo
from pocketqa.writes import write_atomic

__all__ = [
    "KINDS",
    "SPLITS",
    "Comparison",
    "DataFile",
    "Interval",
    "PerQuestion",
    "RunFile",
    "Subject",
    "TaskComparison",
    "TimingSummary",
    "ablation_results",
    "check_target",
    "classification_results",
    "command_line",
    "compare",
    "compare_results",
    "compare_tasks",
    "compression_results",
    "evaluation_results",
    "export_results",
    "ids_hash",
    "judge",
    "load_point",
    "load_results",
    "mean_difference",
    "mean_interval",
    "mean_ratio",
    "median_ratio",
    "new_run",
    "passes_gate",
    "per_question",
    "quantile_interval",
    "quantile_ratio",
    "ratio_row",
    "read",
    "read_all",
    "replica_results",
    "service_results",
    "summarise_times",
    "timing_results",
    "training_results",
    "training_speed_results",
    "verdict",
    "verification_results",
    "write",
]

SCHEMA = 1
MADE = ("training", "ablation")  # kinds whose models came out of the run, and are others when it is repeated
MAX_BYTES = 100_000
MOST_BYTES = {"compression": 400_000}  # each point names the scheme of every weight, and a MobileBERT has some 360 of them
KINDS = tuple(REQUIRED)
SPLITS = ("squad-dev", "development", "training", "out-of-domain", "samples", "other")

PLACES = "Name a folder, or a file that ends in .json."

_PATH = re.compile(r"(?<![\w.:/~+-])(?:~|/[\w.@+-]+|[A-Za-z]:\\[\w.-]+)(?:[/\\][\w.@+-]+)+")
_CREDENTIALS = re.compile(r"(?<=://)[^/\s]+@")


@dataclass(frozen=True, slots=True)
class Subject:
    """What was measured: a model by name, role ("teacher", "student", "control", ...), sha256 of its weights, and how it was run."""

    name: str
    role: str
    sha256: str
    engine: str = ""
    version: str = ""
    precision: str = ""
    threads: int | None = None

    @classmethod
    def of(cls, name: str, role: str, sha256: str, info: RuntimeInfo | None = None) -> Subject:
        """A subject with the engine, version, precision and threads of a runtime."""
        return cls(name, role, sha256) if info is None else cls(name, role, sha256, info.engine, info.version, info.precision, info.threads)


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file by name, sha256 of its bytes, questions used and the split it belongs to (one of SPLITS)."""

    name: str
    sha256: str
    count: int
    split: str


@dataclass(frozen=True, slots=True)
class RunFile:
    """One measurement.  `results` has the shape made by the builder for its kind (evaluation_results, training_results, ...)."""

    kind: str
    name: str
    subjects: tuple[Subject, ...]
    data: tuple[DataFile, ...]
    command: str
    created: str  # UTC, ISO 8601: "2026-01-31T12:00:00Z"
    environment: JSON
    results: JSON
    not_checked: tuple[str, ...] = ()  # what this machine could not check, in words
    schema: int = field(default=SCHEMA)

    def __post_init__(self) -> None:
        problems = []
        if self.schema != SCHEMA:
            problems.append(f"schema must be {SCHEMA}, found {self.schema!r}; this version of pocketqa cannot read it")
        if self.kind not in KINDS:
            problems.append(f"kind must be one of {', '.join(KINDS)}, found {self.kind!r}")
        elif missing := [key for key in REQUIRED[self.kind] if key not in self.results]:
            problems.append(f"results of kind {self.kind} need {', '.join(missing)}")
        if self.kind in (*QUESTION_BY_QUESTION, "classification") and len(self.subjects) != 1:
            problems.append(f"a run of kind {self.kind} is of one model, found {len(self.subjects)} subjects")
        if self.kind == "latency" and "device" in self.results:
            problems += check_device(self.results["device"])
        if not self.name.strip():
            problems.append("name must not be empty")
        problems += [f"the split of {d.name} must be one of {', '.join(SPLITS)}, found {d.split!r}" for d in self.data if d.split not in SPLITS]
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", self.created):
            problems.append(f"created must be a UTC time like 2026-01-31T12:00:00Z, found {self.created!r}")
        if problems:
            raise OptionsError("Run file: " + "; ".join(problems))

    @property
    def file_name(self) -> str:
        """The name under which it is committed: kind, name and date."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        return f"{self.kind}-{slug}-{self.created[:10]}.json"


def new_run(
    kind: str,
    name: str,
    subjects: Sequence[Subject],
    data: Sequence[DataFile],
    command: Sequence[str],
    results: JSON,
    not_checked: Sequence[str] = (),
) -> RunFile:
    """A run file of now and of this machine; `command` is the command line as words, for instance ["pocketqa", "evaluate", *argv]."""
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return RunFile(kind, name, tuple(subjects), tuple(data), command_line(command), created, describe_environment(), results, tuple(not_checked))


def command_line(words: Iterable[str]) -> str:
    """The command as it would be typed, with what is private to the machine taken out.

    Paths inside the working directory become relative to it; every other path that is absolute, begins at home or climbs with ".." is shortened
    to its file name, in words of several flags as well; user and password in an address are dropped.
    """
    return shlex.join(_shorten(word) for word in words)


def write(run: RunFile, path: str | Path) -> Path:
    """Write a run file, pretty and sorted, all at once; `path` is a file name ending in .json, or a folder in which it gets its own name.

    In a folder, the run of the same day of the same command, on the same data and, but for trainings, on the same models, is replaced; another's is
    not: the name then gets a number.
    Raises DataError for numbers that are not finite, more than 100 kB, paths of this machine anywhere in it, or a place that cannot be written to.
    """
    target = Path(path)
    if target.suffix != ".json":
        target = _own_place(target / run.file_name, run)
    document = asdict(run)
    _check_values(document, target.name)
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    size = len(text.encode())
    most = MOST_BYTES.get(run.kind, MAX_BYTES)
    if size > most:
        raise DataError(f"{target.name}: a run file may have {most} bytes, this one has {size}. Store summaries in place of single values.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text)
    except OSError as error:
        raise DataError(f"Expected to write a run file at {target}, but it cannot be written: {error.strerror}. {PLACES}") from None
    return target


def check_target(path: str | Path | None) -> None:
    """Asked before the work begins.  Raises DataError where `write` would find a file in place of its folder, a folder in place of its file, or a
    place where this user may not write.  None: nothing will be written.
    """
    if path is None:
        return
    target = Path(path)
    folder = target.parent if target.suffix == ".json" else target
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise DataError(f"Expected to write a run file to the folder {folder}, found a file. {PLACES}")
    if target.suffix == ".json" and os.path.isdir(target):
        raise DataError(f"Expected to write a run file at {target}, found a folder. {PLACES}")
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise DataError(f"Expected to write a run file to the folder {folder}, but {there} cannot be written to. Name another place.")


def _own_place(path: Path, run: RunFile) -> Path:
    """The path, or the first numbered one that no other run has."""
    place, number = path, 1
    while place.exists() and _measured(place) != _what(run):
        number += 1
        place = path.with_stem(f"{path.stem}-{number}")
    return place


def _measured(path: Path) -> tuple[object, ...] | None:
    try:
        return _what(read(path))
    except DataError:  # not a run file of ours: it is left as it is
        return None


def _what(run: RunFile) -> tuple[object, ...]:
    """What tells runs of one name apart: commands with other paths may look alike, since those are shortened."""
    models = () if run.kind in MADE else tuple(subject.sha256 for subject in run.subjects)
    return (run.command, models, tuple(item.sha256 for item in run.data))


def read(path: str | Path) -> RunFile:
    """Read one run file.  Raises DataError naming file and field."""
    source = Path(path)
    try:
        document = json.loads(source.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
        raise DataError(f"{path}: expected a run file in JSON, found an error: {error}.") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected a run file, a JSON object, found {type(document).__name__}.")
    names = [item.name for item in fields(RunFile)]
    if missing := [name for name in names if name not in document]:
        raise DataError(f"{path}: expected a run file with {', '.join(names)}, found none of {', '.join(missing)}.")
    try:
        document["subjects"] = tuple(Subject(**subject) for subject in document["subjects"])
        document["data"] = tuple(DataFile(**item) for item in document["data"])
        document["not_checked"] = tuple(document["not_checked"])
        return RunFile(**document)
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}: not a run file of schema {SCHEMA}: {error}.") from None
    except OptionsError as error:
        raise DataError(f"{path}: {error}") from None


def read_all(folder: str | Path) -> dict[str, RunFile]:
    """All run files (*.json) in a folder and its subfolders, by their path in it, oldest first.  A folder that is not there holds none."""
    root = Path(folder)
    found = {path.relative_to(root).as_posix(): read(path) for path in root.rglob("*.json") if not path.name.startswith(".")}
    return dict(sorted(found.items(), key=lambda item: (item[1].created, item[0])))


def compare(first: RunFile, second: RunFile) -> Comparison:
    """Paired comparison of two evaluations or verifications, first minus second.  Raises DataError when their questions or data differ."""
    for run in (first, second):
        if run.kind not in QUESTION_BY_QUESTION:
            raise DataError(f"Only {' and '.join(QUESTION_BY_QUESTION)} can be compared question by question; {run.name!r} is of kind {run.kind!r}.")
    if [item.sha256 for item in first.data] != [item.sha256 for item in second.data]:
        raise DataError(f"{first.name!r} and {second.name!r} were measured on different data files, so they cannot be compared in pairs.")
    return compare_results(first.results, second.results, (first.name, second.name))


def _shorten(word: str) -> str:
    word = _CREDENTIALS.sub("", word)
    if "://" in word:
        return word
    if word.startswith("-") and len(flags := _split(word)) > 1 and ("=" not in flags[0] or any(flag.startswith("-") for flag in flags[1:])):
        return shlex.join(map(_shorten, flags))
    option, equals, value = word.partition("=")
    if equals and option.startswith("-"):
        return f"{option}={_shorten(value)}"
    if PureWindowsPath(word).drive and "\\" in word:
        return PureWindowsPath(word).name
    path, here = PurePosixPath(os.path.normpath(word)), PurePosixPath(Path.cwd().as_posix())
    if here != here.parent and here in path.parents:  # at the root of a file system, "relative" would hide nothing
        return path.relative_to(here).as_posix()
    if path.is_absolute() or path.parts[:1] in {("..",), ("~",)} or word.startswith("~"):
        return path.name or "."
    return word


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:  # an odd number of quotes
        return [text]


def _check_values(value: Any, where: str) -> None:
    """Refuse what must not stand in a committed file, naming where it stands."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_values(str(key), f"{where}: a key")
            _check_values(item, f"{where}: {key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check_values(item, f"{where}[{i}]")
    elif isinstance(value, str):
        for match in _PATH.findall(value):
            if _on_this_machine(match):
                raise DataError(f"{where}: a path of this machine ({match!r}) does not belong in a run file. Store the file name alone.")
    elif isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: expected a finite number, found {value}.")


def _on_this_machine(path: str) -> bool:
    # "/v1/answer" is an address of the service and may stay; "/home/..." or a first folder that exists here may not.
    first = path.replace("\\", "/").split("/")[1]
    return not path.startswith("/") or first in {"home", "root", "Users", "tmp", "var", "private"} or Path("/", first).exists()


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON knows")

"""What every ablation is made of: rows of its table, the works that fill them, and what a work depends on."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from distillation.training.recipes import recipe_file
from pocketqa.errors import OptionsError, PocketQAError, TrainingError
from pocketqa.folders import ModelFolder, sha256_file
from pocketqa.writes import write_atomic

# What a plan says to the verbs it runs, so that no other flags may.
OWNED = frozenset(("--corpus", "--data", "--name", "--out", "--role", "--run-file", "--seed", "--seeds", "--task", "--tokens"))
OWNED_OF_ALL = OWNED | {"--teacher"}  # of flags for all rows at once: rows without a teacher would get one


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table; flags as they would be typed."""

    name: str
    words: str
    distill: tuple[str, ...] = ()
    finetune: tuple[str, ...] = ()
    against: str | None = None  # None for the reference
    teacher: bool = False  # fine-tuned with the reader
    paper: float | None = None  # points of the paper's own measure
    paper_of: str | None = None  # the row whose points these are: what the paper left out there can be read in two ways
    start: str | None = None  # not distilled: "base" and "student" (the teacher's layers) are fine-tuned, "reader" is taken as it is
    stages: tuple[tuple[str, ...], ...] = ()  # flags of several fine-tunings, one after the other, in place of `finetune`

    @property
    def flags(self) -> tuple[str, ...]:
        """All that it passes on."""
        return (*self.distill, *self.finetune, *(word for stage in self.stages for word in stage))

    @property
    def needs(self) -> set[str]:
        """The models, by the names of their flags, without which the row is left out."""
        return ({self.start} if self.start in ("base", "reader") else set()) | ({"reader"} if self.teacher else set())


@dataclass(frozen=True, slots=True)
class Work:
    """One thing to run: a verb with its words, what it leaves, and a hash of everything it depends on but places."""

    verb: str  # "student", "distill", "finetune", "evaluate" or, on the final data, "final"
    row: Row
    seed: int
    words: tuple[str, ...]
    leaves: Path
    identity: str
    stage: int = 0  # which fine-tuning of its row, from 0

    @property
    def note(self) -> Path:
        """Beside what it leaves: the identity, written before it starts."""
        return self._beside(".identity.json")

    @property
    def log(self) -> Path:
        """Beside what it leaves: what it says where several run at once."""
        return self._beside(".log")

    def _beside(self, ending: str) -> Path:
        return self.leaves.with_name(self.leaves.name.removesuffix(".json") + ending)

    @property
    def typed(self) -> str:
        """The verb as it is typed."""
        return self.verb.replace("final", "evaluate")

    @property
    def done(self) -> bool:
        """Whether an earlier call has finished it."""
        return self.leaves.is_file() if self.leaves.suffix == ".json" else ModelFolder(self.leaves).manifest.is_file()

    def check(self) -> None:
        """Raise TrainingError where what it leaves was begun with other settings or data, or is not of an ablation."""
        known = json.loads(self.note.read_text(encoding="utf-8"))["identity"] if self.note.is_file() else None
        if known not in (None, self.identity):
            raise TrainingError(
                f"{self.leaves} was begun with other settings or data than this call has. Give another --out, or delete it and {self.note.name}."
            )
        if self.done and known is None:
            raise TrainingError(f"{self.leaves} was not left by an ablation ({self.note.name} is missing). Give another --out or delete it.")

    def begin(self, **more: object) -> None:
        """Note with what it is begun."""
        self.note.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.note, json.dumps({"identity": self.identity, **more}) + "\n")


def add_jobs_flag(parser: argparse.ArgumentParser) -> None:
    """--jobs, of every ablation."""
    words = "works at once, each in a process with its share of the cores and a log beside what it leaves; memory for each is needed (default: 1)"
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help=words)


def problems_of_run(given: argparse.Namespace) -> list[str]:
    """What every ablation refuses of its own flags and of its launcher, in words."""
    problems = []
    if given.seeds and len(set(given.seeds)) != len(given.seeds):
        problems.append(f"--seeds must differ, found {' '.join(map(str, given.seeds))}")
    if given.jobs < 1:
        problems.append(f"--jobs must be at least 1, found {given.jobs}")
    if given.out.exists() and not given.out.is_dir():
        problems.append(f"--out must be a folder, {given.out} is a file")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problems.append("an ablation takes no launcher; --jobs runs several of its works at once")
    return problems


def report_command(out: Path, runs: str) -> str:
    """What to do with the run files of an ablation, which lie in a folder of `out`: pages of them alone."""
    places = {"--runs": runs, "--out": "RESULTS.md", "--html": "report"}
    flags = [word for flag, name in places.items() for word in (flag, str(out / name))]
    return f"next: {shlex.join(['pocketqa', 'report', '--no-readme', *flags])}    draws the table, as {out / 'report' / 'index.html'}"


def check_owned(flags: Sequence[str], owned: Set[str] = OWNED) -> None:
    """Raise OptionsError for flags that every work is given by its plan, and which would count in their place."""
    if found := sorted({word.partition("=")[0] for word in flags} & owned):
        raise OptionsError(f"The ablation cannot be run: it sets {', '.join(found)} itself. Leave this out of the flags that are passed on.")


def check_words(works: Sequence[Work], parsers: Mapping[str, Callable[[list[str]], object]]) -> None:
    """Parse the words of every work that is not finished as its verb will, before the first one is run.  Verbs without a parser are left alone.

    Raises OptionsError with all that is refused, and the rows.
    """
    refused: dict[tuple[str, str], list[str]] = {}
    for work in works:
        if work.verb in parsers and not work.done and (reason := _refusal(parsers[work.verb], work.words)):
            rows = refused.setdefault((work.typed, reason), [])
            rows += [work.row.name] if work.row.name not in rows else []
    if refused:
        said = "; ".join(f"{verb} of {', '.join(rows)}: {reason}" for (verb, reason), rows in refused.items())
        helps = " and ".join(dict.fromkeys(f"`pocketqa {verb} --help`" for verb, _ in refused))
        raise OptionsError(f"The ablation cannot be run: {said}. {helps} says what is expected; correct the flags of this call or of the preset.")


def _refusal(parse: Callable[[list[str]], object], words: Sequence[str]) -> str | None:
    """Why words are refused, in argparse's sentence or the verb's own; None where they are not."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            parse(list(words))
    except PocketQAError as error:
        return str(error).rstrip(".")
    except SystemExit:
        _, wrong, reason = said.getvalue().rpartition("error: ")
        return reason.strip() if wrong else "expected flags of a run, found --help"
    return None


def content_of(source: str) -> object:
    """sha256 of a file; names and sha256 of a model's weights, config.json and tokenizer.json, or of all files of another folder; else a Hub name."""
    path, model = Path(source), ModelFolder(Path(source))
    if path.is_file():
        return sha256_file(path)
    if model.weights.is_file():
        return [(file.name, sha256_file(file)) for file in (model.weights, model.config, model.tokenizer) if file.is_file()]
    if path.is_dir():
        return sorted((file.relative_to(path).as_posix(), sha256_file(file)) for file in path.rglob("*") if file.is_file())
    return source


def content_of_model(source: str) -> object:
    """The same of a model; of one on the Hub its name and the commit that is in the cache, which reading its configuration has brought up to date."""
    if Path(source).exists():
        return content_of(source)
    from distillation.training.checkpoints import model_key  # here, since torch takes seconds to load

    return model_key(source)


def contents_of(flags: Sequence[str]) -> list[object]:
    """The content of every file and model that flags name: a recipe, more questions, another teacher.  Other folders, such as caches, do not count.

    Raises TrainingError for a recipe that is not there.
    """
    found = []
    for before, word in zip(("", *flags), flags, strict=False):
        option, equals, value = word.partition("=")
        if not (equals and option.startswith("--")):
            option, value = before, word
        place = file_of(value)
        if option == "--recipe" and not Path(place).exists():
            place = recipe_file(value)
        if place and (Path(place).is_file() or ModelFolder(Path(place)).weights.is_file()):
            found.append(content_of(place))
    return found


def file_of(text: str) -> str:
    """The place of FILE[@SHARE]."""
    return text.rpartition("@")[0] if "@" in text and not Path(text).exists() else text


def identity_of(*parts: object) -> str:
    """A hash of everything that a work depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

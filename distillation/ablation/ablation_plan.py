"""What an ablation runs: the rows of a preset, and for each seed a distillation, a fine-tuning and an evaluation of each row.

Rows whose distillations have the same flags share one; controls start from a model that was not distilled.  A row may be fine-tuned in several
stages, each from what the one before left; together they take as many steps as one.  Seeds are the outer loop, so that every row has one seed
before any has two.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from distillation.ablation.ablation_work import Row, Work, content_of, content_of_model, contents_of, file_of, identity_of
from distillation.questions.finetune_recipe import ReaderRecipe
from distillation.training import recipes
from distillation.training.recipes import PREFIX, PRESETS
from pocketqa.errors import OptionsError
from pocketqa.types import JSON

if TYPE_CHECKING:
    from distillation.models.distill_start import Start  # torch takes seconds to load

STARTS = ("base", "student", "reader")
# What decides how many steps a pass over the questions takes: windows and batches.
COUNTED = ("batch_tokens", "accumulation", "max_tokens", "doc_stride", "max_question_tokens", "negative_windows", "wrong_paragraph")

R = TypeVar("R", bound=recipes.Recipe)


@dataclass(frozen=True, slots=True)
class Common:
    """What all rows have in common: sources, flags of both stages, and where it all lies."""

    out: Path
    teacher: str
    corpus: tuple[str, ...]
    data: tuple[str, ...]
    dev: str
    reader: str | None
    tokens: int
    distill_flags: tuple[str, ...] = ()
    finetune_flags: tuple[str, ...] = ()
    dev_limit: int | None = None
    base: str | None = None
    final: str | None = None  # measured once, when nothing is chosen any more
    precision: str = "fp32"  # of evaluations


@dataclass(frozen=True, slots=True)
class LayerMaps:
    """Which layers of a teacher a student of some depth may start from, and those it starts from where no flag says otherwise."""

    teacher: int
    student: int
    default: tuple[int, ...]

    def filled(self, flag: str) -> list[str]:
        """A flag as words: a placeholder of a preset becomes the numbers of layers."""
        from distillation.models.students import choose_layers  # here, since torch takes seconds to load

        deep, few = self.teacher, self.student
        maps = {
            "{first_layers}": range(few),
            "{last_layers}": range(deep - few, deep),
            "{even_layers}": range(0, few * (deep // few), deep // few),
            "{spread_layers}": choose_layers(deep, few),
        }
        return [str(layer) for layer in maps[flag]] if flag in maps else [flag]

    def flags(self, row: Row) -> tuple[str, ...]:
        """The flags of a row's distillation."""
        return tuple(word for flag in row.distill for word in self.filled(flag))

    def changes_nothing(self, row: Row) -> bool:
        """Whether a row asks for the layers that are taken anyway."""
        return self.flags(row) == ("--teacher-layers", *map(str, self.default))


@dataclass(frozen=True, slots=True)
class Made:
    """A model that a work starts from: its place, and a hash of all that it came from."""

    path: str
    identity: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Rows, their works in the order in which they are run, and rows that were left out."""

    rows: tuple[Row, ...]
    works: tuple[Work, ...]
    left_out: tuple[str, ...] = ()  # names, with the reason

    def evaluation(self, row: str, seed: int, verb: str = "evaluate") -> Work:
        """The evaluation of a row; of a model that is the same for every seed, the only one there is."""
        mine = [work for work in self.works if work.verb == verb and work.row.name == row]
        return next((work for work in mine if work.seed == seed), mine[0])


def read_preset(name: str) -> tuple[Row, ...]:
    """The rows of a preset by its name, or of a TOML file; the reference comes first.  Raises OptionsError with all problems at once."""
    path = Path(name) if name.endswith(".toml") else PRESETS / f"{PREFIX}{name}.toml"
    known = ", ".join(sorted(file.stem.removeprefix(PREFIX) for file in PRESETS.glob(f"{PREFIX}*.toml")))
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise OptionsError(f"Expected a preset of an ablation ({known}) or a TOML file, found {name!r}: {error}") from None
    entries, reference = document.get("rows", []), document.get("reference")
    if problems := _problems(document, entries, reference):
        raise OptionsError(f"{path.name}: {'; '.join(problems)}.")
    rows = [_row(entry, None if entry["name"] == reference else reference) for entry in entries]
    papers = {row.name: row.paper for row in rows}
    rows = [dataclasses.replace(row, paper=papers[row.paper_of]) if row.paper_of else row for row in rows]
    return tuple(sorted(rows, key=lambda row: row.against is not None))


def choose_rows(
    rows: Sequence[Row], wanted: Sequence[str] | None, reader: str | None, base: str | None = None
) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows to run, with those they are compared with, and those left out for want of a reader or a base, with the reason.

    Raises OptionsError for unknown names, and where the reference itself would be left out.
    """
    by_name = {row.name: row for row in rows}
    if unknown := [name for name in wanted or () if name not in by_name]:
        raise OptionsError(f"Expected rows out of {', '.join(by_name)}, found {', '.join(unknown)}.")
    names = set(wanted or by_name)
    while more := {by_name[name].against for name in names} - names - {None}:
        names |= {name for name in more if name is not None}
    missing = {flag for flag, model in (("reader", reader), ("base", base)) if model is None}
    lacking = {row.name: sorted(missing & row.needs) for row in rows if row.name in names and missing & row.needs}
    kept, without = _with_reference([row for row in rows if row.name in names and row.name not in lacking])
    if lost := [row.name for row in rows if row.against is None and row.name in lacking]:
        raise OptionsError(f"The row {lost[0]}, with which the others are compared, needs --{' and --'.join(lacking[lost[0]])}.")
    left_out = tuple(f"{name} (needs --{' and --'.join(flags)})" for name, flags in lacking.items())
    return kept, (*left_out, *without)


def _with_reference(rows: Sequence[Row]) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """The rows whose references are among them, and theirs; the others by name, with the reason."""
    without: list[str] = []
    while lost := [row for row in rows if row.against and row.against not in {other.name for other in rows}]:
        without += [f"{row.name} (compared with {row.against}, which is left out)" for row in lost]
        rows = [row for row in rows if row not in lost]
    return tuple(rows), tuple(without)


def make_plan(rows: Sequence[Row], seeds: Sequence[int], common: Common, maps: LayerMaps, left_out: Sequence[str] = ()) -> Plan:
    """Every work of every row and seed.  Rows that ask for the layers which are taken anyway are left out."""
    same = [row.name for row in rows if maps.changes_nothing(row)]
    rows, without = _with_reference([row for row in rows if row.name not in same])
    sources = _sources(common)
    works: list[Work] = []
    for seed in seeds:
        shared: dict[tuple[str, ...], Made] = {}
        for row in rows:
            flags = maps.flags(row)
            key = (row.start or "", *flags)
            start = _given(row, common, sources) or shared.get(key)
            if start is None:
                first = _student(row, seed, common, maps, sources) if row.start else _distillation(row, seed, flags, common, sources)
                works.append(first)
                start = shared[key] = Made(str(first.leaves), first.identity)
            if row.start != "reader":
                tuned = _finetunings(row, seed, start, common, sources)
                works += tuned
                start = Made(str(tuned[-1].leaves), tuned[-1].identity)
            if row.start != "reader" or seed == seeds[0]:  # a reader is one model, whatever the seed
                works.append(_evaluation(row, seed, start, common, sources))
    if common.final:  # after everything else, so that nothing is chosen by it
        works += [_final(work, common, sources) for work in works if work.verb == "evaluate"]
    return Plan(rows, tuple(works), (*left_out, *(f"{name} (the layers that are taken anyway)" for name in same), *without))


def finetune_flags(row: Row, common: Common) -> tuple[tuple[str, ...], ...]:
    """The flags of each fine-tuning of a row, those of all rows first.

    Stages share the epochs of one fine-tuning evenly and have its windows and batches, whatever their recipes say, so that all rows take as many
    steps, but for rounding.  What a stage's own flags say counts.  Raises OptionsError where a stage would not get whole passes.
    """
    if not row.stages:
        return ((*common.finetune_flags, *row.finetune),)
    one = recipe_of(ReaderRecipe, common.finetune_flags)
    counts = {name: getattr(one, name) for name in COUNTED} | {"epochs": one.epochs / len(row.stages)}
    words = [word for name, value in counts.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    stages = tuple((*common.finetune_flags, *words, *stage) for stage in row.stages)
    for epochs in (recipe_of(ReaderRecipe, flags).epochs for flags in stages):
        if epochs % 1:
            raise OptionsError(
                f"The row {row.name} trains a stage for {epochs:g} epochs, and a part of a pass is the same questions in every stage. Expected "
                f"whole passes: a multiple of {len(stages)} in --finetune-flags '--epochs N'; --data FILE@SHARE takes a share of the questions."
            )
    return stages


def recipe_of(kind: type[R], words: Sequence[str]) -> R:
    """The recipe that a command line resolves to; its other words are left alone.  Raises TrainingError as the command would."""
    return recipes.from_arguments(_known(lambda parser: recipes.add_flags(parser, kind), words), kind)


def student_start(distill_flags: Sequence[str]) -> Start:
    """What the flags of all distillations say of the student's start."""
    from distillation.models import distill_start

    return distill_start.start_of(_known(distill_start.add_flags, distill_flags))


def _known(add_flags: Callable[[argparse.ArgumentParser], None], words: Sequence[str]) -> argparse.Namespace:
    """Some of a verb's flags, out of words with others.  Raises OptionsError for a value that is none."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_flags(parser)
    try:
        return parser.parse_known_args(list(words))[0]
    except argparse.ArgumentError as error:
        helps = "`pocketqa distill --help` and `pocketqa finetune --help` say what is expected"
        raise OptionsError(f"The ablation cannot be run: {error} in {shlex.join(words)!r}. {helps}; correct these flags.") from None


def _given(row: Row, common: Common, sources: JSON) -> Made | None:
    """The model that a control starts from."""
    path = {"base": common.base, "reader": common.reader}.get(row.start or "")
    return Made(path, identity_of(row.start, sources[row.start])) if path and row.start else None


def _student(row: Row, seed: int, common: Common, maps: LayerMaps, sources: JSON) -> Work:
    """The student that a distillation would start from.  Raises OptionsError where that is not made of the teacher's layers."""
    start = student_start(common.distill_flags)
    if start.student or start.random or start.configured:
        raise OptionsError(
            f"The row {row.name} starts from the teacher's layers, and --distill-flags ask for another student. Leave the row out with --rows."
        )
    leaves = common.out / "student" / f"{row.name}-seed-{seed}"
    dropped = ("--drop-token-types",) if start.drop_token_types else ()
    settings = ("--teacher-layers", *map(str, maps.default), *dropped, "--seed", str(seed))
    words = (common.teacher, "--out", str(leaves), *settings)
    return Work("student", row, seed, words, leaves, identity_of("student", settings, sources["teacher"]))


def _distillation(row: Row, seed: int, flags: tuple[str, ...], common: Common, sources: JSON) -> Work:
    leaves = common.out / "distill" / f"{row.name}-seed-{seed}"
    settings = ("--tokens", str(common.tokens), "--seed", str(seed), *common.distill_flags, *flags)
    words = (common.teacher, "--corpus", *common.corpus, "--out", str(leaves), *settings)
    identity = identity_of("distill", settings, contents_of(settings), sources["teacher"], sources["corpus"])
    return Work("distill", row, seed, words, leaves, identity)


def _finetunings(row: Row, seed: int, start: Made, common: Common, sources: JSON) -> list[Work]:
    """The fine-tunings of a row in their order; the last one leaves what is evaluated."""
    works: list[Work] = []
    stages = finetune_flags(row, common)
    for number, flags in enumerate(stages):
        part = f"-stage-{number + 1}" if number + 1 < len(stages) else ""
        leaves = common.out / "finetune" / f"{row.name}{part}-seed-{seed}"
        settings = ("--seed", str(seed), *flags)
        reader = ("--teacher", str(common.reader)) if row.teacher else ("--no-teacher",)  # flags of all rows may speak of one
        words = (start.path, "--data", *common.data, "--out", str(leaves), *reader, *settings)
        read = (start.identity, sources["data"], sources["reader"] if row.teacher else None)
        start = Made(str(leaves), identity_of("finetune", settings, contents_of(settings), *read))
        works.append(Work("finetune", row, seed, words, leaves, start.identity, number))
    return works


def _evaluation(row: Row, seed: int, model: Made, common: Common, sources: JSON) -> Work:
    leaves = common.out / "evaluate" / f"{row.name}-seed-{seed}.json"
    settings = ("--split", "development", *_engine(common), *(("--limit", str(common.dev_limit)) if common.dev_limit else ()))
    words = (model.path, "--data", common.dev, "--run-file", str(leaves), "--role", row.name, *settings)
    return Work("evaluate", row, seed, words, leaves, identity_of("evaluate", settings, model.identity, sources["dev"]))


def _final(evaluation: Work, common: Common, sources: JSON) -> Work:
    """The same model on the final data, whole."""
    row, seed = evaluation.row, evaluation.seed
    leaves = common.out / "final" / evaluation.leaves.name
    settings = ("--split", "squad-dev", *_engine(common))
    words = (evaluation.words[0], "--data", str(common.final), "--run-file", str(leaves), "--role", row.name, *settings)
    return Work("final", row, seed, words, leaves, identity_of("final", settings, evaluation.identity, sources["final"]))


def _engine(common: Common) -> tuple[str, ...]:
    return ("--engine", "pytorch", *(("--precision", common.precision) if common.precision != "fp32" else ()))


def _row(entry: JSON, reference: str | None) -> Row:
    flags = {key: tuple(entry.get(key, ())) for key in ("distill", "finetune")}
    return Row(**{"against": reference, **entry, **flags, "stages": tuple(tuple(stage) for stage in entry.get("stages", ()))})


def _problems(document: JSON, entries: object, reference: object) -> list[str]:
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        return ["expected a list of tables [[rows]]"]
    names = [entry.get("name") for entry in entries]
    problems = [f"unknown entry {key!r}" for key in document if key not in ("rows", "reference")]
    if reference not in names:
        problems.append(f"reference must be the name of a row ({', '.join(map(str, names))}), found {reference!r}")
    for entry in entries:
        where = f"row {entry.get('name')!r}"
        problems += [f"{where}: {problem}" for problem in _problems_of_row(entry)]
        if not re.fullmatch(r"[\w-]+", str(entry.get("name", ""))) or names.count(entry.get("name")) > 1:
            problems.append(f"{where}: a name is its own, of letters, digits and hyphens")
        if entry.get("against", reference) not in names:
            problems.append(f"{where}: against must name a row, found {entry.get('against')!r}")
        if "paper_of" in entry and not any(other.get("name") == entry["paper_of"] and "paper" in other for other in entries):
            problems.append(f"{where}: paper_of must name a row that has an entry paper, found {entry['paper_of']!r}")
        if "paper_of" in entry and "paper" in entry:
            problems.append(f"{where}: paper and paper_of are two ways to say the same, found both")
    return problems


def _problems_of_row(entry: JSON) -> list[str]:
    texts, lists = ("name", "words", "against", "start", "paper_of"), ("distill", "finetune", "stages")
    kinds: dict[str, type] = {**dict.fromkeys(texts, str), **dict.fromkeys(lists, list), "teacher": bool, "paper": float}
    problems = [f"{key} is missing" for key in ("name", "words") if key not in entry]
    problems += [f"unknown entry {key!r}" for key in entry if key not in kinds]
    problems += [f"{key} must be {kinds[key].__name__}" for key in entry if key in kinds and not isinstance(entry[key], kinds[key])]
    start, stages = entry.get("start"), entry.get("stages", [[]])
    if start is not None and start not in STARTS:
        problems.append(f"start must be one of {', '.join(STARTS)}, found {start!r}")
    if start and "distill" in entry:
        problems.append(f"distill goes with a distillation, and start = {start!r} has none")
    if "stages" in entry and "finetune" in entry:
        problems.append("finetune is for one fine-tuning and stages for several; give one of them")
    if isinstance(stages, list) and not (stages and all(isinstance(stage, list) for stage in stages)):
        problems.append(f"stages must be lists of flags, found {stages!r}")
    return problems


def _sources(common: Common) -> JSON:
    """Hashes of everything that is read."""
    files = [file_of(text) for text in common.data]
    return {
        "teacher": content_of_model(common.teacher),
        "reader": content_of_model(common.reader) if common.reader else None,
        "base": content_of_model(common.base) if common.base else None,
        "final": content_of(common.final) if common.final else None,
        "corpus": [content_of(path) for path in common.corpus],
        "data": [_shares(common.data, files), *map(content_of, files)],
        "dev": content_of(common.dev),
    }


def _shares(data: Sequence[str], files: Sequence[str]) -> list[str]:
    return [text.removeprefix(file) for text, file in zip(data, files, strict=True)]

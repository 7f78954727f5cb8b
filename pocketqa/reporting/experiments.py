"""The log of experiments: what was tried instead of what, both figures, and whether it was kept, the failed ones too.

`experiments.toml` names run files and says in words what was tried; every figure comes from the run files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketqa.errors import DataError
from pocketqa.reporting.lists import read_list
from pocketqa.reporting.tables import Runs, scores_cell, signed, table
from pocketqa.runs import RunFile, compare
from pocketqa.types import JSON

HEAD = ("tried", "EM / F1 with it", "without", "EM / F1 without it", "F1 gained", "kept", "measured")
KEYS = {"tried": str, "run": str, "without": str, "against": str, "kept": str}
Link = Callable[[str, RunFile], str]


@dataclass(frozen=True, slots=True)
class Experiment:
    """One row: run files by name, of kind "training" with a score on the development split, or both of kind "evaluation"."""

    tried: str
    run: str
    without: str
    against: str
    kept: str


def read_experiments(path: Path) -> tuple[Experiment, ...]:
    """The rows of the file.  Raises DataError with all problems at once."""
    return tuple(Experiment(**entry) for entry in read_list(path, "experiments", "experiment", _problems))


def _problems(entry: JSON) -> list[str]:
    wrong = [key for key, kind in KEYS.items() if key in entry and not isinstance(entry[key], kind)]
    return [
        *(f"{key} is missing" for key in KEYS if key not in entry),
        *(f"unknown entry {key!r}" for key in entry if key not in KEYS),
        *(f"{key} must be {KEYS[key].__name__}, found {entry[key]!r}" for key in wrong),
    ]


def experiment_lines(experiments: Sequence[Experiment], runs: Runs, link: Link) -> list[str]:
    """A table with one row an experiment.  Raises DataError for a run file that is not there, or pairs that were scored on different questions."""
    if not experiments:
        return []
    return [
        "On the development split where the row says nothing else, one seed each. Where both were evaluated question by question, the difference has "
        "an interval.",
        "",
        *table(HEAD, [_row(experiment, runs, link) for experiment in experiments]),
    ]


def _row(experiment: Experiment, runs: Runs, link: Link) -> tuple[str, ...]:
    names = (experiment.run, experiment.against)
    if missing := [name for name in names if name not in runs]:
        raise DataError(f"The experiment {experiment.tried!r} names run files that are not there: {', '.join(missing)}.")
    ours, theirs = (runs[name] for name in names)
    a, b = (_scores(name, run) for name, run in zip(names, (ours, theirs), strict=True))
    if a["count"] != b["count"]:
        raise DataError(f"The experiment {experiment.tried!r} compares {a['count']:,} questions ({names[0]}) with {b['count']:,} ({names[1]}).")
    paired = ours.kind == theirs.kind == "evaluation"
    gained = signed(compare(ours, theirs).f1) if paired else f"{a['f1'] - b['f1']:+.2f}"
    links = "; ".join(link(name, runs[name]) for name in names)
    return experiment.tried, scores_cell(a), experiment.without, scores_cell(b), gained, experiment.kept, links


def _scores(name: str, run: RunFile) -> JSON:
    found = run.results if run.kind == "evaluation" else run.results.get("best")
    if run.kind not in ("evaluation", "training") or not found:
        raise DataError(f"Expected an evaluation, or a training with a score on the development split, found {name} of kind {run.kind!r}.")
    return dict(found)

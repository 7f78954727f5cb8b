"""Which models belong together: teacher, student and control, by the sha256 of their weights, as `pairs.toml` lists them.

A student may be compared with its own teacher and its own control alone, and pairs follow one another; run files tell roles, but not pairs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketqa.reporting.lists import read_list
from pocketqa.reporting.tables import ROLES, Runs, model_cell, statements
from pocketqa.runs import RunFile, Subject
from pocketqa.types import JSON

SCORED = ("evaluation", "verification")
DIGITS = re.compile("[0-9a-f]{12,64}")


@dataclass(frozen=True, slots=True)
class Pair:
    """First digits of the sha256 of each model's weights, "" where there is none; and what there is to know, in a sentence."""

    teacher: str = ""
    student: str = ""
    control: str = ""
    note: str = ""

    def has(self, subject: Subject) -> bool:
        """Whether a model is of this pair; models of other roles are of every pair."""
        digits = str(getattr(self, subject.role)) if subject.role in ROLES else ""
        return subject.role not in ROLES or (digits != "" and subject.sha256.startswith(digits))


def read_pairs(path: Path) -> tuple[Pair, ...]:
    """The pairs of the file, the last of which is the current one.  Raises DataError with all problems at once."""
    return tuple(Pair(**entry) for entry in read_list(path, "pairs", "pair", _problems))


def _problems(entry: JSON) -> list[str]:
    wrong = [key for key in ROLES if key in entry and not (isinstance(entry[key], str) and DIGITS.fullmatch(entry[key]))]
    return [
        *(f"unknown entry {key!r}" for key in entry if key not in (*ROLES, "note")),
        *(f"{key} must be 12 or more digits of a sha256, found {entry[key]!r}" for key in wrong),
    ]


def of_pair(runs: Runs, pair: Pair) -> dict[str, RunFile]:
    """All runs but the scores of any other teacher, student or control."""
    return {name: run for name, run in runs.items() if run.kind not in SCORED or all(map(pair.has, run.subjects))}


def of_current(runs: Runs, pairs: Sequence[Pair]) -> Runs:
    """The same for the last pair; all runs where no pairs are known."""
    return of_pair(runs, pairs[-1]) if pairs else runs


def pair_statements(found: Runs, pairs: Sequence[Pair]) -> list[str]:
    """What evaluations say of each pair, the current one first; of all roles together where no pairs are known."""
    if not pairs:
        return statements(found)
    lines: list[str] = []
    for pair in reversed(pairs):
        said = statements(of_pair(found, pair))
        lines += [*([f"- {pair.note}"] if said and pair.note else []), *said]
    return lines


def earlier_weights(runs: Runs, pairs: Sequence[Pair]) -> list[str]:
    """Lines about models of earlier pairs that others have followed, where runs that measured them are still there; else nothing."""
    measured = (s for run in runs.values() if run.kind != "training" for s in run.subjects if s.role in ROLES)
    earlier = sorted({model_cell(s) for s in measured if any(pair.has(s) for pair in pairs) and not pairs[-1].has(s)})
    if not earlier:
        return []
    return [
        f"Measured with earlier weights, in rows that name them or whose run files do: {', '.join(earlier)}.",
        "Their scores are not those of today's models;"
        " times, and sizes where each weight is stored alike, do not depend on their values and stand until measured again.",
    ]

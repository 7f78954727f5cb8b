"""Lists beside the run files, as TOML: tables of one name, read with all problems told at once."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from pocketqa.errors import DataError
from pocketqa.types import JSON


def read_list(path: Path, name: str, one: str, problems_of: Callable[[JSON], Sequence[str]]) -> list[JSON]:
    """The tables [[name]] of a file.  one: what each is called; problems_of: what is wrong with it.  Raises DataError with all problems at once."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"Expected a TOML file of {name} at {path}: {error}") from None
    entries = document.get(name, [])
    problems = [f"unknown entry {key!r}" for key in document if key != name]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        problems, entries = [*problems, f"{'an' if one[0] in 'aeiou' else 'a'} {one} is a table [[{name}]]"], []
    problems += [f"{one} {number}: {problem}" for number, entry in enumerate(entries, 1) for problem in problems_of(entry)]
    if problems:
        raise DataError(f"{path}: {'; '.join(problems)}.")
    return entries

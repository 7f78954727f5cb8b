"""The output of a run that may be stopped at any moment, by kill -9 too, and goes on when the same command is given again without --force.

OUT.partial     finished blocks, and perhaps a piece of the next one
OUT.run.json    what the run is made of, and how many blocks and bytes of OUT.partial count; there before the first block, replaced in one step
                after each
OUT             put in place at the end, in one step; OUT.run.json stays beside it, so that the same command finds that all is done

Where OUT is a symbolic link, all three are of the file that it points to.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from pocketqa.bulk.lines import Answered
from pocketqa.errors import DataError
from pocketqa.locks import try_lock
from pocketqa.writes import write_atomic

FORMAT = 1
SHOWN = 5  # problems that are told


@dataclass(frozen=True, slots=True)
class State:
    """How far a run has come.  run: everything that its output depends on."""

    run: Mapping[str, Any]
    blocks: int = 0
    lines: int = 0
    failed: int = 0  # lines that could not be answered
    bytes: int = 0  # of output
    problems: tuple[str, ...] = ()  # the first of them
    complete: bool = False
    format: int = field(default=FORMAT)


def places(path: Path) -> tuple[Path, Path, Path]:
    """OUT itself, behind its links, OUT.partial and OUT.run.json."""
    path = Path(os.path.realpath(path)) if os.path.islink(path) else path
    return path, path.parent / f"{path.name}.partial", path.parent / f"{path.name}.run.json"


def check_places(path: Path, source: Path) -> None:
    """Asked before anything is computed.  Raises DataError where a folder or a device is in the way, or the input would be overwritten."""
    for place in (path, *places(path)):
        if os.path.exists(place) and not os.path.isfile(place):
            found = "a folder" if os.path.isdir(place) else "a pipe or a device"
            raise DataError(f"Expected to write a file at {place}, found {found}. Name a file with --out.")
        with contextlib.suppress(OSError):  # one of them is not there
            if os.path.samefile(source, place):
                raise DataError(f"Expected another file for the answers than {source} itself, which {place} is. Name another --out.")


class Output:
    """The files of one run; a context manager that holds them against a second process.

    Raises DataError where another run, or another program, left something at the place, unless `force` is given.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], force: bool = False) -> None:
        self.path, self.partial, self.record = places(path)
        self._force = force
        try:
            self._file = self.partial.open("ab")
        except OSError as error:
            raise self._cannot_begin(self.partial, error) from None
        try:
            self._lock()
            self.state = State(run) if force else self._begin(run)
            if not self.state.complete:
                self._record()
                self._file.truncate(self.state.bytes)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Output:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with contextlib.suppress(OSError):  # of a block that could not be written: `append` has said so, and a block that was is on the disk
            self._file.close()

    def append(self, answered: Answered, lines: int) -> None:
        """Write one more block; once this returns it is safe."""
        problems = (*self.state.problems, *(f"line {problem.line}: {problem.message}" for problem in answered.problems))
        state = replace(
            self.state,
            blocks=self.state.blocks + 1,
            lines=self.state.lines + lines,
            failed=self.state.failed + len(answered.problems),
            bytes=self.state.bytes + len(answered.output),
            problems=problems[:SHOWN],
        )
        try:
            self._file.write(answered.output)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._keep(state)
        except OSError as error:
            raise self._not_written(error) from None

    def finish(self) -> None:
        """All blocks are there: put the output in place."""
        try:
            self._keep(replace(self.state, complete=True))
            self._put_in_place()
        except OSError as error:
            raise self._not_written(error) from None

    def _put_in_place(self) -> None:
        if os.name == "nt":  # which moves no file that is open; elsewhere the lock is held until it is moved
            self._file.close()
        self.partial.replace(self.path)

    def _record(self) -> None:
        """Before the first block too: so the same command finds its own run, wherever it was stopped."""
        try:
            self._keep(self.state)
        except OSError as error:
            self._clear()
            raise self._cannot_begin(self.record, error) from None

    def _cannot_begin(self, place: Path, error: OSError) -> DataError:
        return DataError(f"Expected to write to {self.path}, but {place} cannot be written: {error.strerror}.")

    def _not_written(self, error: OSError) -> DataError:
        command = "The same command without --force" if self._force else "The same command"
        return DataError(f"{self.path} cannot be written any further: {error.strerror}. {command} goes on from here.")

    def _keep(self, state: State) -> None:
        write_atomic(self.record, json.dumps(asdict(state), indent=1, ensure_ascii=False) + "\n")
        self.state = state

    def _lock(self) -> None:
        try:
            if not try_lock(self._file):
                raise DataError(
                    f"Expected {self.partial} for this run alone, found another process that writes it. Wait for it, or name another --out."
                )
        except OSError as error:  # some network file systems have no locks
            print(f"{self.partial} cannot be locked ({error.strerror}): do not start a second run with this --out.", file=sys.stderr)

    def _begin(self, run: Mapping[str, Any]) -> State:
        state = self._read()
        if state is None:
            if self.path.exists() or self.partial.stat().st_size:
                self._clear()
                raise DataError(f"Expected nothing at {self.path}, found a file that no run is recorded for. Name another --out, or add --force.")
            return State(run)
        if not state.blocks and not self.path.exists():  # of whatever run: nothing of it would be lost
            return State(run)
        if differing := sorted(key for key in {*run, *state.run} if run.get(key) != state.run.get(key)):
            self._clear()
            raise DataError(
                f"Expected {self.record} to be of the same run, found another {' and another '.join(differing)}. Name another --out, or add --force "
                "to begin anew."
            )
        if state.complete:
            return self._completed(state)
        # Fewer bytes than were recorded: somebody else has been at the file.
        return state if self.partial.stat().st_size >= state.bytes else State(run)

    def _completed(self, state: State) -> State:
        """A run that came to its end, perhaps but for the last step."""
        size = self.partial.stat().st_size
        if size == state.bytes and (size or not self.path.exists()):
            self._put_in_place()
        else:
            self._clear()
        if not self.path.exists() or self.path.stat().st_size != state.bytes:
            raise DataError(f"Expected the finished answers at {self.path}, found that they are gone or changed. Add --force to answer again.")
        return state

    def _clear(self) -> None:
        """Take back the file that was made for the lock."""
        if not self.partial.stat().st_size:
            self.partial.unlink()

    def _read(self) -> State | None:
        try:
            document = json.loads(self.record.read_bytes())
            if document["format"] != FORMAT:
                raise ValueError(f"format {document['format']!r}")
            return State(**document | {"problems": tuple(document["problems"])})
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"Expected the record of a run at {self.record}, found: {error}. Add --force to begin anew.") from None

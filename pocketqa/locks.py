"""Locks between processes.  They end with the process that holds them, however it ends; Windows and some network file systems have none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: nothing is held there
    fcntl = None  # type: ignore[assignment]


def try_lock(file: IO[bytes]) -> bool:
    """Lock an open file until it is closed, here and in processes that got it: False where another process holds it.

    Raises OSError where the file system has no locks.
    """
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextlib.contextmanager
def one_maker(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time make `folder`, which others need too: they wait, and find it.

    Raises OSError where nothing can be written beside it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.with_name(f".{folder.name}.lock")
    with _locked(path, f"waiting for another run, which makes {folder}", say):
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows deletes nothing that is open
                path.unlink(missing_ok=True)


def _locked(path: Path, waiting: str, say: Callable[[str], None]) -> IO[bytes]:
    """The file, open and locked once no other process holds it; before a wait, `waiting` is said once."""
    while True:
        file = path.open("wb")
        with contextlib.suppress(OSError):  # no locks on this file system: two may make the folder, and the later one counts
            if not try_lock(file):
                if waiting:
                    say(waiting)
                waiting = ""
                fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        file.close()  # of a file that its holder has deleted meanwhile

"""Writes that leave all or nothing: one file, or a whole folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pocketqa.errors import FolderError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a machine that loses power, sees the old content or the new one."""
    path = Path(os.path.realpath(path))  # through a symbolic link, so that the link stays
    data = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o666 & ~_umask())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _sync(path.parent)


@contextlib.contextmanager
def atomic_folder(path: str | Path, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside `path` to be filled, and put it in place at the end; after an error `path` is as it was.

    replace: put it in the place of an existing folder.  Raises FolderError where a folder that is not empty is in the way.  Where one came in the way
    meanwhile, or the last step fails otherwise, the temporary folder is kept, and the error names it.
    """
    target = Path(path).resolve()  # through a symbolic link, so that the link stays
    if target.exists() and not target.is_dir():
        raise FolderError(f"Expected to write a folder at {path}, found a file. Choose another place.")
    if os.path.ismount(target):
        raise FolderError(f"Expected to write a folder at {path}, found the root of a file system, which cannot be replaced. Name a folder in it.")
    if target.is_dir() and any(target.iterdir()) and not replace:
        raise FolderError(f"Expected nothing at {path}, found a folder that is not empty. Choose another place, or add --force to replace it.")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    except OSError as error:
        raise FolderError(f"Expected to write a folder at {path}, but {target.parent} cannot be written to: {error.strerror}.") from None
    try:
        yield temporary
        _settle(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _swap(temporary, target, replace)


def _settle(folder: Path) -> None:
    """Ordinary permissions (temporary files are born private to their owner, and a server may be another user), and bytes on the disk."""
    mask = _umask()
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
            _sync(path)


def _swap(temporary: Path, target: Path, replace: bool) -> None:
    previous = temporary.with_suffix(".previous")
    try:
        if replace and target.exists():
            target.rename(previous)
        elif target.exists():
            target.rmdir()  # fails where something was put there meanwhile
        temporary.rename(target)
    except OSError as error:
        if previous.exists() and not target.exists():
            previous.rename(target)
        raise FolderError(
            f"The folder is complete but cannot be put at {target}: {error.strerror}. It is kept: move {temporary} to another place."
        ) from None
    _sync(target.parent)
    shutil.rmtree(previous, ignore_errors=True)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows flushes only what may be written to
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask

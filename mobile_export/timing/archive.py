"""How large a model is as a download: the bytes of a zip archive of it, without writing one."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO, cast


def model_files(package: Path) -> list[Path]:
    """The files of a model that is a folder or a file, in the order of their names."""
    return [package] if package.is_file() else sorted(file for file in package.rglob("*") if file.is_file())


def zipped_bytes(package: Path) -> int:
    """Bytes of a zip of the model: DEFLATE at zlib's default level, with the fixed date that ZipInfo has, so the same everywhere."""
    count = _Counter()
    with zipfile.ZipFile(cast(IO[bytes], count), "w", zipfile.ZIP_DEFLATED) as archive:
        for file in model_files(package):
            entry = zipfile.ZipInfo(file.relative_to(package.parent).as_posix())
            entry.compress_type = zipfile.ZIP_DEFLATED
            with file.open("rb") as source, archive.open(entry, "w") as sink:
                while block := source.read(1 << 20):
                    sink.write(block)
    return count.bytes


class _Counter:
    """A file for writing only that keeps nothing but its length."""

    def __init__(self) -> None:
        self.bytes = 0

    def write(self, data: bytes) -> int:
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        pass

"""A JSONL file as blocks of whole lines: what is read, computed and written at a time, and what a stopped run begins again with.

Blocks are cut from the bytes alone, so that the same file has the same blocks in every run.  None is larger than BLOCK_BYTES, but for the longest
line that is taken; memory therefore depends on no file's size (besides some 200 bytes for each block).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pocketqa.errors import DataError

BLOCK_LINES = 256
BLOCK_BYTES = 1 << 19
LONGEST_LINE = 1 << 20  # bytes; the spans of such a passage take 400 MB at most while they are ranked: no token is shorter than a byte


@dataclass(frozen=True, slots=True)
class Block:
    """Where a block stands in the file.  number: from 0; first_line: from 1, as editors count; checksum: of its lines (crc32)."""

    number: int
    offset: int
    size: int
    first_line: int
    lines: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line without its end; `data` is None where it is longer than LONGEST_LINE."""

    number: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class Survey:
    """A whole file: its blocks and the sha256 of its bytes."""

    blocks: tuple[Block, ...]
    sha256: str

    @property
    def lines(self) -> int:
        """All of them."""
        return sum(block.lines for block in self.blocks)


def survey(path: Path) -> Survey:
    """Read the file once.  Raises DataError where it cannot be read, or could not be read again."""
    blocks: list[Block] = []
    digest = hashlib.sha256()
    first = number = 1
    offset = size = length = checksum = line = 0
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise DataError(
                f"Expected a file at {path}, found a pipe or a device, which cannot be read again from where a run stopped. "
                "Write it to a file first, for instance: zcat questions.jsonl.gz > questions.jsonl"
            )
        with path.open("rb") as file:
            for _, ends, part in _pieces(file):
                digest.update(part)
                length, line = length + len(part), zlib.crc32(part, line)
                if not ends:
                    continue
                if size and (size + length > BLOCK_BYTES or number - first == BLOCK_LINES):
                    blocks.append(Block(len(blocks), offset, size, first, number - first, checksum))
                    offset, size, first, checksum = offset + size, 0, number, 0
                size, number, checksum = size + length, number + 1, _chained(checksum, line)
                length = line = 0
    except OSError as error:
        raise DataError(f"Expected a JSONL file at {path}, but it cannot be read: {error.strerror}.") from None
    if size:
        blocks.append(Block(len(blocks), offset, size, first, number - first, checksum))
    return Survey(tuple(blocks), digest.hexdigest())


def read_lines(path: Path, block: Block) -> list[Line]:
    """The lines of a block.  Raises DataError where they are not there any more, or not those that were surveyed."""
    lines: list[Line] = []
    checksum = line = 0
    try:
        with path.open("rb") as file:
            file.seek(block.offset)
            for begins, ends, part in _pieces(file):
                line = zlib.crc32(part, line)
                if ends:
                    checksum, line = _chained(checksum, line), 0
                    lines.append(Line(block.first_line + len(lines), part.rstrip(b"\r\n") if begins else None))
                if len(lines) == block.lines:
                    break
    except OSError as error:
        raise DataError(f"Expected to read {path} again, but it cannot be read: {error.strerror}.") from None
    wanted = f"{block.lines} lines from line {block.first_line} of {path}"
    if len(lines) < block.lines:
        raise DataError(f"Expected {wanted}, found {len(lines)}: the file was cut while it was read.")
    if checksum != block.checksum:
        raise DataError(
            f"Expected {wanted} as they were at the start, found others: the file was changed, or this machine has another copy of it. "
            "Put it back to go on, or begin anew with --force."
        )
    return lines


def _chained(checksum: int, line: int) -> int:
    """The checksum of some lines and of one more, whose own is `line`: which block a line belongs to is known at its end only."""
    return zlib.crc32(line.to_bytes(4, "big"), checksum)


def _pieces(file: BinaryIO) -> Iterator[tuple[bool, bool, bytes]]:
    """Pieces of lines: whether it begins its line, whether it ends it, the bytes.  Only a line longer than LONGEST_LINE has several."""
    begins = True
    while part := file.readline(LONGEST_LINE + 1):
        ends = part.endswith(b"\n") or len(part) <= LONGEST_LINE
        yield begins, ends, part
        begins = ends
    if not begins:
        yield False, True, b""

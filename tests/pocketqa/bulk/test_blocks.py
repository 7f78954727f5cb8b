"""A file cut into blocks of whole lines: every byte in one of them, none too large, and read again as it was."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from pocketqa.bulk import blocks
from pocketqa.bulk.blocks import Line, Survey, read_lines, survey
from pocketqa.errors import DataError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_LINES", 3)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 20)
    monkeypatch.setattr(blocks, "LONGEST_LINE", 12)


def cut(tmp_path, data: bytes):
    path = tmp_path / "in.jsonl"
    path.write_bytes(data)
    found = survey(path)
    return path, found


def places(found: Survey) -> list[tuple[int, int, int, int, int]]:
    return [(block.number, block.offset, block.size, block.first_line, block.lines) for block in found.blocks]


def test_blocks_end_where_lines_or_bytes_are_enough(tmp_path):
    path, found = cut(tmp_path, b"a\nb\nc\nd\n12345678\n12345678\n")
    # Three lines of two bytes; then one of two and one of nine, since another nine would make 20 and no more: 2 + 9 + 9 = 20.
    assert places(found) == [(0, 0, 6, 1, 3), (1, 6, 20, 4, 3)]
    assert (found.lines, found.sha256) == (6, hashlib.sha256(path.read_bytes()).hexdigest())
    _, found = cut(tmp_path, b"ab\n12345678\n12345678\n1\n")
    assert places(found) == [(0, 0, 12, 1, 2), (1, 12, 11, 3, 2)]


def test_lines_come_back_without_their_ends(tmp_path):
    path, found = cut(tmp_path, "é\r\n\nx\ny".encode())
    assert [line for block in found.blocks for line in read_lines(path, block)] == [
        Line(1, "é".encode()), Line(2, b""), Line(3, b"x"), Line(4, b"y"),
    ]  # fmt: skip


def test_a_line_that_is_too_long_is_passed_over_without_being_held(tmp_path):
    # 12 bytes are taken, with an end of line or without; 13 are not, nor are 40, nor 13 at the very end.
    lines = [b"123456789abc", b"123456789abcd", b"x" * 40, b"after", b"y" * 13]
    path, found = cut(tmp_path, b"\n".join(lines))
    read = [line for block in found.blocks for line in read_lines(path, block)]
    assert [(line.number, line.data) for line in read] == [(1, lines[0]), (2, None), (3, None), (4, b"after"), (5, None)]
    assert sum(block.size for block in found.blocks) == len(path.read_bytes())
    path, found = cut(tmp_path, b"z" * 12)
    assert [line.data for block in found.blocks for line in read_lines(path, block)] == [b"z" * 12]


def test_no_lines(tmp_path):
    assert cut(tmp_path, b"")[1].blocks == ()


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        survey(tmp_path / "absent")
    with pytest.raises(DataError, match="Is a directory"):
        survey(tmp_path)
    path, found = cut(tmp_path, b"a\nb\nc\n")
    path.write_bytes(b"a\n")
    with pytest.raises(DataError, match=r"Expected 3 lines from line 1 of .*found 1: the file was cut"):
        read_lines(path, found.blocks[0])


@pytest.mark.parametrize(
    "changed",
    [b"a\nb\nx\nd\n", b"b\na\nc\nd\n", b"a\nb\nc\r\nd\n", b"a\nb\n" + b"x" * 40 + b"\nd\n"],
    ids=["a letter", "an order", "an end", "a long line"],
)
def test_lines_that_changed_since_they_were_surveyed(tmp_path, changed):
    path, found = cut(tmp_path, b"a\nb\nc\nd\n")
    path.write_bytes(changed)
    with pytest.raises(DataError, match=r"Expected 3 lines from line 1 of .* as they were at the start, found others"):
        read_lines(path, found.blocks[0])


def test_a_change_within_a_line_that_is_too_long(tmp_path):
    path, found = cut(tmp_path, b"a\n" + b"x" * 40 + b"\n")
    path.write_bytes(b"a\n" + b"x" * 30 + b"y" * 10 + b"\n")
    with pytest.raises(DataError, match="found others"):
        [read_lines(path, block) for block in found.blocks]


def test_what_cannot_be_read_twice_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(DataError, match=f"Expected a file at {path}, found a pipe or a device.* > questions.jsonl"):
            survey(path)

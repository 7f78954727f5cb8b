"""Frames: the layout byte by byte, the way there and back, and everything that is no frame."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pocketqa.types import Batch, SpanLogits
from service.engine.frames import HEADER_BYTES, MAX_TEXT, Computed, Frame, FrameError, Job, Kind, Text, decode, encode, read_header

IDS = np.array([[101, 7, 102], [101, 8, 0]], np.int32)  # (2, 3)
MASK = np.array([[1, 1, 1], [1, 1, 0]], np.int32)
TYPES = np.array([[0, 0, 1], [0, 1, 0]], np.int32)


def there_and_back(frame: Frame) -> Frame:
    data = encode(frame)
    header = read_header(data[:HEADER_BYTES])
    assert header.size == len(data) - HEADER_BYTES
    return decode(header, data[HEADER_BYTES:])


def test_a_job_is_laid_out_as_documented() -> None:
    data = encode(Job(77, "student", Batch(IDS, TYPES, MASK)))
    head = b"PQA1" + bytes([3, 1]) + struct.pack("<HHHII", 2, 3, 0, 77, 3 * 2 * 3 * 4)
    body = struct.pack("<18i", 101, 7, 102, 101, 8, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 1, 0)
    assert data == head + body


def test_a_result_is_laid_out_as_documented() -> None:
    logits = SpanLogits(np.array([[1.5, -2.0]], np.float32), np.array([[0.25, 8.0]], np.float32))
    data = encode(Computed(1, "teacher", logits, 0.125))
    assert data == b"PQA1" + bytes([4, 0]) + struct.pack("<HHHII", 1, 2, 0, 1, 24) + struct.pack("<d4f", 0.125, 1.5, -2.0, 0.25, 8.0)


def test_jobs_and_results_come_back_as_they_were() -> None:
    job = there_and_back(Job(5, "teacher", Batch(IDS, TYPES, MASK)))
    assert isinstance(job, Job)
    assert (job.number, job.role) == (5, "teacher")
    for found, sent in ((job.batch.ids, IDS), (job.batch.token_types, TYPES), (job.batch.mask, MASK)):
        assert found.dtype == np.int32
        assert np.array_equal(found, sent)
    start, end = np.random.default_rng(0).normal(size=(2, 4, 6)).astype(np.float32)  # (4, 6) each
    result = there_and_back(Computed(6, "student", SpanLogits(start, end), 0.5))
    assert isinstance(result, Computed)
    assert (result.number, result.role, result.seconds) == (6, "student", 0.5)
    assert np.array_equal(result.logits.start, start)
    assert np.array_equal(result.logits.end, end)


def test_arrays_that_are_not_contiguous_are_sent_in_their_order() -> None:
    job = there_and_back(Job(1, "teacher", Batch(IDS.T.copy().T, TYPES, MASK[:, ::1])))
    assert isinstance(job, Job)
    assert np.array_equal(job.batch.ids, IDS)


@pytest.mark.parametrize("kind", [Kind.OPEN, Kind.READY, Kind.FAILED])
def test_texts_come_back_as_they_were(kind: Kind) -> None:
    assert there_and_back(Text(kind, {"path": "/ä/😀", "threads": 2}, 9)) == Text(kind, {"path": "/ä/😀", "threads": 2}, 9)


def header(magic: bytes = b"PQA1", kind: int = 3, role: int = 0, rows: int = 1, length: int = 2, zero: int = 0, size: int = 24) -> bytes:
    return struct.pack("<4sBBHHHII", magic, kind, role, rows, length, zero, 1, size)


def test_the_header_of_these_tests_is_a_good_one() -> None:
    assert read_header(header()).rows == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"magic": b"PQA2"},
        {"magic": b"HTTP"},
        {"kind": 0},
        {"kind": 6},
        {"role": 2},
        {"zero": 1},
        {"rows": 0, "size": 0},
        {"rows": 4097, "length": 1, "size": 12 * 4097},
        {"length": 513, "size": 12 * 513},
        {"length": 0, "size": 0},
        {"size": 23},
        {"size": 2**32 - 1},
        {"kind": 4, "size": 20},
        {"kind": 1, "rows": 1, "length": 0, "size": 2},
        {"kind": 1, "rows": 0, "length": 0, "size": MAX_TEXT + 1},
    ],
    ids=str,
)
def test_what_is_no_frame_is_refused_before_its_body_is_read(wrong: dict[str, object]) -> None:
    with pytest.raises(FrameError, match="Expected a"):
        read_header(header(**wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize("body", [b"[1]", b"{", b"\xff\xfe", b"null"])
def test_a_text_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError, match="Expected a JSON object"):
        decode(read_header(header(kind=1, rows=0, length=0, size=len(body))), body)

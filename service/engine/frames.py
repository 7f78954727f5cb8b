"""What crosses the socket between the service and a worker: typed frames of fixed layout, checked at both ends.

    header, 20 bytes, little-endian   magic "PQA1", kind, role, rows, length, zero, number of the job, bytes that follow
    OPEN, READY, FAILED               a JSON object
    JOB                               ids, token types, mask: int32 (B, T) each
    RESULT                            seconds of the forward pass: float64; start, end logits: float32 (B, T) each

A frame holds numbers and text, nothing that is executed when it is read.  The size that a header announces must be the one that follows from its
shape, so a peer that has lost its place is found out before anything is allocated for it.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from pocketqa.errors import PocketQAError
from pocketqa.types import MAX_WINDOW_TOKENS, Batch, SpanLogits
from service.schemas import Role

MAGIC = b"PQA1"
MAX_ROWS = 4096
MAX_TEXT = 1 << 16  # bytes of a JSON frame
ROLES: tuple[Role, ...] = ("teacher", "student")

_HEADER = struct.Struct("<4sBBHHHII")
_SECONDS = struct.Struct("<d")
HEADER_BYTES = _HEADER.size


class FrameError(PocketQAError):
    """The peer sent something that is no frame; nothing after it can be trusted."""


class Kind(IntEnum):
    """What a frame holds."""

    OPEN = 1
    READY = 2
    JOB = 3
    RESULT = 4
    FAILED = 5


_KINDS = frozenset(Kind)
_TEXTS = (Kind.OPEN, Kind.READY, Kind.FAILED)


@dataclass(frozen=True, slots=True)
class Header:
    """The fixed part of a frame.  number: of the job that the frame is about, else 0."""

    kind: Kind
    role: Role
    rows: int
    length: int
    number: int
    size: int


@dataclass(frozen=True, slots=True)
class Text:
    """OPEN: what to open.  READY: what was opened.  FAILED: the class and the message of an error."""

    kind: Kind
    document: dict[str, Any]
    number: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A batch for one of the models."""

    number: int
    role: Role
    batch: Batch


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """The logits of a job and the seconds that the forward pass took."""

    number: int
    role: Role
    logits: SpanLogits  # (B, T)
    seconds: float


Frame = Text | Job | Computed


def encode(frame: Frame) -> bytes:
    """The bytes of a frame."""
    if isinstance(frame, Text):
        text = json.dumps(frame.document).encode()
        return _HEADER.pack(MAGIC, frame.kind, 0, 0, 0, 0, frame.number, len(text)) + text
    if isinstance(frame, Job):
        batch = frame.batch
        return _pack(Kind.JOB, frame.role, batch.shape, frame.number, *(part.astype("<i4") for part in (batch.ids, batch.token_types, batch.mask)))
    logits = frame.logits
    shape = (logits.start.shape[0], logits.start.shape[1])
    seconds = np.array([frame.seconds], "<f8")
    return _pack(Kind.RESULT, frame.role, shape, frame.number, seconds, logits.start.astype("<f4"), logits.end.astype("<f4"))


def _pack(kind: Kind, role: Role, shape: tuple[int, int], number: int, *parts: np.ndarray[Any, Any]) -> bytes:
    header = _HEADER.pack(MAGIC, kind, ROLES.index(role), *shape, 0, number, sum(part.nbytes for part in parts))
    return b"".join((header, *(part.tobytes() for part in parts)))


def read_header(data: bytes | bytearray | memoryview) -> Header:
    """The first HEADER_BYTES of a frame.  Raises FrameError."""
    magic, kind, role, rows, length, zero, number, size = _HEADER.unpack(data)
    if magic != MAGIC or zero != 0 or kind not in _KINDS or role >= len(ROLES):
        raise FrameError(f"Expected a frame that starts with {MAGIC!r}, found {bytes(data)!r}.")
    header = Header(Kind(kind), ROLES[role], rows, length, number, size)
    if header.kind in _TEXTS:
        fits = rows == length == 0 and size <= MAX_TEXT
    else:
        fits = 1 <= rows <= MAX_ROWS and 1 <= length <= MAX_WINDOW_TOKENS and size == _payload(header.kind, rows, length)
    if not fits:
        raise FrameError(f"Expected a {header.kind.name} frame whose size follows from its shape, found {rows} x {length} with {size} bytes.")
    return header


def _payload(kind: Kind, rows: int, length: int) -> int:
    return 12 * rows * length if kind == Kind.JOB else _SECONDS.size + 8 * rows * length


def decode(header: Header, payload: bytes | bytearray | memoryview) -> Frame:
    """The frame of a header and the `header.size` bytes after it.  Its arrays read the payload in place.  Raises FrameError."""
    if header.kind in _TEXTS:
        try:
            document = json.loads(bytes(payload))
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise FrameError(f"Expected a JSON object in a {header.kind.name} frame, found something else.")
        return Text(header.kind, document, header.number)
    shape = (header.rows, header.length)
    if header.kind == Kind.JOB:
        ids, token_types, mask = np.frombuffer(payload, "<i4").reshape(3, *shape)  # (B, T) each
        return Job(header.number, header.role, Batch(ids, token_types, mask))
    (seconds,) = _SECONDS.unpack_from(payload)
    start, end = np.frombuffer(payload, "<f4", offset=_SECONDS.size).reshape(2, *shape)  # (B, T) each
    return Computed(header.number, header.role, SpanLogits(start, end), seconds)

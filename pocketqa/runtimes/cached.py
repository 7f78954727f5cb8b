"""Logits kept on disk batch by batch, so that work of an hour that was interrupted goes on where it stopped, and gives the same result.

A batch is found again by what decides its logits: the model and engine (`identity`, `info`) and the bytes of the batch, which follow from data,
sample, tokenizer and window options.  Logits are stored in float32 as they came.  A file starts with a sha256 over its place and its content; one
that does not match, damaged or moved, is computed again and replaced.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pocketqa.errors import FolderError
from pocketqa.runtimes.base import Runtime
from pocketqa.types import Batch, RuntimeInfo, SpanLogits
from pocketqa.writes import write_atomic

FORMAT = b"pocketqa logits 1: seconds, start, end"
DIGEST_BYTES = hashlib.sha256().digest_size

log = logging.getLogger("pocketqa")


class CachedRuntime:
    """A runtime around another, which it asks only for what is not on disk.  Logits on padding, which mean nothing, are zero.

    computed, found: batches; seconds: what all of them took when they were computed, be it today or before.
    """

    def __init__(self, runtime: Runtime, folder: Path, identity: Sequence[str]) -> None:
        """identity: whatever decides the logits besides `runtime.info` without its threads: the sha256 of the weights, for one."""
        self._runtime = runtime
        info = runtime.info
        self._key = hashlib.sha256(json.dumps([FORMAT.decode(), *identity, info.engine, info.version, info.precision]).encode()).hexdigest()
        self._folder = folder / self._key
        self.computed = self.found = 0
        self.seconds = 0.0

    @property
    def info(self) -> RuntimeInfo:
        """That of the runtime inside."""
        return self._runtime.info

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """Those of the runtime inside."""
        return self._runtime.lengths

    @property
    def max_batch(self) -> int | None:
        """That of the runtime inside."""
        return self._runtime.max_batch

    def forward(self, batch: Batch) -> SpanLogits:
        """Logits (B, T), from disk where they are there.  Raises EngineError, and FolderError where the folder cannot be written."""
        content = (batch.ids, batch.token_types, batch.mask)
        name = hashlib.sha256(repr(batch.shape).encode() + b"".join(part.tobytes() for part in content)).hexdigest()
        file = self._folder / name[:40]
        kept = self._read(file)
        real = batch.mask.astype(np.bool_)  # (B, T)
        if kept is None:
            began = time.perf_counter()
            logits = self._runtime.forward(batch)
            seconds = np.array([time.perf_counter() - began], "<f8")
            kept = seconds.tobytes() + np.stack((logits.start[real], logits.end[real])).astype("<f4").tobytes()
            self._write(file, kept)
            self.computed += 1
        else:
            self.found += 1
        start, end = np.zeros(batch.shape, dtype=np.float32), np.zeros(batch.shape, dtype=np.float32)  # (B, T)
        start[real], end[real] = np.frombuffer(kept, "<f4", offset=8).reshape(2, -1)  # (2, tokens of the batch)
        self.seconds += float(np.frombuffer(kept, "<f8", 1)[0])
        return SpanLogits(start, end)

    def _read(self, file: Path) -> bytes | None:
        try:
            content = file.read_bytes()
        except FileNotFoundError:
            return None
        if content[:DIGEST_BYTES] == self._digest(file, content[DIGEST_BYTES:]):
            return content[DIGEST_BYTES:]
        log.warning("%s is damaged: these logits are computed again", file)
        return None

    def _write(self, file: Path, content: bytes) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomic(file, self._digest(file, content) + content)
        except OSError as error:
            raise FolderError(f"Logits cannot be kept in {self._folder.parent}: {error.strerror}. Choose another folder for them.") from None

    def _digest(self, file: Path, content: bytes) -> bytes:
        return hashlib.sha256(b"\n".join((FORMAT, self._key.encode(), file.name.encode(), content))).digest()


def default_folder() -> Path:
    """$XDG_CACHE_HOME/pocketqa, or its customary place.  Raises FolderError where this user has no home."""
    base = os.environ.get("XDG_CACHE_HOME")  # the specification says that an empty or relative one is to be ignored
    try:
        return (Path(base) if base and Path(base).is_absolute() else Path.home() / ".cache") / "pocketqa" / "logits"
    except RuntimeError:
        raise FolderError("Expected a home folder to keep logits in, found none of this user. Name a folder with --cache DIR, or set HOME.") from None

"""The access log, one line of JSON a request, and the messages of the service: each written by a thread of its own.

A terminal or a pipe that nobody reads blocks its writer.  The event loop must not be that writer: entries wait in a bounded queue, those that find it
full are dropped, and the next line that is written says how many were.  Nor may the writer hold a lock of Python's when it blocks, for which other
threads, and the end of the process, would wait: it writes to the file itself.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Mapping
from typing import TextIO

_WAITING = 4096
_CLOSE_SECONDS = 1.0

Entry = Mapping[str, object] | str


class AccessLog:
    """Lines on a stream; None is standard error.  The thread starts with the first entry."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._entries: queue.Queue[Entry | None] = queue.Queue(_WAITING)
        self._dropped = 0
        self._thread: threading.Thread | None = None

    def write(self, entry: Entry) -> None:
        """Queue an entry, or drop it where too many wait already; never blocks.  To be called from one thread, the event loop's."""
        if self._thread is None:
            # A daemon: a reader that never reads must not keep the process from ending.
            self._thread = threading.Thread(target=self._work, name="access-log", daemon=True)
            self._thread.start()
        if self._dropped:
            entry = f"{entry} ({self._dropped} dropped before)" if isinstance(entry, str) else {**entry, "dropped_before": self._dropped}
        try:
            self._entries.put_nowait(entry)
            self._dropped = 0
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, for at most a second."""
        if self._thread is None:
            return
        try:
            self._entries.put(None, timeout=_CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(_CLOSE_SECONDS)
        self._thread = None

    def _work(self) -> None:
        while (entry := self._entries.get()) is not None:
            line = entry if isinstance(entry, str) else json.dumps(entry, separators=(",", ":"))
            try:
                _write(self._stream or sys.stderr, f"{line}\n")
            except (OSError, ValueError):  # a closed stream: the service matters more than its log
                continue


class LogHandler(logging.Handler):
    """Messages of `logging`, on standard error by way of a thread."""

    def __init__(self) -> None:
        super().__init__()
        self._lines = AccessLog()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a message; never blocks."""
        try:
            self._lines.write(self.format(record))
        except Exception:  # as every handler does: a message that cannot be formatted ends nothing
            self.handleError(record)

    def close(self) -> None:
        """Write what waits, for at most a second."""
        self._lines.close()
        super().close()


def _write(stream: TextIO, line: str) -> None:
    try:
        file = stream.fileno()
    except (OSError, ValueError, AttributeError):  # no file, such as the streams of tests
        stream.write(line)
        stream.flush()
        return
    left = line.encode("utf-8", "backslashreplace")
    while left:
        left = left[os.write(file, left) :]

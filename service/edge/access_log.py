"""The access log: one line of JSON a request, written by a thread of its own.

A terminal or a pipe that nobody reads blocks its writer.  The event loop must not be that writer: entries wait in a bounded queue, those that find it
full are dropped, and the next line that is written says how many were.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Mapping
from typing import TextIO

_WAITING = 4096
_CLOSE_SECONDS = 1.0

Entry = Mapping[str, object]


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
            entry = {**entry, "dropped_before": self._dropped}
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
            try:
                stream = self._stream or sys.stderr
                stream.write(json.dumps(entry, separators=(",", ":")) + "\n")
                if self._entries.empty():
                    stream.flush()
            except (OSError, ValueError):  # a closed stream: the service matters more than its log
                continue

"""Closing a connection on a client that is still sending, without losing the answer.

A socket that is closed with bytes unread resets the connection, and the client's kernel throws away what it had received: the 413 that says why.
So the sending side closes at once, and the receiving side a moment later, or when the client has finished.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

# How much a client may go on sending after its answer.
_BYTES = 64 << 20


class LingeringTransport(asyncio.Transport):
    """A transport whose `close` asks first whether the client is still sending.

    sending: whether there is more to come.  sending_seconds: time in which the client has to finish.  unread_seconds: time in which it has to
    take what is still to be written to it.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        sending: Callable[[], bool],
        sending_seconds: float,
        unread_seconds: float,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._loop = loop
        self._sending = sending
        self._sending_seconds = sending_seconds
        self._unread_seconds = unread_seconds
        self._end: asyncio.TimerHandle | None = None
        self._discarded = 0
        self.lingering = False

    def close(self) -> None:
        """Close now, or linger."""
        if self.is_closing():
            return
        if self._sending():
            self.linger()
            return
        if self._transport.get_write_buffer_size():
            self._end_after(self._unread_seconds)
        self._transport.close()

    def linger(self, most_seconds: float = math.inf) -> None:
        """Send what is written and no more; let the client finish within bounds, and within most_seconds."""
        if self.is_closing():
            return
        self.lingering = True
        self._transport.resume_reading()
        try:
            self._transport.write_eof()
        except OSError:  # it has gone already
            self._transport.abort()
            return
        self._end_after(min(most_seconds, self._sending_seconds))

    def discard(self, data: bytes) -> None:
        """What a client sends after its answer."""
        self._discarded += len(data)
        if self._discarded > _BYTES:
            self._transport.abort()

    def forget(self) -> None:
        """The connection is lost; nothing is left to end."""
        if self._end is not None:
            self._end.cancel()

    def _end_after(self, seconds: float) -> None:
        self.forget()
        self._end = self._loop.call_later(seconds, self._transport.abort)

    def is_closing(self) -> bool:
        """Whether nothing more is to be written."""
        return self.lingering or self._transport.is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As the transport does."""
        self._transport.write(data)

    def abort(self) -> None:
        """As the transport does."""
        self._transport.abort()

    def pause_reading(self) -> None:
        """As the transport does."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """As the transport does."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the transport does."""
        return self._transport.get_extra_info(name, default)

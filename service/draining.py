"""A server that takes its leave on SIGTERM: not ready at once, a little longer there for those who have not noticed, and then, with every accepted
request answered, gone with status 0.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

_FAREWELL = (b"connection", b"close")
_LAST_CALL_SECONDS = 0.5


class DrainingServer(uvicorn.Server):
    """uvicorn, which alone closes idle connections the moment a signal comes: a request that a client is just sending on one is lost."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None], seconds: float) -> None:
        """drain: called once, when SIGTERM came.  seconds: between that and the end of listening."""
        super().__init__(config)
        self._drain, self._seconds = drain, seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, answer what was accepted, end."""
        if self._leaving:
            for server in self.servers:
                server.close()
            # Who was let in just before has its request on the way; without this its connection would count as idle and be closed.
            await asyncio.sleep(_LAST_CALL_SECONDS)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM begins the leave-taking, a second one ends it; SIGINT (Ctrl+C) stops without."""
        if sig != signal.SIGTERM:
            super().handle_exit(sig, frame)
        elif self._leaving or self._loop is None:
            self.should_exit = True
        else:
            self._leaving = True
            self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        self._drain()
        # From now on each answer says that its connection closes after it; clients send the next request elsewhere.
        self.config.encoded_headers = [*self.config.encoded_headers, _FAREWELL]
        self.server_state.default_headers = [*self.server_state.default_headers, _FAREWELL]
        asyncio.get_running_loop().call_later(self._seconds, self._stop)

    def _stop(self) -> None:
        self.should_exit = True

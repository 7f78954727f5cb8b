"""One connection: uvicorn's HTTP/1.1 protocol with deadlines, caps and the refusal of what is contradictory.

uvicorn alone waits for ever for the rest of a request, takes any number of headers, chunks and pipelined requests, and lets an endpoint go on
computing for a client that has left.  https://github.com/Kludex/uvicorn/issues/157
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from pocketqa.errors import PocketQAError
from service.assets import SECURITY_HEADERS
from service.edge.gates import PROBES
from service.edge.lingering import LingeringTransport
from service.errors import HeadersTooLarge, MalformedHttp, RequestTimeout, TooManyConnections, error_document, error_headers, kind_of
from service.settings import Settings

# What browsers send at most, with room; a header counts for some bytes more than it has, as in HTTP/2, so that thousands of empty ones count too.
_HEADER_BYTES = 32 << 10
_HEADER_COST = 32
_TOO_LARGE = f"The headers have more than {_HEADER_BYTES:,} bytes, the most that is taken."
# A chunk costs a few microseconds whatever its size; senders of JSON use far fewer.
_CHUNKS = 16_384
# The headers that tell where a body ends.
_FRAMING = (b"content-length", b"transfer-encoding")
# Requests that wait behind one that is being answered.
_PIPELINED = 16

# Connections above the most, for whoever asks how the service is: overload must not look like an end of it.
_RESERVE = 32
_RESERVED_SECONDS = 1.0  # a probe asks at once
_TURNED_AWAY_SECONDS = 1.0  # for who is one too many to finish: until then its connection is there, in no count
_PROBE_ENDS = ("/ready", "/health")  # of one model
_TOO_MANY = "As many connections are open as this service takes."

Refused = Callable[[str, PocketQAError], None]


class _Phase(Enum):
    IDLE = auto()  # between requests
    HEADERS = auto()
    BODY = auto()
    WHOLE = auto()  # arrived, being answered


class EdgeProtocol(HttpToolsProtocol):
    """refused: told the client's address and the error of each request that ended before it reached the app."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        settings: Settings,
        refused: Refused,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._settings = settings
        self._refused = refused
        self._phase = _Phase.IDLE
        self._requests = 0  # begun on this connection
        self._header_bytes = self._header_size = 0  # as they came, as they were understood
        self._chunks = 0
        self._muted = False  # the parser is told again what has been heard
        self._reserved = False  # one of the connections for probes
        self._wrong: PocketQAError | None = None  # what a callback of the parser found
        self._deaf = False  # what comes cannot be read any more; the last answers still leave
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_of: tuple[_Phase, int] | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._answering: RequestResponseCycle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._departed = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count it in, or refuse it."""
        super().connection_made(transport)
        settings = self._settings
        self.transport = self._lingering = LingeringTransport(
            transport,
            self.loop,
            sending=lambda: self._phase is _Phase.BODY or self._deaf,
            sending_seconds=settings.body_seconds,
            unread_seconds=settings.idle_seconds,
        )
        above = len(self.connections) - settings.max_connections
        if above > 0:  # those that are turned away already take no place
            above -= sum(isinstance(one, EdgeProtocol) and one._lingering.lingering for one in self.connections)
        self._reserved = above > 0
        if above > _RESERVE:
            self._turn_away(TooManyConnections(_TOO_MANY))
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the work of whoever left."""
        self._disarm()
        self._lingering.forget()
        for cycle, _ in self.pipeline:
            cycle.disconnected = True
        self.pipeline.clear()
        self._depart()
        self.resume_writing()
        super().connection_lost(exc)

    def _depart(self) -> None:
        cycle = self._answering
        if cycle is None or cycle.response_complete:
            return
        cycle.disconnected = True
        cycle.message_event.set()
        if self._task is not None:
            self._departed = True
            self._task.cancel()

    def pause_writing(self) -> None:
        """The client does not take its answer as fast as it is written."""
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(self._settings.idle_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    # What arrives

    def data_received(self, data: bytes) -> None:
        """Parse, and watch the time of what is not whole yet."""
        if self._lingering.lingering:
            self._lingering.discard(data)
            return
        if self._deaf or self.transport.is_closing():
            return
        # The parser tells of a header when it is whole; before, its bytes are counted as they come.
        began = self._requests + (self._phase in (_Phase.IDLE, _Phase.WHOLE))
        so_far = self._header_bytes if self._phase is _Phase.HEADERS else 0
        try:
            self._feed(data)
        except httptools.HttpParserError:
            self._fail(self._wrong or MalformedHttp("The request is not one in HTTP/1.1."))
        if self._phase is _Phase.HEADERS and self._requests == began:
            self._header_bytes = so_far + len(data)
            if self._header_bytes > _HEADER_BYTES:
                self._fail(HeadersTooLarge(_TOO_LARGE))
        self._watch()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            if self._phase is not _Phase.BODY:
                self.cycle.keep_alive = False  # no other protocol is spoken here, and the parser reads no further
                return
            self._parse_body()
            self._feed(data[offer.args[0] :])

    def _parse_body(self) -> None:
        """Go on with the body of a request that offers another protocol, as Java's HttpClient does with HTTP/2 (RFC 9110, 7.8).

        The parser takes what follows such headers for the other protocol.  A new one is told where the body ends, and nobody hears of it.
        """
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._muted = True
        framing = b"".join(b"%s: %s\r\n" % header for header in self.headers if header[0] in _FRAMING)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n")

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        if self._muted:
            return
        if len(self.pipeline) >= _PIPELINED:
            raise self._note(MalformedHttp(f"More than {_PIPELINED} requests wait on this connection for their answers."))
        self._phase = _Phase.HEADERS
        self._requests += 1
        self._header_bytes = self._header_size = self._chunks = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """A piece of the target."""
        if not self._muted:
            self._count_header(len(url))
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header, or a trailer behind a chunked body."""
        if self._muted:
            return
        self._count_header(len(name) + len(value) + _HEADER_COST)
        if self._phase is _Phase.HEADERS:
            super().on_header(name, value)

    def _count_header(self, size: int) -> None:
        self._header_size += size
        if self._header_size > _HEADER_BYTES:
            raise self._note(HeadersTooLarge(_TOO_LARGE))

    def on_headers_complete(self) -> None:
        """Hand the request to the app, unless where its body ends is open to opinion (request smuggling)."""
        if self._muted:
            self._muted = False
            return
        # The parser refuses two lengths by itself, but takes versions that nobody speaks, and in HTTP/1.0 what that does not have.
        version = self.parser.get_http_version()
        if version != "1.1" and (version != "1.0" or any(name == b"transfer-encoding" for name, _ in self.headers)):
            raise self._note(MalformedHttp("The request is not one in HTTP/1.1."))
        path = self.url.partition(b"?")[0].decode("latin-1")
        if self._reserved and path not in (*PROBES, "/metrics") and not path.endswith(_PROBE_ENDS):
            raise self._note(TooManyConnections(_TOO_MANY))
        super().on_headers_complete()
        if self._reserved:
            self.cycle.keep_alive = False
        self._phase = _Phase.BODY

    def on_chunk_header(self) -> None:
        """One chunk of a body."""
        self._chunks += 1
        if self._chunks > _CHUNKS:
            raise self._note(MalformedHttp(f"The body comes in more than {_CHUNKS:,} chunks; send larger ones."))

    def on_message_complete(self) -> None:
        """The last byte of a request, or of the headers of one that offers another protocol."""
        if self.parser.should_upgrade() and any(name in _FRAMING for name, _ in self.headers):
            return  # its body is still to come
        self._phase = _Phase.IDLE if self.cycle.response_complete else _Phase.WHOLE
        super().on_message_complete()

    def _note(self, error: PocketQAError) -> PocketQAError:
        self._wrong = error
        return error

    # What leaves

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering, self._task = cycle, None
        super()._start_asgi_task(cycle, partial(self._answer, app, cycle))

    async def _answer(
        self, app: ASGI3Application, cycle: RequestResponseCycle, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if cycle.disconnected:  # before its turn came
            return
        task = self._task = asyncio.current_task()
        assert task is not None
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._departed:
                raise
            task.uncancel()  # by us, and all that it was for has ended
        finally:
            if self._task is task:
                self._task = None

    def on_response_complete(self) -> None:
        """An answer has been written; the next request on the connection has its turn."""
        if self._phase is _Phase.WHOLE and not self.pipeline:
            self._phase = _Phase.IDLE
        super().on_response_complete()
        self._unset_keepalive_if_required()  # `_watch` does it
        self._watch()

    def _fail(self, error: PocketQAError) -> None:
        """What arrives cannot be a request.  Earlier ones on the connection still get their answers, and then it closes."""
        if self._deaf or self.transport.is_closing():
            return
        broken = self.cycle if self._phase is _Phase.BODY else None
        unfinished = [cycle for cycle, _ in self.pipeline]  # newest first
        if self._answering is not None and not self._answering.response_complete:
            unfinished.append(self._answering)
        whole = [cycle for cycle in unfinished if cycle is not broken]
        self._deaf = True
        if whole:
            if broken is not None:
                self.pipeline.popleft()
            whole[0].keep_alive = False
        elif broken is not None and broken.response_started:
            broken.keep_alive = False
            if broken.response_complete:
                self.transport.close()
        elif broken is not None:
            # Where the app was called already, it is stopped, and what it writes down about the request is this error.
            kind = kind_of(type(error))
            broken.scope.update({"pocketqa.error": kind.code, "pocketqa.status": int(kind.status)})  # type: ignore[misc]
            self._depart()
            (self._turn_away if self._task is None else self._refuse)(error, broken.scope["path"])
        else:
            self._turn_away(error)

    def _turn_away(self, error: PocketQAError, path: str = "") -> None:
        """Refuse what the app has not heard of, and tell it."""
        self._refuse(error, path)
        self._refused(self.client[0] if self.client else "", error)

    def _refuse(self, error: PocketQAError, path: str = "") -> None:
        """An error answered here, without the app.  path: "" where it is not known yet."""
        kind = kind_of(type(error))
        body = json.dumps(error_document(kind.code, str(error), kind.hint, path)).encode()
        headers = [*self.server_state.default_headers]
        headers += [(name.encode(), value.encode()) for name, value in (SECURITY_HEADERS | error_headers(error)).items()]
        headers += [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        status = HTTPStatus(kind.status)
        head = b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode())
        self.transport.write(head + b"".join(b"%s: %s\r\n" % header for header in headers) + b"\r\n" + body)
        self._lingering.linger(_TURNED_AWAY_SECONDS if isinstance(error, TooManyConnections) else math.inf)

    # Deadlines

    def _watch(self) -> None:
        """One timer at a time, for the phase that the connection is in; bytes that trickle in do not set it back."""
        phase = self._phase
        if phase is _Phase.WHOLE or self.pipeline or self._deaf or self.transport.is_closing():
            self._disarm()
            return
        wanted = (phase, self._requests)
        if self._deadline_of == wanted:
            return
        self._disarm()
        settings = self._settings
        seconds = {_Phase.IDLE: settings.idle_seconds, _Phase.HEADERS: settings.header_seconds, _Phase.BODY: settings.body_seconds}[phase]
        if self._requests == 0:
            seconds = min(seconds, settings.header_seconds)
        if self._reserved:
            seconds = min(seconds, _RESERVED_SECONDS)
        self._deadline, self._deadline_of = self.loop.call_later(seconds, self._too_late), wanted

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._deadline_of = None

    def _too_late(self) -> None:
        self._disarm()
        if self._phase is _Phase.IDLE:
            self.transport.close()
            return
        part, seconds = ("headers", self._settings.header_seconds) if self._phase is _Phase.HEADERS else ("body", self._settings.body_seconds)
        self._fail(RequestTimeout(f"The {part} did not arrive whole within {seconds:g} seconds."))

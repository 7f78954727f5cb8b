"""What happens to each request and response whatever the endpoint: trace, headers, counting, and the line in the access log.

The log holds no text of the caller's: the route's template instead of the path, no query, no header.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.assets import SECURITY_HEADERS
from service.edge import tracing
from service.edge.access_log import AccessLog, Entry
from service.edge.tracing import Trace
from service.errors import TABLE
from service.metrics import METHODS, OTHER, Metrics

_SECURITY = [(name.encode("ascii"), value.encode("ascii")) for name, value in SECURITY_HEADERS.items()]
_CODES = frozenset(kind.code for kind in TABLE.values())
# nginx's status for a client that left; nobody receives it.
DEPARTED = 499
_UNMATCHED = "unmatched"


@dataclass(slots=True)
class _Sent:
    """What of the response has left."""

    status: int = 0
    size: int = 0


class Exchange:
    """The outermost layer of the app.  log: None writes no lines."""

    def __init__(self, app: ASGIApp, metrics: Metrics, log: AccessLog | None) -> None:
        self._app = app
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and record it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        began = time.perf_counter()
        trace = tracing.begin([value for name, value in scope["headers"] if name == b"traceparent"])
        tracing.current.set(trace)  # for as long as this request's task, and for what the server logs at its end
        sent = _Sent()
        ours = [(b"traceparent", trace.header), (b"x-request-id", trace.span_id.encode("ascii"))]

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent.status = message["status"]
                headers = message["headers"] = [*message.get("headers", ()), *ours]
                present = {name for name, _ in headers}
                headers.extend(header for header in _SECURITY if header[0] not in present)
            else:
                sent.size += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:
            sent.status = scope.get("pocketqa.status", DEPARTED)  # another where the connection was answered without the app
            raise
        finally:
            self._record(scope, trace, sent, time.perf_counter() - began)

    def _record(self, scope: Scope, trace: Trace, sent: _Sent, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", _UNMATCHED)
        error = scope.get("pocketqa.error")
        self._metrics.http(route, scope["method"], sent.status, seconds)
        if error in _CODES:
            self._metrics.rejected(error)
        if self._log is not None:
            self._log.write(_entry(scope, route, trace, sent, seconds, error))


def _entry(scope: Scope, route: str, trace: Trace, sent: _Sent, seconds: float, error: str | None) -> Entry:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    client = scope.get("client")
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "method": scope["method"] if scope["method"] in METHODS else OTHER,
        "route": route,
        "status": sent.status,
        "ms": round(1000 * seconds, 3),
        "request_bytes": int(lengths[0]) if lengths and lengths[0].isdigit() and len(lengths[0]) < 16 else None,
        "response_bytes": sent.size,
        "client": client[0] if client else None,
        "key": scope.get("pocketqa.key"),
        "error": error,
        "trace_id": trace.trace_id,
        "parent_id": trace.parent_id,
        "request_id": trace.span_id,
    }

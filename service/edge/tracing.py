"""W3C trace context: a request's trace id is kept or made, and each request is a new span of it.  https://www.w3.org/TR/trace-context/"""

from __future__ import annotations

import logging
import os
import re
from contextvars import ContextVar
from dataclasses import dataclass

# Ids of zeros only and version ff are invalid; a later version may add fields after the four.
_TRACEPARENT = re.compile(rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_SAMPLED = 1

current: ContextVar[Trace | None] = ContextVar("current", default=None)


@dataclass(frozen=True, slots=True)
class Trace:
    """This request's place in a trace.  parent_id: the caller's span, None where the trace begins here."""

    trace_id: str
    span_id: str
    parent_id: str | None
    sampled: bool

    @property
    def header(self) -> bytes:
        """As a `traceparent` that names this service's span."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}".encode("ascii")


def begin(traceparents: list[bytes]) -> Trace:
    """A new span: of the caller's trace where exactly one valid header names it, else of a new trace."""
    span_id = os.urandom(8).hex()
    if len(traceparents) == 1 and (found := _TRACEPARENT.fullmatch(traceparents[0])):
        version, trace_id, parent_id, flags, more = found.groups()
        if version != b"00" or more is None:
            return Trace(trace_id.decode(), span_id, parent_id.decode(), bool(int(flags, 16) & _SAMPLED))
    return Trace(os.urandom(16).hex(), span_id, None, sampled=False)


class LogFilter(logging.Filter):
    """Gives each record the attribute `trace`, for a format to end with: which request it is about, or nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Lets everything through."""
        trace = current.get()
        record.trace = f" (trace {trace.trace_id}, request {trace.span_id})" if trace is not None else ""
        return True

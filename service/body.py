"""Reading a request body strictly: bounded while it arrives, one JSON object, UTF-8, nothing lenient.

FastAPI's own reading takes a body of any size and whatever `json.loads` takes: NaN, repeated keys, UTF-16.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType

_DISCARD_BYTES = 64 << 20
_DISCARD_SECONDS = 1.0


class JsonRequest(Request):
    """A request whose body has been read and parsed already."""

    def __init__(self, request: Request, body: bytes, document: dict[str, Any]) -> None:
        super().__init__(request.scope, request.receive)
        self._bytes = body
        self._document = document

    async def body(self) -> bytes:
        """The bytes as they came."""
        return self._bytes

    async def json(self) -> dict[str, Any]:
        """What `parse_strict` made of them."""
        return self._document


class StrictRoute(APIRoute):
    """A route that refuses a bad body before FastAPI sees it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with strict reading in front where the endpoint takes a body."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def strict(request: Request) -> Response:
            check_media_type(request)
            body = await read_bounded(request, request.app.state.service.settings.max_body_bytes)
            return await handler(JsonRequest(request, body, parse_strict(body)))

        return strict


def check_media_type(request: Request) -> None:
    """Raises UnsupportedMediaType for anything but uncompressed JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        found = "another one" if media_type else "none"
        raise UnsupportedMediaType(f"Expected the content type application/json, found {found}.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("Expected a body without content encoding; compressed bodies are not taken.")


async def read_bounded(request: Request, limit: int) -> bytes:
    """The body, of at most `limit` bytes.  Raises BodyTooLarge as soon as more is announced or has arrived."""
    chunks = request.stream()
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        if "expect" not in request.headers:  # who asks first has sent nothing yet, and reading would invite it
            await discard(chunks)
        raise BodyTooLarge(f"The body has {int(announced):,} bytes; at most {limit:,} are taken.")
    parts: list[bytes] = []
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            parts.clear()
            await discard(chunks)
            raise BodyTooLarge(f"The body has more than {limit:,} bytes, the most that is taken.")
        parts.append(chunk)
    return b"".join(parts)


async def discard(chunks: AsyncIterator[bytes]) -> None:
    """Let the caller finish sending, within bounds: a connection that is closed on a sender is reset, and the answer is lost with it."""
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for chunk in chunks:
                size += len(chunk)
                if size > _DISCARD_BYTES:
                    return


def parse_strict(body: bytes) -> dict[str, Any]:
    """One JSON object.  Raises MalformedBody for what is not JSON in UTF-8, InvalidRequest for JSON that no field could hold."""
    if not body:
        raise MalformedBody("The body is empty.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"The body is not UTF-8: see byte {error.start}.") from None
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise MalformedBody(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise MalformedBody("The body is nested too deeply.") from None
    except ValueError:  # the only other one: more digits than Python converts
        raise MalformedBody("The body holds a number with too many digits.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("Expected a JSON object, found another kind of value.")
    return document


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise MalformedBody("The body holds a key twice; which value is meant?")
    return made


def _no_constant(name: str) -> None:
    raise InvalidRequest(f"The body holds {name}, which JSON does not have.")

"""Reading a request body strictly: bounded while it arrives, one JSON object, UTF-8, nothing lenient.

FastAPI's own reading takes a body of any size and whatever `json.loads` takes: NaN, repeated keys, UTF-16.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.errors import BodyTooLarge, InvalidRequest, MalformedBody, UnsupportedMediaType

# No request of ours is nested deeper than 6; Python's parser would take some hundred levels, or as many as the stack holds.
MAX_DEPTH = 32
# Brackets, numbers, commas: what is left of a document without its strings.  A request has a few bytes of it for each text and option.
MAX_STRUCTURE = 64 << 10
MAX_KEYS = 64  # of an object; each that is unknown becomes an error of its own
_BRACKETS = re.compile(r"[\[\]{}]")
# Above so many bytes, or characters, looking through them takes longer than handing the work to a thread.
LARGE = 64 << 10


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

    may_be_untyped = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with strict reading in front where the endpoint takes a body."""
        handler = super().get_route_handler()
        if self.body_field is None:
            return handler

        async def strict(request: Request) -> Response:
            check_media_type(request, self.may_be_untyped)
            body = await read_bounded(request, request.app.state.service.settings.max_body_bytes)
            document = parse_strict(body) if len(body) < LARGE else await asyncio.to_thread(parse_strict, body)
            return await handler(JsonRequest(request, body, document))

        return strict


class UntypedRoute(StrictRoute):
    """A strict route that also takes a body without a content type, for clients that send none; a browser's page may not use that.

    (A page can send such a body to any host without being asked for leave first, but never without its Origin.)
    Its router needs strict_content_type=False.
    """

    may_be_untyped = True


def check_media_type(request: Request, may_be_untyped: bool = False) -> None:
    """Raises UnsupportedMediaType for anything but uncompressed JSON."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    untyped = may_be_untyped and "content-type" not in request.headers and "origin" not in request.headers
    if media_type != "application/json" and not untyped:
        found = "another one" if media_type else "none"
        raise UnsupportedMediaType(f"Expected the content type application/json, found {found}.")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("Expected a body without content encoding; compressed bodies are not taken.")


async def read_bounded(request: Request, limit: int) -> bytes:
    """The body, of at most `limit` bytes.  Raises BodyTooLarge as soon as more is announced or has arrived; the server sees to the rest."""
    announced = request.headers.get("content-length", "").lstrip("0")
    if announced.isdecimal() and int(announced) > limit:
        raise BodyTooLarge(f"The body has {int(announced):,} bytes; at most {limit:,} are taken.")
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BodyTooLarge(f"The body has more than {limit:,} bytes, the most that is taken.")
        parts.append(chunk)
    return b"".join(parts)


def parse_strict(body: bytes) -> dict[str, Any]:
    """One JSON object.  Raises MalformedBody for what is not JSON in UTF-8, InvalidRequest for JSON that no field could hold."""
    if not body:
        raise MalformedBody("The body is empty.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedBody(f"The body is not UTF-8: see byte {error.start}.") from None
    check_structure(text)
    try:
        document = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise MalformedBody(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except ValueError:  # the only other one: more digits than Python converts
        raise MalformedBody("The body holds a number with too many digits.") from None
    if not isinstance(document, dict):
        raise InvalidRequest("Expected a JSON object, found another kind of value.")
    return document


def check_structure(text: str) -> None:
    """Raises MalformedBody for a document that is nested too deeply or is mostly brackets and commas, before anything is made of it."""
    # Without escaped backslashes and then escaped quotes, every quote begins or ends a string.  (A pattern for strings takes a hundred times longer.)
    if "\\" in text:
        text = text.replace("\\\\", "").replace('\\"', "")
    structure = "".join(text.split('"', 2 * MAX_STRUCTURE)[::2])
    if len(structure) > MAX_STRUCTURE:
        raise MalformedBody("The body holds more brackets, commas and numbers than any request needs.")
    depth = 0
    for bracket in _BRACKETS.findall(structure):
        depth += 1 if bracket in "[{" else -1
        if depth > MAX_DEPTH:
            raise MalformedBody(f"The body is nested too deeply: more than {MAX_DEPTH} levels.")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise MalformedBody(f"The body holds an object of {len(pairs):,} keys; no request needs more than {MAX_KEYS}.")
    made = dict(pairs)
    if len(made) != len(pairs):
        raise MalformedBody("The body holds a key twice; which value is meant?")
    return made


def _no_constant(name: str) -> None:
    raise InvalidRequest(f"The body holds {name}, which JSON does not have.")

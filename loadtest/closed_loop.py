"""A closed loop of users over HTTP/1.1, in one process and one thread: a user asks again as soon as it has its answer.

The client is kept small on purpose: it shares the machine with the server, and what it costs must not hide what the server does.  Requests are bytes
made beforehand; a response is read by its content-length; nothing is parsed until the block is over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pocketqa.errors import PocketQAError

READ_BYTES = 1 << 20
TIMEOUT = 120.0  # seconds for one exchange


class ExchangeError(PocketQAError):
    """The server closed the connection, or answered with something that is no response."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request and its response.  number: which request; seconds: from the first byte sent to the last received; ended: on the clock."""

    number: int
    status: int
    seconds: float
    ended: float
    headers: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Block:
    """What one block measured: the exchanges between those that warm up and those that end it, in the order of the requests; the seconds in which as
    many answers came; the client's CPU time as a share of these."""

    exchanges: tuple[Exchange, ...]
    seconds: float
    client_share: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.exchanges) / self.seconds


def post(path: str, body: bytes, host: str = "127.0.0.1") -> bytes:
    """The bytes of a request with a JSON body."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def run_block(port: int, requests: Sequence[bytes], users: int) -> Block:
    """Send the requests in their order from so many users at once.

    The first `users` requests warm up, and the last only keep the server as busy as before while those before them are answered: as many requests are
    under way at every moment that is measured as there are users.  Raises ExchangeError.
    """
    if len(requests) <= 2 * users:
        raise ValueError(f"Expected more than {2 * users} requests for {users} users, which warm up and end on {users} each; found {len(requests)}.")
    failed: list[BaseException] = []
    try:
        return asyncio.run(_block(port, requests, users))
    except* (ExchangeError, OSError, TimeoutError) as group:
        failed += group.exceptions
    raise ExchangeError(f"Expected a server on port {port} to answer, found: {type(failed[0]).__name__}: {failed[0]}") from failed[0]


async def _block(port: int, requests: Sequence[bytes], users: int) -> Block:
    queue = iter(enumerate(requests))
    done: list[Exchange] = []
    marks: list[tuple[float, float]] = []  # (time, CPU seconds) when counting begins and ends

    async def user() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=READ_BYTES)
        try:
            for number, request in queue:
                done.append(await asyncio.wait_for(exchange(reader, writer, number, request), TIMEOUT))
                if len(done) in (users, len(requests) - users):
                    marks.append((done[-1].ended, time.process_time()))
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(users):
            group.create_task(user())
    (began, cpu), (ended, cpu_after) = marks
    counted = sorted((one for one in done if users <= one.number < len(requests) - users), key=lambda one: one.number)
    return Block(tuple(counted), ended - began, (cpu_after - cpu) / (ended - began))


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, request: bytes) -> Exchange:
    """One request and its response on a kept connection.  Raises ExchangeError."""
    began = time.perf_counter()
    writer.write(request)
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(_content_length(head))
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
        raise ExchangeError(f"Expected a whole HTTP response to request {number}, found the connection's end: {error}.") from error
    ended = time.perf_counter()
    return Exchange(number, _status(head), ended - began, ended, head, body)


def header(head: bytes, name: str) -> str | None:
    """A header's value out of the bytes before a body."""
    wanted = name.lower().encode()
    for line in head.split(b"\r\n")[1:]:
        key, colon, value = line.partition(b":")
        if colon and key.strip().lower() == wanted:
            return value.strip().decode("latin-1")
    return None


def _status(head: bytes) -> int:
    parts = head.split(b" ", 2)
    if len(parts) < 2 or not parts[0].startswith(b"HTTP/1.") or not parts[1][:3].isdigit():
        raise ExchangeError("Expected an HTTP/1.1 response, found something else.")
    return int(parts[1][:3])


def _content_length(head: bytes) -> int:
    length = header(head, "content-length")
    if length is None or not length.isdigit():
        raise ExchangeError("Expected a response with a content-length, found none: this client reads no other.")
    return int(length)

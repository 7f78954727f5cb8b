"""The app behind the real server, in a thread, and raw sockets to talk to it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import pytest
import uvicorn

from service.app import create_app
from service.edge.layers import GatedApp
from service.edge.server import config
from service.models import Pair
from service.serve import listen
from service.settings import Settings

END = b"\r\n\r\n"


@dataclass(frozen=True)
class Running:
    """A served app and where it listens."""

    app: GatedApp
    port: int
    server: uvicorn.Server

    def connect(self) -> socket.socket:
        """A connection; nothing waits longer than 10 seconds on it."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one series, 0 where it has none yet."""
        return self.app.state.service.metrics.registry.get_sample_value(name, labels) or 0.0


Serve = Callable[..., AbstractContextManager[Running]]


@contextmanager
def running(app: GatedApp, settings: Settings) -> Iterator[Running]:
    """The app on a free port until the end of the block."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(config(app, settings))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield Running(app, listener.getsockname()[1], server)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="session")
def serve(pair: Pair, model_folder_free_settings: Settings) -> Serve:
    """serve(header_seconds=0.5): the app with the tiny pair and these settings, on a port of its own."""

    def start(pair: Pair = pair, **changes: object) -> AbstractContextManager[Running]:
        settings = replace(model_folder_free_settings, **changes)  # type: ignore[arg-type]
        return running(create_app(settings, pair), settings)

    return start


@pytest.fixture(scope="session")
def served(serve: Serve) -> Iterator[Running]:
    """With short deadlines, so that tests can miss them."""
    with serve(header_seconds=0.5, body_seconds=0.5, idle_seconds=0.9, max_connections=50) as running:
        yield running


def wait_until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Poll until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited for {seconds} seconds"
        time.sleep(0.005)


def read_all(connection: socket.socket) -> bytes:
    """Everything until the server closes its side."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def read_one(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """One response with a content-length, and nothing of the next: status, headers in lower case, body."""
    head = body = b""
    while not head.endswith(END):
        part = connection.recv(1)
        assert part, head
        head += part
    status, headers = parse_head(head.removesuffix(END))
    while missing := int(headers["content-length"]) - len(body):
        part = connection.recv(missing)
        assert part, body
        body += part
    return status, headers, body


def parse_head(head: bytes) -> tuple[int, dict[str, str]]:
    """Status and headers."""
    first, *lines = head.decode("ascii").split("\r\n")
    return int(first.split()[1]), {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


def check_refusal(answer: bytes, status: int, code: str) -> dict[str, str]:
    """One response in the one shape, which ends its connection."""
    head, _, body = answer.partition(END)
    found, headers = parse_head(head)
    assert found == status, answer
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    assert int(headers["content-length"]) == len(body)
    error = json.loads(body)["error"]
    assert error["code"] == code
    assert set(error) == {"code", "message", "hint"}
    return headers


def request(path: str = "/v1/answer", body: bytes = b"", *headers: str, method: str = "POST", length: bool = True, host: str = "localhost") -> bytes:
    """The bytes of a request of JSON."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", *headers]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + END + body

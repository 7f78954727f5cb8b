"""Clients that leave before their answer: the endpoint's work ends, and it is written down."""

from __future__ import annotations

import asyncio
import socket
import struct
import time

from fastapi import Request

from service.app import create_app
from service.edge.layers import GatedApp
from service.models import Pair
from service.settings import Settings
from tests.service.edge.conftest import read_one, request, running, wait_until

ASK = b'{"question": "who?", "context": "built by Ada"}'


class Waiting:
    """An endpoint that reads its body and waits, counting how each of its requests ended."""

    def __init__(self, settings: Settings, pair: Pair) -> None:
        self.app: GatedApp = create_app(settings, pair)
        self.began = self.cancelled = self.finished = 0
        self.gate = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.app.add_api_route("/wait", self.wait, methods=["POST"])

    def open_gate(self) -> None:
        """Let everybody through, from another thread."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.gate.set)

    async def wait(self, request: Request) -> int:
        """Wait for the gate."""
        size = len(await request.body())
        self.loop = asyncio.get_running_loop()
        self.began += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self.finished += 1
        return size


def test_the_endpoint_of_a_client_that_left_is_cancelled(pair: Pair, caplog) -> None:
    settings = Settings(access_log=False)
    waiting = Waiting(settings, pair)
    with running(waiting.app, settings) as served:
        connections = [served.connect() for _ in range(40)]
        for connection in connections:
            connection.sendall(request("/wait", ASK))
        wait_until(lambda: waiting.began == 40)
        for index, connection in enumerate(connections[:30]):
            if index % 2:  # a reset instead of a farewell
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        wait_until(lambda: waiting.cancelled == 30)
        departed = {"route": "/wait", "method": "POST", "status": "499"}
        wait_until(lambda: served.metric("pocketqa_http_request_duration_seconds_count", **departed) == 30)
        waiting.open_gate()
        for connection in connections[30:]:
            status, _, body = read_one(connection)
            assert (status, body) == (200, b"%d" % len(ASK))
            connection.close()
    assert (waiting.cancelled, waiting.finished) == (30, 10)
    assert caplog.records == []  # a departure is no error of ours


def test_a_working_endpoint_is_not_under_the_deadlines(pair: Pair) -> None:
    settings = Settings(access_log=False, header_seconds=0.3, body_seconds=0.3)
    waiting = Waiting(settings, pair)
    with running(waiting.app, settings) as served, served.connect() as connection:
        connection.sendall(request("/wait", ASK))
        wait_until(lambda: waiting.began == 1)
        time.sleep(1)
        waiting.open_gate()
        for _ in range(2):
            status, _, body = read_one(connection)
            assert (status, body) == (200, b"%d" % len(ASK))
            connection.sendall(request("/wait", ASK))


def test_who_leaves_while_sending_its_body_leaves_nothing_behind(pair: Pair, caplog) -> None:
    settings = Settings(access_log=False)
    app = create_app(settings, pair)
    with running(app, settings) as served:
        for _ in range(5):
            with served.connect() as connection:
                connection.sendall(request(body=ASK)[:-3])
        wait_until(lambda: served.metric("pocketqa_http_request_duration_seconds_count", route="/v1/answer", method="POST", status="499") == 5)
        wait_until(lambda: not served.server.server_state.connections)
    assert caplog.records == []


def test_pipelined_requests_of_a_client_that_left_are_not_begun(pair: Pair) -> None:
    settings = Settings(access_log=False)
    waiting = Waiting(settings, pair)
    with running(waiting.app, settings) as served:
        connection = served.connect()
        connection.sendall(request("/wait", ASK) * 5)
        wait_until(lambda: waiting.began == 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        # Reading is paused while requests wait, so that the reset is seen when the first answer is written.
        waiting.open_gate()
        wait_until(lambda: not served.server.server_state.connections)
    assert waiting.began <= 2

"""The client of the benchmark against servers whose behaviour is known."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from loadtest.closed_loop import ExchangeError, header, post, run_block


class Server:
    """Answers each request with its own body after `delay` seconds, and counts how many are under way; `raw` is sent in place of that."""

    def __init__(self, delay: float = 0.0, raw: bytes | None = None) -> None:
        self.delay, self.raw = delay, raw
        self.bodies: list[bytes] = []
        self.under_way = self.most = self.connections = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                length = 0
                while line.strip():
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                    line = stream.readline()
                body = stream.read(length)
                with self._lock:
                    self.bodies.append(body)
                    self.under_way += 1
                    self.most = max(self.most, self.under_way)
                time.sleep(self.delay)
                with self._lock:
                    self.under_way -= 1
                head = f"HTTP/1.1 200 OK\r\nX-Forward-MS: 3.5\r\ncontent-length: {len(body)}\r\n\r\n".encode()
                connection.sendall(head + body if self.raw is None else self.raw)
                if self.raw is not None:
                    return


@contextmanager
def serving(delay: float = 0.0, raw: bytes | None = None) -> Iterator[Server]:
    server = Server(delay, raw)
    try:
        yield server
    finally:
        server.close()


def requests(count: int) -> list[bytes]:
    return [post("/", str(number).encode()) for number in range(count)]


def test_the_requests_between_the_first_and_the_last_are_counted_in_their_order() -> None:
    with serving(0.005) as server:
        block = run_block(server.port, requests(30), users=4)
    assert [one.number for one in block.exchanges] == list(range(4, 26))
    assert [one.body for one in block.exchanges] == [str(number).encode() for number in range(4, 26)]
    assert {one.status for one in block.exchanges} == {200}
    assert sorted(map(int, server.bodies)) == list(range(30))  # each was sent, once
    assert server.connections == 4


def test_as_many_requests_are_under_way_as_there_are_users() -> None:
    with serving(0.02) as server:
        block = run_block(server.port, requests(40), users=5)
    assert server.most == 5
    assert all(one.seconds >= 0.02 for one in block.exchanges)
    # Little's law for a closed loop: five users who each wait at least 20 ms get at most 250 answers a second.
    assert 0 < block.rate <= 5 / 0.02 * 1.1
    assert block.rate == len(block.exchanges) / block.seconds


def test_one_user_waits_for_each_answer() -> None:
    with serving() as server:
        run_block(server.port, requests(10), users=1)
    assert (server.most, server.connections) == (1, 1)
    assert server.bodies == [str(number).encode() for number in range(10)]


def test_the_client_knows_its_own_share() -> None:
    with serving(0.01) as server:
        block = run_block(server.port, requests(12), users=2)
    assert 0 <= block.client_share <= 1.5


@pytest.mark.parametrize("raw", [b"", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b"SSH-2.0-other\r\ncontent-length: 0\r\n\r\n"])
def test_what_is_no_response_is_an_error(raw: bytes) -> None:
    with serving(raw=raw) as server, pytest.raises(ExchangeError, match=f"a server on port {server.port} to answer"):
        run_block(server.port, requests(5), users=1)


def test_nobody_there_is_an_error() -> None:
    with serving() as server:
        pass
    with pytest.raises(ExchangeError, match="ConnectionRefusedError"):
        run_block(server.port, requests(9), users=4)


def test_a_block_needs_more_than_what_warms_up_and_ends_it() -> None:
    with pytest.raises(ValueError, match="more than 8 requests for 4 users"):
        run_block(1, requests(8), users=4)


def test_headers_are_found_whatever_their_case() -> None:
    assert header(b"HTTP/1.1 200 OK\r\nX-Forward-MS:  3.5 \r\n\r\n", "x-forward-ms") == "3.5"
    assert header(b"HTTP/1.1 200 OK\r\n\r\n", "x-forward-ms") is None

"""Attacks of some size on a server in its own process, and what a probe and a plain question notice of them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.service.edge.conftest import read_all, read_one, request

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[3]
ASK = b'{"question": "who?", "context": "built by Ada"}'
LIVE = request("/livez", method="GET", length=False)
# What a probe may take; a busy machine adds what it takes when nobody attacks.
PROBE_SECONDS = 0.05


class Server:
    """The process and its port."""

    def __init__(self, folder: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "tests.service.edge.tiny_server", str(folder), "--access-log", "no", *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())
        self.ask()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def ask(self, sent: bytes = LIVE) -> tuple[int, bytes]:
        """Status and body of one request on a connection of its own."""
        with self.connect() as connection:
            connection.sendall(sent)
            status, _, body = read_one(connection)
            return status, body

    def resident_bytes(self) -> int:
        """Of its process."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * 4096

    def sockets(self) -> int:
        """Of its process; what closes while they are counted does not count."""
        count = 0
        for file in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                count += "socket" in str(file.readlink())
        return count


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    running.process.kill()
    running.process.communicate(timeout=20)


class Probe:
    """Asks /livez again and again; seconds of each."""

    def __init__(self, server: Server) -> None:
        self.seconds: list[float] = []
        self._server = server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Probe:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._end.wait(0.01):
            began = time.perf_counter()
            assert self._server.ask() == (200, b'{"status":"alive"}')
            self.seconds.append(time.perf_counter() - began)

    @property
    def p99(self) -> float:
        assert len(self.seconds) >= 20
        return sorted(self.seconds)[int(0.99 * (len(self.seconds) - 1))]


def quiet_p99(server: Server) -> float:
    with Probe(server) as probe:
        time.sleep(3)
    return probe.p99


def attack(server: Server, name: str, act: Callable[[], None]) -> None:
    """Probe while it lasts."""
    allowed = PROBE_SECONDS + quiet_p99(server)
    with Probe(server) as probe:
        act()
    print(f"\n{name}: /livez p99 {1000 * probe.p99:.1f} ms of {len(probe.seconds)} probes, allowed {1000 * allowed:.1f}")
    assert probe.p99 < allowed
    assert server.ask(request(body=ASK))[0] == 200


def test_five_hundred_slow_clients_are_cut_in_ten_seconds_and_nobody_waits_for_them(server: Server) -> None:
    connections = [server.connect() for _ in range(500)]
    began = time.monotonic()
    for index, connection in enumerate(connections):
        connection.sendall(b"POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nX-a: b\r\n" if index % 2 else request(body=ASK)[:-5])

    def trickle() -> None:
        while time.monotonic() - began < 8:
            time.sleep(1)
            for connection in connections[1::2]:
                with suppress(OSError):
                    connection.send(b"X-a: b\r\n")
            asked = time.monotonic()
            assert server.ask(request(body=ASK))[0] == 200
            assert time.monotonic() - asked < 1

    attack(server, "500 slow clients", trickle)
    for connection in connections:
        assert read_all(connection).startswith(b"HTTP/1.1 408 ")
        connection.close()
    assert time.monotonic() - began < 25


def test_bodies_of_twenty_megabytes_cost_no_time_and_no_memory(server: Server) -> None:
    announced = request("/v1/answer", b"a" * 20_000_000)
    chunk = b"100000\r\n" + b"a" * (1 << 20) + b"\r\n"
    chunked = request("/v1/answer", b"", "Transfer-Encoding: chunked", length=False) + chunk * 19
    before = server.resident_bytes()
    most = 0

    def send() -> None:
        nonlocal most
        for _ in range(10):
            for body in (announced, chunked):
                with server.connect() as connection:
                    connection.sendall(body)
                    assert read_all(connection).startswith(b"HTTP/1.1 413 ")
                most = max(most, server.resident_bytes())
                time.sleep(0.3)

    attack(server, "20 MB bodies", send)
    print(f"memory + {(most - before) / 2**20:.1f} MiB")
    assert most - before < 50 << 20


def test_an_announced_body_is_refused_in_a_fifth_of_a_second(server: Server) -> None:
    seconds = []
    for _ in range(20):
        with server.connect() as connection:
            began = time.monotonic()
            connection.sendall(request("/v1/answer", b"", "Content-Length: 20000000", length=False) + b"a" * 50_000)
            assert read_one(connection)[0] == 413
            seconds.append(time.monotonic() - began)
    assert sorted(seconds)[len(seconds) // 2] < 0.2


MEBIBYTE = (1 << 20) - 64
BOMBS = {
    "brackets": b"[" * MEBIBYTE,
    "objects": b'{"a":' * (MEBIBYTE // 5),
    "empty strings": b"[" + b'"",' * (MEBIBYTE // 3) + b'""]',
    "numbers": b"[" + b"1," * (MEBIBYTE // 2) + b"1]",
    "digits": b'{"question":' + b"9" * MEBIBYTE + b"}",
    "escapes": b'{"question":"' + b"\\u0041" * (MEBIBYTE // 6) + b'"}',
    "backslashes without end": b'"' + b"\\\\" * (MEBIBYTE // 2),
    "white space": b" " * MEBIBYTE,
}


def test_bombs_of_json_hold_up_nobody(server: Server) -> None:
    def explode() -> None:
        for _ in range(20):
            for name, bomb in BOMBS.items():
                status, body = server.ask(request(body=bomb))
                assert status in (400, 422), (name, status)
                assert set(json.loads(body)) == {"error"}

    attack(server, "bombs of JSON", explode)


def test_connections_that_come_and_go_leave_nothing(server: Server) -> None:
    for _ in range(300):
        server.connect().close()
    for _ in range(300):
        with server.connect() as connection:
            connection.sendall(request(body=ASK)[:-1])
    end = time.monotonic() + 20
    while server.sockets() > 8:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert server.ask(request(body=ASK))[0] == 200

"""HAProxy with the shipped configuration, on little servers: who is asked, who is not, and what a caller sees when one ends."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtest import balancer
from loadtest.balancer import Balancer, NoBalancer
from loadtest.closed_loop import header, post
from loadtest.open_loop import run_open_loop
from loadtest.processes import Server, ServerFailed, python

pytestmark = pytest.mark.skipif(shutil.which("haproxy", path=f"{os.environ['PATH']}:{balancer.SBIN}") is None, reason="HAProxy is not installed")

HAPROXY = Path(__file__).parent.parent.parent / "docker" / "haproxy"


class Replica(ThreadingHTTPServer):
    """Answers each POST with its number after `delay` seconds; `ready` is what /readyz says, and `rude` hangs up instead of answering."""

    daemon_threads = True

    def __init__(self, number: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.number, self.delay, self.ready, self.rude = number, 0.0, True, False
        self.asked = 0

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Replica

    def do_GET(self) -> None:
        self._send(200 if self.server.ready else 503, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.asked += 1
        if self.server.rude:
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        time.sleep(self.server.delay)
        self._send(200, {"replica": self.server.number})

    def _send(self, status: int, document: dict[str, int]) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        with suppress(OSError):  # hung up
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextmanager
def balanced(count: int = 2) -> Iterator[tuple[Balancer, list[Replica]]]:
    """So many replicas behind HAProxy."""
    with ExitStack() as stack:
        replicas = [stack.enter_context(Replica(number)) for number in range(1, count + 1)]
        for replica in replicas:
            threading.Thread(target=replica.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(replica.shutdown)
        front = Balancer([replica.port for replica in replicas])
        stack.callback(front.stop)
        front.wait(30)
        yield front, replicas


def until(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < ends, "waited for 15 seconds"
        time.sleep(0.02)


def ask(front: Balancer, count: int = 1, seconds: float = 0.0) -> list[tuple[int, str | None]]:
    """Status and replica of so many questions, sent over so many seconds."""
    sent = run_open_loop(front.port, [post("/v1/answer", b"{}")] * count, [seconds * at / count for at in range(count)])
    return [(one.status, header(one.headers, "x-replica")) for one in sent]


@pytest.mark.parametrize("others", [[], ["-f", str(HAPROXY / "replicas.cfg")]], ids=["folder", "files"])
def test_haproxy_accepts_the_configuration_of_compose(others: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POCKETQA_BIND", "*:8080")
    monkeypatch.setenv("PATH", f"{balancer.SBIN}:{os.environ['PATH']}")
    words = ["haproxy", "-c", "-f", str(HAPROXY / "haproxy.cfg" if others else HAPROXY), *others]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()


def test_questions_are_spread_and_metrics_are_not_shown() -> None:
    with balanced() as (front, replicas):
        assert set(ask(front, 20, 0.5)) == {(200, "replica1"), (200, "replica2")}
        assert min(replica.asked for replica in replicas) >= 5
        for path in ("/metrics", "/metrics/", "/%6detrics/?x=1"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(f"{front.url}{path}", timeout=10)
            assert refused.value.code == 404
            refused.value.close()


def test_the_one_with_the_fewest_under_way_is_asked() -> None:
    with balanced() as (front, (slow, quick)):
        slow.delay = 3.0
        answers = ask(front, 20, 1.0)
        assert {status for status, _ in answers} == {200}
        assert slow.asked <= 3  # one is under way, and it has more than the other until that is done
        assert quick.asked >= 17


def test_a_replica_that_drains_is_asked_no_more_and_finishes_what_it_has() -> None:
    with balanced() as (front, (leaving, staying)):
        leaving.delay = staying.delay = 2.0
        under_way: list[tuple[int, str | None]] = []
        # One after the other: two at the same instant may both go to one replica, each by a thread of HAProxy that does not see the other yet.
        thread = threading.Thread(target=lambda: under_way.extend(ask(front, 2, 1.0)))
        thread.start()
        until(lambda: leaving.asked == 1 and staying.asked == 1)
        leaving.ready, staying.delay = False, 0.0
        until(lambda: {front.ready() for _ in range(4)} == {"replica2"})
        assert set(ask(front, 6)) == {(200, "replica2")}
        thread.join()
        assert sorted(under_way) == [(200, "replica1"), (200, "replica2")]
        leaving.ready = True
        until(lambda: front.ready() == "replica1")


def test_a_question_that_is_left_without_an_answer_goes_to_the_other() -> None:
    with balanced() as (front, (rude, polite)):
        rude.rude = True
        assert set(ask(front, 6, 0.3)) == {(200, "replica2")}
        assert rude.asked >= 1  # it was asked, and what it was asked was asked again
        assert polite.asked == 6


def test_when_nobody_is_there_a_caller_is_told_so_in_the_form_of_the_service() -> None:
    with balanced() as (front, replicas):
        for replica in replicas:
            replica.ready = False
        until(lambda: ask(front)[0][0] == 503)  # the balancer has asked them
        (one,) = run_open_loop(front.port, [post("/v1/answer", b"{}")], [0.0])
        assert (one.status, header(one.headers, "retry-after"), header(one.headers, "content-type")) == (503, "1", "application/json")
        assert json.loads(one.body)["error"].keys() == {"code", "message", "hint"}


def test_one_of_two_processes_is_killed_under_load_and_every_caller_is_answered() -> None:
    servers = [Server(f"stand-in {at}", python("tests.loadtest.stand_in"), ()) for at in (1, 2)]
    front = None
    try:
        for server in servers:
            server.wait(60)
        front = Balancer([server.port for server in servers])
        front.wait(30)
        body = json.dumps({"question": "Who built the mill?", "context": "Ada Marsh built it.", "model": "student"}).encode()
        killer = threading.Timer(1.0, servers[0].process.kill)
        killer.start()
        sent = run_open_loop(front.port, [post("/v1/answer", body)] * 200, [at / 100 for at in range(200)])
        killer.join()
        assert {one.status for one in sent} <= {200, 502, 503}  # nobody is cut off or left waiting
        assert sum(one.status == 200 for one in sent) >= 190
        late = [one for one in sent if one.intended > 1.8]
        assert {(one.status, header(one.headers, "x-replica")) for one in late} == {(200, "replica2")}
    finally:
        for running in (*servers, front):
            if running is not None:
                running.stop()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(NoBalancer, match=r"found none: run this from a checkout"):
        Balancer([1], config=tmp_path / "none.cfg")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(balancer, "SBIN", str(tmp_path))
    with pytest.raises(NoBalancer, match=r"Expected HAProxy, found none\. Install it: apt-get install haproxy"):
        Balancer([1])


def test_a_configuration_that_is_refused_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "haproxy.cfg").write_text("frontend questions\n    nonsense\n", encoding="utf-8")
    front = Balancer([1], config=tmp_path / "haproxy.cfg")
    try:
        with pytest.raises(ServerFailed, match=r"Expected HAProxy to run, found that it ended\. It said: .*"):
            front.wait(30)
    finally:
        front.stop()

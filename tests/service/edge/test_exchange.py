"""What every exchange has: a trace, headers that protect, a count, and a line in the log that tells nothing of the texts."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.edge import tracing
from service.edge.access_log import AccessLog
from service.edge.layers import GatedApp
from service.models import Pair
from service.settings import Settings
from tests.service.edge.conftest import read_all, read_one, request, running, wait_until

ROOT = Path(__file__).parents[3]
ASK = {"question": "who is s3cret?", "context": "built by Ada, s3cret"}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Lines(io.StringIO):
    """What was written, as documents."""

    def documents(self) -> list[Any]:
        """A line each."""
        return [json.loads(line) for line in self.getvalue().splitlines()]


@pytest.fixture
def logged(pair: Pair, model_folder_free_settings: Settings) -> tuple[GatedApp, Lines, Settings]:
    lines = Lines()
    settings = replace(model_folder_free_settings, header_seconds=0.3)
    app = create_app(settings, pair)
    app.access_log = AccessLog(lines)
    return app, lines, settings


def test_a_trace_goes_on_or_begins(client: TestClient) -> None:
    answer = client.get("/livez", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    version, trace, span, flags = answer.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", TRACE, "01")
    assert span != PARENT and re.fullmatch("[0-9a-f]{16}", span)
    assert answer.headers["x-request-id"] == span
    first, second = (client.get("/livez").headers["traceparent"] for _ in range(2))
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-00", first)
    assert first != second


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        (f"00-{TRACE}-{PARENT}-00", True),
        (f"01-{TRACE}-{PARENT}-00", True),
        (f"cc-{TRACE}-{PARENT}-00-what-the-future-brings", True),
        (f"00-{TRACE}-{PARENT}-00-more", False),
        (f"ff-{TRACE}-{PARENT}-00", False),
        (f"00-{'0' * 32}-{PARENT}-00", False),
        (f"00-{TRACE}-{'0' * 16}-00", False),
        (f"00-{TRACE.upper()}-{PARENT}-00", False),
        (f"00-{TRACE}-{PARENT}", False),
        (f" 00-{TRACE}-{PARENT}-00", False),
        ("", False),
        ("00-" + "a" * 10_000, False),
    ],
)
def test_only_a_valid_traceparent_is_gone_on_with(header: str, kept: bool) -> None:
    found = tracing.begin([header.encode()])
    assert (found.trace_id == TRACE) == kept
    assert found.parent_id == (PARENT if kept else None)
    assert re.fullmatch(r"00-(?!0{32})[0-9a-f]{32}-[0-9a-f]{16}-0[01]", found.header.decode())


def test_two_traceparents_are_none() -> None:
    assert tracing.begin([f"00-{TRACE}-{PARENT}-01".encode()] * 2).trace_id != TRACE


def test_every_response_is_protected(client: TestClient) -> None:
    for response in (client.get("/"), client.post("/v1/answer", json=ASK), client.post("/v1/answer", content=b"{"), client.get("/nothing")):
        assert response.headers["content-security-policy"].startswith("default-src 'self'; base-uri 'none'")
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "server" not in response.headers


def test_a_line_for_each_request_without_its_texts(logged: tuple[GatedApp, Lines, Settings]) -> None:
    app, lines, _ = logged
    with TestClient(app) as client:
        sent = client.post("/v1/answer?q=s3cret", json=ASK, headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "user-agent": "s3cret"})
        client.get("/s3cret")
        client.post("/v1/answer", json=ASK | {"top_k": "s3cret"})
        client.request("S3CRET", "/livez")
    answered, missing, invalid, strange = lines.documents()
    assert "s3cret" not in lines.getvalue().lower()
    assert (answered["method"], answered["route"], answered["status"], answered["error"]) == ("POST", "/v1/answer", 200, None)
    assert (answered["trace_id"], answered["parent_id"]) == (TRACE, PARENT)
    assert answered["request_id"] == sent.headers["x-request-id"]
    assert (answered["request_bytes"], answered["response_bytes"]) == (len(sent.request.content), len(sent.content))
    assert 0 < answered["ms"] < 20_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", answered["time"])
    assert (missing["route"], missing["status"], missing["error"]) == ("unmatched", 404, "not_found")
    assert (invalid["route"], invalid["status"], invalid["error"]) == ("/v1/answer", 422, "invalid_request")
    assert (strange["method"], strange["status"]) == ("other", 405)


def test_an_unforeseen_error_is_logged_and_counted(logged: tuple[GatedApp, Lines, Settings]) -> None:
    app, lines, _ = logged

    async def broken() -> None:
        raise RuntimeError("s3cret")

    app.add_api_route("/broken", broken)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/broken")
        assert response.headers["x-content-type-options"] == "nosniff"
        labels = {"route": "/broken", "method": "GET", "status": "500"}
        assert app.state.service.metrics.registry.get_sample_value("pocketqa_http_request_duration_seconds_count", labels) == 1
    assert [(line["route"], line["status"], line["error"]) for line in lines.documents()] == [("/broken", 500, "internal")]


def test_what_never_reached_an_endpoint_is_logged_too(logged: tuple[GatedApp, Lines, Settings]) -> None:
    app, lines, settings = logged
    with running(app, settings) as served:
        broken = request("/v1/answer", b"", "Transfer-Encoding: chunked", length=False) + b"x\r\n"  # before the app is called
        for sent in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\n", request("/v1/answer", b"", "Content-Length: 1", length=False)[:-4], broken):
            with served.connect() as connection:
                connection.sendall(sent)
                read_all(connection)
        assert served.metric("pocketqa_rejected_total", reason="malformed_http") == 2
    found = [(line["status"], line["error"], line["client"]) for line in lines.documents()]
    malformed, late = (400, "malformed_http", "127.0.0.1"), (408, "request_timeout", "127.0.0.1")
    assert found == [malformed, late, late, malformed]


def test_a_body_that_came_too_late_is_one_line_with_its_status(pair: Pair, model_folder_free_settings: Settings) -> None:
    lines = Lines()
    settings = replace(model_folder_free_settings, body_seconds=0.3)
    app = create_app(settings, pair)
    app.access_log = AccessLog(lines)
    with running(app, settings) as served, served.connect() as connection:
        connection.sendall(request(body=b"{}")[:-1])
        read_all(connection)
        wait_until(lambda: served.metric("pocketqa_rejected_total", reason="request_timeout") == 1)
    assert [(line["route"], line["status"], line["error"]) for line in lines.documents()] == [("/v1/answer", 408, "request_timeout")]


class Blocked(io.StringIO):
    """A stream whose reader does not read, until it does."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Event()

    def write(self, text: str) -> int:
        self.entered.set()
        assert self.gate.wait(30)
        return super().write(text)


def test_a_log_that_nobody_reads_holds_nobody_up() -> None:
    stream = Blocked()
    log = AccessLog(stream)
    log.write({"number": 0})
    assert stream.entered.wait(20)
    began = time.monotonic()
    for number in range(1, 6_000):
        log.write({"number": number})
    assert time.monotonic() - began < 5
    stream.gate.set()
    log.close()
    log.write({"number": 6_000})
    log.close()
    entries = [json.loads(line) for line in stream.getvalue().splitlines()]
    numbers = [entry["number"] for entry in entries]
    # The thread held one, the queue 4,096; the last came when there was room again.
    assert numbers == [*range(4_097), 6_000]
    assert entries[-1]["dropped_before"] == 6_000 - 4_097


UNREAD = """
import logging, time
from service.edge.access_log import AccessLog, LogHandler
log, handler = AccessLog(), LogHandler()
logging.basicConfig(handlers=[handler])
for number in range(600):
    log.write({"text": "x" * 500})
    logging.warning("y" * 500)
time.sleep(0.5)  # both threads write into a pipe that is full
began = time.monotonic()
logging.error("a message of the event loop")
print(time.monotonic() - began, flush=True)
log.close()
"""


def test_standard_error_that_nobody_reads_holds_up_neither_messages_nor_the_end() -> None:
    command = [sys.executable, "-c", UNREAD]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.wait(timeout=60) == 0
            assert process.stdout is not None and float(process.stdout.read()) < 5
        finally:
            process.kill()


def test_messages_are_written_whole_and_say_what_was_dropped() -> None:
    code = "import logging; from service.edge.access_log import LogHandler as H; logging.basicConfig(handlers=[H()]); logging.error('gr\u00fc\u00df')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT, timeout=60, check=True)
    assert done.stderr.decode("utf-8") == "ERROR:root:gr\u00fc\u00df\n"
    log = AccessLog(stream := io.StringIO())
    log._dropped = 3
    log.write("said")
    log.close()
    assert stream.getvalue() == "said (3 dropped before)\n"


def test_messages_name_the_request_that_they_are_about(pair: Pair, model_folder_free_settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(tracing.LogFilter())
    settings = replace(model_folder_free_settings, access_log=False)
    app = create_app(settings, pair)

    async def broken() -> None:
        raise RuntimeError("a fault of ours")

    app.add_api_route("/broken", broken)
    with running(app, settings) as served, served.connect() as connection:
        connection.sendall(request("/broken", b"", f"traceparent: 00-{TRACE}-{PARENT}-01", method="GET", length=False))
        status, headers, _ = read_one(connection)
    assert status == 500
    (record,) = caplog.records
    assert record.exc_info is not None and "a fault of ours" in str(record.exc_info[1])
    assert record.trace == f" (trace {TRACE}, request {headers['x-request-id']})"  # type: ignore[attr-defined]


def test_a_closed_stream_ends_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    log = AccessLog(stream)
    log.write({"number": 1})
    log.close()

"""What a forward pass has to compute, and what the service is asked to find out what it costs."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from loadtest.processes import ServerFailed
from loadtest.questions import load_questions
from loadtest.service_costs import Geometry, measure, request_of, tokens_of


@pytest.mark.parametrize(
    "config",
    [
        {"num_hidden_layers": 2, "hidden_size": 4, "intermediate_size": 8, "dim": 99},
        {"n_layers": 2, "dim": 4, "hidden_dim": 8},
    ],
)
def test_operations_of_a_forward_pass(config: dict[str, int], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    geometry = Geometry.of(tmp_path)
    assert geometry == Geometry(2, 4, 8)
    # A token and layer: four H x H products (query, key, value, output) and two H x I, each multiply and add: 2 (4 * 16 + 2 * 32) = 256.
    # Attention of a window of 10: scores and values, 2 * 10 * 4 each, so 160 a token.
    assert geometry.operations(tokens=30, windows=3) == 2 * 30 * (256 + 160)


def test_attention_of_one_long_window_costs_more_than_of_two_short_ones() -> None:
    geometry = Geometry(6, 768, 3072)
    assert geometry.operations(512, 1) - geometry.operations(512, 2) == 6 * 512 * 4 * 256 * 768


def test_a_request_names_the_model() -> None:
    body = json.loads(request_of("Who?", "Ada did.", "teacher").partition(b"\r\n\r\n")[2])
    assert body == {"question": "Who?", "context": "Ada did.", "model": "teacher", "max_tokens": 384}


class Handler(BaseHTTPRequestHandler):
    """Answers passages of up to 300 words; a longer one takes more than its deadline."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._send(200, {"limits": {"context_chars": 4_000}})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        words = len(asked["context"].split())
        timings = {"tokenise": 1.0, "queue": 0.0, "forward": words / 10, "decode": 0.5, "total": words / 10 + 1.5}
        self._send(200 if words <= 300 else 503, {"tokens": words, "windows": 1 + words // 200, "timings": timings})

    def _send(self, status: int, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None: ...


class Service:
    """What `measure` needs of a server: its port, and documents of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as response:
            return json.load(response)


@pytest.fixture
def service() -> Iterator[Service]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Service(server.server_address[1])
        server.shutdown()
        thread.join()


def test_lengths_beyond_the_limit_are_not_asked_and_those_without_an_answer_have_no_row(service: Service) -> None:
    said: list[str] = []
    rows = measure(service, load_questions(), ["student", "teacher"], 2, 0, said.append)  # type: ignore[arg-type]
    assert [row["tokens"] for row in rows if row["role"] == "student"] == [8, 24, 48, 80, 128, 192, 256]
    assert len([row for row in rows if row["role"] == "teacher"]) == 7
    assert "512 words to the student: status 503" in said
    assert not any("16384" in line for line in said)  # more than 4,000 characters
    row = rows[6]
    assert (row["windows"], row["forward_ms"], row["tokenise_ms"], row["decode_ms"]) == (2, 25.6, 1.0, 0.5)
    assert row["rest_ms"] == pytest.approx(row["client_ms"] - 27.1, abs=0.002)


def test_questions_of_a_race_are_counted_once(service: Service) -> None:
    questions = [question for question in load_questions() if len(question.context.split()) <= 300][:5]
    tokens, windows = tokens_of(service, questions)  # type: ignore[arg-type]
    lengths = [len(question.context.split()) for question in questions]
    assert tokens == pytest.approx(sum(lengths) / 5)
    assert windows == pytest.approx(sum(1 + length // 200 for length in lengths) / 5)


def test_a_service_that_does_not_answer_the_questions_is_no_contestant(service: Service) -> None:
    question = replace(load_questions()[0], context="word " * 400)
    with pytest.raises(ServerFailed, match="found status 503"):
        tokens_of(service, [question])  # type: ignore[arg-type]

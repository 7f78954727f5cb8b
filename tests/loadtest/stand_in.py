"""A stand-in for the service: the same protocol, answers by rule, so that a load test's numbers can be foretold.

The teacher knows the gold answers of the samples and says that its forward pass took 8 ms; the student answers with the first word of the passage
and says 4 ms.  `fault` makes one kind of wrong response.  `python -m tests.loadtest.stand_in` is one in a process of its own, which can be stopped.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any

from loadtest.questions import load_questions

FORWARD_MS = {"teacher": 8.0, "student": 4.0}
GOLDS = {question.text: question.golds[0] for question in load_questions()}


def answer(body: dict[str, Any], fault: str = "") -> dict[str, Any]:
    """The response of POST /v1/answer."""
    context, model = body["context"], body["model"]
    text = GOLDS[body["question"]] if model == "teacher" else context.split()[0]
    start = context.index(text)
    found = {"text": text, "start": start, "end": start + len(text), "score": 0.5, "source": 0, "is_no_answer": False}
    if fault == "span" and model == "student":
        found |= {"start": start + 1, "end": start + 1 + len(text)}
    return {"model": model, "answers": [found], "windows": 1, "tokens": len(context.split()), "timings": timings(model)}


def timings(model: str) -> dict[str, float]:
    """Milliseconds of each stage."""
    return {"tokenise": 0.1, "queue": 0.0, "forward": FORWARD_MS[model], "decode": 0.1, "total": FORWARD_MS[model] + 0.2}


class Server(ThreadingHTTPServer):
    """Counts what was asked of whom."""

    daemon_threads = True
    request_queue_size = 128  # connections that wait while it is stopped

    def __init__(self, fault: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = fault
        self.alone: contextlib.AbstractContextManager[object] = contextlib.nullcontext()  # a lock makes it answer one request after another
        self.asked: Counter[str] = Counter()
        self.order: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """GET /readyz, GET /v1/models, POST /v1/answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        described = {"engine": "rule", "engine_version": "1", "precision": "fp32", "threads": 1}
        models = [
            {"name": f"{role}-by-rule", "role": role, "weights_sha256": digit * 64, **described}
            for role, digit in (("teacher", "a"), ("student", "b"))
        ]
        self._send(200, {"models": models} if self.path == "/v1/models" else {"status": "ready"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked[body["question"]] += 1
        self.server.order.append(body["model"])
        with self.server.alone:
            time.sleep(FORWARD_MS[body["model"]] / 1000)
        if self.server.fault == "down" or (self.server.fault == "status" and body["model"] == "teacher"):
            self._send(503, {"error": {"code": "not_ready", "message": "The models are being opened."}})
        else:
            self._send(200, answer(body, self.server.fault), {f"X-{stage}-MS": str(value) for stage, value in timings(body["model"]).items()})

    def _send(self, status: int, document: dict[str, Any], headers: Mapping[str, str] = MappingProxyType({})) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # at the end of a run the clients hang up
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve(fault: str = "") -> Iterator[Server]:
    """A running stand-in."""
    with Server(fault) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    with Server("") as alone:
        print(f"Ready on {alone.url}", flush=True)
        alone.serve_forever()

"""Record again what the clients of other protocols send: python -m tests.service.recorded.record [--into DIR]

Each client is installed in an environment of its own in a temporary folder (pip and venv, npm), asks the questions of ask_hub.py, ask_js.mjs or
ask_open.py of a small server here that keeps every byte and answers in the client's protocol, and leaves one file a case: NAME-VERSION/CASE.http.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
HUB_VERSIONS = ("0.36.2", "2.4.0")
JS_VERSIONS = ("3.15.0", "4.13.30")
# Clients of the Open Inference Protocol: what pip installs.
OPEN_CLIENTS = {"triton": "tritonclient[http]==2.73.0", "kserve": "kserve==0.21.0"}
CASES = ("plain", "options", "several", "unicode", "named", "token", "refused")
# A person's own token, and settings such as being offline, are no part of what a client sends.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
ANSWER = {"score": 0.5, "start": 22, "end": 25, "answer": "Ada"}
TENSORS = {"model_name": "student", "outputs": [{"name": "answer", "datatype": "BYTES", "shape": [1], "data": ["Ada"]}]}


class Recorder:
    """A server on the loopback address that keeps the bytes of the last request and answers every one alike."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                self.requests.append(read_request(connection))
                body = json.dumps(TENSORS if self.requests[-1].startswith(b"POST /v2/") else ANSWER).encode()
                head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
                connection.sendall(head.encode() + body)


def read_request(connection: socket.socket) -> bytes:
    """One request whose body has a content-length, or none."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    announced = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    while len(body) < (int(announced[1]) if announced else 0):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def python_environment(folder: Path, package: str) -> Path:
    """A Python with that package."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package], check=True)
    return python


def js_environment(folder: Path, version: str) -> Path:
    """A copy of ask_js.mjs beside that version of @huggingface/inference."""
    folder.mkdir()
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, f"@huggingface/inference@{version}"], check=True)
    return Path(shutil.copy(HERE / "ask_js.mjs", folder))


def record(recorder: Recorder, ask: Sequence[str | Path], cases: Sequence[str], into: Path) -> None:
    """One file a case."""
    into.mkdir(parents=True, exist_ok=True)
    for case in cases:
        recorder.requests.clear()
        subprocess.run([*ask, recorder.address, case], env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
        (sent,) = recorder.requests
        (into / f"{case}.http").write_bytes(sent)
        print(into / f"{case}.http", f"{len(sent)} bytes")


def main(argv: Sequence[str]) -> int:
    """Record every version of every client."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--into", type=Path, default=HERE, help="folder of the recordings (default: beside this file)")
    options = parser.parse_args(argv)
    recorder = Recorder()
    with tempfile.TemporaryDirectory() as scratch:
        for version in HUB_VERSIONS:
            python = python_environment(Path(scratch) / f"hub-{version}", f"huggingface_hub=={version}")
            record(recorder, [python, HERE / "ask_hub.py"], (*CASES, "health"), options.into / f"huggingface_hub-{version}")
        for version in JS_VERSIONS:
            script = js_environment(Path(scratch) / f"js-{version}", version)
            record(recorder, ["node", script], CASES, options.into / f"inference-js-{version}")
        for client, package in OPEN_CLIENTS.items():
            python = python_environment(Path(scratch) / client, package)
            record(recorder, [python, HERE / "ask_open.py"], [client], options.into / "open-inference")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

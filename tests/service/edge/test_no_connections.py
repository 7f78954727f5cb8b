"""The service connects to nothing: not its libraries in C++, not its workers, neither while it opens nor while it answers."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.service.edge.no_connections import MACHINES

ROOT = Path(__file__).parents[3]
GUARDED = [sys.executable, "-m", "tests.service.edge.no_connections"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("POCKETQA_")}

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(sys.platform != "linux" or platform.machine() not in MACHINES, reason="needs Linux: the kernel's filter of system calls"),
]

CALLS = {
    "connect": "import socket; s = socket.socket(); s.connect_ex(('127.0.0.1', 9))",
    "connect of a child": "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', "
    "'import socket; socket.socket().connect_ex((\"127.0.0.1\", 9))']).returncode)",
    "a datagram": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
    "a name": "import socket; socket.getaddrinfo('pocketqa.example', 80)",
}


@pytest.mark.parametrize("code", CALLS.values(), ids=CALLS.keys())
def test_the_filter_kills_what_connects(tmp_path: Path, code: str) -> None:
    (tmp_path / "calls.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [*GUARDED, "calls"], cwd=ROOT, env=CLEAN | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
    )
    # A child's end by a signal comes out as an exit status modulo 256.
    assert done.returncode in (-signal.SIGSYS, 256 - signal.SIGSYS), done.stderr


def test_the_filter_lets_a_server_answer(tmp_path: Path) -> None:
    code = "import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'\ns = socket.create_server(('127.0.0.1', 0))"
    (tmp_path / "calls.py").write_text(code, encoding="utf-8")
    subprocess.run([*GUARDED, "calls"], cwd=ROOT, env=CLEAN | {"PYTHONPATH": str(tmp_path)}, timeout=60, check=True)


@pytest.mark.parametrize("engine", ["auto", "onnxruntime"])
def test_the_service_with_the_bundled_pair_connects_to_nothing(engine: str) -> None:
    command = subprocess.Popen(
        [*GUARDED, "pocketqa", "serve", "--port", "0", "--engine", engine, "--access-log", "no"],
        cwd=ROOT, env=CLEAN, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert command.stdout is not None
    try:
        address = next((line.split()[2] for line in command.stdout if line.startswith("Ready on ")), None)
        assert address is not None, command.communicate(timeout=20)
        ask = {"question": "Who designed the bridge?", "context": "The Kestrel Bridge was designed by Marguerite Oldcastle."}
        for path, body in (("/v1/compare", ask), ("/v1/answer", ask), ("/", None), ("/v1/models", None), ("/metrics", None), ("/openapi.json", None)):
            assert get(address + path, body)
        assert get(f"{address}/readyz", None)
        command.send_signal(signal.SIGTERM)
        _, errors = command.communicate(timeout=60)
        assert command.returncode in (0, -signal.SIGTERM), errors  # SIGSYS is what the filter would end it with, or a worker's end an error
        assert "Traceback" not in errors
    finally:
        if command.poll() is None:
            command.kill()
            command.communicate(timeout=20)


def get(address: str, body: Any) -> bytes:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"content-type": "application/json"} if data else {})
    with urllib.request.urlopen(request, timeout=60) as response:
        content: bytes = response.read()
    return content

"""Clients of other protocols: the bytes that they were recorded to send, and (in full) the clients themselves."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.app import create_app
from service.models import Pair
from service.settings import Settings
from tests.service.edge.conftest import Running, read_one, running
from tests.service.recorded import record

RECORDED = Path(record.__file__).parent
FOLDERS = [*(f"huggingface_hub-{version}" for version in record.HUB_VERSIONS), *(f"inference-js-{version}" for version in record.JS_VERSIONS)]
KEY = "a-key-for-a-test"

ADA = {"answer": "Ada", "start": 22, "end": 25}
BELL = {"answer": "Bell", "start": 26, "end": 30}
TWO_BELLS = [{"answer": "Bell", "start": 0, "end": 4}, {"answer": "Bell", "start": 9, "end": 13}, {"answer": "and", "start": 5, "end": 8}]
# What the student, "bell", and the teacher, "ada", answer to the questions of ask_hub.py and ask_js.mjs.
EXPECTED: dict[str, Any] = {
    "plain": BELL,
    "options": BELL,
    "several": TWO_BELLS,
    "unicode": {"answer": "Bell", "start": 7, "end": 11},  # code points, of which the emoji is one
    "named": ADA,
    "token": BELL,
}
TOO_MANY = "parameters.top_k: expected less than or equal to 100."


@pytest.fixture(scope="module")
def served(pair: Pair) -> Iterator[Running]:
    """The app on a port, without keys."""
    settings = Settings(access_log=False)
    with running(create_app(settings, pair), settings) as running_app:
        yield running_app


@pytest.fixture(scope="module")
def guarded(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The app on a port, for who presents a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"tester {hashlib.sha256(KEY.encode()).hexdigest()}\n", "utf-8")
    settings = Settings(access_log=False, api_keys_file=keys)
    with running(create_app(settings, pair), settings) as running_app:
        yield running_app


def replay(to: Running, folder: str, case: str) -> tuple[int, Any]:
    with to.connect() as connection:
        connection.sendall((RECORDED / folder / f"{case}.http").read_bytes())
        status, headers, body = read_one(connection)
    assert headers["content-type"] == "application/json"
    return status, json.loads(body)


def without_scores(found: Any) -> Any:
    """The answers, once their scores are seen to be scores."""
    if isinstance(found, list):
        return [without_scores(each) for each in found]
    assert set(found) == {"score", "start", "end", "answer"}
    assert isinstance(found["score"], float)
    assert 0 <= found["score"] <= 1
    return {name: value for name, value in found.items() if name != "score"}


def test_there_is_a_recording_of_every_case() -> None:
    for folder in FOLDERS:
        health = {"health.http"} if folder.startswith("huggingface_hub") else set()
        assert {file.name for file in (RECORDED / folder).iterdir()} == {f"{case}.http" for case in record.CASES} | health
    assert set(record.CASES) == {*EXPECTED, "refused"}
    assert {file.name for file in (RECORDED / "open-inference").iterdir()} == {f"{client}.http" for client in record.OPEN_CLIENTS}


@pytest.mark.parametrize("case", EXPECTED)
@pytest.mark.parametrize("folder", FOLDERS)
def test_recorded_bytes_are_answered(served: Running, folder: str, case: str) -> None:
    status, body = replay(served, folder, case)
    assert status == 200, body
    assert without_scores(body) == EXPECTED[case]


@pytest.mark.parametrize("folder", FOLDERS)
def test_recorded_bytes_that_ask_too_much_are_refused_in_words(served: Running, folder: str) -> None:
    status, body = replay(served, folder, "refused")
    assert (status, body) == (422, {"error": f"{TOO_MANY} The fields and their types are described at /docs."})


@pytest.mark.parametrize("version", record.HUB_VERSIONS)
def test_the_recorded_look_at_health_is_answered(served: Running, version: str) -> None:
    assert replay(served, f"huggingface_hub-{version}", "health")[0] == 200


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_token_of_a_client_is_the_services_key(guarded: Running, folder: str) -> None:
    assert replay(guarded, folder, "token")[0] == 200
    status, body = replay(guarded, folder, "plain")
    assert status == 401
    assert isinstance(body["error"], str)


def seen_by(client: str, version: str, scratch: Path, address: str) -> dict[str, Any]:
    """What the cases returned in that client's own environment."""
    if client == "hub":
        command: list[str | Path] = [record.python_environment(scratch / "hub", f"huggingface_hub=={version}"), RECORDED / "ask_hub.py"]
    else:
        command = ["node", record.js_environment(scratch / "js", version)]
    done = subprocess.run([*command, address], env=record.ENVIRONMENT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["version"] == version
    return dict(document["cases"])


@pytest.mark.parametrize("client", record.OPEN_CLIENTS)
def test_recorded_bytes_of_the_open_inference_protocol_are_answered(served: Running, client: str) -> None:
    status, body = replay(served, "open-inference", client)
    assert status == 200, body
    assert body["id"] == "42"
    assert body["outputs"][0] == {"name": "answer", "datatype": "BYTES", "shape": [2], "data": ["Bell", "Bell"]}


@pytest.mark.full
@pytest.mark.parametrize("version", record.HUB_VERSIONS)
def test_the_python_client_itself(served: Running, tmp_path: Path, version: str) -> None:
    cases = seen_by("hub", version, tmp_path, f"http://127.0.0.1:{served.port}")
    assert cases.pop("health") is True
    refused = cases.pop("refused")
    assert refused["error"] in ("HfHubHTTPError", "HTTPError")
    assert TOO_MANY in refused["message"]
    assert {case: without_scores(found) for case, found in cases.items()} == EXPECTED


@pytest.mark.full
@pytest.mark.skipif(shutil.which("npm") is None, reason="the JavaScript client needs node and npm")
@pytest.mark.parametrize("version", record.JS_VERSIONS)
def test_the_javascript_client_itself(served: Running, tmp_path: Path, version: str) -> None:
    cases = seen_by("js", version, tmp_path, f"http://127.0.0.1:{served.port}")
    refused = cases.pop("refused")
    assert TOO_MANY in json.dumps(refused)
    # It returns the first of several.
    assert {case: without_scores(found) for case, found in cases.items()} == EXPECTED | {"several": TWO_BELLS[0]}


@pytest.mark.full
@pytest.mark.parametrize("client", record.OPEN_CLIENTS)
def test_the_open_inference_clients_themselves(served: Running, tmp_path: Path, client: str) -> None:
    python = record.python_environment(tmp_path / client, record.OPEN_CLIENTS[client])
    command: list[str | Path] = [python, RECORDED / "ask_open.py", f"http://127.0.0.1:{served.port}", client]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["Bell", "Bell"]

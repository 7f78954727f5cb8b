"""Opening, probes, failures to open, engines that answer otherwise, and addresses that cannot be used."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from pocketqa.errors import EngineError, IncompleteFolder, OptionsError, VocabularyMismatch
from pocketqa.types import Batch, SpanLogits
from service.app import create_app
from service.edge.gates import check_exposure
from service.models import Pair, Served, open_pair
from service.serve import listen, main, url
from service.settings import Settings
from tests.service.edge.conftest import wait_until
from tests.service.tiny_pair import WordRuntime, make_pair, make_served, make_tokenizer

ROOT = Path(__file__).parents[2]
ASK = {"question": "who?", "context": "built by Ada"}


def test_probes_answer_before_the_models_do(pair: Pair) -> None:
    gate = threading.Event()
    told: list[Exception | None] = []

    def slow(settings: Settings) -> Pair:
        assert gate.wait(30)
        return pair

    with TestClient(create_app(Settings(), opener=slow, opened=told.append)) as client:
        assert client.get("/livez").json() == {"status": "alive"}
        assert client.get("/").status_code == 200
        assert client.get("/v1/samples").status_code == 200
        for response in (client.get("/readyz"), client.get("/v1/models"), client.post("/v1/answer", json=ASK), client.post("/v1/compare", json=ASK)):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "not_ready"
            assert response.headers["retry-after"] == "1"
        assert told == []
        gate.set()
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.post("/v1/compare", json=ASK).status_code == 200
        assert told == [None]


def test_models_that_cannot_be_opened_leave_the_service_not_ready(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    told: list[Exception | None] = []
    settings = Settings(teacher=tmp_path / "teacher", student=tmp_path / "student")
    app = create_app(settings, opened=told.append)
    with TestClient(app) as client:
        wait_until(lambda: told)
        response = client.get("/readyz")
        assert response.status_code == 503
        assert response.json()["error"]["message"] == "The models could not be opened; the service's log says why."
        assert client.get("/livez").status_code == 200
    assert isinstance(told[0], IncompleteFolder)
    assert app.state.service.failure is told[0]
    assert str(tmp_path / "teacher") in caplog.text
    assert "Traceback" not in caplog.text


def test_missing_folders_say_how_to_name_them(tmp_path: Path) -> None:
    with pytest.raises(IncompleteFolder) as caught:
        open_pair(Settings(teacher=tmp_path / "teacher", student=tmp_path / "student"))
    text = str(caught.value)
    assert f"a teacher at {tmp_path / 'teacher'} and a student at {tmp_path / 'student'}" in text
    assert "pocketqa serve --teacher DIR --student DIR" in text
    assert "POCKETQA_TEACHER" in text


def test_two_vocabularies_are_refused(tmp_path: Path) -> None:
    teacher = make_served("teacher", make_tokenizer(tmp_path / "a"), "ada")
    student = make_served("student", make_tokenizer(tmp_path / "b", extra=("more",)), "ada")
    with pytest.raises(VocabularyMismatch) as caught:
        Pair(teacher, student)
    assert "tiny-teacher" in str(caught.value)
    assert "--teacher DIR --student DIR" in str(caught.value)


class Failing(WordRuntime):
    """Breaks in one way or another when asked."""

    def __init__(self, word_id: int, cls_id: int, error: BaseException | None) -> None:
        super().__init__(word_id, cls_id)
        self._error = error

    def forward(self, batch: Batch) -> SpanLogits:
        if self._error is not None:
            raise self._error
        nothing = np.full(batch.ids.shape, np.nan, dtype=np.float32)  # (B, T)
        return SpanLogits(nothing, nothing)


class Panic(BaseException):
    """As pyo3's PanicException: no Exception."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError("secret/path"), "engine_failed"),
        (None, "engine_failed"),
        (Panic("secret"), "engine_failed"),
        (RuntimeError("secret"), "internal"),
    ],
    ids=["engine", "logits that are not numbers", "panic", "unforeseen"],
)
def test_a_failing_engine_is_a_500_without_internals_and_the_next_request_works(tmp_path: Path, error: BaseException | None, code: str) -> None:
    good = make_pair(tmp_path)
    tokenizer = good.teacher.reader.tokenizer
    bad = make_served("student", tokenizer, "ada")
    bad.reader.runtime = Failing(5, tokenizer.cls_id, error)
    with TestClient(create_app(Settings(), Pair(good.teacher, Served("student", bad.reader))), raise_server_exceptions=False) as client:
        for _ in range(2):
            response = client.post("/v1/answer", json=ASK)
            assert response.status_code == 500
            assert response.json()["error"]["code"] == code
            assert "secret" not in response.text
        assert client.post("/v1/answer", json=ASK | {"model": "teacher"}).status_code == 200


def test_an_address_in_use_is_an_error_that_names_it() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert url(taken) == f"http://127.0.0.1:{port}"
        with pytest.raises(OptionsError) as caught:
            listen("127.0.0.1", port)
    assert f"127.0.0.1 port {port} cannot be used" in str(caught.value)
    assert "--port" in str(caught.value)


def test_an_unknown_host_is_an_error_that_names_it() -> None:
    with pytest.raises(OptionsError, match=r"256\.0\.0\.1 port 8000 cannot be used"):
        listen("256.0.0.1", 8000)
    for host in ("a..b", f"{'a' * 64}.example"):  # no name at all, for which Python has an error of another kind
        check_exposure(Settings(host=host))
        with pytest.raises(OptionsError, match=f"{host} port 8000 cannot be used"):
            listen(host, 8000)


def test_a_wildcard_address_is_shown_as_one_that_a_browser_takes() -> None:
    with listen("0.0.0.0", 0) as everywhere:
        assert url(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}"
    if socket.has_ipv6:
        with listen("::1", 0) as six:
            assert url(six) == f"http://[::1]:{six.getsockname()[1]}"


UNTIL_IMPORTED = """
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as it is for a container's first process
class Finder:
    def find_spec(self, name, *_):
        if name == "service.app":
            os.kill(os.getpid(), signal.SIGTERM)
sys.meta_path.insert(0, Finder())
from service.serve import main
main(["--port", "0", "--teacher", "none", "--student", "none"])
"""


def test_sigterm_ends_the_service_while_it_is_still_imported() -> None:
    assert subprocess.run([sys.executable, "-c", UNTIL_IMPORTED], cwd=ROOT, timeout=60, check=False).returncode == 128 + signal.SIGTERM


def test_serve_ends_with_the_reason_when_there_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(IncompleteFolder, match="pocketqa serve --teacher DIR --student DIR"):
        main(["--port", "0", "--teacher", str(tmp_path / "t"), "--student", str(tmp_path / "s")])

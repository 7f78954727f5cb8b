"""`pocketqa serve` run whole, on tiny models made by `pocketqa package`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import onnx.numpy_helper
import pytest

from pocketqa import Reader
from pocketqa.errors import EngineError, FolderError
from pocketqa.folders import ModelFolder, sha256_file, write_manifest
from pocketqa.golden import Golden
from pocketqa.runtimes.forms import form_folder
from service.models import open_pair
from service.serve import listen
from service.settings import Settings
from tests.service.waiting import until
from tests.tiny import tiny_bert, tiny_distilbert

ROOT = Path(__file__).parents[2]
QUESTION, CONTEXT = "Who designed the bridge?", "😀 The Kestrel Bridge was designed by Marguerite Oldcastle and opened in 1931."
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("POCKETQA_")}


def pocketqa(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pocketqa", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, env=CLEAN, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A packaged BERT of two layers and a DistilBERT of one."""
    folder = tmp_path_factory.mktemp("models")
    for role, make in (("teacher", tiny_bert), ("student", tiny_distilbert)):
        checkpoint = make(folder / f"{role}-checkpoint", layers=2 if role == "teacher" else 1)
        packaging = pocketqa("package", checkpoint, "--out", folder / role)
        _, errors = packaging.communicate(timeout=240)
        assert packaging.returncode == 0, errors
    return Settings(teacher=folder / "teacher", student=folder / "student", engine="onnxruntime", threads=1, port=0)


@pytest.fixture
def serving(settings: Settings) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The running command and its address."""
    command = pocketqa("serve", "--teacher", settings.teacher, "--student", settings.student, "--engine", "onnxruntime", "--threads", 1, "--port", 0)
    assert command.stdout is not None
    lines = []
    for line in command.stdout:
        lines.append(line)
        if line.startswith("Ready on "):
            break
    assert lines[-1].startswith("Ready on http://127.0.0.1:"), (lines, command.communicate(timeout=10))
    assert "teacher (onnxruntime fp32) and student (onnxruntime fp32)" in lines[-1]
    yield command, lines[-1].split()[2]
    if command.poll() is None:
        command.kill()
    command.communicate(timeout=20)


def get(address: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(address, data, {"content-type": "application/json"}), timeout=20) as response:
        return json.load(response)


def test_serve_answers_as_the_library_does(serving: tuple[subprocess.Popen[str], str], settings: Settings) -> None:
    command, address = serving
    assert get(f"{address}/readyz") == {"status": "ready"}
    body = get(f"{address}/v1/compare", {"question": QUESTION, "context": CONTEXT})
    for role, folder in (("teacher", settings.teacher), ("student", settings.student)):
        reader = Reader.open(folder, engine="onnxruntime", threads=1)
        best, (served,) = reader.answer(QUESTION, CONTEXT).best, body[role]["answers"]
        assert (served["text"], served["start"], served["end"]) == (best.text, best.start, best.end)
        assert served["score"] == pytest.approx(best.score, abs=1e-5)
        assert CONTEXT[best.start : best.end] == served["text"]
    server, *workers = get(f"{address}/info")["processes"]
    assert (server["kind"], {worker["kind"] for worker in workers}) == ("server", {"worker"})
    assert server["pid"] == command.pid
    assert all(worker["peak_rss_bytes"] > 20_000_000 for worker in workers)
    models = get(f"{address}/v1/models")["models"]
    assert [model["layers"] for model in models] == [2, 1]
    for model, folder in zip(models, (settings.teacher, settings.student), strict=True):
        weights = ModelFolder(folder).weights
        assert model["weights_bytes"] == weights.stat().st_size
        # Two bytes a value, and a header.
        assert 0 <= model["weights_bytes"] - 2 * model["parameters"] < 20_000
        assert model["weights_sha256"] == ModelFolder(folder).read_manifest().files[weights.name]
    command.send_signal(signal.SIGINT)
    assert command.wait(20) == 130


def test_a_body_of_twenty_megabytes_is_refused_and_the_answer_arrives(serving: tuple[subprocess.Popen[str], str]) -> None:
    import http.client

    _, address = serving
    for chunked in (False, True):
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
        body = (b"a" * 100_000 for _ in range(200)) if chunked else b"a" * 20_000_000
        connection.request("POST", "/v1/answer", body, {"content-type": "application/json"}, encode_chunked=chunked)
        response = connection.getresponse()
        assert response.status == 413
        assert json.load(response)["error"]["code"] == "body_too_large"
        connection.close()
    assert get(f"{address}/livez") == {"status": "alive"}


def test_sigterm_ends_the_service(serving: tuple[subprocess.Popen[str], str]) -> None:
    command, _ = serving
    command.send_signal(signal.SIGTERM)
    assert command.wait(20) == 0


def test_a_standard_output_that_has_gone_away_ends_nothing(settings: Settings) -> None:
    """`pocketqa serve --shadow 1 | head -1`: the shadow starts, and the end is as clean as any."""
    flags = ("--teacher", settings.teacher, "--student", settings.student, "--engine", "onnxruntime", "--threads", 1, "--port", 0, "--shadow", 1)
    command = pocketqa("serve", *flags)
    assert command.stdout is not None
    address = next(word for word in command.stdout.readline().split() if word.startswith("http://"))
    command.stdout.close()

    def shadowed() -> bool:
        try:
            return "shadow" in {process["kind"] for process in get(f"{address}/info")["processes"]}
        except urllib.error.HTTPError:  # not ready yet
            return False

    try:
        asyncio.run(until(shadowed))
        command.send_signal(signal.SIGTERM)
        assert command.wait(20) == 0
    finally:
        command.kill()
        assert command.stderr is not None
        with command.stderr:
            assert "Traceback" not in command.stderr.read()
        command.wait()


def test_one_flipped_byte_refuses_to_start(settings: Settings, tmp_path: Path) -> None:
    student = tmp_path / "student"
    shutil.copytree(settings.student, student)
    weights = ModelFolder(student).weights
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    command = pocketqa("serve", "--teacher", settings.teacher, "--student", student, "--engine", "onnxruntime", "--port", 0)
    output, errors = command.communicate(timeout=60)
    assert command.returncode == 2
    assert "model.safetensors differs from what was packaged" in errors
    assert "Traceback" not in errors
    assert "Ready" not in output


def with_other_golden(source: Path, folder: Path) -> Path:
    """A whole folder whose golden questions were answered by another model."""
    shutil.copytree(source, folder)
    model = ModelFolder(folder)
    document = json.loads(model.golden.read_text("utf-8"))
    document["questions"][0]["start_logit"] += 50
    model.golden.write_text(json.dumps(document), "utf-8")
    Golden.load(model.golden)
    write_manifest(folder, kind="model", name=folder.name)
    return folder


@pytest.mark.parametrize("engine", ["onnxruntime", "auto"])
def test_an_engine_that_answers_otherwise_is_refused(settings: Settings, tmp_path: Path, engine: str, caplog: pytest.LogCaptureFixture) -> None:
    student = with_other_golden(settings.student, tmp_path / "student")
    with caplog.at_level(logging.WARNING), pytest.raises(EngineError) as caught:
        open_pair(Settings(teacher=settings.teacher, student=student, engine=engine, threads=1))
    assert f"The student at {student} answers otherwise on onnxruntime fp32 than when it was packaged" in str(caught.value)
    assert "--engine" in str(caught.value)
    chosen = Reader.open(student, engine=engine, threads=1).info.engine
    assert (f"The student falls back from {chosen}" in caplog.text) == (chosen != "onnxruntime")


def test_an_int8_form_that_answers_otherwise_falls_back_to_fp32(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tmp_path / "student"
    shutil.copytree(settings.student, student)
    form = form_folder(ModelFolder(student), "onnxruntime")
    form.mkdir(parents=True)
    graph = onnx.load(student / "model.onnx")  # with its weights
    for tensor in graph.graph.initializer:
        if (values := onnx.numpy_helper.to_array(tensor)).dtype.kind == "f":
            tensor.CopyFrom(onnx.numpy_helper.from_array(3 * values, tensor.name))
    onnx.save(graph, form / "model.onnx")
    write_manifest(form, kind="form", name="onnx-int8", parent=sha256_file(student / "model.safetensors"))
    monkeypatch.setattr("pocketqa.runtimes._why_not_openvino", lambda bf16: "another processor")  # where the form is what auto picks
    assert Reader.open(student, threads=1).info.precision == "int8"
    with caplog.at_level(logging.WARNING):
        pair = open_pair(Settings(teacher=settings.teacher, student=student, threads=1))
    assert "The student falls back from onnxruntime int8 to onnxruntime fp32" in caplog.text
    assert (pair.student.info.engine, pair.student.info.precision) == ("onnxruntime", "fp32")


def test_a_folder_that_is_none_is_refused(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="pocketqa package"):
        open_pair(Settings(teacher=settings.teacher, student=tmp_path))


def test_answers_on_a_kept_connection_do_not_wait_for_acknowledgements() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0

"""The container image, made and started by its Dockerfile's own instructions in an empty folder: it serves, and holds what it should."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docker.dockerfile import Image, build, instructions, run_environment

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
HEAVY = {"torch", "transformers", "openvino", "coremltools", "locust", "pip"}


def test_the_image_does_not_run_as_root_and_listens_where_it_says() -> None:
    last = dict(instructions(DOCKERFILE.read_text(encoding="utf-8")))  # the last of each kind stands
    uid, _, gid = last["USER"].partition(":")
    assert int(uid) > 0 < int(gid)
    assert f"POCKETQA_PORT={last['EXPOSE']}" in last["ENV"]


def test_every_setting_of_the_image_is_one_that_the_service_reads() -> None:
    from dataclasses import fields

    from service.settings import PREFIX, Settings

    known = {PREFIX + item.name.upper() for item in fields(Settings)}
    used = set(re.findall(rf"\b({PREFIX}[A-Z_]+)=", DOCKERFILE.read_text(encoding="utf-8")))
    assert used - known == set()
    assert used  # the folders of the models, at least


def test_compose_publishes_on_the_loopback_address_with_least_privilege() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    port = dict(instructions(DOCKERFILE.read_text(encoding="utf-8")))["EXPOSE"]
    assert re.findall(r'^ +- "([^"]+)"', text, re.MULTILINE) == [f"127.0.0.1:${{PORT:-8000}}:{port}"]
    for line in ("read_only: true", "cap_drop:", "- ALL", "no-new-privileges:true", "dockerfile: docker/Dockerfile"):
        assert line in text


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return build(DOCKERFILE, ROOT, tmp_path_factory.mktemp("image") / "root")


@pytest.fixture(scope="module")
def address(image: Image) -> Iterator[str]:
    """The image's own command with its own environment; only the port is a free one."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = run_environment(image) | {"POCKETQA_PORT": str(port)}
    with subprocess.Popen(image.command, cwd=image.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while subprocess.run(image.health, env=environment, capture_output=True, timeout=30).returncode != 0:
                if process.poll() is not None or time.monotonic() > deadline:
                    process.kill()
                    raise AssertionError(f"the service did not become healthy:\n{process.communicate()[0]}")
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_it_answers_with_both_models(address: str) -> None:
    body = {"question": "Who built the mill?", "context": "The old mill was built by Ada Marsh in 1911, after the flood."}
    request = urllib.request.Request(f"{address}/v1/compare", json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        document = json.load(response)
    for role in ("teacher", "student"):
        best = document[role]["answers"][0]
        assert body["context"][best["start"] : best["end"]] == best["text"]
        assert document[role]["engine"] == "onnxruntime"
    with urllib.request.urlopen(address, timeout=60) as response:
        assert "text/html" in response.headers["content-type"]


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_it_holds_what_serves_and_no_more(image: Image) -> None:
    (packages,) = image.root.glob("opt/pocketqa/lib/python3*/site-packages")
    installed = {path.name for path in packages.iterdir()}
    assert HEAVY & installed == set()
    assert {"pocketqa", "service", "onnxruntime"} <= installed
    assert {"distillation", "mobile_export", "loadtest"} & installed == set()
    assert not (image.root / "src").exists()  # the build stage stays behind
    done = subprocess.run(["pocketqa", "finetune"], env=run_environment(image), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "holds no package 'distillation'" in done.stderr


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_serving_writes_nothing_into_the_image(image: Image, address: str) -> None:
    """So that compose.yaml may make its file system read-only."""

    def state() -> dict[str, tuple[int, int]]:
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in image.root.rglob("*") if path.is_file()}

    before = state()
    test_it_answers_with_both_models(address)
    assert state() == before

"""The container images, made and started by their Dockerfiles' own instructions in an empty folder: they do their work, and hold what they should."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from loadtest.balancer import free_port
from tests.docker.dockerfile import Image, build, in_context, instructions, run_environment

ROOT = Path(__file__).parent.parent.parent
DOCKERFILE, LOADTEST, TRAIN = (ROOT / "docker" / name for name in ("Dockerfile", "loadtest.Dockerfile", "train.Dockerfile"))
HEAVY = {"torch", "transformers", "openvino", "coremltools", "locust", "pip"}
# python:3.12-slim as `docker images` shows it, on the safe side: these tests cannot pull it.
BASE_MEGABYTES = 150
MOST_MEGABYTES = 500
BODY = {"question": "Who built the mill?", "context": "The old mill was built by Ada Marsh in 1911, after the flood."}


@pytest.mark.parametrize("path", [DOCKERFILE, LOADTEST, TRAIN], ids=lambda path: path.name)
def test_no_image_runs_as_root_or_comes_from_elsewhere(path: Path) -> None:
    steps = instructions(path.read_text(encoding="utf-8"))
    uid, _, gid = dict(steps)["USER"].partition(":")  # the last of each kind stands
    assert int(uid) > 0 < int(gid)
    bases = [rest.split()[0] for instruction, rest in steps if instruction == "FROM"]
    assert len(bases) == 2  # what builds stays behind
    assert set(bases) == {"python:3.12-slim"}  # which there is for amd64 and arm64
    assert "--platform" not in path.read_text(encoding="utf-8")


def test_the_endpoint_listens_where_it_says() -> None:
    last = dict(instructions(DOCKERFILE.read_text(encoding="utf-8")))
    assert f"POCKETQA_PORT={last['EXPOSE']}" in last["ENV"]


def test_every_setting_of_the_image_is_one_that_the_service_reads() -> None:
    from dataclasses import fields

    from service.settings import PREFIX, Settings

    known = {PREFIX + item.name.upper() for item in fields(Settings)}
    used = set(re.findall(rf"\b({PREFIX}[A-Z_]+)=", DOCKERFILE.read_text(encoding="utf-8")))
    assert used - known == set()
    assert used  # the folders of the models, at least


def test_the_pipeline_installs_the_pytorch_that_the_makefile_does() -> None:
    wanted = re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert wanted
    assert f'TORCH="{wanted[1]}"' in TRAIN.read_text(encoding="utf-8")


def test_the_build_context_is_what_the_images_copy() -> None:
    copied = {
        word.removeprefix("./")
        for path in (DOCKERFILE, LOADTEST, TRAIN)
        for instruction, rest in instructions(path.read_text(encoding="utf-8"))
        if instruction == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
    }
    let_in = {name for name in os.listdir(ROOT) if in_context(name, ROOT / ".dockerignore")}
    assert let_in == copied


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("image")
    yield build(DOCKERFILE, ROOT, folder / "root")
    shutil.rmtree(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Emptied afterwards: an image has up to two gigabytes, and pytest would keep the last three."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@contextlib.contextmanager
def serving(image: Image) -> Iterator[str]:
    """The image's own command with its own environment; only the port is a free one."""
    port = free_port()
    environment = run_environment(image) | {"POCKETQA_PORT": str(port)}
    with subprocess.Popen(image.start(), cwd=image.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
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


@pytest.fixture(scope="module")
def address(image: Image) -> Iterator[str]:
    with serving(image) as url:
        yield url


def compare(address: str, engine: str) -> None:
    """Both models answer on this engine, and the page is there."""
    request = urllib.request.Request(f"{address}/v1/compare", json.dumps(BODY).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        document = json.load(response)
    for role in ("teacher", "student"):
        best = document[role]["answers"][0]
        assert BODY["context"][best["start"] : best["end"]] == best["text"]
        assert document[role]["engine"] == engine
    with urllib.request.urlopen(address, timeout=60) as response:
        assert "text/html" in response.headers["content-type"]


def megabytes(image: Image) -> float:
    """Of all files, links as links."""
    return sum(path.lstat().st_size for path in image.root.rglob("*") if path.is_symlink() or not path.is_dir()) / 1e6


def installed(image: Image) -> set[str]:
    """Names in the image's site-packages."""
    (packages,) = image.root.glob("opt/pocketqa/lib/python3*/site-packages")
    return {path.name for path in packages.iterdir()}


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_it_answers_with_both_models(address: str) -> None:
    compare(address, "onnxruntime")


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_it_holds_what_serves_and_no_more(image: Image) -> None:
    assert HEAVY & installed(image) == set()
    assert {"pocketqa", "service", "onnxruntime"} <= installed(image)
    assert {"distillation", "mobile_export", "loadtest"} & installed(image) == set()
    assert megabytes(image) + BASE_MEGABYTES < MOST_MEGABYTES
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
    compare(address, "onnxruntime")
    assert state() == before


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_fast_image_answers_on_openvino(folder: Path) -> None:
    image = build(DOCKERFILE, ROOT, folder / "root", {"EXTRAS": "openvino"})
    with serving(image) as url:
        compare(url, "openvino")


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_load_test_image_asks_as_one_process_and_as_master_and_worker(folder: Path, address: str) -> None:
    image = build(LOADTEST, ROOT, folder / "root")
    assert {"torch", "transformers", "pip"} & installed(image) == set()
    environment = run_environment(image)

    def run(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(image.start(*words), cwd=image.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    headless = ("--host", address, "--headless", "-u", "1", "-t", "5s")
    alone = run(*headless)
    output, _ = alone.communicate(timeout=120)
    assert alone.returncode == 0, output
    assert "student" in output

    # As compose.yaml starts them, but that the master asks without waiting for a click, and on a port of its own.
    port = str(free_port())
    master = run("--master", "--master-bind-port", port, "--expect-workers", "1", *headless)
    worker = run("--worker", "--master-host", "127.0.0.1", "--master-port", port)
    output, _ = master.communicate(timeout=120)
    said, _ = worker.communicate(timeout=60)
    assert master.returncode == 0, output + said
    assert worker.returncode == 0, said


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_pipeline_image_packages_a_checkpoint(folder: Path) -> None:
    """From the index that TORCH_INDEX names, as `make test` does; the tree that is mounted at /data is the image's own folder here."""
    image = build(TRAIN, ROOT, folder / "root", {"TORCH_INDEX": os.environ.get("TORCH_INDEX") or "https://pypi.org/simple"})
    assert {"torch", "transformers", "pocketqa", "distillation", "mobile_export"} <= installed(image)
    assert {"service", "loadtest", "pip"} & installed(image) == set()
    environment = run_environment(image) | {"HOME": str(folder), "HF_HUB_OFFLINE": "1"}
    shown = subprocess.run(image.start(), cwd=image.folder, env=environment, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert "finetune" in shown.stdout
    shutil.copytree(ROOT / "models" / "student", image.folder / "checkpoint")
    words = image.start("package", "checkpoint", "--out", "packaged")
    done = subprocess.run(words, cwd=image.folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (image.folder / "packaged" / "manifest.json").is_file()


@pytest.mark.full
def test_every_package_has_a_wheel_for_arm64(tmp_path: Path) -> None:
    """Of the images that serve and load; for this machine's processor they are built above."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["openvino"], *project["optional-dependencies"]["loadtest"]]
    # Up to the C library of Debian 12, the older of those that python:3.12-slim is made of.
    platforms = [word for glibc in ("2014", *(f"_2_{minor}" for minor in range(17, 37))) for word in ("--platform", f"manylinux{glibc}_aarch64")]
    words = ["install", "--dry-run", "--ignore-installed", "--only-binary=:all:", "--python-version", "3.12", *platforms, "--target", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "pip", *words, *wanted], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Would install" in done.stdout

"""compose.yaml and the Dockerfiles, judged by the tools that read them: docker-compose for each profile, the schema, hadolint."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.dockerfile import instructions

ROOT = Path(__file__).parent.parent.parent
COMPOSE = ROOT / "compose.yaml"
DOCKERFILES = sorted((ROOT / "docker").glob("*Dockerfile"))
# What each profile adds to the service that has none.
PROFILES = {
    "": set(),
    "fast": {"fast"},
    "train": {"train"},
    "loadtest": {"locust", "locust-worker-1", "locust-worker-2"},
    "monitoring": {"prometheus", "grafana"},
    "scale": {"replica", "balancer"},
}
BIN = Path(sys.executable).parent


@functools.cache
def composed(*profiles: str, **environment: str) -> dict[str, Any]:
    """The services as docker-compose understands them."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker-compose is not installed")
    words = [program, *(word for profile in profiles for word in ("--profile", profile) if profile), "config"]
    clean = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME")}
    done = subprocess.run(words, cwd=ROOT, env=clean | environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return services


def published(service: dict[str, Any]) -> list[str]:
    """Address, port of the machine and port of the container of each; version 1 writes texts, version 2 objects."""
    ports = service.get("ports", [])
    texts = (port if isinstance(port, str) else f"{port.get('host_ip')}:{port['published']}:{port['target']}" for port in ports)
    return [text.removesuffix("/tcp") for text in texts]


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_holds_what_it_should(profile: str) -> None:
    services = composed(profile)
    chosen = {name for name, service in services.items() if set(service.get("profiles", [profile])) <= {profile}}
    assert chosen == {"pocketqa", *PROFILES[profile]}
    for name in chosen:
        service = services[name]
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for port in published(service):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port} to other machines"
        assert service["image"].startswith("pocketqa") or re.search(r":v?\d+\.\d+", service["image"]), f"{name}: an image without a version"


def test_ports_are_taken_from_the_environment() -> None:
    services = composed("scale", "loadtest", PORT="9001", BALANCER_PORT="9002", TARGET="http://balancer:8080")
    assert published(services["pocketqa"]) == ["127.0.0.1:9001:8000"]
    assert published(services["balancer"]) == ["127.0.0.1:9002:8080"]
    assert services["locust"]["command"] == ["--master", "--host", "http://balancer:8080"]


def test_replicas_have_no_port_of_the_machine_so_that_there_can_be_several() -> None:
    assert "ports" not in composed("scale")["replica"]


def test_published_ports_are_those_of_the_images() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    for name in ("pocketqa", "fast", "locust"):
        dockerfile = ROOT / services[name]["build"]["dockerfile"]
        exposed = dict(instructions(dockerfile.read_text(encoding="utf-8")))["EXPOSE"]
        assert [port.rpartition(":")[2] for port in services[name]["ports"]] == [exposed]


def test_mounted_files_are_there() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", []) if volume.startswith("./")]
    assert len(mounted) >= 4
    assert [path for path in mounted if not (ROOT / path).exists()] == []


def test_settings_are_ones_that_the_service_reads() -> None:
    from dataclasses import fields

    from service.settings import PREFIX, Settings

    known = {PREFIX + item.name.upper() for item in fields(Settings)}
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    used = {key for name in ("pocketqa", "fast", "replica") for key in services[name].get("environment", {})}
    assert used
    assert used - known == set()


def test_the_file_keeps_to_the_schema_of_compose() -> None:
    words = [str(BIN / "check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(COMPOSE)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    done = subprocess.run([str(BIN / "hadolint"), "--format", "json", str(path)], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout) == [], done.stderr


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python\nRUN cd /tmp && pip install numpy\n", encoding="utf-8")
    done = subprocess.run([str(BIN / "hadolint"), "--format", "json", str(bad)], capture_output=True, text=True, timeout=60)
    assert {"DL3006", "DL3003"} <= {item["code"] for item in json.loads(done.stdout)}

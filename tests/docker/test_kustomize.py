"""The kustomize base: valid for Kubernetes, and of one mind with itself, with the image and with the service."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.metrics import Metrics
from service.settings import PREFIX, Settings
from tests.docker.dockerfile import instructions

ROOT = Path(__file__).parent.parent.parent
BASE = ROOT / "docker" / "kustomize"
LABEL = {"app.kubernetes.io/name": "pocketqa"}
# Releases between which every field and version that is used is the same.
VERSIONS = ("1.29", kubernetes_validate.latest_version())


def read(name: str) -> Any:
    return yaml.safe_load((BASE / name).read_text(encoding="utf-8"))


RESOURCES = {name: read(name) for name in read("kustomization.yaml")["resources"]}
BY_KIND = {document["kind"]: document for document in RESOURCES.values()}


def container() -> dict[str, Any]:
    (found,) = BY_KIND["Deployment"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", RESOURCES)
def test_each_resource_is_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(RESOURCES[name], version, strict=True)


def test_an_invalid_one_would_be_found() -> None:
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(RESOURCES["deployment.yaml"] | {"spec": {"replica": 2}}, VERSIONS[0], strict=True)


def test_the_base_lists_every_file_but_the_values_of_another_chart() -> None:
    there = {path.name for path in BASE.iterdir()} - {"kustomization.yaml", "adapter-values.yaml"}
    assert there == set(RESOURCES)
    assert set(BY_KIND) == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"}


def test_all_select_the_pods_of_the_deployment() -> None:
    assert BY_KIND["Deployment"]["spec"]["template"]["metadata"]["labels"] == LABEL
    assert BY_KIND["Service"]["spec"]["selector"] == LABEL
    for document in (BY_KIND["Deployment"]["spec"]["selector"], BY_KIND["PodDisruptionBudget"]["spec"]["selector"]):
        assert document == {"matchLabels": LABEL}
    assert BY_KIND["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": LABEL}
    target = BY_KIND["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", BY_KIND["Deployment"]["metadata"]["name"])


def test_a_pod_may_go_while_another_stays() -> None:
    assert BY_KIND["HorizontalPodAutoscaler"]["spec"]["minReplicas"] > BY_KIND["PodDisruptionBudget"]["spec"]["maxUnavailable"] > 0
    assert BY_KIND["Deployment"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_it_runs_the_image_on_its_port_as_its_user() -> None:
    last = dict(instructions((ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")))
    pod = BY_KIND["Deployment"]["spec"]["template"]
    (port,) = container()["ports"]
    assert str(port["containerPort"]) == last["EXPOSE"] == pod["metadata"]["annotations"]["prometheus.io/port"]
    assert BY_KIND["Service"]["spec"]["ports"][0]["targetPort"] == port["name"]
    assert BY_KIND["NetworkPolicy"]["spec"]["ingress"][0]["ports"] == [{"port": port["containerPort"]}]
    security = pod["spec"]["securityContext"]
    assert f"{security['runAsUser']}:{security['runAsGroup']}" == last["USER"]
    assert container()["image"] == read("kustomization.yaml")["images"][0]["name"]


def test_probes_ask_what_they_should_and_overload_fails_none() -> None:
    paths = {name: container()[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/readyz", "liveness": "/livez", "readiness": "/readyz"}
    source = (ROOT / "service" / "api.py").read_text(encoding="utf-8")
    assert set(paths.values()) <= set(re.findall(r'@router\.get\(\s*"(/\w+)"', source))


def test_the_grace_period_covers_drain_and_the_longest_answer() -> None:
    environment = {item["name"]: item["value"].replace("$(NAMESPACE)", "qa") for item in container()["env"] if "value" in item}
    settings = Settings.read([], environment)  # each is one that the service takes
    assert {PREFIX + item.name.upper() for item in fields(Settings)} >= set(environment)
    assert BY_KIND["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > settings.drain_seconds + settings.deadline_seconds
    probe = container()["readinessProbe"]
    assert settings.drain_seconds > probe["periodSeconds"] * probe["failureThreshold"]
    assert "pocketqa.qa" in settings.trusted_hosts
    assert settings.threads == int(container()["resources"]["requests"]["cpu"])


def test_no_variable_of_kubernetes_is_taken_for_a_setting() -> None:
    """With service links a Service of this name would set POCKETQA_PORT=tcp://..., at which the service refuses to start."""
    assert BY_KIND["Service"]["metadata"]["name"] == "pocketqa"
    assert BY_KIND["Deployment"]["spec"]["template"]["spec"]["enableServiceLinks"] is False


def test_it_scales_on_a_metric_that_the_service_has_and_the_adapter_gives() -> None:
    (metric,) = BY_KIND["HorizontalPodAutoscaler"]["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert f"\n{name} ".encode() in Metrics().exposition()[0]
    (rule,) = read("adapter-values.yaml")["rules"]["custom"]
    assert rule["name"]["as"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")

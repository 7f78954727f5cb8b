"""Prometheus' configuration and alerts, and the dashboard: read by promtool, of metrics that the service has, and filled by a running Prometheus."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from loadtest.balancer import free_port
from loadtest.processes import Server, python
from service.metrics import Metrics

ROOT = Path(__file__).parent.parent.parent
PROMETHEUS = ROOT / "docker" / "prometheus"
GRAFANA = ROOT / "docker" / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "pocketqa.json").read_text(encoding="utf-8"))
RULES = yaml.safe_load((PROMETHEUS / "rules.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
ALERT_TESTS = Path(__file__).parent / "alerts.test.yml"
OURS = re.compile(r"\b(?:pocketqa|process)_\w+")


def panels() -> dict[str, list[str]]:
    """The queries of each panel."""
    return {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in DASHBOARD["panels"] if panel["type"] != "row"}


def query(expression: str, window: str) -> str:
    """A panel's query with Grafana's variables filled in."""
    filled = expression.replace("$__rate_interval", window).replace("$instance", ".*").replace("$model", ".*")
    assert "$" not in filled, filled
    return filled


def exposed() -> set[str]:
    """Names of all series that the service can have."""
    names, metrics = set(), Metrics()
    metrics.watch_workers(tuple, 1)
    for family in metrics.registry.collect():
        if family.type == "histogram":
            names |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
        else:
            names.add(f"{family.name}_total" if family.type == "counter" else family.name)
    return names


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool (package prometheus) is not installed")
    return subprocess.run([program, *words], capture_output=True, text=True, timeout=60)


def test_promtool_accepts_configuration_and_rules() -> None:
    done = promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert done.returncode == 0, done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


def test_alerts_sound_when_they_should_and_not_otherwise() -> None:
    done = promtool("test", "rules", str(ALERT_TESTS))
    assert done.returncode == 0, done.stdout + done.stderr
    cases = [case for test in yaml.safe_load(ALERT_TESTS.read_text(encoding="utf-8"))["tests"] for case in test["alert_rule_test"]]
    for rule in RULES:
        sounds = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == rule["alert"]}
        assert sounds == {True, False}, f"{rule['alert']} needs a case in which it sounds and one in which it does not"


def test_every_query_of_the_dashboard_is_promql(tmp_path: Path) -> None:
    queries = [query(expression, "1m") for expressions in panels().values() for expression in expressions]
    rules = {"groups": [{"name": "panels", "rules": [{"record": f"panel:{at}", "expr": text} for at, text in enumerate(queries)]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    done = promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert done.returncode == 0, done.stderr
    assert f"{len(queries)} rules found" in done.stdout


@pytest.mark.parametrize("where", ["dashboard", "alerts", "variables"])
def test_every_metric_that_is_named_is_one_of_the_service(where: str) -> None:
    texts = {
        "dashboard": [expression for expressions in panels().values() for expression in expressions],
        "alerts": [rule["expr"] for rule in RULES],
        "variables": [variable["definition"] for variable in DASHBOARD["templating"]["list"]],
    }[where]
    named = {name for text in texts for name in OURS.findall(text)}
    assert named
    assert named - exposed() == set()


def test_probes_are_left_out_alike_by_panels_and_alerts() -> None:
    texts = [*(expression for expressions in panels().values() for expression in expressions), *(rule["expr"] for rule in RULES)]
    (left_out,) = {found for text in texts for found in re.findall(r'route!~"([^"]+)"', text)}
    probes = ("/livez", "/readyz", "/metrics", "/health", "/v2/health/live", "/models/{name}/health", "/v2/models/{name}/ready")
    assert all(re.fullmatch(left_out, route) for route in probes)
    assert not any(re.fullmatch(left_out, route) for route in ("/v1/answer", "/models/{name}", "/v2/models/{name}/infer"))


def test_the_dashboard_shows_what_a_team_asks_for() -> None:
    """Rate, errors, latency by model and by stage, queue, batch size, padding waste, agreement."""
    shown = {name for expressions in panels().values() for expression in expressions for name in OURS.findall(expression)}
    assert {
        "pocketqa_http_request_duration_seconds_count", "pocketqa_rejected_total", "pocketqa_answer_duration_seconds_bucket",
        "pocketqa_stage_duration_seconds_bucket", "pocketqa_queue_requests", "pocketqa_queue_seconds", "pocketqa_batch_rows_sum",
        "pocketqa_padding_tokens_total", "pocketqa_comparisons_total", "pocketqa_shadow_agreement_total", "pocketqa_shadow_score_drift_bucket",
    } <= shown  # fmt: skip
    assert all(panel["description"] for panel in DASHBOARD["panels"] if panel["type"] != "row")


def test_panels_neither_overlap_nor_leave_the_page() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)


def test_grafana_finds_its_data_source_and_its_dashboards() -> None:
    (source,) = yaml.safe_load((GRAFANA / "provisioning" / "datasources" / "prometheus.yaml").read_text(encoding="utf-8"))["datasources"]
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    name, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert services[name]["ports"][0].endswith(f":{port}")
    used = {target["datasource"]["uid"] for panel in DASHBOARD["panels"] if panel["type"] != "row" for target in panel["targets"]}
    assert used == {source["uid"]}
    (provider,) = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "files.yaml").read_text(encoding="utf-8"))["providers"]
    mounted = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    assert mounted["./docker/grafana/dashboards"] == provider["options"]["path"]
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/pocketqa.json"


def test_prometheus_asks_every_endpoint_of_compose() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]
    endpoints = {name for name, service in services.items() if service.get("build", {}).get("dockerfile") == "docker/Dockerfile"}
    (job,) = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert set(found["names"]) == endpoints


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Prometheus with the shipped configuration, but for the address, on a service that was asked a few things."""
    program = shutil.which("prometheus")
    assert program, "Prometheus is missing: apt-get install prometheus"
    folder = tmp_path_factory.mktemp("prometheus")
    service = Server("service", python("pocketqa", "serve", "--port", "0", "--engine", "onnxruntime", "--threads", "1"), ())
    watcher = None
    try:
        service.wait()
        shutil.copy(PROMETHEUS / "rules.yml", folder)
        configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
        configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        del configuration["scrape_configs"][0]["dns_sd_configs"]
        configuration["scrape_configs"][0]["static_configs"] = [{"targets": [service.url.removeprefix("http://")]}]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration), encoding="utf-8")
        port = free_port()
        words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address=127.0.0.1:{port}"]
        watcher = Server("prometheus", [program, *words], ())
        ends = time.monotonic() + 20
        while time.monotonic() < ends:
            ask(service.url, "/v1/answer", {"question": "Who built it?", "context": "Ada built it."})
            ask(service.url, "/v1/compare", {"question": "Who built it?", "context": "Ada built it."})
            ask(service.url, "/v1/answer", {})
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        for server in (service, watcher):
            if server is not None:
                server.stop()


def ask(url: str, path: str, body: dict[str, str]) -> None:
    request = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), {"content-type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=30).close()
    except urllib.error.HTTPError as error:
        error.close()


def found(url: str, expression: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': expression})}", timeout=30) as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
    return result


@pytest.mark.full
@pytest.mark.parametrize("title", panels())
def test_each_panel_has_something_to_show(prometheus: str, title: str) -> None:
    for expression in panels()[title]:
        assert found(prometheus, query(expression, "15s")), expression


@pytest.mark.full
def test_panels_show_what_was_asked(prometheus: str) -> None:
    def values(title: str, label: str) -> dict[str, float]:
        return {row["metric"][label]: float(row["value"][1]) for row in found(prometheus, query(panels()[title][0], "15s"))}

    assert values("Requests a second", "route").keys() == {"/v1/answer", "/v1/compare"}
    assert values("Errors a second", "status").keys() == {"422"}
    assert values("Refusals by reason", "reason")["invalid_request"] > 0
    waste = values("Padding waste", "model")
    assert waste.keys() == {"teacher", "student"}
    assert all(0 <= share < 1 for share in waste.values())
    (agreed,) = found(prometheus, query(panels()["Agreement"][0], "15s"))
    assert math.isclose(float(agreed["value"][1]), 1.0)  # a passage of one name

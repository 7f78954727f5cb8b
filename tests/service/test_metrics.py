"""What GET /metrics says: names, counts worked out by hand, bounded labels, and a format that Prometheus' own tool accepts."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from pocketqa.types import StageTimings
from service.app import create_app
from service.errors import TABLE
from service.metrics import Metrics
from service.models import Pair
from service.settings import Settings

QUESTION = {"question": "who built it?", "context": "the mill was built by bell"}


@pytest.fixture
def fresh(pair: Pair, model_folder_free_settings: Settings) -> Iterator[TestClient]:
    """An app whose counters start at nought."""
    with TestClient(create_app(model_folder_free_settings, pair), raise_server_exceptions=False) as client:
        yield client


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of an exposition by name and labels, read by Prometheus' own parser for Python."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def read(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    body, content_type = metrics.exposition()
    assert content_type.startswith("text/plain; version=0.0.4")
    return samples(body.decode())


def value(found: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str) -> float:
    return found[name, tuple(sorted(labels.items()))]


def test_the_stages_of_a_request_add_up_to_its_time() -> None:
    metrics = Metrics()
    metrics.stages("student", StageTimings(tokenise=0.001, queue=0.002, forward=0.010, decode=0.003), 0.020)
    metrics.stages("student", StageTimings(tokenise=0.001, queue=0.0, forward=0.020, decode=0.001), 0.022)
    found = read(metrics)
    stages = {
        stage: value(found, "pocketqa_stage_duration_seconds_sum", model="student", stage=stage)
        for stage in ("tokenise", "queue", "forward", "decode", "overhead")
    }
    assert stages == pytest.approx({"tokenise": 0.002, "queue": 0.002, "forward": 0.030, "decode": 0.004, "overhead": 0.004})
    assert value(found, "pocketqa_answer_duration_seconds_sum", model="student") == pytest.approx(sum(stages.values()))
    assert value(found, "pocketqa_answer_duration_seconds_count", model="student") == 2
    assert value(found, "pocketqa_answer_duration_seconds_count", model="teacher") == 0
    assert value(found, "pocketqa_stage_duration_seconds_bucket", model="student", stage="forward", le="0.01") == 1


def test_a_batch_counts_tokens_and_padding_apart() -> None:
    metrics = Metrics()
    metrics.batch("teacher", rows=3, tokens=100, padded=3 * 48, seconds=0.05)
    metrics.batch("teacher", rows=1, tokens=48, padded=48, seconds=0.02)
    found = read(metrics)
    assert value(found, "pocketqa_batch_tokens_sum", model="teacher") == 148
    assert value(found, "pocketqa_padding_tokens_total", model="teacher") == 44
    assert value(found, "pocketqa_batch_rows_sum", model="teacher") == 4
    assert value(found, "pocketqa_batch_rows_bucket", model="teacher", le="2.0") == 1
    assert value(found, "pocketqa_batch_duration_seconds_sum", model="teacher") == pytest.approx(0.07)


def test_counters() -> None:
    metrics = Metrics()
    metrics.cancelled("student")
    metrics.restarted()
    metrics.retried("student")
    metrics.compared(same_span=True, f1=1.0)
    metrics.compared(same_span=False, f1=0.5)
    metrics.compared(same_span=False, f1=0.0)
    found = read(metrics)
    assert value(found, "pocketqa_cancelled_total", model="student") == 1
    assert value(found, "pocketqa_worker_restarts_total") == 1
    assert value(found, "pocketqa_batch_retries_total", model="student") == 1
    assert value(found, "pocketqa_comparisons_total", same_span="true") == 1
    assert value(found, "pocketqa_comparisons_total", same_span="false") == 2
    assert value(found, "pocketqa_comparison_f1_ratio_sum") == 1.5
    assert value(found, "pocketqa_comparison_f1_ratio_bucket", le="0.5") == 2


def test_the_queue_is_read_when_it_is_asked_for() -> None:
    metrics, waiting = Metrics(), [5]
    assert value(read(metrics), "pocketqa_queue_tokens", model="student") == 0
    metrics.watch_queue("student", lambda: 100 * waiting[0], lambda: waiting[0])
    assert value(read(metrics), "pocketqa_queue_tokens", model="student") == 500
    waiting[0] = 2
    found = read(metrics)
    assert value(found, "pocketqa_queue_tokens", model="student") == 200
    assert value(found, "pocketqa_queue_requests", model="student") == 2


def test_workers_come_and_go() -> None:
    metrics = Metrics()
    workers: list[dict[str, object]] = [{"worker": 0, "rss_bytes": 1000}, {"worker": 1, "rss_bytes": None}, {"worker": 3, "rss_bytes": 3000}]
    metrics.watch_workers(lambda: workers, 4)
    found = read(metrics)
    assert value(found, "pocketqa_workers") == 3  # the one numbered 2 is being started
    assert value(found, "pocketqa_workers_wanted") == 4
    assert value(found, "pocketqa_worker_resident_memory_bytes", worker="3") == 3000
    assert ("pocketqa_worker_resident_memory_bytes", (("worker", "1"),)) not in found  # a system that does not tell
    workers.clear()
    assert value(read(metrics), "pocketqa_workers") == 0


def test_no_caller_can_add_a_label_value() -> None:
    metrics = Metrics()
    metrics.rejected("overloaded")
    before = len(read(metrics))
    for number in range(50):
        metrics.rejected(f"made up {number}")
        metrics.http("/v1/answer", f"METHOD{number}", 200, 0.01)
    found = read(metrics)
    assert value(found, "pocketqa_rejected_total", reason="overloaded") == 1
    assert value(found, "pocketqa_rejected_total", reason="other") == 50
    assert value(found, "pocketqa_http_request_duration_seconds_count", route="/v1/answer", method="other", status="200") == 50
    # One child of the HTTP histogram: its buckets with +Inf, count, sum and time of creation.
    assert len(found) - before == len({key for key in found if key[0].startswith("pocketqa_http")})
    reasons = {dict(labels)["reason"] for name, labels in found if name == "pocketqa_rejected_total"}
    assert reasons == {kind.code for kind in TABLE.values()} | {"other"}


def test_two_apps_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.restarted()
    assert value(read(first), "pocketqa_worker_restarts_total") == 1
    assert value(read(second), "pocketqa_worker_restarts_total") == 0


def test_what_was_asked_stands_there(fresh: TestClient) -> None:
    assert fresh.post("/v1/answer", json=QUESTION | {"model": "student"}).status_code == 200
    assert fresh.post("/v1/compare", json=QUESTION).status_code == 200
    assert fresh.post("/v1/answer", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert fresh.get("/nothing/here").status_code == 404
    response = fresh.get("/metrics")
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(response.text)
    assert value(found, "pocketqa_answer_duration_seconds_count", model="student") == 2
    assert value(found, "pocketqa_answer_duration_seconds_count", model="teacher") == 1
    assert value(found, "pocketqa_comparisons_total", same_span="false") == 1  # the teacher says "ada", which the passage does not hold
    assert value(found, "pocketqa_rejected_total", reason="malformed_body") == 1
    assert value(found, "pocketqa_batch_rows_count", model="student") == 2
    assert value(found, "pocketqa_http_request_duration_seconds_count", route="/v1/answer", method="POST", status="200") == 1
    assert value(found, "pocketqa_http_request_duration_seconds_count", route="/v1/answer", method="POST", status="400") == 1
    assert value(found, "pocketqa_workers") == value(found, "pocketqa_workers_wanted") == 1
    routes = {dict(labels)["route"] for name, labels in found if name == "pocketqa_http_request_duration_seconds_count"}
    assert "/nothing/here" not in routes
    assert "mill" not in response.text


def test_the_stages_of_real_requests_add_up_within_two_percent(fresh: TestClient) -> None:
    said = [fresh.post("/v1/answer", json=QUESTION).json()["timings"] for _ in range(20)]
    found = samples(fresh.get("/metrics").text)
    whole = value(found, "pocketqa_answer_duration_seconds_sum", model="student")
    stages = [v for (name, labels), v in found.items() if name == "pocketqa_stage_duration_seconds_sum" and ("model", "student") in labels]
    assert len(stages) == 5
    assert sum(stages) == pytest.approx(whole, rel=0.02)
    for stage in ("tokenise", "queue", "forward", "decode"):
        seconds = value(found, "pocketqa_stage_duration_seconds_sum", model="student", stage=stage)
        assert 1000 * seconds == pytest.approx(sum(timings[stage] for timings in said), rel=0.02, abs=0.02)


def test_names_and_help_keep_the_conventions(fresh: TestClient) -> None:
    """What `promtool check metrics` looks at, for machines without it: prefix, unit and total in the names, help, and one TYPE a name."""
    fresh.post("/v1/answer", json=QUESTION)
    text = fresh.get("/metrics").text
    types = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    assert len({name for name, _ in types}) == len(types)
    helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
    assert {name for name, _ in types} == set(helps)
    for name, kind in types:
        assert re.fullmatch(r"(pocketqa|process|python)_[a-z0-9_]+", name)
        assert kind != "counter" or name.endswith("_total")
        assert not re.search(r"milliseconds|_ms\b|minutes|percent|kilobytes|megabytes", name)
        assert kind in {"counter", "gauge", "histogram"}
    names = {name for name, _ in types}
    assert {"process_resident_memory_bytes", "process_open_fds"} <= names or not Path("/proc").is_dir()


@pytest.mark.full
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (package prometheus) is not installed")
def test_promtool_finds_nothing(fresh: TestClient) -> None:
    for path in ("/v1/answer", "/v1/compare"):
        assert fresh.post(path, json=QUESTION).status_code == 200
    text = fresh.get("/metrics").text
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

"""`pocketqa benchmark --workload service`: its options and its text, the baseline servers, and the whole of it on a tiny model."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from loadtest import service_benchmark
from loadtest.processes import Cores, Server, python
from loadtest.questions import load_questions
from loadtest.race import PARAMETERS, request_of
from loadtest.service_costs import Geometry
from pocketqa import report, runs
from pocketqa.errors import OptionsError
from pocketqa.folders import ModelFolder
from pocketqa.runs import Interval
from pocketqa.runtimes import open_runtime
from pocketqa.runtimes.forms import has_form
from tests.packaged import model_folder

ROOT = Path(__file__).resolve().parents[2]


def options(**changes: object) -> argparse.Namespace:
    return argparse.Namespace(**({"teacher": None, "baselines": ["A fp32", "B"], "serve_options": ["--batching", "off"]} | changes))


def test_all_contestants_open_one_model() -> None:
    made = service_benchmark.commands(Path("models/student"), options(teacher=Path("models/teacher")))
    assert list(made)[:2] == ["PocketQA", "A fp32"]
    assert made["PocketQA"][1:] == [
        "-m", "pocketqa", "serve", "--host", "127.0.0.1", "--port", "0", "--student", "models/student", "--teacher", "models/teacher",
        "--max-queue-seconds", "300", "--deadline-seconds", "600", "--batching", "off",
    ]  # fmt: skip
    assert made["A fp32"][2:] == ["loadtest.baseline_plain", "--model", "models/student", "--precision", "fp32"]


def test_the_service_without_batches_is_the_same_command_but_for_that() -> None:
    made = service_benchmark.commands(Path("m"), options(baselines=["no batching"], serve_options=["--threads", "1"]))
    assert made["no batching"] == [*made["PocketQA"], "--batching", "off"]
    assert made["PocketQA"][-2:] == ["--threads", "1"]


def test_an_unknown_baseline_is_named() -> None:
    with pytest.raises(OptionsError, match="out of A fp32, A bf16, B, no batching; found C"):
        service_benchmark.commands(Path("m"), options(baselines=["B", "C"]))


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--workload", "service", "--rounds", "0"], "--rounds to be at least 1, found 0"),
        (["--workload", "service", "--users", "1,none"], "--users as numbers above 0, such as 1,8,32; found 1,none"),
        (["--workload", "service", "--users", "0"], "found 0"),
        (["--workload", "service", "--limit", "-1"], "--limit to be a number of questions"),
        (["--workload", "service", "--form", "onnx-int8"], "--form goes with --preset.*pocketqa package MODEL --form NAME"),
    ],
)
def test_wrong_options_end_before_anything_starts(argv: list[str], says: str) -> None:
    with pytest.raises(OptionsError, match=says):
        service_benchmark.main(argv)


def test_the_text_says_what_was_found() -> None:
    point = {
        "users": 1, "contestant": "PocketQA", "count": 4, "p50": 9.5, "p99": 12.0, "rate": Interval(100, 90, 110).to_json(), "exact_match": 50.0,
        "f1": 60.0, "client_share": 0.25, "server_share": 0.9, "failures": 0,
    }  # fmt: skip
    ratios = [runs.ratio_row(1, "A fp32", "p50", Interval(5.0, 4.8, 5.2)), runs.ratio_row(1, "A fp32", "rate", Interval(5.0, 4.0, 6.0))]
    bars = [{"against": "A", "users": 1, "of": "p50", "least": 4.5}]
    results = runs.service_results("closed loop", {"PocketQA": "x", "A fp32": "y"}, [point], ratios, bars=bars)
    text = "\n".join(service_benchmark.lines(results))
    assert "p50      9.50 ms" in text
    assert "5.00 [4.80, 5.20] times faster at p50 than A fp32" in text
    assert "5.00 [4.00, 6.00] times as many answers a second as A fp32" in text
    assert "wanted against A at 1 user: p50 x 4.5: reached" in text


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("module", "precision"), [("baseline_plain", "fp32"), ("baseline_plain", "bf16"), ("baseline_openvino", "fp32")])
def test_a_baseline_answers_in_hugging_faces_protocol(module: str, precision: str) -> None:
    if module.endswith("openvino"):
        pytest.importorskip("openvino")
    question = load_questions()[0]
    command = python(f"loadtest.{module}", "--model", str(ROOT / "models" / "student"), "--precision", precision)
    server = Server(module, command, Cores.split().servers)
    try:
        server.wait()
        info = server.get("/info")
        body = request_of(question).partition(b"\r\n\r\n")[2]
        assert json.loads(body)["parameters"] == PARAMETERS
        request = urllib.request.Request(server.url, body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            found = json.load(response)
    finally:
        server.stop()
    assert info["precision"] == precision
    assert info["threads"] == (len(Cores.split().servers) or len(os.sched_getaffinity(0)))
    assert found["answer"] == question.context[found["start"] : found["end"]]
    assert found["answer"] in question.golds
    assert 0 < found["score"] <= 1


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_student_of_the_papers_size_comes_with_the_form_that_the_service_picks() -> None:
    given = service_benchmark._parse(["--workload", "service", "--preset", "paper", "--form", "openvino-int8"])
    with service_benchmark._paper_student(given) as folder:
        assert Geometry.of(folder) == service_benchmark.PAPER_SIZE
        assert open_runtime(ModelFolder(folder), "openvino", "fp32").info.precision == "fp32"
        assert has_form(ModelFolder(folder), "openvino")
        assert open_runtime(ModelFolder(folder)).info.precision == "int8"


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_the_whole_of_it_on_a_tiny_model(tmp_path: Path) -> None:
    model = str(model_folder("distilbert"))
    command = [
        sys.executable, "-m", "pocketqa", "benchmark", "--workload", "service", "--model", model, "--teacher", model, "--limit", "6",
        "--users", "1,4", "--rounds", "2", "--baselines", "A fp32", "--run-file", str(tmp_path), "--serve-options=--engine onnxruntime",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = tmp_path.glob("service-*.json")
    run = runs.read(path)
    results = run.results
    assert run.kind == "service"
    assert [(row["users"], row["contestant"]) for row in results["points"]] == [
        (1, "PocketQA"), (1, "A fp32"), (4, "PocketQA"), (4, "A fp32"),
    ]  # fmt: skip
    # Two rounds of six questions, asked three times where four users are to ask sixteen at least.
    assert all(row["failures"] == 0 and row["count"] == (12 if row["users"] == 1 else 36) for row in results["points"])
    # Random weights: what is answered means nothing, but each server answers the same whoever else asks.
    assert {row["same_answers"] for row in results["points"] if row["contestant"] == "A fp32"} == {100.0}
    for name in ("PocketQA", "A fp32"):
        assert len({(row["exact_match"], row["f1"], row["same_answers"]) for row in results["points"] if row["contestant"] == name}) == 1
    assert {row["role"] for row in results["costs"]} == {"student", "teacher"}
    assert [row["tokens"] for row in results["costs"] if row["role"] == "student"] == sorted(
        row["tokens"] for row in results["costs"] if row["role"] == "student"
    )
    assert max(row["windows"] for row in results["costs"]) > 10
    page = report.results_page({path.name: run}, lambda name, _: name, lambda name, _: name)
    assert "## Service" in page

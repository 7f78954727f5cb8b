"""locust -f loadtest/qa.py, run whole against a stand-in of the service whose answers and times are known."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest.questions import SAMPLES
from pocketqa import runs
from pocketqa.reporting.load_tables import load_lines
from tests.loadtest.stand_in import serve

ROOT = Path(__file__).parent.parent.parent


def run_locust(host: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "locust",
        "-f",
        "loadtest/qa.py",
        "--headless",
        "--only-summary",
        "-u",
        "2",
        "-r",
        "10",
        "--host",
        host,
        *options,
    ]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=270, env={**os.environ, "NO_COLOR": "1"})


def row(output: str, model: str) -> list[float]:
    """requests, failures, p50, p90, p99, forward p50, EM, F1 of one model, from the table at the end."""
    return [float(cell) for cell in re.findall(rf"^{model} +([\d. ]+)$", output, re.MULTILINE)[-1].split()]


def test_the_table_tells_what_the_server_did() -> None:
    with serve() as server:
        done = run_locust(server.url, "-t", "3s")
    assert done.returncode == 0, done.stderr
    teacher, student = row(done.stdout, "teacher"), row(done.stdout, "student")
    assert teacher[0] == student[0] > 10
    assert len(server.order) - (teacher[0] + student[0]) in range(5)  # the end of the run may cut one pair of each user
    assert teacher[1] == student[1] == 0
    assert 8 <= teacher[2] <= teacher[3] <= teacher[4]
    assert 4 <= student[2] <= student[3] <= student[4]
    assert (teacher[5], student[5]) == (8.0, 4.0)
    assert (teacher[6], teacher[7]) == (100.0, 100.0)
    assert student[6] < 20
    assert "forward 2.00 (2.00 to 2.00)" in done.stdout
    ratio, low, high = map(float, re.findall(r"client ([\d.]+) \(([\d.]+) to ([\d.]+)\)", done.stdout)[0])
    assert low <= ratio <= high
    assert ratio == pytest.approx(teacher[2] / student[2], rel=0.02)  # how far from 2 the way there and back brings it depends on the machine


def test_all_questions_are_asked_equally_often() -> None:
    with serve() as server:
        run_locust(server.url, "-t", "2s", "--limit", "10", "--seed", "5")
    assert len(server.asked) == 10
    assert max(server.asked.values()) - min(server.asked.values()) <= 4  # 2 for the round that the end cut off, 2 for the halves of a pair
    assert {"teacher", "student"} == set(server.order)


@pytest.mark.parametrize(
    ("fault", "model", "says"),
    [("span", "student", "expected the passage's own words"), ("status", "teacher", "expected status 200, found 503")],
)
def test_a_wrong_response_fails_the_request_and_the_run(fault: str, model: str, says: str) -> None:
    with serve(fault) as server:
        done = run_locust(server.url, "-t", "1s", "--limit", "3")
    assert done.returncode == 1
    assert says in done.stderr  # Locust's own tables go there; ours is all of stdout
    assert re.search(rf"^{model} +(\d+) +\1 +-", done.stdout, re.MULTILINE), done.stdout  # every request failed: no times, no scores
    assert "there is no ratio" in done.stdout


def test_a_server_that_is_not_there_is_one_sentence_and_status_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = run_locust(f"http://127.0.0.1:{port}", "-t", "5s", "--ready-timeout", "0.3")
    assert done.returncode == 1
    assert f"Expected a ready server at http://127.0.0.1:{port}/readyz within 0.3 s" in done.stderr
    assert "pocketqa serve" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "cannot be read"), ("{}", "data"), ('{"data": []}', "at least one question|found none|no question")],
)
def test_an_unusable_data_file_is_one_sentence_and_status_1(content: str | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "questions.json"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    done = run_locust("http://127.0.0.1:9", "-t", "1s", "--squad", str(file))
    assert done.returncode == 1
    assert "loadtest: " in done.stderr
    assert "questions.json" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_run_file_holds_the_table(tmp_path: Path) -> None:
    with serve() as server:
        done = run_locust(server.url, "-t", "2s", "--run-file", str(tmp_path / "load.json"))
    assert done.returncode == 0, done.stderr
    run = runs.read(tmp_path / "load.json")
    teacher = row(done.stdout, "teacher")
    assert run.kind == "load"
    assert [(subject.role, subject.sha256[0]) for subject in run.subjects] == [("teacher", "a"), ("student", "b")]
    assert run.data[0].split == "samples"
    assert run.results["requests"] == 2 * teacher[0]
    assert run.results["failures"] == 0
    assert run.results["users"] == 2
    assert run.results["timings"]["teacher"]["p50"] == pytest.approx(teacher[2], abs=0.06)
    assert run.results["timings"]["student forward"]["p50"] == 4.0
    assert run.results["ratios"]["teacher / student, forward"] == {"value": 2.0, "low": 2.0, "high": 2.0}
    assert run.results["scores"]["teacher"] == {"exact_match": 100.0, "f1": 100.0}
    assert run.command.startswith("locust -f loadtest/qa.py --headless")


@pytest.mark.parametrize("flags", [(), ("--open-loop", "20")])
def test_a_run_in_which_everything_failed_is_kept_with_its_failures(flags: tuple[str, ...], tmp_path: Path) -> None:
    with serve("down") as server:
        done = run_locust(server.url, "-t", "1s", "--limit", "3", "--run-file", str(tmp_path / "load.json"), *flags)
    assert done.returncode == 1
    run = runs.read(tmp_path / "load.json")
    assert run.results["failures"] == run.results["requests"] > 0 and run.results["timings"] == {}
    assert "no request had an answer" in load_lines({"load.json": run}, lambda name, _: name)[-1]


@pytest.mark.full
def test_a_run_from_the_web_page_ends_with_the_table_too() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        page = f"http://127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "locust", "-f", "loadtest/qa.py", "--web-host", "127.0.0.1", "--web-port", page.rpartition(":")[2]]
    form = {"user_count": "2", "spawn_rate": "2", "squad": str(SAMPLES), "limit": "4", "seed": "9", "top_k": "1"}
    with serve() as server, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert wait_until(lambda: post(page, None) == 200)
            assert post(f"{page}/swarm", {**form, "host": server.url}) == 200
            time.sleep(2)
            assert post(f"{page}/stop", {}) == 200
            time.sleep(1)
        finally:
            process.terminate()
        output, _ = process.communicate(timeout=30)
    assert row(output, "teacher")[0] > 20
    assert "of 4 questions, seed 9" in output
    assert len(server.asked) == 4


def post(address: str, form: dict[str, str] | None) -> int | None:
    """The status of a POST of the form, or of a GET without one; None when nobody listens."""
    data = None if form is None else urllib.parse.urlencode(form).encode()
    try:
        with urllib.request.urlopen(address, data=data, timeout=10) as response:
            status: int = response.status
            return status
    except urllib.error.URLError:
        return None


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.full
def test_exchanges_of_several_processes_are_put_together() -> None:
    with serve() as server:
        done = run_locust(server.url, "-t", "5s", "--processes", "2", "-u", "4")
    assert done.returncode == 0, done.stderr
    teacher, student = row(done.stdout, "teacher"), row(done.stdout, "student")
    assert teacher[0] == student[0]
    assert 0 <= len(server.order) - (teacher[0] + student[0]) <= 8
    assert "forward 2.00 (2.00 to 2.00)" in done.stdout
    assert done.stdout.count("Teacher and student on the same questions") == 1

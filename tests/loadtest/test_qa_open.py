"""locust -f loadtest/qa.py in an open loop, run whole against a stand-in of the service whose answers and times are known."""

from __future__ import annotations

import re
import signal
import threading
from argparse import Namespace
from pathlib import Path

import pytest

from loadtest.options import check, is_open
from loadtest.processes import Server, python
from pocketqa import runs
from tests.loadtest.stand_in import serve
from tests.loadtest.test_open_loop import STALL, stopped_after
from tests.loadtest.test_qa import row, run_locust

# A busy machine sends late; what is tested here does not depend on it.
LATE = ("--max-lag", "2000")


def test_requests_come_at_the_rate_wanted_and_in_pairs(tmp_path: Path) -> None:
    with serve() as server:
        done = run_locust(server.url, "-u", "32", "-r", "32", "--open-loop", "40", "-t", "5s", "--run-file", str(tmp_path / "load.json"), *LATE)
    assert done.returncode == 0, done.stderr
    teacher, student = row(done.stdout, "teacher"), row(done.stdout, "student")
    assert teacher[0] == student[0]
    assert 120 <= teacher[0] + student[0] <= 280  # 200 expected, give or take four standard deviations and half a second
    assert teacher[2] >= 8  # milliseconds that its forward pass takes
    assert "Open loop of 40 requests a second: times count from when a request was due" in done.stdout
    run = runs.read(tmp_path / "load.json")
    assert run.name == "locust-open-loop"
    assert run.results["workload"].startswith("open loop, 40 requests a second")
    assert run.results["rate"] == 40
    where = run.results["where"]["student"]
    assert sum(value for name, value in where.items() if name != "whole") == pytest.approx(where["whole"], abs=0.01)
    assert where["forward"] == 4.0
    assert run.results["stages"]["teacher"]["forward"]["p50"] == 8.0
    timed, ends = run.results["timings"]["student"], run.results["intervals"]["student"]["p99"]
    assert ends["low"] <= timed["p99"] <= ends["high"]
    assert run.results["quantiles"]["student"][50] == pytest.approx(timed["p50"], abs=0.001)


def test_objectives_set_the_exit_status() -> None:
    with serve("status") as server:  # the teacher fails, always
        done = run_locust(server.url, "-t", "2s", "--slo", "student errors<1%", "--slo", "student p99<5s")
    assert done.returncode == 0, done.stdout  # what was wanted was met, whatever else failed
    assert "student errors<1%: met, found 0%" in done.stdout
    assert "student p99<5000ms: met, found" in done.stdout


@pytest.mark.full
@pytest.mark.parametrize(
    ("fault", "wanted", "says"),
    [
        ("", "p50<1ms", "student p50<1ms: MISSED"),
        ("status", "errors<1%", "teacher errors<1%: MISSED, found 100%"),
        ("status", "teacher p50<5s", "teacher p50<5000ms: MISSED, found an answer that never came"),
    ],
)
def test_an_objective_that_is_missed_is_status_1(fault: str, wanted: str, says: str) -> None:
    with serve(fault) as server:
        done = run_locust(server.url, "-t", "2s", "--slo", wanted)
    assert done.returncode == 1, done.stdout
    assert says in done.stdout


@pytest.mark.full
def test_a_client_that_is_late_makes_the_run_void(tmp_path: Path) -> None:
    with serve() as server:  # one connection for what needs several
        done = run_locust(server.url, "-u", "1", "--open-loop", "200", "-t", "2s", "--run-file", str(tmp_path))
    assert done.returncode == 1
    assert "VOID: requests were sent too late" in done.stdout
    assert not list(tmp_path.iterdir())


def options(**changes: object) -> Namespace:
    return Namespace(**({"slo": [], "find_rate": "", "open_loop": 0.0, "step_time": 20.0, "run_time": None, "headless": True} | changes))


def test_options_that_go_together() -> None:
    check(options(slo=["p99<1s", "errors<1%"], open_loop=5.0, run_time="1m"))
    check(options(find_rate="teacher p99<1s"))
    assert not is_open(options())
    assert is_open(options(find_rate="p99<1s"))
    assert is_open(options(open_loop=0.5))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"slo": ["p99>1s"]}, "found 'p99>1s'"),
        ({"find_rate": "p99<1s", "open_loop": 5.0}, "Expected --find-rate without --open-loop"),
        ({"find_rate": "p99<1s", "slo": ["p50<1s"]}, "Expected --find-rate without"),
        ({"find_rate": "p99<1s", "run_time": "1m"}, "it chooses the rates, judges them, and ends by itself"),
        ({"slo": ["p99<1s"], "headless": False}, "Expected --headless beside"),
        ({"open_loop": -5.0}, "--open-loop of 0 or more"),
        ({"open_loop": float("nan")}, "--open-loop of 0 or more"),
        ({"step_time": 0.0}, "--step-time above 0"),
    ],
)
def test_options_that_are_wrong_or_contradict_each_other(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        check(options(**changes))


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"'fast'.*--step-time above 0"):
        check(options(find_rate="fast", step_time=-1.0))


def stalled(*options: str) -> tuple[float, float]:
    """p50 and p99 of the student, milliseconds, of 8 s in which the server stands still for 2."""
    server = Server("stand-in", python("tests.loadtest.stand_in"), ())
    try:
        server.wait(30)
        with stopped_after(server, 4.0):
            done = run_locust(server.url, "-t", "8s", *options, *LATE)
    finally:
        server.stop()
    found = row(done.stdout, "student")
    return found[2], found[4]


@pytest.mark.full
def test_a_server_that_stands_still_shows_in_the_open_loop_and_not_in_the_closed() -> None:
    open_p50, open_p99 = stalled("-u", "128", "-r", "100", "--open-loop", "40")
    closed_p50, closed_p99 = stalled("-u", "2", "-r", "2")
    # A quarter of the requests is due while the server stands still; in the closed loop there is one slow answer a user.
    assert 1000 * STALL * 0.7 < open_p99 < 1000 * STALL * 2
    assert open_p50 < 500
    assert closed_p50 < closed_p99 < 500


@pytest.mark.full
def test_who_waits_for_a_server_that_answers_no_more_has_failed() -> None:
    server = Server("stand-in", python("tests.loadtest.stand_in"), ())
    stop = threading.Timer(6.0, server.process.send_signal, [signal.SIGSTOP])
    try:
        server.wait(30)
        stop.start()
        done = run_locust(server.url, "-u", "200", "-r", "100", "--open-loop", "20", "-t", "8s", *LATE)
    finally:
        stop.join()
        server.process.send_signal(signal.SIGCONT)
        server.stop()
    assert done.returncode == 1
    assert row(done.stdout, "teacher")[1] > 3
    assert row(done.stdout, "student")[1] > 3


@pytest.mark.full
def test_the_highest_rate_of_each_model_is_found(tmp_path: Path) -> None:
    # One connection answers one request after another, so the server can answer at most 1000 / 8 of the teacher's and 1000 / 4 of the student's.
    with serve() as server:
        server.alone = threading.Lock()
        done = run_locust(
            server.url, "-u", "64", "-r", "64", "--find-rate", "p99<100ms", "--step-time", "3", "--run-file", str(tmp_path / "load.json"), *LATE
        )
    assert done.returncode == 0, done.stdout + done.stderr
    run = runs.read(tmp_path / "load.json")
    assert run.name == "locust-highest-rate"
    rates = {model: found["value"] for model, found in run.results["search"]["rates"].items()}
    assert 20 < rates["teacher"] < 125
    assert 20 < rates["student"] < 250
    assert rates["student"] > rates["teacher"]
    for point in run.results["search"]["points"]:
        assert point["within"] == (point["failures"] == 0 and point["found"] < 100)
    assert len(re.findall(r"<- highest", done.stdout)) >= 2


@pytest.mark.full
def test_processes_share_the_rate() -> None:
    with serve() as server:
        done = run_locust(server.url, "-u", "32", "-r", "32", "--open-loop", "40", "-t", "6s", "--processes", "2", *LATE)
    assert done.returncode == 0, done.stderr
    teacher, student = row(done.stdout, "teacher"), row(done.stdout, "student")
    assert teacher[0] == student[0]
    assert 140 <= teacher[0] + student[0] <= 330
    assert len(server.order) - (teacher[0] + student[0]) in range(3)  # the half of a pair that each process has left
    assert done.stdout.count("Teacher and student on the same questions") == 1

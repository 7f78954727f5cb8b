"""The open loop: its times of arrival, what it measures of servers whose behaviour is known, and a server that stands still for two seconds."""

from __future__ import annotations

import itertools
import json
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from loadtest.checks import request_body
from loadtest.closed_loop import post, run_block
from loadtest.open_loop import Sent, arrivals, lag_limit, run_open_loop, why_void
from loadtest.processes import Server, python
from loadtest.questions import load_questions
from tests.loadtest.test_closed_loop import requests, serving

STALL = 2.0  # seconds


def test_arrivals_are_a_poisson_process_of_the_rate_wanted() -> None:
    times = arrivals(50, 100, seed=3)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert times == sorted(times)
    assert 0 < times[0] < times[-1] < 100
    assert len(times) == pytest.approx(5000, abs=4 * 5000**0.5)  # four standard deviations
    # Of an exponential distribution mean and standard deviation are the same: evenly spaced arrivals would have a deviation of 0.
    assert statistics.mean(gaps) == pytest.approx(0.02, rel=0.06)
    assert statistics.stdev(gaps) == pytest.approx(0.02, rel=0.1)
    assert arrivals(50, 100, seed=3) == times
    assert arrivals(50, 100, seed=4) != times


@pytest.mark.parametrize(("rate", "seconds"), [(0, 1), (-1, 1), (5, 0), (float("nan"), 1)])
def test_arrivals_need_a_rate_and_a_duration(rate: float, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"a (rate|duration) above 0"):
        arrivals(rate, seconds, 0)


def test_each_request_is_sent_at_its_time_and_counted_from_it() -> None:
    times = [0.0, 0.1, 0.1, 0.3]
    with serving(0.05) as server:
        sent = run_open_loop(server.port, requests(4), times)
    assert [one.number for one in sent] == [0, 1, 2, 3]
    assert [one.intended for one in sent] == times
    assert [one.body for one in sent] == [b"0", b"1", b"2", b"3"]
    assert {one.status for one in sent} == {200}
    assert all(0 <= one.lag < one.latency for one in sent)
    assert all(0.05 <= one.latency < 2 for one in sent)


def test_it_does_not_wait_for_answers() -> None:
    with serving(0.3) as server:
        sent = run_open_loop(server.port, requests(20), [0.01 * at for at in range(20)])
    assert server.most >= 15  # a closed loop of one user would have one under way
    assert max(one.latency for one in sent) < 2.0  # twenty one after another would take 6 s


def test_connections_are_kept_and_used_again() -> None:
    with serving() as server:
        run_open_loop(server.port, requests(10), [0.05 * at for at in range(10)])
    assert server.connections < 10


def test_who_waits_for_a_connection_is_sent_late_and_the_run_is_void() -> None:
    with serving(0.1) as server:
        sent = run_open_loop(server.port, requests(5), [0.0] * 5, connections=1)
    assert (server.most, server.connections) == (1, 1)
    # One after another, 100 ms each, all due at 0: the last is sent when four were answered.
    assert max(one.lag for one in sent) >= 0.4
    assert max(one.latency for one in sent) >= 0.5
    assert "sent too late" in why_void([one.lag for one in sent], [one.latency for one in sent])


@pytest.mark.parametrize("raw", [b"", b"SSH-2.0-other\r\n\r\n"])
def test_a_connection_that_is_cut_has_status_0_and_a_reason(raw: bytes) -> None:
    with serving(raw=raw) as server:
        sent = run_open_loop(server.port, requests(3), [0.0, 0.01, 0.02])
    assert [one.status for one in sent] == [0, 0, 0]
    assert all(one.error and not one.body for one in sent)


def test_nobody_there_and_too_late_have_status_0_too() -> None:
    with serving() as server:
        pass
    (refused,) = run_open_loop(server.port, requests(1), [0.0])
    assert (refused.status, refused.error.partition(":")[0]) == (0, "ConnectionRefusedError")
    with serving(1.0) as server:
        (late,) = run_open_loop(server.port, requests(1), [0.0], timeout=0.2)
    assert (late.status, late.error.partition(":")[0]) == (0, "TimeoutError")
    assert 0.2 <= late.latency < 1.0


def test_requests_and_times_belong_together() -> None:
    with pytest.raises(ValueError, match="a time for each of 3 requests, found 2"):
        run_open_loop(1, requests(3), [0.0, 1.0])


def test_lag_makes_a_run_void() -> None:
    fast, slow = [0.005] * 100, [0.4] * 100
    assert [lag_limit(fast), lag_limit(slow)] == pytest.approx([0.010, 0.020])
    assert why_void([0.001] * 100, fast) == ""
    assert why_void([0.015] * 100, slow) == ""
    assert why_void([0.015] * 100, fast) == "requests were sent too late: the lag's p99 is 15.0 ms, and at most 10.0 ms is allowed"
    assert why_void([0.015] * 100, fast, least=0.02) == ""
    assert why_void([], []) == "no request was sent"


@contextmanager
def stopped_after(server: Server, seconds: float) -> Iterator[None]:
    """The server's process stands still for STALL seconds, so many seconds from now."""

    def stall() -> None:
        time.sleep(seconds)
        server.process.send_signal(signal.SIGSTOP)
        time.sleep(STALL)
        server.process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=stall)
    thread.start()
    yield
    thread.join()


def p99(latencies: list[float]) -> float:
    return float(np.quantile(latencies, 0.99))


def test_a_server_that_stands_still_shows_in_the_open_loop_and_not_in_the_closed() -> None:
    asked = [post("/v1/answer", json.dumps(request_body(question, "student", 1, False)).encode()) for question in load_questions()]
    server = Server("stand-in", python("tests.loadtest.stand_in"), ())
    try:
        server.wait(30)
        times = arrivals(50, 6, seed=1)
        with stopped_after(server, 2):
            opened: list[Sent] = run_open_loop(server.port, [asked[at % len(asked)] for at in range(len(times))], times)
        with stopped_after(server, 0.5):
            closed = run_block(server.port, [asked[at % len(asked)] for at in range(600)], users=2)
    finally:
        server.stop()
    assert {one.status for one in opened} == {200}
    # A third of the requests is due while the server stands still, and waits for 2 s at first and for nothing at the end.
    waited = [one for one in opened if one.latency > 0.2]
    assert 0.2 < len(waited) / len(opened) < 0.5
    assert 1.5 < p99([one.latency for one in opened]) < 3.0
    # The same stall in a closed loop: one slow answer for each user, which is less than one in a hundred.
    assert max(one.seconds for one in closed.exchanges) > 1.5
    assert p99([one.seconds for one in closed.exchanges]) < 0.5

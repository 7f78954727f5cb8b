"""`pocketqa benchmark --workload load`: its options, its search, its results, and the whole of it on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtest import load_benchmark, rate_search
from loadtest.load_benchmark import Contestant, common_rate, seen_of
from loadtest.objectives import Objective
from loadtest.open_loop import Sent, VoidRun
from loadtest.rate_search import Found, RateSearch, Seen, Terms, find_rate
from loadtest.record import search_of
from pocketqa import runs
from pocketqa.errors import OptionsError
from tests.packaged import model_folder

ROOT = Path(__file__).resolve().parents[2]
TERMS = Terms(Objective("p99", 250.0), 10.0)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--rounds", "0"], "--rounds and --seconds above 0 and --rate of 0 or more; found 0, 20, 0"),
        (["--seconds", "0"], "found 5, 0, 0"),
        (["--rate", "-2"], "found 5, 20, -2"),
        (["--objective", "fast"], "Expected an objective such as"),
        (["--limit", "-1"], "--limit to be a number of questions"),
        (["--baselines", "B,C"], "out of A fp32, A bf16, B, no batching; found C"),
    ],
)
def test_wrong_options_end_before_anything_starts(argv: list[str], says: str) -> None:
    with pytest.raises(OptionsError, match=says):
        load_benchmark.main(["--workload", "load", *argv])


def queue(capacity: float, tried: list[float]) -> Callable[[float, float], Seen]:
    """A server that answers within 100 ms up to its capacity and above it one in ten too late."""

    def measure(rate: float, seconds: float) -> Seen:
        tried.append(rate)
        count = int(rate * seconds)
        late = count // 10 if rate > capacity else 0
        return Seen([100.0] * (count - late) + [900.0] * late, 0, [0.001] * count)

    return measure


def test_each_round_goes_on_from_the_one_before() -> None:
    found = Found()
    tried: list[float] = []
    find_rate(found, "student", RateSearch(4.0), TERMS, queue(30.0, tried), lambda _: None)
    first = len(tried)
    find_rate(found, "student", RateSearch(found.rates[-1] or 0.0, stride=1), TERMS, queue(30.0, tried), lambda _: None)
    assert found.rates[0] == found.rates[1]
    assert 30.0 / 1.105 <= (found.rates[0] or 0.0) <= 30.0
    assert len(tried) == first + 3  # what held, and twice what did not
    assert [point["round"] for point in found.points] == [1] * first + [2] * 3
    assert {point["contestant"] for point in found.points} == {"student"}
    assert all(point["within"] == (point["rate"] <= 30.0) for point in found.points)


def test_one_hiccup_is_not_the_limit_of_a_server() -> None:
    hiccup = iter([True])

    def measure(rate: float, seconds: float) -> Seen:
        slow = rate > 30.0 or (rate > 6.0 and next(hiccup, False))
        return Seen([900.0 if slow else 100.0] * 50, 0, [0.001] * 50)

    found = Found()
    find_rate(found, "student", RateSearch(4.0), TERMS, measure, lambda _: None)
    assert 30.0 / 1.105 <= (found.rates[0] or 0.0) <= 30.0
    rates = [point["rate"] for point in found.points]
    (again,) = {point["rate"] for point in found.points if not point["within"] and point["rate"] <= 30.0}
    assert rates.count(again) == 2 and all(rates.count(rate) == (2 if rate > 30.0 else 1) for rate in rates if rate != again)


def test_a_step_in_which_the_client_was_late_is_done_again_and_at_last_void() -> None:
    said: list[str] = []
    lags = iter([0.5, 0.001])

    def late_once(rate: float, seconds: float) -> Seen:
        return Seen([100.0] * 50, 0, [next(lags, 0.001)] * 50)

    find_rate(Found(), "B", RateSearch(20_000.0), TERMS, late_once, said.append)
    assert "void, requests were sent too late: the lag's p99 is 500.0 ms" in said[0]
    with pytest.raises(VoidRun, match="found 3 times: requests were sent too late"):
        find_rate(Found(), "B", RateSearch(4.0), TERMS, lambda rate, seconds: Seen([100.0], 0, [0.5]), said.append)


def test_a_late_client_does_not_matter_where_the_server_is_too_slow_anyway() -> None:
    def full(rate: float, seconds: float) -> Seen:
        """All connections are taken from 10 a second on: requests wait for one, and then for their answers."""
        return Seen([100.0] * 50, 0, [0.0] * 50, [100.0] * 50) if rate < 10 else Seen([2300.0] * 50, 0, [2.0] * 50, [300.0] * 50)

    found = Found()
    find_rate(found, "B", RateSearch(4.0), TERMS, full, lambda line: None)
    assert 10.0 / 1.105 <= (found.rates[0] or 0.0) < 10.0


def test_what_searches_found() -> None:
    found = {"student": Found([20.0, 24.0]), "B": Found([10.0, 12.0]), "teacher": Found([None, None]), "A bf16": Found([None, 3.0])}
    kept = search_of(found, "p99<250ms", "student")
    assert kept["rounds"] == 2
    assert kept["rates"]["student"] == {"value": 22.0, "low": 20.0, "high": 24.0}
    assert kept["rates"]["teacher"] is None
    assert kept["rates"]["A bf16"]["value"] == 1.5  # a round without any rate counts as one of 0
    assert kept["ratios"] == {"B": {"value": 2.0, "low": 2.0, "high": 2.0}}


def test_the_common_rate_is_one_that_all_can_bear() -> None:
    def contestants(*rates: float | None) -> list[Contestant]:
        return [Contestant(str(rate), None, {}, Found([rate])) for rate in rates]  # type: ignore[arg-type]

    assert common_rate(contestants(12.1, 4.64, None)) == 2.3  # half of the lowest, with two digits
    assert common_rate(contestants(0.5)) == 0.5  # not below the lowest rate of the grid
    assert common_rate(contestants(None)) == 0.5


def test_an_answer_without_a_text_is_a_failure() -> None:
    good = json.dumps({"answer": "Ada", "start": 3, "end": 6, "score": 0.5}).encode()
    sent = [
        Sent(0, 0.0, 0.001, 0.1, 200, b"", good),
        Sent(1, 0.1, 0.002, 0.2, 200, b"", b"{}"),
        Sent(2, 0.2, 0.003, 0.3, 503, b"", good),
        Sent(3, 0.3, 0.004, 30.0, 0, error="TimeoutError: "),
    ]
    seen = seen_of(sent)
    assert (seen.times, seen.failures, seen.lags) == ([100.0], 3, [0.001, 0.002, 0.003, 0.004])
    assert seen.answering == pytest.approx([99.0])


@pytest.mark.full
@pytest.mark.timeout(300)
def test_the_whole_of_it_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(rate_search, "MIN_REQUESTS", 4)  # the lowest rates are not worth a minute each here
    monkeypatch.setattr(rate_search, "LOWEST", 2.0)
    monkeypatch.setattr(load_benchmark, "LOWEST", 2.0)
    model = str(model_folder("distilbert"))
    argv = [
        "--workload", "load", "--model", model, "--teacher", model, "--limit", "6", "--rounds", "2", "--seconds", "1", "--rate", "20",
        "--objective", "p99<1ms", "--baselines", "no batching", "--run-file", str(tmp_path), "--max-lag", "5000",
        "--serve-options=--engine onnxruntime",
    ]  # fmt: skip
    assert load_benchmark.main(argv) == 0
    (path,) = tmp_path.glob("load-*.json")
    results = runs.read(path).results
    assert set(results["timings"]) == {"teacher", "student", "no batching"}
    assert results["failed"] == {"teacher": 0, "student": 0, "no batching": 0}
    assert {timed["count"] for timed in results["timings"].values()} == {results["timings"]["student"]["count"]}
    assert set(results["ratios"]) == {"teacher / student", "no batching / student"}
    # Nobody answers within 1 ms: the search goes down to the lowest rate, in both rounds, and finds none.
    assert set(results["search"]["rates"].values()) == {None}
    assert not any(point["within"] for point in results["search"]["points"])
    assert {point["round"] for point in results["search"]["points"]} == {1, 2}
    assert "highest rate within p99<1ms: none" in capsys.readouterr().out

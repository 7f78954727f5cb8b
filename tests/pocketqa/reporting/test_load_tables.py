"""Run files of kind "load": what they need, what RESULTS.md and the figures say of them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pocketqa import report, runs
from pocketqa.errors import OptionsError
from pocketqa.reporting import figures
from pocketqa.reporting.load_figures import curve
from pocketqa.reporting.load_tables import load_lines
from pocketqa.statistics import Interval, quantile_interval
from pocketqa.types import JSON

NAMES = ("B", "student", "teacher")  # a run file sorts its keys
TIMES = {"teacher": 40.0, "student": 20.0, "B": 30.0}
WHERE = {
    "sent late": 0.1, "tokenise": 0.4, "queue": 1.5, "forward": 16.0, "decode": 0.5, "other in the server": 0.25, "network and HTTP": 1.25,
    "whole": 20.0,
}  # fmt: skip


def points() -> list[JSON]:
    made = []
    for number in (1, 2):
        for rate in (4.0, 8.0, 16.0):
            times = [rate * TIMES["student"] * number] * 10
            made.append(runs.load_point("student", number, rate, 20.0, times, 0, times[0], times[0] < 250))
    made.append(runs.load_point("teacher", 1, 0.5, 60.0, [], 30, math.inf, False))
    return made


def search(**changes: object) -> JSON:
    rates = {"B": Interval(6.0, 5.0, 7.0).to_json(3), "student": Interval(12.0, 11.0, 13.0).to_json(3), "teacher": None}
    return {"objective": "p99<250ms", "rounds": 2, "rates": rates, "ratios": {"B": Interval(2.0, 1.8, 2.2).to_json(4)}, "points": points()} | changes


def benchmark(**changes: object) -> JSON:
    given = {
        "quantiles": {name: [time] * 101 for name, time in TIMES.items()},
        "intervals": {name: {f"p{q}": Interval(time, 0.9 * time, 1.1 * time).to_json(3) for q in (50, 90, 99)} for name, time in TIMES.items()},
        "search": search(),
        "extra": {
            "contestants": {name: f"what {name} is" for name in NAMES},
            "ratios_p99": {"B": Interval(1.5, 1.4, 1.6).to_json(4)},
            "scores": {name: {"exact_match": 70.0, "f1": 80.5} for name in NAMES},
            "failed": {"B": 1_000, "student": 0, "teacher": 0},
            "rate": 3.0,
            "cores": {"servers": 1, "client": 1},
        },
    }
    timings = {name: runs.summarise_times([time / 1000] * 10) for name, time in TIMES.items()}
    ratios = {f"{name} / student": Interval(TIMES[name] / 20, 1.4, 2.1) for name in ("B", "teacher")}
    return runs.load_results("open loop, 3 requests a second", timings, ratios, **(given | changes))  # type: ignore[arg-type]


def run(made: JSON) -> runs.RunFile:
    subject = runs.Subject("student", "student", "b" * 64, "openvino", "2026.4", "bf16", 1)
    data = (runs.DataFile("samples.json", "e" * 64, 40, "samples"),)
    return runs.RunFile("load", "load", (subject,), data, "pocketqa benchmark", "2026-03-01T00:00:00Z", {"cpu": "a processor", "cores": 2}, made)


def lines(made: JSON) -> list[str]:
    return load_lines({"load.json": run(made)}, lambda name, _: f"[{name}]")


def test_teacher_student_and_baselines_in_one_table() -> None:
    found = lines(benchmark())
    assert found[0].startswith("student `bbbbbbbbbbbb`: open loop, 3 requests a second; the highest rate is that of the requests within p99<250ms.")
    assert "Times are at 3 requests a second to each. Each search 2 times. Steps of a search had 10 requests; of 100 or " in found[0]
    assert found[0].endswith("fewer the p99 is the slowest, so these rates are rough. Servers on 1 and client on 1 cores of their own. [load.json]")
    rows = [line for line in found if line.startswith("| ") and " ms |" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| teacher", "| student", "| B"]
    none = "none: it does not hold at the lowest rate"
    assert rows[0].endswith(f"| 70.00 | 80.50 | 0 | 2.00 [1.40, 2.10] |  | {none} |  |")
    assert rows[1].startswith("| student | 10 | 20.00 [18.00, 22.00] ms | 20.00 [18.00, 22.00] ms | 20.00 [18.00, 22.00] ms | 70.00")
    assert rows[1].endswith("| 0 |  |  | 12.00 [11.00, 13.00] |  |")
    assert rows[2].endswith("| 1,000 | 1.50 [1.40, 2.10] | 1.50 [1.40, 1.60] | 6.00 [5.00, 7.00] | 2.00 [1.80, 2.20] |")
    assert "- B: what B is" in found
    assert not any("Busy" in line for line in found)


def test_one_search_has_no_interval_and_a_busy_machine_is_said() -> None:
    text = "\n".join(lines(benchmark(search=search(rounds=1)) | {"busy": True, "load": {"reasons": ["others used 40 %"]}}))
    assert "One search each, so there is no interval." in text
    assert "| 12.00 |" in text
    assert "| 12.00 [" not in text
    assert "- Busy machine, so its times are not to be trusted: others used 40 %" in text


def test_where_the_time_went() -> None:
    made = runs.load_results("closed loop, 1 user", {"student": runs.summarise_times([0.02])}, where={"student": WHERE})
    found = lines(made)
    assert "| closed loop, 1 user [load.json] | student | 0.10 | 0.40 | 1.50 | 16.00 | 0.50 | 0.25 | 1.25 | 20.00 |" in found
    assert any(line.startswith("| student `bbbbbbbbbbbb`, closed loop, 1 user | student | 1 | 20.00 | 20.00") for line in found)


def test_single_runs_that_are_void_or_of_a_busy_machine_are_called_so() -> None:
    results = runs.timing_results("open loop", {"with": runs.summarise_times([0.1])}, extra={"void": ["the client was late"]})
    results |= {"busy": True, "load": {"reasons": ["crowded"]}}
    run = runs.RunFile("load", "shadow", (), (), "x", "2026-03-01T00:00:00Z", {}, results)
    lines = load_lines({"shadow": run}, lambda name, _: name)
    assert lines[-2:] == ["- shadow: void: the client was late", "- shadow: Busy machine, so its times are not to be trusted: crowded"]


def test_parts_of_a_search_that_are_missing_are_named() -> None:
    with pytest.raises(OptionsError, match="'rates'"):
        benchmark(search={"objective": "p99<1s", "points": []})
    with pytest.raises(OptionsError, match="'p99'"):
        benchmark(search=search(points=[{key: value for key, value in points()[0].items() if key != "p99"}]))


def test_a_point_without_a_right_answer_has_no_times() -> None:
    assert points()[-1] == {
        "contestant": "teacher", "round": 1, "rate": 0.5, "seconds": 60.0, "count": 0, "failures": 30, "p50": None, "p90": None, "p99": None,
        "found": None, "within": False,
    }  # fmt: skip


def test_a_curve_is_the_median_of_its_rounds() -> None:
    # p99 at 8 a second: 160 and 320 ms, of which one is within 250 ms: not most.
    assert curve(search(), "student") == [(4.0, 120.0, True), (8.0, 240.0, False), (16.0, 480.0, False)]
    assert curve(search(), "teacher") == []


def test_figures_and_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "runs"
    runs.write(run(benchmark()), folder / "load.json")
    found = {"load.json": runs.read(folder / "load.json")}
    drawn = {picture.name: picture for picture in figures.pictures(found, report.TITLES)}
    assert set(drawn) == {"saturation-load", "latency-load"}
    assert "Highest rates within p99<250ms: student 12.0 a second." in drawn["saturation-load"].alt
    assert drawn["saturation-load"].section == "Load"
    page = report.results_page(found, lambda name, _: name, lambda name, _: name)
    assert "## Load" in page


def test_the_interval_of_a_quantile_holds_it_and_draws_groups() -> None:
    values = np.arange(1.0, 1001.0)
    alone = quantile_interval(values, 0.9, resamples=500)
    assert alone.value == pytest.approx(900.1)  # numpy's: place 0.9 * 999 = 899.1 from 0
    # The standard error of a quantile of a uniform distribution is sqrt(q (1 - q) / N) of its range, here 9.5: 1.96 of them to each side.
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * 9.5, rel=0.25)
    grouped = quantile_interval(values, 0.9, np.repeat(np.arange(10), 100), resamples=500)
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)  # ten groups of neighbours tell less than a thousand values

"""What the shadow costs: the numbers from latencies worked out by hand, and the whole of it on a tiny model."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import shadow_cost
from loadtest.shadow_cost import WITH, WITHOUT, Tally, lines, results_of
from pocketqa import runs
from pocketqa.errors import OptionsError
from tests.packaged import model_folder

ROOT = Path(__file__).resolve().parents[2]
COUNTS = {"compared": 3, "dropped": 1, "failed": 0}
LOAD = {"others": 0.2, "busy": True, "reasons": ["other processes used 20% of the machine"]}


class Nothing:
    """A server that nobody asks."""


def tally(*rounds: list[float], failures: int = 0) -> Tally:
    server: Any = Nothing()
    return Tally(server, [np.array(seconds) for seconds in rounds], failures)


def results(**options: Any) -> dict[str, Any]:
    given = argparse.Namespace(shadow=0.05, rounds=2, seconds=10.0, seed=0)
    slow, quick = tally([0.020, 0.040, 0.060], [0.020, 0.080], failures=1), tally([0.010, 0.020, 0.030], [0.010, 0.040])
    return results_of({WITHOUT: quick, WITH: slow}, 2.5, given, COUNTS, options.get("void", []), LOAD)


def test_ratios_are_of_percentiles_and_rounds_are_drawn() -> None:
    found = results()
    # Each time with the shadow is twice that without, so that every ratio of percentiles is 2 in every draw of rounds.
    assert set(found["ratios"]) == {f"{of}, with the shadow / without" for of in ("p50", "p90", "p99")}
    assert all((ratio["value"], ratio["low"], ratio["high"]) == pytest.approx((2, 2, 2)) for ratio in found["ratios"].values())
    assert found["timings"][WITH]["p50"] == pytest.approx(40) and found["timings"][WITHOUT]["p50"] == pytest.approx(20)
    assert (found["requests"], found["failures"]) == (10, 1)
    assert found["shadow"] == {"share": 0.05, **COUNTS} and found["busy"] is True


def test_the_text_says_what_was_found() -> None:
    text = "\n".join(lines(results(void=["round 1, without: late"])))
    assert text.startswith("open loop, 2.50 questions a second at Poisson times, 2 rounds of 10 s, 5 % in the shadow\n")
    assert "without          p50     20.0 ms" in text and "p99, with the shadow / without: 2.000 [2.000, 2.000] times" in text
    assert "in the shadow: 3 compared, 1 dropped, 0 failed; 1 failures" in text
    assert text.endswith("void: round 1, without: late\nbusy machine: other processes used 20% of the machine")


@pytest.mark.parametrize("argv", [["--rounds", "1"], ["--seconds", "0"], ["--shadow", "0"], ["--shadow", "1.5"], ["--rate", "-1"]])
def test_wrong_options_end_before_anything_starts(argv: list[str]) -> None:
    with pytest.raises(OptionsError, match="--rounds of at least 2"):
        shadow_cost.main(argv)
    with pytest.raises(OptionsError, match="--limit to be a number"):
        shadow_cost.main(["--limit", "-1"])


@pytest.mark.full
def test_the_whole_of_it_on_a_tiny_model(tmp_path: Path) -> None:
    model = str(model_folder("distilbert"))
    command = [
        sys.executable, "-m", "loadtest.shadow_cost", "--shadow", "0.5", "--limit", "6", "--rate", "6", "--seconds", "4", "--rounds", "2", "--json",
        "--student", model, "--teacher", model, "--serve-options=--engine onnxruntime --threads 1", "--run-file", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode in (0, 1), done.stderr[-2000:]  # 1: a busy machine made the client late
    found = json.loads(done.stdout)
    assert "run file: " in done.stderr, done.stderr[-2000:]
    (path,) = tmp_path.glob("load-*.json")
    run = runs.read(path)
    assert (run.kind, run.name, run.results) == ("load", "shadow", found)
    assert found["failures"] == 0 and (done.returncode == 1) == bool(found["void"])
    shadow = found["shadow"]
    # Half of the requests to the service with the shadow: about a quarter of all.
    assert shadow["compared"] > 0 and shadow["failed"] == 0
    assert 0.05 * found["requests"] < shadow["compared"] + shadow["dropped"] < 0.45 * found["requests"]

"""What a run of loadtest/qa.py leaves: its table, the objectives it met, the exit status, the run file."""

from __future__ import annotations

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from locust.env import Environment

from loadtest.arriving import Conductor
from loadtest.objectives import ERRORS, Objective
from loadtest.open_loop import lag_limit, why_void
from loadtest.options import is_open, objectives
from loadtest.pairs import Log, table
from loadtest.questions import MODELS
from loadtest.rate_search import START_RATE, Found, RateSearch, Terms, find_rate
from loadtest.record import Loop, write_run
from pocketqa.errors import PocketQAError
from pocketqa.runs import Subject

logger = logging.getLogger("loadtest.ending")


class Ending:
    """Of one run, in the process that conducts it.  questions: how many were asked; subjects: the models, for the run file."""

    def __init__(self, environment: Environment, log: Log, questions: int = 0, subjects: Sequence[Subject] = ()) -> None:
        self._environment, self._log = environment, log
        self._questions, self._subjects = questions, subjects
        self._found: dict[str, Found] = {}
        self._problem = ""  # of a search

    @property
    def _options(self) -> Namespace:
        options: Namespace | None = self._environment.parsed_options
        assert options is not None
        return options

    def search(self, conductor: Conductor) -> None:
        """Find each model's highest rate, and end the run."""
        options = self._options
        terms = Terms(Objective.parse(options.find_rate), options.step_time, self._max_lag)
        try:
            for model in (terms.objective.model,) if terms.objective.model else MODELS:
                found = self._found[model] = Found()
                find_rate(found, model, RateSearch(START_RATE), terms, partial(conductor.measure, model), logger.info)
        except PocketQAError as error:
            self._problem = str(error)
        assert self._environment.runner is not None
        self._environment.runner.quit()

    def void(self) -> str:
        """Why the run says nothing about the server; empty where it does.  A search repeats such steps itself."""
        if self._options.find_rate:
            return self._problem
        if not is_open(self._options):
            return ""
        return why_void([lag / 1000 for lag in self._log.lags()], [latency / 1000 for latency in self._log.latencies()], self._max_lag)

    def missed(self) -> bool:
        """Whether an objective was missed, or a model has no rate within it."""
        if self._options.find_rate:
            return any(found.rates[-1:] in ([], [None]) for found in self._found.values())
        return any(not objective.met(*self._of(model)) for objective, model in self._wanted())

    def judge(self, environment: Environment, **_: Any) -> None:
        """The exit status.  A run without a single request proves nothing and must not end with status 0."""
        assert environment.runner is not None
        if environment.runner.stats.num_requests == 0:
            logger.error("Not one request was made.")
            environment.process_exit_code = 1
        elif self.void() or self.missed():
            environment.process_exit_code = 1
        elif self._options.find_rate or any(objective.of == ERRORS for objective, _ in self._wanted()):
            environment.process_exit_code = 0
        elif any(one.failures for one in self._log.models.values()):  # Locust's own rule, and requests that it does not know, since nobody answered
            environment.process_exit_code = self._options.exit_code_on_error

    def show(self, **_: Any) -> None:
        """The table of a run that was started from the web page."""
        print("\n".join(["", *self.lines(), ""]), flush=True)

    def finish(self, **_: Any) -> None:
        """The table, below Locust's own, at the end of a run without the web page; the run file where one is wanted."""
        print("\n".join(["", *self.lines()]), flush=True)
        options, runner = self._options, self._environment.runner
        assert runner is not None
        if not options.run_file or not (self._log.requests or self._found):
            return
        if self.void():
            print("No run file was written, since the run is void.", flush=True)
            return
        total = runner.stats.total
        seconds = (total.last_request_timestamp or 0) - total.start_time
        loop = Loop(runner.target_user_count, options.open_loop, seconds, options.seed, options.find_rate)
        command = ["locust", *sys.argv[1:]]
        path = write_run(options.run_file, self._log, self._found, self._subjects, options.squad, self._questions, command, loop)
        print(f"Written: {path}", flush=True)

    def lines(self) -> list[str]:
        """What was found, for the terminal."""
        if self._options.find_rate:
            return [*_search_lines(self._found, self._options.find_rate), *([f"VOID: {self._problem}"] if self._problem else [])]
        said = [table(self._log, self._options.seed)]
        if is_open(self._options) and self._log.requests:
            lags, allowed = self._log.lags(), 1000 * lag_limit([latency / 1000 for latency in self._log.latencies()], self._max_lag)
            said.append(
                f"Open loop of {self._options.open_loop:g} requests a second: times count from when a request was due. It was sent "
                f"{np.median(lags):.2f} ms later at the median, {np.quantile(lags, 0.99):.2f} ms at p99 (allowed: {allowed:.1f} ms)."
            )
        if reason := self.void():
            said.append(f"VOID: {reason}. Use fewer requests a second, more users (-u) or --processes, and leave the client a core of its own.")
        return said + [objective.verdict(model, *self._of(model)) for objective, model in self._wanted()]

    @property
    def _max_lag(self) -> float:
        return float(self._options.max_lag) / 1000

    def _wanted(self) -> list[tuple[Objective, str]]:
        return [(objective, model) for objective in objectives(self._options) for model in MODELS if objective.model in ("", model)]

    def _of(self, model: str) -> tuple[list[float], int]:
        log = self._log.models[model]
        return [float(latency) for latency in log.column("latency")], log.failures


def _search_lines(found: dict[str, Found], objective: str) -> list[str]:
    lines = [
        f"Highest rate of requests within {objective}, each model alone, in an open loop",
        f"{'model':<8} {'a second':>9} {'requests':>8} {'failures':>8} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8}",
    ]
    for model, one in found.items():
        for point in sorted(one.points, key=lambda point: float(point["rate"])):
            times = " ".join(f"{'-' if point[key] is None else format(point[key], '.1f'):>8}" for key in ("p50", "p90", "p99"))
            highest = "  <- highest" if point["rate"] in one.rates else "" if point["within"] else "  over"
            lines.append(f"{model:<8} {point['rate']:>9g} {point['count'] + point['failures']:>8} {point['failures']:>8} {times}{highest}")
        if one.rates == [None]:
            lines.append(f"{model:<8} keeps it at no rate that was tried")
    return lines

"""What a load test keeps: one exchange a model, two exchanges a pair; sums over workers; the table at the end.

A row of `pairs` is [question number, teacher client ms, student client ms, teacher forward ms, student forward ms].  Only pairs of which both halves
were right are in it, and a pair that the end of the run cut in two is not counted at all.  The interval of a ratio draws questions, not requests: the
same question asked again tells little that is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.checks import STAGES, Checked
from loadtest.questions import MODELS, Question
from pocketqa.runs import Interval, median_ratio

RESAMPLES = 2_000  # ends of a 95 % interval are then steady to about a tenth of its width
TEACHER, STUDENT = MODELS
COLUMNS = ("number", "latency", "lag", *STAGES, "exact", "f1")  # of a row of a right answer: question, milliseconds, scores
FORWARD = STAGES.index("forward")
SLOWEST = 0.99  # the quantile from which on an answer counts among the slowest


@dataclass(frozen=True, slots=True)
class Half:
    """One model's part of a pair: milliseconds from the time at which it was due to the answer, and to its first byte sent (0 in a closed loop); what
    was in the answer, None for a failure."""

    latency: float
    lag: float
    checked: Checked | None


@dataclass(slots=True)
class ModelLog:
    """All exchanges with one model: a row of COLUMNS for each right answer, the lag (ms) of each failure."""

    rows: list[list[float]] = field(default_factory=list)
    failed: list[float] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """Right or not."""
        return len(self.rows) + len(self.failed)

    @property
    def failures(self) -> int:
        """Requests without a right answer."""
        return len(self.failed)

    def column(self, name: str) -> NDArray[np.float64]:
        """(rows,) one of COLUMNS."""
        at = COLUMNS.index(name)
        return np.array([row[at] for row in self.rows])

    def lags(self) -> list[float]:
        """Milliseconds, of all requests."""
        return [*self.column("lag"), *self.failed]


@dataclass(slots=True)
class Log:
    """All exchanges of one process, or of all workers together."""

    models: dict[str, ModelLog] = field(default_factory=lambda: {model: ModelLog() for model in MODELS})
    pairs: list[list[float]] = field(default_factory=list)

    def add(self, question: Question, halves: Mapping[str, Half]) -> None:
        """One pair, or one half where only one model is asked."""
        right: dict[str, tuple[float, float]] = {}
        for model, half in halves.items():
            log = self.models[model]
            if half.checked is None:
                log.failed.append(half.lag)
                continue
            stages = half.checked.stages
            log.rows.append([question.number, half.latency, half.lag, *stages, half.checked.exact, half.checked.f1])
            right[model] = (half.latency, stages[FORWARD])
        if len(right) == len(MODELS):
            self.pairs.append([question.number, right[TEACHER][0], right[STUDENT][0], right[TEACHER][1], right[STUDENT][1]])

    def take(self) -> dict[str, Any]:
        """Everything since the last call, as plain values for the message to the master; the log is empty afterwards."""
        message = {"models": {model: [log.rows, log.failed] for model, log in self.models.items()}, "pairs": self.pairs}
        self.clear()
        return message

    def merge(self, message: dict[str, Any]) -> None:
        """Add what a worker sent."""
        for model, (rows, failed) in message["models"].items():
            self.models[model].rows.extend(rows)
            self.models[model].failed.extend(failed)
        self.pairs.extend(message["pairs"])

    def clear(self) -> None:
        """Forget everything."""
        self.models = {model: ModelLog() for model in MODELS}
        self.pairs = []

    @property
    def requests(self) -> int:
        """Of both models."""
        return sum(log.requests for log in self.models.values())

    def lags(self) -> list[float]:
        """Milliseconds, of all requests to both models."""
        return [lag for log in self.models.values() for lag in log.lags()]

    def latencies(self) -> list[float]:
        """Milliseconds, of all right answers of both models."""
        return [float(latency) for log in self.models.values() for latency in log.column("latency")]


@dataclass(frozen=True, slots=True)
class Ratios:
    """Teacher over student, ratios of medians with paired 95 % intervals; forward is None when the server's times are too small to divide."""

    client: Interval
    forward: Interval | None


def ratios(log: Log, seed: int = 0) -> Ratios | None:
    """The speed ratios, or None without a single complete pair."""
    if not log.pairs:
        return None
    table = np.asarray(log.pairs, dtype=np.float64)  # (pairs, 5)
    numbers = table[:, 0].astype(np.int64)
    client = median_ratio(table[:, 1], table[:, 2], numbers, resamples=RESAMPLES, seed=seed)
    measurable = bool((table[:, 4] > 0).all())
    forward = median_ratio(table[:, 3], table[:, 4], numbers, resamples=RESAMPLES, seed=seed) if measurable else None
    return Ratios(client, forward)


def table(log: Log, seed: int = 0) -> str:
    """The result as text."""
    asked = len({int(row[0]) for row in log.pairs})
    lines = [
        f"Teacher and student on the same questions, in random order: {len(log.pairs)} pairs of {asked} questions, seed {seed}",
        f"{'model':<8} {'requests':>8} {'failures':>8} {'p50 ms':>8} {'p90 ms':>8} {'p99 ms':>8} {'forward p50 ms':>15} {'EM':>6} {'F1':>6}",
    ]
    lines += [_line(model, model_log) for model, model_log in log.models.items()]
    lines.append("Times are the client's, of right answers only; forward is the model alone, as the server measured it.")
    lines += _where_lines(log)
    found = ratios(log, seed)
    if found is None:
        return "\n".join([*lines, "No pair was answered by both models: there is no ratio."])
    forward = f"; forward {_interval(found.forward)}" if found.forward else ""
    return "\n".join(
        [*lines, f"Teacher / student, ratio of medians with its 95 % interval over questions: client {_interval(found.client)}{forward}"]
    )


def where(log: ModelLog, slowest: bool = False) -> dict[str, float] | None:
    """Where the time of a right answer went, mean milliseconds that add up to "whole"; of all, or of the slowest of a hundred.  None without one.

    "sent late" is the client's; "other in the server" what its stages leave of its total, and "network and HTTP" what that leaves of the whole.
    """
    latency = log.column("latency")
    if not len(latency):
        return None
    chosen = latency >= np.quantile(latency, SLOWEST) if slowest else np.ones(len(latency), dtype=bool)
    mean = {name: float(log.column(name)[chosen].mean()) for name in ("latency", "lag", *STAGES)}
    stages = {stage: mean[stage] for stage in STAGES if stage != "total"}
    other = {"other in the server": mean["total"] - sum(stages.values()), "network and HTTP": mean["latency"] - mean["lag"] - mean["total"]}
    return {"sent late": mean["lag"], **stages, **other, "whole": mean["latency"]}


def _where_lines(log: Log) -> list[str]:
    rows = [
        (f"{'slowest 1 %' if slowest else 'all answers'} of the {model}", found)
        for model, one in log.models.items()
        for slowest in (False, True)
        if (found := where(one, slowest))
    ]
    if not rows:
        return []
    names = list(rows[0][1])
    lines = [" ".join([f"{'where the time went, mean ms':<29}", *(f"{name:>{_width(name)}}" for name in names)])]
    return lines + [" ".join([f"{label:<29}", *(f"{_three(found[name]):>{_width(name)}}" for name in names)]) for label, found in rows]


def _width(name: str) -> int:
    return max(8, len(name))


def _line(model: str, log: ModelLog) -> str:
    head = f"{model:<8} {log.requests:>8} {log.failures:>8}"
    if not log.rows:
        return f"{head} {'-':>8} {'-':>8} {'-':>8} {'-':>15} {'-':>6} {'-':>6}"
    p50, p90, p99 = np.percentile(log.column("latency"), (50, 90, 99))
    forward, exact, f1 = np.median(log.column("forward")), 100 * log.column("exact").mean(), 100 * log.column("f1").mean()
    return f"{head} {_three(p50):>8} {_three(p90):>8} {_three(p99):>8} {_three(forward):>15} {exact:>6.1f} {f1:>6.1f}"


def _interval(interval: Interval) -> str:
    return f"{_three(interval.value)} ({_three(interval.low)} to {_three(interval.high)})"


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"

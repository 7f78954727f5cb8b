"""What a load test keeps: one exchange a model, two exchanges a pair; sums over workers; the table at the end.

A row of `pairs` is [question number, teacher client ms, student client ms, teacher forward ms, student forward ms].  Only pairs of which both halves
were right are in it, and a pair that the end of the run cut in two is not counted at all.  The interval of a ratio draws questions, not requests: the
same question asked again tells little that is new.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loadtest.checks import Checked
from loadtest.questions import MODELS, Question
from pocketqa.runs import Interval, median_ratio

RESAMPLES = 2_000  # ends of a 95 % interval are then steady to about a tenth of its width
TEACHER, STUDENT = MODELS


@dataclass(slots=True)
class ModelLog:
    """All exchanges with one model.  A row of `rows` is [client ms, forward ms, exact match, F1], of right answers only."""

    requests: int = 0
    failures: int = 0
    rows: list[list[float]] = field(default_factory=list)


@dataclass(slots=True)
class Log:
    """All exchanges of one process, or of all workers together."""

    models: dict[str, ModelLog] = field(default_factory=lambda: {model: ModelLog() for model in MODELS})
    pairs: list[list[float]] = field(default_factory=list)

    def add(self, question: Question, halves: dict[str, tuple[float, Checked] | None]) -> None:
        """One pair: for each model its client milliseconds and checked answer, or None for a failure."""
        for model, half in halves.items():
            log = self.models[model]
            log.requests += 1
            if half is None:
                log.failures += 1
            else:
                log.rows.append([half[0], half[1].forward_ms, half[1].exact, half[1].f1])
        teacher, student = halves.get(TEACHER), halves.get(STUDENT)
        if teacher is not None and student is not None:
            self.pairs.append([question.number, teacher[0], student[0], teacher[1].forward_ms, student[1].forward_ms])

    def take(self) -> dict[str, Any]:
        """Everything since the last call, as plain values for the message to the master; the log is empty afterwards."""
        message = {"models": {model: [log.requests, log.failures, log.rows] for model, log in self.models.items()}, "pairs": self.pairs}
        self.clear()
        return message

    def merge(self, message: dict[str, Any]) -> None:
        """Add what a worker sent."""
        for model, (requests, failures, rows) in message["models"].items():
            log = self.models[model]
            log.requests += requests
            log.failures += failures
            log.rows.extend(rows)
        self.pairs.extend(message["pairs"])

    def clear(self) -> None:
        """Forget everything."""
        self.models = {model: ModelLog() for model in MODELS}
        self.pairs = []

    @property
    def requests(self) -> int:
        """Of both models."""
        return sum(log.requests for log in self.models.values())


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
    found = ratios(log, seed)
    if found is None:
        return "\n".join([*lines, "No pair was answered by both models: there is no ratio."])
    forward = f"; forward {_interval(found.forward)}" if found.forward else ""
    return "\n".join(
        [*lines, f"Teacher / student, ratio of medians with its 95 % interval over questions: client {_interval(found.client)}{forward}"]
    )


def _line(model: str, log: ModelLog) -> str:
    head = f"{model:<8} {log.requests:>8} {log.failures:>8}"
    if not log.rows:
        return f"{head} {'-':>8} {'-':>8} {'-':>8} {'-':>15} {'-':>6} {'-':>6}"
    rows = np.asarray(log.rows, dtype=np.float64)  # (exchanges, 4)
    p50, p90, p99 = np.percentile(rows[:, 0], (50, 90, 99))
    forward, exact, f1 = np.median(rows[:, 1]), 100 * rows[:, 2].mean(), 100 * rows[:, 3].mean()
    return f"{head} {_three(p50):>8} {_three(p90):>8} {_three(p99):>8} {_three(forward):>15} {exact:>6.1f} {f1:>6.1f}"


def _interval(interval: Interval) -> str:
    return f"{_three(interval.value)} ({_three(interval.low)} to {_three(interval.high)})"


def _three(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"

"""Locust in an open loop: requests are due at times drawn beforehand, and its users are the connections on which they are sent.

Each process has a Poisson process of its own with its part of the rate: together they are one of the whole rate.  The process that conducts the run,
alone or as the master, sends each step (a rate, for so long, to these models) as a message; who sends requests begins it, and at its end, when all
were answered, sends what it saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import gevent
import gevent.queue
from locust.env import Environment
from locust.rpc import Message
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest.open_loop import poisson
from loadtest.pairs import Half, Log
from loadtest.questions import Question
from loadtest.rate_search import Seen
from pocketqa.errors import PocketQAError

CONNECTIONS = 64  # users, where their number is not given
STOP_SECONDS = 10.0  # for answers that are under way when a run ends: without them the slowest would be left out
STEP, STEPPED = "pocketqa_step", "pocketqa_stepped"
LONGEST_ANSWER = 90.0  # seconds that a step may take beyond its own; Locust's client gives up after 60
POLL_SECONDS = 0.02

Plan = Iterator[tuple[Question, tuple[str, str]]]


class StepFailed(PocketQAError):
    """A step was not carried through by all processes."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one process is to do: send `rate` requests a second for `seconds` (None: until the run ends) to these models, to both in pairs."""

    number: int
    rate: float
    models: tuple[str, ...]
    seconds: float | None
    seed: int


@dataclass(slots=True, eq=False)
class Due:
    """A request that is due at `at` (time.perf_counter).  halves: what is known of its pair so far; wanted: how many there will be."""

    at: float
    question: Question
    model: str
    wanted: int
    halves: dict[str, Half] = field(default_factory=dict)


class Schedule:
    """The requests of one process: on a queue from the time at which they are due, and open until they are answered."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._queue: gevent.queue.Queue[Due] = gevent.queue.Queue()
        self._open: set[Due] = set()
        self._greenlet: gevent.Greenlet[..., None] | None = None

    def begin(self, step: Step, plan: Plan, stream: int, done: Callable[[], None]) -> None:
        """Draw the arrivals of a step in place of what went on before; `done` is called when all of its requests were answered."""
        self.end()
        self._greenlet = gevent.spawn(self._run, step, plan, stream, done)

    def end(self) -> None:
        """No more arrivals.  What was due and has not been sent is a failure, and so is what is not answered in STOP_SECONDS from now."""
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None
        while not self._queue.empty():
            due = self._queue.get_nowait()
            late = 1000 * (time.perf_counter() - due.at)
            self.answered(due, Half(late, late, None))
        ends = time.monotonic() + STOP_SECONDS
        while self._open and time.monotonic() < ends:
            gevent.sleep(POLL_SECONDS)
        for due in list(self._open):
            self.answered(due, Half(1000 * (time.perf_counter() - due.at), 0.0, None))

    def next(self) -> Due:
        """The next request that is due; waits for it."""
        due: Due = self._queue.get()
        return due

    def answered(self, due: Due, half: Half) -> None:
        """What came of a request."""
        self._open.discard(due)
        due.halves[due.model] = half
        if len(due.halves) == due.wanted:
            self._log.add(due.question, due.halves)

    def _run(self, step: Step, plan: Plan, stream: int, done: Callable[[], None]) -> None:
        start = time.perf_counter()
        for at, due in zip(poisson(step.rate, f"{step.seed}-{stream}-{step.number}"), _requests(plan, step.models), strict=False):
            if step.seconds is not None and at >= step.seconds:
                break
            gevent.sleep(max(0.0, start + at - time.perf_counter()))
            due.at = start + at
            self._open.add(due)
            self._queue.put(due)
        if step.seconds is not None:
            gevent.sleep(max(0.0, start + step.seconds - time.perf_counter()))
        while self._open:
            gevent.sleep(POLL_SECONDS)
        done()


def _requests(plan: Plan, models: Sequence[str]) -> Iterator[Due]:
    """One after another, a pair's two halves in their order."""
    for question, order in plan:
        halves: dict[str, Half] = {}
        for model in order:
            if model in models:
                yield Due(0.0, question, model, len(models), halves)


def follow(environment: Environment, schedule: Schedule, log: Log, plan: Callable[[], Plan]) -> None:
    """Make this process carry out steps, unless it is a master, which sends no requests."""
    runner = environment.runner
    if not isinstance(runner, LocalRunner | WorkerRunner):
        return

    def begin(environment: Environment, msg: Message) -> None:
        step = Step(**{**msg.data, "models": tuple(msg.data["models"])})
        schedule.begin(step, plan(), runner.worker_index, lambda: runner.send_message(STEPPED, {"number": step.number, "log": log.take()}))

    runner.register_message(STEP, begin)


class Conductor:
    """Sends steps from the process that conducts the run, and waits for what comes of them."""

    def __init__(self, runner: LocalRunner | MasterRunner, log: Log, seed: int) -> None:
        self._runner, self._log, self._seed = runner, log, seed
        self._number = 0
        self._stepped: set[str] = set()
        runner.register_message(STEPPED, self._receive)

    def send(self, rate: float, models: Sequence[str], seconds: float | None = None) -> int:
        """Begin a step of `rate` requests a second in all; returns how many processes share it."""
        processes = self._runner.worker_count
        self._number += 1
        self._stepped.clear()
        step = Step(self._number, rate / max(1, processes), tuple(models), seconds, self._seed)
        self._runner.send_message(STEP, asdict(step))
        return processes

    def measure(self, model: str, rate: float, seconds: float) -> Seen:
        """A whole step to one model.  Raises StepFailed."""
        self._log.clear()
        processes = self.send(rate, (model,), seconds)
        ends = time.monotonic() + seconds + LONGEST_ANSWER
        while len(self._stepped) < processes:
            if time.monotonic() > ends:
                raise StepFailed(f"Expected {processes} processes to end a step of {seconds:.0f} s, found that {len(self._stepped)} did.")
            gevent.sleep(POLL_SECONDS)
        seen = self._log.models[model]
        times, lags = seen.column("latency"), seen.column("lag")
        return Seen(times.tolist(), seen.failures, [lag / 1000 for lag in seen.lags()], (times - lags).tolist())

    def _receive(self, environment: Environment, msg: Message) -> None:
        self._log.merge(msg.data["log"])
        if msg.data["number"] == self._number:
            self._stepped.add(msg.node_id)

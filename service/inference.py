"""The way of a question: text to windows, windows through the scheduler, logits to answers; all of it off the event loop.

Tokenising and decoding have threads of their own, the forward passes run wherever the engine has its lanes.  Every method may be cancelled at any
time: what is still queued leaves the queue.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from pocketqa.errors import EngineError, PocketQAError
from pocketqa.features import Encoded
from pocketqa.spans import check_options
from pocketqa.types import Result, StageTimings
from service.engine.lanes import Engine
from service.engine.scheduler import Scheduler
from service.errors import DeadlineExceeded
from service.metrics import Metrics
from service.models import Pair, Served
from service.questions import Question, encode
from service.schemas import Role
from service.settings import Settings
from service.threads import Threads

T = TypeVar("T")

_TEXT_THREADS = 2
_CHARACTER_SECONDS = 3e-7  # to tokenise a character, before any were; learned from then on
_MOST_CHARACTER_SECONDS = 10 * _CHARACTER_SECONDS  # what many windows on few characters take says nothing of other texts
_GAIN = 0.05


@dataclass(frozen=True, slots=True)
class Answered:
    """One model's result, with the seconds that passed from the first of its stages to the last."""

    result: Result
    total: float


@dataclass(frozen=True, slots=True)
class Compared:
    """Both models' results on the same windows."""

    teacher: Answered
    student: Answered
    first: Role


@dataclass(slots=True)
class Clock:
    """When a request came, when it is given up, and how many seconds of computing its questions have in the queue."""

    arrived: float
    deadline: float
    queued: float = 0.0


class Inference:
    """Runs the stages of requests for a pair of models."""

    def __init__(self, pair: Pair, engine: Engine, settings: Settings, metrics: Metrics) -> None:
        self._pair = pair
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._text = Threads(_TEXT_THREADS, "pocketqa-text")
        self._characters = 0  # that are being tokenised, or wait for it
        self._character_seconds = _CHARACTER_SECONDS
        self._scheduler = Scheduler(engine, settings, metrics)
        # Told of each answer of the student's: question, windows, result.  It has to return at once.
        self.mirror: Callable[[Question, Encoded, Result], None] | None = None

    @property
    def alive(self) -> bool:
        """Whether anything computes at the moment."""
        return any(lane.alive for lane in self._engine.lanes)

    @property
    def quiet(self) -> bool:
        """Whether no request waits for anything, and one that came now would be computed at once."""
        return not self._characters and self._scheduler.spare

    def workers(self) -> list[dict[str, object]]:
        """The processes that compute: pid, rss_bytes, peak_rss_bytes, threads, alive_seconds, restarts."""
        return self._engine.processes()

    async def close(self) -> None:
        """End the lanes, and let the threads go once they are done."""
        self._text.close()
        await self._engine.close()

    async def answer(self, role: Role, question: Question) -> Answered:
        """One model's answers.  Raises Overloaded, DeadlineExceeded, WorkerLost, EngineError, and as `encode` does."""
        began = time.perf_counter()
        async with self._request(role) as clock:
            encoded, waited = await self._encode(question, [self._pair[role]], clock)
            return await self._answer_encoded(role, question, encoded, clock, began, waited)

    async def answer_many(self, role: Role, questions: Sequence[Question], clock: Clock | None = None) -> list[Answered | PocketQAError]:
        """As `answer`, of questions that come at one time, in their order; in the place of one that failed stands its error.

        clock: of the body that they come in, where others of it are put to the other model.
        """
        began, clock = time.perf_counter(), clock or self.clock()
        tasks: list[asyncio.Task[Answered | PocketQAError]] = []
        errors: list[Answered | PocketQAError] = []
        with self._departures(role):
            async with asyncio.TaskGroup() as group:
                while left := questions[len(tasks) :]:
                    try:
                        made, waited = await self._encode_first(left, self._pair[role], clock)
                    except PocketQAError as error:
                        errors = [error] * len(left)
                        break
                    items = zip(left, made, strict=False)
                    tasks += [group.create_task(self._outcome(role, question, encoded, clock, began, waited)) for question, encoded in items]
        return [task.result() for task in tasks] + errors

    async def compare(self, question: Question) -> Compared:
        """Both models' answers on the same windows, in an order drawn anew each time: the second would otherwise always find caches warm."""
        began = time.perf_counter()
        order: list[Role] = ["teacher", "student"]
        random.shuffle(order)
        async with self._request(order[0]) as clock:
            encoded, waited = await self._encode(question, [self._pair["teacher"], self._pair["student"]], clock)
            self._scheduler.admit(dict.fromkeys(order, encoded.windows), clock.deadline)
            shared = time.perf_counter() - began
            sides: dict[Role, Answered] = {}
            for role in order:
                began = time.perf_counter()
                result = await self._read(self._pair[role], question, encoded, clock, waited)
                sides[role] = self._answered(role, result, shared + time.perf_counter() - began)
        return Compared(sides["teacher"], sides["student"], order[0])

    @asynccontextmanager
    async def _request(self, role: Role) -> AsyncIterator[Clock]:
        """Around all of a request: its deadline, and a count of those whose client left.  Raises DeadlineExceeded."""
        clock = self.clock()
        with self._departures(role):
            async with self._in_time(clock):
                yield clock

    def clock(self) -> Clock:
        """Of a request that comes now."""
        arrived = time.monotonic()
        return Clock(arrived, arrived + self._settings.deadline_seconds)

    @contextmanager
    def _departures(self, role: Role) -> Iterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            self._metrics.cancelled(role)
            raise

    @asynccontextmanager
    async def _in_time(self, clock: Clock) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(clock.deadline - time.monotonic()):
                yield
        except TimeoutError:
            limit = self._settings.deadline_seconds
            raise DeadlineExceeded(f"The answer was not ready within {limit:g} seconds.", max(1.0, self._scheduler.wait_seconds())) from None

    def _answered(self, role: Role, result: Result, total: float) -> Answered:
        # Counted once the answer is on its way.
        asyncio.get_running_loop().call_soon(self._metrics.stages, role, result.timings, total)
        return Answered(result, total)

    async def _answer_encoded(self, role: Role, question: Question, encoded: Encoded, clock: Clock, began: float, waited: float) -> Answered:
        own = self._scheduler.admit({role: encoded.windows}, clock.deadline, mine=clock.queued)
        clock.queued += own
        try:
            result = await self._read(self._pair[role], question, encoded, clock, waited)
        finally:
            clock.queued -= own
        if self.mirror is not None and role == "student":
            self.mirror(question, encoded, result)
        return self._answered(role, result, time.perf_counter() - began)

    async def _outcome(
        self, role: Role, question: Question, encoded: Encoded | PocketQAError, clock: Clock, began: float, waited: float
    ) -> Answered | PocketQAError:
        if isinstance(encoded, PocketQAError):
            return encoded
        try:
            async with self._in_time(clock):
                return await self._answer_encoded(role, question, encoded, clock, began, waited)
        except PocketQAError as error:
            return error

    async def _encode(self, question: Question, readers: Sequence[Served], clock: Clock) -> tuple[Encoded, float]:
        with self._tokenising([question], clock):
            return await self._in_thread(lambda: self._make_windows(question, readers))

    async def _encode_first(self, questions: Sequence[Question], served: Served, clock: Clock) -> tuple[list[Encoded | PocketQAError], float]:
        """The first of the questions, as many as come to the most windows of one: those of all of a long list are not held at a time."""

        def make() -> list[Encoded | PocketQAError]:
            made: list[Encoded | PocketQAError] = []
            windows = 0
            for question in questions:
                try:
                    made.append(encoded := self._make_windows(question, [served]))
                    windows += len(encoded.windows)
                except PocketQAError as error:
                    made.append(error)
                if windows >= self._settings.max_windows:
                    break
            return made

        async with self._in_time(clock):
            with self._tokenising(questions, clock):
                return await self._in_thread(make)

    @contextmanager
    def _tokenising(self, questions: Sequence[Question], clock: Clock) -> Iterator[None]:
        """Around making windows: what waits to be tokenised counts as waiting too.  Raises Overloaded."""
        self._scheduler.admit({}, clock.deadline, self._characters * self._character_seconds / _TEXT_THREADS, clock.queued)
        characters = sum(map(_characters, questions))
        self._characters += characters
        try:
            yield
        finally:
            self._characters -= characters

    def _make_windows(self, question: Question, readers: Sequence[Served]) -> Encoded:
        # Both models share a vocabulary, so either tokenizer will do.
        encoded = encode(self._pair.student.reader, question, self._settings.max_windows)
        found = min(encoded.seconds / _characters(question), _MOST_CHARACTER_SECONDS)
        self._character_seconds += _GAIN * (found - self._character_seconds)
        for served in readers:  # options that decoding would refuse are refused before a forward pass is spent on them
            check_options(encoded, question.span_options(served.reader.no_answer), served.reader.no_answer)
        return encoded

    async def _read(self, served: Served, question: Question, encoded: Encoded, clock: Clock, waited: float) -> Result:
        """Windows to answers.  waited: for a thread that tokenises, in seconds; all waiting of a request is its time in the queue."""
        scored = await self._scheduler.run(served.role, encoded.windows, clock.arrived, clock.deadline)
        options = question.span_options(served.reader.no_answer)
        (result,), waited_again = await self._in_thread(lambda: served.reader.decode(encoded, scored.logits, options))
        queue = waited + scored.queue + waited_again
        return replace(result, timings=StageTimings(encoded.seconds, queue, scored.forward, result.timings.decode))

    async def _in_thread(self, work: Callable[[], T]) -> tuple[T, float]:
        """What `work` returns, and the seconds that it waited for a thread."""
        submitted = time.perf_counter()

        def timed() -> tuple[T, float]:
            waited = time.perf_counter() - submitted
            return work(), waited

        try:
            return await self._text.run(timed)
        except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as panic:  # a panic of the tokenizer's Rust code is no Exception, and nothing above would answer it
            raise EngineError(f"A library panicked: {type(panic).__name__}") from panic


def _characters(question: Question) -> int:
    return sum(map(len, (question.request.question, *question.request.contexts)))

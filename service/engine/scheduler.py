"""The queue in front of the engine: one for each model, emptied in batches by lanes that compute one batch at a time.

A lane that is free takes the window that has waited longest, and with it as many others for its model as the measured costs recommend
(service.engine.batches) and as those who are overtaken can bear (service.engine.promises).  There are no timers: nothing waits for company while a
lane is idle, and company gathers by itself while all are busy.  A request whose predicted wait is too long is refused before it is queued.
Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import islice

import numpy as np

from pocketqa.features import collate
from pocketqa.types import SpanLogits, Window
from service.engine.batches import LOOK_AHEAD, Plan
from service.engine.cost import Cost
from service.engine.frames import ROLES
from service.engine.lanes import Engine, Forwarded, Lane
from service.engine.promises import promised
from service.engine.waiting import Piece, Waiting, Work
from service.errors import DeadlineExceeded, LimitExceeded, Overloaded, WorkerLost
from service.metrics import Metrics
from service.schemas import Role
from service.settings import Settings

_NOBODY = "No process that computes is running; one is being started."

log = logging.getLogger("pocketqa.service")


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Logits of a request's windows, with the seconds that they waited and that they were computed."""

    logits: SpanLogits  # (W, T)
    queue: float
    forward: float


@dataclass(slots=True, eq=False)
class _Running:
    """A batch in a lane."""

    role: Role
    pieces: list[Piece]
    shape: tuple[int, int]
    began: float
    expected: float
    around: float  # Engine.around_seconds when it began

    @property
    def apart(self) -> float:
        """Predicted seconds of its windows, one by one."""
        return sum(piece.seconds for piece in self.pieces)


class Scheduler:
    """Runs windows through an engine.  All methods are to be called on the event loop."""

    def __init__(self, engine: Engine, settings: Settings, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._traits = engine.traits
        self._plans: dict[Role, Plan] = {}
        self._queues: dict[Role, Waiting] = {}
        self._running: dict[Lane, _Running] = {}
        self._begun = 0.0  # predicted seconds of all batches that were begun
        self._wake: asyncio.Handle | None = None
        for role in ROLES:
            cost, traits = Cost(clock), self._traits[role]
            for rows, length, seconds in engine.costs[role]:
                cost.seed(rows, length, seconds)
            self._plans[role] = Plan(cost, settings.max_batch_tokens, traits.max_batch, settings.batching, traits.widened)
            self._queues[role] = queue = Waiting()
            metrics.watch_queue(role, queue.tokens, queue.requests)
        metrics.watch_wait(self.wait_seconds)
        engine.watch(self._lanes_changed)

    async def run(self, role: Role, windows: Sequence[Window], arrived: float, deadline: float) -> Scored:
        """Logits of one request's windows.

        arrived: the place in the queue, deadline: when it is given up, both on the scheduler's clock.  Cancelling takes the windows out.
        Raises Overloaded, DeadlineExceeded, WorkerLost, EngineError.
        """
        shape = (len(windows), max(map(len, windows)))
        start, end = np.zeros(shape, np.float32), np.zeros(shape, np.float32)  # (W, T)
        done = asyncio.get_running_loop().create_future()
        submitted = self._clock()
        work = Work(role, windows, arrived, deadline, done, start, end, len(windows))
        self._queue(work)
        self._wake_up()
        try:
            await done
        finally:
            if work.missing:
                self._queues[role].withdraw(work)
        elapsed = self._clock() - submitted
        return Scored(SpanLogits(work.start, work.end), max(0.0, elapsed - work.computed), work.computed)

    def _queue(self, work: Work) -> None:
        """Put a request's windows into their queue, with a promise (service.engine.promises)."""
        now, queue = self._clock(), self._queues[work.role]
        padded, cost = self._traits[work.role].padded, self._plans[work.role].cost
        lengths = [padded(len(window)) for window in work.windows]
        pieces = [Piece(length, work, model=work.role, seconds=cost.seconds(1, length), index=index) for index, length in enumerate(lengths)]
        queue.add(pieces)
        one_by_one = sum(max(0.0, batch.apart - (now - batch.began)) for batch in self._running.values())
        one_by_one += sum(waiting.seconds() for waiting in self._queues.values())
        queue.promise(work.arrived, self._begun - self._rest(now) + promised(one_by_one))

    def _rest(self, now: float) -> float:
        """Predicted seconds until what is running is done, of all lanes together."""
        return sum(max(0.0, batch.began + batch.expected - now) for batch in tuple(self._running.values()))

    def admit(self, wanted: Mapping[Role, Sequence[Window]], deadline: float, before: float = 0.0, mine: float = 0.0) -> float:
        """Seconds that these windows need.  Raises Overloaded, or WorkerLost while nothing computes, where they would wait too long, and
        LimitExceeded where it is for the rest of their own body.

        An idle service takes anything: only so can it learn what things cost.  before: seconds that pass before they reach the queue; mine: what
        earlier windows of the same body need.  Those count for the deadline, and for the limit of the queue only what others wait for.
        """
        own = sum(
            self._plans[role].drain_seconds(Counter(self._traits[role].padded(len(window)) for window in windows)) for role, windows in wanted.items()
        )
        waiting = before + self.wait_seconds()
        if waiting == 0.0:
            return own
        most, mine = self._settings.max_queue_seconds, min(mine / max(1, self._alive), waiting)
        if waiting - mine > most or self._clock() + waiting + own > deadline:
            if (recovery := self._engine.recovery_seconds()) > 0:
                raise WorkerLost(_NOBODY, recovery)
            if mine and self._clock() + mine + own > deadline:
                raise LimitExceeded(
                    f"The questions before this one take about {mine:.1f} seconds and this one {own:.1f}, longer than there is for one body. "
                    "Send fewer questions at once."
                )
            # By then the queue is down to half of what is let in; others come meanwhile.
            raise Overloaded(
                f"About {waiting:.1f} seconds of work are waiting already, and this request needs {own:.1f} more.", max(1.0, waiting - most / 2)
            )
        return own

    def wait_seconds(self) -> float:
        """Predicted seconds until a window that came now would be computed: what is queued and what is running, over the lanes that are alive.

        Metrics are read in a thread, so that what it looks at is copied first.
        """
        seconds = self._rest(self._clock()) + sum(self._plans[role].drain_seconds(dict(self._queues[role].lengths)) for role in ROLES)
        return seconds / max(1, self._alive) + self._engine.recovery_seconds()

    @property
    def _alive(self) -> int:
        return sum(lane.alive for lane in self._engine.lanes)

    @property
    def idle(self) -> bool:
        """Whether nothing is queued and nothing computed."""
        return not self._running and not any(self._queues.values())

    @property
    def spare(self) -> bool:
        """Whether nothing is queued and a lane has nothing to compute."""
        return not any(self._queues.values()) and any(lane.alive and lane not in self._running for lane in self._engine.lanes)

    def _wake_up(self) -> None:
        """Look for work once what is happening on the loop now has happened: requests that come together are then seen together."""
        if self._wake is None:
            self._wake = asyncio.get_running_loop().call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._wake = None
        for lane in self._engine.lanes:
            if not lane.alive or lane in self._running:
                continue
            chosen = self._next()
            if chosen is None:
                return
            self._start(lane, *chosen)

    def _next(self) -> tuple[Role, list[Piece]] | None:
        """The next batch, taken out of its queue."""
        now = self._clock()
        for role in ROLES:
            while self._queues[role] and self._queues[role].head.deadline <= now:
                self._fail(self._queues[role].head, DeadlineExceeded("The request waited for as long as it may take."))
        queues = [queue.pieces for queue in self._queues.values() if queue]
        if not queues:
            return None
        waiting = list(islice(merge(*queues, key=lambda piece: piece.owner.arrived), LOOK_AHEAD))
        role = waiting[0].owner.role
        pieces = [waiting[index] for index in self._plans[role].choose(waiting, self._begun)]
        self._queues[role].take(pieces)
        return role, pieces

    def _start(self, lane: Lane, role: Role, pieces: list[Piece]) -> None:
        plan = self._plans[role]
        length = plan.length(len(pieces), max(piece.length for piece in pieces))
        batch = collate([piece.owner.windows[piece.index] for piece in pieces], length, self._traits[role].pad_id)
        expected = plan.cost.seconds(len(pieces), length)
        self._begun += expected
        running = self._running[lane] = _Running(role, pieces, batch.shape, self._clock(), expected, self._engine.around_seconds())
        lane.forward(role, batch).add_done_callback(lambda future: self._finish(lane, running, future))

    def _finish(self, lane: Lane, running: _Running, future: asyncio.Future[Forwarded]) -> None:
        now = self._clock()
        del self._running[lane]
        if future.cancelled():
            self._failed(running, WorkerLost("The service is about to stop."))
        elif (error := future.exception()) is not None:
            self._failed(running, error)
        else:
            # First what others wait for: the lane for its next batch, the requests for their results.
            around = self._engine.around_seconds() - running.around
            self._dispatch()
            self._hand_out(running, future.result(), now)
            asyncio.get_running_loop().call_soon(self._learn, running, future.result(), now - running.began, around)
            return
        self._dispatch()

    def _learn(self, running: _Running, forwarded: Forwarded, seconds: float, around: float) -> None:
        rows, length = running.shape
        # What a batch costs is what the lane was busy with it for: the ways to the worker and back included.
        self._plans[running.role].cost.observe(rows, length, seconds, around)
        tokens = sum(piece.tokens for piece in running.pieces)
        self._metrics.batch(running.role, rows, tokens, rows * length, forwarded.seconds)

    def _hand_out(self, running: _Running, forwarded: Forwarded, now: float) -> None:
        for row, piece in enumerate(running.pieces):
            work = piece.owner
            size = piece.tokens
            work.start[piece.index, :size] = forwarded.logits.start[row, :size]
            work.end[piece.index, :size] = forwarded.logits.end[row, :size]
            work.computed += max(0.0, now - max(now - forwarded.seconds, work.until))
            work.until = now
            work.missing -= 1
            if work.missing == 0 and not work.done.done():
                work.done.set_result(None)

    def _failed(self, running: _Running, error: BaseException) -> None:
        """A batch failed.  If the lane lives, its windows are tried one by one, so that only a bad one fails; if it died, all are told at once."""
        if isinstance(error, WorkerLost) or len(running.pieces) == 1:
            for piece in running.pieces:
                self._fail(piece.owner, error)
            return
        self._metrics.retried(running.role)
        log.warning("A batch of %d windows failed on the %s: each is tried by itself. %s", len(running.pieces), running.role, error)
        alone = [piece for piece in running.pieces if not piece.owner.done.done()]
        for piece in alone:
            piece.alone = True
        self._queues[running.role].add(alone)

    def _fail(self, work: Work, error: BaseException) -> None:
        if not work.done.done():
            work.done.set_exception(error)
        self._queues[work.role].withdraw(work)

    def _lanes_changed(self) -> None:
        """A lane died or came back.  What waits goes on waiting only where a lane will be back before its deadline."""
        back = self._clock() + self._engine.recovery_seconds()
        for role in ROLES:
            for work in self._queues[role].works():
                if work.deadline < back:
                    self._fail(work, WorkerLost(_NOBODY, self._engine.recovery_seconds()))
        self._wake_up()

"""A service without its text and without computing: the scheduler over lanes that take as long as a function says, on a clock that leaps.

Nothing here waits: where the event loop would sleep, its clock leaps to the time that it would wake at.  An hour of requests is a matter of seconds,
and every run is the same.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pocketqa.types import Batch, RuntimeInfo, SpanLogits
from service.engine.batches import ROWS, STEP, WIDE_STEP, Traits
from service.engine.lanes import Forwarded
from service.engine.scheduler import Scheduler
from service.metrics import Metrics
from service.schemas import Role
from service.settings import Settings
from tests.service.engine.hand_engine import window

FAR = 1e9
PATIENT = {"max_queue_seconds": 3600.0, "deadline_seconds": 3600.0}

T = TypeVar("T")
Seconds = Callable[[int, int], float]  # of a pass, by rows and length


class _Leap(selectors.SelectSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "everybody waits for somebody else"
        self.now += max(0.0, timeout)
        return super().select(0)


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock leaps."""

    def __init__(self) -> None:
        self._leap = _Leap()
        super().__init__(self._leap)

    def time(self) -> float:
        return self._leap.now


class SimulatedLane:
    alive = True

    def __init__(self, seconds: Seconds, handling: float) -> None:
        self._seconds, self._handling = seconds, handling
        self._owed = 0.0  # seconds of handling what the last pass brought
        self.around = 0.0  # seconds of handling so far

    def forward(self, role: Role, batch: Batch) -> asyncio.Future[Forwarded]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Forwarded] = loop.create_future()
        logits = np.zeros(batch.shape, np.float32)
        seconds = self._seconds(*batch.shape) + self._owed
        self.around += self._owed
        self._owed = self._handling * batch.shape[0]
        loop.call_later(seconds, future.set_result, Forwarded(SpanLogits(logits, logits), seconds))
        return future


class SimulatedEngine:
    """Lanes whose passes take so many seconds, which the service knows from warming up.

    handling: seconds for each window that a pass brings, taken from the pass after it.
    """

    def __init__(self, seconds: Seconds, lanes: int = 1, handling: float = 0.0) -> None:
        self.lanes: Sequence[SimulatedLane] = [SimulatedLane(seconds, handling) for _ in range(lanes)]
        traits = Traits(RuntimeInfo("simulated", "1", "fp32", 1), None, None)
        self.traits: Mapping[Role, Traits] = {"teacher": traits, "student": traits}
        known = [(1, length, seconds(1, length)) for length in range(STEP, 385, STEP)]
        known += [(rows, length, seconds(rows, length)) for rows in ROWS[1:] for length in range(WIDE_STEP, 385, WIDE_STEP)]
        self.costs: Mapping[Role, Sequence[tuple[int, int, float]]] = {"teacher": known, "student": known}

    def recovery_seconds(self) -> float:
        return 0.0

    def around_seconds(self) -> float:
        return sum(lane.around for lane in self.lanes) / len(self.lanes)

    def watch(self, changed: Callable[[], None]) -> None:
        pass

    def processes(self) -> list[dict[str, object]]:
        return []

    async def close(self) -> None:
        pass


@dataclass(frozen=True)
class Asked:
    """A request: when it comes, the tokens of its windows, the model."""

    at: float
    tokens: tuple[int, ...]
    role: Role = "student"


def open_loop(asked: Sequence[Asked], seconds: Seconds, lanes: int = 1, **settings: Any) -> list[float]:
    """Seconds from the coming of each request to its answer."""

    async def scene(scheduler: Scheduler) -> list[float]:
        async def ask(one: Asked) -> float:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(one.at - loop.time())
            windows = [window(*[1] * tokens) for tokens in one.tokens]
            await scheduler.run(one.role, windows, loop.time(), FAR)
            return loop.time() - one.at

        return list(await asyncio.gather(*map(ask, asked)))

    return play(scene, seconds, lanes, **settings)


@dataclass(frozen=True)
class Measured:
    """What a closed loop measured: answers a second, and the seconds and the tokens of each request."""

    rate: float
    seconds: NDArray[np.float64]  # (N,)
    tokens: NDArray[np.int64]  # (N,)

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.seconds, share))


def closed_loop(users: int, tokens: Sequence[int], seconds: Seconds, requests: int, lanes: int = 1, **settings: Any) -> Measured:
    """So many users, each of whom asks again a moment after the answer, for one window of the next number of tokens."""
    draw = random.Random(0)
    queue = iter([tokens[i % len(tokens)] for i in range(requests)])

    async def scene(scheduler: Scheduler) -> Measured:
        loop = asyncio.get_running_loop()
        done: list[tuple[int, float, float]] = []  # tokens, seconds, end

        async def user() -> None:
            for count in queue:
                await asyncio.sleep(draw.uniform(1e-4, 3e-4))
                began = loop.time()
                await scheduler.run("student", [window(*[1] * count)], began, FAR)
                done.append((count, loop.time() - began, loop.time()))

        await asyncio.gather(*(user() for _ in range(users)))
        counted = sorted(done, key=lambda one: one[2])[users:-users]
        rate = (len(counted) - 1) / (counted[-1][2] - counted[0][2])
        return Measured(rate, np.array([one[1] for one in counted]), np.array([one[0] for one in counted]))

    return play(scene, seconds, lanes, **settings)


def play(scene: Callable[[Scheduler], Coroutine[Any, Any, T]], seconds: Seconds, lanes: int = 1, handling: float = 0.0, **settings: Any) -> T:
    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        loop = runner.get_loop()
        scheduler = Scheduler(SimulatedEngine(seconds, lanes, handling), Settings(**(PATIENT | settings)), Metrics(), loop.time)
        return runner.run(scene(scheduler))

"""An engine whose lanes compute when a test says so, by the tiny pair's own arithmetic."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pocketqa.types import Batch, RuntimeInfo, SpanLogits, Window
from service.engine.batches import Traits
from service.engine.lanes import Forwarded
from service.errors import WorkerLost
from service.schemas import Role

SECONDS = 0.25


def window(*ids: int) -> Window:
    """A window of these tokens."""
    tokens = np.array(ids, np.int32)
    flags = np.ones(len(ids), np.bool_)
    return Window(tokens, np.zeros_like(tokens), np.zeros((len(ids), 2), np.int32), flags, flags, 0, 0, 0)


class HandLane:
    """Holds what it was given until `finish`, `fail` or `die`."""

    def __init__(self) -> None:
        self.alive = True
        self.given: list[tuple[Role, Batch]] = []
        self._future: asyncio.Future[Forwarded] | None = None

    def forward(self, role: Role, batch: Batch) -> asyncio.Future[Forwarded]:
        assert self._future is None, "a lane computes one batch at a time"
        self.given.append((role, batch))
        self._future = asyncio.get_running_loop().create_future()
        return self._future

    def take(self) -> asyncio.Future[Forwarded]:
        future, self._future = self._future, None
        assert future is not None, "nothing is being computed"
        return future

    @property
    def busy(self) -> bool:
        return self._future is not None

    async def finish(self) -> None:
        """Start logits are the ids, end logits their negatives."""
        ids = self.given[-1][1].ids.astype(np.float32)  # (B, T)
        self.take().set_result(Forwarded(SpanLogits(ids, -ids), SECONDS))
        await settle()

    async def fail(self, error: Exception) -> None:
        self.take().set_exception(error)
        await settle()


class HandEngine:
    """One lane or several, and a time to recovery that the test sets."""

    def __init__(self, lanes: int = 1, max_batch: int | None = None) -> None:
        self.lanes: Sequence[HandLane] = [HandLane() for _ in range(lanes)]
        info = RuntimeInfo("hand", "1", "fp32", 1)
        traits = Traits(info, None, max_batch)
        self.traits: Mapping[Role, Traits] = {"teacher": traits, "student": traits}
        # A pass takes as long whatever it holds, so all that fits is computed together.
        costs = [(1, 8, SECONDS), (8, 128, SECONDS), (64, 512, SECONDS)]
        self.costs: Mapping[Role, Sequence[tuple[int, int, float]]] = {"teacher": costs, "student": costs}
        self.recovery = 0.0
        self._changed: Callable[[], None] = lambda: None

    def recovery_seconds(self) -> float:
        return 0.0 if any(lane.alive for lane in self.lanes) else self.recovery

    def around_seconds(self) -> float:
        return 0.0

    def watch(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    def processes(self) -> list[dict[str, object]]:
        return []

    async def close(self) -> None:
        pass

    async def die(self, recovery: float) -> None:
        """The first lane ends as a worker does: what it computes is lost, and everybody hears of it."""
        lane = self.lanes[0]
        lane.alive, self.recovery = False, recovery
        if lane.busy:
            lane.take().set_exception(WorkerLost("It ended."))
        self._changed()
        await settle()

    async def come_back(self) -> None:
        self.lanes[0].alive = True
        self._changed()
        await settle()


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(10):
        await asyncio.sleep(0)

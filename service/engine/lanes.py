"""Where batches are computed: lanes, each of which computes one batch at a time, and the engine that keeps them.

The scheduler knows nothing else.  A lane is a worker process (service.engine.process) or, for models that are in this process already, a thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from pocketqa.errors import EngineError
from pocketqa.types import Batch, SpanLogits
from service.engine.batches import Traits
from service.models import Pair
from service.schemas import Role


@dataclass(frozen=True, slots=True, eq=False)
class Forwarded:
    """The logits of a batch and the seconds that its forward pass took."""

    logits: SpanLogits  # (B, T)
    seconds: float


class Lane(Protocol):
    """Computes one batch at a time."""

    @property
    def alive(self) -> bool:
        """Whether it takes batches."""
        ...

    def forward(self, role: Role, batch: Batch) -> asyncio.Future[Forwarded]:
        """Compute a batch.  The future raises WorkerLost where the lane ended, anything else where the engine failed with this batch."""
        ...


class Engine(Protocol):
    """The lanes of a service and what they hold."""

    @property
    def lanes(self) -> Sequence[Lane]:
        """All of them, the dead ones too."""
        ...

    @property
    def traits(self) -> Mapping[Role, Traits]:
        """What each model takes."""
        ...

    @property
    def costs(self) -> Mapping[Role, Sequence[tuple[int, int, float]]]:
        """Rows, length and seconds of what was measured while warming up."""
        ...

    def recovery_seconds(self) -> float:
        """How long it takes, from now, until a lane is alive; 0 where one is."""
        ...

    def around_seconds(self) -> float:
        """Processor time that the service around the lanes has taken from each of them so far: reading requests, sending answers."""
        ...

    def watch(self, changed: Callable[[], None]) -> None:
        """Call this whenever a lane dies or comes back."""
        ...

    def processes(self) -> list[dict[str, object]]:
        """The processes that compute, described for people: id, memory, threads, age, restarts."""
        ...

    async def close(self) -> None:
        """End the lanes."""
        ...


class ThreadLane:
    """A thread of this process."""

    alive = True

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self._thread = ThreadPoolExecutor(1, "pocketqa-compute")

    def forward(self, role: Role, batch: Batch) -> asyncio.Future[Forwarded]:
        """Compute a batch in the thread."""
        return asyncio.get_running_loop().run_in_executor(self._thread, self._forward, role, batch)

    def close(self) -> None:
        """Let the thread go once it is done."""
        self._thread.shutdown(wait=False)

    def _forward(self, role: Role, batch: Batch) -> Forwarded:
        began = time.perf_counter()
        try:
            logits = self._pair[role].reader.runtime.forward(batch)
        except Exception:
            raise
        except BaseException as panic:  # a panic of Rust code is no Exception, and nothing above would answer it
            raise EngineError(f"A library panicked: {type(panic).__name__}") from panic
        return Forwarded(logits, time.perf_counter() - began)


class ThreadEngine:
    """One lane over models that are open in this process."""

    costs: Mapping[Role, Sequence[tuple[int, int, float]]] = {"teacher": (), "student": ()}

    def __init__(self, pair: Pair) -> None:
        self._lane = ThreadLane(pair)
        self._began = time.monotonic()
        self.lanes = (self._lane,)
        self.traits: Mapping[Role, Traits] = {
            served.role: Traits(served.reader.info, served.reader.runtime.lengths, served.reader.runtime.max_batch, served.reader.tokenizer.pad_id)
            for served in (pair.teacher, pair.student)
        }

    def recovery_seconds(self) -> float:
        """A thread does not die."""
        return 0.0

    def around_seconds(self) -> float:
        """Not known: the processor time of this process is that of its lane as well."""
        return 0.0

    def watch(self, changed: Callable[[], None]) -> None:
        """Nothing ever changes."""

    def processes(self) -> list[dict[str, object]]:
        """This process."""
        return [process_facts(os.getpid(), threading.active_count(), time.monotonic() - self._began, 0) | {"worker": 0}]

    async def close(self) -> None:
        """Let the thread go."""
        self._lane.close()


def process_facts(pid: int, threads: int, seconds: float, restarts: int, peak: int | None = None) -> dict[str, object]:
    """One process as GET /info shows it.  rss_bytes: what it holds now where the system tells (Linux), else None."""
    return {
        "pid": pid,
        "rss_bytes": resident(pid),
        "peak_rss_bytes": peak,
        "threads": threads,
        "alive_seconds": round(seconds, 1),
        "restarts": restarts,
    }


def resident(pid: int) -> int | None:
    """Bytes of memory that a process holds now, or None where that cannot be read."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None

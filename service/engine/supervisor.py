"""Keeps the worker processes alive: starts them, starts them again when they end, and refuses one that opened other models than the first did."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pocketqa.errors import CorruptFolder, EngineError, PocketQAError
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder
from pocketqa.reader import Reader
from pocketqa.runtimes import usable_cores
from pocketqa.types import Batch, NoAnswer, RuntimeInfo, SpanLogits
from service.engine.batches import Traits
from service.engine.frames import ROLES
from service.engine.lanes import Forwarded, process_facts
from service.engine.process import MODULE, Worker
from service.engine.worker import opening_document
from service.errors import WorkerLost
from service.models import ModelFacts, Pair, Served, check_folders
from service.schemas import Role
from service.settings import Settings

CORES_A_WORKER = 8  # beyond so many, threads of one forward pass gain less than a second process does
OPENING_SECONDS = 600.0  # a worker that has not opened its models by then is started anew
HANG_SECONDS = 60.0  # for one batch, at least: a worker that takes longer, and longer than anybody waits, is killed
# To warm up both models together; what is not warm by then is met for the first time while serving.  Who waits for a worker that takes the place of
# another waits less: what things cost is known by then.
WARM_SECONDS, WARM_AGAIN_SECONDS = 2.0, 0.25
HEALTHY_SECONDS = 30.0  # a worker that lived this long is started again at once when it ends
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 10.0  # seconds before a worker that ends soon is started again; doubled each time

log = logging.getLogger("pocketqa.service")


class RemoteRuntime:
    """Describes an engine that runs in the workers.  Batches reach it through the scheduler, not through here."""

    def __init__(self, traits: Traits) -> None:
        self.info = traits.info
        self.lengths = traits.lengths
        self.max_batch = traits.max_batch

    def forward(self, batch: Batch) -> SpanLogits:
        """Raises EngineError."""
        raise EngineError("Expected a batch to go through the scheduler, found one on its own: this engine runs in other processes.")


class ProcessLane:
    """A place for one worker process, filled again whenever it falls empty."""

    def __init__(self, start: Callable[[float], Awaitable[Worker]], check: Callable[[dict[str, Any]], None]) -> None:
        """start: a new worker, which may warm up for so many seconds.  check: raises for a READY frame that tells of other models than expected."""
        self._start, self._check = start, check
        self._worker: Worker | None = None
        self._open_seconds = 1.0
        self._due = 0.0  # when the next worker will be ready, as far as we know
        self._peak = 0
        self.restarts = 0

    @property
    def alive(self) -> bool:
        """Whether a worker is ready in it."""
        return self._worker is not None and self._worker.alive

    def forward(self, role: Role, batch: Batch) -> asyncio.Future[Forwarded]:
        """Compute a batch."""
        if self._worker is None:
            failed: asyncio.Future[Forwarded] = asyncio.get_running_loop().create_future()
            failed.set_exception(WorkerLost("No process that computes is running."))
            return failed
        return self._worker.forward(role, batch)

    async def fill(self, warm_seconds: float = WARM_SECONDS) -> dict[str, Any]:
        """Start a worker and wait until it is warm.  Returns what it opened.  Raises as opening does."""
        began = time.monotonic()
        self._due = began + 1.5 * self._open_seconds
        worker = await self._start(warm_seconds)
        try:
            async with asyncio.timeout(OPENING_SECONDS):
                document = await asyncio.shield(worker.ready)
            self._check(document)
            self._peak = int(document["peak_rss_bytes"])
        except TimeoutError:
            await worker.end()
            raise EngineError(f"Expected a worker to open the models within {OPENING_SECONDS:.0f} seconds, found it still at it.") from None
        except BaseException:
            await worker.end()
            raise
        self._open_seconds = time.monotonic() - began
        self._worker = worker
        return document

    async def keep(self, changed: Callable[[], None], restarted: Callable[[], None]) -> None:
        """For ever: wait until the worker ends, and put another in its place.  changed: the lane died or came back."""
        pause = FIRST_PAUSE
        while True:
            assert self._worker is not None
            reason = await self._worker.lost()
            try:
                await self._worker.end()
            except Exception:
                log.exception("A worker process that was lost could not be waited for.")
            lived = time.monotonic() - self._worker.began
            log.error("A worker process %s after %.0f seconds (%s); another is started.", reason, lived, self._worker.status)
            self._worker = None
            self._due = time.monotonic() + 1.5 * self._open_seconds
            changed()
            if lived >= HEALTHY_SECONDS:
                pause = FIRST_PAUSE
            else:
                await self._wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
            pause = await self._refill(pause)
            self.restarts += 1
            restarted()
            changed()

    def recovery_seconds(self) -> float:
        """How long until a worker is ready, as far as we know; 0 when one is."""
        return 0.0 if self.alive else max(0.1, self._due - time.monotonic())

    def facts(self, threads: int) -> dict[str, object] | None:
        """The process in it, described for people."""
        worker = self._worker
        if worker is None:
            return None
        return process_facts(worker.process.pid, threads, time.monotonic() - worker.began, self.restarts, self._peak)

    async def end(self) -> None:
        """End its worker."""
        if self._worker is not None:
            await self._worker.end()
            self._worker = None

    async def _refill(self, pause: float) -> float:
        while True:
            try:
                await self.fill(WARM_AGAIN_SECONDS)
                return pause
            except Exception as error:  # whatever it is: without another attempt the lane would stay empty
                said = isinstance(error, PocketQAError | OSError)
                words = "A worker process could not be started: %s  The next attempt follows in %.0f seconds."
                log.error(words, error, pause, exc_info=None if said else error)
            await self._wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _wait(self, seconds: float) -> None:
        self._due = time.monotonic() + seconds + 1.5 * self._open_seconds
        await asyncio.sleep(seconds)


class WorkerEngine:
    """The worker processes of a service."""

    def __init__(self, settings: Settings, restarted: Callable[[], None], module: str = MODULE, background: bool = False) -> None:
        """restarted: called when a worker was started again.  module: the program of a worker.  background: as worker.opening_document."""
        self._settings = settings
        self._restarted = restarted
        self._changed: Callable[[], None] = lambda: None
        self._cores = usable_cores()
        workers = settings.workers or max(1, self._cores // CORES_A_WORKER)
        self._threads = settings.threads or max(1, self._cores // workers)
        hang_seconds = max(HANG_SECONDS, 2 * settings.deadline_seconds)

        def start(warm_seconds: float) -> Awaitable[Worker]:
            return Worker.start(opening_document(settings, self._threads, warm_seconds, background), hang_seconds, module)

        self._lanes = [ProcessLane(start, self._check) for _ in range(workers)]
        self._keepers: list[asyncio.Task[None]] = []
        self._document: dict[str, Any] = {}
        self._traits: dict[Role, Traits] = {}
        self._costs: dict[Role, list[tuple[int, int, float]]] = {}

    async def open(self) -> Pair:
        """Start the workers and describe what they opened.  Raises as service.models.open_pair does, and ends what was started."""
        check_folders(self._settings)
        try:
            async with asyncio.TaskGroup() as group:
                filled = [group.create_task(lane.fill()) for lane in self._lanes]
            pair = await self._describe(filled[0].result())
        except BaseExceptionGroup as several:
            await self.close()
            raise several.exceptions[0] from None
        except BaseException:
            await self.close()
            raise
        self._keepers = [asyncio.create_task(lane.keep(self._tell, self._restarted)) for lane in self._lanes]
        return pair

    @property
    def lanes(self) -> Sequence[ProcessLane]:
        """A lane for each worker."""
        return self._lanes

    @property
    def traits(self) -> Mapping[Role, Traits]:
        """What each model takes."""
        return self._traits

    @property
    def costs(self) -> Mapping[Role, Sequence[tuple[int, int, float]]]:
        """What the first worker measured while warming up."""
        return self._costs

    def recovery_seconds(self) -> float:
        """How long until a worker is ready, as far as we know; 0 when one is."""
        return min(lane.recovery_seconds() for lane in self._lanes)

    def around_seconds(self) -> float:
        """The processor time of this process, where it runs on the workers' cores: a pass waits for each of its threads."""
        return time.process_time() / len(self._lanes) if len(self._lanes) * self._threads >= self._cores else 0.0

    def watch(self, changed: Callable[[], None]) -> None:
        """Call this whenever a lane dies or comes back."""
        self._changed = changed

    def processes(self) -> list[dict[str, object]]:
        """The worker processes that are running, each with the number of its lane."""
        return [facts | {"worker": number} for number, lane in enumerate(self._lanes) if (facts := lane.facts(self._threads)) is not None]

    async def close(self) -> None:
        """End the workers."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await asyncio.gather(*(lane.end() for lane in self._lanes))

    def _tell(self) -> None:
        self._changed()

    def _check(self, document: dict[str, Any]) -> None:
        """Every worker must hold what the first one holds: answers may not depend on which of them computes."""
        expected, found = (_identity(each) for each in (self._document or document, document))
        if expected != found:
            raise CorruptFolder(
                f"Expected the models that the service started with ({_shown(expected)}), found others ({_shown(found)}): the folders were changed "
                "since. Start the service again to serve what is there now."
            )
        self._document = self._document or document

    async def _describe(self, document: dict[str, Any]) -> Pair:
        """The models as this process needs them: a tokenizer of its own, and words about the rest."""
        paths: dict[Role, Path] = {"teacher": self._settings.teacher, "student": self._settings.student}
        tokenizer = await asyncio.to_thread(Tokenizer, ModelFolder(paths["student"]).tokenizer)
        served: dict[Role, Served] = {}
        for role in ROLES:
            model = document["models"][role]
            if tokenizer.vocabulary_hash != model["vocabulary"]:
                raise CorruptFolder(f"Expected the tokenizer in {paths['student']} to be the one that the {role} was opened with, found another.")
            lengths = model["lengths"]
            traits = Traits(RuntimeInfo(**model["info"]), tuple(lengths) if lengths else None, model["max_batch"], tokenizer.pad_id)
            self._traits[role] = traits
            self._costs[role] = [(int(rows), int(length), float(seconds)) for rows, length, seconds in model["costs"]]
            # The vocabularies are equal, so one tokenizer does for both.
            reader = Reader(tokenizer, RemoteRuntime(traits), model["name"], model["model_hash"], NoAnswer(**model["no_answer"]))
            served[role] = Served(role, reader, ModelFacts(**model["facts"]))
        return Pair(served["teacher"], served["student"])


def _identity(document: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    models = [document["models"][role] for role in ROLES]
    return [(model["model_hash"], model["vocabulary"], model["info"]["engine"], model["info"]["precision"]) for model in models]


def _shown(identity: list[tuple[str, str, str, str]]) -> str:
    return ", ".join(f"{role} {weights[:12]} on {engine} {precision}" for role, (weights, _, engine, precision) in zip(ROLES, identity, strict=True))

"""The service's life: opening, ready, draining, or failed to open.  Probes and page answer from the start; questions wait for ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from pocketqa.errors import PocketQAError
from service.engine.lanes import Engine, ThreadEngine
from service.engine.supervisor import WorkerEngine
from service.errors import Draining, NotReady
from service.inference import Inference
from service.metrics import Metrics
from service.models import Pair
from service.settings import Settings
from service.shadow import Shadow

log = logging.getLogger("pocketqa.service")


class Service:
    """Settings, models, engine and counters of one running app.

    opener: opens models in this process, to be computed by a thread; None starts worker processes.
    opened: called once, when the models are warm (with None) or could not be opened (with the error).
    """

    def __init__(
        self, settings: Settings, opener: Callable[[Settings], Pair] | None = None, opened: Callable[[Exception | None], None] | None = None
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.failure: Exception | None = None
        self.draining = False
        self._opener = opener
        self._opened = opened
        self._pair: Pair | None = None
        self._inference: Inference | None = None
        self._shadow: Shadow | None = None

    async def open(self) -> None:
        """Open and warm the models off the event loop, so that probes are answered meanwhile."""
        try:
            if self._opener is not None:
                self.take(await asyncio.to_thread(self._opener, self.settings))
            else:
                workers = WorkerEngine(self.settings, self.metrics.restarted)
                self.take(await workers.open(), workers)
        except Exception as error:
            self.failure = error
            # A deliberate error is a sentence for the reader; another one is a fault of ours, whose place matters.
            log.error("The models could not be opened: %s", error, exc_info=None if isinstance(error, PocketQAError) else error)
        if self._opened is not None:
            self._opened(self.failure)
        if self._shadow is not None and self._opener is None:
            await self._open_shadow(self._shadow)

    def take(self, pair: Pair, engine: Engine | None = None) -> None:
        """Serve these models from now on.  engine: what computes them; None for a thread of this process."""
        computing = engine or ThreadEngine(pair)
        self._inference = Inference(pair, computing, self.settings, self.metrics)
        self.metrics.watch_workers(self._inference.workers, len(computing.lanes))
        self._pair = pair
        if self.settings.shadow:
            inference = self._inference
            self._shadow = Shadow(pair.teacher, self.settings.shadow, self.metrics, lambda: inference.quiet)
            inference.mirror = self._shadow.offer
            if engine is None:
                self._shadow.start(ThreadEngine(pair))

    async def _open_shadow(self, shadow: Shadow) -> None:
        """A worker of the shadow's own, which takes only time that nobody wants.  Where it cannot be had, the service goes on without."""
        engine = WorkerEngine(replace(self.settings, workers=1), lambda: None, background=True)
        try:
            found = (await engine.open()).teacher.reader.model_hash
        except (PocketQAError, OSError) as error:
            log.error("The shadow could not be started, and nothing is compared: %s", error)
            return
        if found != self.pair.teacher.reader.model_hash or self.draining:
            await engine.close()
            log.error("The shadow was not started: the teacher's folder has changed, or the service is about to stop.")
            return
        shadow.start(engine)

    def drain(self) -> None:
        """Say from now on that the service is not ready, so that new requests are sent elsewhere; those that come are still served."""
        self.draining = True
        if self._shadow is not None:
            self._shadow.stop()

    async def close(self) -> None:
        """End the workers and let the threads go."""
        if self._shadow is not None:
            await self._shadow.close()
        if self._inference is not None:
            await self._inference.close()

    def shadow_processes(self) -> list[dict[str, object]]:
        """The process of the shadow, described for people; none where there is no shadow."""
        return [] if self._shadow is None else self._shadow.processes()

    @property
    def pair(self) -> Pair:
        """The models.  Raises NotReady."""
        if self._pair is None:
            raise self._not_ready()
        return self._pair

    @property
    def inference(self) -> Inference:
        """Answers and comparisons.  Raises NotReady."""
        if self._inference is None:
            raise self._not_ready()
        return self._inference

    def check_ready(self) -> None:
        """Raises Draining; NotReady while the models are opened, and while no process is there that computes."""
        if self.draining:
            raise Draining("The service is about to stop.")
        if not self.inference.alive:
            raise NotReady("The process that computes has ended; another one is being started.")

    def _not_ready(self) -> NotReady:
        if self.failure is not None:
            return NotReady("The models could not be opened; the service's log says why.")
        return NotReady("The models are being opened and warmed.")

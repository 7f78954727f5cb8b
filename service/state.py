"""The service's life: opening, ready, or failed to open.  Probes and page answer from the start; questions wait for ready."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from pocketqa.errors import PocketQAError
from service.errors import NotReady
from service.inference import Inference
from service.models import Pair, open_pair
from service.settings import Settings

log = logging.getLogger("pocketqa.service")


class Service:
    """Settings, models and threads of one running app.

    opened: called once, when the models are warm (with None) or could not be opened (with the error).
    """

    def __init__(
        self, settings: Settings, opener: Callable[[Settings], Pair] = open_pair, opened: Callable[[Exception | None], None] | None = None
    ) -> None:
        self.settings = settings
        self.failure: Exception | None = None
        self._opener = opener
        self._opened = opened
        self._pair: Pair | None = None
        self._inference: Inference | None = None

    async def open(self) -> None:
        """Open and warm the models off the event loop, so that probes are answered meanwhile."""
        try:
            self.take(await asyncio.to_thread(self._opener, self.settings))
        except Exception as error:
            self.failure = error
            # A deliberate error is a sentence for the reader; another one is a fault of ours, whose place matters.
            log.error("The models could not be opened: %s", error, exc_info=None if isinstance(error, PocketQAError) else error)
        if self._opened is not None:
            self._opened(self.failure)

    def take(self, pair: Pair) -> None:
        """Serve these models from now on."""
        self._inference = Inference(pair, self.settings.max_windows)
        self._pair = pair

    def close(self) -> None:
        """Stop the threads."""
        if self._inference is not None:
            self._inference.close()

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
        """Raises NotReady."""
        if self._inference is None:
            raise self._not_ready()

    def _not_ready(self) -> NotReady:
        if self.failure is not None:
            return NotReady("The models could not be opened; the service's log says why.")
        return NotReady("The models are being opened and warmed.")

"""The shadow: a sample of what the student answers is put to the teacher too, to learn in production what the small model costs.

Nobody waits for it.  A request is drawn when its answer is ready, each with the same chance whatever it asks; the generator is seeded, so that a run
can be repeated.  What was drawn waits in a short line of its own, which turns away what does not fit, and is computed one window at a time, only
while no request waits and a lane of the service is free, by a process that the system runs only on time that nobody else wants.  Nothing is kept but
counts.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pocketqa.features import Encoded, collate
from pocketqa.types import Result, SpanLogits
from service.agreement import agreement
from service.engine.lanes import Engine
from service.metrics import Metrics
from service.models import Served
from service.questions import Question

SEED = 0
MOST_WINDOWS = 512  # that wait at most, of all samples together; a request larger than that is never one
PATIENCE_SECONDS = 30.0  # a sample that the service was too busy for so long is let go
_POLL_SECONDS = 0.005

log = logging.getLogger("pocketqa.service")


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    question: Question
    encoded: Encoded
    student: Result
    until: float  # on the clock of time.monotonic


class _Busy(Exception):
    """There was no quiet time for a sample."""


class Shadow:
    """The teacher's answers to a share of the student's requests.  All methods are to be called on the event loop."""

    def __init__(self, teacher: Served, share: float, metrics: Metrics, quiet: Callable[[], bool]) -> None:
        """share: of the student's requests, from 0 to 1.  quiet: whether the service has nothing to do that this could hold up."""
        self._teacher, self._share, self._metrics, self._quiet = teacher, share, metrics, quiet
        self._draw = random.Random(SEED)
        self._waiting: deque[_Sample] = deque()
        self._windows = 0  # of all that wait, and of the one that is computed
        self._filled = asyncio.Event()
        self._engine: Engine | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, engine: Engine) -> None:
        """Compute from now on, with an engine of its own; before, samples are turned away."""
        self._engine = engine
        self._task = asyncio.create_task(self._run(engine))

    def stop(self) -> None:
        """Let go of everything: the service is about to end."""
        self._share = 0.0
        if self._task is not None:
            self._task.cancel()
        for _ in self._waiting:
            self._metrics.shadow("dropped")
        self._waiting.clear()

    async def close(self) -> None:
        """Stop, and end the engine."""
        self.stop()
        if self._engine is not None:
            await self._engine.close()

    def processes(self) -> list[dict[str, object]]:
        """The process that computes, as Engine.processes describes it."""
        return [] if self._engine is None else self._engine.processes()

    def offer(self, question: Question, encoded: Encoded, student: Result) -> None:
        """A question that the student has answered, its windows and its result.  Takes some microseconds."""
        if self._draw.random() >= self._share:
            return
        if question.no_answer and not self._teacher.reader.no_answer.trained:
            return  # what it was not trained to say
        if self._task is None or self._windows + len(encoded.windows) > MOST_WINDOWS:
            self._metrics.shadow("dropped")
            return
        self._windows += len(encoded.windows)
        self._waiting.append(_Sample(question, encoded, student, time.monotonic() + PATIENCE_SECONDS))
        self._filled.set()

    async def _run(self, engine: Engine) -> None:
        while True:
            await self._filled.wait()
            while self._waiting:
                sample = self._waiting.popleft()
                try:
                    await self._compare(engine, sample)
                except _Busy:
                    self._metrics.shadow("dropped")
                except Exception as error:  # whatever it is, the next sample is worth a try
                    self._metrics.shadow("failed")
                    log.warning("A request in the shadow failed on the teacher: %s", error)
                finally:
                    self._windows -= len(sample.encoded.windows)
            self._filled.clear()

    async def _compare(self, engine: Engine, sample: _Sample) -> None:
        logits = await self._forward(engine, sample)
        reader = self._teacher.reader
        await self._wait_for_quiet(engine, sample)
        options = sample.question.span_options(reader.no_answer)
        (teacher,) = await asyncio.to_thread(reader.decode, sample.encoded, logits, options)
        best = teacher.answers[:1], sample.student.answers[:1]
        agreed = agreement(*best)
        scores = [answers[0].score if answers else 0.0 for answers in best]
        self._metrics.shadow("compared")
        self._metrics.shadowed(agreed.same_span, agreed.f1, abs(scores[0] - scores[1]))

    async def _forward(self, engine: Engine, sample: _Sample) -> SpanLogits:
        """The teacher's logits (W, T), window by window: a batch would keep the processor busy for longer when a request comes."""
        windows, traits = sample.encoded.windows, engine.traits["teacher"]
        start = np.zeros((len(windows), max(map(len, windows))), np.float32)  # (W, T)
        end = np.zeros_like(start)  # (W, T)
        for row, window in enumerate(windows):
            await self._wait_for_quiet(engine, sample)
            batch = collate([window], traits.padded(len(window)), traits.pad_id)
            logits = (await engine.lanes[0].forward("teacher", batch)).logits
            start[row, : len(window)], end[row, : len(window)] = logits.start[0, : len(window)], logits.end[0, : len(window)]
        return SpanLogits(start, end)

    async def _wait_for_quiet(self, engine: Engine, sample: _Sample) -> None:
        while not (engine.lanes[0].alive and self._quiet()):
            if time.monotonic() >= sample.until:
                raise _Busy
            await asyncio.sleep(_POLL_SECONDS)

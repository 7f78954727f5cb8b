"""Where the work of a request is done: off the event loop, one forward pass at a time.

A forward pass takes every core by itself, so two at once would only share them and blur each other's times: all passes of both models go through
one compute thread, and what a request waits for it is its queue time.  Tokenising and decoding have threads of their own.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from pocketqa.errors import EngineError
from pocketqa.features import Encoded
from pocketqa.spans import check_options
from pocketqa.types import Result, SpanLogits, StageTimings
from service.models import Pair, Served
from service.questions import Question, encode
from service.schemas import Role

T = TypeVar("T")

_TEXT_THREADS = 2


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


@dataclass(frozen=True, slots=True, eq=False)
class _Forwarded:
    logits: SpanLogits  # (W, T)
    queue: float
    forward: float


class Inference:
    """Runs the stages of requests for a pair of models."""

    def __init__(self, pair: Pair, max_windows: int) -> None:
        self._pair = pair
        self._max_windows = max_windows
        self._text = ThreadPoolExecutor(_TEXT_THREADS, "pocketqa-text")
        self._compute = ThreadPoolExecutor(1, "pocketqa-compute")

    def close(self) -> None:
        """Let the threads go once they are done."""
        self._text.shutdown(wait=False)
        self._compute.shutdown(wait=False)

    async def answer(self, role: Role, question: Question) -> Answered:
        """One model's answers."""
        began = time.perf_counter()
        served = self._pair[role]
        encoded = await self._encode(question, [served])
        result = await self._read(served, question, encoded)
        return Answered(result, time.perf_counter() - began)

    async def compare(self, question: Question) -> Compared:
        """Both models' answers on the same windows, in an order drawn anew each time: the second would otherwise always find caches warm."""
        began = time.perf_counter()
        encoded = await self._encode(question, [self._pair["teacher"], self._pair["student"]])
        shared = time.perf_counter() - began
        order: list[Role] = ["teacher", "student"]
        random.shuffle(order)
        sides: dict[Role, Answered] = {}
        for role in order:
            began = time.perf_counter()
            result = await self._read(self._pair[role], question, encoded)
            sides[role] = Answered(result, shared + time.perf_counter() - began)
        return Compared(sides["teacher"], sides["student"], order[0])

    async def _encode(self, question: Question, readers: Sequence[Served]) -> Encoded:
        def work() -> Encoded:
            # Both models share a vocabulary, so either tokenizer will do.
            encoded = encode(self._pair.student.reader, question, self._max_windows)
            for served in readers:  # options that decoding would refuse are refused before a forward pass is spent on them
                check_options(encoded, question.span_options(served.reader.no_answer), served.reader.no_answer)
            return encoded

        return await _run(self._text, work)

    async def _read(self, served: Served, question: Question, encoded: Encoded) -> Result:
        forwarded = await self._forward(served, encoded)
        options = question.span_options(served.reader.no_answer)
        result = (await _run(self._text, lambda: served.reader.decode(encoded, forwarded.logits, options)))[0]
        return replace(result, timings=StageTimings(encoded.seconds, forwarded.queue, forwarded.forward, result.timings.decode))

    async def _forward(self, served: Served, encoded: Encoded) -> _Forwarded:
        """The seam for a batcher across requests: windows in, logits and times out."""
        submitted = time.perf_counter()

        def work() -> _Forwarded:
            began = time.perf_counter()
            logits = served.reader.forward(encoded)
            return _Forwarded(logits, began - submitted, time.perf_counter() - began)

        return await _run(self._compute, work)


async def _run(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    try:
        return await asyncio.get_running_loop().run_in_executor(threads, work)
    except (Exception, asyncio.CancelledError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as panic:  # a panic of the tokenizer's Rust code is no Exception, and nothing above would answer it
        raise EngineError(f"A library panicked: {type(panic).__name__}") from panic

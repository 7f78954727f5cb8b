"""Threads for work that would hold up the event loop.

A request goes to them and back twice, so the way counts: the standard library's executor makes a future of its own beside asyncio's, and its result
takes two rounds of the loop to come back.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], Any]]


class Threads:
    """A few threads that take work in the order in which it comes."""

    def __init__(self, count: int, name: str) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._count = count
        for number in range(count):
            # Daemons: what nobody waits for any more must not keep the process from ending.
            threading.Thread(target=self._work, name=f"{name}_{number}", daemon=True).start()

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises.  Work that is cancelled before its turn is left out."""
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        self._jobs.put((loop, result, work))
        return await result

    def close(self) -> None:
        """Let the threads go once they have done what they were given."""
        for _ in range(self._count):
            self._jobs.put(None)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._do(*job)
            del job  # the texts of a request are not kept until the next one comes

    @staticmethod
    def _do(loop: asyncio.AbstractEventLoop, result: asyncio.Future[Any], work: Callable[[], Any]) -> None:
        if result.cancelled():
            return
        value, failed = None, None
        try:
            value = work()
        except BaseException as error:  # a panic of Rust code is no Exception, and a thread that it ended would be missing
            failed = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_deliver, result, value, failed)


def _deliver(result: asyncio.Future[Any], value: object, failed: BaseException | None) -> None:
    if result.done():  # cancelled meanwhile
        return
    if failed is None:
        result.set_result(value)
    else:
        result.set_exception(failed)

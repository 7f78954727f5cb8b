"""Threads beside the event loop: what they give back, what they leave out, and that nothing ends them but their closing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from service.threads import Threads


class Panic(BaseException):
    """What a panic of Rust code is: no Exception."""


@asynccontextmanager
async def one_thread() -> AsyncIterator[Threads]:
    threads = Threads(1, "test")
    try:
        yield threads
    finally:
        threads.close()


def play(scene: Callable[[Threads], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        async with one_thread() as threads:
            await asyncio.wait_for(scene(threads), 30)

    asyncio.run(run())


def fail(error: BaseException) -> None:
    raise error


def test_work_is_done_elsewhere_and_in_order() -> None:
    async def scene(threads: Threads) -> None:
        done: list[int] = []
        await asyncio.gather(*(threads.run(lambda number=number: done.append(number)) for number in range(20)))  # type: ignore[misc]
        assert done == list(range(20))
        assert await threads.run(threading.current_thread) is not threading.current_thread()

    play(scene)


@pytest.mark.parametrize("error", [ValueError("wrong"), Panic("worse")])
def test_what_the_work_raises_is_raised_and_the_thread_goes_on(error: BaseException) -> None:
    async def scene(threads: Threads) -> None:
        with pytest.raises(type(error)) as caught:
            await threads.run(lambda: fail(error))
        assert caught.value is error
        assert await threads.run(lambda: 7) == 7

    play(scene)


def test_what_is_cancelled_before_its_turn_is_left_out() -> None:
    async def scene(threads: Threads) -> None:
        gate, begun, done = threading.Event(), threading.Event(), list[str]()

        def hold() -> None:
            begun.set()
            assert gate.wait(20)
            done.append("held")

        held = asyncio.create_task(threads.run(hold))
        leaving = asyncio.create_task(threads.run(lambda: done.append("left")))
        await asyncio.to_thread(begun.wait, 20)
        leaving.cancel()
        held.cancel()  # too late to be left out, and nobody waits for it
        await asyncio.sleep(0)
        gate.set()
        await threads.run(lambda: done.append("after"))
        assert done == ["held", "after"]
        assert held.cancelled() and leaving.cancelled()

    play(scene)


def test_closing_lets_them_go_once_they_have_done_what_they_were_given() -> None:
    async def scene() -> None:
        threads = Threads(3, "closing")
        result = asyncio.create_task(threads.run(lambda: 7))
        await asyncio.sleep(0)
        own = [thread for thread in threading.enumerate() if thread.name.startswith("closing_")]
        assert len(own) == 3
        threads.close()
        assert await result == 7
        for thread in own:
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive()

    asyncio.run(scene())

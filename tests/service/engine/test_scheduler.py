"""The queue: order, company, bad items, lost lanes, cancelled and late requests, admission.  A test plays the engine and the clock."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy as np
import pytest

from pocketqa.errors import EngineError
from pocketqa.types import Window
from service.engine.scheduler import Scheduler, Scored
from service.errors import DeadlineExceeded, LimitExceeded, Overloaded, WorkerLost
from service.metrics import Metrics
from service.schemas import Role
from service.settings import Settings
from tests.service.engine.hand_engine import SECONDS, HandEngine, settle, window

FAR = 60.0
MOMENT = 1e-6


class Desk:
    """A scheduler over a hand-driven engine, and the requests put to it, a moment after one another."""

    def __init__(self, lanes: int = 1, max_batch: int | None = None, **settings: Any) -> None:
        self.engine = HandEngine(lanes, max_batch)
        self.lane = self.engine.lanes[0]
        self.metrics = Metrics()
        self.now = 100.0
        self.scheduler = Scheduler(self.engine, Settings(**settings), self.metrics, lambda: self.now)

    async def ask(self, *windows: Window, role: Role = "student", arrived: float | None = None, seconds: float = FAR) -> asyncio.Task[Scored]:
        self.now += MOMENT
        task = asyncio.create_task(self.scheduler.run(role, windows, self.now if arrived is None else arrived, self.now + seconds))
        await settle()
        return task

    async def finish(self) -> None:
        """What the first lane computes is done, as quickly as predicted."""
        self.now += SECONDS
        await self.lane.finish()

    def rows(self) -> list[list[int]]:
        """The rows of the batch that was given last, without padding."""
        batch = self.lane.given[-1][1]
        return [row[mask.astype(bool)].tolist() for row, mask in zip(batch.ids, batch.mask, strict=True)]

    def value(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name, {"model": "student"}) or 0.0


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


def test_a_lone_request_is_computed_at_once_and_by_itself() -> None:
    async def scene() -> None:
        desk = Desk()
        task = await desk.ask(window(1, 5, 2))
        assert desk.rows() == [[1, 5, 2]]
        assert desk.lane.given[0][1].shape == (1, 8)
        await desk.finish()
        scored = await task
        assert scored.logits.start.tolist() == [[1, 5, 2]]
        assert scored.logits.end.tolist() == [[-1, -5, -2]]
        assert scored.forward == SECONDS
        assert desk.scheduler.idle

    play(scene())


def test_requests_that_come_while_the_lane_is_busy_share_the_next_batch_and_get_their_own_rows() -> None:
    async def scene() -> None:
        desk = Desk()
        first = await desk.ask(window(1))
        others = [await desk.ask(window(7, i, 8)) for i in range(3)]
        assert len(desk.lane.given) == 1
        await desk.finish()
        assert desk.rows() == [[7, 0, 8], [7, 1, 8], [7, 2, 8]]
        await desk.finish()
        assert (await first).logits.start.tolist() == [[1]]
        for i, task in enumerate(others):
            assert (await task).logits.start.tolist() == [[7, i, 8]]
        assert desk.value("pocketqa_batch_rows_sum") == 4
        assert desk.value("pocketqa_padding_tokens_total") == 8 + 3 * 32 - 10

    play(scene())


def test_requests_that_come_together_are_computed_together() -> None:
    async def scene() -> None:
        desk = Desk()
        tasks = [asyncio.create_task(desk.scheduler.run("student", [window(i, i)], desk.now, desk.now + FAR)) for i in range(4)]
        await settle()
        assert desk.rows() == [[i, i] for i in range(4)]
        await desk.finish()
        assert [(await task).logits.start[0, 0] for task in tasks] == [0, 1, 2, 3]

    play(scene())


def test_the_windows_of_a_request_share_a_batch_and_are_put_together_again() -> None:
    async def scene() -> None:
        desk = Desk()
        task = await desk.ask(window(*range(100)), window(*range(40, 130)), window(9, 8))
        assert len(desk.lane.given) == 1 or desk.lane.busy
        while desk.lane.busy:
            await desk.finish()
        start = (await task).logits.start  # (3, 100)
        assert start.shape == (3, 100)
        assert start[0].tolist() == list(range(100))
        assert start[1].tolist() == [*range(40, 130), *[0] * 10]
        assert start[2].tolist() == [9, 8, *[0] * 98]
        assert len(desk.lane.given[0][1].ids) >= 2

    play(scene())


def test_many_windows_go_through_in_batches_within_the_budget() -> None:
    async def scene() -> None:
        desk = Desk(max_batch_tokens=128)
        task = await desk.ask(*(window(i) for i in range(11)))
        while desk.lane.busy:
            await desk.finish()
        assert (await task).logits.start[:, 0].tolist() == list(range(11))
        assert [batch.shape for _, batch in desk.lane.given] == [(4, 32), (4, 32), (3, 32)]

    play(scene())


def test_an_engine_that_takes_one_row_gets_one_row() -> None:
    async def scene() -> None:
        desk = Desk(max_batch=1)
        tasks = [await desk.ask(window(i), window(i + 10)) for i in range(3)]
        while desk.lane.busy:
            await desk.finish()
        assert [(await task).logits.start[:, 0].tolist() for task in tasks] == [[0, 10], [1, 11], [2, 12]]
        assert {batch.shape for _, batch in desk.lane.given} == {(1, 8)}

    play(scene())


def test_the_model_whose_oldest_request_has_waited_longest_comes_next() -> None:
    async def scene() -> None:
        desk = Desk()
        await desk.ask(window(1))
        late = await desk.ask(window(2), role="student")
        # As the second side of a comparison does: it came before, and takes its place by that.
        early = await desk.ask(window(3), role="teacher", arrived=desk.now - 5)
        await desk.finish()
        await desk.finish()
        await desk.finish()
        assert [role for role, _ in desk.lane.given] == ["student", "teacher", "student"]
        await asyncio.gather(late, early)

    play(scene())


def test_two_lanes_compute_at_the_same_time() -> None:
    async def scene() -> None:
        desk = Desk(lanes=2)
        tasks = [await desk.ask(window(1)), await desk.ask(window(2))]
        assert [len(lane.given) for lane in desk.engine.lanes] == [1, 1]
        for lane in desk.engine.lanes:
            await lane.finish()
        await asyncio.gather(*tasks)

    play(scene())


def test_one_bad_item_fails_alone() -> None:
    async def scene() -> None:
        desk = Desk()
        first = await desk.ask(window(1))
        good, bad, fine = [await desk.ask(window(i)) for i in (2, 3, 4)]
        await desk.finish()
        assert desk.rows() == [[2], [3], [4]]
        await desk.lane.fail(EngineError("one of them"))
        late = await desk.ask(window(5))
        for expected in ([2], [3], [4]):
            assert desk.rows() == [expected]
            if expected == [3]:
                await desk.lane.fail(EngineError("this one"))
            else:
                await desk.finish()
        await desk.finish()
        assert [float((await task).logits.start[0, 0]) for task in (first, good, fine, late)] == [1, 2, 4, 5]
        with pytest.raises(EngineError, match="this one"):
            await bad
        assert desk.value("pocketqa_batch_retries_total") == 1

    play(scene())


def test_when_the_lane_ends_what_it_computes_is_told_at_once_and_what_waits_is_computed_by_the_next() -> None:
    async def scene() -> None:
        desk = Desk()
        lost = await desk.ask(window(1))
        patient = await desk.ask(window(2))
        hasty = await desk.ask(window(3), seconds=2)
        await desk.engine.die(recovery=5)
        for task in (lost, hasty):
            assert task.done()
            with pytest.raises(WorkerLost):
                await task
        assert not patient.done()
        assert len(desk.lane.given) == 1
        await desk.engine.come_back()
        await desk.finish()
        assert (await patient).logits.start.tolist() == [[2]]

    play(scene())


def test_a_cancelled_request_leaves_the_queue_and_is_never_computed() -> None:
    async def scene() -> None:
        desk = Desk()
        first = await desk.ask(window(1))
        leaving, staying = await desk.ask(window(2), window(3)), await desk.ask(window(4))
        assert desk.value("pocketqa_queue_requests") == 2
        assert desk.value("pocketqa_queue_tokens") == 3
        leaving.cancel()
        await settle()
        assert desk.value("pocketqa_queue_requests") == 1
        await desk.finish()
        assert desk.rows() == [[4]]
        await desk.finish()
        await asyncio.gather(first, staying)
        assert desk.scheduler.idle

    play(scene())


def test_one_that_is_cancelled_while_it_is_computed_hurts_nobody() -> None:
    async def scene() -> None:
        desk = Desk()
        leaving, staying = (asyncio.create_task(desk.scheduler.run("student", [window(i)], desk.now, desk.now + FAR)) for i in (2, 3))
        await settle()
        leaving.cancel()
        await desk.finish()
        assert (await staying).logits.start.tolist() == [[3]]
        with pytest.raises(asyncio.CancelledError):
            await leaving

    play(scene())


def test_what_is_past_its_deadline_is_dropped_before_it_is_computed() -> None:
    async def scene() -> None:
        desk = Desk()
        first = await desk.ask(window(1))
        late = await desk.ask(window(2), seconds=0.01)
        fine = await desk.ask(window(3))
        desk.now += 0.02
        await desk.finish()
        with pytest.raises(DeadlineExceeded):
            await late
        assert desk.rows() == [[3]]
        await desk.finish()
        await asyncio.gather(first, fine)

    play(scene())


def test_an_idle_service_admits_anything_and_a_busy_one_says_when_to_come_back() -> None:
    async def scene() -> None:
        desk = Desk(max_queue_seconds=0.5)
        # Learned: a row takes a second, whatever comes with it.
        for cost in (plan.cost for plan in desk.scheduler._plans.values()):
            for rows in (1, 2, 3, 4, 6, 8):
                cost.seed(rows, 8 if rows == 1 else 32, float(rows))
        deadline = desk.now + FAR
        desk.scheduler.admit({"student": [window(1)] * 50}, desk.now + 1)
        tasks = [await desk.ask(window(i)) for i in range(3)]
        # One runs and two wait: about three seconds.
        assert desk.scheduler.wait_seconds() == pytest.approx(3, rel=0.1)
        assert desk.metrics.registry.get_sample_value("pocketqa_queue_seconds") == desk.scheduler.wait_seconds()
        with pytest.raises(Overloaded) as caught:
            desk.scheduler.admit({"student": [window(1)]}, deadline)
        # Until half a second's half is left: 3 - 0.25.
        assert caught.value.retry_after == pytest.approx(2.75, rel=0.15)
        while desk.lane.busy:
            await desk.finish()
        await asyncio.gather(*tasks)
        desk.scheduler.admit({"student": [window(1)]}, deadline)

    play(scene())


def test_what_cannot_be_done_before_its_deadline_is_not_admitted() -> None:
    async def scene() -> None:
        desk = Desk(max_queue_seconds=100)
        for rows in (1, 2, 3, 4, 6, 8):
            desk.scheduler._plans["student"].cost.seed(rows, 8 if rows == 1 else 32, float(rows))
        task = await desk.ask(window(1))
        desk.scheduler.admit({"student": [window(1)]}, desk.now + 4)
        with pytest.raises(Overloaded):
            desk.scheduler.admit({"student": [window(1)] * 4}, desk.now + 4)
        await desk.finish()
        await task

    play(scene())


def test_the_rest_of_a_body_counts_for_its_deadline_and_not_for_the_queue() -> None:
    async def scene() -> None:
        desk = Desk(max_queue_seconds=0.5)
        for rows in (1, 2, 3, 4, 6, 8):
            desk.scheduler._plans["student"].cost.seed(rows, 8 if rows == 1 else 32, float(rows))
        admit = desk.scheduler.admit
        assert admit({"student": [window(1)]}, desk.now + FAR) == pytest.approx(1, rel=0.1)
        tasks = [await desk.ask(window(i)) for i in range(3)]  # about three seconds
        assert admit({"student": [window(1)]}, desk.now + FAR, mine=3.0) == pytest.approx(1, rel=0.1)
        with pytest.raises(Overloaded):
            admit({"student": [window(1)]}, desk.now + FAR, mine=1.0)  # others wait too
        with pytest.raises(LimitExceeded, match="Send fewer questions at once"):
            admit({"student": [window(1)]}, desk.now + 3.5, mine=3.0)
        while desk.lane.busy:
            await desk.finish()
        await asyncio.gather(*tasks)

    play(scene())


def test_while_no_lane_is_alive_the_time_to_recovery_counts_as_waiting() -> None:
    async def scene() -> None:
        desk = Desk(max_queue_seconds=10)
        await desk.engine.die(recovery=4)
        assert desk.scheduler.wait_seconds() == 4
        desk.scheduler.admit({"student": [window(1)]}, desk.now + FAR)
        with pytest.raises(WorkerLost) as caught:
            desk.scheduler.admit({"student": [window(1)]}, desk.now + 3)
        assert caught.value.retry_after == 4

    play(scene())


def test_logits_do_not_depend_on_the_company() -> None:
    async def scene() -> None:
        draw = np.random.default_rng(0)
        windows = [window(*draw.integers(1, 500, draw.integers(1, 400)).tolist()) for _ in range(60)]
        desk = Desk()
        tasks = [await desk.ask(*windows[i : i + 3]) for i in range(0, 60, 3)]
        while desk.lane.busy:
            await desk.finish()
        for i, task in zip(range(0, 60, 3), tasks, strict=True):
            scored = await task
            for row, each in enumerate(windows[i : i + 3]):
                assert scored.logits.start[row, : len(each)].tolist() == each.ids.tolist()

    play(scene())

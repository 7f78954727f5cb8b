"""Real worker processes: what they answer, how they die, how they are missed and replaced, and that none outlives its service."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pocketqa.errors import CorruptFolder, EngineError, IncompleteFolder, PocketQAError
from pocketqa.features import Tokenizer, collate
from pocketqa.types import Batch, Request
from service.engine import supervisor
from service.engine.lanes import resident
from service.engine.process import Worker
from service.engine.supervisor import WorkerEngine
from service.engine.worker import LOST, opening_document
from service.errors import WorkerLost
from service.models import Pair
from service.settings import Settings
from tests.service.engine.tiny_worker import DEADLY, MODULE, POISON, SLOW
from tests.service.tiny_pair import ELSEWHERE, HIT, make_tokenizer
from tests.service.waiting import until

ROOT = Path(__file__).parents[3]


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scene)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"  # ended, and not yet waited for


def batch_of(settings: Settings, *contexts: str) -> Batch:
    encoded = Tokenizer(settings.student / "tokenizer.json").encode([Request("who?", (context,)) for context in contexts])
    return collate(encoded.windows)


@asynccontextmanager
async def worker_of(settings: Settings, hang_seconds: float = 60) -> AsyncIterator[Worker]:
    worker = await Worker.start(opening_document(settings, 1, 0.5), hang_seconds, MODULE)
    try:
        yield worker
    finally:
        await worker.end()


@asynccontextmanager
async def engine_of(settings: Settings, restarted: Callable[[], None] = lambda: None) -> AsyncIterator[tuple[WorkerEngine, Pair]]:
    engine = WorkerEngine(settings, restarted, MODULE)
    pair = await engine.open()
    try:
        yield engine, pair
    finally:
        await engine.close()


def pid_of(engine: WorkerEngine) -> int:
    (facts,) = engine.processes()
    assert isinstance(facts["pid"], int)
    return facts["pid"]


def test_a_worker_describes_its_models_computes_and_ends_when_its_socket_closes(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with worker_of(tiny_settings) as worker:
            document = await worker.ready
            student = document["models"]["student"]
            assert (student["name"], student["model_hash"], student["no_answer"]) == ("student", "student" * 8, {"trained": True, "threshold": 0.0})
            assert student["vocabulary"] == Tokenizer(tiny_settings.student / "tokenizer.json").vocabulary_hash
            assert all(seconds > 0 for _, _, seconds in student["costs"])
            assert [1, 128] in [[rows, length] for rows, length, _ in student["costs"]]
            batch = batch_of(tiny_settings, "the mill was built by bell", "bell")
            bell = np.where(batch.ids == batch.ids[1][4], HIT, ELSEWHERE)  # [CLS] who ? [SEP] bell
            both = await asyncio.gather(worker.forward("student", batch), worker.forward("teacher", batch))
            assert np.array_equal(both[0].logits.start[:, 1:], bell[:, 1:])
            assert (both[1].logits.start[:, 1:] == ELSEWHERE).all()  # the teacher looks for Ada
            assert both[0].seconds > 0
        assert worker.process.returncode == LOST

    play(scene())


def test_a_batch_that_fails_fails_alone(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with worker_of(tiny_settings) as worker:
            await worker.ready
            with pytest.raises(EngineError, match="poison"):
                await worker.forward("student", batch_of(tiny_settings, POISON))
            await worker.forward("student", batch_of(tiny_settings, "ada"))

    play(scene())


def test_the_death_of_a_worker_is_told_at_once(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with worker_of(tiny_settings) as worker:
            await worker.ready
            waiting = worker.forward("student", batch_of(tiny_settings, DEADLY))
            with pytest.raises(WorkerLost):
                await asyncio.wait_for(waiting, 20)
            assert not worker.alive
            assert await worker.lost() == "ended"
            with pytest.raises(WorkerLost):
                await worker.forward("student", batch_of(tiny_settings, "ada"))

    play(scene())


def test_a_worker_that_hangs_is_killed(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with worker_of(tiny_settings, hang_seconds=0.05) as worker:
            await worker.ready
            with pytest.raises(WorkerLost):
                await worker.forward("student", batch_of(tiny_settings, SLOW))
            assert "more than 0.05 seconds" in await worker.lost()
        assert worker.process.returncode == -signal.SIGKILL

    play(scene())


def test_a_worker_that_reads_what_is_no_frame_ends(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with worker_of(tiny_settings) as worker:
            await worker.ready
            assert worker._transport is not None
            worker._transport.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.wait_for(worker.lost(), 20)
        assert worker.process.returncode == LOST

    play(scene())


def test_a_worker_that_sends_what_is_no_frame_is_lost(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with worker_of(tiny_settings) as worker:
            await worker.ready
            worker.data_received(b"\x00" * 20)
            assert "no frame" in await worker.lost()

    play(scene())


def test_signals_to_the_whole_group_are_left_to_the_service() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        program = f"import os, sys; from service.engine.worker import main; os.write(1, b'.'); sys.exit(main(['{theirs.fileno()}']))"
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            pass_fds=(theirs.fileno(),), cwd=ROOT, stdout=subprocess.PIPE,
        )  # fmt: skip
        theirs.close()
        assert process.stdout is not None
        with process.stdout:
            process.stdout.read(1)  # imported; what is left is its first lines, and waiting for a frame
        time.sleep(1)
        for name in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(name)
        time.sleep(0.2)
        assert process.poll() is None
    assert process.wait(60) == LOST


def test_no_worker_outlives_a_service_that_was_killed(tiny_settings: Settings) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from service.engine.process import Worker\n"
        "async def main():\n"
        f"    worker = await Worker.start({opening_document(tiny_settings, 1, 0.5)!r}, 60, {MODULE!r})\n"
        "    await worker.ready\n"
        "    print(worker.process.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    service = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert service.stdout is not None
    with service.stdout:
        pid = int(service.stdout.readline())
    assert not gone(pid)
    service.kill()
    service.wait(20)
    end = time.monotonic() + 20
    while not gone(pid):
        assert time.monotonic() < end, "the worker is still there"
        time.sleep(0.02)


def test_a_dead_worker_is_replaced(tiny_settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    restarts: list[None] = []

    async def scene() -> None:
        async with engine_of(tiny_settings, lambda: restarts.append(None)) as (engine, pair):
            assert pair.student.reader.model_hash == "student" * 8
            assert pair.teacher.reader.info.engine == "tiny"
            with pytest.raises(EngineError, match="runs in other processes"):
                pair.teacher.reader.runtime.forward(batch_of(tiny_settings, "ada"))
            changes: list[bool] = []
            lane = engine.lanes[0]
            engine.watch(lambda: changes.append(lane.alive))
            first = pid_of(engine)
            os.kill(first, signal.SIGKILL)
            await until(lambda: not lane.alive)
            assert engine.recovery_seconds() > 0
            with pytest.raises(WorkerLost):
                await lane.forward("student", batch_of(tiny_settings, "ada"))
            await until(lambda: lane.alive)
            assert changes == [False, True]
            assert pid_of(engine) != first
            assert engine.recovery_seconds() == 0
            assert engine.processes()[0]["restarts"] == 1
            await lane.forward("student", batch_of(tiny_settings, "ada"))

    play(scene())
    assert len(restarts) == 1
    assert "SIGKILL" in caplog.text


def test_a_worker_that_hangs_is_replaced(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(supervisor, "HANG_SECONDS", 0.05)

    async def scene() -> None:
        async with engine_of(replace(tiny_settings, deadline_seconds=0.03)) as (engine, _):
            with pytest.raises(WorkerLost):
                await engine.lanes[0].forward("student", batch_of(tiny_settings, SLOW))
            await until(lambda: engine.lanes[0].alive and engine.processes()[0]["restarts"] == 1)

    play(scene())
    assert "more than 0.06 seconds" in caplog.text  # twice the deadline


def test_a_worker_that_does_not_open_its_models_in_time_is_given_up(tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "OPENING_SECONDS", 0.01)
    started: list[Worker] = []

    async def start(*given: Any) -> Worker:
        started.append(await Worker.start(*given))
        return started[-1]

    monkeypatch.setattr(supervisor, "Worker", SimpleNamespace(start=start))

    async def scene() -> None:
        with pytest.raises(EngineError, match="found it still at it"):
            await WorkerEngine(tiny_settings, lambda: None, MODULE).open()
        assert [worker.process.returncode is None for worker in started] == [False]

    play(scene())


class Lost:
    """A worker that has ended, and for which the system has no thread to wait."""

    alive, began, status = False, 0.0, "still running"

    async def lost(self) -> str:
        return "ended"

    async def end(self) -> None:
        raise RuntimeError("can't start new thread")


def test_a_lane_is_filled_again_whatever_goes_wrong_meanwhile(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    errors: list[Exception] = [RuntimeError("can't start new thread"), OSError("no more processes")]

    async def start(warm_seconds: float) -> Worker:
        if errors:
            raise errors.pop(0)
        return await Worker.start(opening_document(tiny_settings, 1, warm_seconds), 60, MODULE)

    async def scene() -> None:
        lane = supervisor.ProcessLane(start, lambda document: None)
        lane._worker = Lost()  # type: ignore[assignment]
        keeper = asyncio.create_task(lane.keep(lambda: None, lambda: None))
        await until(lambda: keeper.done() or lane.restarts == 1)
        assert lane.alive and not keeper.done()
        keeper.cancel()
        await lane.end()

    play(scene())
    found = [(record.message.partition(":")[0], record.exc_info is not None) for record in caplog.records]
    failed = "A worker process could not be started"
    assert (found[0], found[2:]) == (("A worker process that was lost could not be waited for.", True), [(failed, True), (failed, False)])


def test_a_worker_that_tells_too_little_is_ended(tiny_settings: Settings) -> None:
    started: list[Worker] = []

    async def start(warm_seconds: float) -> Worker:
        started.append(await Worker.start(opening_document(tiny_settings, 1, warm_seconds), 60, MODULE))
        return started[-1]

    async def scene() -> None:
        lane = supervisor.ProcessLane(start, lambda document: document.pop("peak_rss_bytes"))
        with pytest.raises(KeyError):
            await lane.fill(0.0)
        assert started[0].process.returncode is not None

    play(scene())


def test_of_two_workers_one_is_enough(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with engine_of(replace(tiny_settings, workers=2)) as (engine, _):
            first, second = engine.lanes
            pids = [facts["pid"] for facts in engine.processes()]
            assert len(set(pids)) == 2
            assert [(rows, length) for rows, length, _ in engine.costs["student"]][:2] == [(1, 128), (1, 384)]
            assert isinstance(pids[0], int)
            os.kill(pids[0], signal.SIGKILL)
            await until(lambda: not first.alive)
            assert engine.recovery_seconds() == 0
            await second.forward("student", batch_of(tiny_settings, "ada"))
            await until(lambda: first.alive)

    play(scene())


def test_other_models_than_the_first_are_refused_until_the_service_starts_again(tiny_settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    async def scene() -> None:
        async with engine_of(tiny_settings) as (engine, _):
            make_tokenizer(tiny_settings.student, extra=("more",))
            os.kill(pid_of(engine), signal.SIGKILL)
            await until(lambda: "could not be started" in caplog.text)
            assert not engine.lanes[0].alive

    with caplog.at_level(logging.ERROR):
        play(scene())
    assert "the folders were changed" in caplog.text


def test_folders_that_are_not_there_are_named_before_anything_is_started(tmp_path: Path) -> None:
    async def scene() -> None:
        with pytest.raises(IncompleteFolder, match="a teacher at"):
            await WorkerEngine(Settings(teacher=tmp_path / "t", student=tmp_path / "s"), lambda: None, MODULE).open()

    play(scene())


def test_why_a_worker_cannot_open_its_models_is_told_in_the_right_class(tiny_settings: Settings) -> None:
    (tiny_settings.student / "tokenizer.json").write_text("{")

    async def scene() -> None:
        with pytest.raises(CorruptFolder, match="Expected a fast tokenizer"):
            await WorkerEngine(replace(tiny_settings, workers=2), lambda: None, MODULE).open()

    play(scene())


def test_an_unforeseen_error_while_opening_is_told_too(tiny_settings: Settings) -> None:
    (tiny_settings.student / "tokenizer.json").unlink()
    (tiny_settings.student / "tokenizer.json").mkdir()

    async def scene() -> None:
        with pytest.raises(PocketQAError, match=r"Is a directory|tokenizer"):
            await WorkerEngine(tiny_settings, lambda: None, MODULE).open()

    play(scene())


def test_the_memory_of_a_process_is_read_where_the_system_tells() -> None:
    found = resident(os.getpid())
    assert found is None or 5_000_000 < found < 50_000_000_000
    assert resident(2**22 + 1) is None


def test_what_the_service_itself_computes_holds_up_the_workers_only_where_they_leave_no_core_free(
    tiny_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "usable_cores", lambda: 4)

    def held_up(**changes: Any) -> float:
        engine = WorkerEngine(replace(tiny_settings, **changes), lambda: None, MODULE)
        before, end = engine.around_seconds(), time.process_time() + 0.05
        while time.process_time() < end:
            pass
        return engine.around_seconds() - before

    assert held_up(workers=1, threads=4) == pytest.approx(0.05, rel=0.2)
    assert held_up(workers=2, threads=2) == pytest.approx(0.025, rel=0.2)
    assert held_up(workers=1, threads=3) == 0.0

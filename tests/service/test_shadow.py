"""The shadow: which requests it takes, that it never holds anything up, what it counts, and when it lets go."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from pocketqa.errors import EngineError
from pocketqa.types import NoAnswer, Result
from service import shadow as module
from service.app import create_app
from service.engine.process import Worker
from service.engine.worker import opening_document
from service.metrics import Metrics
from service.models import Pair
from service.questions import Question, encode, read_question
from service.schemas import AnswerRequest
from service.settings import Settings
from service.shadow import MOST_WINDOWS, SEED, Shadow
from tests.service.edge.conftest import wait_until
from tests.service.engine.hand_engine import HandEngine, settle
from tests.service.engine.tiny_worker import MODULE
from tests.service.test_metrics import read, samples, value
from tests.service.tiny_pair import make_pair, make_tokenizer
from tests.service.waiting import until

QUESTION = "who built it?"
BY_BELL = {"question": QUESTION, "context": "the mill was built by bell"}
BY_BOTH = {"question": QUESTION, "context": "the mill was built by ada bell in rome"}


def counted(client: TestClient, name: str, **labels: str) -> float:
    return value(samples(client.get("/metrics").text), name, **labels)


def compared(client: TestClient) -> float:
    return counted(client, "pocketqa_shadow_requests_total", outcome="compared")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(student=tmp_path / "none", teacher=tmp_path / "none", shadow=1.0, access_log=False)


def test_what_the_student_answers_is_compared_with_the_teacher(pair: Pair, settings: Settings) -> None:
    """The teacher says "ada" and the student "bell", or that there is no answer where the word is not there."""
    with TestClient(create_app(settings, pair)) as client:
        student = [client.post("/v1/answer", json=body).json()["answers"][0] for body in (BY_BELL, BY_BOTH)]
        teacher = [client.post("/v1/answer", json=body | {"model": "teacher"}).json()["answers"][0] for body in (BY_BELL, BY_BOTH)]
        assert [answer["text"] for answer in (*student, *teacher)] == ["bell", "bell", "", "ada"]
        wait_until(lambda: compared(client) == 2)
        found = samples(client.get("/metrics").text)
    assert value(found, "pocketqa_shadow_agreement_total", agreed="false") == 2
    assert value(found, "pocketqa_shadow_agreement_total", agreed="true") == 0
    assert value(found, "pocketqa_shadow_f1_count") == 2 and value(found, "pocketqa_shadow_f1_sum") == 0
    drift = sum(abs(mine["score"] - theirs["score"]) for mine, theirs in zip(student, teacher, strict=True))
    assert value(found, "pocketqa_shadow_score_drift_sum") == pytest.approx(drift) and drift > 0
    assert value(found, "pocketqa_shadow_score_drift_count") == 2
    # The shadow's forward passes are nobody's: they are not in the numbers of the service.
    assert value(found, "pocketqa_batch_rows_count", model="teacher") == value(found, "pocketqa_answer_duration_seconds_count", model="teacher") == 2


def test_two_models_that_say_the_same_agree(tmp_path: Path, settings: Settings) -> None:
    with TestClient(create_app(settings, make_pair(tmp_path, "bell", "bell"))) as client:
        client.post("/v1/answer", json=BY_BOTH)
        wait_until(lambda: compared(client) == 1)
        found = samples(client.get("/metrics").text)
    assert value(found, "pocketqa_shadow_agreement_total", agreed="true") == value(found, "pocketqa_shadow_f1_sum") == 1
    assert value(found, "pocketqa_shadow_score_drift_sum") == 0


def test_every_way_to_ask_the_student_is_drawn_from_and_nothing_else(pair: Pair, settings: Settings) -> None:
    with TestClient(create_app(settings, pair)) as client:
        assert client.post("/v1/compare", json=BY_BELL).status_code == 200
        assert client.post("/v1/answer", json=BY_BELL | {"model": "teacher"}).status_code == 200
        assert client.post("/v1/answer", json={"question": "", "context": "x"}).status_code == 422
        assert (
            client.post("/v1/answers", json={"requests": [BY_BELL | {"model": role} for role in ("student", "teacher", "student")]}).status_code
            == 200
        )
        assert client.post("/models/student", json={"inputs": BY_BELL}).status_code == 200
        wait_until(lambda: compared(client) == 3)
        time.sleep(0.05)
        assert compared(client) == 3


def test_it_is_off_unless_asked_for(pair: Pair, settings: Settings, client: TestClient) -> None:
    client.post("/v1/answer", json=BY_BELL)
    assert all(
        v == 0 for (name, _), v in samples(client.get("/metrics").text).items() if name.startswith("pocketqa_shadow") and "created" not in name
    )
    assert client.get("/v1/models").json()["shadow"] == client.get("/info").json()["shadow"] == 0
    with TestClient(create_app(settings, pair)) as on:
        assert on.get("/v1/models").json()["shadow"] == on.get("/info").json()["shadow"] == 1


class Desk:
    """A shadow over an engine that the test plays, beside a service that is quiet or not as the test says."""

    def __init__(self, folder: Path, share: float = 1.0) -> None:
        self.engine = HandEngine()
        self.lane = self.engine.lanes[0]
        self.metrics, self.quiet = Metrics(), True
        self.pair = make_pair(folder, "ada", "bell", no_answer=NoAnswer())
        self.shadow = Shadow(self.pair.teacher, share, self.metrics, lambda: self.quiet)

    def offer(self, times: int = 1, words: int = 4, **options: Any) -> None:
        body = AnswerRequest.model_validate({"question": QUESTION, "context": "mill " * words, "max_tokens": 32, "doc_stride": 8} | options)
        question: Question = read_question(body, Settings())
        reader = self.pair.student.reader
        encoded = encode(reader, question, 100_000)
        (result,) = reader.decode(encoded, reader.forward(encoded), question.span_options(reader.no_answer))
        for _ in range(times):
            self.shadow.offer(question, encoded, result)

    def outcomes(self) -> dict[str, float]:
        found = read(self.metrics)
        return {outcome: value(found, "pocketqa_shadow_requests_total", outcome=outcome) for outcome in ("compared", "dropped", "failed")}


def test_the_share_is_drawn_with_a_seed_whatever_is_asked(tmp_path: Path) -> None:
    desk = Desk(tmp_path, 0.25)
    desk.offer(2000)  # not started, so what is drawn is dropped
    draw = random.Random(SEED)
    expected = sum(draw.random() < 0.25 for _ in range(2000))
    assert desk.outcomes() == {"compared": 0, "dropped": expected, "failed": 0} and 440 < expected < 560


def test_it_waits_while_the_service_is_not_quiet_also_between_windows(tmp_path: Path) -> None:
    async def scene() -> None:
        desk = Desk(tmp_path)
        desk.quiet = False
        desk.shadow.start(desk.engine)
        desk.offer(words=40)  # 4 words of question and 3 special tokens leave 25 positions, steps are of 17: two windows
        await asyncio.sleep(0.05)
        assert desk.lane.given == []
        desk.quiet = True
        await until(lambda: desk.lane.busy)
        desk.quiet = False
        await desk.lane.finish()
        await asyncio.sleep(0.05)
        assert len(desk.lane.given) == 1 and desk.lane.given[0][0] == "teacher" and desk.lane.given[0][1].shape == (1, 32)
        desk.quiet = True
        await until(lambda: desk.lane.busy)
        await desk.lane.finish()
        await until(lambda: desk.outcomes()["compared"] == 1)
        assert len(desk.lane.given) == 2
        await desk.shadow.close()

    asyncio.run(scene())


def test_what_does_not_fit_is_dropped_and_room_comes_back(tmp_path: Path) -> None:
    async def scene() -> None:
        desk = Desk(tmp_path)
        desk.quiet = False
        desk.shadow.start(desk.engine)
        await settle()
        desk.offer(MOST_WINDOWS + 5)
        assert desk.outcomes()["dropped"] == 5
        desk.quiet = True
        await until(lambda: desk.lane.busy)
        await desk.lane.finish()
        await until(lambda: desk.outcomes()["compared"] == 1)
        desk.offer(2)
        assert desk.outcomes()["dropped"] == 6
        desk.shadow.stop()
        # All that waited; one was at the teacher.
        assert desk.outcomes() == {"compared": 1, "dropped": 6 + MOST_WINDOWS - 1, "failed": 0}

    asyncio.run(scene())


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        desk = Desk(tmp_path)
        monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
        desk.quiet = False
        desk.shadow.start(desk.engine)
        desk.offer(3)
        await until(lambda: desk.outcomes()["dropped"] == 3)
        assert desk.lane.given == []
        await desk.shadow.close()

    asyncio.run(scene())


def test_what_the_teacher_could_not_say_is_not_put_to_it(tmp_path: Path) -> None:
    async def scene() -> None:
        desk = Desk(tmp_path)  # whose teacher, unlike many a student, was not trained for it
        desk.shadow.start(desk.engine)
        question = read_question(AnswerRequest.model_validate({"question": QUESTION, "context": "mill", "no_answer": True}), Settings())
        encoded = encode(desk.pair.student.reader, question, 9)
        desk.shadow.offer(question, encoded, Result(()))
        assert not (desk.lane.given or desk.shadow._waiting)
        assert desk.outcomes() == {"compared": 0, "dropped": 0, "failed": 0}
        await desk.shadow.close()

    asyncio.run(scene())


def test_a_teacher_that_fails_is_tried_again_with_the_next_request(tmp_path: Path) -> None:
    async def scene() -> None:
        desk = Desk(tmp_path)
        desk.shadow.start(desk.engine)
        desk.offer(2)
        await until(lambda: desk.lane.busy)
        await desk.lane.fail(EngineError("no"))
        await until(lambda: desk.lane.busy)
        await desk.lane.finish()
        await until(lambda: desk.outcomes() == {"compared": 1, "dropped": 0, "failed": 1})
        desk.lane.alive = False  # a worker that died: its successor takes what waits
        desk.offer()
        await asyncio.sleep(0.05)
        assert len(desk.lane.given) == 2
        desk.lane.alive = True
        await until(lambda: desk.lane.busy)
        await desk.shadow.close()

    asyncio.run(scene())


def test_a_service_that_takes_its_leave_puts_nothing_more_to_the_teacher(pair: Pair, settings: Settings) -> None:
    app = create_app(settings, pair)
    with TestClient(app) as client:
        client.post("/v1/answer", json=BY_BELL)
        wait_until(lambda: compared(client) == 1)
        app.state.service.drain()
        assert client.post("/v1/answer", json=BY_BELL).status_code == 200
        time.sleep(0.05)
        assert compared(client) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux to look at another process")
def test_its_process_takes_only_time_that_nobody_wants(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "tiny")
    tiny = Settings(teacher=tmp_path / "tiny", student=tmp_path / "tiny")

    async def scene() -> None:
        for background, policy, nice in ((True, os.SCHED_IDLE, 19), (False, os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0))):
            worker = await Worker.start(opening_document(tiny, 1, 0.0, background), 60, MODULE)
            await worker.ready
            pid = worker.process.pid
            assert (os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)) == (policy, nice)
            await worker.end()

    asyncio.run(scene())


@pytest.mark.full
def test_the_whole_service_with_a_process_for_the_shadow() -> None:
    command = [sys.executable, "-m", "pocketqa", "serve", "--port", "0", "--engine", "onnxruntime", "--threads", "1", "--shadow", "1"]
    process = subprocess.Popen(
        [*command, "--access-log", "no"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )
    try:
        assert process.stdout is not None
        address = next(line for line in process.stdout if line.startswith("Ready on ")).split()[2]
        client = Http(address)
        wait_until(lambda: [one["kind"] for one in client.json("/info")["processes"]] == ["server", "worker", "shadow"], 100)
        shadow = client.json("/info")["processes"][2]["pid"]
        assert os.sched_getscheduler(shadow) == os.SCHED_IDLE
        for number in range(4):
            client.json("/v1/answer", {"question": "Who built the mill?", "context": f"The mill was built by Ada Marsh in 191{number}."})
        wait_until(lambda: value(samples(client.text("/metrics")), "pocketqa_shadow_requests_total", outcome="compared") == 4, 60)
        found = samples(client.text("/metrics"))
        assert value(found, "pocketqa_batch_rows_count", model="teacher") == 0
        assert value(found, "pocketqa_workers") == 1
        process.terminate()
        assert process.wait(30) == 0
        assert not Path(f"/proc/{shadow}").exists()
    finally:
        process.kill()
        process.communicate()


class Http:
    def __init__(self, address: str) -> None:
        self.address = address

    def text(self, path: str, body: object = None) -> str:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return str(response.read().decode())

    def json(self, path: str, body: object = None) -> Any:
        return json.loads(self.text(path, body))

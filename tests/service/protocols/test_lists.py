"""POST /v1/answers: several questions in one body, each answered or refused by itself."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from pocketqa.errors import EngineError, PocketQAError
from pocketqa.types import Batch, SpanLogits
from service.app import create_app
from service.errors import Overloaded
from service.inference import Answered, Clock
from service.models import Pair, Served
from service.questions import Question
from service.schemas import Role
from service.settings import Settings
from tests.service.tiny_pair import WordRuntime, make_pair, make_served, make_tokenizer

MILL = "The mill was built by Ada Bell in Rome."
WHO = "who built it?"
ASK: dict[str, Any] = {"question": WHO, "context": MILL}


def ask(client: TestClient, *requests: dict[str, Any]) -> Any:
    response = client.post("/v1/answers", json={"requests": requests})
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert len(results) == len(requests)
    return results


def untimed(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "timings"}


def test_each_item_is_answered_as_it_would_be_alone(client: TestClient) -> None:
    requests: list[dict[str, Any]] = [
        ASK,
        ASK | {"model": "teacher"},
        ASK | {"context": ["x x", "by Bell", "x"], "top_k": 2},
        ASK | {"context": "The mill."},
        ASK | {"context": "x " * 300 + "Bell", "max_tokens": 128, "doc_stride": 32, "max_answer_tokens": 4},
    ]
    together = ask(client, *requests)
    assert [result["model"] for result in together] == ["student", "teacher", "student", "student", "student"]
    assert [result["answers"][0]["text"] for result in together] == ["Bell", "Ada", "Bell", "", "Bell"]
    alone = [client.post("/v1/answer", json=request).json() for request in requests]
    assert [untimed(result) for result in together] == [untimed(result) for result in alone]


def test_an_item_that_fails_hurts_no_other(client: TestClient) -> None:
    bad = [ASK | {"question": "who " * 30}, ASK | {"context": "\u200b"}, ASK | {"max_tokens": 64, "doc_stride": 64}, ASK | {"top_k": 6}]
    results = ask(client, ASK, bad[0], bad[1], ASK | {"model": "teacher"}, bad[2], bad[3])
    assert [result["answers"][0]["text"] if "answers" in result else result["error"]["code"] for result in results] == [
        "Bell", "limit_exceeded", "invalid_text", "Ada", "invalid_options", "limit_exceeded",
    ]  # fmt: skip
    # An error is the body that the item would have got by itself.
    for result, request in zip([results[1], results[2], results[4], results[5]], bad, strict=True):
        assert result == client.post("/v1/answer", json=request).json()


def test_all_may_fail(client: TestClient) -> None:
    assert [result["error"]["code"] for result in ask(client, ASK | {"top_k": 6}, ASK | {"top_k": 7})] == ["limit_exceeded"] * 2


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "requests is missing"),
        ({"requests": []}, 422, "requests: List should have at least 1 item"),
        ({"requests": ASK}, 422, "requests: expected a valid list"),
        ({"requests": [ASK, {"question": WHO}]}, 422, "requests[1].context is missing"),
        ({"requests": [ASK, ASK | {"top_k": "1"}]}, 422, "requests[1].top_k: expected a valid integer"),
        ({"requests": [ASK, ASK | {"temperature": 1}]}, 422, "unknown key 'temperature' in requests[1]"),
        ({"requests": [ASK, ASK | {"my secret": 1}]}, 422, "unknown key in requests[1]"),
        ({"requests": [ASK, ASK | {"context": [""]}]}, 422, "requests[1].context: expected a string or a list of one or more strings"),
        ({"requests": [ASK], "model": "student"}, 422, "unknown key 'model'"),
        ({"requests": [{"question": "?", "context": "x"}] * 65}, 422, "At most 64 questions are taken in one body, found 65."),
    ],
)
def test_a_list_that_is_none_is_refused_as_a_whole(client: TestClient, body: object, status: int, said: str) -> None:
    response = client.post("/v1/answers", json=body)
    assert response.status_code == status
    assert said in response.json()["error"]["message"]
    assert "secret" not in response.text


def test_the_longest_stages_are_in_headers(client: TestClient) -> None:
    response = client.post("/v1/answers", json={"requests": [ASK, ASK | {"context": "by Bell " * 50}, ASK | {"model": "teacher"}]})
    times = [result["timings"] for result in response.json()["results"]]
    for stage in ("tokenise", "queue", "forward", "decode", "total"):
        assert float(response.headers[f"x-{stage}-ms"]) == max(each[stage] for each in times)


def test_both_models_questions_of_one_body_have_one_clock(tmp_path: Path) -> None:
    app, clocks = create_app(Settings(access_log=False), make_pair(tmp_path, "ada", "bell")), []
    with TestClient(app) as client:
        inference = app.state.service.inference
        real = inference.answer_many

        async def noted(role: Role, questions: Sequence[Question], clock: Clock) -> list[Answered | PocketQAError]:
            clocks.append(clock)
            return await real(role, questions, clock)  # type: ignore[no-any-return]

        inference.answer_many = noted
        assert client.post("/v1/answers", json={"requests": [ASK, ASK | {"model": "teacher"}]}).status_code == 200
    assert len(clocks) == 2 and clocks[0] is clocks[1] and clocks[0].queued == 0  # so that neither counts the other's as a stranger's work


class LimitedInference:
    """Has room for the teacher's questions, and for the first of the student's or none."""

    def __init__(self, room: int) -> None:
        self.room = room

    def open(self, app: Any) -> None:
        inference = app.state.service.inference
        self._answer_many = inference.answer_many
        inference.answer_many = self.answer_many

    async def answer_many(self, role: Role, questions: Sequence[Question], clock: Clock) -> list[Answered | PocketQAError]:
        found: list[Answered | PocketQAError] = await self._answer_many(role, questions, clock)
        if role == "student":
            found[self.room :] = [Overloaded("Too much is waiting.", wait) for wait in np.arange(2.5, 2.5 + len(found) - self.room)]
        return found


@pytest.mark.parametrize(
    ("room", "requests", "status", "texts", "retry_after"),
    [
        (0, [ASK, ASK], 429, [], "4"),  # nobody was answered: the whole is refused
        (1, [ASK, ASK, ASK], 200, ["Bell", None, None], "4"),  # the second of those refused should come back after 3.5 seconds
        (0, [ASK, ASK | {"model": "teacher"}], 200, [None, "Ada"], "3"),
        (0, [ASK, ASK | {"top_k": 50}], 200, [None, None], "3"),  # one of them need not come back
    ],
)
def test_want_of_capacity(tmp_path: Path, room: int, requests: list[object], status: int, texts: list[str | None], retry_after: str) -> None:
    app = create_app(Settings(access_log=False), make_pair(tmp_path, "ada", "bell"))
    with TestClient(app) as client:
        LimitedInference(room).open(app)
        response = client.post("/v1/answers", json={"requests": requests})
    assert response.status_code == status
    assert response.headers["retry-after"] == retry_after
    if status == 200:
        assert [result["answers"][0]["text"] if "answers" in result else None for result in response.json()["results"]] == texts
    else:
        assert response.json()["error"]["code"] == "overloaded"


class FailingRuntime(WordRuntime):
    """Fails for a batch that holds the forbidden word."""

    forbidden = -1

    def forward(self, batch: Batch) -> SpanLogits:
        """Raises EngineError, as an engine does."""
        if (batch.ids == self.forbidden).any():
            raise EngineError("a secret of the engine")
        return super().forward(batch)


def test_an_item_that_breaks_the_engine_is_told_without_its_insides(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = make_tokenizer(tmp_path)
    teacher, student = make_served("teacher", tokenizer, "ada"), make_served("student", tokenizer, "bell")
    assert isinstance(student.reader.runtime, WordRuntime)
    runtime = student.reader.runtime = FailingRuntime(student.reader.runtime._word, tokenizer.cls_id)
    rome = tokenizer._fast.token_to_id("rome")
    assert rome is not None
    runtime.forbidden = rome
    app = create_app(Settings(access_log=False), Pair(teacher, Served("student", student.reader, student.facts)))
    with TestClient(app) as client:
        good, bad, other = ask(client, ASK | {"context": "by Bell"}, ASK, ASK | {"context": "Bell built it"})
        registry = app.state.service.metrics.registry
    assert (good["answers"][0]["text"], other["answers"][0]["text"]) == ("Bell", "Bell")
    assert bad["error"]["code"] == "engine_failed"
    assert "secret" not in str(bad)
    assert "An item of /v1/answers failed" in caplog.text
    assert registry.get_sample_value("pocketqa_rejected_total", {"reason": "engine_failed"}) == 1


def test_items_share_batches(client: TestClient, pair: Pair) -> None:
    runtime = pair.student.reader.runtime
    assert isinstance(runtime, WordRuntime)
    before, began = runtime.calls, time.perf_counter()
    assert len(ask(client, *[ASK] * 32)) == 32
    assert runtime.calls - before < 32
    assert time.perf_counter() - began < 20

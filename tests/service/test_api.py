"""What the endpoints answer, on models whose answers are known beforehand."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

import pocketqa
from pocketqa import squad
from pocketqa.types import Answer, NoAnswer
from service.agreement import agreement
from service.app import create_app
from service.metrics import ROLES
from service.models import Pair
from service.samples import SAMPLES
from service.settings import Settings
from tests.service.edge.conftest import wait_until
from tests.service.tiny_pair import WordRuntime, make_pair, make_served, make_tokenizer

MILL = "The mill was built by Ada Bell in Rome."
WHO = "who built it?"
STAGES = ["tokenise", "queue", "forward", "decode"]


def ask(client: TestClient, **body: object) -> Any:
    response = client.post("/v1/answer", json={"question": WHO, "context": MILL} | body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", ["/v1/answer", "/models/student", "/v2/models/student/ready"])
def test_no_part_of_a_request_is_handed_to_fastapis_threads(client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """A plain function among the dependencies would be: two switches of threads, paid by every request."""

    async def refuse(function: object, *_: object) -> object:
        raise AssertionError(f"{function} runs in a thread")

    monkeypatch.setattr("fastapi.dependencies.utils.run_in_threadpool", refuse)
    monkeypatch.setattr("fastapi.routing.run_in_threadpool", refuse)
    pair = {"question": WHO, "context": MILL}
    response = client.get(path) if path.endswith("ready") else client.post(path, json={"inputs": pair} if "models" in path else pair)
    assert response.status_code == 200


def test_the_student_answers_unless_the_teacher_is_asked(client: TestClient) -> None:
    by_default, teacher = ask(client), ask(client, model="teacher")
    assert (by_default["model"], by_default["answers"][0]["text"]) == ("student", "Bell")
    assert (teacher["model"], teacher["answers"][0]["text"]) == ("teacher", "Ada")
    answer = by_default["answers"][0]
    assert MILL[answer["start"] : answer["end"]] == "Bell"
    # One span of two hits against about sixty others: nearly all of the mass.
    assert 0.99 < answer["score"] <= 1
    assert answer["source"] == 0
    assert answer["is_no_answer"] is False
    # [CLS] who built it ? [SEP] the mill was built by ada bell in rome . [SEP]
    assert (by_default["windows"], by_default["tokens"]) == (1, 17)


@pytest.mark.parametrize(
    ("context", "before"),
    [
        ("😀🎉 the mill was built by Bell", "😀🎉 the mill was built by "),
        ("👩\u200d🚀👍🏽 was built by Bell 😀", "👩\u200d🚀👍🏽 was built by "),
        ("שלום עולם Bell שלום", "שלום עולם "),
        ("e\u0301\u0301 Bell", "e\u0301\u0301 "),
        ("\ufeffBell", "\ufeff"),
        ("line\r\nline\n\tBell", "line\r\nline\n\t"),
        ("\u0000\u0007 Bell", "\u0000\u0007 "),
    ],
)
def test_offsets_are_code_points(client: TestClient, context: str, before: str) -> None:
    answer = ask(client, context=context)["answers"][0]
    assert (answer["start"], answer["end"], answer["text"]) == (len(before), len(before) + 4, "Bell")


def test_escaped_and_plain_text_are_one(client: TestClient) -> None:
    plain = '{"question": "who?", "context": "😀 שלום Bell"}'
    escaped = r'{"question": "who?", "context": "\ud83d\ude00 \u05e9\u05dc\u05d5\u05dd Bell"}'
    answers = [
        client.post("/v1/answer", content=body.encode(), headers={"content-type": "application/json; charset=utf-8"}).json()["answers"]
        for body in (plain, escaped)
    ]
    assert answers[0] == answers[1]
    assert answers[0][0]["start"] == 7


def test_a_list_of_passages_is_one_search(client: TestClient) -> None:
    body = ask(client, context=["The mill was built in Rome.", "x x x", "😀 by Bell."])
    answer = body["answers"][0]
    assert (answer["source"], answer["start"], answer["text"]) == (2, 5, "Bell")
    assert body["windows"] == 3
    assert ask(client, context=[MILL])["answers"] == ask(client, context=MILL)["answers"]


def test_top_k_answers_come_best_first_and_do_not_overlap(client: TestClient) -> None:
    answers = ask(client, context="Bell and Bell", top_k=3, no_answer=False)["answers"]
    assert [a["text"] for a in answers] == ["Bell", "Bell", "and"]
    assert [a["start"] for a in answers[:2]] == [0, 9]
    scores = [a["score"] for a in answers]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) <= 1
    # Two equal hits of 12, and "Bell and Bell" from the first to the last of them: a third each.
    assert scores[0] == pytest.approx(1 / 3, abs=1e-3)


def test_no_answer_wins_where_the_passage_holds_none(client: TestClient) -> None:
    none = ask(client, context="The mill was built in Rome.")["answers"][0]
    assert none["is_no_answer"] is True
    assert (none["text"], none["start"], none["end"]) == ("", 0, 0)
    forced = ask(client, context="The mill was built in Rome.", no_answer=False)["answers"][0]
    assert forced["is_no_answer"] is False
    assert forced["text"]


def test_no_answer_follows_what_the_model_was_trained_for(tmp_path: Path) -> None:
    untrained = make_pair(tmp_path, no_answer=NoAnswer(False, None))
    with TestClient(create_app(Settings(), untrained)) as client:
        assert ask(client, context="The mill.")["answers"][0]["is_no_answer"] is False
        refused = client.post("/v1/answer", json={"question": WHO, "context": MILL, "no_answer": True})
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == "invalid_options"
        assert "not trained with unanswerable questions" in refused.json()["error"]["message"]


def test_a_long_passage_is_read_in_windows_that_overlap(client: TestClient) -> None:
    context = "x " * 400 + "Bell" + " x" * 400
    body = ask(client, context=context, max_tokens=256)
    assert body["answers"][0]["start"] == 800
    # 801 tokens; 256 - 3 - 4 hold 249 of the passage, in steps of 249 - 128.
    assert body["windows"] == 6
    narrow = ask(client, context="x " * 60 + "Bell", max_tokens=32, max_answer_tokens=4)
    assert narrow["answers"][0]["text"] == "Bell"


def test_stage_times_are_in_the_body_and_in_headers(client: TestClient) -> None:
    response = client.post("/v1/answer", json={"question": WHO, "context": MILL})
    times = response.json()["timings"]
    assert list(times) == [*STAGES, "total"]
    assert all(times[stage] >= 0 for stage in times)
    assert times["total"] >= sum(times[stage] for stage in STAGES) - 0.01
    assert {stage: float(response.headers[f"x-{stage}-ms"]) for stage in times} == times


def test_compare_puts_one_question_to_both(client: TestClient) -> None:
    response = client.post("/v1/compare", json={"question": WHO, "context": MILL, "top_k": 2})
    assert response.status_code == 200
    body = response.json()
    assert body["teacher"]["answers"][0]["text"] == "Ada"
    assert body["student"]["answers"][0]["text"] == "Bell"
    assert len(body["teacher"]["answers"]) == len(body["student"]["answers"]) == 2
    assert (body["teacher"]["name"], body["teacher"]["engine"], body["teacher"]["precision"]) == ("tiny-teacher", "tiny", "fp32")
    assert body["agreement"] == {"same_span": False, "same_text": False, "f1": 0.0}
    assert (body["windows"], body["tokens"]) == (1, 17)
    teacher, student = body["teacher"]["timings"], body["student"]["timings"]
    assert teacher["tokenise"] == student["tokenise"]
    assert body["speed_ratio"] == pytest.approx(teacher["forward"] / student["forward"], rel=0.2)
    assert float(response.headers["x-teacher-forward-ms"]) == teacher["forward"]
    assert float(response.headers["x-student-total-ms"]) == student["total"]


def test_each_side_of_a_comparison_is_what_answer_gives(client: TestClient) -> None:
    body = client.post("/v1/compare", json={"question": WHO, "context": MILL, "top_k": 3}).json()
    for role in ("teacher", "student"):
        assert body[role]["answers"] == ask(client, model=role, top_k=3)["answers"]


def test_compare_runs_the_models_in_either_order(client: TestClient) -> None:
    first = {client.post("/v1/compare", json={"question": WHO, "context": MILL}).json()["first"] for _ in range(40)}
    assert first == {"teacher", "student"}  # fails by chance once in 2 ** 39 runs


def answer_of(text: str, start: int = 0, source: int = 0) -> tuple[Answer]:
    return (Answer(text, start, start + len(text), 0.5, source, is_no_answer=not text),)


@pytest.mark.parametrize(
    ("teacher", "student", "same_span", "same_text", "overlap"),
    [
        (answer_of("in 1931", 3), answer_of("in 1931", 3), True, True, 1.0),
        (answer_of("1931", 3), answer_of("1931", 9), False, True, 1.0),
        (answer_of("1931", 3, 0), answer_of("1931", 3, 1), False, True, 1.0),
        (answer_of("the oak blocks", 3), answer_of("oak blocks", 7), False, False, 1.0),  # articles do not count
        (answer_of("May 1931", 3), answer_of("14 May 1931", 0), False, False, 0.8),  # 2 of 2 and 2 of 3 words
        (answer_of("Ada"), answer_of("Bell"), False, False, 0.0),
        (answer_of(""), answer_of(""), True, True, 1.0),
        (answer_of(""), answer_of("Ada"), False, False, 0.0),
        (answer_of("?!"), answer_of("?!"), True, True, 1.0),
        (answer_of("+"), answer_of("-", 3), False, False, 0.0),
        (answer_of("A"), answer_of(""), False, False, 0.0),
        ((), (), True, True, 1.0),
        ((), answer_of("Ada"), False, False, 0.0),
    ],
)
def test_agreement(teacher: tuple[Answer, ...], student: tuple[Answer, ...], same_span: bool, same_text: bool, overlap: float) -> None:
    found = agreement(teacher, student)
    assert (found.same_span, found.same_text) == (same_span, same_text)
    assert found.f1 == pytest.approx(overlap)


def test_models_tells_what_runs_and_within_which_limits(client: TestClient, model_folder_free_settings: Settings) -> None:
    body = client.get("/v1/models").json()
    teacher, student = body["models"]
    assert teacher == {
        "name": "tiny-teacher", "role": "teacher", "engine": "tiny", "engine_version": student["engine_version"], "precision": "fp32", "threads": 1,
        "layers": 12, "hidden_size": 384, "parameters": 12000, "weights_bytes": 24000, "weights_sha256": "teacher" + 57 * "0",
        "no_answer": {"supported": True, "threshold": 0.0},
    }  # fmt: skip
    assert student["role"] == "student"
    assert body["limits"] == {
        "body_bytes": 20_000,
        "question_chars": 100,
        "context_chars": 5_000,
        "contexts": 3,
        "windows": 8,
        "top_k": 5,
        "requests": 64,
    }
    assert body["version"] == pocketqa.__version__


def test_samples_are_those_of_the_file(client: TestClient) -> None:
    samples = client.get("/v1/samples").json()["samples"]
    served = [(s["title"], s["context"], q["question"], q["is_impossible"]) for s in samples for q in s["questions"]]
    assert served == [(e.title, e.context, e.question, e.is_impossible) for e in squad.load(SAMPLES)]


def test_one_forward_pass_at_a_time_and_the_wait_is_queue_time(tmp_path: Path) -> None:
    gate = threading.Event()
    tokenizer = make_tokenizer(tmp_path)
    pair = Pair(make_served("teacher", tokenizer, "ada", gate=gate), make_served("student", tokenizer, "bell", gate=gate))
    app = create_app(Settings(batching=False), pair)
    read = app.state.service.metrics.registry.get_sample_value
    with TestClient(app) as client, ThreadPoolExecutor(4) as people:
        answers = [people.submit(ask, client, model=role) for role in ("student", "teacher") * 2]
        # One is computed, the others wait.
        wait_until(lambda: sum(read("pocketqa_queue_requests", {"model": role}) for role in ROLES) == 3)
        assert client.get("/livez").status_code == 200  # while every core is taken
        time.sleep(0.2)
        gate.set()
        first, *others = sorted((answer.result(30)["timings"] for answer in answers), key=lambda spent: -spent["forward"])
    runtimes = [served.reader.runtime for served in (pair.teacher, pair.student)]
    assert all(isinstance(runtime, WordRuntime) and runtime.most_running == 1 for runtime in runtimes)
    assert first["forward"] >= 200  # ms
    assert all(spent["queue"] >= 200 for spent in others)
    assert all(sum(spent[stage] for stage in ("tokenise", "queue", "forward", "decode")) <= spent["total"] for spent in (first, *others))


def test_many_threads_at_once_get_their_own_answers(client: TestClient) -> None:
    contexts = [f"{'x ' * n}Bell in Rome" for n in range(40)]
    with ThreadPoolExecutor(8) as people:
        bodies = list(people.map(lambda context: ask(client, context=context, max_tokens=64 + len(context) % 3 * 64), contexts))
    assert [body["answers"][0]["start"] for body in bodies] == [2 * n for n in range(40)]

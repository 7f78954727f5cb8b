"""Questions through all stages, with a thread and with a worker process: order, companions, deadlines, departed clients, long documents."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pocketqa.errors import EngineError, PocketQAError, TextError
from pocketqa.features import Encoded
from pocketqa.types import Request, WindowOptions
from service import inference as inference_module
from service import questions
from service.engine.lanes import ThreadEngine
from service.engine.supervisor import WorkerEngine
from service.errors import DeadlineExceeded, Overloaded, WorkerLost, error_headers
from service.inference import Answered, Inference
from service.metrics import Metrics
from service.questions import Question
from service.settings import Settings
from tests.service.engine.tiny_worker import DEADLY, MODULE, POISON, SLOW, SLOW_SECONDS
from tests.service.tiny_pair import make_pair
from tests.service.waiting import until


def question(*contexts: str, text: str = "who built it?", max_tokens: int = 384, no_answer: bool | None = None) -> Question:
    options = WindowOptions(max_tokens=max_tokens, doc_stride=min(128, max_tokens // 2), max_question_tokens=min(64, max_tokens // 2))
    return Question(Request(text, contexts), options, 1, 8, no_answer)


@asynccontextmanager
async def in_thread(folder: Path, **settings: Any) -> AsyncIterator[tuple[Inference, Metrics]]:
    pair, metrics = make_pair(folder, teacher="ada", student="bell"), Metrics()
    inference = Inference(pair, ThreadEngine(pair), Settings(**settings), metrics)
    try:
        yield inference, metrics
    finally:
        await inference.close()


@asynccontextmanager
async def in_process(settings: Settings) -> AsyncIterator[tuple[Inference, Metrics]]:
    metrics = Metrics()
    engine = WorkerEngine(settings, metrics.restarted, MODULE)
    inference = Inference(await engine.open(), engine, settings, metrics)
    try:
        yield inference, metrics
    finally:
        await inference.close()


def sample(metrics: Metrics, name: str, model: str = "student") -> float:
    return metrics.registry.get_sample_value(name, {"model": model}) or 0.0


def computes(inference: Inference, metrics: Metrics) -> bool:
    """Whether something is computed, and nothing of the student's waits."""
    return not inference._scheduler.idle and sample(metrics, "pocketqa_queue_requests") == 0


def best(outcome: Answered | PocketQAError) -> tuple[str, int, int, int]:
    assert isinstance(outcome, Answered), outcome
    answer = outcome.result.best
    return answer.text, answer.start, answer.end, answer.source


def test_the_stages_add_up_to_the_whole(tmp_path: Path) -> None:
    async def scene() -> None:
        async with in_thread(tmp_path) as (inference, metrics):
            answered = await inference.answer("student", question("the mill was built by bell"))
            assert best(answered) == ("bell", 22, 26, 0)
            timings = answered.result.timings
            assert min(timings.tokenise, timings.queue, timings.forward, timings.decode) > 0
            assert timings.total <= answered.total
            await asyncio.sleep(0)
            assert sample(metrics, "pocketqa_answer_duration_seconds_count") == 1

    asyncio.run(scene())


def test_several_questions_share_a_batch_and_keep_their_order(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with in_process(tiny_settings) as (inference, metrics):
            before = asyncio.create_task(inference.answer("student", question(SLOW)))
            await until(lambda: computes(inference, metrics))
            questions = [question("in the mill " * i + "bell") for i in range(8)]
            outcomes = await inference.answer_many("student", questions)
            await before
            assert [best(outcome)[1] for outcome in outcomes] == [12 * i for i in range(8)]
            assert sample(metrics, "pocketqa_batch_rows_sum") == 9
            assert sample(metrics, "pocketqa_batch_rows_count") < 9
            assert sample(metrics, "pocketqa_answer_duration_seconds_count") == 9

    asyncio.run(scene())


def test_a_long_list_is_tokenised_in_parts_and_comes_at_one_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene() -> None:
        async with in_thread(tmp_path, max_windows=2) as (inference, _):
            in_thread_, run, jobs, arrivals = inference._in_thread, inference._scheduler.run, [], set()

            async def one_job(work: Any) -> Any:
                made, waited = await in_thread_(work)
                jobs.append(len(made) if made and isinstance(made[0], Encoded | TextError) else 0)
                return made, waited

            async def arrived(role: Any, windows: Any, arrival: float, *rest: Any) -> Any:
                arrivals.add(arrival)
                return await run(role, windows, arrival, *rest)

            monkeypatch.setattr(inference, "_in_thread", one_job)
            monkeypatch.setattr(inference._scheduler, "run", arrived)
            texts = ["bell", "in bell", " ", "the bell", "mill bell", "by bell"]
            outcomes = await inference.answer_many("student", [question("bell", text=text) if text == " " else question(text) for text in texts])
            assert [None if isinstance(outcome, TextError) else best(outcome)[1] for outcome in outcomes] == [0, 3, None, 4, 5, 3]
            assert [job for job in jobs if job] == [2, 3, 1]  # with the windows of two in each
            assert len(arrivals) == 1

    asyncio.run(scene())


def test_an_item_that_fails_stands_in_its_place_and_hurts_no_other(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with in_process(tiny_settings) as (inference, metrics):
            questions = [question("bell"), question(POISON), question("by bell"), question("bell", text=" "), question("in the mill bell")]
            outcomes = await inference.answer_many("student", questions)
            assert [best(outcomes[i])[1] for i in (0, 2, 4)] == [0, 3, 12]
            assert isinstance(outcomes[1], EngineError)
            assert isinstance(outcomes[3], TextError)
            assert sample(metrics, "pocketqa_batch_retries_total") == 1

    asyncio.run(scene())


def test_a_list_does_not_refuse_itself(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with in_process(replace(tiny_settings, batching=False, max_queue_seconds=SLOW_SECONDS / 2)) as (inference, _):
            outcomes = await inference.answer_many("student", [question(SLOW)] * 4)  # the first ones teach what it costs
            outcomes += await inference.answer_many("student", [question(SLOW)] * 4)
            assert len([best(outcome) for outcome in outcomes]) == 8
            assert inference._scheduler.idle

    asyncio.run(scene())


def test_what_is_ready_at_the_deadline_is_not_lost(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with in_process(replace(tiny_settings, workers=2, batching=False, deadline_seconds=SLOW_SECONDS / 2)) as (inference, _):
            ready, late = await inference.answer_many("student", [question("bell"), question(SLOW)])
            assert best(ready)[0] == "bell"
            assert isinstance(late, DeadlineExceeded)

    asyncio.run(scene())


def test_a_text_of_many_windows_says_little_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(*given: Any) -> Encoded:
        return replace(questions.encode(*given), seconds=0.5)

    monkeypatch.setattr(inference_module, "encode", encode)

    async def scene() -> None:
        async with in_thread(tmp_path, max_queue_seconds=1.0) as (inference, _):
            for _ in range(60):
                await inference.answer("student", question("bell " * 4))
            monkeypatch.undo()
            outcomes = await inference.answer_many("student", [question("bell " * 2000, max_tokens=512)] * 3)
            assert [best(outcome)[0] for outcome in outcomes] == ["bell"] * 3

    asyncio.run(scene())


def test_both_models_read_the_same_windows(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with in_process(tiny_settings) as (inference, _):
            firsts = set()
            for _ in range(20):
                compared = await inference.compare(question("ada and bell built it"))
                assert (best(compared.teacher)[0], best(compared.student)[0]) == ("ada", "bell")
                assert compared.teacher.result.tokens == compared.student.result.tokens
                firsts.add(compared.first)
            assert firsts == {"teacher", "student"}

    asyncio.run(scene())


def test_a_request_is_given_up_at_its_deadline_and_others_go_on(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with in_process(replace(tiny_settings, deadline_seconds=SLOW_SECONDS / 2)) as (inference, _):
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded) as caught:
                await inference.answer("student", question(SLOW))
            assert time.monotonic() - began < SLOW_SECONDS
            assert caught.value.retry_after >= 1
            await asyncio.sleep(SLOW_SECONDS)
            assert best(await inference.answer("student", question("bell")))[0] == "bell"
            assert inference.workers()[0]["restarts"] == 0

    asyncio.run(scene())


def test_a_departed_client_is_counted_and_its_windows_leave(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with in_process(tiny_settings) as (inference, metrics):
            running = asyncio.create_task(inference.answer("student", question(SLOW)))
            await until(lambda: computes(inference, metrics))
            leaving = [asyncio.create_task(inference.answer("student", question("bell"))) for _ in range(5)]
            await until(lambda: sample(metrics, "pocketqa_queue_requests") == 5)
            for task in leaving:
                task.cancel()
            await asyncio.gather(running, *leaving, return_exceptions=True)
            assert sample(metrics, "pocketqa_cancelled_total") == 5
            assert inference._scheduler.idle
            assert best(await inference.answer("student", question("by bell")))[0] == "bell"

    asyncio.run(scene())


def test_a_worker_that_dies_takes_only_what_it_computes_with_it(tiny_settings: Settings) -> None:
    async def scene() -> None:
        async with in_process(tiny_settings) as (inference, metrics):
            tasks = [asyncio.create_task(inference.answer("student", question(SLOW)))]
            await until(lambda: computes(inference, metrics))
            tasks += [asyncio.create_task(inference.answer("student", question("in " * 40 + DEADLY, max_tokens=384)))]
            await until(lambda: sample(metrics, "pocketqa_queue_requests") == 1)
            tasks += [asyncio.create_task(inference.answer("teacher", question("ada")))]
            await asyncio.wait(tasks)
            assert tasks[0].exception() is None
            assert isinstance(tasks[1].exception(), WorkerLost)
            assert best(tasks[2].result())[0] == "ada"  # it waited for the next worker
            assert inference.alive
            assert inference.workers()[0]["restarts"] == 1
            assert metrics.registry.get_sample_value("pocketqa_worker_restarts_total") == 1

    asyncio.run(scene())


def test_hundreds_of_windows_are_on_one_scale(tmp_path: Path) -> None:
    async def scene() -> None:
        async with in_thread(tmp_path, max_windows=600) as (inference, metrics):
            # [CLS], four tokens of question and two [SEP] leave 57 of 64, of which 32 overlap: a new window every 25 words.
            words = ["mill"] * 9000
            words[8500] = "bell"
            asked = question(" ".join(words), max_tokens=64)
            answered = await inference.answer("student", asked)
            assert answered.result.windows == 1 + -(-(9000 - 57) // 25)
            assert best(answered) == ("bell", 5 * 8500, 5 * 8500 + 4, 0)
            # Two hits of equal logits share what there is, wherever they stand.
            words[10] = "bell"
            answered = await inference.answer("student", replace(question(" ".join(words), max_tokens=64), top_k=2))
            scores = [answer.score for answer in answered.result.answers]
            assert scores[0] == pytest.approx(scores[1], rel=1e-4)
            assert sum(scores) < 1
            assert sample(metrics, "pocketqa_batch_rows_sum") == 2 * answered.result.windows

    asyncio.run(scene())


def test_an_answer_names_the_passage_that_it_was_found_in(tmp_path: Path) -> None:
    async def scene() -> None:
        async with in_thread(tmp_path) as (inference, _):
            passages = ["the mill was built in rome"] * 40
            passages[23] = "it was bell ."
            assert best(await inference.answer("student", question(*passages))) == ("bell", 7, 11, 23)

    asyncio.run(scene())


def test_the_same_spans_alone_or_in_company(tmp_path: Path) -> None:
    async def scene() -> None:
        draw = random.Random(0)
        words = ["who", "built", "the", "mill", "bell", "ada", "in", "rome", "😀", "שלום"]
        questions = [question(" ".join(draw.choices(words, k=draw.randint(1, 700))), max_tokens=draw.choice([64, 128, 384])) for _ in range(60)]
        async with in_thread(tmp_path) as (inference, metrics):
            alone = [best(await inference.answer("student", each)) for each in questions]
            batches = sample(metrics, "pocketqa_batch_rows_count")
            together = [best(outcome) for outcome in await inference.answer_many("student", questions)]
            assert together == alone
            assert sample(metrics, "pocketqa_batch_rows_count") - batches < batches

    asyncio.run(scene())


def test_the_seconds_to_wait_are_whole_and_rounded_up() -> None:
    assert error_headers(Overloaded("much", 2.2))["retry-after"] == "3"
    assert error_headers(WorkerLost("gone"))["retry-after"] == "1"

"""The one inference path: what batching, threads and company must not change, and a public oracle for single windows."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from pocketqa import Reader, spans
from pocketqa.errors import FolderError, OptionsError, TextError
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder
from pocketqa.runtimes import open_runtime
from pocketqa.types import Batch, Request, SpanLogits, SpanOptions, WindowOptions
from tests.pocketqa import little
from tests.tiny import SAMPLES, tiny_bert, tiny_distilbert

TEXT = "the mill was built by Ada in 1850. the bridge and the river. " * 6
REQUESTS = [Request("who built?", (TEXT[: 40 * i],)) for i in range(1, 9)] + [Request("when?", ("in 1850", TEXT, "Ada"))]
WINDOWS, SPANS = WindowOptions(48, 16, 8), SpanOptions(max_answer_tokens=8, top_k=4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer(little.tokenizer_file(tmp_path_factory.mktemp("little")))


def plain(results):
    return [[(a.text, a.start, a.end, a.source, a.score) for a in result.answers] for result in results]


@pytest.mark.parametrize("runtime", [little.HashRuntime(max_batch=1), little.HashRuntime(max_batch=3), little.HashRuntime(lengths=(24, 48, 64))])
def test_batches_do_not_change_answers(tokenizer, runtime):
    expected = plain(Reader(tokenizer, little.HashRuntime()).answer_many(REQUESTS, window_options=WINDOWS, span_options=SPANS))
    reader = Reader(tokenizer, runtime)
    assert plain(reader.answer_many(REQUESTS, window_options=WINDOWS, span_options=SPANS)) == expected
    assert all(rows <= (runtime.max_batch or rows) and (runtime.lengths is None or length in runtime.lengths) for rows, length in runtime.batches)


@pytest.mark.parametrize("budget", [1, 100, 5000])
def test_logits_stand_at_their_windows(tokenizer, budget):
    reader = Reader(tokenizer, little.HashRuntime())
    encoded = reader.encode(REQUESTS, WINDOWS)
    logits = reader.forward(encoded, max_batch_tokens=budget)
    assert logits.start.shape == logits.end.shape == (len(encoded.windows), max(map(len, encoded.windows)))
    for row, window in enumerate(encoded.windows):
        alone = little.HashRuntime().forward(Batch(window.ids[None], window.token_types[None], np.ones_like(window.ids[None])))
        np.testing.assert_array_equal(logits.start[row, : len(window)], alone.start[0])
        np.testing.assert_array_equal(logits.end[row, : len(window)], alone.end[0])


def test_company_does_not_change_an_answer(tokenizer):
    reader = Reader(tokenizer, little.HashRuntime())
    together = reader.answer_many(REQUESTS, window_options=WINDOWS, span_options=SPANS)
    apart = [reader.answer(r.question, r.contexts, window_options=WINDOWS, span_options=SPANS) for r in REQUESTS]
    assert plain(together) == plain(apart)
    assert all(a.text == r.contexts[a.source][a.start : a.end] for r, result in zip(REQUESTS, together, strict=True) for a in result.answers)


def test_one_passage_or_several(tokenizer):
    reader = Reader(tokenizer, little.HashRuntime())
    assert plain([reader.answer("who?", TEXT)]) == plain([reader.answer("who?", [TEXT])]) == plain([reader.answer("who?", (TEXT,))])
    best = reader.answer("who?", ["the mill", TEXT, "Ada"], span_options=SpanOptions(top_k=50)).answers
    assert {answer.source for answer in best} == {0, 1, 2}
    assert [a.score for a in best] == sorted((a.score for a in best), reverse=True) and sum(a.score for a in best) <= 1


def test_times_and_sizes_of_every_stage(tokenizer):
    class Slow(little.HashRuntime):
        def forward(self, batch: Batch) -> SpanLogits:
            time.sleep(0.05)
            return super().forward(batch)

    reader = Reader(tokenizer, Slow())
    result = reader.answer("who?", TEXT, window_options=WINDOWS, span_options=SPANS)
    encoded = reader.encode([Request("who?", (TEXT,))], WINDOWS)
    assert (result.windows, result.tokens) == (len(encoded.windows), encoded.tokens)
    times = result.timings
    assert times.forward >= 0.05 and times.tokenise > 0 < times.decode and times.queue == 0
    assert times.total == pytest.approx(times.tokenise + times.forward + times.decode)
    began = time.perf_counter()
    several = reader.answer_many([Request("who?", (TEXT,)), Request("who?", ("Ada",))], window_options=WINDOWS, span_options=SPANS)
    wall = time.perf_counter() - began
    assert 0.05 <= sum(r.timings.forward for r in several) <= wall  # the time of the whole call, shared out
    assert several[0].timings.forward / several[1].timings.forward == pytest.approx(several[0].windows / several[1].windows)


def test_nothing_to_answer(tokenizer):
    reader = Reader(tokenizer, little.HashRuntime())
    with pytest.raises(TextError, match="at least one question"):
        reader.answer_many([])
    with pytest.raises(TextError, match="at least one passage"):
        reader.answer("who?", [])
    with pytest.raises(OptionsError, match="not trained"):
        reader.answer("who?", TEXT, span_options=SpanOptions(no_answer=True))


def test_requests_may_come_one_by_one(tokenizer):
    reader = Reader(tokenizer, little.HashRuntime())
    assert plain(reader.answer_many(request for request in REQUESTS)) == plain(reader.answer_many(REQUESTS))
    assert reader.encode(iter(REQUESTS)).requests == tuple(REQUESTS)
    with pytest.raises(TextError, match="at least one question"):
        reader.answer_many(iter([]))


@pytest.mark.parametrize(
    ("question", "context", "says"),
    [
        (None, "Ada", "a text as the question, found NoneType"),
        (b"who?", "Ada", "a text as the question, found bytes"),
        ("who?", None, "a text as the passage, found NoneType"),
        ("who?", b"Ada", "a text as the passage, found bytes"),
        ("who?", 7, "a text as the passage, found int"),
        ("who?", ["Ada", 7], "a text as the passage 2, found int"),
    ],
)
def test_what_is_no_text_is_refused(tokenizer, question, context, says):
    with pytest.raises(TextError, match=f"Expected {says}"):
        Reader(tokenizer, little.HashRuntime()).answer(question, context)


@pytest.mark.parametrize("contexts", ["Ada", None, 7])
def test_one_text_is_not_taken_for_a_passage_of_each_letter(tokenizer, contexts):
    with pytest.raises(TextError, match=rf"in a tuple, found {type(contexts).__name__}\. .*\(passage,\)"):
        Reader(tokenizer, little.HashRuntime()).answer_many([Request("who?", contexts)])


def test_a_path_that_is_not_utf8_is_told_as_such(tmp_path, monkeypatch):
    folder = tmp_path / "m\udce9d"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system has names in UTF-8 only")
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for name in ("m\udce9d", "link"):
        with pytest.raises(FolderError, match=r"path in UTF-8 to the model folder, found .*m\\udce9d"):
            Reader.open(name)


def test_sixteen_threads_with_settings_of_their_own(tokenizer):
    reader = Reader(tokenizer, little.HashRuntime())
    settings = [
        (
            WindowOptions(32 + 4 * i, 8 + i % 4, 8),
            SpanOptions(max_answer_tokens=1 + i % 4, top_k=1 + i, overlaps=bool(i % 2)),
            REQUESTS[i % len(REQUESTS) :],
        )
        for i in range(16)
    ]
    expected = [plain(reader.answer_many(requests, window_options=w, span_options=s)) for w, s, requests in settings]
    problems: list[object] = []
    together = threading.Barrier(16)

    def work(index: int) -> None:
        windows, options, requests = settings[index]
        try:
            together.wait(timeout=60)
            for _ in range(5):
                if plain(reader.answer_many(requests, window_options=windows, span_options=options)) != expected[index]:
                    problems.append(index)
        except Exception as error:  # whatever a thread meets fails the test below
            problems.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


# ---- the question-answering pipeline of transformers 4.57 as an oracle: on one window, the best span is that of the largest start + end logit


def sample_questions() -> list[tuple[str, str]]:
    document = json.loads(SAMPLES.read_text(encoding="utf-8"))
    passages = [paragraph for article in document["data"] for paragraph in article["paragraphs"]]
    return [(entry["question"], passage["context"][:300]) for passage in passages for entry in passage["qas"][:2]]


@pytest.fixture(scope="module", params=["bert", "distilbert cased"])
def checkpoint(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    return tiny_bert(folder, seed=1) if request.param == "bert" else tiny_distilbert(folder, cased=True, seed=2)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")  # inside transformers 4.57
@pytest.mark.parametrize("longest", [1, 5, 15])
def test_best_spans_agree_with_the_pipeline_of_transformers(checkpoint, longest):
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer, pipeline

    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint).eval()
    fast = AutoTokenizer.from_pretrained(checkpoint)
    fast.model_input_names = ["input_ids", "attention_mask", *(["token_type_ids"] if model.config.model_type == "bert" else [])]
    oracle = pipeline("question-answering", model=model, tokenizer=fast, framework="pt")
    folder = ModelFolder(checkpoint)
    reader = Reader(Tokenizer(folder.tokenizer), open_runtime(folder, "pytorch", threads=1))
    compared = 0
    for question, context in sample_questions():
        options = WindowOptions(max_tokens=512, doc_stride=128, max_question_tokens=200)
        found = reader.answer(question, context, window_options=options, span_options=SpanOptions(max_answer_tokens=longest))
        if found.windows > 1:
            continue
        expected = oracle(
            question=question, context=context, align_to_words=False, max_answer_len=longest, max_seq_len=512, doc_stride=128, max_question_len=200
        )
        assert (found.best.start, found.best.end) == spans.whole_characters(context, expected["start"], expected["end"]), question
        compared += 1
    assert compared >= 12

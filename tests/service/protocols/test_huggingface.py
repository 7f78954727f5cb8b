"""Hugging Face's question answering, on models whose answers are known beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from tokenizers.pre_tokenizers import BertPreTokenizer

from pocketqa.types import Answer, NoAnswer
from service.app import create_app
from service.errors import Overloaded, Waitable, WorkerLost
from service.models import Pair
from service.protocols.words import aligned
from service.settings import Settings
from tests.service.tiny_pair import make_pair

MILL = "The mill was built by Ada Bell in Rome."
WHO = "who built it?"
BELL = {"answer": "Bell", "start": 26, "end": 30}
FIELDS = {"score", "start", "end", "answer"}


def ask(client: TestClient, question: str = WHO, context: str = MILL, path: str = "/", **parameters: object) -> Any:
    response = client.post(path, json={"inputs": {"question": question, "context": context}, "parameters": parameters}, follow_redirects=False)
    assert response.status_code == 200, response.text
    return response.json()


def refused(client: TestClient, body: object, path: str = "/", status: int = 422) -> str:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return str(response.json()["error"])


def without_score(answer: dict[str, Any]) -> dict[str, Any]:
    assert set(answer) == FIELDS
    assert 0 <= answer["score"] <= 1
    return {name: value for name, value in answer.items() if name != "score"}


@pytest.mark.parametrize(
    ("path", "answer", "start"),
    [
        ("/", "Bell", 26),
        ("/predict", "Bell", 26),
        ("/models/student", "Bell", 26),
        ("/models/teacher", "Ada", 22),
        ("/predict/", "Bell", 26),
        ("/models/teacher/", "Ada", 22),
    ],
)
def test_a_pair_is_answered_by_one_object(client: TestClient, path: str, answer: str, start: int) -> None:
    found = ask(client, path=path)
    assert without_score(found) == {"answer": answer, "start": start, "end": start + len(answer)}
    assert found["score"] > 0.99


def test_the_page_stays_where_it_was(client: TestClient) -> None:
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"
    assert client.delete("/").headers["allow"] == "GET, HEAD, POST"


def test_parameters_may_be_absent_null_or_full_of_nulls(client: TestClient) -> None:
    inputs = {"question": WHO, "context": MILL}
    nulls = dict.fromkeys(["top_k", "doc_stride", "max_seq_len", "max_answer_len", "max_question_len", "handle_impossible_answer", "align_to_words"])
    bodies = [
        {"inputs": inputs},
        {"inputs": inputs, "parameters": None},
        {"inputs": inputs, "parameters": {}},
        {"inputs": inputs, "parameters": nulls},
    ]
    assert [without_score(client.post("/", json=body).json()) for body in bodies] == [BELL] * 4


def test_more_than_one_answer_is_a_list(client: TestClient) -> None:
    found = ask(client, context="Bell and Bell", top_k=3)
    assert [without_score(answer) for answer in found] == [
        {"answer": "Bell", "start": 0, "end": 4}, {"answer": "Bell", "start": 9, "end": 13}, {"answer": "and", "start": 5, "end": 8},
    ]  # fmt: skip
    # Two equal hits of 12, and "Bell and Bell" from the first to the last of them: a third each.
    assert found[0]["score"] == pytest.approx(1 / 3, abs=1e-3)
    assert isinstance(ask(client, context="Bell", top_k=2), list)  # also where there is only one


@pytest.mark.parametrize(
    ("inputs", "texts"),
    [
        ([{"question": WHO, "context": MILL}], ["Bell"]),
        ([{"question": WHO, "context": "in Rome"}, {"question": "who?", "context": "x Bell"}], [None, "Bell"]),
        ({"question": [WHO, "who?"], "context": MILL}, ["Bell", "Bell"]),
        ({"question": [WHO, "who?"], "context": ["the mill", "by Bell."]}, [None, "Bell"]),
    ],
)
def test_a_list_is_answered_by_a_list_in_its_order(client: TestClient, inputs: object, texts: list[str | None]) -> None:
    found = client.post("/", json={"inputs": inputs}).json()
    assert len(found) == len(texts)
    assert all(text is None or answer["answer"] == text for answer, text in zip(found, texts, strict=True))
    several = client.post("/", json={"inputs": inputs, "parameters": {"top_k": 2}}).json()
    assert [answers[0] for answers in several] == found


def test_older_names_mean_the_same(client: TestClient) -> None:
    newer = ask(client, context="Bell and Bell", top_k=2, max_answer_len=2, doc_stride=8, max_seq_len=40, handle_impossible_answer=True)
    older = ask(client, context="Bell and Bell", topK=2, maxAnswerLen=2, docStride=8, maxSeqLen=40, handleImpossibleAnswer=True)
    assert newer == older
    assert [answer["answer"] for answer in newer] == ["Bell", "Bell"]
    assert ask(client, maxQuestionLen=20, alignToWords=False) == ask(client, max_question_len=20, align_to_words=False)


def test_no_answer_competes_only_where_it_is_asked_for(client: TestClient) -> None:
    nothing = "The mill was built in Rome."
    assert ask(client, context=nothing)["answer"] != ""
    assert without_score(ask(client, context=nothing, handle_impossible_answer=True)) == {"answer": "", "start": 0, "end": 0}
    assert without_score(ask(client, handle_impossible_answer=True)) == BELL


def test_a_model_that_knows_no_no_answer_says_so_in_hugging_faces_words(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(), make_pair(tmp_path, no_answer=NoAnswer(False, None)))) as client:
        said = refused(client, {"inputs": {"question": WHO, "context": MILL}, "parameters": {"handle_impossible_answer": True}})
    assert "not trained with unanswerable questions" in said
    assert "Ask without handle_impossible_answer." in said


def test_the_longest_answer_has_fifteen_tokens_unless_said_otherwise(client: TestClient) -> None:
    # From "Bell" to "Bell" all spans tie with one another; the longest ones hold both.
    between = " x" * 20
    context = f"Bell{between} Bell"
    found = [answer["answer"] for answer in ask(client, context=context, top_k=5, align_to_words=False)]
    assert found[:2] == ["Bell", "Bell"]
    assert max(len(text.split()) for text in found) <= 15
    both = ask(client, context="Bell" + " x" * 13 + " Bell", align_to_words=False, max_answer_len=15)
    assert both["answer"] == "Bell"
    assert "max_answer_len to " in refused(
        client, {"inputs": {"question": WHO, "context": "x " * 200}, "parameters": {"max_answer_len": 30, "doc_stride": 10, "max_seq_len": 64}}
    )


def test_a_longer_question_than_allowed_is_refused_not_cut(client: TestClient) -> None:
    said = refused(client, {"inputs": {"question": "who built the mill in rome ?", "context": MILL}, "parameters": {"max_question_len": 4}})
    assert said == "The question has 7 tokens; at most 4 are allowed. Shorten it or raise max_question_len."
    said = refused(client, {"inputs": {"question": WHO, "context": MILL}, "parameters": {"max_question_len": 62, "max_seq_len": 64}})
    assert said == "max_question_len must leave room for the passage: between 1 and max_seq_len - 4 = 60, found 62."


def test_a_long_passage_is_read_in_windows(client: TestClient) -> None:
    context = "x " * 400 + "Bell" + " x" * 400
    assert without_score(ask(client, context=context, max_seq_len=256)) == {"answer": "Bell", "start": 800, "end": 804}


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"topk": 1}, "unknown key 'topk' in parameters. The fields and their types are described at /docs."),
        ({"use_cache": True}, "unknown key 'use_cache' in parameters."),
        ({"a secret text": True}, "unknown key in parameters."),
        ({"top_k": 0}, "parameters.top_k: expected greater than or equal to 1."),
        ({"top_k": "1"}, "parameters.top_k: expected a valid integer."),
        ({"top_k": 1.0}, "parameters.top_k: expected a valid integer."),
        ({"top_k": 6}, "At most 5 answers (top_k) are taken, found 6."),
        ({"handle_impossible_answer": 1}, "parameters.handle_impossible_answer: expected a valid boolean."),
        ({"max_seq_len": 1024}, "parameters.max_seq_len: expected less than or equal to 512."),
        ({"top_k": 1, "topK": 2}, "a parameter stands there under its older and its newer name"),
        ([], "parameters: expected"),
        ({"max_seq_len": 24, "doc_stride": 22}, "parameters.max_seq_len: expected greater than or equal to 32."),
        ({"max_seq_len": 32, "doc_stride": 32}, "doc_stride (the overlap) must be between 0 and max_seq_len - 1 = 31, found 32."),
    ],
)
def test_parameters_that_are_none_are_refused_by_name(client: TestClient, parameters: object, said: str) -> None:
    found = refused(client, {"inputs": {"question": WHO, "context": MILL}, "parameters": parameters})
    assert said in found
    assert "secret" not in found


@pytest.mark.parametrize(
    "inputs",
    [
        None, "who?", [], {}, {"question": WHO}, {"question": "", "context": MILL}, {"question": WHO, "context": " "},
        {"question": [], "context": MILL},
        {"question": WHO, "context": MILL, "extra": 1}, {"question": WHO, "context": [MILL]}, [{"question": WHO}], {"question": 1, "context": MILL},
    ],
)  # fmt: skip
def test_inputs_that_are_none_are_refused_with_what_is_taken(client: TestClient, inputs: object) -> None:
    assert refused(client, {"inputs": inputs}).startswith('inputs: expected {"question": text, "context": text}, the same with a list')


def test_a_lone_surrogate_is_refused(client: TestClient) -> None:
    body = rb'{"inputs": {"question": "who \ud800?", "context": "Bell"}}'
    response = client.post("/", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert "each text valid Unicode" in response.json()["error"]


def test_what_is_wrong_with_a_list_is_said(client: TestClient) -> None:
    said = refused(client, {"inputs": {"question": [WHO, WHO], "context": [MILL, MILL, MILL]}})
    assert said.startswith("inputs: expected one context or one for each question, found 2 questions and 3 contexts.")
    assert refused(client, {"inputs": {"question": ["who?"] * 65, "context": MILL}}).startswith(
        "At most 64 questions are taken in one body, found 65."
    )
    said = refused(client, {"inputs": [{"question": WHO, "context": MILL}, {"question": "x" * 101, "context": MILL}]})
    assert said.startswith("At most 100 characters in the question are taken, found 101.")
    said = refused(client, {"inputs": [{"question": WHO, "context": MILL}, {"question": WHO, "context": "\u200b"}]})
    assert said == "Question 2 of 2: The passage holds no word or sign that the vocabulary can represent."


def test_a_passage_counts_for_each_of_its_questions(client: TestClient) -> None:
    # 20,000 bytes are the most of a body here, so as many characters are the most that one may make the service read.
    said = refused(client, {"inputs": {"question": ["who?"] * 5, "context": "x" * 4_001}})
    assert said.startswith("At most 20,000 characters are read for one body, found 20,005: a passage counts for each of its questions.")


def test_errors_are_one_text_whatever_refuses(client: TestClient, model_folder_free_settings: Settings) -> None:
    assert refused(client, {"inputs": {"question": WHO, "context": MILL}}, "/models/nobody", 404) == (
        "The path names a model that is not served here. GET /v1/models lists the models."
    )
    for content, kind, status in ((b"{", "application/json", 400), (b"{}", "text/plain", 415), (b" " * 20_001, "application/json", 413)):
        response = client.post("/predict", content=content, headers={"content-type": kind})
        assert (response.status_code, list(response.json())) == (status, ["error"])
        assert isinstance(response.json()["error"], str)
    assert isinstance(client.get("/models/student").json()["error"], str)  # 405


def test_times_are_in_headers(client: TestClient) -> None:
    response = client.post("/", json={"inputs": [{"question": WHO, "context": MILL}] * 2})
    stages = {stage: float(response.headers[f"x-{stage}-ms"]) for stage in ("tokenise", "queue", "forward", "decode", "total")}
    assert all(value >= 0 for value in stages.values())
    assert response.headers["x-compute-type"] == "cpu"
    assert 1000 * float(response.headers["x-compute-time"]) >= stages["total"]


def test_health_follows_readiness(client: TestClient, model_folder_free_settings: Settings) -> None:
    assert client.get("/health").status_code == client.get("/models/student/health").status_code == 200
    assert client.get("/models/nobody/health").status_code == 404
    with TestClient(create_app(model_folder_free_settings, opener=never)) as cold:
        for response in (cold.get("/health"), cold.post("/", json={"inputs": {"question": WHO, "context": MILL}})):
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert isinstance(response.json()["error"], str)


@pytest.mark.parametrize(("error", "status", "wait"), [(Overloaded("Too much is waiting.", 2.2), 429, "3"), (WorkerLost("It ended."), 503, "1")])
def test_who_is_turned_away_is_told_when_to_come_back(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Waitable, status: int, wait: str
) -> None:
    async def refuse(*_: object) -> list[object]:
        return [error]

    app: Any = client.app
    monkeypatch.setattr(app.state.service.inference, "answer_many", refuse)
    response = client.post("/", json={"inputs": {"question": WHO, "context": MILL}})
    assert (response.status_code, response.headers["retry-after"]) == (status, wait)
    assert response.json()["error"].startswith(str(error))


def never(settings: Settings) -> Pair:
    raise FileNotFoundError("no models here")


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A student that marks "##o", the end of a word that the vocabulary cuts."""
    with TestClient(create_app(Settings(), make_pair(tmp_path_factory.mktemp("pieces"), student="##o"))) as client:
        yield client


def test_answers_are_widened_to_words_unless_told_otherwise(pieces: TestClient) -> None:
    assert without_score(ask(pieces, context="x (oo) x", top_k=1)) == {"answer": "oo", "start": 3, "end": 5}
    assert without_score(ask(pieces, context="x (oo) x", align_to_words=False)) == {"answer": "o", "start": 4, "end": 5}
    # Its two hits are one word, which is answered once; the next answer takes the free place.
    assert ask(pieces, context="ooo x", top_k=2)[0]["answer"] == "ooo"
    assert len({answer["start"] for answer in ask(pieces, context="ooo x x", top_k=3)}) == 3


def cut(text: str, whole: str) -> Answer:
    start = whole.index(text)
    return Answer(text, start, start + len(text), 0.5)


@pytest.mark.parametrize(
    ("context", "piece", "widened"),
    [
        ("Marguerite Oldcastle's mill", "castle", "Oldcastle"),
        ("worth $12,500.00 today", "2", "12"),
        ("a state-of-the-art mill", "tat", "state"),
        ("naïve cafés", "af", "cafés"),
        ("e\u0301lan vital", "lan", "e\u0301lan"),
        ("東京タワー", "京", "京"),
        ("שלום עולם", "לו", "שלום"),
        ("😀Bell😀", "el", "😀Bell😀"),  # no sign that BERT's tokenizer splits at
        ("x", "x", "x"),
        ("two\u00a0words", "word", "words"),
    ],
)
def test_words_are_those_of_berts_tokenizer(context: str, piece: str, widened: str) -> None:
    (found,) = aligned([cut(piece, context)], [context], 1)
    assert (found.text, context[found.start : found.end], found.score) == (widened, widened, 0.5)


@given(st.text(alphabet="ab .,", max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(1, 4)), max_size=12), st.integers(1, 4))
def test_of_answers_in_one_word_the_best_stays_wherever_they_are(context: str, places: list[tuple[int, int]], wanted: int) -> None:
    answers = [Answer(context[at : at + size], at, at + size, 0.1) for at, size in places if at + size <= len(context)]
    expected: list[Answer] = []  # widened one by one, then compared
    for (wide,) in (aligned([answer], [context], 1) for answer in answers):
        if not any(wide.start < other.end and other.start < wide.end for other in expected):
            expected.append(wide)
    assert aligned(answers, [context], wanted) == expected[:wanted]


def test_every_sign_splits_words_where_it_does_for_berts_tokenizer() -> None:
    split = BertPreTokenizer().pre_tokenize_str
    # Latin to Arabic, and punctuation to arrows and boxes; further on, the two know different versions of Unicode.
    signs = [chr(code) for code in (*range(0x20, 0x600), *range(0x2000, 0x2C00))]
    widened = {sign: aligned([Answer("a", 0, 1, 0.5)], [f"a{sign}b"], 1)[0].text for sign in signs}
    assert widened == {sign: split(f"a{sign}b")[0][0] for sign in signs}


def test_of_answers_in_one_word_the_best_stays() -> None:
    context = "Oldcastle and Bell"
    answers = [cut("Old", context), cut("castle", context), Answer("", 0, 0, 0.1, is_no_answer=True), cut("Bell", context)]
    assert [answer.text for answer in aligned(answers, [context], 3)] == ["Oldcastle", "", "Bell"]

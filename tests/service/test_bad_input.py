"""Everything that a body can get wrong: the right status, the one shape, never a 5xx, and never the caller's text in the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

JSON = {"content-type": "application/json"}
SECRET = "s3cret-text"


def body_with(**changes: object) -> bytes:
    return json.dumps({"question": f"who {SECRET}?", "context": f"Bell {SECRET}"} | changes).encode()


def raw(fragment: str) -> bytes:
    return f'{{"question": "who {SECRET}?", "context": "Bell {SECRET}", {fragment}}}'.encode()


def check_error(response: object, status: int, code: str) -> str:
    assert response.status_code == status, response.text  # type: ignore[attr-defined]
    error = response.json()  # type: ignore[attr-defined]
    assert set(error) == {"error"}
    assert {"code", "message"} <= set(error["error"]) <= {"code", "message", "hint"}
    assert error["error"]["code"] == code
    assert SECRET not in response.text  # type: ignore[attr-defined]
    return str(error["error"]["message"])


MALFORMED = {
    "empty": b"",
    "not JSON": b"question=who&context=x",
    "cut off": b'{"question": "who',
    "two documents": b'{"question": "a", "context": "b"} {}',
    "trailing comma": b'{"question": "a", "context": "b",}',
    "bad UTF-8": b'{"question": "\xff\xfe", "context": "x"}',
    "UTF-8 of a surrogate": b'{"question": "\xed\xa0\x80", "context": "x"}',
    "UTF-16": body_with().decode().encode("utf-16"),
    "UTF-32": body_with().decode().encode("utf-32"),
    "byte order mark": b"\xef\xbb\xbf" + body_with(),
    "repeated key": raw('"top_k": 1, "top_k": 2'),
    "deep nesting": b'{"question": ' + b"[" * 9_000 + b"]" * 9_000 + b"}",
    "deep and unclosed": b"[" * 19_000,
    "number of many digits": raw('"top_k": ' + "9" * 5_000),
    "control character": b'{"question": "a\nb", "context": "x"}',
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_what_is_not_json_in_utf8_is_400(client: TestClient, body: bytes) -> None:
    check_error(client.post("/v1/answer", content=body, headers=JSON), 400, "malformed_body")


INVALID = {
    "NaN": (raw('"top_k": NaN'), "NaN"),
    "Infinity": (raw('"top_k": -Infinity'), "-Infinity"),
    "1e400": (raw('"top_k": 1e400'), "top_k"),
    "NaN as text": (body_with(question="NaN", top_k="NaN"), "top_k"),
    "text for a number": (body_with(top_k="3"), "top_k"),
    "true for a number": (body_with(top_k=True), "top_k"),
    "1.0 for a number": (raw('"top_k": 1.0'), "top_k"),
    "1e0 for a number": (raw('"max_tokens": 4e2'), "max_tokens"),
    "large number": (raw('"top_k": ' + "9" * 4_000), "top_k"),
    "zero": (body_with(top_k=0), "top_k"),
    "negative": (body_with(max_answer_tokens=-1), "max_answer_tokens"),
    "number for truth": (body_with(no_answer=1), "no_answer"),
    "text for truth": (body_with(no_answer="true"), "no_answer"),
    "null": (body_with(top_k=None), "top_k"),
    "no question": (b'{"context": "x"}', "question is missing"),
    "no context": (b'{"question": "x"}', "context is missing"),
    "empty object": (b"{}", "question is missing; context is missing"),
    "a list": (b"[1]", "JSON object"),
    "a string": (b'"x"', "JSON object"),
    "null body": (b"null", "JSON object"),
    "question a list": (body_with(question=[SECRET]), "question"),
    "question a number": (body_with(question=7), "question"),
    "context a number": (body_with(context=7), "context"),
    "context null": (body_with(context=None), "context"),
    "context an object": (body_with(context={"text": SECRET}), "context"),
    "context an empty list": (body_with(context=[]), "context"),
    "contexts with a number": (body_with(context=["x", 7]), "context"),
    "contexts with an empty one": (body_with(context=["x", " "]), "context"),
    "empty question": (body_with(question=""), "question"),
    "white question": (body_with(question=" \t\n\u00a0\u2003\u3000"), "question"),
    "empty context": (body_with(context=""), "context"),
    "white context": (body_with(context="\u2028\u205f "), "context"),
    "lone high surrogate": (raw('"model": "student"').replace(b"who", rb"\ud800"), "question"),
    "lone low surrogate": (raw('"model": "student"').replace(b"Bell", rb"\udc00"), "context"),
    "surrogates reversed": (raw('"model": "student"').replace(b"Bell", rb"\ude00\ud83d"), "context"),
    "surrogate in a model name": (raw(r'"model": "\ud800"'), "model"),
    "surrogate in a key": (raw(r'"\ud800": 1'), "lone surrogate"),
    "another model": (body_with(model=SECRET), "model"),
    "unknown key": (body_with(topk=3), "unknown key 'topk'"),
    "long unknown key": (body_with(**{SECRET * 50: 3}), "unknown key"),
    "unknown key with markup": (body_with(**{f"<b>{SECRET}</b>": 3}), "unknown key"),
    "windows too wide": (body_with(max_tokens=513), "max_tokens"),
    "windows too narrow": (body_with(max_tokens=31), "max_tokens"),
    "answers too long": (body_with(max_answer_tokens=65), "max_answer_tokens"),
}


@pytest.mark.parametrize(("body", "says"), INVALID.values(), ids=INVALID.keys())
def test_json_of_another_form_is_422_and_names_the_field(client: TestClient, body: bytes, says: str) -> None:
    message = check_error(client.post("/v1/answer", content=body, headers=JSON), 422, "invalid_request")
    assert says in message
    assert len(message) < 500


def test_all_problems_are_told_at_once(client: TestClient) -> None:
    message = check_error(client.post("/v1/answer", json={"context": 7, "top_k": "1", "modle": "student"}), 422, "invalid_request")
    assert all(word in message for word in ("question is missing", "context: expected", "top_k", "'modle'"))


LIMITS = {
    "question": ({"question": "x" * 101}, "At most 100 characters in the question are taken, found 101."),
    "context": ({"context": "x " * 2_501}, "At most 5,000 characters in context are taken, found 5,002."),
    "contexts together": ({"context": ["x" * 2_501] * 2}, "At most 5,000 characters in context are taken, found 5,002."),
    "number of contexts": ({"context": ["x"] * 4}, "At most 3 passages in context are taken, found 4."),
    "top_k": ({"top_k": 6}, "At most 5 answers (top_k) are taken, found 6."),
    "windows": ({"context": "x " * 2_500}, "At most 8 windows are read for one request; this one needs 10. Send less text, or lower doc_stride."),
    "windows by a small step": ({"context": "x " * 2_000, "max_tokens": 140, "doc_stride": 133}, "at most 8 windows"),
}


@pytest.mark.parametrize(("body", "says"), LIMITS.values(), ids=LIMITS.keys())
@pytest.mark.parametrize("path", ["/v1/answer", "/v1/compare"])
def test_a_limit_is_named_with_what_was_found(client: TestClient, path: str, body: dict, says: str) -> None:
    message = check_error(client.post(path, json={"question": "who?", "context": "Bell"} | body), 422, "limit_exceeded")
    assert says.lower() in message.lower()


@pytest.mark.parametrize(
    ("path", "document", "place"),
    [
        ("/v1/answers", {"requests": [{"question": "q", "context": "c"}] * 1_001}, "requests"),
        ("/predict", {"inputs": [{"question": "q", "context": "c"}] * 1_001}, "inputs"),
        ("/predict", {"inputs": {"question": ["q"] * 1_001, "context": "c"}}, "inputs"),
    ],
)
def test_a_list_that_is_too_long_to_be_looked_at_is_told_so(make_client, path: str, document: dict, place: str) -> None:
    said = str(make_client(max_body_bytes=1 << 20).post(path, json=document).json()["error"])
    assert f"{place}: at most 1,000 are read, found more" in said and "expected" not in said


OPTIONS = {
    "stride over window": {"max_tokens": 64, "doc_stride": 64},
    "no room for the passage": {"max_tokens": 64, "doc_stride": 62, "context": "x " * 200},
    "answers longer than the overlap": {"max_tokens": 64, "doc_stride": 4, "max_answer_tokens": 30, "context": "x " * 100},
}


def test_a_question_of_too_many_tokens_is_told_what_helps(make_client) -> None:
    client = make_client(max_question_chars=1_000)
    long = "who built it ? " * 20  # 80 tokens
    said = client.post("/v1/answer", json={"question": long, "context": "by ada"}).json()["error"]["message"]
    assert said == "The question has 80 tokens; at most 64 are allowed. Shorten it."
    said = client.post("/v1/answer", json={"question": long[:150], "context": "by ada", "max_tokens": 64}).json()["error"]["message"]
    assert said == "The question has 40 tokens; at most 32 are allowed. Shorten it or raise max_tokens."
    said = client.post("/predict", json={"inputs": {"question": long, "context": "by ada"}}).json()["error"]
    assert "max_question_tokens" not in str(said)


@pytest.mark.parametrize(
    ("path", "document"),
    [
        ("/v1/answers", {"requests": [""] * 60_000}),
        ("/v1/answer", {"question": "q", "context": [""] * 60_000}),
        ("/predict", {"inputs": {"question": [""] * 60_000, "context": "c"}}),
        ("/predict", {"inputs": [""] * 60_000}),
    ],
)
def test_long_lists_of_nonsense_are_refused_after_some_of_it(make_client, path: str, document: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = RequestValidationError.errors

    def counted(error: RequestValidationError) -> object:
        seen.append(len(found := real(error)))
        return found

    monkeypatch.setattr(RequestValidationError, "errors", counted)
    assert make_client(max_body_bytes=1 << 20).post(path, json=document).status_code == 422
    assert max(seen) < 5_000


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_options_that_contradict_are_422(client: TestClient, options: dict) -> None:
    check_error(client.post("/v1/answer", json={"question": "who?", "context": "Bell"} | options), 422, "invalid_options")


@pytest.mark.parametrize("path", ["/v1/answer", "/v1/compare"])
def test_small_windows_need_no_further_option(client: TestClient, path: str) -> None:
    response = client.post(path, json={"question": "who?", "context": "x " * 100, "max_tokens": 64})
    assert response.status_code == 200, response.text


TEXTS = {
    "question of too many tokens": {"question": "o" * 90},
    "question without any token": {"question": "\u200b\u0000\ufeff"},
    "context without any token": {"context": "\u0001\u0002"},
}


@pytest.mark.parametrize("texts", TEXTS.values(), ids=TEXTS.keys())
def test_text_that_cannot_be_read_is_422(client: TestClient, texts: dict) -> None:
    check_error(client.post("/v1/answer", json={"question": "who?", "context": "Bell"} | texts), 422, "invalid_text")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content-type": ""},
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "application/jsonx"},
        {"content-type": f"{SECRET}/json"},
        JSON | {"content-encoding": "gzip"},
    ],
)
def test_another_media_type_is_415(client: TestClient, headers: dict) -> None:
    message = check_error(client.post("/v1/answer", content=body_with(), headers=headers), 415, "unsupported_media_type")
    assert message.startswith("Expected")


def test_a_body_that_announces_too_much_is_413_unread(client: TestClient) -> None:
    response = client.post("/v1/answer", content=b"x", headers=JSON | {"content-length": "20001"})
    assert "20,001 bytes; at most 20,000" in check_error(response, 413, "body_too_large")
    assert response.headers["connection"] == "close"


def test_a_body_without_length_is_413_as_soon_as_it_is_too_long(client: TestClient) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(50):
            yield b'{"question": "' + b"x" * 1_000

    check_error(client.post("/v1/answer", content=endless(), headers=JSON), 413, "body_too_large")


def test_too_large_wins_over_malformed_and_over_length_that_lies(client: TestClient) -> None:
    check_error(client.post("/v1/answer", content=b"[" * 20_001, headers=JSON), 413, "body_too_large")
    check_error(client.post("/v1/answer", content=b"[" * 20_001, headers=JSON | {"content-length": "7"}), 413, "body_too_large")


def test_other_paths_and_methods_have_the_same_shape(client: TestClient) -> None:
    for path in (f"/{SECRET}", f"/{SECRET}/", "/v1/samples//"):
        check_error(client.get(path, follow_redirects=False), 404, "not_found")
    check_error(client.get("/v1/answer"), 405, "method_not_allowed")
    check_error(client.post("/v1/models"), 405, "method_not_allowed")


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
KEYS = st.sampled_from(["question", "context", "model", "top_k", "max_answer_tokens", "no_answer", "max_tokens", "doc_stride", "other"])
TEXT = st.text(st.characters(exclude_categories=()), max_size=60)
NUMBERS = st.integers(0, 520)


@settings(max_examples=300)
@given(
    st.dictionaries(KEYS, ANYTHING, max_size=6)
    | st.fixed_dictionaries(
        {"question": TEXT, "context": TEXT | st.lists(TEXT, max_size=4)},
        optional={
            "top_k": NUMBERS,
            "max_answer_tokens": NUMBERS,
            "max_tokens": NUMBERS,
            "doc_stride": NUMBERS,
            "no_answer": st.booleans() | st.none(),
        },
    )
)
def test_no_document_is_a_server_error(client: TestClient, document: dict) -> None:
    response = client.post("/v1/compare", content=json.dumps(document).encode(), headers=JSON)
    assert response.status_code in (200, 400, 413, 422), response.text
    if response.status_code == 200:
        contexts = [document["context"]] if isinstance(document["context"], str) else document["context"]
        for role in ("teacher", "student"):
            for answer in response.json()[role]["answers"]:
                assert 0 <= answer["score"] <= 1
                assert contexts[answer["source"]][answer["start"] : answer["end"]] == answer["text"]


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_no_bytes_are_a_server_error(client: TestClient, body: bytes) -> None:
    assert client.post("/v1/answer", content=body, headers=JSON).status_code in (400, 422)

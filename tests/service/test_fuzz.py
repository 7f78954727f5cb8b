"""Bodies made at random, thousands of them: never a 5xx, and an answer is always a span of its passage."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.full

PATHS = st.sampled_from(["/v1/answer", "/v1/compare"])
TEXTS = st.text(max_size=60) | st.text(alphabet="Bell who? 👩‍🚀שלום\u0301\u200d\n", max_size=60)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
NUMBERS = st.integers(-5, 600) | JSON
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "model": st.sampled_from(["teacher", "student", "nobody"]) | JSON,
    "top_k": NUMBERS,
    "max_answer_tokens": NUMBERS,
    "max_tokens": NUMBERS,
    "doc_stride": NUMBERS,
    "no_answer": JSON,
}
TEXTS_OR_NOT: dict[str, st.SearchStrategy[Any]] = {"question": TEXTS | JSON, "context": TEXTS | st.lists(TEXTS, max_size=3) | JSON}
BODIES = (
    st.fixed_dictionaries({"question": TEXTS, "context": TEXTS | st.lists(TEXTS, max_size=3)}, optional=OPTIONS)
    | st.fixed_dictionaries({}, optional=TEXTS_OR_NOT | OPTIONS)
    | JSON
)


def check(path: str, response: Any) -> None:
    assert response.status_code < 500, (response.status_code, response.text)
    document = response.json()
    if response.status_code != 200:
        assert set(document) == {"error"} and document["error"]["message"], document


@settings(max_examples=3000)
@given(PATHS, BODIES)
def test_no_json_body_breaks_the_service(client: TestClient, path: str, body: Any) -> None:
    response = client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    check(path, response)
    if response.status_code == 200:
        contexts = [body["context"]] if isinstance(body["context"], str) else body["context"]
        document = response.json()
        for side in [document] if path == "/v1/answer" else [document["teacher"], document["student"]]:
            for answer in side["answers"]:
                assert answer["is_no_answer"] or contexts[answer["source"]][answer["start"] : answer["end"]] == answer["text"]
                assert 0 <= answer["score"] <= 1


@settings(max_examples=2000)
@given(PATHS, st.binary(max_size=200), st.sampled_from(["application/json", "text/plain", "application/json; charset=utf-16", ""]))
def test_no_bytes_break_the_service(client: TestClient, path: str, body: bytes, kind: str) -> None:
    check(path, client.post(path, content=body, headers={"content-type": kind} if kind else {}))

"""The odd bodies that a plain endpoint answers wrongly, on the endpoints of lists and of other protocols: one right status each."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

# A whole request with a place for one more option.
HUGGING_FACE = '{"inputs": {"question": "who?", "context": "built by Ada"}, "parameters": {%s}}'
OPEN_INFERENCE = (
    '{"inputs": [{"name": "question", "shape": [1], "datatype": "BYTES", "data": ["who?"]},'
    ' {"name": "context", "shape": [1], "datatype": "BYTES", "data": ["built by Ada"]}], "parameters": {%s}}'
)
LIST = '{"requests": [{"question": "who?", "context": "built by Ada", %s}]}'
ENDPOINTS = {
    "/": HUGGING_FACE,
    "/models/teacher": HUGGING_FACE,
    "/v2/models/student/infer": OPEN_INFERENCE,
    "/v1/answers": LIST,
}
GOOD = '"top_k": 1'

ODD = {
    "a lone surrogate": (lambda body: body(GOOD).replace(b"who", rb"\ud800"), 422),
    "NaN for a number": (lambda body: body('"top_k": NaN'), 422),
    "NaN as text for a number": (lambda body: body('"top_k": "NaN"'), 422),
    "1e400 for an integer": (lambda body: body('"top_k": 1e400'), 422),
    "text for an integer": (lambda body: body('"top_k": "3"'), 422),
    "true for an integer": (lambda body: body('"top_k": true'), 422),
    "1.0 for an integer": (lambda body: body('"top_k": 1.0'), 422),
    "an unknown key": (lambda body: body('"temperature": 1'), 422),
    "a key twice": (lambda body: body('"top_k": 1, "top_k": 2'), 400),
    "UTF-16": (lambda body: body(GOOD).decode().encode("utf-16"), 400),
    "a byte order mark": (lambda body: b"\xef\xbb\xbf" + body(GOOD), 400),
    "19,000 levels": (lambda body: b"[" * 19_000, 400),
    "5,000 digits": (lambda body: body('"top_k": ' + "9" * 5_000), 400),
    "bad UTF-8": (lambda body: body(GOOD).replace(b"Ada", b"\xff\xfe"), 400),
    "an array": (lambda body: b"[" + body(GOOD) + b"]", 422),
    "nothing": (lambda body: b"", 400),
    "more bytes than are taken": (lambda body: body(GOOD).replace(b"Ada", b"a" * 20_000), 413),
}


@pytest.mark.parametrize(("make", "status"), ODD.values(), ids=ODD.keys())
@pytest.mark.parametrize("path", ENDPOINTS)
def test_an_odd_body_has_its_right_status(client: TestClient, path: str, make, status: int) -> None:
    sent = make(lambda option: (ENDPOINTS[path] % option).encode())
    response = client.post(path, content=sent, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert isinstance(error["message"] if path == "/v1/answers" else error, str)
    assert "built by Ada" not in json.dumps(error)


@pytest.mark.parametrize("path", ENDPOINTS)
def test_the_same_body_without_oddity_is_answered(client: TestClient, path: str) -> None:
    response = client.post(path, content=(ENDPOINTS[path] % GOOD).encode(), headers={"content-type": "application/json"})
    assert response.status_code == 200, response.text

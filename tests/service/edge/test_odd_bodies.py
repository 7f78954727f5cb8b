"""The eighteen odd requests that a plain endpoint answers wrongly, or that take it down, each with its one right answer, over real sockets."""

from __future__ import annotations

import json

import pytest

from tests.service.edge.conftest import Running, check_refusal, read_all, read_one, request


def body(fragment: str) -> bytes:
    """A question with this beside it."""
    return f'{{"question": "who?", "context": "built by Ada", {fragment}}}'.encode()


JSON_TYPE = "POST /v1/answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
PLAIN = body('"top_k": 1')

ODD = {
    "a lone surrogate": (request(body=PLAIN.replace(b"who", rb"\ud800")), 422, "invalid_request"),
    "NaN for a number": (request(body=body('"top_k": NaN')), 422, "invalid_request"),
    "NaN as text for a number": (request(body=body('"top_k": "NaN"')), 422, "invalid_request"),
    "1e400 for an integer": (request(body=body('"top_k": 1e400')), 422, "invalid_request"),
    "text for an integer": (request(body=body('"top_k": "3"')), 422, "invalid_request"),
    "true for an integer": (request(body=body('"top_k": true')), 422, "invalid_request"),
    "1.0 for an integer": (request(body=body('"top_k": 1.0')), 422, "invalid_request"),
    "65 keys": (request(body=body(", ".join(f'"k{n}": 1' for n in range(63)))), 400, "malformed_body"),
    "a key twice": (request(body=body('"top_k": 1, "top_k": 2')), 400, "malformed_body"),
    "UTF-16": (request(body=PLAIN.decode().encode("utf-16")), 400, "malformed_body"),
    "a byte order mark": (request(body=b"\xef\xbb\xbf" + PLAIN), 400, "malformed_body"),
    "19,000 levels": (request(body=b"[" * 19_000), 400, "malformed_body"),  # as many as this service's limit of bytes lets through
    "5,000 digits": (request(body=body('"top_k": ' + "9" * 5_000)), 400, "malformed_body"),
    "bad UTF-8": (request(body=PLAIN.replace(b"Ada", b"\xff\xfe")), 400, "malformed_body"),
    "19.8 MB": (request(body=b"", length=False)[:-2] + b"Content-Length: 19800000\r\n\r\n", 413, "body_too_large"),
    "a length of 5,000 digits": (request(body=b"", length=False)[:-2] + b"Content-Length: " + b"0" * 5_000 + b"3\r\n\r\nabc", 400, "malformed_body"),
    "a length and chunks": (f"{JSON_TYPE}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode(), 400, "malformed_http"),
    "a Host that is none": (request(body=PLAIN, host="a/b?c"), 400, "unknown_host"),
    "slow headers": (JSON_TYPE.encode(), 408, "request_timeout"),
    "a slow body": (request(body=PLAIN)[:-1], 408, "request_timeout"),
}


@pytest.mark.parametrize(("sent", "status", "code"), ODD.values(), ids=ODD.keys())
def test_an_odd_request_has_its_right_answer_and_the_next_one_too(served: Running, sent: bytes, status: int, code: str) -> None:
    assert len(ODD) == 20
    with served.connect() as connection:
        connection.sendall(sent)
        if code in ("malformed_http", "request_timeout"):
            check_refusal(read_all(connection), status, code)
        else:
            found, _, answer = read_one(connection)
            assert (found, json.loads(answer)["error"]["code"]) == (status, code)
    with served.connect() as connection:
        connection.sendall(request(body=PLAIN))
        assert read_one(connection)[0] == 200


DEEP = {
    "32 levels": (b'{"a":' + b"[" * 31 + b"]" * 31 + b"}", 422),
    "33 levels": (b'{"a":' + b"[" * 32 + b"]" * 32 + b"}", 400),
    "objects": (b'{"a":' * 33 + b"1" + b"}" * 33, 400),
    "many brackets side by side": (b'{"a":[' + b"[]," * 5_000 + b"[]]}", 422),
    "brackets in a text": (b'{"question": "' + b"[{" * 5_000 + b'"}', 422),
    "brackets behind an escaped quote": (b'{"question": "\\"' + b"[" * 5_000 + b'"}', 422),
    "brackets behind an escaped backslash": (b'{"question": "\\\\' + b"[" * 5_000 + b'"}', 422),
    "levels behind a text that ends in a backslash": (b'{"question": "\\\\", "context": ' + b"[" * 32 + b"]" * 32 + b"}", 400),
}


@pytest.mark.parametrize(("sent", "status"), DEEP.values(), ids=DEEP.keys())
def test_depth_is_counted_outside_texts(served: Running, sent: bytes, status: int) -> None:
    with served.connect() as connection:
        connection.sendall(request(body=sent))
        found, _, answer = read_one(connection)
    assert found == status, answer
    assert ("nested too deeply: more than 32 levels" in json.loads(answer)["error"]["message"]) == (status == 400)

"""One connection against the real server: deadlines, caps, requests that contradict themselves, pipelines."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Sequence

import pytest

from tests.service.edge.conftest import END, Running, Serve, check_refusal, read_all, read_one, request, wait_until

ASK = b'{"question": "who?", "context": "built by Ada"}'
LIVE = request("/livez", method="GET", length=False)


def test_a_kept_connection_answers_again_and_again(served: Running) -> None:
    with served.connect() as connection:
        for _ in range(3):
            connection.sendall(request(body=ASK))
            status, headers, body = read_one(connection)
            assert (status, json.loads(body)["answers"][0]["is_no_answer"]) == (200, True)  # the student looks for "bell"
            assert "connection" not in headers


LATE = {
    "request line": b"GET /li",
    "headers": b"GET /livez HTTP/1.1\r\nHost: x\r\n",
    "headers of a later request": LIVE + b"POST /v1/answer HTTP/1.1\r\n",
    "body": request(body=ASK)[:-1],
    "chunked body": request("/v1/answer", b"", "Transfer-Encoding: chunked", length=False) + b"5\r\n{",
}


@pytest.mark.parametrize("sent", LATE.values(), ids=LATE.keys())
def test_what_does_not_arrive_in_time_is_408(served: Running, sent: bytes) -> None:
    before = served.metric("pocketqa_rejected_total", reason="request_timeout")
    with served.connect() as connection:
        began = time.monotonic()
        connection.sendall(sent)
        if sent.startswith(LIVE):
            assert read_one(connection)[0] == 200
        check_refusal(read_all(connection), 408, "request_timeout")
        assert 0.4 < time.monotonic() - began < 2
    wait_until(lambda: served.metric("pocketqa_rejected_total", reason="request_timeout") == before + 1)


def test_bytes_that_trickle_in_do_not_move_the_deadline(served: Running) -> None:
    with served.connect() as connection:
        began = time.monotonic()
        connection.settimeout(0.1)
        answer = b""
        connection.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")
        while not answer:
            connection.sendall(b"a")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                assert time.monotonic() - began < 3
        check_refusal(answer + read_all(connection), 408, "request_timeout")


def test_a_connection_that_asks_nothing_is_closed_without_a_word(served: Running) -> None:
    for sent in (b"", b"\r\n", LIVE):
        with served.connect() as connection:
            connection.sendall(sent)
            if sent == LIVE:
                read_one(connection)
            began = time.monotonic()
            assert read_all(connection) == b""
            assert time.monotonic() - began < 2.5


CONTRADICTIONS = {
    "length and chunks": b"Content-Length: 5\r\nTransfer-Encoding: chunked",
    "chunks and length": b"Transfer-Encoding: chunked\r\nContent-Length: 5",
    "two lengths": b"Content-Length: 5\r\nContent-Length: 6",
    "one length twice": b"Content-Length: 5, 5",
    "a signed length": b"Content-Length: +5",
    "a length in hexadecimal": b"Content-Length: 0x5",
    "a length beyond 64 bits": b"Content-Length: 99999999999999999999",
    "another coding": b"Transfer-Encoding: gzip",
    "chunked, then another coding": b"Transfer-Encoding: chunked, gzip",
    "a name with a space": b"Content-Length : 5",
    "a name with a control character": b"Content\x01Length: 5",
    "a value with a null": b"X: a\x00b",
    "a folded header": b"X: a\r\n b",
}


OFFER = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA")


@pytest.mark.parametrize("offer", [(), OFFER], ids=["plain", "with an offer of HTTP/2"])
@pytest.mark.parametrize("header", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_request_whose_end_is_open_to_opinion_is_400_and_closed(served: Running, header: bytes, offer: tuple[str, ...]) -> None:
    with served.connect() as connection:
        head = request("/v1/answer", b"", *offer, length=False).removesuffix(b"\r\n")
        connection.sendall(head + header + END + b"0\r\n\r\n" + LIVE)
        check_refusal(read_all(connection), 400, "malformed_http")


NOT_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/9": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "no version": b"GET /\r\n\r\n",
    "an unknown method": b"FETCH / HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path that is no path": b"GET livez HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path with letters beyond ASCII": "GET /é HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    "chunks in HTTP/1.0": b"POST /v1/answer HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk without a size": request("/v1/answer", b"", "Transfer-Encoding: chunked", length=False) + b"x\r\n",
}


@pytest.mark.parametrize("sent", NOT_HTTP.values(), ids=NOT_HTTP.keys())
def test_what_is_not_http_is_400_and_closed(served: Running, sent: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        check_refusal(read_all(connection), 400, "malformed_http")


def test_an_offer_of_another_protocol_is_answered_in_http_and_closed(served: Running) -> None:
    for protocol in ("websocket", "h2c"):
        with served.connect() as connection:
            connection.sendall(request("/livez", b"", f"Upgrade: {protocol}", "Connection: Upgrade", method="GET", length=False))
            assert read_all(connection).startswith(b"HTTP/1.1 200 ")


CHUNKED = b"14\r\n" + ASK[:20] + b"\r\n%x\r\n" % len(ASK[20:]) + ASK[20:] + b"\r\n0\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"


@pytest.mark.parametrize("piece", [1_000_000, 40, 1], ids=["at once", "in pieces", "in bytes"])
def test_a_body_behind_an_offer_of_another_protocol_is_read(served: Running, piece: int) -> None:
    """As Java's HttpClient and `curl --http2` send it (RFC 9110, 7.8)."""
    whole = request("/v1/answer", ASK, *OFFER)
    chunked = request("/v1/answer", b"", *OFFER, "Transfer-Encoding: chunked", length=False) + CHUNKED
    empty = request("/v1/answer", b"", *OFFER)
    sent = whole + chunked + empty + request(body=ASK) + whole + LIVE
    with served.connect() as connection:
        for begin in range(0, len(sent), piece):
            connection.sendall(sent[begin : begin + piece])
        answers = [read_one(connection) for _ in range(6)]
        assert [status for status, _, _ in answers] == [200, 200, 400, 200, 200, 200]
        assert [json.loads(answers[at][2])["answers"] for at in (0, 1, 4)] == [json.loads(answers[3][2])["answers"]] * 3


def test_an_offer_of_another_protocol_changes_no_limit(served: Running) -> None:
    many_chunks = request("/v1/answer", b"", *OFFER, "Transfer-Encoding: chunked", length=False) + b"1\r\n \r\n" * 16_385
    with served.connect() as connection:
        connection.sendall(many_chunks)
        check_refusal(read_all(connection), 400, "malformed_http")
    with served.connect() as connection:
        connection.sendall(request("/v1/answer", b"a" * 20_001, *OFFER))
        assert read_one(connection)[0] == 413
    with served.connect() as connection:
        connection.sendall(request("/v1/answer", ASK, *OFFER, *(f"X-{i}: {'a' * 1_000}" for i in range(40))))
        check_refusal(read_all(connection), 431, "headers_too_large")
    with served.connect() as connection:
        connection.sendall(request("/v1/answer", ASK, *OFFER)[:-1])
        check_refusal(read_all(connection), 408, "request_timeout")
    with served.connect() as connection:  # in HTTP/1.0 there are no chunks
        connection.sendall(
            b"POST /v1/answer HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n0\r\n\r\n"
        )
        check_refusal(read_all(connection), 400, "malformed_http")


HEADERS = {
    "one long value": b"GET /livez HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000,
    "one long name": b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a" * 40_000,
    "a long target": b"GET /" + b"a" * 40_000,
    "many empty ones": b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 1_100,
}


@pytest.mark.parametrize("sent", HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize("piece", [1_000_000, 7_000], ids=["at once", "in pieces"])
def test_headers_without_end_are_431(served: Running, sent: bytes, piece: int) -> None:
    with served.connect() as connection:
        for begin in range(0, len(sent), piece):
            connection.sendall(sent[begin : begin + piece])
            time.sleep(0.01)
        check_refusal(read_all(connection), 431, "headers_too_large")


def test_headers_of_a_large_browser_pass(served: Running) -> None:
    for piece in (1_000_000, 5_000):
        sent = request("/livez", b"", "Cookie: " + "a" * 16_000, *(f"X-{i}: {i}" for i in range(50)), method="GET", length=False)
        with served.connect() as connection:
            for begin in range(0, len(sent), piece):
                connection.sendall(sent[begin : begin + piece])
                time.sleep(0.01)
            assert read_one(connection)[0] == 200


def test_a_body_in_a_million_chunks_is_cut(served: Running) -> None:
    with served.connect() as connection:
        connection.sendall(request("/v1/answer", b"", "Transfer-Encoding: chunked", length=False))
        connection.sendall(b"1\r\n \r\n" * 16_384)
        connection.sendall(b"1\r\n \r\n")
        check_refusal(read_all(connection), 400, "malformed_http")


def test_a_chunked_body_with_extensions_and_trailers_is_read(served: Running) -> None:
    with served.connect() as connection:
        connection.sendall(request("/v1/answer", b"", "Transfer-Encoding: chunked", length=False))
        for byte in ASK:
            connection.sendall(b'1;a="b"\r\n%c\r\n' % byte)
        connection.sendall(b"0\r\nHost: evil.example\r\nX: y\r\n\r\n" + LIVE)
        assert read_one(connection)[0] == 200
        assert read_one(connection)[2] == b'{"status":"alive"}'


def test_a_body_above_the_limit_is_413_at_once_while_it_is_still_sent(served: Running) -> None:
    with served.connect() as connection:
        connection.sendall(request("/v1/answer", b"", "Content-Length: 20000000", length=False) + b"a" * 1000)
        status, headers, body = read_one(connection)  # before the body's deadline of 0.5 s, which would make it a 408
        assert (status, headers["connection"], json.loads(body)["error"]["code"]) == (413, "close", "body_too_large")
        connection.sendall(b"a" * 100_000)  # sending on does not fail
        assert connection.recv(1) == b""


@pytest.mark.parametrize("more", [(), OFFER], ids=["plainly", "offering HTTP/2"])
def test_a_client_that_sends_all_before_it_reads_gets_its_413(serve: Serve, more: Sequence[str]) -> None:
    with serve() as running, running.connect() as connection:
        connection.sendall(request("/v1/answer", b"a" * 20_000_000, *more))
        assert read_all(connection).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_asks_before_it_sends_is_told_413_without_an_invitation(served: Running) -> None:
    with served.connect() as connection:
        connection.sendall(request("/v1/answer", b"", "Content-Length: 20000000", "Expect: 100-continue", length=False))
        assert read_one(connection)[0] == 413
    with served.connect() as connection:
        connection.sendall(request("/v1/answer", b"", f"Content-Length: {len(ASK)}", "Expect: 100-continue", length=False))
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(ASK)
        assert read_one(connection)[0] == 200


def test_a_body_that_no_endpoint_wants_is_cut_in_time(served: Running) -> None:
    with served.connect() as connection:
        connection.sendall(request("/nothing", b"", "Content-Length: 20000000", length=False))
        assert read_one(connection)[0] == 404
        began = time.monotonic()
        assert read_all(connection) == b""
        assert time.monotonic() - began < 4


def test_connections_above_the_cap_are_503_and_closed(serve: Serve) -> None:
    with serve(max_connections=3) as running:
        kept = [running.connect() for _ in range(3)]
        for connection in kept:
            connection.sendall(LIVE)
            assert read_one(connection)[0] == 200
        with running.connect() as refused:
            refused.sendall(request("/v1/answer", body=ASK))
            headers = check_refusal(read_all(refused), 503, "too_many_connections")
            assert headers["retry-after"] == "1"
            wait_until(lambda: len(running.server.server_state.connections) == 3, 5)  # it is not waited for as long as a body
        kept.pop().close()
        wait_until(lambda: len(running.server.server_state.connections) == 2)
        with running.connect() as again:
            again.sendall(LIVE)
            assert read_one(again)[0] == 200
        for connection in kept:
            connection.close()


def test_overload_looks_to_a_probe_like_what_it_is(serve: Serve) -> None:
    with serve(max_connections=3) as running, contextlib.ExitStack() as stack:
        kept = [stack.enter_context(running.connect()) for _ in range(3)]
        for connection in kept:
            connection.sendall(LIVE)
            assert read_one(connection)[0] == 200
        for path in ("/livez", "/readyz", "/metrics?x=1", "/health", "/v2/models/student/ready"):
            with running.connect() as probe:
                probe.sendall(request(path, method="GET", length=False) + request("/v1/answer", body=ASK))
                answers = read_all(probe)  # and then it is closed: one question each
                assert answers.startswith(b"HTTP/1.1 200 ") and answers.count(b"HTTP/1.1 ") == 1
        waiting = [stack.enter_context(running.connect()) for _ in range(32)]
        wait_until(lambda: len(running.server.server_state.connections) == 35)
        with running.connect() as refused:  # there is an end to what is kept for probes
            check_refusal(read_all(refused), 503, "too_many_connections")
        wait_until(lambda: len(running.server.server_state.connections) == 3)  # none of those keeps its place for long
        assert len(waiting) == 32


def test_pipelined_requests_are_answered_in_order(served: Running) -> None:
    with served.connect() as connection:
        connection.sendall(request(body=ASK) + LIVE + request("/nothing", method="GET", length=False) + request(body=b"{}"))
        assert [read_one(connection)[0] for _ in range(4)] == [200, 200, 404, 422]


def test_a_pipeline_without_end_is_answered_as_far_as_it_is_taken(served: Running) -> None:
    with served.connect() as connection:
        connection.sendall(LIVE * 1_000)
        answers = read_all(connection)
    count = answers.count(b"HTTP/1.1 200 ")
    assert 16 <= count <= 18
    assert answers.count(b"HTTP/1.1 ") == count


def test_nonsense_behind_a_request_does_not_take_the_place_of_its_answer(served: Running) -> None:
    for nonsense in (b"\x00\x01\x02 nonsense\r\n\r\n", request("/v1/answer", b"", "Transfer-Encoding: chunked", length=False) + b"x\r\n"):
        with served.connect() as connection:
            connection.sendall(request(body=ASK) + nonsense)
            answer = read_all(connection)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.count(b"HTTP/1.1 ") == 1


def test_http_1_0_is_answered_and_closed(served: Running) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


def test_only_http_1_0_needs_no_host(served: Running) -> None:
    for sent, status in ((b"GET /livez HTTP/1.0", 200), (b"GET /livez HTTP/1.0\r\nHost: evil.example", 400), (b"GET /livez HTTP/1.1", 400)):
        with served.connect() as connection:
            connection.sendall(sent + END)
            assert read_one(connection)[0] == status


def test_a_client_that_never_reads_is_let_go(serve: Serve) -> None:
    with serve(idle_seconds=0.5, body_seconds=5.0) as running:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", running.port))
        page = request("/openapi.json", method="GET", length=False)
        connection.settimeout(0.2)
        end = time.monotonic() + 10
        while running.server.server_state.connections and time.monotonic() < end:
            try:
                connection.sendall(page * 16)
            except (TimeoutError, ConnectionError):
                time.sleep(0.05)
        assert not running.server.server_state.connections
        connection.close()


def test_a_shutdown_waits_for_no_idle_connection(serve: Serve) -> None:
    with serve(idle_seconds=600.0) as running:
        connection = running.connect()
        connection.sendall(LIVE)
        read_one(connection)
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert read_all(connection) == b""
    connection.close()

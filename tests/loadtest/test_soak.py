"""The soak: what it sends, what it makes of its samples, and a short one against the real service."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from loadtest import soak
from loadtest.closed_loop import ExchangeError
from loadtest.questions import load_questions
from loadtest.soak import HALF, INVALID, KINDS, LEAVING_BYTES, LONG, MALFORMED, Sample, Slopes, plan_of, request_of, retry_after, slopes_of

ROOT = Path(__file__).resolve().parents[2]


def test_slopes_leave_out_the_first_fifth() -> None:
    # The first two of ten samples are the warm-up.  After that 0.5 MiB, 2 files and no thread every 5,000 requests: 1 MiB and 4 files in 10,000.
    samples = [Sample(5_000 * at, at, 200.0 + 0.5 * at if at > 1 else 50.0, 20 + 2 * at, 9) for at in range(10)]
    assert slopes_of(samples) == Slopes(1.0, 4.0, 0.0)


def test_what_grows_is_named() -> None:
    assert Slopes(1.0, 0.5, -3.0).problems() == []
    found = Slopes(1.5, 2.0, 1.25).problems()
    assert [problem.split(" grow")[0] for problem in found] == ["memory", "open files", "threads"]
    assert "1.50 MiB in 10,000 requests, expected at most 1" in found[0]


def test_too_few_samples_have_no_slope() -> None:
    with pytest.raises(ValueError, match="at least three samples after the first fifth, found 2"):
        slopes_of([Sample(at, at, 1.0, 1, 1) for at in range(2)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--users", "0"], "--users must be at least 1, found 0"),
        (["--samples", "2"], "--samples must be at least 5, found 2"),
        (["--requests", "9", "--samples", "10"], "--requests must be at least 10, found 9"),
    ],
)
def test_what_could_not_be_measured_is_refused_before_it_begins(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        soak.main(words)
    assert message in capsys.readouterr().err


def test_all_kinds_are_sent_as_often_as_they_should_be() -> None:
    questions = load_questions()
    kinds = Counter(kind for kind, _ in plan_of(questions, 2_000, seed=1))
    total = sum(kind.weight for kind in KINDS)
    assert set(kinds) == set(KINDS)
    # Within four standard deviations of a binomial count.
    for kind in KINDS:
        share = kind.weight / total
        assert abs(kinds[kind] - 2_000 * share) < 4 * (2_000 * share * (1 - share)) ** 0.5
    assert list(plan_of(questions, 20, seed=1)) == list(plan_of(questions, 20, seed=1))


def test_requests_are_what_they_are_called() -> None:
    question = load_questions()[0]
    body = request_of(MALFORMED, question, "x", "student").partition(b"\r\n\r\n")[2]
    with pytest.raises(json.JSONDecodeError):
        json.loads(body)
    assert json.loads(request_of(INVALID, question, "x", "student").partition(b"\r\n\r\n")[2])["top_k"] == "3"
    assert json.loads(request_of(LONG, question, "x" * 9, "teacher").partition(b"\r\n\r\n")[2])["context"] == "x" * 9
    assert b"\r\n\r\n" not in request_of(HALF, question, "x", "student")[:LEAVING_BYTES]


def test_a_client_comes_back_when_it_is_told_to() -> None:
    assert retry_after(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\n\r\n") == 3.0
    for missing in (b"", b"Retry-After: soon\r\n"):
        with pytest.raises(ExchangeError, match="429 with whole seconds in Retry-After"):
            retry_after(b"HTTP/1.1 429 Too Many Requests\r\n" + missing + b"\r\n")


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_short_soak(tmp_path: Path) -> None:
    """A few hundred requests say nothing about slopes, but every one is answered as it should be and the service ends by itself."""
    out = tmp_path / "soak.json"
    command = [sys.executable, "-m", "loadtest.soak", "--requests", "600", "--samples", "20", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode in (0, 1), done.stderr
    document = json.loads(out.read_text("utf-8"))
    assert document["requests"] == 600
    assert len(document["samples"]) == 20
    assert [problem for problem in document["problems"] if " in 10,000 requests" not in problem] == []
    first, last = document["samples"][4], document["samples"][-1]
    assert last["files"] <= first["files"] + 8
    assert last["threads"] <= first["threads"] + 8

"""Two replicas against one: what is counted, compared, said and kept; and the whole command on real processes."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loadtest import replicas
from loadtest.open_loop import Sent
from loadtest.questions import Question, load_questions
from loadtest.replicas import ONE, TWO, Setup
from loadtest.rounds import run_rounds
from pocketqa import report, runs
from pocketqa.errors import OptionsError
from pocketqa.reporting.replica_tables import replica_lines
from pocketqa.types import JSON

ROOT = Path(__file__).parent.parent.parent
PASSAGE = "Ada built it."
QUESTION = Question(0, "a", "Who built it?", PASSAGE, ("Ada",))


def sent(status: int, latency: float = 0.1, answer: str = "Ada", start: int = 0) -> Sent:
    body = json.dumps({"answer": answer, "start": start, "end": start + len(answer), "score": 0.5}).encode()
    return Sent(0, 0.0, 0.0, latency, status, b"", body if status == 200 else b"{}")


def setup(name: str, rounds: list[list[float]], statuses: dict[int, int] | None = None) -> Setup:
    """A set-up that was asked already; what it runs on is not looked at."""
    made = Setup(name, [], [], None)  # type: ignore[arg-type]
    made.seconds = [np.array(times) for times in rounds]
    made.statuses = Counter(statuses or {200: sum(map(len, rounds))})
    return made


def test_what_came_back_is_counted() -> None:
    row = replicas.outcome_row("killed", [sent(200), sent(200, 0.25), sent(502), sent(503), sent(429)], [QUESTION] * 5)
    assert row == {
        "event": "killed", "sent": 5, "statuses": {"200": 2, "429": 1, "502": 1, "503": 1}, "cut": 0, "wrong": 0, "longest": 250.0, "clean": True,
    }  # fmt: skip
    assert replicas.said_of(row) == ("5 questions: 2 with 200, 1 with 429, 1 with 502, 1 with 503, 0 cut off, 0 wrong, the longest 250 ms: clean")


@pytest.mark.parametrize(
    ("bad", "counted"),
    [
        (sent(0), {"cut": 1}),
        (sent(500), {"cut": 0, "wrong": 0}),
        (sent(504), {"cut": 0, "wrong": 0}),
        (sent(200, answer="Bell"), {"wrong": 1}),
        (sent(200, start=1), {"wrong": 1}),
        (sent(200, answer=""), {"wrong": 1}),
    ],
)
def test_what_is_not_clean(bad: Sent, counted: dict[str, int]) -> None:
    row = replicas.outcome_row("killed", [sent(200), bad], [QUESTION] * 2)
    assert not row["clean"]
    assert {key: row[key] for key in counted} == counted
    assert replicas.said_of(row).endswith("NOT clean")


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"answer": "Ada", "start": "0", "end": 3}', b"null"])
def test_a_body_of_another_form_is_no_span(body: bytes) -> None:
    assert not replicas.is_span(body, PASSAGE)


def test_rounds_with_refusals_are_void_since_those_are_quick() -> None:
    class Refusing(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(429)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    given = argparse.Namespace(seed=0, rounds=1, seconds=1.0)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen: list[int] = []
        void = run_rounds({"one": server.server_address[1]}, load_questions()[:2], 20.0, given, lambda _, sent: seen.extend(s.status for s in sent))
        server.shutdown()
    assert set(seen) == {429}
    assert f"round 1, one: {len(seen)} of {len(seen)} questions were not answered, and refusals are quick; lower --rate" in void


def test_percentiles_and_ratios() -> None:
    one = setup(ONE, [[0.2] * 99 + [0.4], [0.2] * 99 + [0.4]])
    two = setup(TWO, [[0.1] * 99 + [0.4], [0.1] * 99 + [0.4]], {200: 197, 429: 2, 503: 1})
    first, second = replicas.points_of((one, two))
    assert first == {"setup": ONE, "count": 200, "p50": 200.0, "p90": 200.0, "p99": first["p99"], "failures": 0}
    assert second["failures"] == 3
    # All rounds are alike, so drawing them changes nothing: the intervals are points.
    p50, p90, p99 = replicas.ratios_of(one, two)
    assert p50 == {"of": "p50", "value": 2.0, "low": 2.0, "high": 2.0}
    assert p90["value"] == 2.0
    assert p99["of"] == "p99"


def results(**changes: Any) -> JSON:
    one, two = setup(ONE, [[0.2, 0.3], [0.2, 0.3]]), setup(TWO, [[0.1, 0.15], [0.1, 0.15]])
    events = [replicas.outcome_row("killed", [sent(200), sent(502)], [QUESTION] * 2), replicas.outcome_row("asked to end", [sent(0)], [QUESTION])]
    given: dict[str, Any] = {"extra": {"pinned": False}} | changes
    return runs.replica_results("open loop, 5 questions a second", replicas.points_of((one, two)), replicas.ratios_of(one, two), events, **given)


def run_of(made: JSON) -> runs.RunFile:
    subject = runs.Subject("student", "student", "b" * 64, "onnxruntime", "1.31", "fp32", 2)
    data = (runs.DataFile("samples.json", "e" * 64, 40, "samples"),)
    return runs.RunFile("replicas", "scale-out", (subject,), data, "python -m loadtest.replicas", "2026-03-01T00:00:00Z", {"cores": 2}, made)


def test_the_tables_say_it_all() -> None:
    text = "\n".join(replica_lines({"replicas.json": run_of(results())}, lambda name, _: f"[{name}]"))
    assert "student `bbbbbbbbbbbb`: open loop, 5 questions a second. Servers and client share the cores. [replicas.json]" in text
    assert "| one replica of two threads | 250.00 ms |" in text
    assert "| p50 | 2.00 [2.00, 2.00] |" in text
    assert "| killed | 2 | 1 with 200, 1 with 502 | 0 | 0 | 100 ms | nothing but answers and clean refusals |" in text
    assert "| asked to end | 1 |  | 1 | 0 | 100 ms | not clean |" in text
    assert "Void" not in text
    assert "Busy" not in text


def test_a_void_run_and_a_busy_machine_are_called_so() -> None:
    busy = {"others": 0.5, "busy": True, "reasons": ["other processes used 50% of the machine"]}
    made = results(void=["round 1, one: sent too late"], load=busy, extra={"pinned": True})
    text = "\n".join(replica_lines({"replicas.json": run_of(made)}, lambda name, _: name))
    assert "- Void: round 1, one: sent too late." in text
    assert "- Busy machine, so its times are not to be trusted: other processes used 50% of the machine" in text
    assert "Servers and client on cores of their own." in text
    said = replicas.lines(made)
    assert "void: round 1, one: sent too late" in said
    assert "busy machine: other processes used 50% of the machine" in said
    assert any(line.startswith("p99: two replicas are") for line in said)


def test_the_report_has_a_section_for_it(tmp_path: Path) -> None:
    path = runs.write(run_of(results()), tmp_path)
    page = report.results_page({path.name: runs.read(path)}, lambda name, _: name, lambda name, _: name)
    assert "## Scale-out" in page


def test_a_row_that_lacks_something_is_refused() -> None:
    with pytest.raises(OptionsError, match=r"The events of a run of replicas need event, sent, .*; clean missing\."):
        runs.replica_results("x", [], [], [{"event": "killed", "sent": 1, "statuses": {}, "cut": 0, "wrong": 0, "longest": 1.0}])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--rounds", "1"], r"--rounds to be at least 2, since intervals draw rounds; found 1"),
        (["--seconds", "0"], r"--seconds and --rate above 0, found 0 and None"),
        (["--rate", "-1"], r"--seconds and --rate above 0, found 20 and -1\.0"),
    ],
)
def test_options_that_make_no_run_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(OptionsError, match=says):
        replicas.main(words)


@pytest.mark.full
@pytest.mark.timeout(280)
def test_the_whole_command_on_real_processes(tmp_path: Path) -> None:
    """At a low rate, so that a busy machine keeps up."""
    words = ["--rate", "2", "--seconds", "6", "--rounds", "2", "--limit", "5", "--serve-options", "--engine onnxruntime", "--json"]
    command = [sys.executable, "-m", "loadtest.replicas", *words, "--student", "models/student", "--teacher", "models/student"]
    done = subprocess.run([*command, "--run-file", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=270)
    found = json.loads(done.stdout)
    assert [row["setup"] for row in found["points"]] == [ONE, TWO], done.stderr
    killed, ended = found["events"]
    assert (killed["event"], killed["exit_status"]) == ("killed", -signal.SIGKILL)
    assert (ended["event"], ended["exit_status"]) == ("asked to end", 0)
    for row in (killed, ended):
        assert row["clean"], done.stderr
        assert sum(row["statuses"].values()) == row["sent"] > 0
    assert set(ended["statuses"]) <= {"200", "429"}  # whoever leaves in order leaves no question behind
    assert done.returncode == (1 if found["void"] else 0), done.stderr
    (written,) = runs.read_all(tmp_path).values()
    assert written.kind == "replicas"
    assert written.results["points"] == found["points"]
    assert [subject.role for subject in written.subjects] == ["student"]
    assert not _answering(command)


def _answering(command: list[str]) -> list[str]:
    """Processes of the service that the command left behind: none of them may outlive it."""
    left = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if "--drain-seconds" in words and command[command.index("--student") + 1] in words:
                left.append(" ".join(words))
    return left

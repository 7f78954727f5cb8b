"""What a race makes of its blocks, with numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from loadtest import race
from loadtest.closed_loop import Block, Exchange
from loadtest.questions import Question
from loadtest.race import Tally, answer_of, note, points_of, rates_of, ratios_of, request_of

QUESTIONS = [
    Question(0, "a", "Who built it?", "The mill was built by Ada.", ("Ada",)),
    Question(1, "b", "When?", "It was built in 1902 by Ada.", ("in 1902", "1902")),
    Question(2, "c", "Where?", "The mill stands in Rome.", ("Rome",)),
]


def exchange(number: int, seconds: float, text: str, status: int = 200) -> Exchange:
    return Exchange(number, status, seconds, 0.0, b"", json.dumps({"answer": text, "score": 0.5, "start": 0, "end": 1}).encode())


def tally(seconds: list[list[float]], texts: list[list[str | None]], rates: list[float]) -> Tally:
    answers = [[None if text is None else (text, 0) for text in row] for row in texts]
    return Tally([np.array(row) for row in seconds], answers, rates, [0.1] * len(rates), [0.9] * len(rates), 1.0)


RIGHT: list[str | None] = ["Ada", "1902", "Rome"]


def test_a_request_holds_question_passage_and_options() -> None:
    head, _, body = request_of(QUESTIONS[0]).partition(b"\r\n\r\n")
    assert head.startswith(b"POST / HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    document = json.loads(body)
    assert document["inputs"] == {"question": "Who built it?", "context": "The mill was built by Ada."}
    assert document["parameters"]["max_seq_len"] == 384


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b'{"answer": "Ada", "score": 1, "start": 24, "end": 27}', ("Ada", 24)),
        (b'[{"answer": "Ada", "start": 0}, {"answer": "Bell", "start": 4}]', ("Ada", 0)),
        (b'{"answer": "Ada"}', None),
        (b"[]", None),
        (b'{"error": "no"}', None),
        (b"not JSON", None),
    ],
)
def test_answers_are_read_from_an_object_or_a_list(body: bytes, answer: tuple[str, int] | None) -> None:
    assert answer_of(body) == answer


def test_a_block_is_noted_by_question_whatever_its_order() -> None:
    found = Tally()
    order = [QUESTIONS[2], QUESTIONS[0], QUESTIONS[1]]
    exchanges = (exchange(1, 0.3, "Rome"), exchange(2, 0.1, "Ada"), exchange(3, 0.2, "", status=429))
    note(found, Block(exchanges, seconds=0.5, client_share=0.25), order, QUESTIONS, server_share=0.75)
    assert found.seconds[0].tolist() == [0.1, 0.2, 0.3]
    assert found.texts == [["Ada", None, "Rome"]]
    assert found.failures == 1
    assert found.rates == [4.0]  # two of the three were answered, in half a second
    assert (found.client, found.server, found.spent) == ([0.25], [0.75], 0.5)


def test_each_server_meets_the_questions_alone_and_in_the_largest_crowd_before_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, int]] = []

    def block(port: int, requests: Sequence[bytes], users: int) -> Block:
        asked.append((port, users, len(requests)))
        return Block(tuple(exchange(number, 0.1, "Ada") for number in range(len(requests) - 2 * users)), seconds=1.0, client_share=0.1)

    monkeypatch.setattr(race, "run_block", block)
    servers: list[Any] = [SimpleNamespace(name=name, port=port, usage=lambda: SimpleNamespace(cpu=0.0)) for port, name in enumerate("ab")]
    tallies = race.run_race(servers, QUESTIONS, [1, 4], rounds=2, seed=0, say=lambda line: None)
    assert asked[:4] == [(0, 1, 5), (0, 4, 11), (1, 1, 5), (1, 4, 11)]
    # Four requests for each user at least: two times three for one, six times for four.
    assert sorted(asked[4:]) == sorted(2 * [(0, 1, 8), (0, 4, 26), (1, 1, 8), (1, 4, 26)])
    assert {key: len(tally.seconds) for key, tally in tallies.items()} == {(1, "a"): 4, (1, "b"): 4, (4, "a"): 12, (4, "b"): 12}
    assert {len(tally.rates) for tally in tallies.values()} == {2}


def test_a_question_that_a_block_asks_twice_is_noted_twice() -> None:
    found = Tally()
    order = [QUESTIONS[1], QUESTIONS[0], QUESTIONS[0], QUESTIONS[1]]
    exchanges = (exchange(1, 0.1, "1902"), exchange(2, 0.2, "Ada"), exchange(3, 0.3, "Bell"), exchange(4, 0.4, "", status=503))
    note(found, Block(exchanges, seconds=2.0, client_share=0.25), order, QUESTIONS[:2], server_share=0.75)
    assert [row.tolist() for row in found.seconds] == [[0.2, 0.1], [0.3, 0.4]]
    assert found.texts == [["Ada", "1902"], ["Bell", None]]
    assert found.rates == [1.5]


def test_points_say_times_rates_scores_and_agreement() -> None:
    tallies = {
        (8, "PocketQA"): tally([[0.01, 0.02, 0.03], [0.01, 0.02, 0.03]], [RIGHT, ["Ada", "in 1902", "the mill"]], [100.0, 120.0]),
        (8, "A fp32"): tally([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]], [RIGHT, RIGHT], [10.0, 10.0]),
    }
    ours, plain = points_of(tallies, QUESTIONS, "A fp32")
    assert (ours["users"], ours["contestant"], ours["count"], ours["failures"]) == (8, "PocketQA", 6, 0)
    assert (ours["p50"], plain["p50"]) == (20.0, 200.0)
    assert ours["rate"]["value"] == 110.0
    assert ours["rate"]["low"] == 100.0  # both draws the first round: one of four resamples, so the interval reaches it
    # Five of six exact: "the mill" shares no word with "Rome".
    assert (ours["exact_match"], ours["f1"]) == (83.33, 83.33)
    assert (plain["exact_match"], plain["same_answers"], ours["same_answers"]) == (100.0, 100.0, 66.67)
    assert rates_of([ours, plain]) == {"PocketQA": 110.0, "A fp32": 10.0}


def test_what_a_batch_changes_is_counted_by_text_and_place() -> None:
    alone = tally([[0.1, 0.2, 0.3]] * 2, [RIGHT, RIGHT], [1.0, 1.0])
    crowded = tally([[0.1, 0.2, 0.3]] * 2, [RIGHT, ["Ada", None, "Rome"]], [1.0, 1.0])
    crowded.answers[1][0] = ("Ada", 7)  # the same words elsewhere
    first, second = points_of({(1, "PocketQA"): alone, (32, "PocketQA"): crowded}, QUESTIONS, "PocketQA")
    assert "same_spans" not in first
    # The three questions are answered alike in 1, 1 and 2 of 2 rounds.
    assert second["same_spans"]["value"] == 66.67
    assert (second["same_spans"]["low"], second["same_spans"]["high"]) == (50.0, 100.0)


def test_ratios_are_paired() -> None:
    own = [[0.010, 0.020, 0.030, 0.5], [0.012, 0.022, 0.028, 0.5]]
    tallies = {
        (1, "PocketQA"): tally(own, [["x"] * 4] * 2, [100.0, 120.0]),
        (1, "B"): tally([[3 * value for value in row] for row in own], [["x"] * 4] * 2, [50.0, 60.0]),
    }
    rows = ratios_of(tallies, "PocketQA")
    assert [(row["users"], row["against"], row["of"]) for row in rows] == [(1, "B", "p50"), (1, "B", "p99"), (1, "B", "rate")]
    # Every time of B is three times ours, so in every resample the ratio is exactly 3; so with the rates and 2.
    assert [(row["value"], row["low"], row["high"]) for row in rows] == [(3.0, 3.0, 3.0), (3.0, 3.0, 3.0), (2.0, 2.0, 2.0)]

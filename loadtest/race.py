"""A race between servers: blocks of the same questions in a closed loop, to one server after another in an order drawn anew each round.

Every contestant gets the same bytes in the same order, and while one is asked the others idle.  A round asks each question once, or several times
where many users are to ask few questions: in a block shorter than the crowd, a server that puts off the long ones would seem quick.  So times are
paired question by question, and rates round by round.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.closed_loop import Block, post, run_block
from loadtest.processes import Server
from loadtest.questions import Question
from pocketqa import metrics
from pocketqa.runs import mean_interval, mean_ratio, quantile_ratio, ratio_row

CROWDS = 4  # requests of a block for each of its users, at least
RESAMPLES = 2_000  # ends of a 95 % interval are then steady to about a tenth of its width
# What a request says is the same for all servers: windows and longest answer of the SQuAD recipe.
PARAMETERS = {"max_seq_len": 384, "doc_stride": 128, "max_question_len": 64, "max_answer_len": 30}
OK = 200

Row = dict[str, Any]
Span = tuple[str, int]  # an answer's text and where it starts in the passage


@dataclass(slots=True)
class Tally:
    """What one contestant did at one number of users: a row for each time that all were asked, a column a question (N); rates and shares by round."""

    seconds: list[NDArray[np.float64]] = field(default_factory=list)  # (N,) of each time
    answers: list[list[Span | None]] = field(default_factory=list)  # None for a failure
    rates: list[float] = field(default_factory=list)
    client: list[float] = field(default_factory=list)
    server: list[float] = field(default_factory=list)
    spent: float = 0.0  # seconds measured

    @property
    def failures(self) -> int:
        """Requests that were not answered with a text."""
        return sum(text is None for texts in self.texts for text in texts)

    @property
    def texts(self) -> list[list[str | None]]:
        """The words of the answers."""
        return [[span[0] if span else None for span in answers] for answers in self.answers]


Tallies = dict[tuple[int, str], Tally]


def run_race(
    servers: Sequence[Server], questions: Sequence[Question], users: Sequence[int], rounds: int, seed: int, say: Callable[[str], None]
) -> Tallies:
    """All blocks, after each server has had each question by itself and among the most users, so that few shapes come for the first time.

    Raises ExchangeError.
    """
    choice = random.Random(seed)
    requests = {question.number: request_of(question) for question in questions}
    for server in servers:
        for count in sorted({1, max(users)}):
            plan = [*questions, *(choice.choice(questions) for _ in range(2 * count))]
            run_block(server.port, [requests[question.number] for question in plan], count)
    tallies: Tallies = {(count, server.name): Tally() for count in users for server in servers}
    blocks = [(number, count) for number in range(rounds) for count in users]
    for number, count in blocks:
        times = -(-CROWDS * count // len(questions))
        order = choice.sample([*questions] * times, times * len(questions))
        # Those that warm up and those that keep the server busy at the end are questions of the same set.
        around = [choice.choice(questions) for _ in range(2 * count)]
        plan = [*around[:count], *order, *around[count:]]
        for server in choice.sample(servers, len(servers)):
            before = server.usage().cpu
            block = run_block(server.port, [requests[question.number] for question in plan], count)
            share = (server.usage().cpu - before) * len(order) / len(plan) / block.seconds
            note(tallies[count, server.name], block, order, questions, share)
        said = ", ".join(f"{server.name} {tallies[count, server.name].rates[-1]:.1f}" for server in servers)
        say(f"round {number + 1} of {rounds}, {count} users: {said} answers a second")
    return tallies


def request_of(question: Question, path: str = "/") -> bytes:
    """The bytes of a question in Hugging Face's protocol, which all contestants speak at POST /; the service also at /models/ROLE."""
    body = {"inputs": {"question": question.text, "context": question.context}, "parameters": PARAMETERS}
    return post(path, json.dumps(body).encode())


def note(tally: Tally, block: Block, order: Sequence[Question], questions: Sequence[Question], server_share: float) -> None:
    """Add a block, its times and answers in the order of `questions`, each of which is in it as often as every other."""
    column = {question.number: at for at, question in enumerate(questions)}
    times = len(order) // len(questions)
    seconds = np.zeros((times, len(questions)))  # (K, N)
    answers: list[list[Span | None]] = [[None] * len(questions) for _ in range(times)]
    seen: Counter[int] = Counter()
    for question, exchange in zip(order, block.exchanges, strict=True):
        time, at = seen[question.number], column[question.number]
        seen[question.number] += 1
        seconds[time, at] = exchange.seconds
        answers[time][at] = answer_of(exchange.body) if exchange.status == OK else None
    tally.seconds.extend(seconds)
    tally.answers.extend(answers)
    answered = sum(span is not None for row in answers for span in row) / len(order)  # what was refused is no answer
    tally.rates.append(block.rate * answered)
    tally.client.append(block.client_share)
    tally.server.append(server_share)
    tally.spent += block.seconds


def answer_of(body: bytes) -> Span | None:
    """The best answer of a response in Hugging Face's protocol: an object, or a list of them; None where there is none."""
    try:
        found: Any = json.loads(body)
        best = found[0] if isinstance(found, list) else found
        return str(best["answer"]), int(best["start"])
    except (ValueError, KeyError, IndexError, TypeError):
        return None


def points_of(tallies: Tallies, questions: Sequence[Question], reference: str) -> list[Row]:
    """One row a contestant and number of users.  reference: the contestant with whose answers those of the others are compared.

    Beside more users, a contestant's answers are compared with its own to the fewest: what a batch changes, where the fewest are one.
    """
    rows: list[Row] = []
    fewest = min(users for users, _ in tallies)
    for (users, name), tally in tallies.items():
        times = 1000 * np.concatenate(tally.seconds)  # (R * N,)
        exact, overlap = scores_of([text for texts in tally.texts for text in texts], [*questions] * len(tally.texts))
        row: Row = {"users": users, "contestant": name, "count": len(times), "failures": tally.failures}
        row |= {"p50": round(float(np.median(times)), 3), "p99": round(float(np.quantile(times, 0.99)), 3)}
        row |= {"rate": mean_interval(tally.rates, resamples=RESAMPLES).to_json(3), "exact_match": round(exact, 2), "f1": round(overlap, 2)}
        if plain := tallies.get((users, reference)):
            row |= {"same_answers": round(100 * float(np.mean(_same(tally.texts, plain.texts))), 2)}
        if users > fewest:
            alone = tallies[fewest, name].answers  # asked fewer times, perhaps
            # (N,): a draw takes a question with all its times.
            same = _same(tally.answers, [alone[i % len(alone)] for i in range(len(tally.answers))]).mean(axis=0)
            row |= {"same_spans": mean_interval(100 * same, resamples=RESAMPLES).to_json(2)}
        rows.append(row | {"client_share": round(float(np.mean(tally.client)), 4), "server_share": round(float(np.mean(tally.server)), 4)})
    return rows


def ratios_of(tallies: Tallies, ours: str) -> list[Row]:
    """How many times better ours is than each other: times of the same question paired, drawn by question; rates of the same round paired."""
    rows: list[Row] = []
    for (users, name), other in tallies.items():
        if name == ours:
            continue
        mine = tallies[users, ours]
        numbers = np.tile(np.arange(len(mine.seconds[0])), len(mine.seconds))  # (R * N,) question of each time
        theirs, own = np.concatenate(other.seconds), np.concatenate(mine.seconds)
        for of, quantile in (("p50", 0.5), ("p99", 0.99)):
            rows.append(ratio_row(users, name, of, quantile_ratio(theirs, own, quantile, numbers, resamples=RESAMPLES)))
        rows.append(ratio_row(users, name, "rate", mean_ratio(mine.rates, other.rates, resamples=RESAMPLES)))
    return rows


def rates_of(points: Sequence[Row]) -> Mapping[str, float]:
    """The highest mean rate of each contestant."""
    best: dict[str, float] = {}
    for row in points:
        best[row["contestant"]] = max(best.get(row["contestant"], 0.0), float(row["rate"]["value"]))
    return best


def _same(mine: Sequence[Sequence[object]], theirs: Sequence[Sequence[object]]) -> NDArray[np.bool_]:
    """Whether two contestants, or one at two times, gave the same answer: (R, N)."""
    return np.array([[a == b for a, b in zip(*rounds, strict=True)] for rounds in zip(mine, theirs, strict=True)])


def scores_of(texts: Iterable[str | None], questions: Iterable[Question]) -> tuple[float, float]:
    """Exact match and F1 in percent; a failure scores nothing."""
    pairs = [(text or "", question.golds) for text, question in zip(texts, questions, strict=True)]
    exact = [metrics.exact_match(text, golds) for text, golds in pairs]
    overlap = [metrics.f1(text, golds) for text, golds in pairs]
    return 100 * float(np.mean(exact)), 100 * float(np.mean(overlap))

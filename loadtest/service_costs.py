"""How the cost of an answer grows with the length of the passage: tokens of one window first, then windows; and what a forward pass has to compute.

One user asks the service alone, passages of all lengths in random order, so that nothing but the length differs between the rows.
"""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loadtest.closed_loop import post, run_block
from loadtest.processes import Server, ServerFailed
from loadtest.questions import Question

WORDS = (8, 24, 48, 80, 128, 192, 256, 512, 1024, 2048, 4096, 8192, 16384)  # of a passage
MAX_TOKENS = 384
OK = 200

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the operations of a forward pass follow from."""

    layers: int
    width: int
    inner: int

    @classmethod
    def of(cls, folder: Path) -> Geometry:
        """From config.json, in BERT's names or DistilBERT's.  Raises OSError, ValueError, KeyError."""
        config = json.loads((folder / "config.json").read_text("utf-8"))
        bert = "hidden_size" in config
        names = ("num_hidden_layers", "hidden_size", "intermediate_size") if bert else ("n_layers", "dim", "hidden_dim")
        return cls(*(int(config[name]) for name in names))

    def operations(self, tokens: float, windows: float) -> float:
        """Of the matrix products over so many tokens in windows of equal length T: 8 H^2 + 4 H I for each token and layer, and 4 T H of attention."""
        length = tokens / windows
        return self.layers * tokens * (8 * self.width**2 + 4 * self.width * self.inner + 4 * length * self.width)


def request_of(question: str, context: str, role: str) -> bytes:
    """The bytes of a question to one of the service's models."""
    body = {"question": question, "context": context, "model": role, "max_tokens": MAX_TOKENS}
    return post("/v1/answer", json.dumps(body).encode())


def measure(server: Server, questions: Sequence[Question], roles: Sequence[str], repeats: int, seed: int, say: Callable[[str], None]) -> list[Row]:
    """A row a role and length, medians over the repeats; a length that is not answered, because it takes longer than the deadline, has none."""
    if not roles:
        return []
    choice = random.Random(seed)
    limit = int(server.get("/v1/models")["limits"]["context_chars"])
    text = list(itertools.islice(itertools.cycle(" ".join(question.context for question in questions).split()), max(WORDS)))
    passages = {count: " ".join(text[:count]) for count in WORDS}
    cases = [(role, count) for role in roles for count in WORDS if len(passages[count]) <= limit]
    found: dict[tuple[str, int], list[Row]] = {case: [] for case in cases}
    for number in range(repeats):
        order = [cases[0], *choice.sample(cases, len(cases)), cases[0]]  # the first warms up, the last ends the block
        block = run_block(server.port, [request_of(questions[0].text, passages[count], role) for role, count in order], 1)
        for case, exchange in zip(order[1:-1], block.exchanges, strict=True):
            if exchange.status == OK:
                found[case].append(json.loads(exchange.body) | {"client_ms": 1000 * exchange.seconds})
            else:
                say(f"{case[1]} words to the {case[0]}: status {exchange.status}")
        say(f"lengths: round {number + 1} of {repeats}")
    return [_row(role, answers) for (role, _), answers in found.items() if answers]


def tokens_of(server: Server, questions: Sequence[Question]) -> tuple[float, float]:
    """Mean tokens and windows of these questions, as the service counts them.  Raises ServerFailed."""
    requests = [request_of(question.text, question.context, "student") for question in (questions[0], *questions, questions[0])]
    exchanges = run_block(server.port, requests, 1).exchanges
    if wrong := sorted({exchange.status for exchange in exchanges} - {OK}):
        raise ServerFailed(f"Expected the service to answer the questions of the benchmark, found status {wrong[0]}.")
    answers = [json.loads(exchange.body) for exchange in exchanges]
    return float(np.mean([answer["tokens"] for answer in answers])), float(np.mean([answer["windows"] for answer in answers]))


def _row(role: str, answers: Sequence[Row]) -> Row:
    stages = {f"{stage}_ms": round(float(np.median([answer["timings"][stage] for answer in answers])), 3) for stage in answers[0]["timings"]}
    client = float(np.median([answer["client_ms"] for answer in answers]))
    named = ("tokenise_ms", "queue_ms", "forward_ms", "decode_ms")
    row = {"role": role, "tokens": answers[0]["tokens"], "windows": answers[0]["windows"], "client_ms": round(client, 3), **stages}
    # What is neither tokenising, queue, forward pass nor decoding: HTTP, JSON, and the way between the processes, the client's part with it.
    rest = [answer["client_ms"] - sum(answer["timings"][name.removesuffix("_ms")] for name in named) for answer in answers]
    return row | {"rest_ms": round(float(np.median(rest)), 3)}

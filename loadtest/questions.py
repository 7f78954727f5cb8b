"""The questions of a load test, and the order in which they are asked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pocketqa import metrics, squad
from pocketqa.errors import OptionsError

SAMPLES = Path(squad.__file__).with_name("samples.json")
MODELS = ("teacher", "student")


@dataclass(frozen=True, slots=True)
class Question:
    """One question on one passage.  golds: the right answers' texts; [""] says that the passage holds none."""

    number: int
    id: str
    text: str
    context: str
    golds: tuple[str, ...]


def load_questions(source: str | Path = SAMPLES, limit: int = 0, seed: int = 0, unanswerable: bool = False) -> list[Question]:
    """Questions of a SQuAD-format file (path, compressed path or Hub name); those without an answer only where they are wanted.

    limit: a seeded sample of so many of them; 0 takes all.  Raises pocketqa's DataError, and OptionsError when nothing is left to ask.
    """
    if limit < 0:
        raise OptionsError(f"Expected --limit to be a number of questions, or 0 for all, found {limit}.")
    examples = [example for example in squad.load(source) if unanswerable or not example.is_impossible]
    if not examples:
        raise OptionsError(
            f"Expected at least one question with an answer in {source}, found none. With --no-answer, unanswerable questions are asked too."
        )
    if 0 < limit < len(examples):
        examples = random.Random(seed).sample(examples, limit)
    return [
        Question(number, example.id, example.question, example.context, tuple(metrics.gold_texts(example, squad2=unanswerable)))
        for number, example in enumerate(examples)
    ]


def draws(questions: list[Question], seed: int, stream: int = 0) -> Iterator[tuple[Question, tuple[str, str]]]:
    """For ever: a question, and the order of the models for it.

    Each round asks every question once, in an order of its own, so that all are asked equally often.  The order of the models is drawn per question:
    whichever comes second finds warm caches, and each must be second half of the time.  `stream` tells the workers of one run apart.
    """
    choice = random.Random(f"{seed}-{stream}")
    while True:
        for question in choice.sample(questions, len(questions)):
            first, second = choice.sample(MODELS, 2)
            yield question, (first, second)

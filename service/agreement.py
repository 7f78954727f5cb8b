"""How far the answers of teacher and student agree."""

from __future__ import annotations

from collections.abc import Sequence

from pocketqa.metrics import f1
from pocketqa.types import Answer
from service.schemas import Agreement


def agreement(teacher: Sequence[Answer], student: Sequence[Answer]) -> Agreement:
    """How far two best answers (or none at all) agree."""
    places = [[(a.source, a.start, a.end, a.is_no_answer) for a in answers] for answers in (teacher, student)]
    texts = ["".join(a.text for a in answers) for answers in (teacher, student)]
    same_text = texts[0] == texts[1]
    # Words are compared without punctuation and articles: answers made of nothing else share no word, and are alike where they are equal.
    overlap = 1.0 if same_text else f1(texts[1], [texts[0]])
    return Agreement(same_span=places[0] == places[1], same_text=same_text, f1=overlap)

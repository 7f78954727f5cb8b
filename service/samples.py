"""The sample passages that the page offers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pocketqa
from pocketqa import squad
from service.schemas import Sample, SampleQuestion, SamplesResponse

SAMPLES = Path(pocketqa.__file__).with_name("samples.json")


@cache
def load_samples() -> SamplesResponse:
    """Questions grouped by passage, in the order of the file.  Raises DataError."""
    groups: dict[tuple[str, str], list[SampleQuestion]] = {}
    for example in squad.load(SAMPLES):
        question = SampleQuestion(question=example.question, is_impossible=example.is_impossible)
        groups.setdefault((example.title, example.context), []).append(question)
    return SamplesResponse(samples=[Sample(title=title, context=context, questions=questions) for (title, context), questions in groups.items()])

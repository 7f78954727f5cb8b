"""An artefact beside its model, question by question: answers, scores, logits, and the gate.

Legend: N questions, P passage tokens of all windows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from pocketqa import squad
from pocketqa.errors import OptionsError, VocabularyMismatch
from pocketqa.evaluation import Measured, Values
from pocketqa.statistics import Interval, least_questions, loss_interval, passes_gate
from pocketqa.types import JSON, Floats, QAExample

GATES = {"fp16": 0.3, "int8": 0.6}  # percent points of F1 that a scheme may lose, unless the caller says otherwise
SQUAD_DEV = "3fdb9bf5e1a187ca5f02c2bcbb252ae1198cc49832c888d608623b5c24bc24c1"
"""sha256 of the sorted question ids of SQuAD v1.1 dev, one a line: the same in every way of storing it."""

CLOSE_CALL = 0.05  # logits between the two best spans below which float16 may exchange them


def compare_measured(artefact: Measured, reference: Measured, examples: Sequence[QAExample]) -> JSON:
    """What the artefact lost against the reference on the same examples.

    "f1_loss", "exact_match_loss": reference minus artefact in percent points, with paired intervals over articles; "same_spans": percent of the
    questions answered with the same span; "differing": the others, those the reference was surest of first, each with the reference's "gap" (logits
    between its two best spans); "close_calls": whether every one of them had a gap below `limit`; "max_difference", "mean_difference", "psnr": of
    the logits of passage tokens, see `psnr`.
    Raises VocabularyMismatch where the two did not see the same tokens.
    """
    if len(artefact.start) != len(reference.start):
        raise VocabularyMismatch(
            f"Expected artefact and reference to cut the texts into the same tokens, found {len(artefact.start)} and {len(reference.start)} passage "
            "tokens. Compare a bundle with the model it was made from."
        )
    groups = squad.groups_of(examples)
    others = [i for i, (a, b) in enumerate(zip(artefact.spans, reference.spans, strict=True)) if a != b]
    others.sort(key=lambda i: -reference.gaps[i])
    found = np.concatenate((artefact.start, artefact.end)).astype(np.float64)  # (2 P,)
    wanted = np.concatenate((reference.start, reference.end)).astype(np.float64)  # (2 P,)
    difference = np.abs(found - wanted)
    return {
        "count": len(examples),
        "f1_loss": loss_interval(reference.f1, artefact.f1, groups).scaled(100).to_json(),
        "exact_match_loss": loss_interval(reference.exact, artefact.exact, groups).scaled(100).to_json(),
        "same_spans": round(100 * (1 - len(others) / len(examples)), 4),
        "differing_count": len(others),
        "differing": [_differing(examples[i], artefact, reference, i) for i in others],
        "close_calls": {"limit": CLOSE_CALL, "all": all(reference.gaps[i] < CLOSE_CALL for i in others)},
        "max_difference": round(float(difference.max()), 6),
        "mean_difference": round(float(difference.mean()), 6),
        "psnr": psnr(found, wanted),
    }


def gate(scheme: str, agreement: JSON, limit: float | None = None) -> JSON | None:
    """Whether the F1 loss is shown to be below the limit (that of the scheme where none is given); None where there is no limit.

    "questions": how many it was measured on; "least_questions": how many the limit needs.
    """
    limit = GATES.get(scheme) if limit is None else limit
    if limit is None:
        return None
    loss, questions = agreement["f1_loss"], agreement["count"]
    passed = passes_gate(Interval.from_json(loss), limit, questions)
    return {"limit": limit, "f1_loss": loss, "questions": questions, "least_questions": least_questions(limit), "passed": passed}


def check_questions(questions: int, limit: float) -> None:
    """Before any work: raises OptionsError where no result on so few questions could show a loss of F1 below the limit."""
    if questions < (least := least_questions(limit)):
        raise OptionsError(
            f"Expected questions enough to show that less than {limit:g} points of F1 are lost, found {too_few(questions, least)}. "
            "Leave out --limit, or name more data."
        )


def too_few(questions: int, least: int) -> str:
    """For people."""
    return f"too few questions: {questions:,}, at least {least:,}"


def is_squad_dev(source: str) -> bool:
    """Whether a data file or Hub data set holds the questions of SQuAD v1.1 dev.  Raises DataError."""
    ids = sorted(example.id for example in squad.load(source))
    return hashlib.sha256("\n".join(ids).encode()).hexdigest() == SQUAD_DEV


def psnr(found: Values | Floats, wanted: Values | Floats) -> float | None:
    """Peak signal-to-noise ratio in dB, 20 log10(largest |wanted| / root mean square of the difference); None where there is no difference.

    As ml-ane-transformers computes it (utils.py, compute_psnr), whose floor for a converted model is 60 dB.
    """
    wanted = np.asarray(wanted, dtype=np.float64)
    noise = float(np.sqrt(np.mean((np.asarray(found, dtype=np.float64) - wanted) ** 2)))
    peak = float(np.abs(wanted).max())
    return None if noise == 0 or peak == 0 else round(float(20 * np.log10(peak / noise)), 2)


def _differing(example: QAExample, artefact: Measured, reference: Measured, i: int) -> JSON:
    gap = float(reference.gaps[i])
    return {
        "id": example.id,
        "gap": round(gap, 6) if np.isfinite(gap) else None,
        "reference": reference.texts[example.id],
        "artefact": artefact.texts[example.id],
    }

"""What `pocketqa finetune` minimises on questions: gold answers, a teacher's soft targets, and losses between layers.

Legend: B rows, T positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from distillation.knowledge import losses
from distillation.knowledge.losses import LossTerms, Spans
from distillation.knowledge.observation import Observed, observe
from distillation.knowledge.transfer import Trained
from distillation.models.modeling import inputs_of
from distillation.models.teachers import reading_teachers
from distillation.questions.data import LABELLED, ROWS, TrainingBatch, TrainingWindow
from distillation.questions.finetune_recipe import ReaderRecipe
from distillation.questions.teacher_cache import TeacherLogits, teacher_logits


def loss_function(
    trained: Trained, teachers: Sequence[PreTrainedModel], recipe: ReaderRecipe, distilled: bool
) -> Callable[[TrainingBatch, Mapping[str, float]], LossTerms]:
    """The loss of one micro-batch.

    teachers: those that have to be run; the first one's layers are learnt from.  Soft targets are the batch's, where it brings them.
    distilled: whether there is a teacher at all; else only gold answers count, with weight 1.
    """
    student, transfer = trained.student, trained.transfer
    states, ours, theirs = transfer.wants()

    def loss_of(batch: TrainingBatch, counts: Mapping[str, float]) -> LossTerms:
        made = observe(student, inputs_of(student, batch.ids, batch.mask, batch.token_types), states, ours)
        start, end = span_logits(student, made.last)  # (B, T) each
        gold = losses.span_cross_entropy(start, end, batch.starts, batch.ends, batch.allowed, max(1.0, counts[LABELLED]))
        if not distilled:
            return LossTerms(gold, {"loss": gold.detach()})
        parts, total = {"loss_squad": gold.detach()}, recipe.alpha_squad * gold
        seen = _seen(teachers, batch, states, theirs)
        if recipe.alpha_ce:
            allowed = torch.ones_like(batch.allowed) if recipe.kl_over_padding else batch.allowed
            known = batch.teachers or tuple(span_logits(teacher, out.last) for teacher, out in zip(teachers, seen, strict=True))
            soft = losses.span_ensemble(known, allowed, recipe.temperature)
            ce = losses.span_kl((start, end), soft, allowed, recipe.temperature, counts[ROWS])
            parts, total = {"loss_ce": ce.detach(), **parts}, total + recipe.alpha_ce * ce
        if recipe.any_transfer():
            value, named = transfer.terms(made, seen[0], batch.mask, counts)
            parts, total = {**parts, **named}, total + value
        return LossTerms(total, {"loss": total.detach(), **parts})

    return loss_of


def teachers_of(
    sources: Sequence[str], cache: Path, windows: Sequence[TrainingWindow], pad_id: int, recipe: ReaderRecipe
) -> tuple[list[PreTrainedModel], list[TeacherLogits]]:
    """The teachers that have to run with the student, and what all of them say of the windows, as far as that is kept on disk.

    Soft targets come from the disk, unless they take in padding, which is different in every batch; losses between layers need the first teacher.
    """
    if not sources:
        return [], []
    if recipe.alpha_ce and recipe.kl_over_padding:
        return reading_teachers(sources), []
    running = reading_teachers(sources[:1]) if recipe.any_transfer() else []
    if not recipe.alpha_ce:
        return running, []

    def cached(source: str) -> TeacherLogits:
        def load() -> PreTrainedModel:
            return running[0] if running and source == sources[0] else reading_teachers([source])[0]

        return teacher_logits(cache, source, windows, pad_id, recipe.precision, load)

    return running, [cached(source) for source in sources]


def span_logits(model: PreTrainedModel, last: Tensor) -> Spans:
    """The question-answering head applied to the last hidden state (B, T, H): start and end logits (B, T)."""
    reader = cast(Any, model)
    if model.config.model_type == "distilbert":
        last = reader.dropout(last)
    start, end = reader.qa_outputs(last).split(1, dim=-1)
    return start.squeeze(-1), end.squeeze(-1)


def _seen(teachers: Sequence[PreTrainedModel], batch: TrainingBatch, states: bool, scores: Sequence[int]) -> list[Observed]:
    with torch.no_grad():
        return [
            observe(teacher, inputs_of(teacher, batch.ids, batch.mask, batch.token_types), states and not number, () if number else scores)
            for number, teacher in enumerate(teachers)
        ]

"""Losses between the layers of a student and of a teacher, put together as a recipe says.

Legend: B rows, T positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillation.knowledge import losses
from distillation.knowledge.observation import Observed
from distillation.knowledge.transfer_recipe import TransferRecipe
from distillation.models import modeling
from pocketqa.errors import TrainingError

ROWS, TOKENS = "rows", "tokens"  # names of counts


class Transfer(nn.Module):
    """The losses of one pair of models, with the projection they learn where hidden sizes differ.

    Raises TrainingError where layers, heads or sizes do not fit.
    """

    def __init__(self, student: Any, teacher: Any, recipe: TransferRecipe) -> None:
        """student, teacher: configurations."""
        super().__init__()
        self.recipe = recipe
        self.pairs: dict[int, int] = layer_pairs(recipe.layer_map, modeling.depth(teacher), modeling.depth(student)) if recipe.any_transfer() else {}
        self.projection: nn.Linear | None = None
        if recipe.needs_scores() and student.num_attention_heads != teacher.num_attention_heads:
            raise TrainingError(
                f"Attention losses need as many heads on both sides, found {student.num_attention_heads} and {teacher.num_attention_heads}. "
                "Give the student the teacher's --heads, or set --alpha-attention and --alpha-attention-kl to 0."
            )
        if recipe.needs_states() and student.hidden_size != teacher.hidden_size:
            if not recipe.projection:
                raise TrainingError(
                    f"Losses on hidden states need one size, found {student.hidden_size} and {teacher.hidden_size}. "
                    "Leave --projection on, or set --alpha-hidden, --alpha-patient, --alpha-mean and --alpha-variance to 0."
                )
            self.projection = nn.Linear(student.hidden_size, teacher.hidden_size)

    def wants(self) -> tuple[bool, list[int], list[int]]:
        """Whether hidden states are needed, and the layers of the student and of the teacher whose attention scores are."""
        scores = self.recipe.needs_scores()
        return self.recipe.needs_states(), list(self.pairs) if scores else [], list(self.pairs.values()) if scores else []

    def terms(
        self, student: Observed, teacher: Observed, mask: Tensor, counts: Mapping[str, float], layers: Collection[int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of all losses that are on, and each of them by name, unweighted.

        mask (B, T); counts: rows and tokens of the whole step; layers: only these of the student's (default: all that have a partner).
        """
        chosen = {ours: theirs for ours, theirs in self.pairs.items() if layers is None or ours in layers}
        found: dict[str, Tensor] = {}
        if self.recipe.needs_states():
            self._on_states(student, teacher, mask, counts, chosen, found)
        for ours, theirs in chosen.items() if self.recipe.needs_scores() else ():
            pair = student.scores[ours], teacher.scores[theirs]
            if self.recipe.alpha_attention:
                _add(found, "attention", losses.attention_mse(*pair, mask, counts[TOKENS]))
            if self.recipe.alpha_attention_kl:
                _add(found, "attention_kl", losses.attention_kl(*pair, mask, counts[TOKENS]))
        total = torch.zeros((), device=mask.device)
        for name, value in found.items():
            total = total + getattr(self.recipe, f"alpha_{name}") * value
        return total, {f"loss_{name}": value.detach() for name, value in found.items()}

    def _on_states(
        self, student: Observed, teacher: Observed, mask: Tensor, counts: Mapping[str, float], chosen: Mapping[int, int], found: dict[str, Tensor]
    ) -> None:
        recipe = self.recipe
        for ours, theirs in self._state_pairs(chosen):
            mine, goal = self._projected(student.states[ours]), teacher.states[theirs]  # (B, T, H)
            if recipe.alpha_hidden:
                _add(found, "hidden", losses.hidden_mse(mine, goal, mask, counts[TOKENS], recipe.hidden_normalised))
            if ours and recipe.alpha_patient:
                _add(found, "patient", losses.patient(mine[:, 0], goal[:, 0], counts[ROWS]) / len(self.pairs))
            if ours and (recipe.alpha_mean or recipe.alpha_variance):
                mean, variance = losses.feature_statistics(mine, goal, mask, counts[TOKENS])
                if recipe.alpha_mean:
                    _add(found, "mean", mean)
                if recipe.alpha_variance:
                    _add(found, "variance", variance)

    def _state_pairs(self, chosen: Mapping[int, int]) -> list[tuple[int, int]]:
        """Numbers of hidden states on both sides, 0 for the embeddings, which go with the first layer."""
        pairs = [(ours + 1, theirs + 1) for ours, theirs in chosen.items()]
        with_embeddings = self.recipe.alpha_hidden and self.recipe.hidden_embeddings and min(self.pairs) in chosen
        return [(0, 0), *pairs] if with_embeddings else pairs

    def _projected(self, states: Tensor) -> Tensor:
        return states if self.projection is None else self.projection(states)


class Trained(nn.Module):
    """All that a distillation trains: the student, and what only its losses need."""

    def __init__(self, student: PreTrainedModel, transfer: Transfer, headed: bool = True, embedded: bool = True) -> None:
        """headed: whether the head of the student is a trained one at the end; one that nothing trained is none, and is not kept.

        embedded: whether it begins with trained embeddings, not with some drawn at random.
        """
        super().__init__()
        self.student, self.transfer, self.headed, self.embedded = student, transfer, headed, embedded

    @property
    def kept(self) -> PreTrainedModel:
        """What checkpoints hold: the student, or its encoder alone."""
        return self.student if self.headed else cast(PreTrainedModel, self.student.base_model)


def layer_pairs(text: str, teacher_layers: int, student_layers: int) -> dict[int, int]:
    """Student layer -> teacher layer, both from 0, of a layer map as recipes write it.  Raises TrainingError where it does not fit the models."""
    if student_layers > teacher_layers and not text:
        raise TrainingError(
            f"A student of {student_layers} layers cannot learn layer by layer from a teacher of {teacher_layers}. "
            f"Ask for 1 to {teacher_layers} layers, or name a --layer-map."
        )
    if not text:
        return {layer: (layer + 1) * teacher_layers // student_layers - 1 for layer in range(student_layers)}
    words = [word.strip() for word in text.split(",")]
    wrong = [word for word in words if word != "-" and not (word.isascii() and word.isdigit() and int(word) < teacher_layers)]
    pairs = {layer: int(word) for layer, word in enumerate(words) if word != "-"} if not wrong else {}
    if len(words) != student_layers or not pairs:
        raise TrainingError(
            f"Expected {student_layers} teacher layers from 0 to {teacher_layers - 1}, or - for none, one for each student layer; "
            f"found --layer-map {text!r}."
        )
    return pairs


def _add(found: dict[str, Tensor], name: str, value: Tensor) -> None:
    found[name] = found[name] + value if name in found else value

"""Losses of classification and regression, with a teacher and without.

Legend: B rows, C classes (1 for a real number).  A loss is a sum over the micro-batch divided by a count of the whole step, as everywhere here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from distillation.glue.classification import Task, TaskBatch
from distillation.glue.task_model import outputs_of
from distillation.glue.task_recipe import TaskRecipe
from distillation.knowledge import losses
from distillation.knowledge.losses import LossTerms


def loss_function(model: nn.Module, task: Task, recipe: TaskRecipe) -> Callable[[TaskBatch, Mapping[str, float]], LossTerms]:
    """Gold labels, and the teacher's outputs where the batch has them; sums over the micro-batch divided by the rows of the whole step."""

    def loss_of(batch: TaskBatch, counts: Mapping[str, float]) -> LossTerms:
        out = outputs_of(model, batch).float()  # (B, C)
        gold = gold_loss(out, batch.labels, task) / counts["rows"]
        if batch.teacher is None:
            return LossTerms(gold, {"loss": gold.detach()})
        soft = soft_loss(out, batch.teacher, task, recipe.temperature) / counts["rows"]
        total = recipe.alpha_ce * soft + recipe.alpha_gold * gold
        return LossTerms(total, {"loss": total.detach(), "loss_ce": soft.detach(), "loss_gold": gold.detach()})

    return loss_of


def gold_loss(outputs: Tensor, labels: Tensor, task: Task) -> Tensor:
    """Cross-entropy, or for a real number the squared error, summed over rows.  outputs (B, C), labels (B,)."""
    if task.real:
        return F.mse_loss(outputs[:, 0], labels, reduction="sum")
    return F.cross_entropy(outputs, labels, reduction="sum")


def soft_loss(outputs: Tensor, teacher: Tensor, task: Task, temperature: float) -> Tensor:
    """KL(teacher || student) at a temperature, times its square (Hinton et al. 2015), or the squared error (TinyBERT for STS-B), summed over rows."""
    return F.mse_loss(outputs, teacher, reduction="sum") if task.real else losses.soft_targets(outputs, teacher, temperature, count=1)

"""Ways to take the same training step on text, from the plain one to this project's: what is compared by `pocketqa benchmark --workload training`.

Legend: B rows, T positions, N masked tokens, H hidden size, I intermediate size, L layers, V vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from distillation.knowledge import losses
from distillation.models import modeling
from distillation.text import lm
from distillation.text.corpus import Corpus, plan_steps
from distillation.text.masking import MaskedBatch, masked_batch
from distillation.text.pretrain_recipe import TextRecipe
from distillation.training.faster import FasterOnCPU

ALPHA_CE, ALPHA_MLM, ALPHA_COS, TEMPERATURE = 5.0, 2.0, 1.0, 2.0  # the released DistilBERT's
IGNORED = -100
FORWARD, TRAINED = 2, 6  # floating-point operations of a weight and token: forward alone; forward and backward (Kaplan et al. 2020, section 2.1)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to take a step.  Each field is one thing done better than plainly."""

    words: str
    packed: bool = False  # rows that run on; else one document a row, in random batches padded to their longest row
    chosen: bool = False  # the vocabulary at masked tokens only; else at every position, padding included
    keep: bool = False  # freed memory stays with the process
    faster: bool = False  # attention and dropout of our own, where PyTorch's are slow


# The plain way is done well: bf16 autocast, fused attention and optimiser, dynamic padding, no dropout in attention.  Each row adds one thing.
WATERFALL = (
    Way("plain: random batches of documents, each padded to its longest"),
    Way("rows that run on from document to document", packed=True),
    Way("the vocabulary at masked tokens only", packed=True, chosen=True),
    Way("freed memory kept by the process", packed=True, chosen=True, keep=True),
    Way("attention as matrix products, dropout of our own", packed=True, chosen=True, keep=True, faster=True),
)
# The released DistilBERT's soft targets at every token: then no position can be left out.
EVERYWHERE = (WATERFALL[0], Way("rows that run on, freed memory kept, attention and dropout of our own", packed=True, keep=True, faster=True))


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained: a model on masked tokens, and with a teacher the triple loss of DistilBERT.

    everywhere: soft targets at all tokens, as in the released DistilBERT, not at the masked ones alone.
    """

    model: PreTrainedModel
    teacher: PreTrainedModel | None = None
    everywhere: bool = False

    @property
    def words(self) -> str:
        """For people."""
        if self.teacher is None:
            return "masked-language modelling"
        return f"triple loss, soft targets at {'all' if self.everywhere else 'masked'} tokens"

    def loss(self, batch: MaskedBatch, way: Way) -> Tensor:
        """The loss of one batch, the same in every way up to rounding."""
        with FasterOnCPU() if way.faster else contextlib.nullcontext():
            hidden = lm.hidden_states(self.model, batch.ids, batch.mask)  # (B, T, H)
        rows = logits_in(self.model, hidden, batch, way.chosen)
        mlm = _masked_loss(rows, batch, way.chosen)
        if self.teacher is None:
            return mlm
        with torch.no_grad():
            known = lm.hidden_states(self.teacher, batch.ids, batch.mask)  # (B, T, H)
            soft = logits_in(self.teacher, known, batch, way.chosen)
        there = batch.mask.flatten().nonzero().flatten()  # (tokens,) positions that are no padding
        if self.everywhere:
            student, teacher, count = rows.index_select(0, there), soft.index_select(0, there), len(there)
        else:
            student, teacher, count = _at_targets(rows, batch, way.chosen), _at_targets(soft, batch, way.chosen), len(batch.labels)
        ce = losses.soft_targets(student, teacher, TEMPERATURE, count)
        total = ALPHA_CE * ce + ALPHA_MLM * mlm
        if hidden.shape == known.shape:  # a teacher of another width has no cosine
            total = total + ALPHA_COS * losses.cosine(hidden.flatten(0, 1)[there], known.flatten(0, 1)[there], len(there))
        return total

    def operations(self, batch: MaskedBatch, way: Way) -> float:
        """Floating-point operations of the matrix products of one step, by formula; positions that a way computes in vain are counted too."""
        rows, longest = batch.ids.shape
        scored = len(batch.labels) if way.chosen else rows * longest
        done = encoder_operations(self.model, rows, longest) * TRAINED + head_operations(self.model, scored) * TRAINED
        if self.teacher is not None:
            done += encoder_operations(self.teacher, rows, longest) * FORWARD + head_operations(self.teacher, scored) * FORWARD
        return done


def logits_in(model: PreTrainedModel, hidden: Tensor, batch: MaskedBatch, chosen: bool) -> Tensor:
    """Logits (N, V) at the masked tokens, or (B * T, V) everywhere."""
    flat = hidden.flatten(0, 1)  # (B * T, H)
    return lm.vocabulary_logits(model, flat.index_select(0, batch.targets) if chosen else flat)


def encoder_operations(model: PreTrainedModel, rows: int, longest: int) -> float:
    """Multiplications and additions over 2 of an encoder: T (4 H^2 + 2 H I) of weights and 2 T^2 H of attention, for each row and layer."""
    config = model.config
    width = int(config.hidden_size)
    inner = modeling.inner_size(config)
    return float(config.num_hidden_layers) * rows * longest * (4 * width**2 + 2 * width * inner + 2 * longest * width)


def head_operations(model: PreTrainedModel, positions: int) -> float:
    """The same of a language head: H^2 of its transform and H V of its decoder, for each position."""
    width = int(model.config.hidden_size)
    return float(positions) * (width**2 + width * int(model.config.vocab_size))


def batches(way: Way, running: Corpus, apart: Corpus, recipe: TextRecipe) -> Iterator[MaskedBatch]:
    """Endless micro-batches of a way.  running, apart: the corpus packed, and one document a row.

    All ways fill as many positions, padding included: as a batch of rows that run on has.
    """
    plan = [list(batch) for step in plan_steps(running.lengths, recipe, tokens=recipe.tokens) for batch in step]
    positions = max(len(batch) * int(running.lengths[batch].max()) for batch in plan)
    order = itertools.cycle(plan) if way.packed else _filled(apart, positions, recipe.seed)
    for step, indices in enumerate(order):
        yield masked_batch(running if way.packed else apart, indices, step, recipe)


def _filled(apart: Corpus, positions: int, seed: int) -> Iterator[list[int]]:
    """Documents in random order, pass after pass, so many in a batch as padded to their longest still fit into `positions`."""
    batch: list[int] = []
    longest = 0
    for epoch in itertools.count():
        for index in np.random.default_rng((seed, epoch)).permutation(len(apart)).tolist():
            longest = max(longest, int(apart.lengths[index]))
            if batch and (len(batch) + 1) * longest > positions:
                yield batch
                batch, longest = [], int(apart.lengths[index])
            batch.append(index)


def _masked_loss(rows: Tensor, batch: MaskedBatch, chosen: bool) -> Tensor:
    if chosen:
        return losses.masked_cross_entropy(rows, batch.labels, len(batch.labels))
    labels = torch.full((len(rows),), IGNORED, device=rows.device)  # (B * T,) as transformers' own heads take them
    labels[batch.targets] = batch.labels
    return F.cross_entropy(rows.float(), labels, ignore_index=IGNORED)


def _at_targets(logits: Tensor, batch: MaskedBatch, chosen: bool) -> Tensor:
    return logits if chosen else logits.index_select(0, batch.targets)

"""The masked-language-modelling loss, and its measurement on text kept apart.

Legend: B rows, T positions, N tokens to predict, H hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillation.knowledge import losses
from distillation.knowledge.losses import LossTerms
from distillation.questions.data import epoch_batches
from distillation.text import lm
from distillation.text.corpus import HELD_OUT_SEED, Corpus, Rows
from distillation.text.masking import MASKED, MaskedBatch, masked_batch
from distillation.text.pretrain_recipe import TextRecipe
from distillation.training.loop import DTYPES
from pocketqa.types import JSON

MEASURE = -1  # the "step" whose masks are used for every measurement
MAX_EXPONENT = 700.0  # exp of more is no finite number


@dataclass(frozen=True, slots=True)
class Development:
    """How well masked tokens of held-out text are predicted."""

    loss: float  # nats a masked token
    perplexity: float
    accuracy: float  # share of the masked tokens whose likeliest prediction is right
    masked: int  # tokens predicted

    def to_json(self) -> JSON:
        """For manifests and run files."""
        return asdict(self)

    def say(self) -> str:
        """One line."""
        return (
            f"held-out text: loss {self.loss:.4f}, perplexity {self.perplexity:.2f}, masked accuracy {100 * self.accuracy:.2f} % of {self.masked:,}"
        )


def loss_function(model: PreTrainedModel) -> Callable[[MaskedBatch, Mapping[str, float]], LossTerms]:
    """Cross-entropy of the masked tokens; the vocabulary is computed where a token is to be predicted and nowhere else."""

    def loss_of(batch: MaskedBatch, counts: Mapping[str, float]) -> LossTerms:
        loss = losses.masked_cross_entropy(masked_logits(model, batch), batch.labels, max(1.0, counts[MASKED]))
        return LossTerms(loss, {"loss": loss.detach()})

    return loss_of


def masked_logits(model: PreTrainedModel, batch: MaskedBatch) -> Tensor:
    """Logits (N, V) at the positions to predict."""
    hidden = lm.hidden_states(model, batch.ids, batch.mask)  # (B, T, H)
    return lm.vocabulary_logits(model, hidden.flatten(0, 1).index_select(0, batch.targets))


def measure(model: PreTrainedModel, corpus: Corpus, rows: Rows, recipe: TextRecipe) -> Development:
    """Loss and accuracy on some rows, with the same masks every time, whatever the seed.  The model is left in the mode it was in."""
    recipe = replace(recipe, seed=HELD_OUT_SEED)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, right, count = 0.0, 0, 0
    with torch.no_grad(), torch.autocast(device.type, dtype=DTYPES[recipe.precision], enabled=recipe.precision != "fp32"):
        for chosen in epoch_batches(corpus.lengths[rows], recipe.batch_tokens, seed=recipe.seed):
            batch = masked_batch(corpus, rows[chosen].tolist(), MEASURE, recipe).to(device)
            logits = masked_logits(model, batch).float()  # (N, V)
            total += float(F.cross_entropy(logits, batch.labels, reduction="sum"))
            right += int((logits.argmax(dim=-1) == batch.labels).sum())
            count += len(batch.labels)
    model.train(training)
    loss = total / max(1, count)
    return Development(loss, math.exp(min(loss, MAX_EXPONENT)), right / max(1, count), count)


def start_bias(bias: nn.Parameter, counts: Rows, special: Sequence[int]) -> None:
    """Set a new head's bias (V,) to the log of how often each token occurs, one added to each: the best guess without a context.

    special: tokens that are never to be predicted, whatever their count.
    """
    counted = counts.astype(np.float64) + 1.0
    counted[list(special)] = 1.0
    frequencies = torch.from_numpy(np.log(counted / counted.sum())).float()
    with torch.no_grad():
        bias[: len(frequencies)] = frequencies
        bias[len(frequencies) :] = frequencies.min()  # rows of the embeddings that no token uses

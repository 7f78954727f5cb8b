"""Masked batches: which tokens are to be predicted, and what stands in their place.

Legend: B rows, T positions, N tokens to predict, V vocabulary.  Every draw depends on (seed, step, row number) alone, so that a resumed run, or one
whose batches are split among processes, sees the same masks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillation.text.corpus import Corpus, Rows
from distillation.text.corpus_cache import Vocabulary
from distillation.text.pretrain_recipe import TextRecipe

MASKED, TOKENS, ROWS = "masked", "tokens", "rows"  # names of the counts


@dataclass(frozen=True, slots=True, eq=False)
class MaskedBatch:
    """Tensors of one micro-batch."""

    ids: Tensor  # (B, T) with masks in place, padded
    mask: Tensor  # (B, T) 1 where there is a token
    targets: Tensor  # (N,) positions to predict, counted in the flat (B * T)
    labels: Tensor  # (N,) what stood there
    tokens: int  # without padding

    @property
    def counts(self) -> dict[str, float]:
        """What the losses are averaged over."""
        return {MASKED: len(self.targets), TOKENS: self.tokens, ROWS: len(self.ids)}

    def to(self, device: torch.device) -> MaskedBatch:
        """The same on a device."""
        return MaskedBatch(self.ids.to(device), self.mask.to(device), self.targets.to(device), self.labels.to(device), self.tokens)


def masked_batch(corpus: Corpus, indices: Sequence[int], step: int, recipe: TextRecipe) -> MaskedBatch:
    """Rows `indices` of a corpus, masked for optimiser step `step` (from 0; a negative one stands for measurements)."""
    rows = [corpus.row(index) for index in indices]
    weights, ordinary = _tables(corpus, recipe.count_smoothing)  # (V,) and ids
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), corpus.vocabulary.pad_id, dtype=np.int64)  # (B, T)
    mask = np.zeros((len(rows), longest), dtype=np.int64)  # (B, T)
    targets, labels = [], []
    for number, (index, row) in enumerate(zip(indices, rows, strict=True)):
        chosen, seen = mask_row(row, weights, ordinary, corpus.vocabulary.mask_id, recipe, np.random.default_rng((recipe.seed, step + 1, index)))
        ids[number, : len(row)], mask[number, : len(row)] = seen, 1
        targets.append(chosen + number * longest)
        labels.append(row[chosen])
    places = (torch.from_numpy(np.concatenate(targets)), torch.from_numpy(np.concatenate(labels)))
    return MaskedBatch(torch.from_numpy(ids), torch.from_numpy(mask), *places, int(mask.sum()))


def mask_row(
    row: Rows, weights: NDArray[np.float64], ordinary: Rows, mask_id: int, recipe: TextRecipe, random: np.random.Generator
) -> tuple[Rows, Rows]:
    """Positions to predict (n,), ascending, and the row (T,) as the model sees it.

    n = recipe.masked of the tokens that may be chosen, at least one of them; drawn without replacement, each draw in proportion to weights (V,): the
    n smallest of exponential times over weight (Efraimidis and Spirakis 2006).  The released DistilBERT draws over a whole batch instead of each row,
    which would make a mask depend on its neighbours.
    """
    weight = weights[row]  # (T,)
    allowed = int((weight > 0).sum())
    wanted = min(allowed, max(1, round(recipe.masked * allowed)))
    with np.errstate(divide="ignore"):
        times = random.exponential(size=len(row)) / weight  # (T,) infinite where nothing may be chosen
    chosen = np.sort(np.argsort(times, kind="stable")[:wanted])  # (n,)
    seen, fate = row.copy(), random.random(wanted)
    replaced = ordinary[random.integers(len(ordinary), size=wanted)]
    masked, changed = fate < recipe.mask_token, fate >= 1 - recipe.random_token
    seen[chosen[masked]] = mask_id
    seen[chosen[changed]] = replaced[changed]
    return chosen, seen


def sampling_weights(counts: Rows, vocabulary: Vocabulary, smoothing: float) -> NDArray[np.float64]:
    """How likely each id (V,) is to be chosen: 1, or count^-smoothing where that is above 0; special tokens never."""
    weights = np.maximum(counts, 1).astype(np.float64) ** -smoothing
    weights[list(vocabulary.special)] = 0.0
    return weights


def ordinary_ids(vocabulary: Vocabulary) -> Rows:
    """Every id that is no special token."""
    return np.setdiff1d(np.arange(vocabulary.size), np.array(vocabulary.special))


@functools.lru_cache(maxsize=4)  # they cost as much as a batch
def _tables(corpus: Corpus, smoothing: float) -> tuple[NDArray[np.float64], Rows]:
    return sampling_weights(corpus.counts, corpus.vocabulary, smoothing), ordinary_ids(corpus.vocabulary)

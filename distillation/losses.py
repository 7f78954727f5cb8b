"""Losses of span extraction, with and without a teacher.

Legend: B rows, T positions.  `allowed` (B, T) marks the positions that may be chosen: passage tokens and [CLS] (no answer); all other positions,
padding included, get probability 0 on both sides, so that a loss never rewards agreement about them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

MASKED = -1e4  # finite, so that a row's log-softmax has finite gradients; exp(-1e4) is 0 in float32


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss to minimise and its named parts (detached)."""

    total: Tensor  # ()
    parts: dict[str, Tensor]  # name -> ()


def span_cross_entropy(start: Tensor, end: Tensor, starts: Tensor, ends: Tensor, allowed: Tensor) -> Tensor:
    """Mean of the start and the end cross-entropy (Devlin et al. 2018), over allowed positions.  start, end (B, T); starts, ends (B,)."""
    return (F.cross_entropy(_masked(start, allowed), starts) + F.cross_entropy(_masked(end, allowed), ends)) / 2


def span_kl(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], allowed: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of start and end distributions at a temperature, averaged, times temperature squared (Hinton et al. 2015).

    The released DistilBERT script sums over all 384 positions, padding included; here only allowed positions count.
    """
    terms = []
    for s, t in zip(student, teacher, strict=True):
        log_s = F.log_softmax(_masked(s, allowed) / temperature, dim=-1)  # (B, T)
        log_t = F.log_softmax(_masked(t, allowed) / temperature, dim=-1)  # (B, T)
        terms.append(F.kl_div(log_s, log_t, reduction="batchmean", log_target=True))
    return (terms[0] + terms[1]) / 2 * temperature**2


def _masked(logits: Tensor, allowed: Tensor) -> Tensor:
    return logits.float().masked_fill(~allowed, MASKED)

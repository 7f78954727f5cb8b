"""Losses of span extraction, of language modelling and between two models' insides.

Legend: B rows, T positions, N positions taken out of (B, T), H hidden size, V vocabulary, A attention heads.  Every loss is a sum over a micro-batch
divided by `count`, how many units (rows, tokens, masked tokens) the whole optimiser step has: the parts of micro-batches and of processes add up.

`allowed` (B, T) marks the positions that a span may start or end at: passage tokens and [CLS] (no answer); all others, padding included, get
probability 0 on both sides, so that a loss never rewards agreement about them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -1e4  # finite, so that a row's log-softmax has finite gradients; exp(-1e4) is 0 in float32

Spans = tuple[Tensor, Tensor]  # start and end logits, (B, T) each


@dataclass(frozen=True, slots=True)
class LossTerms:
    """The loss to minimise and its named parts (detached)."""

    total: Tensor  # ()
    parts: dict[str, Tensor]  # name -> ()


def span_cross_entropy(start: Tensor, end: Tensor, starts: Tensor, ends: Tensor, allowed: Tensor, count: float) -> Tensor:
    """The start and the end cross-entropy, averaged (Devlin et al. 2018), over allowed positions.  start, end (B, T); starts, ends (B,); count: rows.

    A row whose target is -100 adds nothing.
    """
    first = F.cross_entropy(_masked(start, allowed), starts, reduction="sum")
    return (first + F.cross_entropy(_masked(end, allowed), ends, reduction="sum")) / 2 / count


def span_kl(student: Spans, teacher: Spans, allowed: Tensor, temperature: float, count: float) -> Tensor:
    """KL(teacher || student) of start and end distributions at a temperature, averaged, times temperature squared (Hinton et al. 2015).  count: rows.

    The released DistilBERT script sums over all 384 positions, padding included; here only allowed positions count.
    """
    terms = [soft_targets(_masked(s, allowed), _masked(t, allowed), temperature, count) for s, t in zip(student, teacher, strict=True)]
    return (terms[0] + terms[1]) / 2


def span_ensemble(teachers: Sequence[Spans], allowed: Tensor, temperature: float) -> Spans:
    """Start and end logits that stand for several teachers (see `ensemble`), over allowed positions."""
    start, end = (ensemble([_masked(spans[side], allowed) for spans in teachers], temperature) for side in (0, 1))
    return start, end


def ensemble(teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """Logits whose softmax at `temperature` is the mean of the teachers' probabilities at it (the ensembles of Bucila et al. 2006 average so).

    teachers: logits (..., V), one for each; a single one is given back as it is.
    """
    if len(teachers) == 1:
        return teachers[0]
    logs = torch.stack([F.log_softmax(logits.float() / temperature, dim=-1) for logits in teachers])  # (teachers, ..., V)
    return (torch.logsumexp(logs, dim=0) - torch.tensor(float(len(teachers))).log()) * temperature


def soft_targets(student: Tensor, teacher: Tensor, temperature: float, count: float) -> Tensor:
    """KL(teacher || student) at a temperature, times temperature squared (Hinton et al. 2015).  student, teacher: logits (N, V); count: rows."""
    ours = F.log_softmax(student.float() / temperature, dim=-1)  # (N, V)
    theirs = F.log_softmax(teacher.float() / temperature, dim=-1)  # (N, V)
    return F.kl_div(ours, theirs, reduction="sum", log_target=True) * temperature**2 / count


def masked_cross_entropy(logits: Tensor, labels: Tensor, count: float) -> Tensor:
    """Cross-entropy of the masked tokens (Devlin et al. 2018).  logits (N, V), labels (N,); count: masked tokens."""
    return F.cross_entropy(logits.float(), labels, reduction="sum") / count


def cosine(student: Tensor, teacher: Tensor, count: float) -> Tensor:
    """1 - cosine of the last hidden states (Sanh et al. 2019).  student, teacher (N, H); count: tokens."""
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).sum() / count


def hidden_mse(student: Tensor, teacher: Tensor, mask: Tensor, count: float, normalised: bool = False) -> Tensor:
    """Mean squared difference of hidden states (B, T, H): mean over H, sum over tokens; mask (B, T); count: tokens.

    TinyBERT's hidden loss (Jiao et al. 2020, equation 8) and MobileBERT's feature-map transfer (Sun et al. 2020, equation 2).  The released TinyBERT
    averages over padding as well, which then learns to look alike; here it does not count.
    normalised: each state first gets mean 0 and variance 1, as in MobileBERT's released code, which leaves both to the feature statistics.
    """
    kept = mask.bool()
    ours, theirs = student[kept].float(), teacher[kept].float()  # (N, H)
    if normalised:
        ours, theirs = (F.layer_norm(states, states.shape[-1:]) for states in (ours, theirs))
    return (ours - theirs).square().mean(dim=-1).sum() / count


def feature_statistics(student: Tensor, teacher: Tensor, mask: Tensor, count: float) -> tuple[Tensor, Tensor]:
    """How far the mean and the variance of each hidden state (B, T, H) are apart: squared for the mean, absolute for the variance; count: tokens.

    MobileBERT's (Sun et al. 2020, section 4.3.3; the two measures are those of its released code, factors beta and gamma).
    """
    kept = mask.bool()
    ours, theirs = student[kept].float(), teacher[kept].float()  # (N, H)
    means = (ours.mean(dim=-1) - theirs.mean(dim=-1)).square().sum()
    variances = (ours.var(dim=-1, correction=0) - theirs.var(dim=-1, correction=0)).abs().sum()
    return means / count, variances / count


def attention_mse(student: Tensor, teacher: Tensor, mask: Tensor, count: float) -> Tensor:
    """Mean squared difference of attention scores before softmax (B, A, T, T), as TinyBERT (Jiao et al. 2020, equation 7); count: tokens.

    Pairs with padding on either side do not count: a mean over the heads and over the keys of each query, summed over queries.  (The released code
    averages over all pairs of a batch; where rows are equally long that is the same up to its count of padding.)
    """
    kept = mask.float()  # (B, T)
    squares = (student.float() - teacher.float()).square().mean(dim=1)  # (B, T, T)
    of_query = (squares * kept[:, None, :]).sum(dim=-1) / kept.sum(dim=-1, keepdim=True)  # (B, T); a product of matrices would be in fp16 again
    return (of_query * kept).sum() / count


def attention_kl(student: Tensor, teacher: Tensor, mask: Tensor, count: float) -> Tensor:
    """KL(teacher || student) of attention distributions, from scores before softmax (B, A, T, T): mean over heads, sum over queries; count: tokens.

    MobileBERT's attention transfer (Sun et al. 2020, equation 3).
    """
    keys = mask.bool()[:, None, None, :]  # (B, 1, 1, T)
    ours, theirs = (F.log_softmax(scores.float().masked_fill(~keys, MASKED), dim=-1) for scores in (student, teacher))  # (B, A, T, T)
    of_query = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1).mean(dim=1)  # (B, T)
    return (of_query * mask).sum() / count


def patient(student: Tensor, teacher: Tensor, count: float) -> Tensor:
    """Mean squared difference of [CLS] states of length 1 (Sun et al. 2019, equation 7).  student, teacher (B, H); count: rows.

    The mean over H is that of the released code, for which its beta (10 to 1000) was chosen; the paper's equation sums.
    """
    ours, theirs = (F.normalize(states.float(), dim=-1) for states in (student, teacher))  # (B, H)
    return (ours - theirs).square().mean(dim=-1).sum() / count


def _masked(logits: Tensor, allowed: Tensor) -> Tensor:
    return logits.float().masked_fill(~allowed, MASKED)

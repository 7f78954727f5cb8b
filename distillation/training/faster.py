"""What PyTorch does slowly in a training step on a CPU, done faster: attention, and dropout.

Its fused attention is fast forward, but backward in bf16 several times as slow as matrix products are, and it has no dropout; its dropout draws one
random number for each element, on one core.

Legend: B rows, A attention heads, T positions, D size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["FasterOnCPU", "attention", "dropout"]

LANE = 16  # random bits for each element, so a rate is rounded to one in 2^16


class FasterOnCPU(TorchFunctionMode):
    """While it is entered, `attention` and `dropout` stand in for PyTorch's on tensors of a CPU, where that pays.

    Models need not know.  In fp32 without dropout the fused attention is as fast, and without gradients there is nothing to win.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention and len(args) < 6 and _attention_pays(args[0] if args else given["query"], given):
            return attention(*args, **{name: value for name, value in given.items() if name not in ("is_causal", "enable_gqa")})  # both are false
        if func is F.dropout and len(args) == 1 and _dropout_pays(args[0], **given):
            return dropout(args[0], given["p"])
        return func(*args, **given)


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, scale: float | None = None
) -> Tensor:
    """softmax(Q K^T / sqrt(D) + mask) V (Vaswani et al. 2017, section 3.2.1), with arguments of `scaled_dot_product_attention`.

    query, key, value: (B, A, T, D); attn_mask: added to the scores, or true where a position may be looked at, of a shape that broadcasts to
    (B, A, T, T).  Returns (B, A, T, D).  The (B, A, T, T) probabilities are kept for the way back, in the type of the query.
    """
    with torch.autocast(query.device.type, enabled=False):  # it would compute the softmax in fp32 and keep that
        scores = (query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)) @ key.transpose(-1, -2)
        if attn_mask is not None:
            least = torch.finfo(scores.dtype).min  # fp32's least would be infinite in bf16, and a row of padding alone not a number
            truths = attn_mask.dtype == torch.bool
            scores = scores.masked_fill(~attn_mask, least) if truths else scores + attn_mask.clamp(min=least).to(scores.dtype)
        return dropout(scores.softmax(-1), dropout_p) @ value


def dropout(values: Tensor, rate: float) -> Tensor:
    """Each value 0 with probability `rate`, else divided by 1 - rate (Srivastava et al. 2014, section 10), from PyTorch's default generator."""
    dropped = round(rate * 2**LANE)  # of 2^16 equally probable numbers, so many are dropped
    if not 0 < dropped < 2**LANE:  # none or all
        return F.dropout(values, rate)
    drawn = torch.empty(-(-values.numel() * LANE // 64), dtype=torch.int64).random_(-(2**63), None)
    lanes = drawn.view(torch.int16)[: values.numel()].view(values.shape)
    kept: Tensor = (lanes >= dropped - 2 ** (LANE - 1)).to(values.dtype)
    return values * kept.mul_(1 / (1 - rate))


def _attention_pays(query: Tensor, given: Mapping[str, Any]) -> bool:
    slow = query.dtype == torch.bfloat16 or bool(given.get("dropout_p"))
    return query.device.type == "cpu" and query.requires_grad and slow and not given.get("is_causal") and not given.get("enable_gqa")


def _dropout_pays(values: Tensor, p: float, training: bool, inplace: bool) -> bool:
    return values.device.type == "cpu" and training and p > 0 and not inplace

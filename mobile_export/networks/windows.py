"""What every exported network reads off the token ids of a window `[CLS] question [SEP] passage [SEP] padding`: its mask, segments and positions.

Shapes: T token positions of one window (a phone asks one question at a time), V words, P positions, E size of the word vectors, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mobile_export.checkpoint.vocabulary import Markers

FLOAT16_MAX = 65504.0
"""The largest finite float16."""

MASKED = -1e4
"""Added to the attention scores of padding.  float16 ends at 65504; exp(-1e4) is zero in every precision, and a row where all is masked stays finite.
Apple's own Neural Engine code uses the same value (ml-ane-transformers)."""

SAFE_EPSILON = 2.0**-23
"""Least LayerNorm epsilon of an export, 1.19e-7.  BERT's 1e-12 is zero in float16, where a constant row would then divide by zero.  This one is
exact in float16 (a subnormal, like the 1e-7 of ml-ane-transformers: the least normal float16, 6.1e-5, would be felt) and far below the variances
that occur; `checks.py` measures and bounds its effect on the logits of each checkpoint."""


def made_windows(vocabulary: int, markers: Markers, length: int, seed: int = 0) -> list[Tensor]:
    """Windows (1, T) `[CLS] question [SEP] passage [SEP] padding` to measure a network on.

    Random words, full, half full and the shortest; one word over and over; and padding alone, which no tokenizer makes, last.
    """
    generator = torch.Generator().manual_seed(seed + length)
    special = {markers.pad, markers.sep, markers.cls}
    word = next(i for i in range(vocabulary) if i not in special)
    half = max(8, length // 2 + 1)
    windows = []
    for filled, vary in ((length, True), (half, True), (6, True), (half, False)):
        ids = torch.randint(vocabulary, (1, length), generator=generator, dtype=torch.int32)
        ids[(ids == markers.pad) | (ids == markers.sep)] = word
        if not vary:
            ids[:] = ids[0, 1]
        ids[0, filled // 3], ids[0, filled - 1], ids[0, filled:] = markers.sep, markers.sep, markers.pad
        ids[0, 0] = markers.cls
        windows.append(ids)
    return [*windows, torch.full((1, length), markers.pad, dtype=torch.int32)]


class WindowNetwork(nn.Module):
    """Token ids (1, T) int32 to start and end logits (1, T).  The families and layouts say how, in `encode`.

    The attention mask and BERT's token types are read off the ids: padding is the pad id, and the second segment is what follows the first [SEP],
    up to the padding.  Both hold for every window `[CLS] question [SEP] passage [SEP]`, as long as a [SEP] or [PAD] that a user types is taken for
    ordinary characters (as `pocketqa.features` does).  This leaves one input, so that packages with several lengths load before iOS 18 too, where
    only one input may have enumerated shapes.  All of it is integer arithmetic, exact in any precision.

    words (V, E), positions (P, H), token_types (2, H) or None where the family has none.
    lengths: with one length the graph is fixed, positions are constants; with several it slices them by the length of its input.
    """

    def __init__(self, words: Tensor, positions: Tensor, token_types: Tensor | None, markers: Markers, lengths: Sequence[int]) -> None:
        super().__init__()
        capacity = max(lengths)
        if capacity > positions.shape[0]:
            raise ValueError(f"length {capacity} exceeds the {positions.shape[0]} positions of the checkpoint")
        self.fixed = len(lengths) == 1
        self.markers = markers
        self.words = _parameter(words)
        self.token_types = None if token_types is None else _parameter(token_types)
        self.register_buffer("position_table", positions[None, :capacity].detach(), persistent=False)  # (1, P, H) trimmed to what is used
        self.register_buffer("position_ids", torch.arange(capacity, dtype=torch.int32)[None], persistent=False)  # (1, P)

    position_table: Tensor
    position_ids: Tensor

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end logits (1, T) of ids (1, T)."""
        is_token = input_ids.ne(self.markers.pad)  # (1, T)
        words = nn.functional.embedding(input_ids, self.words)  # (1, T, E)
        attention_bias = (is_token.float() - 1.0) * -MASKED  # (1, T) 0 on tokens, MASKED on padding
        return self.encode(words, self._places(input_ids, is_token), attention_bias)

    def encode(self, words: Tensor, places: Tensor, attention_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end logits (1, T) of word vectors (1, T, E), position and segment vectors (1, T, H), and what is added to scores (1, T)."""
        raise NotImplementedError

    def _places(self, input_ids: Tensor, is_token: Tensor) -> Tensor:
        position_ids, position_table = self.position_ids, self.position_table
        if not self.fixed:
            length = input_ids.shape[1]
            position_ids, position_table = position_ids[:, :length], position_table[:, :length]
        if self.token_types is None:
            return position_table
        is_sep = input_ids.eq(self.markers.sep)  # (1, T)
        beyond = torch.full_like(position_ids, self.position_ids.shape[1])  # (1, T) a position that no token has
        first_sep = torch.where(is_sep, position_ids, beyond).amin(-1, keepdim=True)  # (1, 1)
        second_segment = position_ids.gt(first_sep).logical_and(is_token)  # (1, T)
        return nn.functional.embedding(second_segment.int(), self.token_types) + position_table


def _parameter(values: Tensor) -> nn.Parameter:
    return values if isinstance(values, nn.Parameter) else nn.Parameter(values, requires_grad=False)


def safe_norm(norm: nn.LayerNorm, epsilon: float) -> nn.LayerNorm:
    """The same LayerNorm, weights shared, with an epsilon of at least `epsilon`."""
    if norm.eps >= epsilon:
        return norm
    safe = nn.LayerNorm(norm.normalized_shape, eps=epsilon)
    safe.weight, safe.bias = norm.weight, norm.bias
    return safe.eval()


def attend(query: Tensor, key: Tensor, value: Tensor, attention_bias: Tensor, heads: int, width: int) -> Tensor:
    """Scaled dot-product attention of A heads of D channels: (1, T, A D) three times to the same; the bias (1, T) is added to each position's scores.

    Heads and width are given, not read off the tensors: shapes that are read become operations of the trace.
    """

    def split(x: Tensor) -> Tensor:
        return x.reshape(1, -1, heads, width).transpose(1, 2)  # (1, A, T, D); -1 keeps T out of the trace

    query = query * width**-0.5  # scaled before the product, which keeps it small in float16
    scores = split(query) @ split(key).transpose(-1, -2) + attention_bias[:, None, None]  # (1, A, T, T)
    return (scores.softmax(-1) @ split(value)).transpose(1, 2).reshape(1, -1, heads * width)

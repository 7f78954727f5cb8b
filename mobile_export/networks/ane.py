"""The network in the layout of Apple's Neural Engine: tensors (1, C, 1, T), linear maps as 1x1 convolutions, one attention head at a time.

The principles are Apple's ("Deploying Transformers on the Apple Neural Engine", machinelearning.apple.com/research/neural-engine-transformers):
channels first and positions last, which the Engine keeps aligned; small tensors per head, which stay in its cache; and products written as
`bchq,bkhc->bkhq`, which it computes without moving data.  Unlike Apple's DistilBERT this has BERT too, enumerated lengths, and a span head.

Shapes: T token positions (K and Q where keys and queries differ), H hidden size, A attention heads, D = H / A, F feed-forward size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mobile_export.checkpoint.vocabulary import Markers
from mobile_export.networks.parts import ACTIVATIONS, Layer, Parts
from mobile_export.networks.windows import SAFE_EPSILON, WindowNetwork

LEAST_GAIN = 1e-6
"""A LayerNorm weight below this counts as this, since the bias is divided by it (see ChannelNorm).  It moves normalised values, of some units, by as
little."""


class AneSpanNetwork(WindowNetwork):
    """BERT and DistilBERT, each position a column."""

    def __init__(self, parts: Parts, markers: Markers, lengths: Sequence[int], epsilon: float = SAFE_EPSILON) -> None:
        super().__init__(parts.words, parts.positions, parts.token_types, markers, lengths)
        self.embedding_norm = ChannelNorm(parts.embedding_norm, epsilon)
        self.layers = nn.ModuleList(AneLayer(layer, parts.heads, ACTIVATIONS[parts.activation], epsilon) for layer in parts.layers)
        self.span_head = as_convolution(parts.span_head)

    def encode(self, words: Tensor, places: Tensor, attention_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end logits (1, T)."""
        hidden = self.embedding_norm((words + places).transpose(1, 2)[:, :, None])  # (1, H, 1, T)
        attention_bias = attention_bias[:, :, None, None]  # (1, K, 1, 1)
        for layer in self.layers:
            hidden = layer(hidden, attention_bias)
        span_logits = self.span_head(hidden)  # (1, 2, 1, T)
        return span_logits[:, 0, 0], span_logits[:, 1, 0]


class AneLayer(nn.Module):
    """Self-attention and feed-forward, each followed by a residual sum and LayerNorm."""

    def __init__(self, layer: Layer, heads: int, activation: Callable[[Tensor], Tensor], epsilon: float) -> None:
        super().__init__()
        self.query, self.key, self.value = as_convolution(layer.query), as_convolution(layer.key), as_convolution(layer.value)
        self.attention_out = as_convolution(layer.attention_out)
        self.feed_in, self.feed_out = as_convolution(layer.feed_in), as_convolution(layer.feed_out)
        self.attention_norm, self.feed_norm = ChannelNorm(layer.attention_norm, epsilon), ChannelNorm(layer.feed_norm, epsilon)
        self.width = layer.query.out_features // heads
        self.activation = activation

    def forward(self, hidden: Tensor, attention_bias: Tensor) -> Tensor:
        """(1, H, 1, T) to (1, H, 1, T)."""
        hidden = self.attention_norm(hidden + self.attention_out(self._attend(hidden, attention_bias)))
        output: Tensor = self.feed_norm(hidden + self.feed_out(self.activation(self.feed_in(hidden))))
        return output

    def _attend(self, hidden: Tensor, attention_bias: Tensor) -> Tensor:
        queries = (self.query(hidden) * self.width**-0.5).split(self.width, 1)  # A x (1, D, 1, Q)
        keys = self.key(hidden).transpose(1, 3).split(self.width, 3)  # A x (1, K, 1, D)
        values = self.value(hidden).split(self.width, 1)  # A x (1, D, 1, K)
        mixed = []
        for query, key, value in zip(queries, keys, values, strict=True):
            scores = torch.einsum("bchq,bkhc->bkhq", query, key) + attention_bias  # (1, K, 1, Q)
            mixed.append(torch.einsum("bkhq,bchk->bchq", scores.softmax(1), value))  # (1, D, 1, Q)
        return torch.cat(mixed, 1)  # (1, H, 1, Q)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of (1, C, 1, T).

    Written as Apple writes it, (normalised + bias / weight) * weight: in this form, and in no other, coremltools fuses all of it into a `layer_norm`
    over axis 1, with the bias multiplied out again.  No square of a centred value, which float16 might not hold, is then left in the program.
    """

    def __init__(self, norm: nn.LayerNorm, epsilon: float) -> None:
        super().__init__()
        weight, bias = norm.weight.detach(), norm.bias.detach()
        gain = torch.where(weight.abs() < LEAST_GAIN, torch.full_like(weight, LEAST_GAIN), weight)  # (C,)
        self.register_buffer("gain", gain[:, None, None], persistent=False)  # (C, 1, 1)
        self.register_buffer("shift", (bias / gain)[:, None, None], persistent=False)  # (C, 1, 1)
        self.epsilon = max(norm.eps, epsilon)

    gain: Tensor
    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(1, C, 1, T) to (1, C, 1, T)."""
        centred = x - x.mean(1, keepdim=True)
        spread = ((centred * centred).mean(1, keepdim=True) + self.epsilon).rsqrt()  # (1, 1, 1, T)
        return (centred * spread + self.shift) * self.gain


def as_convolution(linear: nn.Linear) -> nn.Conv2d:
    """The same map over channels, weights shared."""
    convolution = nn.Conv2d(linear.in_features, linear.out_features, 1, device="meta")
    convolution.weight = nn.Parameter(linear.weight.detach()[..., None, None], requires_grad=False)
    convolution.bias = nn.Parameter(linear.bias.detach(), requires_grad=False)
    return convolution

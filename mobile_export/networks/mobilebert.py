"""MobileBERT (arXiv 2004.02984) as it is exported: bottlenecks, trigram input, stacked feed-forward networks, NoNorm or LayerNorm.

It departs from the order of operations of transformers in two ways, both exact in real numbers:

NoNorm, x * weight + bias, is folded into the linear map before it.  Of a residual sum only the residual is then multiplied:
(linear(x) + r) * weight + bias  =  linear'(x) + r * weight.

With NoNorm nothing keeps activations small: the published google/mobilebert-uncased reaches 1e7 (integration test of transformers), float16 ends at
65504, and float16 exports gave NaN (https://github.com/huggingface/exporters/issues/80).  But every tensor on the way, queries and keys apart, may be
multiplied by a positive constant if the maps that read it are divided by the same.  `fit_range` measures each tensor and moves those that come near
the end of float16 by a power of two, which no bit of a mantissa notices.

Shapes: T token positions, E embedding size, H hidden size, N size between the bottlenecks (H without them), F feed-forward size.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mobile_export.checkpoint.vocabulary import Markers
from mobile_export.networks.parts import ACTIVATIONS
from mobile_export.networks.windows import FLOAT16_MAX, SAFE_EPSILON, WindowNetwork, attend, safe_norm

ROOM = 4.0
"""How far below the end of float16 a tensor stays on the windows that were measured; other windows have other values."""


class MobileSpanNetwork(WindowNetwork):
    """MobileBERT, each position a row.  Holds copies of the weights, since it folds and scales them."""

    def __init__(self, model: Any, markers: Markers, lengths: Sequence[int], epsilon: float = SAFE_EPSILON) -> None:
        embeddings, config = model.mobilebert.embeddings, model.config
        types = embeddings.token_type_embeddings.weight  # (2, H); one row only in models trained on single sentences
        tables = (embeddings.word_embeddings.weight, embeddings.position_embeddings.weight, types if len(types) >= 2 else types.expand(2, -1))
        words, positions, types = (table.detach().clone() for table in tables)
        transform = None
        if config.trigram_input or config.embedding_size != config.hidden_size:
            transform = copy_of(embeddings.embedding_transformation)  # E or 3 E -> H
        norm = normaliser(embeddings.LayerNorm, epsilon)
        if norm is None:
            gain, shift = embeddings.LayerNorm.weight.detach(), embeddings.LayerNorm.bias.detach()
            positions, types = positions * gain + shift, types * gain
            if transform is None:
                words *= gain
            else:
                scale_rows(transform, gain)
        super().__init__(words, positions, types, markers, lengths)
        self.trigram, self.transform, self.norm = config.trigram_input, transform, norm
        self.layers = nn.ModuleList(MobileLayer(layer, config, epsilon) for layer in model.mobilebert.encoder.layer)
        self.span_head = copy_of(model.qa_outputs)  # H -> 2

    def encode(self, words: Tensor, places: Tensor, attention_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end logits (1, T)."""
        if self.trigram:
            around = nn.functional.pad(words, (0, 0, 1, 1))  # (1, T + 2, E)
            words = torch.cat((around[:, 2:], words, around[:, :-2]), 2)  # (1, T, 3 E) next, this, previous
        if self.transform is not None:
            words = self.transform(words)  # (1, T, H)
        hidden = words + places  # (1, T, H)
        if self.norm is not None:
            hidden = self.norm(hidden)
        for layer in self.layers:
            hidden = layer(hidden, attention_bias)
        span_logits = self.span_head(hidden)  # (1, T, 2)
        return span_logits[..., 0], span_logits[..., 1]

    @torch.no_grad()
    def fit_range(self, windows: Iterable[Tensor]) -> int:
        """Scale each tensor that comes near the end of float16 on these windows (1, T), in the weights; returns how many there were.

        LayerNorm does not pass a scale on and needs none.
        """
        if self.norm is not None:
            return 0
        ranges = Ranges(self, windows)
        scale = ranges.scale(self, *filter(None, [self.transform]))
        if self.transform is None:
            self.words.mul_(scale)
        else:
            move(self.transform, 1.0, scale)
        for table in (self.position_table, self.token_types):
            if table is not None:
                table.mul_(scale)
        for layer in cast("Iterable[MobileLayer]", self.layers):
            scale = layer.fit(ranges, scale)
        move(self.span_head, scale, 1.0)
        return ranges.moved


class MobileLayer(nn.Module):
    """Into the bottleneck, self-attention, a stack of feed-forward networks, out of the bottleneck."""

    def __init__(self, layer: Any, config: Any, epsilon: float) -> None:
        super().__init__()
        self.entry = self.shared = self.exit = None
        if config.use_bottleneck:
            self.entry = Joined(layer.bottleneck.input.dense, layer.bottleneck.input.LayerNorm, epsilon)  # H -> N
            if config.key_query_shared_bottleneck and not config.use_bottleneck_attention:
                self.shared = Joined(layer.bottleneck.attention.dense, layer.bottleneck.attention.LayerNorm, epsilon)  # H -> N
            self.exit = Joined(layer.output.bottleneck.dense, layer.output.bottleneck.LayerNorm, epsilon)  # N -> H
        self.bottleneck_attention = config.use_bottleneck_attention
        attention = layer.attention.self
        self.query, self.key, self.value = copy_of(attention.query), copy_of(attention.key), copy_of(attention.value)  # N or H -> N
        self.attention_out = Joined(layer.attention.output.dense, layer.attention.output.LayerNorm, epsilon)  # N -> N
        activation = ACTIVATIONS[config.hidden_act]
        stack = [(feed.intermediate.dense, feed.output.dense, feed.output.LayerNorm) for feed in getattr(layer, "ffn", ())]
        stack.append((layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm))
        self.feeds = nn.ModuleList(FeedForward(feed_in, feed_out, norm, activation, epsilon) for feed_in, feed_out, norm in stack)
        self.heads, self.width = config.num_attention_heads, self.query.out_features // config.num_attention_heads

    def forward(self, hidden: Tensor, attention_bias: Tensor) -> Tensor:
        """(1, T, H) to (1, T, H)."""
        inner = hidden if self.entry is None else self.entry(hidden)  # (1, T, N)
        valued = inner if self.bottleneck_attention else hidden
        attending = valued if self.shared is None else self.shared(hidden)
        query, key, value = self.query(attending), self.key(attending), self.value(valued)  # (1, T, N)
        state = self.attention_out(attend(query, key, value, attention_bias, self.heads, self.width), inner)  # (1, T, N)
        for feed in self.feeds:
            state = feed(state)
        output: Tensor = state if self.exit is None else self.exit(state, hidden)  # (1, T, H)
        return output

    def fit(self, ranges: Ranges, before: float) -> float:
        """Scale what lies inside; from the scale of the layer's input to that of its output."""
        inner = before if self.entry is None else self.entry.fit(ranges, before)
        valued = inner if self.bottleneck_attention else before
        attending = valued if self.shared is None else self.shared.fit(ranges, before)
        move(self.query, attending, 1.0)  # the softmax of their products takes no scale
        move(self.key, attending, 1.0)
        mixed = ranges.scale(self.value)
        move(self.value, valued, mixed)
        state = self.attention_out.fit(ranges, mixed, inner)
        for feed in cast("Iterable[FeedForward]", self.feeds):
            state = feed.fit(ranges, state)
        return state if self.exit is None else self.exit.fit(ranges, state, before)


class FeedForward(nn.Module):
    """One of the stacked feed-forward networks, with its residual sum."""

    def __init__(self, feed_in: nn.Linear, feed_out: nn.Linear, norm: Any, activation: Callable[[Tensor], Tensor], epsilon: float) -> None:
        super().__init__()
        self.feed_in, self.feed_out = copy_of(feed_in), Joined(feed_out, norm, epsilon)  # N -> F -> N
        self.activation = activation

    def forward(self, state: Tensor) -> Tensor:
        """(1, T, N) to (1, T, N)."""
        output: Tensor = self.feed_out(self.activation(self.feed_in(state)), state)
        return output

    def fit(self, ranges: Ranges, before: float) -> float:
        """As that of the layer."""
        wide = ranges.scale(self.feed_in) if self.activation is nn.functional.relu else 1.0  # of the activations only ReLU passes a scale on
        move(self.feed_in, before, wide)
        return self.feed_out.fit(ranges, wide, before)


class Joined(nn.Module):
    """A linear map, the residual where there is one, and normalisation; NoNorm is folded into the map and into what the residual is multiplied by."""

    def __init__(self, linear: nn.Linear, norm: Any, epsilon: float) -> None:
        super().__init__()
        self.linear = copy_of(linear)
        self.norm = normaliser(norm, epsilon)
        gain = None if self.norm else norm.weight.detach().clone()  # (N,) or (H,)
        if gain is not None:
            scale_rows(self.linear, gain)
            self.linear.bias.add_(norm.bias.detach())
        self.register_buffer("gain", gain, persistent=False)

    gain: Tensor | None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """(1, T, in) and (1, T, out) to (1, T, out)."""
        joined: Tensor = self.linear(x)
        if residual is not None:
            joined = joined + (residual if self.gain is None else residual * self.gain)
        return joined if self.norm is None else self.norm(joined)

    def fit(self, ranges: Ranges, before: float, residual: float = 1.0) -> float:
        """As that of the layer; `residual` is the scale of what is added."""
        after = ranges.scale(self, self.linear)  # what the residual is multiplied to lies within the sum of these two
        move(self.linear, before, after)
        if self.gain is not None:
            self.gain.mul_(after / residual)
        return after


class Ranges:
    """The largest values that a network's tensors reach on some windows, and the powers of two that bring them back into float16."""

    def __init__(self, network: MobileSpanNetwork, windows: Iterable[Tensor]) -> None:
        self.moved = 0
        self._peaks: defaultdict[nn.Module, float] = defaultdict(float)
        hooks = [module.register_forward_hook(self._record) for module in network.modules() if isinstance(module, nn.Linear | Joined)]
        hooks.append(network.layers[0].register_forward_pre_hook(lambda _, inputs: self._record(network, (), inputs[0])))
        try:
            for ids in windows:
                network(ids)
        finally:
            for hook in hooks:
                hook.remove()

    def scale(self, *modules: nn.Module) -> float:
        """1, or the power of two by which to multiply a tensor that the outputs of these modules bound together."""
        bound = ROOM * sum(self._peaks[module] for module in modules)
        if not FLOAT16_MAX < bound < math.inf:  # what is not finite in float32 either is for `checks.py` to refuse
            return 1.0
        self.moved += 1
        return 2.0 ** -math.ceil(math.log2(bound / FLOAT16_MAX))

    def _record(self, module: nn.Module, _: Any, output: Tensor) -> None:
        self._peaks[module] = max(self._peaks[module], output.abs().max().item())


def move(linear: nn.Linear, before: float, after: float) -> None:
    """Let a map read what was multiplied by `before` and give what it gave times `after`, in place."""
    linear.weight.mul_(after / before)
    linear.bias.mul_(after)


def copy_of(linear: nn.Linear) -> nn.Linear:
    """The same map with weights of its own, not trained."""
    own = nn.Linear(linear.in_features, linear.out_features, device="meta")
    own.weight, own.bias = (nn.Parameter(values.detach().clone(), requires_grad=False) for values in (linear.weight, linear.bias))
    return own


def scale_rows(linear: nn.Linear, factors: Tensor) -> None:
    """Multiply each output of a map by its factor (out,), in place."""
    linear.weight.mul_(factors[:, None])
    linear.bias.mul_(factors)


def normaliser(norm: nn.Module, epsilon: float) -> nn.LayerNorm | None:
    """A LayerNorm with a safe epsilon, None for NoNorm, which is folded away."""
    return safe_norm(norm, epsilon) if isinstance(norm, nn.LayerNorm) else None

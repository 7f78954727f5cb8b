"""The question-answering network as it is exported: plain torch, one input, float16-safe.

Why not trace the model of transformers?  Its forward casts shapes with `int()`, which coremltools 9.0 cannot read beside numpy 2.4
(https://github.com/apple/coremltools/issues/2633); it builds its mask from the smallest float32, which is -infinity in float16 and turns a
fully padded window into NaN; and it takes two or three inputs that the token ids already determine.  This module holds the same layers, shared
and not copied, in the same order of operations, and `checks.py` compares the two before anything is written.

Shapes: B = 1 rows (a phone asks one question at a time), T token positions, H hidden size, A attention heads, D = H / A, F feed-forward size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pocketqa.errors import FolderError

MASKED = -1e4
"""Added to the attention scores of padding.  float16 ends at 65504; exp(-1e4) is zero in every precision, and a row where all is masked stays finite.
Apple's own Neural Engine code uses the same value (ml-ane-transformers)."""

SAFE_EPSILON = 2.0**-23
"""Least LayerNorm epsilon of an export, 1.19e-7.  BERT's 1e-12 is zero in float16, where a constant row would then divide by zero.  This one is
exact in float16 (a subnormal, like the 1e-7 of ml-ane-transformers: the least normal float16, 6.1e-5, would be felt) and far below the variances
that occur; `checks.py` measures and bounds its effect on the logits of each checkpoint."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
}


@dataclass(frozen=True, slots=True)
class Markers:
    """The token ids that the graph itself looks for."""

    pad: int
    sep: int


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One post-norm transformer layer of BERT or DistilBERT, by the names of BERT."""

    query: nn.Linear  # H -> H
    key: nn.Linear  # H -> H
    value: nn.Linear  # H -> H
    attention_out: nn.Linear  # H -> H
    attention_norm: nn.LayerNorm
    feed_in: nn.Linear  # H -> F
    feed_out: nn.Linear  # F -> H
    feed_norm: nn.LayerNorm


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The weights of a question-answering model, whichever of the two families it is of."""

    words: Tensor  # (V, H)
    positions: Tensor  # (P, H)
    token_types: Tensor | None  # (2, H), None for DistilBERT
    embedding_norm: nn.LayerNorm
    layers: tuple[Layer, ...]
    heads: int
    activation: str
    span_head: nn.Linear  # H -> 2


class SpanNetwork(nn.Module):
    """Token ids (1, T) int32 to start and end logits (1, T).

    The attention mask and BERT's token types are read off the ids: padding is the pad id, and the second segment is what follows the first [SEP],
    up to the padding.  Both hold for every window `[CLS] question [SEP] passage [SEP]`, as long as a [SEP] or [PAD] that a user types is taken for
    ordinary characters (as `pocketqa.features` does).  This leaves one input, so that packages with several lengths load before iOS 18 too, where
    only one input may have enumerated shapes.  All of it is integer arithmetic, exact in any precision.

    epsilon: least LayerNorm epsilon, SAFE_EPSILON for exports; 0 keeps the checkpoint's own.
    lengths: with one length the graph is fixed, positions are constants; with several it slices them by the length of its input.
    """

    def __init__(self, parts: Parts, markers: Markers, lengths: Sequence[int], epsilon: float = SAFE_EPSILON) -> None:
        super().__init__()
        capacity = max(lengths)
        if capacity > parts.positions.shape[0]:
            raise ValueError(f"length {capacity} exceeds the {parts.positions.shape[0]} positions of the checkpoint")
        self.fixed = len(lengths) == 1
        self.markers = markers
        self.words = parts.words
        self.token_types = parts.token_types
        self.embedding_norm = _norm(parts.embedding_norm, epsilon)
        self.layers = nn.ModuleList(TransformerLayer(layer, parts.heads, ACTIVATIONS[parts.activation], epsilon) for layer in parts.layers)
        self.span_head = parts.span_head
        self.register_buffer("position_table", parts.positions[None, :capacity].detach(), persistent=False)  # (1, P, H) trimmed to what is used
        self.register_buffer("position_ids", torch.arange(capacity, dtype=torch.int32)[None], persistent=False)  # (1, P)

    position_table: Tensor
    position_ids: Tensor
    words: Tensor
    token_types: Tensor | None

    def forward(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end logits (1, T) of ids (1, T)."""
        is_token = input_ids.ne(self.markers.pad)  # (1, T)
        hidden = self.embedding_norm(self._embed(input_ids, is_token))  # (1, T, H)
        attention_bias = ((is_token.float() - 1.0) * -MASKED)[:, None, None]  # (1, 1, 1, T) 0 on tokens, MASKED on padding
        for layer in self.layers:
            hidden = layer(hidden, attention_bias)
        span_logits = self.span_head(hidden)  # (1, T, 2)
        return span_logits[..., 0], span_logits[..., 1]

    def _embed(self, input_ids: Tensor, is_token: Tensor) -> Tensor:
        position_ids, position_table = self.position_ids, self.position_table
        if not self.fixed:
            length = input_ids.shape[1]
            position_ids, position_table = position_ids[:, :length], position_table[:, :length]
        embedded = nn.functional.embedding(input_ids, self.words)  # (1, T, H)
        if self.token_types is not None:
            is_sep = input_ids.eq(self.markers.sep)  # (1, T)
            beyond = torch.full_like(position_ids, self.position_ids.shape[1])  # (1, T) a position that no token has
            first_sep = torch.where(is_sep, position_ids, beyond).amin(-1, keepdim=True)  # (1, 1)
            second_segment = position_ids.gt(first_sep).logical_and(is_token)  # (1, T)
            embedded = embedded + nn.functional.embedding(second_segment.int(), self.token_types)
        return embedded + position_table


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each followed by a residual sum and LayerNorm (arXiv 1706.03762, post-norm)."""

    def __init__(self, layer: Layer, heads: int, activation: Callable[[Tensor], Tensor], epsilon: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.attention_out = layer.query, layer.key, layer.value, layer.attention_out
        self.feed_in, self.feed_out = layer.feed_in, layer.feed_out
        self.attention_norm, self.feed_norm = _norm(layer.attention_norm, epsilon), _norm(layer.feed_norm, epsilon)
        self.heads, self.hidden = heads, layer.query.out_features
        self.activation = activation
        self.scale = (self.hidden // heads) ** -0.5

    def forward(self, hidden: Tensor, attention_bias: Tensor) -> Tensor:
        """(1, T, H) to (1, T, H)."""
        query = self._split(self.query(hidden) * self.scale)  # (1, A, T, D) scaled before the product, which keeps it small in float16
        key, value = self._split(self.key(hidden)), self._split(self.value(hidden))  # (1, A, T, D)
        scores = query @ key.transpose(-1, -2) + attention_bias  # (1, A, T, T)
        mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(1, -1, self.hidden)  # (1, T, H)
        hidden = self.attention_norm(hidden + self.attention_out(mixed))
        output: Tensor = self.feed_norm(hidden + self.feed_out(self.activation(self.feed_in(hidden))))
        return output

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1, self.heads, self.hidden // self.heads).transpose(1, 2)  # (1, T, H) -> (1, A, T, D); -1 keeps T out of the trace


def parts_of(model: Any) -> Parts:
    """The weights of a BertForQuestionAnswering or DistilBertForQuestionAnswering, by reference.  Raises FolderError for variants not exported."""
    config = model.config
    if config.model_type == "bert":
        parts = _bert_parts(model)
    elif config.model_type == "distilbert":
        parts = _distilbert_parts(model)
    else:
        raise FolderError(f"Expected a model of type bert or distilbert, found {config.model_type!r}: only BERT and DistilBERT are exported.")
    problems = []
    if parts.activation not in ACTIVATIONS:
        problems.append(f"activation {parts.activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if getattr(config, "position_embedding_type", "absolute") not in (None, "absolute"):
        problems.append(f"position_embedding_type must be 'absolute', found {config.position_embedding_type!r}")
    if getattr(config, "is_decoder", False):
        problems.append("is_decoder must be false: question answering attends to both sides")
    if any(layer.query.out_features != parts.words.shape[1] for layer in parts.layers):
        problems.append("layers with pruned attention heads are not exported")
    if parts.span_head.out_features != 2:
        problems.append(f"the question-answering head must have 2 outputs (start, end), found {parts.span_head.out_features}")
    if problems:
        raise FolderError(f"This checkpoint cannot be exported: {'; '.join(problems)}.")
    return parts


def _bert_parts(model: Any) -> Parts:
    embeddings, config = model.bert.embeddings, model.config
    layers = tuple(
        Layer(
            query=layer.attention.self.query,
            key=layer.attention.self.key,
            value=layer.attention.self.value,
            attention_out=layer.attention.output.dense,
            attention_norm=layer.attention.output.LayerNorm,
            feed_in=layer.intermediate.dense,
            feed_out=layer.output.dense,
            feed_norm=layer.output.LayerNorm,
        )
        for layer in model.bert.encoder.layer
    )
    types = embeddings.token_type_embeddings.weight  # (2, H); one row only in models trained on single sentences
    return Parts(
        words=embeddings.word_embeddings.weight,
        positions=embeddings.position_embeddings.weight,
        token_types=types if types.shape[0] >= 2 else types.expand(2, -1),
        embedding_norm=embeddings.LayerNorm,
        layers=layers,
        heads=config.num_attention_heads,
        activation=_activation_name(config.hidden_act),
        span_head=model.qa_outputs,
    )


def _distilbert_parts(model: Any) -> Parts:
    embeddings, config = model.distilbert.embeddings, model.config
    layers = tuple(
        Layer(
            query=layer.attention.q_lin,
            key=layer.attention.k_lin,
            value=layer.attention.v_lin,
            attention_out=layer.attention.out_lin,
            attention_norm=layer.sa_layer_norm,
            feed_in=layer.ffn.lin1,
            feed_out=layer.ffn.lin2,
            feed_norm=layer.output_layer_norm,
        )
        for layer in model.distilbert.transformer.layer
    )
    return Parts(
        words=embeddings.word_embeddings.weight,
        positions=embeddings.position_embeddings.weight,
        token_types=None,
        embedding_norm=embeddings.LayerNorm,
        layers=layers,
        heads=config.n_heads,
        activation=_activation_name(config.activation),
        span_head=model.qa_outputs,
    )


def _activation_name(value: Any) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", repr(value))


def _norm(norm: nn.LayerNorm, epsilon: float) -> nn.LayerNorm:
    """The same LayerNorm, weights shared, with an epsilon of at least `epsilon`."""
    if norm.eps >= epsilon:
        return norm
    safe = nn.LayerNorm(norm.normalized_shape, eps=epsilon)
    safe.weight, safe.bias = norm.weight, norm.bias
    return safe.eval()

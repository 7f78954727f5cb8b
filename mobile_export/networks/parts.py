"""The weights of a question-answering model of transformers, by reference, and what is refused because no exported network computes it.

Shapes: V words, P positions, H hidden size, F feed-forward size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mobile_export.checkpoint.sources import MODEL_TYPES
from pocketqa.errors import FolderError

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": nn.functional.gelu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "relu": nn.functional.relu,
}


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


def parts_of(model: Any) -> Parts:
    """The weights of a BertForQuestionAnswering or DistilBertForQuestionAnswering that `check_exportable` has passed, by reference."""
    return _bert_parts(model) if model.config.model_type == "bert" else _distilbert_parts(model)


def check_exportable(model: Any) -> None:
    """Refuse what no exported network computes.  Raises FolderError that says all of it."""
    config = model.config
    if config.model_type not in MODEL_TYPES:
        raise FolderError(
            f"Expected a model of type {', '.join(MODEL_TYPES)}, found {config.model_type!r}: only BERT, DistilBERT and MobileBERT are exported."
        )
    problems = []
    activation = _activation_name(config.activation if config.model_type == "distilbert" else config.hidden_act)
    if activation not in ACTIVATIONS:
        problems.append(f"activation {activation!r} is not one of {', '.join(ACTIVATIONS)}")
    if getattr(config, "position_embedding_type", "absolute") not in (None, "absolute"):
        problems.append(f"position_embedding_type must be 'absolute', found {config.position_embedding_type!r}")
    if getattr(config, "is_decoder", False):
        problems.append("is_decoder must be false: question answering attends to both sides")
    if getattr(config, "pruned_heads", None):
        problems.append("layers with pruned attention heads are not exported")
    if model.qa_outputs.out_features != 2:
        problems.append(f"the question-answering head must have 2 outputs (start, end), found {model.qa_outputs.out_features}")
    if problems:
        raise FolderError(f"This checkpoint cannot be exported: {'; '.join(problems)}.")


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

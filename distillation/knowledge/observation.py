"""What a model computes inside: hidden states, and attention scores before softmax.

Legend: B rows, T positions, H hidden size, A attention heads, D size of a head.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel

# model type -> where its layers are, and the query and key products in each
LAYERS = {"bert": "encoder.layer", "distilbert": "transformer.layer", "mobilebert": "encoder.layer"}
PRODUCTS = {
    "bert": ("attention.self.query", "attention.self.key"),
    "distilbert": ("attention.q_lin", "attention.k_lin"),
    "mobilebert": ("attention.self.query", "attention.self.key"),
}


@dataclass(frozen=True, slots=True, eq=False)
class Observed:
    """One forward pass of an encoder."""

    last: Tensor  # (B, T, H)
    states: tuple[Tensor, ...]  # (B, T, H) each: the embeddings, then what each layer leaves; empty unless asked for
    scores: Mapping[int, Tensor]  # layer from 0 -> (B, A, T, T), scaled, before mask and softmax


def observe(model: PreTrainedModel, inputs: Mapping[str, Tensor], states: bool, scores: Collection[int]) -> Observed:
    """Run the encoder of a BERT, DistilBERT or MobileBERT, whatever its head.

    inputs: its keyword arguments; states: whether hidden states are wanted; scores: layers whose attention scores are.  The scores are multiplied out
    of queries and keys caught on their way, so that the model itself stays on its fast attention path, which keeps none.
    """
    encoder = cast(Any, model.base_model)
    caught: dict[tuple[int, int], Tensor] = {}

    def keep(layer: int, side: int) -> Any:
        def hook(module: nn.Module, given: object, out: Tensor) -> None:
            caught[layer, side] = out

        return hook

    with ExitStack() as stack:
        for layer in scores:
            for side, name in enumerate(PRODUCTS[model.config.model_type]):
                product = layers_of(model)[layer].get_submodule(name)
                stack.callback(product.register_forward_hook(keep(layer, side)).remove)
        out = encoder(**inputs, output_hidden_states=states, return_dict=True)
    heads = int(model.config.num_attention_heads)
    made = {layer: _scores(caught[layer, 0], caught[layer, 1], heads) for layer in scores}
    return Observed(out.last_hidden_state, tuple(out.hidden_states) if states else (), made)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers of an encoder."""
    return cast(nn.ModuleList, model.base_model.get_submodule(LAYERS[model.config.model_type]))


def _scores(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    q, k = (product.unflatten(-1, (heads, -1)).transpose(1, 2) for product in (queries, keys))  # (B, A, T, D)
    products: Tensor = q @ k.transpose(-1, -2)  # (B, A, T, T)
    return products / math.sqrt(q.shape[-1])

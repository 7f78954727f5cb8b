"""Parameters and floating-point operations of BERT-family encoders, counted from a configuration alone, and counted again by PyTorch.

What is counted as an operation: a multiplication and an addition each, so a matrix product (m, k) x (k, n) is 2 m k n.  Counted are the products with
weights (linear layers, MobileBERT's three-token convolution, the span head) and the two products of attention (scores, and the mixing of values).
Not counted, here as in the papers compared with and in PyTorch's own counter: look-ups, additions of biases and residuals, softmax, normalisation,
activation functions.

`count` is arithmetic over a Shape; `count_with_torch` builds the network of transformers on the meta device, which holds no values, adds up its
parameters and lets PyTorch watch one forward pass.  Two ways that share no code, and a test that they agree on every model of the zoo.

Legend: V vocabulary, E width of the word table, H width between layers, A width inside attention, T tokens, L layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mobile_export.checkpoint.geometry import Geometry, build
from pocketqa.errors import OptionsError

SPAN_LOGITS = 2  # start and end
TRIGRAM = 3  # MobileBERT reads the embeddings of a token and of both neighbours (arXiv 2004.02984, section 3.4)


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides the counts of an encoder: every layer has the same linear maps and norms."""

    vocabulary: int  # V
    embedding: int  # E
    hidden: int  # H
    positions: int
    token_types: int
    layers: int  # L
    attention: int  # A
    linears: tuple[tuple[int, int], ...]  # (in, out) of each linear map of one layer
    norms: tuple[int, ...]  # widths of the norms of one layer
    enlarge: tuple[int, int] | None = None  # (in, out) of the map from word embeddings to H, where they differ
    pooler: bool = False  # a map H -> H over the first token, which papers count and question answering does not run


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters by part, and operations of one query by term."""

    embeddings: int
    layers: int
    pooler: int
    span_head: int
    linear_flops: int  # linear maps of all layers, and the enlargement of the embeddings
    attention_flops: int  # scores and mixing
    head_flops: int

    @property
    def network(self) -> int:
        """Parameters of the question-answering network as it runs: no pooler, with its span head."""
        return self.embeddings + self.layers + self.span_head

    @property
    def encoder(self) -> int:
        """Parameters as the papers count them: with the pooler where the model has one, without a head."""
        return self.embeddings + self.layers + self.pooler

    @property
    def flops(self) -> int:
        """Operations of one query through the network as it runs."""
        return self.linear_flops + self.attention_flops + self.head_flops


def shape_of(geometry: Geometry) -> Shape:
    """The shape of a bert, distilbert or mobilebert.  Raises OptionsError for any other type."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(geometry.model_type, **geometry.config)
    if config.model_type == "bert":
        return _bert(config, config.intermediate_size, token_types=config.type_vocab_size, pooler=True)
    if config.model_type == "distilbert":
        return _bert(config, config.hidden_dim, token_types=0, pooler=False)
    if config.model_type == "mobilebert":
        return _mobilebert(config)
    raise OptionsError(f"Expected a geometry of type bert, distilbert or mobilebert to count, found {config.model_type!r}.")


def _bert(config: Any, feed_forward: int, *, token_types: int, pooler: bool) -> Shape:
    hidden = config.hidden_size  # transformers maps DistilBERT's own names (dim, n_layers) to these
    return Shape(
        vocabulary=config.vocab_size,
        embedding=hidden,
        hidden=hidden,
        positions=config.max_position_embeddings,
        token_types=token_types,
        layers=config.num_hidden_layers,
        attention=hidden,
        linears=((hidden, hidden),) * 4 + ((hidden, feed_forward), (feed_forward, hidden)),  # query, key, value, output; feed-forward
        norms=(hidden, hidden),
        pooler=pooler,
    )


def _mobilebert(config: Any) -> Shape:
    """As Google's code builds it (google-research: mobilebert/modeling.py): what queries and keys read depends on two switches."""
    if not config.use_bottleneck:
        raise OptionsError("Expected a MobileBERT with use_bottleneck, found one without: that is a BERT, configure it as one.")
    hidden, inner, feed_forward = config.hidden_size, config.intra_bottleneck_size, config.intermediate_size
    squeezes, query_width, value_width = 1, hidden, hidden
    if config.use_bottleneck_attention:
        query_width = value_width = inner
    elif config.key_query_shared_bottleneck:
        squeezes, query_width = 2, inner
    networks = config.num_feedforward_networks
    return Shape(
        vocabulary=config.vocab_size,
        embedding=config.embedding_size,
        hidden=hidden,
        positions=config.max_position_embeddings,
        token_types=config.type_vocab_size,
        layers=config.num_hidden_layers,
        attention=inner,
        linears=(
            *((hidden, inner),) * squeezes,
            *((query_width, inner), (query_width, inner), (value_width, inner), (inner, inner)),
            *((inner, feed_forward), (feed_forward, inner)) * networks,
            (inner, hidden),
        ),
        norms=(inner,) * (squeezes + 1 + networks) + (hidden,),
        enlarge=(config.embedding_size * (TRIGRAM if config.trigram_input else 1), hidden),
        pooler=config.classifier_activation,
    )


def count(shape: Shape, tokens: int) -> Counts:
    """Counts of one query of `tokens` tokens in a batch of one, by arithmetic."""
    hidden = shape.hidden
    embeddings = shape.vocabulary * shape.embedding + (shape.positions + shape.token_types) * hidden + 2 * hidden
    products = shape.layers * sum(wide * out for wide, out in shape.linears)  # multiply-adds of one token
    layers = products + shape.layers * (sum(out for _, out in shape.linears) + 2 * sum(shape.norms))
    if shape.enlarge is not None:
        wide, out = shape.enlarge
        embeddings += wide * out + out
        products += wide * out
    return Counts(
        embeddings=embeddings,
        layers=layers,
        pooler=hidden * hidden + hidden if shape.pooler else 0,
        span_head=SPAN_LOGITS * (hidden + 1),
        linear_flops=2 * tokens * products,
        attention_flops=2 * 2 * shape.layers * tokens * tokens * shape.attention,
        head_flops=2 * tokens * hidden * SPAN_LOGITS,
    )


def count_with_torch(geometry: Geometry, tokens: int) -> tuple[int, int]:
    """Parameters and operations of the question-answering network, added up and watched by PyTorch, without making its weights."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model: Any = build(geometry)
        ids = torch.ones(1, tokens, dtype=torch.long)  # (1, T)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))
    return sum(parameter.numel() for parameter in model.parameters()), int(counter.get_total_flops())

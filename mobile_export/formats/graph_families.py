"""What BERT, DistilBERT and MobileBERT compute, as ONNX nodes that engines run fast whatever the number and the length of the windows.

A trace of the models of transformers computes the same, but more slowly where lengths vary.  Here

    heads are split by constant shapes, in which 0 keeps a dimension; a trace reads each shape off a tensor, in a chain of small nodes;
    the mask is what is added to the scores, (B, 1, 1, T), made once; DistilBERT's in transformers is expanded to (B, A, T, T) for a Where, with which
        OpenVINO does not fuse the attention of the first layer when lengths vary;
    scores are scaled after the product, where both engines do it on the way: ONNX Runtime as a factor of the product, OpenVINO within its fused
        attention;
    keys are turned in two steps, of which OpenVINO takes the second into the product; one Transpose of all axes is a slow copy.

Query, key and value stay three products: one of concatenated weights was no faster in either engine, since what it gives has to be cut apart.

Shapes: B rows, T token positions, E embedding size, H hidden size, A attention heads, D channels of a head, N = A D (which is H but in MobileBERT),
F feed-forward size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mobile_export.formats.graph import GraphWriter
from mobile_export.networks.parts import check_exportable, parts_of
from mobile_export.networks.windows import MASKED
from pocketqa.runtimes.loading import OUTPUTS

END = 2**31 - 1  # of a slice that ends where its tensor does


def write_network(graph: GraphWriter, model: Any) -> Sequence[str]:
    """Write all nodes from token ids, mask and token types (B, T) to start and end logits (B, T); returns the inputs that the family has.

    Raises FolderError for variants that are not exported.
    """
    check_exportable(model)
    graph.scope = "embeddings"
    hidden = _embed(graph, model)  # (B, T, H)
    graph.scope = "mask"
    attention_bias = _attention_bias(graph)  # (B, 1, 1, T)
    layers = _mobile_layers if model.config.model_type == "mobilebert" else _layers
    hidden = layers(graph, model, hidden, attention_bias)
    graph.scope = "head"
    logits = _linear(graph, hidden, model.qa_outputs)  # (B, T, 2)
    for column, name in enumerate(OUTPUTS):
        graph.node("Gather", logits, graph.constant(column), axis=2, name=name)  # (B, T)
    return ("input_ids", "attention_mask", *(("token_type_ids",) if _typed(model) else ()))


def _embed(graph: GraphWriter, model: Any) -> str:
    """Embedded tokens (B, T, H)."""
    embeddings, config = model.base_model.embeddings, model.config
    hidden = _look_up(graph, embeddings.word_embeddings, "input_ids")  # (B, T, E)
    if config.model_type == "mobilebert":
        hidden = _mobile_words(graph, embeddings, config, hidden)  # (B, T, H)
    table = graph.parameter(embeddings.position_embeddings.weight)
    length = graph.node("Shape", "input_ids", start=1, end=2)  # (1,)
    # Of a window longer than the table there are fewer rows than tokens, which no engine adds.
    positions = graph.node("Slice", table, graph.constant([0]), length, graph.constant([0]))  # (T, H)
    hidden = graph.node("Add", hidden, positions)
    if _typed(model):
        hidden = graph.node("Add", hidden, _look_up(graph, embeddings.token_type_embeddings, "token_type_ids"))
    elif hasattr(embeddings, "token_type_embeddings"):  # one row, which every token has
        hidden = graph.node("Add", hidden, graph.parameter(embeddings.token_type_embeddings.weight))
    return _norm(graph, hidden, embeddings.LayerNorm)


def _typed(model: Any) -> bool:
    """Whether it tells the question's tokens from the passage's."""
    embeddings = model.base_model.embeddings
    return hasattr(embeddings, "token_type_embeddings") and len(embeddings.token_type_embeddings.weight) > 1


def _attention_bias(graph: GraphWriter) -> str:
    """What is added to the scores, (B, 1, 1, T): 0 on tokens, MASKED on padding."""
    mask = graph.node("Cast", "attention_mask", to=1)  # (B, T) float32
    bias = graph.node("Mul", graph.node("Sub", mask, graph.constant(1.0)), graph.constant(-MASKED))
    return graph.node("Reshape", bias, graph.constant([0, 1, 1, -1]))


def _layers(graph: GraphWriter, model: Any, hidden: str, attention_bias: str) -> str:
    """The layers of BERT (TinyBERT too, which is a BERT of other sizes) and DistilBERT."""
    parts = parts_of(model)
    for number, layer in enumerate(parts.layers):
        graph.scope = f"layer.{number}"
        query, key, value = (_linear(graph, hidden, linear) for linear in (layer.query, layer.key, layer.value))  # (B, T, H) each
        mixed = _attend(graph, query, key, value, attention_bias, parts.heads, layer.query.out_features // parts.heads)
        hidden = _joined(graph, mixed, layer.attention_out, layer.attention_norm, hidden)
        hidden = _feed_forward(graph, hidden, layer.feed_in, layer.feed_out, layer.feed_norm, parts.activation)
    return hidden


def _mobile_layers(graph: GraphWriter, model: Any, hidden: str, attention_bias: str) -> str:
    """The layers of MobileBERT: into the bottleneck, self-attention, a stack of feed-forward networks, out of the bottleneck."""
    config = model.config
    for number, layer in enumerate(model.mobilebert.encoder.layer):
        graph.scope = f"layer.{number}"
        inner = attending = valued = hidden  # (B, T, H) where there is no bottleneck
        if config.use_bottleneck:
            inner = _joined(graph, hidden, layer.bottleneck.input.dense, layer.bottleneck.input.LayerNorm)  # (B, T, N)
            if config.use_bottleneck_attention:
                attending = valued = inner
            elif config.key_query_shared_bottleneck:
                attending = _joined(graph, hidden, layer.bottleneck.attention.dense, layer.bottleneck.attention.LayerNorm)  # (B, T, N)
        own, heads = layer.attention.self, config.num_attention_heads
        query, key = (_linear(graph, attending, linear) for linear in (own.query, own.key))  # (B, T, N) each
        value = _linear(graph, valued, own.value)  # (B, T, N)
        mixed = _attend(graph, query, key, value, attention_bias, heads, own.query.out_features // heads)
        state = _joined(graph, mixed, layer.attention.output.dense, layer.attention.output.LayerNorm, inner)
        for feed in (*getattr(layer, "ffn", ()), layer):
            state = _feed_forward(graph, state, feed.intermediate.dense, feed.output.dense, feed.output.LayerNorm, config.hidden_act)
        if config.use_bottleneck:
            state = _joined(graph, state, layer.output.bottleneck.dense, layer.output.bottleneck.LayerNorm, hidden)  # (B, T, H)
        hidden = state
    return hidden


def _mobile_words(graph: GraphWriter, embeddings: Any, config: Any, words: str) -> str:
    """Word vectors (B, T, E) as (B, T, H): those of the next, this and the previous token, mapped."""
    if config.trigram_input:
        first, last, axis = graph.constant([0]), graph.constant([END]), graph.constant([1])
        around = graph.node("Pad", words, graph.constant([0, 1, 0, 0, 1, 0]))  # (B, T + 2, E)
        following = graph.node("Slice", around, graph.constant([2]), last, axis)  # (B, T, E)
        preceding = graph.node("Slice", around, first, graph.constant([-2]), axis)  # (B, T, E)
        words = graph.node("Concat", following, words, preceding, axis=2)  # (B, T, 3 E)
    if config.trigram_input or config.embedding_size != config.hidden_size:
        words = _linear(graph, words, embeddings.embedding_transformation)
    return words


def _attend(graph: GraphWriter, query: str, key: str, value: str, attention_bias: str, heads: int, width: int) -> str:
    """Scaled dot-product attention (arXiv 1706.03762): (B, T, N) three times to the same."""
    apart = graph.constant([0, 0, heads, width])

    def split(x: str) -> str:
        return graph.node("Transpose", graph.node("Reshape", x, apart), perm=[0, 2, 1, 3])  # (B, A, T, D)

    turned = graph.node("Transpose", split(key), perm=[0, 1, 3, 2])  # (B, A, D, T)
    scores = graph.node("Mul", graph.node("MatMul", split(query), turned), graph.constant(width**-0.5))  # (B, A, T, T)
    shares = graph.node("Softmax", graph.node("Add", scores, attention_bias), axis=-1)
    mixed = graph.node("Transpose", graph.node("MatMul", shares, split(value)), perm=[0, 2, 1, 3])  # (B, T, A, D)
    return graph.node("Reshape", mixed, graph.constant([0, 0, heads * width]))


def _feed_forward(graph: GraphWriter, state: str, feed_in: nn.Linear, feed_out: nn.Linear, norm: nn.Module, activation: str) -> str:
    """Two linear maps with the activation between them, and the residual: (B, T, N) to the same."""
    wide = ACTIVATIONS[activation](graph, _linear(graph, state, feed_in))  # (B, T, F)
    return _joined(graph, wide, feed_out, norm, state)


def _joined(graph: GraphWriter, x: str, linear: nn.Linear, norm: nn.Module, residual: str | None = None) -> str:
    """A linear map, the residual where there is one, and normalisation."""
    mapped = _linear(graph, x, linear)
    return _norm(graph, mapped if residual is None else graph.node("Add", mapped, residual), norm)


def _linear(graph: GraphWriter, x: str, linear: nn.Linear) -> str:
    path = graph.path(linear.weight)
    turned = graph.node("Transpose", graph.parameter(linear.weight), name=f"{path}/Transpose", perm=[1, 0])  # (in, out)
    return graph.node("Add", graph.node("MatMul", x, turned, name=f"{path}/MatMul"), graph.parameter(linear.bias), name=f"{path}/Add")


def _norm(graph: GraphWriter, x: str, norm: Any) -> str:
    """LayerNorm, or MobileBERT's NoNorm."""
    weight, bias = graph.parameter(norm.weight), graph.parameter(norm.bias)
    if isinstance(norm, nn.LayerNorm):
        return graph.node("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)
    return graph.node("Add", graph.node("Mul", x, weight), bias)


def _look_up(graph: GraphWriter, table: Any, ids: str) -> str:
    weight: Tensor = table.weight
    return graph.node("Gather", graph.parameter(weight), ids)


def _gelu(graph: GraphWriter, x: str) -> str:
    """x / 2 (1 + erf(x / sqrt 2)) (arXiv 1606.08415), in the order of operations that engines know as a GELU."""
    spread = graph.node("Add", graph.node("Erf", graph.node("Div", x, graph.constant(math.sqrt(2)))), graph.constant(1.0))
    return graph.node("Mul", graph.node("Mul", x, spread), graph.constant(0.5))


def _gelu_tanh(graph: GraphWriter, x: str) -> str:
    """x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the approximation of the same paper."""
    cube = graph.node("Mul", graph.node("Pow", x, graph.constant(3.0)), graph.constant(0.044715))
    inner = graph.node("Mul", graph.node("Add", x, cube), graph.constant(math.sqrt(2 / math.pi)))
    return graph.node("Mul", graph.node("Mul", x, graph.constant(0.5)), graph.node("Add", graph.node("Tanh", inner), graph.constant(1.0)))


def _relu(graph: GraphWriter, x: str) -> str:
    return graph.node("Relu", x)


ACTIVATIONS: dict[str, Callable[[GraphWriter, str], str]] = {  # those of `mobile_export.networks.parts`
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "relu": _relu,
}

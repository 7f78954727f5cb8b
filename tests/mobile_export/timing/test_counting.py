"""Parameters and operations: figures worked by hand, and PyTorch's own count of every model of the zoo."""

import pytest

from mobile_export.checkpoint.geometry import BERT_BASE, DISTILBERT, Geometry
from mobile_export.timing.counting import count, count_with_torch, shape_of
from mobile_export.timing.zoo_models import ZOO
from pocketqa.errors import OptionsError

TOKENS = 128
SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "vocab_size": 100,
    "max_position_embeddings": 16,
}


def test_a_small_bert_by_hand() -> None:
    counts = count(shape_of(Geometry("small", "bert", SMALL)), 5)
    assert counts.embeddings == 100 * 8 + 16 * 8 + 2 * 8 + 2 * 8
    one_layer = 4 * (8 * 8 + 8) + (8 * 20 + 20) + (20 * 8 + 8) + 2 * (8 + 8)
    assert counts.layers == 3 * one_layer
    assert counts.pooler == 8 * 8 + 8
    assert counts.span_head == 2 * 8 + 2
    assert counts.linear_flops == 3 * 2 * 5 * (4 * 8 * 8 + 2 * 8 * 20)
    assert counts.attention_flops == 3 * (2 * 5 * 5 * 8) * 2  # scores and mixing: 2 heads of 4 each
    assert counts.head_flops == 2 * 5 * 8 * 2
    assert counts.network == counts.embeddings + counts.layers + counts.span_head
    assert counts.encoder == counts.embeddings + counts.layers + counts.pooler


def test_distilbert_has_neither_token_types_nor_pooler() -> None:
    sizes = {"dim": 8, "n_layers": 3, "n_heads": 2, "hidden_dim": 20, "vocab_size": 100, "max_position_embeddings": 16}
    shape = shape_of(Geometry("small", "distilbert", sizes))
    counts, bert = count(shape, 5), count(shape_of(Geometry("small", "bert", SMALL)), 5)
    assert counts.pooler == 0
    assert bert.embeddings - counts.embeddings == 2 * 8
    assert (counts.layers, counts.flops) == (bert.layers, bert.flops)


def test_a_small_mobilebert_by_hand() -> None:
    """The shape of a released layer (shared bottleneck): H 8, inside 4, feed-forward 6 twice, word table of 3."""
    sizes = {
        "vocab_size": 100, "hidden_size": 8, "embedding_size": 3, "intra_bottleneck_size": 4, "intermediate_size": 6, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_feedforward_networks": 2, "max_position_embeddings": 16, "classifier_activation": False,
    }  # fmt: skip
    counts = count(shape_of(Geometry("small", "mobilebert", sizes)), 5)
    assert counts.embeddings == 100 * 3 + (9 * 8 + 8) + 16 * 8 + 2 * 8 + 2 * 8
    maps = 2 * (8 * 4 + 4) + 2 * (4 * 4 + 4) + (8 * 4 + 4) + (4 * 4 + 4) + 2 * (4 * 6 + 6 + 6 * 4 + 4) + (4 * 8 + 8)
    norms = 2 * (4 + 4 + 4 + 4 + 4 + 8)  # two bottlenecks, attention, two feed-forward networks, the way out
    assert counts.layers == 2 * (maps + norms)
    assert counts.pooler == 0
    assert counts.linear_flops == 2 * 5 * (9 * 8 + 2 * (2 * 32 + 2 * 16 + 32 + 16 + 4 * 24 + 32))
    assert counts.attention_flops == 2 * 2 * (2 * 5 * 5 * 4)


def test_the_two_qa_networks_of_the_paper() -> None:
    """Parameters of question-answering checkpoints of this size, as the size table of published files has them."""
    assert count(shape_of(BERT_BASE), TOKENS).network == 108_893_186
    assert count(shape_of(DISTILBERT), TOKENS).network == 66_364_418


@pytest.mark.parametrize("model", ZOO, ids=[model.name for model in ZOO])
def test_pytorch_counts_the_same(model) -> None:
    counts = count(shape_of(model.geometry), TOKENS)
    assert count_with_torch(model.geometry, TOKENS) == (counts.network, counts.flops)


@pytest.mark.parametrize("tokens", [1, 37])
def test_pytorch_counts_the_same_at_other_lengths(tokens: int) -> None:
    geometry = Geometry("two layers", "mobilebert", {"num_hidden_layers": 2})
    assert count_with_torch(geometry, tokens)[1] == count(shape_of(geometry), tokens).flops


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(OptionsError, match="found 'roberta'"):
        shape_of(Geometry("x", "roberta"))
    with pytest.raises(OptionsError, match="use_bottleneck"):
        shape_of(Geometry("x", "mobilebert", {"use_bottleneck": False}))

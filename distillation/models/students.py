"""Students with a language head, and what they start from: layers of a teacher, or a configuration.

Which teacher layers: those evenly spread from the first to the last, layer round(i x (teacher - 1) / (student - 1)); for 12 -> 6 that is
0 2 4 7 9 11, the choice of the released DistilBERT.  A teacher that was grown in blocks (`pocketqa grow`, `pretrain --layers`) holds each layer
of its base first in its block, and a student of the base's depth takes those: 12 grown from 6 gives 0 2 4 6 8 10, the base itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

from torch import nn
from transformers import (
    BertForMaskedLM,
    DistilBertForMaskedLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    MobileBertModel,
    PreTrainedModel,
)

from distillation.models import modeling
from distillation.training.checkpoints import grown_from
from pocketqa.errors import TrainingError

FOUR = 4  # intermediate sizes are four times the hidden size in BERT; MobileBERT's embeddings are a quarter of it, and it has four feed-forwards


def choose_layers(teacher_layers: int, student_layers: int, base_layers: int | None = None) -> tuple[int, ...]:
    """Teacher layers to start a student from (rule above).  base_layers: the depth of what the teacher was grown from, None if it was not.

    Raises TrainingError where the student is deeper than the teacher.
    """
    if not 1 <= student_layers <= teacher_layers:
        raise TrainingError(f"A student of {student_layers} layers cannot start from a teacher of {teacher_layers}. Ask for 1 to {teacher_layers}.")
    if base_layers and student_layers <= base_layers and teacher_layers % base_layers == 0:
        return tuple(layer * (teacher_layers // base_layers) for layer in choose_layers(base_layers, student_layers))
    if student_layers == 1:
        return (0,)
    return tuple(round(i * (teacher_layers - 1) / (student_layers - 1)) for i in range(student_layers))


def layers_of_start(source: str, teacher_layers: int, student_layers: int, given: Sequence[int] | None) -> tuple[tuple[int, ...], str]:
    """The layers of a teacher, loaded from `source`, that a student starts from, and in words how they were chosen.  given: exactly these."""
    if given:
        return tuple(given), "given"
    grown = grown_from(source)
    base = grown["from_layers"] if grown else None
    how = f"those of the {base}-layer base it was grown from" if base else "evenly spread"
    return choose_layers(teacher_layers, student_layers, base), how


def language_student(teacher: PreTrainedModel, layers: Sequence[int], fold_token_type: bool = True) -> DistilBertForMaskedLM:
    """A DistilBERT made of some layers of a BERT or DistilBERT: embeddings, those layers and the whole language head are copied.

    fold_token_type: as in modeling.student_from_teacher.  The decoder stays tied to the word embeddings.
    """
    if not isinstance(teacher, BertForMaskedLM | DistilBertForMaskedLM):
        raise TrainingError(
            f"Expected a BERT or DistilBERT to copy layers from, found {type(teacher).__name__}. Give --hidden, --bottleneck or --student."
        )
    modeling.check_layers(teacher, layers)
    student = DistilBertForMaskedLM(modeling.distilbert_config(teacher.config, len(layers)))
    student.load_state_dict(modeling.encoder_state(teacher, layers, fold_token_type), strict=False)  # the rest is copied below
    if isinstance(teacher, BertForMaskedLM):
        head: Any = teacher.cls.predictions
        pairs = ((head.transform.dense, student.vocab_transform), (head.transform.LayerNorm, student.vocab_layer_norm))
        bias = head.bias
    else:
        pairs = ((teacher.vocab_transform, student.vocab_transform), (teacher.vocab_layer_norm, student.vocab_layer_norm))
        bias = teacher.vocab_projector.bias
    for theirs, ours in pairs:
        ours.load_state_dict(theirs.state_dict())
    student.vocab_projector.bias.data.copy_(bias.data)
    student.tie_weights()
    return student


def configured_student(
    teacher: Any, layers: int, hidden: int | None = None, heads: int | None = None, intermediate: int | None = None
) -> DistilBertForMaskedLM:
    """A DistilBERT of a geometry of its own, drawn at random; what is not given is the teacher's (intermediate: four times the hidden size).

    teacher: configuration; its vocabulary and positions are taken.  TinyBERT's (Jiao et al. 2020): 4 layers x 312, 12 heads, intermediate 1200, and
    6 x 768.  They are DistilBERTs here, without token types, which general text does not use.
    """
    size = hidden or int(teacher.hidden_size)
    geometry = {"dim": size, "n_heads": heads or int(teacher.num_attention_heads), "hidden_dim": intermediate or FOUR * size}
    if size % geometry["n_heads"]:
        raise TrainingError(f"Expected a hidden size that {geometry['n_heads']} heads divide, found {size}. Give other --heads.")
    if teacher.model_type == "mobilebert":
        raise TrainingError(
            "Expected a BERT or DistilBERT as teacher of a DistilBERT, found a MobileBERT. Give --bottleneck for a MobileBERT student."
        )
    return DistilBertForMaskedLM(modeling.distilbert_config(teacher, layers, **geometry))


def bottleneck_student(
    teacher: PreTrainedModel, layers: int, bottleneck: int, hidden: int | None = None, heads: int | None = None, intermediate: int | None = None
) -> MobileBertForMaskedLM:
    """A MobileBERT: between layers `hidden` wide, inside them `bottleneck` (512 and 128 in Sun et al. 2020), otherwise drawn at random.

    hidden and heads default to the teacher's, so that features and attention can be compared; intermediate to four times the bottleneck.  From a
    MobileBERT teacher (an inverted bottleneck) of the same hidden size the embeddings and the language head are copied, as the paper does.
    """
    config: Any = teacher.config
    size = hidden or int(config.hidden_size)
    embedding = int(config.embedding_size) if config.model_type == "mobilebert" else max(1, size // FOUR)
    student = MobileBertForMaskedLM(
        MobileBertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=getattr(config, "type_vocab_size", 2),
            pad_token_id=config.pad_token_id,
            hidden_size=size,
            embedding_size=embedding,
            intra_bottleneck_size=bottleneck,
            num_hidden_layers=layers,
            num_attention_heads=_fitting(heads or int(config.num_attention_heads), bottleneck),
            intermediate_size=intermediate or FOUR * bottleneck,
            num_feedforward_networks=FOUR,
        )
    )
    if gives_head(teacher, student):
        student.mobilebert.embeddings.load_state_dict(teacher.mobilebert.embeddings.state_dict())
        student.cls.load_state_dict(teacher.cls.state_dict())
        student.tie_weights()
    return student


def gives_head(teacher: PreTrainedModel, student: PreTrainedModel) -> TypeGuard[MobileBertForMaskedLM]:
    """Whether embeddings and language head of a bottleneck student are those of its teacher: of a MobileBERT of the same hidden size they are."""
    return isinstance(teacher, MobileBertForMaskedLM) and student.config.hidden_size == teacher.config.hidden_size


def inverted_bottleneck(config: Any, layers: int, inner: int, hidden: int, heads: int) -> MobileBertModel:
    """The encoder of an inverted-bottleneck BERT, MobileBERT's teacher, drawn at random: `hidden` between layers, `inner` inside them.

    config: whose vocabulary and positions are taken.  IB-BERT-large (Sun et al. 2020, table 1): 24 layers, inner 1024, hidden 512, 4 heads, gelu,
    LayerNorm, one feed-forward of four times `inner`, embeddings of a quarter of `hidden` (128) over three neighbouring tokens.  One departure:
    queries, keys and values are made of the widened input, as the library's layer can take no other where the two sizes differ.
    """
    return MobileBertModel(
        MobileBertConfig(
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=getattr(config, "type_vocab_size", 2),
            pad_token_id=config.pad_token_id,
            hidden_size=hidden,
            embedding_size=max(1, hidden // FOUR),
            intra_bottleneck_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=_fitting(heads, inner),
            intermediate_size=FOUR * inner,
            num_feedforward_networks=1,
            normalization_type="layer_norm",
            hidden_act="gelu",
            use_bottleneck_attention=True,
            key_query_shared_bottleneck=False,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
        ),
        add_pooling_layer=False,
    )


def parameters_of(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def _fitting(heads: int, size: int) -> int:
    if size % heads:
        raise TrainingError(f"Expected an inner size that {heads} heads divide, found {size}. Give other --heads.")
    return heads

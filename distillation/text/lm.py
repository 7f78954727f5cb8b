"""Encoders with a language head: loading them, growing them, and the head applied to chosen positions only.

Legend: N positions, H hidden size, V vocabulary.  A language head is a transform (a product, an activation, a LayerNorm) and a decoder: the matrix of
the word embeddings and a bias (V,).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForMaskedLM,
    BertForMaskedLM,
    BertForQuestionAnswering,
    DistilBertForMaskedLM,
    MobileBertForMaskedLM,
    PreTrainedModel,
)
from transformers.utils import logging

from distillation.models import modeling
from pocketqa.errors import TrainingError

# model type -> the weights that make up its language head, by the beginnings of their names
HEADS = {"bert": ("cls.",), "distilbert": ("vocab_",), "mobilebert": ("cls.",)}
FAMILIES = "BERT, DistilBERT or MobileBERT"


def load_language_model(source: str, new_head: bool = False, **overrides: Any) -> PreTrainedModel:
    """A BertForMaskedLM, DistilBertForMaskedLM or MobileBertForMaskedLM from a folder or Hub name; heads for other tasks are dropped.

    new_head: a checkpoint without a language head gets a new one, drawn from torch's global generator; otherwise it is refused.
    overrides: configuration values to set, such as dropout rates.
    Raises TrainingError.
    """
    model, missing = load_or_start(source, **overrides)
    if missing and not new_head:
        raise no_head(source, missing)
    return model


def no_head(source: str, missing: Sequence[str]) -> TrainingError:
    """The error for a checkpoint without a trained language head."""
    return TrainingError(
        f"{source} has no trained language head (no {missing[0]!r} among its weights). "
        f"Train one with: pocketqa pretrain {source} --corpus TEXT --out {source.rstrip('/')}-mlm"
    )


def load_or_start(source: str, **overrides: Any) -> tuple[PreTrainedModel, list[str]]:
    """As load_language_model with new_head, and the names of the weights of the head that had to be drawn: none where it is trained."""
    config = modeling.load_config(source)
    for key, value in overrides.items():
        setattr(config, key, value)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the library's warning about a new head, which is asked for or refused here
    try:
        model, report = modeling.load_weights(AutoModelForMaskedLM, source, config)
    finally:
        logging.set_verbosity(verbosity)
    head = [key for key in report["missing_keys"] if key.startswith(HEADS[config.model_type])]
    if missing := [key for key in report["missing_keys"] if key not in head]:
        raise TrainingError(
            f"{source} lacks {len(missing)} weights of a {config.model_type} encoder, first {missing[0]!r}. Expected a complete checkpoint."
        )
    return model, head


def grow_language_model(model: PreTrainedModel, layers: int, insert: str) -> BertForMaskedLM:
    """A deeper BERT with the same embeddings and language head (see modeling.grow)."""
    if not isinstance(model, BertForMaskedLM):
        raise TrainingError(f"Expected a BERT to grow, found {type(model).__name__}. Leave out --layers.")
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten, and must not change what comes after
        shallow = BertForQuestionAnswering(model.config)
        shallow.bert.load_state_dict(model.bert.state_dict())
        grown = modeling.grow(shallow, layers, insert)
        deep = BertForMaskedLM(grown.config)
    deep.bert.load_state_dict(grown.bert.state_dict())
    deep.cls.load_state_dict(model.cls.state_dict())
    deep.tie_weights()
    return deep


def hidden_states(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The last hidden state (B, T, H) of the encoder; token types, where there are any, are 0."""
    return cast(Tensor, model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state)


def vocabulary_logits(model: PreTrainedModel, rows: Tensor) -> Tensor:
    """The language head applied to rows (N, H) of the last hidden state: logits (N, V)."""
    if isinstance(model, BertForMaskedLM | MobileBertForMaskedLM):
        return cast(Tensor, model.cls(rows))
    if isinstance(model, DistilBertForMaskedLM):
        return cast(Tensor, model.vocab_projector(model.vocab_layer_norm(model.activation(model.vocab_transform(rows)))))
    raise TrainingError(f"Expected a {FAMILIES} with a language head, found {type(model).__name__}.")


def decoder_bias(model: PreTrainedModel) -> nn.Parameter:
    """The bias (V,) of the language head."""
    return cast(nn.Parameter, cast(Any, model).get_output_embeddings().bias)

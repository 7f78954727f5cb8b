"""Checkpoints as PyTorch models: loading, growing a deeper teacher, cutting a student out of a teacher.

Growing and cutting only copy tensors.  BERT's `bert.encoder.layer.3.attention.self.query` is DistilBERT's
`distilbert.transformer.layer.3.attention.q_lin`; `BERT_TO_DISTILBERT` holds all such pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    BertConfig,
    BertForQuestionAnswering,
    DistilBertConfig,
    DistilBertForQuestionAnswering,
    PretrainedConfig,
    PreTrainedModel,
)

from distillation.training.checkpoints import reason, weight_files
from pocketqa.errors import TrainingError
from pocketqa.folders import ModelFolder, safetensors_header
from pocketqa.types import JSON

BERT_TO_DISTILBERT = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


PICKLED = "pytorch_model.bin"
# Tensor by tensor, so that no head is lost or drawn.
TO_SAFETENSORS = (
    "python -c \"import torch; from safetensors.torch import save_file; weights = torch.load('pytorch_model.bin', weights_only=True); "
    "save_file({name: weight.clone().contiguous() for name, weight in weights.items()}, 'model.safetensors', {'format': 'pt'})\""
)


def load_reader(source: str, new_head: bool = True, **overrides: Any) -> PreTrainedModel:
    """A BERT, DistilBERT or MobileBERT with a question-answering head from a folder or Hub name.

    An encoder without the head gets a new one, drawn from torch's global generator, or with new_head=False is refused; anything else missing is an
    error.
    overrides: configuration values to set, such as dropout rates.
    """
    model, headed = load_or_start(source, **overrides)
    if not headed and not new_head:
        raise TrainingError(
            f"{source} has no trained question-answering head. "
            f"Train one with: pocketqa finetune {source} --data train-v1.1.json --out {source.rstrip('/')}-reader"
        )
    return model


def load_or_start(source: str, **overrides: Any) -> tuple[PreTrainedModel, bool]:
    """As load_reader with new_head, and whether the head is a trained one, not drawn."""
    config = load_config(source)
    for key, value in overrides.items():
        setattr(config, key, value)
    model, report = load_weights(AutoModelForQuestionAnswering, source, config)
    missing = [key for key in report["missing_keys"] if not key.startswith("qa_outputs.")]
    if missing:
        raise TrainingError(
            f"{source} lacks {len(missing)} weights of a {config.model_type} encoder, first {missing[0]!r}. Expected a complete checkpoint."
        )
    return model, not report["missing_keys"]


def load_weights(kind: Any, source: str, config: Any, **options: Any) -> tuple[PreTrainedModel, JSON]:
    """A checkpoint as a model of a `kind` of the library's, in float32, and the library's report on its weights: missing_keys and others.

    Raises CorruptFolder where a local folder is not what its manifest says or its weights are not whole, TrainingError where they do not fit.
    """
    ModelFolder(Path(source)).verify_checkpoint()
    files = weight_files(source)
    if not files and (Path(source) / PICKLED).is_file():
        raise TrainingError(
            f"Expected model.safetensors in {source}, found only {PICKLED}, a format that is not opened here. "
            f"Convert PyTorch weights that you trust once, in that folder, with: {TO_SAFETENSORS}"
        )
    for file in files:
        safetensors_header(file)
    try:
        made = kind.from_pretrained(source, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise TrainingError(f"Expected model.safetensors of a {config.model_type} in {source}: {str(error).splitlines()[0]}") from error
    return cast(tuple[PreTrainedModel, JSON], made)


def load_config(source: str) -> Any:
    """The configuration of a checkpoint, which must be a BERT, DistilBERT or MobileBERT."""
    if Path(source).exists() and not (Path(source) / "config.json").is_file():
        raise TrainingError(f"Expected a Hugging Face folder with config.json at {source}, found none.")
    try:
        settings, _ = PretrainedConfig.get_config_dict(source)
        untold = "model_type" not in settings and {"hidden_size", "num_hidden_layers", "intermediate_size"} <= set(settings)
        # TinyBERT as published, and BERT folders older than the field
        config = BertConfig.from_dict(settings) if untold else AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise TrainingError(f"{source!r} is neither a model folder nor a Hub model that can be reached: {reason(error)}") from None
    if config.model_type not in {"bert", "distilbert", "mobilebert"}:
        raise TrainingError(f"Expected a BERT, DistilBERT or MobileBERT checkpoint, found model type {config.model_type!r} in {source}.")
    return config


def depth(config: Any) -> int:
    """Number of transformer layers of either family."""
    return int(config.num_hidden_layers)


def inner_size(config: Any) -> int:
    """Width of the feed-forward layers of any family."""
    return int(config.hidden_dim if config.model_type == "distilbert" else config.intermediate_size)


def grow(model: BertForQuestionAnswering, layers: int, insert: str = "copy") -> BertForQuestionAnswering:
    """A deeper BERT: each layer of `model` stands where it stood, followed by inserted ones.

    insert="copy": each layer is repeated in place (0 0 1 1 ...; the stacking of Gong et al. 2019, in place).
    insert="quiet": the repeated layers get zero output projections and their predecessor's last LayerNorm, so that at first they pass their input on
        nearly unchanged (after Net2Net's deepening, Chen et al. 2016; exact where that LayerNorm's gain and bias are uniform).
    """
    shallow = depth(model.config)
    if layers < shallow or layers % shallow:
        raise TrainingError(f"A model of {shallow} layers grows to a multiple of {shallow}; found {layers}. Use {2 * shallow}.")
    if insert not in {"copy", "quiet"}:
        raise TrainingError(f"insert must be 'copy' or 'quiet', found {insert!r}.")
    config = BertConfig.from_dict({**model.config.to_dict(), "num_hidden_layers": layers})
    deep = BertForQuestionAnswering(config)
    times = layers // shallow
    source = model.state_dict()
    state = {key: value.clone() for key, value in source.items() if ".encoder.layer." not in key}
    for target in range(layers):
        origin, repeated = divmod(target, times)
        prefix = f"bert.encoder.layer.{origin}."
        for key, value in source.items():
            if key.startswith(prefix):
                state[f"bert.encoder.layer.{target}." + key[len(prefix) :]] = (
                    _quiet(key, value, source, prefix) if repeated and insert == "quiet" else value.clone()
                )
    deep.load_state_dict(state)
    return deep


def _quiet(key: str, value: Tensor, source: dict[str, Tensor], prefix: str) -> Tensor:
    if ".output.dense." in key:
        return torch.zeros_like(value)
    if ".attention.output.LayerNorm." in key:
        return source[prefix + "output.LayerNorm." + key.rsplit(".", 1)[1]].clone()
    return value.clone()


def student_from_teacher(teacher: BertForQuestionAnswering, layers: Sequence[int], fold_token_type: bool = True) -> DistilBertForQuestionAnswering:
    """A DistilBERT made of some layers of a BERT: embeddings, those layers and the head are copied, pooler and token types dropped.

    fold_token_type: add token-type row 0 to every position, so that a student with all layers computes exactly what the teacher does on segment 0.
        The released DistilBERT drops the row instead (fold_token_type=False).
    """
    check_layers(teacher, layers)
    student = DistilBertForQuestionAnswering(distilbert_config(teacher.config, len(layers)))
    state = encoder_state(teacher, layers, fold_token_type)
    state |= {f"qa_outputs.{part}": value.clone() for part, value in teacher.qa_outputs.state_dict().items()}
    student.load_state_dict(state)
    return student


def check_layers(teacher: PreTrainedModel, layers: Sequence[int]) -> None:
    """Raise TrainingError where a teacher lacks one of the layers."""
    outside = [layer for layer in layers if not 0 <= layer < depth(teacher.config)]
    if outside or not layers:
        raise TrainingError(f"Expected layers between 0 and {depth(teacher.config) - 1}, found {list(layers)}.")


def encoder_state(teacher: PreTrainedModel, layers: Sequence[int], fold_token_type: bool = True) -> dict[str, Tensor]:
    """Weights of a DistilBERT's encoder, by name, copied from embeddings and some layers of a BERT or a DistilBERT."""
    bert = teacher.config.model_type == "bert"
    old = "bert.embeddings" if bert else "distilbert.embeddings"
    source = teacher.state_dict()
    positions = source[f"{old}.position_embeddings.weight"].clone()  # (512, H)
    if bert and fold_token_type:
        positions += source[f"{old}.token_type_embeddings.weight"][0]
    state = {
        "distilbert.embeddings.word_embeddings.weight": source[f"{old}.word_embeddings.weight"].clone(),
        "distilbert.embeddings.position_embeddings.weight": positions,
    }
    for part in ("weight", "bias"):
        state[f"distilbert.embeddings.LayerNorm.{part}"] = source[f"{old}.LayerNorm.{part}"].clone()
        for target, origin in enumerate(layers):
            for theirs, ours in BERT_TO_DISTILBERT.items():
                name = f"bert.encoder.layer.{origin}.{theirs}" if bert else f"distilbert.transformer.layer.{origin}.{ours}"
                state[f"distilbert.transformer.layer.{target}.{ours}.{part}"] = source[f"{name}.{part}"].clone()
    return state


def distilbert_config(config: Any, layers: int, **geometry: int) -> DistilBertConfig:
    """A DistilBERT with the vocabulary, positions, sizes and dropout of a BERT or DistilBERT.

    geometry: values to set instead, by DistilBERT's names: dim, n_heads, hidden_dim.
    """
    bert = config.model_type == "bert"
    activation = config.hidden_act if bert else config.activation
    if activation != "gelu":
        raise TrainingError(
            f"Expected gelu, which DistilBERT students use, found {activation!r} in the teacher. Name another teacher, or let `pocketqa distill` "
            "train a MobileBERT (--bottleneck) or a student that you have (--student)."
        )
    sizes = {
        "dim": config.hidden_size,
        "n_heads": config.num_attention_heads,
        "hidden_dim": config.intermediate_size if bert else config.hidden_dim,
    }
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        sinusoidal_pos_embds=False,
        n_layers=layers,
        dropout=config.hidden_dropout_prob if bert else config.dropout,
        attention_dropout=config.attention_probs_dropout_prob if bert else config.attention_dropout,
        initializer_range=config.initializer_range,
        qa_dropout=0.0,
        pad_token_id=config.pad_token_id,
        **(sizes | geometry),
    )


def dropout_rates(model_type: str, dropout: float, attention_dropout: float, head: float | None = None) -> dict[str, float]:
    """The configuration values that set dropout, by the names of a family; head: before a classifier, None leaves it as it is."""
    names = (
        ("dropout", "attention_dropout", "seq_classif_dropout")
        if model_type == "distilbert"
        else ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    )
    rates = zip(names, (dropout, attention_dropout, head), strict=True)
    return {name: rate for name, rate in rates if rate is not None}


def inputs_of(model: nn.Module, ids: Tensor, mask: Tensor, token_types: Tensor) -> dict[str, Tensor]:
    """The keyword arguments a model takes: DistilBERT has no token types."""
    inputs = {"input_ids": ids, "attention_mask": mask}
    if getattr(model, "config").model_type != "distilbert":  # noqa: B009  (nn.Module types attributes as Tensor | Module)
        inputs["token_type_ids"] = token_types
    return inputs

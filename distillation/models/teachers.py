"""Teachers: loading them, and making sure that they and their student speak of the same tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from distillation.models import modeling
from distillation.text import lm
from distillation.training import processes
from distillation.training.checkpoints import save_tokenizer
from pocketqa.errors import TrainingError, VocabularyMismatch
from pocketqa.features import Tokenizer


def language_teachers(sources: Sequence[str]) -> list[PreTrainedModel]:
    """Masked-language models, frozen, in evaluation mode, on this process's device.  Raises TrainingError for one without a trained head."""
    return _frozen([lm.load_language_model(source) for source in sources])


def reading_teachers(sources: Sequence[str]) -> list[PreTrainedModel]:
    """Question-answering models, likewise.  Raises TrainingError for one without a trained head."""
    return _frozen([modeling.load_reader(source, new_head=False) for source in sources])


def check_fit(tokenizer: Tokenizer, positions: int, sources: Sequence[str]) -> None:
    """Raise TrainingError where one of the models has no embedding for some token or position, VocabularyMismatch where they have two tokenizers.

    tokenizer: the first one's; positions: of the longest batch, padding included.
    """
    for source in sources[1:]:
        with tempfile.TemporaryDirectory() as folder:
            save_tokenizer(source, Path(folder))
            other = Tokenizer(Path(folder) / "tokenizer.json").vocabulary_hash
        if other != tokenizer.vocabulary_hash:
            raise VocabularyMismatch(f"Expected one vocabulary, found two, in {sources[0]} and in {source}. Name models that share theirs.")
    for source in sources:
        config = modeling.load_config(source)
        if config.vocab_size < tokenizer.size:
            raise TrainingError(
                f"The tokenizer of {sources[0]} has {tokenizer.size} entries, the model {source} only {config.vocab_size} embeddings: no pair. "
                "Copy the checkpoint again from where it came from."
            )
        if config.max_position_embeddings < positions:
            raise TrainingError(
                f"Expected {positions} positions in {source}, for sequences of --max-tokens with their padding, "
                f"found {config.max_position_embeddings}. Lower --max-tokens."
            )


def check_logits(student: PreTrainedModel, teachers: Sequence[PreTrainedModel], names: Sequence[str]) -> None:
    """Raise VocabularyMismatch where soft targets over the vocabulary would have another size than the student's."""
    for teacher, name in zip(teachers, names, strict=True):
        if teacher.config.vocab_size != student.config.vocab_size:
            raise VocabularyMismatch(
                f"Expected {student.config.vocab_size} entries of the vocabulary, as the student has, found {teacher.config.vocab_size} in {name}. "
                "Name a teacher with the student's embeddings, or start the student from it."
            )


def check_hidden(student: PreTrainedModel, teacher: PreTrainedModel) -> None:
    """Raise TrainingError where last hidden states of two sizes would be compared by their cosine."""
    if student.config.hidden_size != teacher.config.hidden_size:
        raise TrainingError(
            f"The cosine loss needs one hidden size, found {student.config.hidden_size} and {teacher.config.hidden_size}. "
            "Set --alpha-cos 0, and --alpha-hidden for a loss with a projection."
        )


def _frozen(models: list[PreTrainedModel]) -> list[PreTrainedModel]:
    for model in models:
        model.eval().requires_grad_(False)
        nn.Module.to(model, processes.device())
    return models

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


def check_vocabulary(tokenizer: Tokenizer, student: str, teachers: Sequence[str]) -> None:
    """Raise VocabularyMismatch where a teacher's tokenizer is another than the student's."""
    for teacher in teachers:
        with tempfile.TemporaryDirectory() as folder:
            save_tokenizer(teacher, Path(folder))
            other = Tokenizer(Path(folder) / "tokenizer.json").vocabulary_hash
        if other != tokenizer.vocabulary_hash:
            raise VocabularyMismatch(f"Expected one vocabulary, found two, in {student} and in {teacher}. Name a teacher with the student's.")


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

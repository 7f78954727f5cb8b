"""The small types of classification: which tasks there are, their examples, rows and batches.

Legend: B rows, T positions, C classes (1 for a task whose label is a real number).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pocketqa.errors import OptionsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

ENTAILMENT = ("entailment", "not_entailment")


@dataclass(frozen=True, slots=True)
class Task:
    """A task: its columns, its classes and how it is scored.

    first, second, label: the names that a column may have (GLUE's own files and those of the Hub differ); second is empty for single sentences.
    classes: names of the classes in the order of their ids, which a file may give in place of ids; empty for a real number.
    metrics: of pocketqa.task_scores; their mean is the score of the task, as on the leaderboard of GLUE (Wang et al. 2019).
    splits: names of the training split and of the one that is scored.  hub: data set and configuration on the Hugging Face Hub.
    recipe: the preset that suits it, None for the defaults.
    """

    name: str
    title: str
    metrics: tuple[str, ...]
    hub: tuple[str, ...]
    classes: tuple[str, ...] = ("0", "1")
    first: tuple[str, ...] = ("sentence1", "question1", "question", "sentence", "premise", "text")
    second: tuple[str, ...] = ()
    label: tuple[str, ...] = ("label", "gold_label")
    splits: tuple[str, str] = ("train", "dev")
    recipe: str | None = None

    @property
    def outputs(self) -> int:
        """Outputs of a head (C)."""
        return max(1, len(self.classes))

    @property
    def real(self) -> bool:
        """Whether its label is a real number."""
        return not self.classes


def _glue(name: str, title: str, metrics: tuple[str, ...], **more: tuple[str, ...]) -> Task:
    return Task(name, title, metrics, ("glue", name), **more)  # type: ignore[arg-type]


PAIR = ("sentence2", "question2", "sentence", "hypothesis")
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _glue("cola", "CoLA", ("matthews",)),
        _glue("sst2", "SST-2", ("accuracy",)),
        _glue("mrpc", "MRPC", ("accuracy", "f1"), second=(*PAIR, "#2 String"), first=("sentence1", "#1 String"), label=("label", "Quality")),
        _glue("stsb", "STS-B", ("pearson", "spearman"), second=PAIR, classes=(), label=("label", "score")),
        _glue("qqp", "QQP", ("accuracy", "f1"), second=PAIR, label=("label", "is_duplicate")),
        _glue("mnli", "MNLI", ("accuracy",), second=PAIR, classes=("entailment", "neutral", "contradiction"), splits=("train", "dev_matched")),
        _glue("qnli", "QNLI", ("accuracy",), second=PAIR, first=("question",), classes=ENTAILMENT),
        _glue("rte", "RTE", ("accuracy",), second=PAIR, classes=ENTAILMENT),
        _glue("wnli", "WNLI", ("accuracy",), second=PAIR),
        Task("imdb", "IMDb", ("accuracy",), ("stanfordnlp/imdb",), ("neg", "pos"), ("text", "review"), splits=("train", "test"), recipe="imdb"),
    )
}


@dataclass(frozen=True, slots=True)
class TextExample:
    """One example: a text or two, and its label (the id of a class, or a real number)."""

    first: str
    second: str | None
    label: float


@dataclass(frozen=True, slots=True)
class TaskRow:
    """An example as token ids: [CLS] first [SEP], or [CLS] first [SEP] second [SEP]."""

    ids: tuple[int, ...]
    second_from: int  # the position at which the second segment begins; len(ids) where there is none
    label: float


@dataclass(frozen=True, slots=True, eq=False)
class TaskBatch:
    """Tensors of one micro-batch."""

    ids: Tensor  # (B, T)
    token_types: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    labels: Tensor  # (B,) ids of classes, or real numbers
    teacher: Tensor | None  # (B, C) what a teacher says
    tokens: int  # without padding

    @property
    def counts(self) -> dict[str, float]:
        """What the losses are averaged over."""
        return {"rows": len(self.ids)}

    def to(self, device: torch.device) -> TaskBatch:
        """The same on a device."""
        teacher = None if self.teacher is None else self.teacher.to(device)
        return TaskBatch(self.ids.to(device), self.token_types.to(device), self.mask.to(device), self.labels.to(device), teacher, self.tokens)


def plain_name(text: str) -> str:
    """ "SST-2", "sst_2" and "sst2" alike."""
    return text.lower().replace("-", "").replace("_", "")


def task_named(name: str) -> Task:
    """The task of a name, written in any of the usual ways ("SST-2", "sst2", "sts-b").  Raises OptionsError with the names there are."""
    found = TASKS.get(plain_name(name))
    if found is None:
        raise OptionsError(f"Expected one of the tasks {', '.join(TASKS)}, found {name!r}.")
    return found

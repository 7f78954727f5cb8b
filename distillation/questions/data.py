"""Question-answering examples as training windows, and the order in which they are seen.

Legend: W windows, B rows of a batch, T positions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillation.questions.harder import wrong_paragraphs
from pocketqa import squad
from pocketqa.errors import DataError
from pocketqa.features import Tokenizer, collate, gold_spans
from pocketqa.types import GoldAnswer, QAExample, Request, Window, WindowOptions

ROWS, LABELLED, TOKENS = "rows", "labelled", "tokens"  # names of counts
NO_TARGET = -100  # PyTorch's mark of a target that adds nothing to a cross-entropy
ENCODE_AT_ONCE = 512  # questions tokenised in one call
# Positions to a multiple of which a batch is padded: tensors then have few sizes, so that memory which one step frees fits the next.  With every
# length its own, a process that keeps its memory grows to several times what a step needs.
STEP = 8


@dataclass(frozen=True, slots=True)
class DataSource:
    """One training file and the share of its questions to use."""

    path: str
    fraction: float = 1.0

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """ "FILE" or "FILE@0.5"."""
        path, at, fraction = text.rpartition("@")
        if not at:
            return cls(text)
        try:
            value = float(fraction)
        except ValueError:
            return cls(text)  # an @ in a file name
        if not 0 < value <= 1:
            raise DataError(f"Expected a share between 0 and 1 after @ in {text!r}, found {fraction}.")
        return cls(path, value)

    def load(self, seed: int) -> list[QAExample]:
        """The examples of the share, in file order; of a Hub data set without a split its training questions."""
        examples = squad.load(self.path, split="train")
        return examples if self.fraction == 1.0 else squad.load(self.path, max(1, round(self.fraction * len(examples))), seed, "train")


@dataclass(frozen=True, slots=True)
class NegativeOptions:
    """Windows that teach a reader to say "no answer".

    windows: share of the windows that do not hold their passage's answer to keep.
    wrong_paragraph: for so many questions (as a share of all) add the question put to another paragraph of the same article.
    """

    windows: float = 0.5
    wrong_paragraph: float = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class TrainingWindow:
    """A window with its target positions; (0, 0), [CLS], means that it holds no answer, NO_TARGET that nothing is known of it."""

    window: Window
    start: int
    end: int
    wrong_paragraph: bool = False

    @property
    def labelled(self) -> bool:
        """Whether it has targets."""
        return self.start != NO_TARGET


@dataclass(frozen=True, slots=True, eq=False)
class TrainingBatch:
    """Tensors of one step."""

    ids: Tensor  # (B, T)
    token_types: Tensor  # (B, T)
    mask: Tensor  # (B, T)
    allowed: Tensor  # (B, T) passage tokens and [CLS]
    starts: Tensor  # (B,)
    ends: Tensor  # (B,)
    tokens: int  # without padding
    teachers: tuple[tuple[Tensor, Tensor], ...] = ()  # start and end logits (B, T) of each teacher, where they are known already

    @property
    def counts(self) -> dict[str, float]:
        """What the losses are averaged over."""
        return {ROWS: len(self.ids), LABELLED: int((self.starts != NO_TARGET).sum()), TOKENS: self.tokens}

    def to(self, device: torch.device) -> TrainingBatch:
        """The same on a device."""
        ids, token_types, mask = self.ids.to(device), self.token_types.to(device), self.mask.to(device)
        places = self.allowed.to(device), self.starts.to(device), self.ends.to(device)
        teachers = tuple((start.to(device), end.to(device)) for start, end in self.teachers)
        return TrainingBatch(ids, token_types, mask, *places, self.tokens, teachers)


def training_windows(
    examples: Sequence[QAExample], tokenizer: Tokenizer, options: WindowOptions, negatives: NegativeOptions, seed: int
) -> list[TrainingWindow]:
    """Windows of all examples with targets: those that hold the answer, a share of those that do not, and wrong paragraphs.

    examples: usable ones (see `usable`).
    """
    rng = np.random.default_rng(seed)
    made: list[TrainingWindow] = []
    for example, windows in _encoded(examples, tokenizer, options):
        gold = usual_answer(example)
        spans = gold_spans(windows, gold) if gold else [None] * len(windows)
        for window, span in zip(windows, spans, strict=True):
            if span is not None:
                made.append(TrainingWindow(window, *span))
            elif gold is None or rng.random() < negatives.windows:
                made.append(TrainingWindow(window, 0, 0))
    wrong = wrong_paragraphs(examples, round(negatives.wrong_paragraph * len(examples)), seed)
    for _, windows in _encoded(wrong, tokenizer, options):
        made.append(TrainingWindow(windows[int(rng.integers(len(windows)))], 0, 0, wrong_paragraph=True))
    return made


def unlabelled_windows(examples: Sequence[QAExample], tokenizer: Tokenizer, options: WindowOptions) -> list[TrainingWindow]:
    """All windows of questions, usable ones, whose answers, if they have any, are not looked at."""
    return [TrainingWindow(window, NO_TARGET, NO_TARGET) for _, windows in _encoded(examples, tokenizer, options) for window in windows]


def usable(examples: Sequence[QAExample], tokenizer: Tokenizer, options: WindowOptions) -> list[QAExample]:
    """The examples whose question has a token and fits into options.max_question_tokens; the others can give no window."""
    return [example for example in examples if 0 < tokenizer.count_tokens(example.question) <= options.max_question_tokens]


def usual_answer(example: QAExample) -> GoldAnswer | None:
    """The answer most annotators gave, the first of them on a tie; None for an unanswerable question."""
    if not example.answers:
        return None
    counts = Counter(answer.text for answer in example.answers)
    most = max(counts.values())
    return next(answer for answer in example.answers if counts[answer.text] == most)


def padded(longest: int) -> int:
    """The length to which a batch is padded whose longest window has so many tokens."""
    return -(-longest // STEP) * STEP


def epoch_batches(lengths: NDArray[np.int64], batch_tokens: int, seed: int, pool: int = 40) -> list[NDArray[np.int64]]:
    """Indices of each batch of one epoch: shuffled, then length-sorted within pools of `pool` batches, so that padding stays small.

    rows x padded length <= batch_tokens, at least one row.  The same seed gives the same batches.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    per_pool = max(1, round(pool * batch_tokens / max(1.0, float(lengths.mean()))))
    batches: list[NDArray[np.int64]] = []
    for at in range(0, len(order), per_pool):
        part = order[at : at + per_pool]
        part = part[np.argsort(-lengths[part], kind="stable")]
        first = 0
        while first < len(part):
            rows = max(1, batch_tokens // padded(int(lengths[part[first]])))
            batches.append(part[first : first + rows])
            first += rows
    return [batches[i] for i in rng.permutation(len(batches))]


def to_batch(windows: Sequence[TrainingWindow], pad_id: int, teachers: tuple[tuple[Tensor, Tensor], ...] = ()) -> TrainingBatch:
    """Padded tensors of some windows.  teachers: start and end logits (B, T) of each."""
    batch = collate([w.window for w in windows], padded(max(len(w.window) for w in windows)), pad_id)
    allowed = np.zeros(batch.ids.shape, dtype=np.bool_)  # (B, T)
    for row, item in enumerate(windows):
        allowed[row, : len(item.window)] = item.window.context_mask
    allowed[:, 0] = True
    starts, ends = torch.tensor([w.start for w in windows]), torch.tensor([w.end for w in windows])
    arrays = (torch.from_numpy(batch.ids).long(), torch.from_numpy(batch.token_types).long(), torch.from_numpy(batch.mask).long())
    return TrainingBatch(*arrays, torch.from_numpy(allowed), starts, ends, int(batch.mask.sum()), teachers)


def _encoded(examples: Sequence[QAExample], tokenizer: Tokenizer, options: WindowOptions) -> Iterator[tuple[QAExample, tuple[Window, ...]]]:
    for at in range(0, len(examples), ENCODE_AT_ONCE):
        part = examples[at : at + ENCODE_AT_ONCE]
        encoded = tokenizer.encode([Request(e.question, (e.context,)) for e in part], options)
        for example, (first, last) in zip(part, encoded.ranges, strict=True):
            yield example, encoded.windows[first:last]

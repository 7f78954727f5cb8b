"""Examples of a task as rows of token ids, the order in which they are seen, and batches.

Legend: N rows, B rows of a batch, T positions, C classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distillation.glue.classification import Task, TaskBatch, TaskRow, TextExample
from distillation.glue.task_recipe import TaskRecipe
from distillation.training.loop import Step

ENCODE_AT_ONCE = 1024
POOL = 50  # steps whose rows are sorted by length together


def encode(examples: Sequence[TextExample], tokenizer: Any, max_tokens: int) -> tuple[list[TaskRow], int]:
    """Rows of all examples, and how many of them lost tokens: from the end of the longer text, one by one, as BERT's own code does.

    tokenizer: a fast tokenizer of transformers.  Special tokens written in a text ("[SEP]") are taken as ordinary characters.
    """
    rows: list[TaskRow] = []
    cut = 0
    for at in range(0, len(examples), ENCODE_AT_ONCE):
        part = examples[at : at + ENCODE_AT_ONCE]
        firsts, seconds = [example.first for example in part], [example.second or "" for example in part]
        texts = (firsts,) if part[0].second is None else (firsts, seconds)
        whole = tokenizer(*texts, verbose=False, split_special_tokens=True)
        cut += sum(len(ids) > max_tokens for ids in whole["input_ids"])
        found = tokenizer(*texts, truncation="longest_first", max_length=max_tokens, split_special_tokens=True, return_token_type_ids=True)
        for example, ids, types in zip(part, found["input_ids"], found["token_type_ids"], strict=True):
            rows.append(TaskRow(tuple(ids), types.index(1) if 1 in types else len(ids), example.label))
    return rows, cut


def split_rows(rows: Sequence[TaskRow], held_out: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices of the rows to train on and of those kept apart to choose on, both ascending."""
    apart = round(held_out * len(rows))
    order = np.random.default_rng((seed, len(rows))).permutation(len(rows))
    return sorted(order[apart:].tolist()), sorted(order[:apart].tolist())


def make_plan(rows: Sequence[TaskRow], chosen: Sequence[int], recipe: TaskRecipe) -> tuple[list[Step], int]:
    """The steps of all epochs in order, and how many make an epoch; a fraction of an epoch takes its first steps.

    Rows are shuffled, then sorted by length within POOL steps, so that padding stays small.  A step is cut into as many micro-batches as it takes for
    each to have at most recipe.batch_tokens tokens, and at least recipe.accumulation.
    """
    lengths = np.array([len(rows[i].ids) for i in chosen])
    indices = np.array(chosen)
    plan: list[Step] = []
    whole, part = int(recipe.epochs), recipe.epochs - int(recipe.epochs)
    per_epoch = -(-len(chosen) // recipe.batch_rows)
    for epoch in range(whole + (part > 0)):
        steps = _epoch(lengths, recipe.batch_rows, np.random.default_rng((recipe.seed, epoch)))
        if epoch == whole:
            steps = steps[: max(1, round(part * len(steps)))]
        plan += [_micro_batches(indices[step], lengths[step], recipe) for step in steps]
    return plan, per_epoch


def to_batch(rows: Sequence[TaskRow], task: Task, pad_id: int, teacher: Tensor | None = None) -> TaskBatch:
    """Padded tensors of some rows.  teacher (B, C): what a teacher says of them."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)  # (B, T)
    token_types, mask = torch.zeros_like(ids), torch.zeros_like(ids)  # (B, T)
    for number, row in enumerate(rows):
        ids[number, : len(row.ids)] = torch.tensor(row.ids)
        token_types[number, row.second_from : len(row.ids)] = 1
        mask[number, : len(row.ids)] = 1
    labels = torch.tensor([row.label for row in rows], dtype=torch.float32 if task.real else torch.int64)  # (B,)
    return TaskBatch(ids, token_types, mask, labels, teacher, int(mask.sum()))


def rows_hash(rows: Sequence[TaskRow]) -> str:
    """sha256 of all ids, segments and labels in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(np.array((*row.ids, -1, row.second_from), dtype="<i4").tobytes() + np.float64(row.label).tobytes())
    return digest.hexdigest()


def _epoch(lengths: NDArray[np.int64], rows: int, random: np.random.Generator) -> list[NDArray[np.int64]]:
    order = random.permutation(len(lengths))
    steps: list[NDArray[np.int64]] = []
    for at in range(0, len(order), POOL * rows):
        part = order[at : at + POOL * rows]
        part = part[np.argsort(-lengths[part], kind="stable")]
        steps += [part[first : first + rows] for first in range(0, len(part), rows)]
    return [steps[i] for i in random.permutation(len(steps))]


def _micro_batches(indices: NDArray[np.int64], lengths: NDArray[np.int64], recipe: TaskRecipe) -> Step:
    pieces = max(recipe.accumulation, -(-len(indices) * int(lengths.max()) // recipe.batch_tokens))
    return [piece.tolist() for piece in np.array_split(indices, min(pieces, len(indices)))]

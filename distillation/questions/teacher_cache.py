"""What teachers say, kept on disk in float32: start and end logits of each token of training windows, nothing rounded or left out, and what
`distillation/classify.py` keeps of examples.

A cache is a folder teacher-KEY; KEY is a hash of what is read, the teacher's weights and the precision it computes in.  It is made once, as a whole
or not at all.  Logits are memory-mapped from then on, so that neither the teacher nor all of them need to be in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from distillation.models.modeling import inputs_of
from distillation.questions.data import TrainingWindow, padded, to_batch
from distillation.text.corpus_cache import ReadingProgress, remove_leftovers
from distillation.training import checkpoints, processes
from distillation.training.loop import DTYPES
from pocketqa.errors import TrainingError
from pocketqa.folders import SHORT_HASH, atomic_folder, sha256_file
from pocketqa.locks import one_maker

LOGITS, INDEX = "logits.f32", "index.json"
SIDES = 2  # start and end
TOKENS_AT_ONCE = 6000


class TeacherLogits:
    """The start and end logits of one teacher for every window of a training."""

    def __init__(self, folder: Path, lengths: NDArray[np.int64]) -> None:
        """lengths (W,): tokens of each window, in the order in which they were read."""
        self._ends = np.cumsum(lengths)  # (W,)
        self._lengths = lengths
        self._values = np.memmap(folder / LOGITS, dtype="<f4", mode="r", shape=(int(self._ends[-1]), SIDES))

    def of(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits (B, T) of some windows, padded with zeros as their batch is."""
        length = padded(int(self._lengths[list(indices)].max()))
        logits = np.zeros((len(indices), length, SIDES), dtype=np.float32)  # (B, T, 2)
        for row, index in enumerate(indices):
            own = int(self._lengths[index])
            logits[row, :own] = self._values[self._ends[index] - own : self._ends[index]]
        return torch.from_numpy(logits[..., 0].copy()), torch.from_numpy(logits[..., 1].copy())


def windows_hash(windows: Sequence[TrainingWindow]) -> str:
    """sha256 of the tokens of all windows, in order; targets do not count."""
    digest = hashlib.sha256()
    for item in windows:
        for values in (item.window.ids, item.window.token_types):
            digest.update(np.ascontiguousarray(values, dtype="<i8").tobytes() + b"|")
    return digest.hexdigest()


def teacher_logits(
    cache: Path, source: str, windows: Sequence[TrainingWindow], pad_id: int, precision: str, load: Callable[[], PreTrainedModel]
) -> TeacherLogits:
    """The logits of a teacher, from the cache or, the first time, computed into it by the main process while the others wait.

    source: the teacher's folder or Hub name; load: gives the model, and is called only where it has to compute.
    Raises TrainingError for a cache whose bytes have changed, or that cannot be written.
    """
    key = hashlib.sha256(json.dumps([windows_hash(windows), checkpoints.model_key(source), precision]).encode()).hexdigest()
    lengths = np.array([len(item.window) for item in windows], dtype=np.int64)  # (W,)

    def fill(file: Path, model: PreTrainedModel) -> None:
        progress = ReadingProgress(int(lengths.sum()), f"teacher {source}", "windows", processes.say)
        _fill(file, windows, lengths, pad_id, precision, model, progress)

    return TeacherLogits(kept_outputs(cache, source, key, SIDES * int(lengths.sum()), f"{len(windows):,} windows", load, fill), lengths)


def kept_outputs(
    cache: Path, source: str, key: str, numbers: int, what: str, load: Callable[[], PreTrainedModel], fill: Callable[[Path, PreTrainedModel], None]
) -> Path:
    """The folder of the cache that holds so many numbers of a teacher; the first time the main process makes it while the others wait.

    key: hash of everything they depend on; what: is read, in words; load: the teacher; fill: writes what it says to a file, as "<f4".
    Raises TrainingError for a cache whose bytes have changed, or that cannot be written.
    """
    folder = cache / f"teacher-{key[:SHORT_HASH]}"
    if not processes.is_main():
        processes.wait()
    if folder.exists():
        _check(folder, key, 4 * numbers)
        processes.say(f"teacher {source}: logits from the cache {folder}")
    else:
        _make(folder, source, key, numbers, what, load, fill)
    if processes.is_main():
        processes.wait()
    return folder


def _make(
    folder: Path, source: str, key: str, numbers: int, what: str, load: Callable[[], PreTrainedModel], fill: Callable[[Path, PreTrainedModel], None]
) -> None:
    try:
        with one_maker(folder, processes.say):
            if folder.exists():
                processes.say(f"teacher {source}: logits from the cache {folder}, which another run has made")
                return
            model = load()
            processes.say(f"teacher {source}: {what} to read, once, into {folder}")
            remove_leftovers(folder)
            with atomic_folder(folder, replace=True) as made:
                _reserve(made / LOGITS, 4 * numbers)
                fill(made / LOGITS, model)
                index = {"key": key, "teacher": checkpoints.weights_hash(source), "read": what, "sha256": sha256_file(made / LOGITS)}
                (made / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    except checkpoints.NOT_WRITTEN as error:
        raise checkpoints.not_written(folder, error) from error


def _reserve(path: Path, size: int) -> None:
    """Write `size` zero bytes: a full disk is an error here, and would be a fault of the machine in a memory-mapped file."""
    block = bytes(min(size, 1 << 20))
    with path.open("wb") as file:
        for at in range(0, size, len(block)):
            file.write(block[: size - at])


def _fill(
    file: Path,
    windows: Sequence[TrainingWindow],
    lengths: NDArray[np.int64],
    pad_id: int,
    precision: str,
    model: PreTrainedModel,
    progress: ReadingProgress,
) -> None:
    """Compute all logits, longest windows first, so that too little memory shows at once."""
    values = np.memmap(file, dtype="<f4", mode="r+", shape=(int(lengths.sum()), SIDES))
    device, ends = processes.device(), np.cumsum(lengths)
    order = np.argsort(-lengths, kind="stable")
    first = 0
    while first < len(order):
        chosen = order[first : first + max(1, TOKENS_AT_ONCE // int(lengths[order[first]]))]
        first += len(chosen)
        batch = to_batch([windows[i] for i in chosen], pad_id).to(device)
        with torch.inference_mode(), torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32"):
            out = model(**inputs_of(model, batch.ids, batch.mask, batch.token_types))
        both = torch.stack((out.start_logits, out.end_logits), dim=-1).float().cpu().numpy()  # (B, T, 2)
        if not np.isfinite(both).all():
            raise TrainingError(
                f"The teacher's logits are not finite in {precision}: they overflow, or its weights are damaged. Try --precision fp32."
            )
        for row, index in enumerate(chosen):
            values[ends[index] - lengths[index] : ends[index]] = both[row, : lengths[index]]
        progress.done += int(lengths[chosen].sum())
        progress.say(0, first)
        os.utime(file)  # what is written through a map need not show in the file's time, by which leftovers are told
    values.flush()


def _check(folder: Path, key: str, expected: int) -> None:
    """Raise TrainingError where a cache is not what was written."""
    try:
        index = json.loads((folder / INDEX).read_bytes())
        wanted, found = index["sha256"], sha256_file(folder / LOGITS)
        size = (folder / LOGITS).stat().st_size
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"The teacher cache {folder} is damaged: {error!r}. Delete it; it is then made again.") from None
    if wanted != found or index.get("key") != key or size != expected:
        raise TrainingError(
            f"The teacher cache {folder / LOGITS} is damaged: expected sha256 {wanted[:SHORT_HASH]}..., found {found[:SHORT_HASH]}... "
            f"(key {str(index.get('key'))[:SHORT_HASH]}). Delete {folder}; it is then made again."
        )

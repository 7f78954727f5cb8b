"""Model folders packaged once from tiny checkpoints and shared by tests, which must copy before they change anything."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path

import numpy as np

from pocketqa.types import Batch
from tests.tiny import tiny_bert, tiny_distilbert

MAKERS = {"bert": tiny_bert, "distilbert": tiny_distilbert}


@functools.cache
def workspace() -> tempfile.TemporaryDirectory[str]:
    """A folder that lives as long as the test process."""
    return tempfile.TemporaryDirectory(prefix="pocketqa-tests-", ignore_cleanup_errors=True)


def checkpoint(kind: str, cased: bool = False) -> Path:
    """A tiny random checkpoint ("bert" or "distilbert")."""
    return _checkpoint(kind, cased)


def model_folder(kind: str, cased: bool = False) -> Path:
    """The model folder made from `checkpoint(kind, cased)`."""
    return _model_folder(kind, cased)


@functools.cache  # which tells f(x, True) from f(x, cased=True), hence the two functions above
def _checkpoint(kind: str, cased: bool) -> Path:
    return MAKERS[kind](Path(workspace().name) / f"checkpoint-{kind}-{cased}", cased=cased)


@functools.cache
def _model_folder(kind: str, cased: bool) -> Path:
    from mobile_export.package import package

    out = Path(workspace().name) / f"model-{kind}-{cased}"
    package(str(checkpoint(kind, cased)), out, name=f"tiny-{kind}", say=lambda line: None)
    return out


def copy_of(kind: str, target: Path) -> Path:
    """A copy of a model folder, to be changed."""
    shutil.copytree(model_folder(kind), target)
    return target


def random_batch(rows: int, length: int, seed: int = 0) -> Batch:
    """Rows of different lengths, padded, with a question of a quarter of the length."""
    draw = np.random.default_rng(seed)
    ids = draw.integers(5, 100, (rows, length)).astype(np.int32)  # (B, T)
    mask, token_types = np.ones_like(ids), np.zeros_like(ids)  # (B, T)
    token_types[:, length // 4 :] = 1
    for row in range(rows):
        mask[row, length - row * length // (2 * rows) :] = 0
    return Batch(ids * mask, token_types * mask, mask)

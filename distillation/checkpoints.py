"""Trained checkpoints as Hugging Face folders, and the state from which a stopped run goes on exactly.  Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from pocketqa.errors import TrainingError
from pocketqa.folders import atomic_folder, sha256_file, write_manifest
from pocketqa.types import JSON

STATE = "training_state.safetensors"
PROGRESS = "progress.json"


def save_tokenizer(source: str, out: Path) -> None:
    """Write tokenizer.json, vocab.txt and their configuration into a folder."""
    tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True)
    tokenizer.save_pretrained(out)
    tokenizer.save_vocabulary(str(out))


def save_start(model: PreTrainedModel, source: str, out: Path, step: JSON) -> None:
    """Leave an untrained start as a checkpoint folder: weights, tokenizer, manifest last.  Refuses a folder that holds something."""
    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} is not empty. Give another --out or delete it.")
    with atomic_folder(out, replace=out.exists()) as folder:
        model.save_pretrained(folder)
        save_tokenizer(source, folder)
        write_manifest(folder, kind="checkpoint", name=out.name, parent=weights_hash(source), config=step)


def weights_hash(source: str) -> str:
    """sha256 of a checkpoint's weights, or of its name where they lie on the Hub."""
    weights = Path(source) / "model.safetensors"
    return sha256_file(weights) if weights.is_file() else hashlib.sha256(source.encode()).hexdigest()


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: JSON) -> None:
    """Everything the next step depends on: weights, optimiser moments, random generator, position.  The folder appears whole or not at all."""
    tensors: dict[str, Tensor] = {f"model.{name}": value.detach().contiguous() for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value).contiguous() for name, value in state.items()}
    tensors["rng"] = torch.get_rng_state()
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        save_file(tensors, partial / STATE)
        (partial / PROGRESS).write_text(json.dumps(progress, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(f"The checkpoint could not be written to {folder.parent}: {error}. The one before it is untouched.") from error
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


def find_state(folder: Path) -> Path | None:
    """The newest complete state: `folder`, or its predecessor when the run was killed between the two renames."""
    for candidate in (folder, folder.with_name(folder.name + ".old")):
        if (candidate / PROGRESS).is_file() and (candidate / STATE).is_file():
            return candidate
    return None


def read_progress(folder: Path) -> JSON:
    """The progress.json of a state folder."""
    try:
        progress: JSON = json.loads((folder / PROGRESS).read_text())
    except json.JSONDecodeError as error:
        raise TrainingError(f"{folder / PROGRESS} is damaged ({error}). Delete {folder} to start this stage again.") from None
    return progress


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Put weights, moments and the random generator back as they were."""
    try:
        tensors = load_file(folder / STATE)
        model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")})
    except Exception as error:  # safetensors and torch raise several kinds for damaged files
        raise TrainingError(f"{folder / STATE} is damaged or of another model ({error}). Delete {folder} to start this stage again.") from None
    moments: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    whole["state"] = moments
    optimizer.load_state_dict(whole)
    torch.set_rng_state(tensors["rng"])

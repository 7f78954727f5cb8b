"""Trained checkpoints as Hugging Face folders, and the state from which a stopped run goes on exactly.  Nothing is pickled."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pocketqa.errors import TrainingError
from pocketqa.folders import MANIFEST, ModelFolder, atomic_folder, sha256_file, write_manifest
from pocketqa.types import JSON, NoAnswer

if TYPE_CHECKING:
    from transformers import PreTrainedModel  # takes seconds to import, and the loop does without

STATE = "training_state.safetensors"
PROGRESS = "progress.json"
WEIGHTS = "model.safetensors"
SHARDS = "model-*.safetensors"  # of a model that is too large for one file
BEST = "best"
NUMBERED = "checkpoint-"  # and the step, HF's habit
NOT_WRITTEN = (OSError, SafetensorError)  # what a full disk raises


def forget(folder: Path) -> None:
    """Remove the best and the numbered checkpoints of a run that was killed before its first state: they may be of other settings."""
    for old in (folder / BEST, *folder.glob(f"{NUMBERED}*")):
        shutil.rmtree(old, ignore_errors=True)


def save_tokenizer(source: str, out: Path) -> None:
    """Write tokenizer.json, vocab.txt and their configuration into a folder.  Raises TrainingError where `source` has none, or `out` is full."""
    from transformers import AutoTokenizer

    from distillation.models.modeling import load_config

    config = load_config(source) if (Path(source) / "config.json").is_file() else None  # which may not say what kind of model it is
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, use_fast=True, config=config)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"Expected a tokenizer in {source}, found: {reason(error)} Name a folder with tokenizer.json, or a model of the Hub."
        ) from None
    try:
        tokenizer.save_pretrained(out)
        tokenizer.save_vocabulary(str(out))
    except OSError as error:
        raise not_written(out, error) from error


def reason(error: Exception) -> str:
    """What the library says, in a line, without its list of all the kinds of models there are."""
    return str(error).split("\n")[0].partition(", or contain one of")[0]


def save_start(model: PreTrainedModel, source: str, out: Path, step: JSON) -> None:
    """Leave an untrained start as a checkpoint folder: weights, tokenizer, manifest last.  Refuses a folder that holds something."""
    if out.exists() and any(out.iterdir()):
        raise TrainingError(f"{out} is not empty. Give another --out or delete it.")
    try:
        with atomic_folder(out, replace=out.exists()) as folder:
            model.save_pretrained(folder)
            save_tokenizer(source, folder)
            write_manifest(folder, kind="checkpoint", name=out.name, parent=weights_hash(source), config=step)
    except NOT_WRITTEN as error:
        raise not_written(out, error) from error


def weight_files(source: str) -> list[Path]:
    """model.safetensors of a local folder, else the shards in its place, sorted; none where it has none, or the weights lie on the Hub."""
    whole = Path(source) / WEIGHTS
    return [whole] if whole.is_file() else sorted(Path(source).glob(SHARDS))


def weights_hash(source: str) -> str:
    """sha256 of a checkpoint's weights, by which manifests and run files name it.

    One file: its own; shards: of their hashes; a Hub name: of it and the commit that is in the cache, of the name alone where none is.
    """
    hashes = [sha256_file(file) for file in weight_files(source)]
    if len(hashes) == 1:
        return hashes[0]
    commit = None if hashes else _cached_commit(source)
    return hashlib.sha256(("".join(hashes) or (f"{source}@{commit}" if commit else source)).encode()).hexdigest()


def model_key(source: str) -> str:
    """sha256 of all that settles what a checkpoint computes, config.json too: for identities of runs and keys of caches."""
    config = ModelFolder(Path(source)).config
    parts = [weights_hash(source), sha256_file(config) if config.is_file() else None]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def grown_from(source: str) -> JSON | None:
    """What the manifest of a checkpoint says of how it was grown: from_layers, layers, insert; None where it was not."""
    if not (Path(source) / MANIFEST).is_file():
        return None
    config = ModelFolder(Path(source)).read_manifest().config
    grown: JSON | None = config if config.get("step") == "grow" else config.get("grown")
    return {key: grown[key] for key in ("from_layers", "layers", "insert")} if grown else None


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Weights and optimiser moments by name; tied weights once."""
    tensors = {f"model.{name}": value for name, value in _untied(model).items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    return {name: value.detach().contiguous() for name, value in tensors.items()}


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put what `state_tensors` gave back in its place.  Raises RuntimeError or KeyError where it is of another model."""
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    expected = _untied(model).keys()
    if weights.keys() != expected:
        raise KeyError(f"expected {len(expected)} weights, found {len(weights)}, {len(expected ^ weights.keys())} of them under other names")
    model.load_state_dict(weights, strict=False)  # not strict: the second name of a tied weight is missing
    moments: dict[int, dict[str, Any]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = value
    whole = optimizer.state_dict()
    whole["state"] = moments
    optimizer.load_state_dict(whole)


def save_state(folder: Path, tensors: Mapping[str, Tensor], progress: JSON) -> None:
    """Everything the next step depends on, with hashes of it.  The folder appears whole or not at all, and its predecessor stays until then.

    Raises TrainingError where it cannot be written.
    """
    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file({name: tensor.cpu() for name, tensor in tensors.items()}, partial / STATE)
        document = {**progress, "sha256": sha256_file(partial / STATE)}
        (partial / PROGRESS).write_text(json.dumps({**document, "checksum": _checksum(document)}, indent=1, sort_keys=True) + "\n")
        for name in (STATE, PROGRESS):
            _on_disk(partial / name)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.replace(old)
        partial.replace(folder)
    except NOT_WRITTEN as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise not_written(folder.parent, error) from error
    shutil.rmtree(old, ignore_errors=True)


def find_state(folder: Path) -> Path | None:
    """The newest state: `folder`, or its predecessor when the run was killed between two renames; None where there is none."""
    return next((candidate for candidate in (folder, folder.with_name(folder.name + ".old")) if candidate.exists()), None)


def read_progress(folder: Path) -> JSON:
    """The progress.json of a state folder.  Raises TrainingError where a byte of it has changed."""
    try:
        progress: JSON = json.loads((folder / PROGRESS).read_bytes())
        sound = progress.pop("checksum") == _checksum(progress)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise _damaged(folder / PROGRESS, repr(error)) from None
    if not sound:
        raise _damaged(folder / PROGRESS, "its checksum differs from its content")
    return progress


def read_tensors(folder: Path, progress: JSON) -> dict[str, Tensor]:
    """The tensors of a state folder.  Raises TrainingError where a byte of them has changed."""
    try:
        found = sha256_file(folder / STATE)
        tensors: dict[str, Tensor] = load_file(folder / STATE) if found == progress["sha256"] else {}
    except NOT_WRITTEN as error:
        raise _damaged(folder / STATE, str(error)) from None
    if not tensors:
        raise _damaged(folder / STATE, f"expected sha256 {progress['sha256'][:12]}..., found {found[:12]}...")
    return tensors


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    tokenizer: Path,
    config: JSON,
    *,
    parent: str | None = None,
    seed: int | None = None,
    no_answer: NoAnswer | None = None,
) -> None:
    """Leave a model as it is now as a checkpoint folder; one of that name is replaced.

    model: of a training that has projections beside its student, only what `exported` says is written, so that the folder opens like any other.
    tokenizer: a folder with its files; where there are none, none are written.  parent, seed, no_answer: for its manifest.
    Raises TrainingError where it cannot be written.
    """
    chosen = exported(model)
    try:
        with atomic_folder(folder, replace=True) as made:
            if _is_pretrained(chosen):
                cast("PreTrainedModel", chosen).save_pretrained(made)
            else:
                save_file({name: value.detach().cpu().contiguous() for name, value in _untied(chosen).items()}, made / WEIGHTS)
            for file in sorted(tokenizer.glob("*")):
                if file.name.startswith(("tokenizer", "special_tokens", "vocab", "added_tokens")):
                    shutil.copyfile(file, made / file.name)
            name = f"{tokenizer.name.removesuffix('.run')}-{folder.name}"
            write_manifest(made, kind="checkpoint", name=name, parent=parent, config=config, seed=seed, no_answer=no_answer)
    except NOT_WRITTEN as error:
        raise not_written(folder, error) from error


def load_best(folder: Path, model: nn.Module) -> None:
    """Give a model the weights of the best checkpoint of a run folder.  Raises TrainingError where a byte of them has changed."""
    chosen, best = exported(model), folder / BEST
    if sha256_file(best / WEIGHTS) != ModelFolder(best).read_manifest().files.get(WEIGHTS):
        raise _damaged(best / WEIGHTS, "its sha256 differs from the manifest's")
    if _is_pretrained(chosen):
        chosen.load_state_dict(type(cast("PreTrainedModel", chosen)).from_pretrained(best).state_dict())
    else:
        chosen.load_state_dict(load_file(best / WEIGHTS), strict=False)  # not strict: the second name of a tied weight is missing


def exported(model: nn.Module) -> nn.Module:
    """What a checkpoint holds of what is trained: `model.kept` or `model.student` where there is one, else all of it."""
    student = getattr(model, "kept", getattr(model, "student", None))
    return student if isinstance(student, nn.Module) and _is_pretrained(student) else model


def prune(folder: Path, keep: int) -> None:
    """Delete all but the last `keep` numbered checkpoints of a run folder."""
    numbered = sorted((path for path in folder.glob(f"{NUMBERED}*") if path.name.removeprefix(NUMBERED).isdigit()), key=_number)
    for path in numbered[: max(0, len(numbered) - keep)]:
        shutil.rmtree(path)


def not_written(place: Path, error: Exception) -> TrainingError:
    """The error for a disk that is full or cannot be written to."""
    return TrainingError(
        f"Expected to write to {place}, found: {error}. What was saved before is untouched: make room there and give the same command again."
    )


def _cached_commit(name: str) -> str | None:
    """The commit of a Hub model in the local cache, which loading it brings up to date; the Hub is not asked.  None where nothing is cached."""
    from huggingface_hub import try_to_load_from_cache

    try:
        file = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that a model of the Hub can have
        return None
    return Path(file).parent.name if isinstance(file, str) else None


def _damaged(file: Path, found: str) -> TrainingError:
    return TrainingError(f"{file} is damaged: {found}. Delete {file.parent} to start this stage again, or restore it from a copy.")


def _untied(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, each tensor under the first of its names."""
    seen: set[tuple[int, torch.Size]] = set()
    tensors = {}
    for name, value in model.state_dict().items():
        place = (value.data_ptr(), value.shape)
        if value.numel() and place in seen:
            continue
        seen.add(place)
        tensors[name] = value
    return tensors


def _is_pretrained(model: nn.Module) -> bool:
    return hasattr(model, "save_pretrained")


def _number(path: Path) -> int:
    return int(path.name.removeprefix(NUMBERED))


def _checksum(document: JSON) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _on_disk(path: Path) -> None:
    """Wait until a file's bytes would survive a loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())

"""The model card of a trained checkpoint: README.md with the front matter that the Hugging Face Hub reads.

What the manifest knows goes in, the score that the training took of itself too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from distillation.training.checkpoints import weights_hash
from pocketqa.folders import MANIFEST, SHORT_HASH, ModelFolder, write_atomic
from pocketqa.types import JSON

UNKNOWN_LICENSE = "unknown"  # an identifier of the Hub's
SCORES = {"exact_match": "exact match", "f1": "F1", "score": "score", "perplexity": "perplexity"}
TASKS = {"ForMaskedLM": "fill-mask", "ForQuestionAnswering": "question-answering", "ForSequenceClassification": "text-classification"}


def write(folder: Path, name: str, base: str, summary: JSON, license_id: str | None = None) -> None:
    """Write README.md into a checkpoint folder that has its configuration and weights; one that is there is replaced.

    base: folder or Hub name of what it started from; summary: what its manifest says of the run.
    """
    config = json.loads(ModelFolder(folder).config.read_text())
    data = [source for source in summary.get("data") or [] if isinstance(source, Mapping)]
    weights = weights_hash(str(folder))
    architecture = (config.get("architectures") or [config.get("model_type", "model")])[0]
    lines = [
        *_front_matter(architecture, base_name(base), data, summary, license_id or UNKNOWN_LICENSE),
        *("", f"# {name}", ""),
        *_description(architecture, base_name(base), summary, weights),
        *_data(data),
        *_training(summary),
        *_scores(summary.get("development")),
    ]
    write_atomic(ModelFolder(folder).card, "\n".join(lines).rstrip() + "\n")


def base_name(base: str) -> str:
    """What to call the model that a training started from: a Hub name as it is, a folder by its manifest's name, never by its place on a disk."""
    path = Path(base)
    if not path.is_dir():
        return base
    return ModelFolder(path).read_manifest().name if (path / MANIFEST).is_file() else path.resolve().name


def _front_matter(architecture: str, base: str, data: Sequence[Mapping[str, object]], summary: JSON, license_id: str) -> list[str]:
    task = next((tag for ending, tag in TASKS.items() if architecture.endswith(ending)), None)
    tags = ["pocketqa", *(["knowledge-distillation"] if _teachers(summary) else [])]
    names = list(dict.fromkeys(str(source["file"]) for source in data if source.get("file")))
    entries = {"license": license_id, "library_name": "transformers", "pipeline_tag": task, "base_model": base, "datasets": names, "tags": tags}
    lines = ["---"]
    for key, value in entries.items():
        if isinstance(value, list):
            lines += [f"{key}:", *(f"- {_yaml(item)}" for item in value)] if value else []
        elif value:
            lines.append(f"{key}: {_yaml(value)}")
    return [*lines, "---"]


def _yaml(text: str) -> str:
    """A string as YAML: plain where that is safe, else in JSON's quotes, which YAML reads."""
    plain = text[0].isalpha() and all(letter.isalnum() or letter in "-_./" for letter in text)
    return text if plain and text.lower() not in ("true", "false", "null", "yes", "no", "on", "off") else json.dumps(text)


def _description(architecture: str, base: str, summary: JSON, weights: str) -> list[str]:
    size = f" of {summary['parameters']:,} parameters" if "parameters" in summary else ""
    lines = [f"A {architecture}{size}, trained with PocketQA from {base}."]
    if teachers := _teachers(summary):
        lines.append(
            f"It learnt from the outputs of {'a teacher' if len(teachers) == 1 else f'{len(teachers)} teachers'} (weights {', '.join(teachers)})."
        )
    return [*lines, "", f"Weights: sha256 {weights}. `{MANIFEST}` holds the hashes of all files, and every setting of the run.", ""]


def _teachers(summary: JSON) -> list[str]:
    """Short hashes of the weights it learnt from."""
    found = summary.get("teachers") or summary.get("teacher") or []
    return [str(item)[:SHORT_HASH] for item in ([found] if isinstance(found, str) else found)]


def _data(data: Sequence[Mapping[str, object]]) -> list[str]:
    if not data:
        return []
    rows = []
    for source in data:
        counts = ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in source.items() if isinstance(value, int) and value)
        rows.append(f"| {source.get('file', '')} | {counts} | {str(source.get('sha256', ''))[:SHORT_HASH]} |")
    return ["## Training data", "", "| file | content | sha256 |", "|---|---|---|", *rows, ""]


def _training(summary: JSON) -> list[str]:
    lines = ["## Training", ""]
    if "steps" in summary:
        seconds = summary.get("seconds", 0)
        lines += [f"{summary['steps']:,} optimiser steps, {summary.get('tokens', 0):,} tokens, {seconds / 3600:.2f} hours.", ""]
    if losses := summary.get("losses"):
        lines += ["Over the last tenth of the steps: " + ", ".join(f"{name} {value:.4f}" for name, value in losses.items()) + ".", ""]
    if recipe := summary.get("recipe"):
        lines += ["| setting | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in recipe.items()), ""]
    return lines if len(lines) > 2 else []


def _scores(development: JSON | None) -> list[str]:
    """What the training itself measured at its end."""
    if not development:
        return []
    values = ", ".join(f"{words} {development[name]:.2f}" for name, words in SCORES.items() if name in development)
    return ["## Scores", "", f"On {development.get('file', 'text kept apart from the training')}, one training: {values}.", ""]

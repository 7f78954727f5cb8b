"""`pocketqa evaluate MODEL --task TASK`: official metrics of a checkpoint on a task, with intervals, and a run file.

pocketqa evaluate OUT --task sst2 --data DIR                                     DIR/dev.tsv, or DIR/sst2/dev.tsv
pocketqa evaluate OUT --task imdb --data DIR --role student --run-file runs      DIR/test.csv.xz
pocketqa evaluate OUT --task mnli --data dev_mismatched.tsv --json
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillation.glue.classification import TASKS, Task, task_named
from distillation.glue.tasks import load_examples, source_name
from pocketqa.arguments import verb_parser
from pocketqa.errors import OptionsError
from pocketqa.folders import Manifest, ModelFolder
from pocketqa.runs import DataFile, RunFile, Subject, classification_results, new_run, write
from pocketqa.types import JSON

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class TaskSplit:
    """Examples to score on: a file, folder or Hub name, a split of it, and a seeded sample of so many (None: all)."""

    source: str
    split: str
    limit: int | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Trained:
    """How a checkpoint was trained, as far as that is known: what its scores may be put beside those of other seeds by."""

    seed: int | None = None
    start: str | None = None  # sha256 of the weights it started from
    teacher: str | None = None  # of its teacher
    settings: str | None = None  # hash of data and recipe, but for the seed

    @classmethod
    def of(cls, config: JSON, seed: int | None, start: str | None) -> Trained:
        """From what the manifest of a checkpoint says of its training."""
        recipe = {name: value for name, value in config.get("recipe", {}).items() if name != "seed"}
        parts = [recipe, config.get("evaluate_every"), [source.get("sha256") for source in config.get("data", [])]]
        return cls(seed, start, config.get("teacher"), hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest())


LEAST_TOKENS = 8  # of an example, of which a pair takes three for [CLS] and [SEP]


@dataclass(frozen=True, slots=True)
class TaskScores:
    """What a model scores on a split: results of kind "classification", and the data they are of."""

    results: JSON
    data: DataFile


def main(argv: list[str]) -> int:
    """The route of `pocketqa evaluate` for tasks."""
    given = _parser().parse_args(argv)
    task = task_named(given.task)
    examples_of = TaskSplit(given.data, given.split or task.splits[1], given.limit, given.seed)
    from transformers import AutoTokenizer

    from distillation.glue.task_model import load_classifier
    from distillation.training.checkpoints import weights_hash

    folder = ModelFolder(Path(given.model))
    manifest = folder.read_manifest() if folder.manifest.is_file() else None
    model = load_classifier(given.model, task, new_head=False)
    positions, tokens = model.config.max_position_embeddings, given.max_tokens
    if tokens is not None and not LEAST_TOKENS <= tokens <= positions:
        raise OptionsError(f"Expected --max-tokens between {LEAST_TOKENS} and {positions}, the positions of this model; found {tokens}.")
    tokenizer = AutoTokenizer.from_pretrained(given.model, use_fast=True)
    trained = Trained.of(manifest.config, manifest.seed, manifest.parent) if manifest else Trained()
    scored = score(model, tokenizer, task, examples_of, _trained_tokens(manifest) if tokens is None else tokens, trained)
    name = manifest.name if manifest else folder.path.name
    document = {"model": name, "data": scored.data.name, **summary(scored.results)}
    if given.run_file:
        run = task_run(scored, name, given.role or name, weights_hash(given.model), ["pocketqa", "evaluate", *argv])
        document["run_file"] = str(write(run, given.run_file))
    print(json.dumps(document) if given.json else "\n".join(f"{key}: {value}" for key, value in document.items()))
    return 0


def score(model: PreTrainedModel, tokenizer: Any, task: Task, examples_of: TaskSplit, max_tokens: int, trained: Trained) -> TaskScores:
    """Official metrics of a model in memory, in float32.  tokenizer: of transformers."""
    from distillation.glue.task_data import encode
    from distillation.glue.task_metrics import task_metrics
    from distillation.glue.task_model import predict, predictions_of

    examples = load_examples(examples_of.source, task, examples_of.split, examples_of.limit, examples_of.seed)
    rows, cut = encode(examples, tokenizer, max_tokens)
    began = time.monotonic()
    said = predictions_of(predict(model, rows, task, tokenizer.pad_token_id), task).numpy()  # (N,)
    seconds = time.monotonic() - began
    right = [example.label for example in examples]
    extra: JSON = {
        "title": task.title,
        "max_tokens": max_tokens,
        "cut": cut,  # examples that lost tokens
        "seconds": round(seconds, 1),
        "limit": examples_of.limit,
        **{name: value for name, value in dataclasses.asdict(trained).items() if name != "seed"},
    }
    results = classification_results(task.name, task_metrics(task, said, right), said, right, seed=trained.seed, extra=extra)
    name, sha256 = source_name(examples_of.source, task, examples_of.split)
    return TaskScores(results, DataFile(name, sha256, len(examples), "other"))


def summary(results: JSON) -> JSON:
    """The part of the results that is printed."""
    keys = ("title", "count", "cut", "metrics", "score", "seconds")
    interval = results["intervals"]["score"]
    return {**{key: results[key] for key in keys}, "score_interval": [round(interval[end], 2) for end in ("low", "high")]}


def task_run(scored: TaskScores, name: str, role: str, sha256: str, command: Sequence[str]) -> RunFile:
    """The run file of a model's scores on a task."""
    import torch

    seed = scored.results["seed"]
    subject = Subject(name, role, sha256, "pytorch", torch.__version__, "fp32", torch.get_num_threads())
    label = f"{scored.results['task']} {role}" + ("" if seed is None else f" seed {seed}")
    return new_run("classification", label, [subject], [scored.data], command, scored.results)


def _trained_tokens(manifest: Manifest | None) -> int:
    """The longest example that a checkpoint was trained with."""
    found = (manifest.config if manifest else {}).get("recipe", {}).get("max_tokens")
    if not isinstance(found, int):
        raise OptionsError("Nothing says how long the examples of this checkpoint's training were. Say it with --max-tokens, for instance 128.")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("pocketqa evaluate", __doc__)
    parser.add_argument("model", metavar="MODEL", help="checkpoint left by `pocketqa finetune --task`")
    parser.add_argument("--task", required=True, help=", ".join(TASKS))
    parser.add_argument("--data", required=True, metavar="PATH", help="file (.tsv, .csv; .gz, .bz2, .xz), folder of splits, or Hub name")
    parser.add_argument("--split", metavar="NAME", help="which split of a folder or Hub data set (default: dev; test for imdb)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest example (default: as in training)")
    parser.add_argument("--limit", type=int, metavar="N", help="a seeded sample of N examples")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--role", help="teacher, student, control, ..., for the run file (default: the model's name)")
    parser.add_argument("--run-file", metavar="PATH", help="write a run file to this folder or .json path")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return parser

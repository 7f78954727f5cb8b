"""`pocketqa finetune MODEL --task TASK`: fine-tune a checkpoint on a task of GLUE or on IMDb, with a teacher or without.

    pocketqa finetune bert-base-uncased --task sst2 --data DIR --out teacher               DIR/train.tsv and dev.tsv, or DIR/sst2/...
    pocketqa finetune student-start --task sst2 --data DIR --teacher teacher --out student --role student --run-file runs
    pocketqa finetune student-start --task rte --data DIR --out control --seeds 0 1 2 3 4 --role control --run-file runs

MODEL is any BERT, DistilBERT or MobileBERT; heads of other tasks are dropped.  With --teacher the loss is alpha_ce x KL to the teacher's classes at
a temperature + alpha_gold x cross-entropy to the labels; for STS-B squared errors stand in place of both.
The number of epochs is fixed.  With --held-out a share of the TRAINING data is kept apart and the best epoch on it is taken.  The development set
is scored once, at the end, and nothing is chosen by it.
--seeds trains once for each seed, in OUT/seed-N, and prints the median, as the DistilBERT paper does; a seed that is finished is not trained again,
and one that was trained with other settings, data or models is refused.  A stopped run goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from distillation.glue.classification import TASKS, Task, TaskBatch, TaskRow, task_named
from distillation.glue.task_data import encode, make_plan, rows_hash, split_rows, to_batch
from distillation.glue.task_evaluate import TaskScores, TaskSplit, Trained, score, summary, task_run
from distillation.glue.task_losses import loss_function
from distillation.glue.task_metrics import task_score
from distillation.glue.task_model import load_classifier, predict, predictions_of
from distillation.glue.task_recipe import TaskRecipe
from distillation.glue.tasks import load_examples, source_name
from distillation.models import modeling
from distillation.models.students import parameters_of
from distillation.models.teachers import check_fit
from distillation.questions.teacher_cache import LOGITS, kept_outputs
from distillation.training import STOPPED, processes, recipes
from distillation.training.checkpoints import load_best, model_key, weights_hash
from distillation.training.loop import LoopResult, Stopped, run
from distillation.training.stage import Stage
from pocketqa.arguments import verb_parser
from pocketqa.errors import OptionsError, TrainingError
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder
from pocketqa.runs import DataFile, RunFile, Subject, new_run, read, training_results
from pocketqa.types import JSON


@dataclass(frozen=True, slots=True)
class TaskJob:
    """A fine-tuning run on a task, fully resolved."""

    model: str
    task: Task
    data: str
    dev: str | None
    teacher: str | None
    cache: Path
    recipe: TaskRecipe
    role: str
    stage: Stage


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """What the loop needs besides the model."""

    rows: list[TaskRow]
    apart: list[int]  # rows to choose the epoch on
    plan: list[Any]
    per_epoch: int
    teacher: Tensor | None  # (N, C) what the teacher says of all rows
    pad_id: int
    cut: int


def main(argv: list[str]) -> int:
    """The route of `pocketqa finetune` for tasks."""
    given = _parser().parse_args(argv)
    _check(given)
    task, command = task_named(given.task), ["pocketqa", "finetune", *argv]
    folders: dict[int | None, Path] = {seed: given.out / f"seed-{seed}" for seed in given.seeds} if given.seeds else {None: given.out}
    scores: dict[int | None, float] = {}
    for seed, out in folders.items():
        try:
            made = _finished(given, task, seed, out) or train(_job(given, task, seed, out), command)
        except Stopped as stopped:
            processes.say(str(stopped))
            return STOPPED
        if processes.is_main():
            print(json.dumps(made, sort_keys=True))
        if "development" in made:
            scores[seed] = made["development"]["score"]
    if len(scores) > 1:
        each = ", ".join(f"seed {seed}: {found:.2f}" for seed, found in scores.items())
        processes.say(f"median of {len(scores)} seeds: {statistics.median(scores.values()):.2f} ({each})")
    processes.say(f"next: pocketqa evaluate {out} --task {task.name} --data {given.dev or given.data} --run-file runs")
    return 0


def train(job: TaskJob, command: Sequence[str]) -> JSON:
    """Fine-tune, score, leave a checkpoint folder and run files; returns the summary, which is also in the manifest."""
    recipe, task, stage = job.recipe, job.task, job.stage
    torch.manual_seed(recipe.seed)
    rates: dict[str, Any] = modeling.dropout_rates(
        modeling.load_config(job.model).model_type, recipe.dropout, recipe.attention_dropout, recipe.head_dropout
    )
    model = load_classifier(job.model, task, new_head=True, **rates)
    work = stage.begin(job.model)
    tokenizer = AutoTokenizer.from_pretrained(work, use_fast=True)
    check_fit(Tokenizer(work / "tokenizer.json"), recipe.max_tokens, [job.model, *([job.teacher] if job.teacher else [])])
    examples_of = _development(job.data, job.dev, task)
    prepared = _prepare(job, tokenizer)
    every = (stage.keeping.evaluate_every or prepared.per_epoch) if prepared.apart else 0
    keeping = dataclasses.replace(stage.keeping, evaluate_every=every, parent=weights_hash(job.model), seed=recipe.seed)
    _say_plan(job, model, prepared)

    def make_batch(indices: Sequence[int], step: int) -> TaskBatch:
        teacher = None if prepared.teacher is None else prepared.teacher[list(indices)]  # (B, C)
        return to_batch([prepared.rows[i] for i in indices], task, prepared.pad_id, teacher)

    def held_out_score() -> float:
        rows = [prepared.rows[i] for i in prepared.apart]
        said = predictions_of(predict(model, rows, task, prepared.pad_id, recipe.precision), task)
        return task_score(task, said.numpy(), [row.label for row in rows])

    choosing = held_out_score if prepared.apart else None
    result = run(model, prepared.plan, make_batch, loss_function(model, task, recipe), recipe, keeping, _identity(job, prepared), score=choosing)
    if prepared.apart:
        load_best(work, model)
        processes.wait()  # all have read it: the main one moves `work` when it finishes
        processes.say(f"taken: step {result.best_step}, {result.best_score:.2f} on {len(prepared.apart)} examples kept apart from the training data")
    scored, made = None, _summary(job, model, prepared, result)
    if examples_of and processes.is_main():
        scored = score(model, tokenizer, task, examples_of, recipe.max_tokens, Trained.of(made, recipe.seed, made["start"]))
        made["development"] = {"file": scored.data.name, "sha256": scored.data.sha256, **summary(scored.results)}
        numbers = ", ".join(f"{metric} {value:.2f}" for metric, value in scored.results["metrics"].items())
        processes.say(f"{scored.data.name}: score {scored.results['score']:.2f} ({numbers})")
    stage.finish(model, tokenizer_from=job.model, parent=made["start"], summary=made, seed=recipe.seed)
    if stage.run_file and processes.is_main():
        _write_runs(job, made, scored, command)
    return made


def _prepare(job: TaskJob, tokenizer: Any) -> Prepared:
    """Rows, plan and the teacher's outputs."""
    recipe, task = job.recipe, job.task
    rows, cut = encode(load_examples(job.data, task, task.splits[0]), tokenizer, recipe.max_tokens)
    chosen, apart = split_rows(rows, recipe.held_out, recipe.seed)
    plan, per_epoch = make_plan(rows, chosen, recipe)
    pad_id = int(tokenizer.pad_token_id)
    teacher = _teacher_outputs(job, rows, pad_id) if job.teacher else None
    return Prepared(rows, apart, plan, per_epoch, teacher, pad_id, cut)


def _teacher_outputs(job: TaskJob, rows: list[TaskRow], pad_id: int) -> Tensor:
    """(N, C) in float32, computed once for all seeds and kept in the cache."""
    assert job.teacher is not None
    source, shape = job.teacher, (len(rows), job.task.outputs)
    key = hashlib.sha256(json.dumps([model_key(source), job.task.name, rows_hash(rows)]).encode()).hexdigest()

    def load() -> PreTrainedModel:
        teacher = load_classifier(source, job.task, new_head=False)
        nn.Module.to(teacher, processes.device())
        return teacher

    def fill(file: Path, teacher: PreTrainedModel) -> None:
        predict(teacher, rows, job.task, pad_id).numpy().astype("<f4").tofile(file)

    folder = kept_outputs(job.cache, source, key, math.prod(shape), f"{len(rows):,} examples", load, fill)
    return torch.from_numpy(np.fromfile(folder / LOGITS, dtype="<f4").reshape(shape))


def _development(data: str, dev: str | None, task: Task) -> TaskSplit | None:
    """What is scored at the end; looked for at the start, so that nothing is trained in vain."""
    source = dev or (None if Path(data).is_file() else data)
    if source is None:
        processes.say("no development score: --data names one file; name another with --dev")
        return None
    load_examples(source, task, task.splits[1])
    return TaskSplit(source, task.splits[1])


def _say_plan(job: TaskJob, model: nn.Module, prepared: Prepared) -> None:
    rows, recipe = prepared.rows, job.recipe
    steps = [[rows[i] for i in piece] for step in prepared.plan for piece in step]
    tokens = sum(len(row.ids) for piece in steps for row in piece)
    padded = sum(len(piece) * max(len(row.ids) for row in piece) for piece in steps)
    choice = f"the best epoch on {len(prepared.apart)} of them is taken" if prepared.apart else "the last epoch is taken"
    processes.say(f"{job.task.title}: {job.model}, {parameters_of(model):,} parameters; teacher: {job.teacher or 'none'}")
    processes.say(f"{len(rows)} examples, {prepared.cut} of them cut to {recipe.max_tokens} tokens; {len(prepared.plan)} steps; {choice}")
    processes.say(f"{tokens:,} tokens, padding waste {100 * (1 - tokens / padded):.1f} %, {torch.get_num_threads()} threads")
    processes.say(f"recipe: {json.dumps(recipes.settings_of(recipe))}")


def _identity(job: TaskJob, prepared: Prepared) -> str:
    teacher = model_key(job.teacher) if job.teacher else None
    parts: list[object] = [recipes.settings_of(job.recipe), job.task.name, rows_hash(prepared.rows), model_key(job.model), teacher]
    if every := prepared.apart and job.stage.keeping.evaluate_every:  # which steps the best is chosen from
        parts.append(every)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _summary(job: TaskJob, model: PreTrainedModel, prepared: Prepared, result: LoopResult) -> JSON:
    name, sha256 = source_name(job.data, job.task, job.task.splits[0])
    return {
        "name": job.stage.name,
        "task": job.task.name,
        "start": weights_hash(job.model),
        "teacher": weights_hash(job.teacher) if job.teacher else None,
        "data": [{"file": name, "sha256": sha256, "examples": len(prepared.rows), "cut": prepared.cut, "kept_apart": len(prepared.apart)}],
        "recipe": recipes.settings_of(job.recipe),
        "evaluate_every": job.stage.keeping.evaluate_every,
        "parameters": parameters_of(model),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "losses": result.losses,
        "best_step": result.best_step,
    }


def _write_runs(job: TaskJob, made: JSON, scored: TaskScores | None, command: Sequence[str]) -> None:
    sha256, data = weights_hash(str(job.stage.out)), made["data"][0]
    results = training_results(
        questions=data["examples"],
        steps=made["steps"],
        tokens=made["tokens"],
        seconds=made["seconds"],
        loss=made["losses"].get("loss"),
        recipe={**made["recipe"], "task": made["task"], "start": made["start"], "teacher": made["teacher"]},
        losses=made["losses"],
        development=made.get("development"),
    )
    subject = Subject(job.stage.name, job.role, sha256, precision=job.recipe.precision, threads=torch.get_num_threads())
    label = f"{job.task.name} {job.role} seed {job.recipe.seed}"
    trained = new_run("training", label, [subject], [DataFile(data["file"], data["sha256"], data["examples"], "training")], command, results)
    written: list[RunFile] = [trained, *([task_run(scored, job.stage.name, job.role, sha256, command)] if scored else [])]
    for item in written:
        job.stage.write_run(item)


def _finished(given: argparse.Namespace, task: Task, seed: int | None, out: Path) -> JSON | None:
    """What the manifest says of a seed that an earlier call has finished; a single training is never taken for that.

    Raises TrainingError where the seed was trained with other settings, data or models than this call has.
    """
    if seed is None or not ModelFolder(out).manifest.is_file():
        return None
    made = ModelFolder(out).read_manifest().config
    trained = {name: value for name, value in made.get("recipe", {}).items() if recipes.LATER.get(name) != value}
    examples_of, recipe = _development(given.data, given.dev, task), recipes.settings_of(_recipe(given, task, seed))
    there_and_here = {
        "--task": (made.get("task"), task.name),
        "MODEL": (made.get("start"), weights_hash(given.model)),
        "--teacher": (made.get("teacher"), weights_hash(given.teacher) if given.teacher else None),
        "--data": (made.get("data", [{}])[0].get("sha256"), source_name(given.data, task, task.splits[0])[1]),
        "--dev": (made.get("development", {}).get("sha256"), source_name(examples_of.source, task, examples_of.split)[1] if examples_of else None),
        "--evaluate-every": (made.get("evaluate_every", 0), given.evaluate_every),
        **{f"--{name.replace('_', '-')}": (trained.get(name), recipe.get(name)) for name in {**trained, **recipe}},
    }
    if other := [f"{name} (there {there}, here {here})" for name, (there, here) in there_and_here.items() if there != here]:
        raise TrainingError(
            f"{out} was trained with other settings, data or models than this call has: {', '.join(other)}. Give another --out, or delete the folder."
        )
    processes.say(f"{out} is finished already")
    if given.run_file and "development" in made and not _is_written(given.run_file, weights_hash(str(out))):
        role = given.role or given.name or given.out.name
        words = ("--task", task.name, "--data", given.dev or given.data, "--role", role, "--run-file", str(given.run_file))
        processes.say(f"its score is not in {given.run_file}; write it with: pocketqa evaluate {shlex.join([str(out), *words])}")
    return made


def _is_written(folder: Path, sha256: str) -> bool:
    """Whether a run file of the folder has the score of these weights on a task."""
    found = (read(path) for path in sorted(folder.glob("*.json")))
    return any(run.kind == "classification" and run.subjects[0].sha256 == sha256 for run in found)


def _check(given: argparse.Namespace) -> None:
    if given.run_file and given.run_file.suffix == ".json":
        raise OptionsError(f"Expected a folder for --run-file, found {given.run_file}: a training on a task leaves two run files, or more.")
    if given.seeds and min(given.seeds) < 0:
        raise OptionsError(f"Expected --seeds of at least 0, found {min(given.seeds)}.")
    if given.seeds and len(set(given.seeds)) != len(given.seeds):
        raise OptionsError(f"Expected different --seeds, found {' '.join(map(str, given.seeds))}.")


def _recipe(given: argparse.Namespace, task: Task, seed: int | None) -> TaskRecipe:
    if given.recipe is None and task.recipe:
        given.recipe = task.recipe
        processes.say(f"recipe of {task.title}: {task.recipe}")
    recipe = recipes.from_arguments(given, TaskRecipe, taught=bool(given.teacher))
    return recipe if seed is None else dataclasses.replace(recipe, seed=seed)


def _job(given: argparse.Namespace, task: Task, seed: int | None, out: Path) -> TaskJob:
    recipe = _recipe(given, task, seed)
    if given.evaluate_every and not recipe.held_out:
        raise OptionsError("--evaluate-every chooses by the examples of --held-out, which is 0. Nothing is chosen by the development set.")
    stage = Stage.of(argparse.Namespace(**{**vars(given), "out": out, "name": given.name or given.out.name}))
    cache = given.cache or given.out.with_name("teacher-cache")
    return TaskJob(given.model, task, given.data, given.dev, given.teacher, cache, recipe, given.role or stage.name, stage)


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("pocketqa finetune", __doc__)
    parser.add_argument("model", metavar="MODEL", help="folder or Hub name of a BERT, DistilBERT or MobileBERT; heads of other tasks are dropped")
    parser.add_argument("--task", required=True, help=", ".join(TASKS))
    parser.add_argument("--data", required=True, metavar="PATH", help="folder of splits (train.tsv, dev.tsv), a training file, or a Hub name")
    parser.add_argument("--dev", metavar="PATH", help="what is scored at the end (default: the development split in --data)")
    parser.add_argument("--teacher", metavar="MODEL", help="a checkpoint fine-tuned on the same task, with the same vocabulary")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where a teacher's outputs are kept (default: teacher-cache beside OUT)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="train once for each seed, in OUT/seed-N")
    parser.add_argument("--role", help="teacher, student, control, ..., for the run files (default: the name)")
    Stage.add_flags(parser)
    recipes.add_flags(parser, TaskRecipe)
    return parser

"""Fine-tune a question-answering head, with a teacher or without.

    pocketqa finetune bert-base-uncased --data train-v1.1.json --out runs-local/teacher
    pocketqa finetune student-start --teacher runs-local/teacher --data train-v1.1.json --out runs-local/student
    pocketqa finetune BASE --data train-v1.1.json@0.01 --epochs 1 --out out/try          # one question in a hundred: minutes on a CPU

With --teacher this is the DistilBERT paper's second distillation step: alpha_ce x KL to the teacher's start and end distributions at a
temperature + alpha_squad x cross-entropy to the gold answers.  A stopped run goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from distillation import losses, modeling, recipes
from distillation.checkpoints import save_tokenizer, weights_hash
from distillation.data import DataSource, NegativeOptions, TrainingBatch, TrainingWindow, epoch_batches, to_batch, training_windows
from distillation.evaluate import development_report
from distillation.loop import LoopOptions, LoopResult, Stopped, run
from distillation.losses import LossTerms
from distillation.recipes import FinetuneRecipe
from pocketqa import squad
from pocketqa.errors import DataError, TrainingError, VocabularyMismatch
from pocketqa.features import Tokenizer
from pocketqa.folders import write_manifest
from pocketqa.reader import Reader
from pocketqa.runs import DataFile, RunFile, Subject, new_run, training_results, write
from pocketqa.runtimes.pytorch import PyTorchRuntime
from pocketqa.types import JSON, NoAnswer, Scores


@dataclass(frozen=True, slots=True)
class Job:
    """A fine-tuning run, fully resolved."""

    model: str
    sources: tuple[DataSource, ...]
    out: Path
    teacher: str | None
    dev: str | None
    dev_limit: int | None
    recipe: FinetuneRecipe
    name: str
    run_file: Path | None = None


def main(argv: list[str]) -> int:
    """The verb `pocketqa finetune`."""
    job = _parse(argv)
    if job.out.exists() and (not job.out.is_dir() or any(job.out.iterdir())):
        raise TrainingError(f"{job.out} is not empty (a finished checkpoint, perhaps). Give another --out or delete it.")
    if job.dev and not any(example.answers for example in squad.load(job.dev)):
        raise DataError(f"{job.dev}: expected answerable questions to choose a threshold on, found none. Name another development split.")
    try:
        summary = finetune(job)
    except Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 143
    if job.run_file:
        _say(f"run file: {write(_training_run(job, summary, argv), job.run_file)}")
    print(json.dumps(summary, sort_keys=True))
    _say(f"next: pocketqa evaluate {job.out} --data dev-v1.1.json    or    pocketqa package {job.out} --out models/{job.name}")
    return 0


def finetune(job: Job) -> JSON:
    """Run a job and leave a checkpoint folder; returns its summary (also in the manifest)."""
    recipe = job.recipe
    torch.manual_seed(recipe.seed)
    model = modeling.load_reader(job.model, **_dropout(job.model, recipe))
    teacher = modeling.load_reader(job.teacher).eval() if job.teacher else None
    work = job.out.with_name(job.out.name + ".run")
    work.mkdir(parents=True, exist_ok=True)
    if _kept_state(work).exists() and not (work / "state").exists():
        os.replace(_kept_state(work), work / "state")
    save_tokenizer(job.model, work)
    tokenizer = Tokenizer(work / "tokenizer.json")
    _check_vocabulary(tokenizer, model, job)
    counts, windows = _windows(job, tokenizer)
    if not windows:
        raise TrainingError("The data give no training window: every question is longer than --max-question-tokens. Raise it or name other data.")
    plan = make_plan(windows, recipe)
    _say_plan(job, model, windows, plan)
    identity = _identity(job)

    def make_batch(indices: Sequence[int]) -> TrainingBatch:
        return to_batch([windows[i] for i in indices], tokenizer.pad_id)

    result = run(model, plan, make_batch, loss_function(model, teacher, recipe), loop_options(recipe), work, identity, _say)
    summary = _summary(job, model, counts, result, windows)
    _finish(job, model, work, summary)
    return summary


def loss_function(model: nn.Module, teacher: nn.Module | None, recipe: FinetuneRecipe) -> Any:
    """The loss of one batch: gold answers, and the teacher's soft targets where there is one."""

    def loss_of(batch: TrainingBatch) -> LossTerms:
        start, end = _logits(model, batch)  # (B, T) each
        squad = losses.span_cross_entropy(start, end, batch.starts, batch.ends, batch.allowed)
        if teacher is None:
            return LossTerms(squad, {"loss": squad.detach()})
        with torch.no_grad():
            soft = _logits(teacher, batch)
        ce = losses.span_kl((start, end), soft, batch.allowed, recipe.temperature)
        total = recipe.alpha_ce * ce + recipe.alpha_squad * squad
        return LossTerms(total, {"loss": total.detach(), "loss_ce": ce.detach(), "loss_squad": squad.detach()})

    return loss_of


def make_plan(windows: Sequence[TrainingWindow], recipe: FinetuneRecipe) -> list[list[int]]:
    """The batches of all epochs in order; a fraction of an epoch takes its first batches."""
    lengths = np.array([len(item.window) for item in windows])
    plan: list[list[int]] = []
    whole, part = int(recipe.epochs), recipe.epochs - int(recipe.epochs)
    for epoch in range(whole + (part > 0)):
        batches = epoch_batches(lengths, recipe.batch_tokens, seed=recipe.seed * 1000 + epoch)
        if epoch == whole:
            batches = batches[: max(1, round(part * len(batches)))]
        plan += [batch.tolist() for batch in batches]
    return plan


def loop_options(recipe: FinetuneRecipe) -> LoopOptions:
    """The loop's share of a recipe."""
    return LoopOptions(
        learning_rate=recipe.learning_rate,
        warmup=recipe.warmup,
        weight_decay=recipe.weight_decay,
        betas=(0.9, recipe.beta2),
        eps=recipe.eps,
        clip=recipe.clip,
        precision=recipe.precision,
        seed=recipe.seed,
    )


def _logits(model: nn.Module, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    out = model(**modeling.inputs_of(model, batch.ids, batch.mask, batch.token_types))
    return out.start_logits, out.end_logits


def _dropout(source: str, recipe: FinetuneRecipe) -> dict[str, Any]:
    if modeling.load_config(source).model_type == "bert":
        return {"hidden_dropout_prob": recipe.dropout, "attention_probs_dropout_prob": recipe.attention_dropout}
    return {"dropout": recipe.dropout, "attention_dropout": recipe.attention_dropout, "qa_dropout": 0.0}


def _check_vocabulary(tokenizer: Tokenizer, model: PreTrainedModel, job: Job) -> None:
    if model.config.vocab_size < tokenizer.size:
        raise TrainingError(
            f"The tokenizer of {job.model} has {tokenizer.size} entries, its model only {model.config.vocab_size} embeddings: no pair."
        )
    if job.teacher:
        with tempfile.TemporaryDirectory() as folder:
            save_tokenizer(job.teacher, Path(folder))
            other = Tokenizer(Path(folder) / "tokenizer.json").vocabulary_hash
        if other != tokenizer.vocabulary_hash:
            raise VocabularyMismatch(f"Expected one vocabulary, found two, in {job.model} and in {job.teacher}. Name a teacher with the student's.")


def _windows(job: Job, tokenizer: Tokenizer) -> tuple[list[JSON], list[TrainingWindow]]:
    recipe = job.recipe
    negatives = NegativeOptions(recipe.negative_windows, recipe.wrong_paragraph)
    counts, windows = [], []
    for number, source in enumerate(job.sources):
        examples = source.load(recipe.seed)
        made = training_windows(examples, tokenizer, recipe.windows(), negatives, seed=recipe.seed * 1000 + number)
        windows += made
        counts.append(
            {
                "file": Path(source.path).name,
                "sha256": squad.source_hash(source.path),
                "questions": len(examples),
                "unanswerable": sum(e.is_impossible for e in examples),
                "wrong_paragraphs": sum(item.wrong_paragraph for item in made),
                "windows": len(made),
            }
        )
        _say(f"{source.path}: {len(examples)} questions, {len(made)} windows, {sum(w.end == 0 for w in made)} of them without an answer")
    return counts, windows


def _say_plan(job: Job, model: nn.Module, windows: Sequence[TrainingWindow], plan: Sequence[Sequence[int]]) -> None:
    lengths = np.array([len(item.window) for item in windows])
    padded = sum(len(batch) * int(lengths[list(batch)].max()) for batch in plan)
    tokens = sum(int(lengths[list(batch)].sum()) for batch in plan)
    parameters = sum(p.numel() for p in model.parameters())
    _say(f"model {job.model}: {parameters:,} parameters; teacher: {job.teacher or 'none'}")
    _say(
        f"{len(windows)} windows, {len(plan)} steps, {tokens:,} tokens, "
        f"padding waste {100 * (1 - tokens / padded):.1f} %, {torch.get_num_threads()} threads"
    )
    _say(f"recipe: {json.dumps(dataclasses.asdict(job.recipe))}")


def _identity(job: Job) -> str:
    parts: list[object] = [dataclasses.asdict(job.recipe), [(squad.source_hash(s.path), s.fraction) for s in job.sources], weights_hash(job.model)]
    parts.append(weights_hash(job.teacher) if job.teacher else None)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _summary(job: Job, model: nn.Module, counts: list[JSON], result: LoopResult, windows: Sequence[TrainingWindow]) -> JSON:
    return {
        "name": job.name,
        "start": weights_hash(job.model),
        "teacher": weights_hash(job.teacher) if job.teacher else None,
        "data": counts,
        "recipe": dataclasses.asdict(job.recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "windows": len(windows),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "losses": result.losses,
    }


def _finish(job: Job, model: PreTrainedModel, work: Path, summary: JSON) -> None:
    """Save the checkpoint, choose the no-answer threshold, write the manifest last, and put the folder in its place."""
    model.eval()
    model.save_pretrained(work)
    threshold = None
    if job.dev:
        began = time.monotonic()
        report = development_report(_live_reader(model, work, job), job.dev, job.dev_limit, job.recipe.seed)
        summary["development"] = {
            "file": Path(job.dev).name,
            "sha256": squad.source_hash(job.dev),
            **report,
            "seconds": round(time.monotonic() - began, 1),
        }
        threshold = report.get("no_answer_threshold")
        auroc = f"no-answer AUROC {report['no_answer_auroc']:.3f}" if threshold is not None else "no article of two paragraphs, so no threshold"
        _say(f"development split: EM {report['exact_match']:.2f}  F1 {report['f1']:.2f}  {auroc}")
    trained = any(count["unanswerable"] or count["wrong_paragraphs"] for count in summary["data"])
    os.replace(work / "state", _kept_state(work))  # until the checkpoint is in place, so that a kill here loses nothing
    write_manifest(
        work, kind="checkpoint", name=job.name, parent=summary["start"], config=summary, seed=job.recipe.seed, no_answer=NoAnswer(trained, threshold)
    )
    os.replace(work, job.out)
    shutil.rmtree(_kept_state(work))


def _kept_state(work: Path) -> Path:
    return work.with_name(work.name + ".state")


def _training_run(job: Job, summary: JSON, argv: list[str]) -> RunFile:
    development = summary.get("development")
    best = Scores(development["exact_match"], development["f1"], development["count"]) if development else None
    results = training_results(
        questions=sum(count["questions"] for count in summary["data"]),
        steps=summary["steps"],
        tokens=summary["tokens"],
        seconds=summary["seconds"],
        loss=summary["losses"].get("loss"),
        best=best,
        recipe={**summary["recipe"], "start": summary["start"], "teacher": summary["teacher"]},
    )
    results["development"] = development
    data = [DataFile(count["file"], count["sha256"], count["questions"], "training") for count in summary["data"]]
    subject = Subject(job.name, job.name, weights_hash(str(job.out)), precision=job.recipe.precision, threads=torch.get_num_threads())
    return new_run("training", job.name, [subject], data, ["pocketqa", "finetune", *argv], results)


def _live_reader(model: PreTrainedModel, work: Path, job: Job) -> Reader:
    return Reader(Tokenizer(work / "tokenizer.json"), PyTorchRuntime(model, job.recipe.precision), job.name)


def _parse(argv: list[str]) -> Job:
    parser = argparse.ArgumentParser(prog="pocketqa finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub name of a BERT or DistilBERT, with or without a question-answering head")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE[@SHARE]", help="SQuAD-format files (.json, .gz, .bz2, .xz) or Hub names")
    parser.add_argument("--out", required=True, type=Path, help="folder to leave the checkpoint in; OUT.run holds the unfinished run")
    parser.add_argument("--teacher", metavar="MODEL", help="a fine-tuned reader with the same vocabulary to learn from")
    parser.add_argument("--dev", metavar="FILE", help="development split: scored at the end, and the no-answer threshold is chosen on it")
    parser.add_argument("--dev-limit", type=int, metavar="N", help="use a seeded sample of N development questions")
    parser.add_argument("--name", help="name in manifest and model card (default: the folder's)")
    parser.add_argument("--run-file", type=Path, metavar="PATH", help="write a run file to this folder or .json path")
    recipes.add_flags(parser, FinetuneRecipe)
    given = parser.parse_args(argv)
    sources = tuple(DataSource.parse(text) for text in given.data)
    recipe, name = recipes.from_arguments(given, FinetuneRecipe), given.name or given.out.name
    return Job(given.model, sources, given.out, given.teacher, given.dev, given.dev_limit, recipe, name, given.run_file)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)

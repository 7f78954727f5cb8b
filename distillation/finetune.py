"""Fine-tune a question-answering head, with a teacher or without.

    pocketqa finetune bert-base-uncased --data train-v1.1.json --out runs-local/teacher
    pocketqa finetune student-start --teacher runs-local/teacher --data train-v1.1.json --out runs-local/student
    pocketqa finetune TINY --teacher TEACHER --data train-v1.1.json --recipe tinybert_intermediate --out T1
    pocketqa finetune T1 --teacher TEACHER --data train-v1.1.json --recipe tinybert_prediction --out T2
    pocketqa finetune BASE --data train-v1.1.json@0.01 --epochs 1 --out out/try          # one question in a hundred: minutes on a CPU
    pocketqa finetune BASE --task sst2 --data GLUE --out out/sst2                        # classification: see `pocketqa finetune --task sst2 --help`

With --teacher this is the DistilBERT paper's second distillation step: alpha_ce x KL to the teacher's start and end distributions at a
temperature + alpha_squad x cross-entropy to the gold answers.  What a teacher says of the data is computed once, into --cache.  TinyBERT's task
stages and patient distillation are recipes with losses between layers.  A stopped run goes on when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from distillation.evaluate import development_report
from distillation.knowledge.transfer import Trained, Transfer
from distillation.models import modeling
from distillation.models.students import parameters_of
from distillation.models.teachers import check_fit
from distillation.questions.data import (
    DataSource,
    NegativeOptions,
    TrainingBatch,
    TrainingWindow,
    padded,
    to_batch,
    training_windows,
    unlabelled_windows,
    usable,
)
from distillation.questions.finetune_recipe import ReaderRecipe
from distillation.questions.question_losses import loss_function, teachers_of
from distillation.questions.teacher_cache import windows_hash
from distillation.text.corpus import Rows, plan_size, plan_steps
from distillation.training import processes, recipes
from distillation.training.checkpoints import grown_from, model_key, weights_hash
from distillation.training.loop import LoopResult, Step, check, run
from distillation.training.stage import Stage, carry_out
from pocketqa import squad
from pocketqa.arguments import verb_parser
from pocketqa.errors import DataError, TrainingError
from pocketqa.evaluation import longest_window
from pocketqa.features import Tokenizer
from pocketqa.reader import Reader
from pocketqa.runs import DataFile, RunFile, Subject, new_run, training_results
from pocketqa.runtimes.pytorch import PyTorchRuntime
from pocketqa.types import JSON, NoAnswer, Scores

DEVELOPMENT_SEED = 0  # of the sample that --dev-limit takes and of the wrong paragraphs: runs of several seeds are scored on the same questions


@dataclass(frozen=True, slots=True)
class Job:
    """A fine-tuning run, fully resolved."""

    model: str
    sources: tuple[DataSource, ...]
    unlabelled: tuple[DataSource, ...]
    teachers: tuple[str, ...]
    cache: Path
    dev: str | None
    dev_limit: int | None
    recipe: ReaderRecipe
    stage: Stage


def main(argv: list[str]) -> int:
    """The verb `pocketqa finetune`."""
    if any(word == "--task" or word.startswith("--task=") for word in argv):
        from distillation import classify

        return classify.main(argv)
    job = _parse(argv)
    out, name = job.stage.out, job.stage.name
    following = f"pocketqa evaluate {out} --data dev-v1.1.json    or    pocketqa package {out} --out models/{name}"
    if not _trains_head(job):
        teachers = " ".join(job.teachers)
        following = f"pocketqa finetune {out} --teacher {teachers} --data train-v1.1.json --recipe tinybert_prediction --out {out}-reader"
    return carry_out(job.stage, lambda: finetune(job), lambda summary: _training_run(job, summary, argv), following)


def finetune(job: Job) -> JSON:
    """Run a job and leave a checkpoint folder; returns its summary (also in the manifest)."""
    recipe = job.recipe
    torch.manual_seed(recipe.seed)
    model = modeling.load_reader(job.model, **_dropout(job.model, recipe))
    transfer = Transfer(model.config, modeling.load_config(job.teachers[0]) if job.teachers else model.config, recipe)
    trained = Trained(model, transfer, _trains_head(job))
    tokenizer = Tokenizer(job.stage.begin(job.model) / "tokenizer.json")
    check_fit(tokenizer, padded(recipe.max_tokens), [job.model, *job.teachers])
    scores = job.dev is not None and trained.headed
    if scores:
        _check_development(tokenizer, model, str(job.dev), job.dev_limit)
    counts, windows = _windows(job, tokenizer)
    if not windows:
        raise TrainingError("The data give no training window: every question is longer than --max-question-tokens. Raise it or name other data.")
    plan = plan_steps(_lengths(windows), recipe)
    _say_plan(job, trained, windows, plan)
    check(recipe, job.stage.keeping, scores, plan)
    running, cached = teachers_of(job.teachers, job.cache, windows, tokenizer.pad_id, recipe)

    def make_batch(indices: Sequence[int], step: int) -> TrainingBatch:
        return to_batch([windows[i] for i in indices], tokenizer.pad_id, tuple(logits.of(indices) for logits in cached))

    def score() -> float:
        return float(development_report(_live_reader(model, job, counts), str(job.dev), job.dev_limit, DEVELOPMENT_SEED)["f1"])

    loss_of = loss_function(trained, running, recipe, distilled=bool(job.teachers))
    scored = score if scores else None
    facts: JSON = {"parent": weights_hash(job.model), "grown": grown_from(job.model), "seed": recipe.seed, "no_answer": NoAnswer(_refuses(counts))}
    kept = dataclasses.replace(job.stage.keeping, **facts)
    result = run(trained, plan, make_batch, loss_of, recipe, kept, _identity(job, tokenizer, windows), score=scored, say=processes.say)
    summary = _summary(job, model, counts, result, windows)
    if processes.is_main():
        _finish(job, trained, summary)
    processes.wait()
    return summary


def _dropout(source: str, recipe: ReaderRecipe) -> dict[str, Any]:
    family = modeling.load_config(source).model_type
    return {**modeling.dropout_rates(family, recipe.dropout, recipe.attention_dropout), **({"qa_dropout": 0.0} if family == "distilbert" else {})}


def _check_development(tokenizer: Tokenizer, model: PreTrainedModel, dev: str, limit: int | None) -> None:
    """Cut the development split into windows as scoring will, hours from now.  Raises DataError or TrainingError for what it could not score."""
    examples = squad.load(dev, limit, DEVELOPMENT_SEED)
    if not any(example.answers for example in examples):
        raise DataError(f"{dev}: expected answerable questions to choose a threshold on, found none. Name another development split.")
    longest = longest_window(tokenizer, examples)
    if longest > (positions := model.config.max_position_embeddings):
        raise TrainingError(f"{dev} is scored in windows of up to {longest} tokens, and the model has {positions} positions. Leave --dev out.")


def _windows(job: Job, tokenizer: Tokenizer) -> tuple[list[JSON], list[TrainingWindow]]:
    recipe = job.recipe
    negatives = NegativeOptions(recipe.negative_windows, recipe.wrong_paragraph)
    counts: list[JSON] = []
    windows: list[TrainingWindow] = []
    for number, source in enumerate((*job.sources, *job.unlabelled)):
        given, labelled = source.load(recipe.seed), number < len(job.sources)
        examples = usable(given, tokenizer, recipe.windows())
        if labelled:
            made = training_windows(examples, tokenizer, recipe.windows(), negatives, seed=recipe.seed * 1000 + number)
        else:
            made = unlabelled_windows(examples, tokenizer, recipe.windows())
        windows += made
        facts = {
            "file": Path(source.path).name,
            "sha256": squad.source_hash(source.path),
            "questions": len(examples),
            "questions_left_out": len(given) - len(examples),
            "unanswerable": sum(e.is_impossible for e in examples) if labelled else 0,
            "wrong_paragraphs": sum(item.wrong_paragraph for item in made),
            "windows": len(made),
        }
        counts.append(facts if labelled else {**facts, "unlabelled": True})
        known = f"{sum(w.end == 0 for w in made)} of them without an answer" if labelled else "whose answers are not looked at"
        processes.say(f"{source.path}: {len(examples)} questions, {len(made)} windows, {known}")
        if left_out := facts["questions_left_out"]:
            processes.say(f"{source.path}: {left_out} questions left out: no token, or more than --max-question-tokens {recipe.max_question_tokens}")
    return counts, windows


def _say_plan(job: Job, trained: Trained, windows: Sequence[TrainingWindow], plan: Sequence[Step]) -> None:
    tokens, waste = plan_size(plan, _lengths(windows), padded)
    parameters = parameters_of(trained.student)
    processes.say(f"model {job.model}: {parameters:,} parameters; teacher: {', '.join(job.teachers) or 'none'}")
    if trained.transfer.pairs:
        processes.say("layers: " + ", ".join(f"{ours} from {theirs}" for ours, theirs in trained.transfer.pairs.items()))
    processes.say(
        f"{len(windows)} windows, {len(plan)} steps, {tokens:,} tokens, padding waste {100 * waste:.1f} %, {torch.get_num_threads()} threads"
    )
    processes.say(f"recipe: {json.dumps(recipes.settings_of(job.recipe))}")


def _lengths(windows: Sequence[TrainingWindow]) -> Rows:
    return np.array([len(item.window) for item in windows], dtype=np.int64)


def _identity(job: Job, tokenizer: Tokenizer, windows: Sequence[TrainingWindow]) -> str:
    data = [[(squad.source_hash(s.path), s.fraction) for s in sources] for sources in (job.sources, job.unlabelled)]
    models = model_key(job.model), [model_key(source) for source in job.teachers]
    parts: list[object] = [recipes.settings_of(job.recipe), data, tokenizer.vocabulary_hash, *models]
    if not all(Path(source.path).is_file() for source in (*job.sources, *job.unlabelled)):  # a Hub data set, known by its name alone
        parts += [windows_hash(windows), [(item.start, item.end) for item in windows]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _trains_head(job: Job) -> bool:
    """Whether a loss reaches the question-answering head; TinyBERT's intermediate stage has none that does."""
    return not job.teachers or job.recipe.alpha_ce + job.recipe.alpha_squad > 0


def _summary(job: Job, model: nn.Module, counts: list[JSON], result: LoopResult, windows: Sequence[TrainingWindow]) -> JSON:
    teachers = [weights_hash(source) for source in job.teachers]
    return {
        "name": job.stage.name,
        "start": weights_hash(job.model),
        "teacher": teachers[0] if len(teachers) == 1 else teachers or None,
        "grown": grown_from(job.model),
        "data": counts,
        "recipe": recipes.settings_of(job.recipe),
        "parameters": parameters_of(model),
        "windows": len(windows),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "losses": result.losses,
    }


def _finish(job: Job, trained: Trained, summary: JSON) -> None:
    """Score the development split and choose the no-answer threshold on it; leave the checkpoint."""
    trained.eval()
    threshold = None
    if not trained.headed:
        processes.say("no loss reached the question-answering head: the encoder is left without one, for a next stage, and is not scored")
    elif job.dev:
        began = time.monotonic()
        report = development_report(_live_reader(trained.student, job, summary["data"]), job.dev, job.dev_limit, DEVELOPMENT_SEED)
        summary["development"] = {
            "file": Path(job.dev).name,
            "sha256": squad.source_hash(job.dev),
            **report,
            "seconds": round(time.monotonic() - began, 1),
        }
        threshold = report.get("no_answer_threshold")
        auroc = f"no-answer AUROC {report['no_answer_auroc']:.3f}" if threshold is not None else "no article of two paragraphs, so no threshold"
        processes.say(f"development split: EM {report['exact_match']:.2f}  F1 {report['f1']:.2f}  {auroc}")
    no_answer = NoAnswer(_refuses(summary["data"]), threshold)
    job.stage.finish(trained.kept, tokenizer_from=job.model, parent=summary["start"], summary=summary, seed=job.recipe.seed, no_answer=no_answer)


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
    name = job.stage.name
    subject = Subject(name, name, weights_hash(str(job.stage.out)), precision=job.recipe.precision, threads=torch.get_num_threads())
    return new_run("training", name, [subject], data, ["pocketqa", "finetune", *argv], results)


def _refuses(counts: Sequence[JSON]) -> bool:
    """Whether there are questions without an answer in the data: then the reader may refuse, and its windows are compared beside their [CLS].

    Windows without the answer of a question that has one (--negative-windows) do not count: what saw no question without an answer must not refuse,
    and a manifest has one flag for both.
    """
    return any(count["unanswerable"] or count["wrong_paragraphs"] for count in counts)


def _live_reader(model: PreTrainedModel, job: Job, counts: Sequence[JSON]) -> Reader:
    runtime = PyTorchRuntime(model, job.recipe.precision)
    return Reader(Tokenizer(job.stage.work / "tokenizer.json"), runtime, job.stage.name, no_answer=NoAnswer(_refuses(counts)))


def _parse(argv: list[str]) -> Job:
    parser = verb_parser("pocketqa finetune", __doc__)
    words = "folder or Hub name of a BERT, DistilBERT or MobileBERT, with or without a question-answering head"
    parser.add_argument("model", help=words)
    parser.add_argument(
        "--data",
        nargs="+",
        required=True,
        metavar="FILE[@SHARE]",
        help="SQuAD-format files (.json, .gz, .bz2, .xz) or Hub NAME[:SPLIT] (default: train)",
    )
    words = "fine-tuned reader with the same vocabulary to learn from; of several, the mean of their probabilities is learnt"
    teachers = parser.add_mutually_exclusive_group()
    teachers.add_argument("--teacher", nargs="+", default=[], metavar="MODEL", help=words)
    words = "none, whatever weights and temperature of its soft targets the recipe has"
    teachers.add_argument("--no-teacher", action="store_true", help=words)
    words = "questions for a teacher's soft targets alone: their answers, if they have any, are not looked at"
    parser.add_argument("--unlabelled", nargs="+", default=[], metavar="FILE[@SHARE]", help=words)
    parser.add_argument("--cache", type=Path, metavar="DIR", help="where a teacher's logits are kept (default: teacher-cache beside OUT)")
    parser.add_argument("--dev", metavar="FILE", help="development split: scored at the end, and the no-answer threshold is chosen on it")
    parser.add_argument("--dev-limit", type=int, metavar="N", help="use a sample of N development questions, the same ones whatever --seed")
    Stage.add_flags(parser)
    recipes.add_flags(parser, ReaderRecipe)
    given = parser.parse_args(argv)
    sources, unlabelled = (tuple(DataSource.parse(text) for text in texts) for texts in (given.data, given.unlabelled))
    recipe = recipes.from_arguments(given, ReaderRecipe, taught=bool(given.teacher or given.no_teacher))
    if not given.teacher and (recipe.any_transfer() or not recipe.alpha_squad or unlabelled):
        raise TrainingError("Losses between layers, --alpha-squad 0 and --unlabelled need a --teacher, found none. Name one.")
    if given.dev_limit is not None and not given.dev:
        raise TrainingError("--dev-limit takes a sample of --dev, found none. Name a development split, or leave it out.")
    if unlabelled and not recipe.alpha_ce:
        raise TrainingError("--unlabelled is for soft targets, which --alpha-ce 0 leaves out. Set --alpha-ce above 0.")
    cache = given.cache or given.out.with_name("teacher-cache")
    return Job(given.model, sources, unlabelled, tuple(given.teacher), cache, given.dev, given.dev_limit, recipe, Stage.of(given))

"""Distil a smaller encoder from a masked-language model on a text corpus.

    pocketqa distill bert-base-uncased --corpus text/*.txt.xz --recipe distilbert_paper --out runs-local/distilbert
    pocketqa distill TEACHER --corpus text/ --tokens 10000000 --out runs-local/student                 # six layers of twelve, small-CPU settings
    pocketqa distill TEACHER --corpus text/ --random-init --out runs-local/ablation                         # the same student, drawn at random
    pocketqa distill TEACHER --layers 4 --hidden 312 --intermediate 1200 --recipe tinybert_general --corpus text/ --out runs-local/tinybert
    pocketqa distill IB_TEACHER --layers 24 --bottleneck 128 --recipe mobilebert_progressive --corpus text/ --out runs-local/mobilebert

The student is a DistilBERT: some of the teacher's layers (see `distillation/models/students.py`), its embeddings with token-type row 0 added to the
positions, and its language head.  With --hidden, --heads or --intermediate it has a geometry of its own; with --bottleneck it is a MobileBERT; with
--student it is any checkpoint.  The teacher needs a trained language head; with several, soft targets are the mean of their probabilities, and losses
between layers look at the first.  An inverted-bottleneck teacher for MobileBERT comes from `pocketqa grow --inverted-bottleneck` and
`pocketqa pretrain`.  Some text is kept apart, and the losses on it are printed at the end and, with --evaluate-every, on the way.  A stopped run goes
on when the same command is given again.

Departures from MobileBERT's release: AdamW instead of LAMB, one schedule over all phases, no next-sentence loss, layers below the one that learns
frozen (there: a tenth of the learning rate).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distillation.knowledge.distill_losses import StepBatch, final_loss, loss_function, measure, trains_head
from distillation.knowledge.distill_recipe import DistillRecipe
from distillation.knowledge.transfer import Trained, Transfer
from distillation.models import modeling, students
from distillation.models.distill_start import Start, Started, add_flags, start_of, start_student
from distillation.models.teachers import check_fit, check_hidden, check_logits, language_teachers
from distillation.text import lm, mlm
from distillation.text.corpus import Corpus, CorpusArguments, Rows, hold_out, plan_steps
from distillation.text.masking import masked_batch
from distillation.text.text_training import say_text, shared_corpus, text_identity, text_run, text_summary
from distillation.training import processes, recipes
from distillation.training.checkpoints import model_key, weights_hash
from distillation.training.loop import LoopResult, Step, run
from distillation.training.stage import Stage, carry_out
from pocketqa.arguments import verb_parser
from pocketqa.features import Tokenizer
from pocketqa.types import JSON

DEFAULT_TEACHER = "bert-base-uncased"
PAPER_WIDTH = 768  # of BERT-base, for which the paper's settings are made
FEW_TOKENS = 65_536  # a step: below, the settings are those of a small machine


@dataclass(frozen=True, slots=True)
class Job:
    """A distillation, fully resolved."""

    teachers: tuple[str, ...]
    text: CorpusArguments
    start: Start
    recipe: DistillRecipe
    stage: Stage
    recipe_named: bool = False


def main(argv: list[str]) -> int:
    """The verb `pocketqa distill`."""
    job = _parse(argv)
    stage = job.stage
    following = f"pocketqa finetune {stage.out} --data train-v1.1.json [--teacher A_READER] --out {stage.out}-reader"
    origins = ("start", "teacher", "student")
    return carry_out(stage, lambda: distill(job), lambda summary: text_run(stage, summary, "student", origins, argv), following)


def distill(job: Job) -> JSON:
    """Run a job and leave a checkpoint folder; returns its summary (also in the manifest)."""
    recipe, stage = job.recipe, job.stage
    torch.manual_seed(recipe.seed)
    teachers = language_teachers(job.teachers)
    started = start_student(job.start, job.teachers[0], teachers[0], recipe)
    student = started.model
    check_logits(student, teachers, job.teachers)
    if recipe.alpha_cos:
        check_hidden(student, teachers[0])
    transfer = Transfer(student.config, teachers[0].config, recipe)
    work = stage.begin(job.teachers[0])
    check_fit(Tokenizer(work / "tokenizer.json"), recipe.max_tokens, [*job.teachers, *([job.start.student] if job.start.student else [])])
    corpus = shared_corpus(job.text, work, recipe)
    rows, apart = hold_out(corpus.lengths, recipe.heldout_tokens)
    plan = plan_steps(corpus.lengths, recipe, rows, recipe.tokens)
    headed = started.headed or trains_head(len(plan), recipe, list(transfer.pairs))
    trained = Trained(student, transfer, headed, embedded=started.headed)
    _say_plan(job, trained, corpus, plan, apart, started.origin)

    def make_batch(indices: Sequence[int], step: int) -> StepBatch:
        return StepBatch(masked_batch(corpus, indices, step, recipe), step)

    scores: list[dict[str, float]] = []

    def score() -> float:
        found = measure(trained, teachers, corpus, apart, recipe, len(plan))
        processes.say(_say_losses(found))
        scores.append(found)
        return -final_loss(found, recipe)

    loss_of = loss_function(trained, teachers, recipe, len(plan))
    keeping = dataclasses.replace(stage.keeping, parent=_parent(job), seed=recipe.seed)
    identity = _identity(job, corpus)
    result = run(trained, plan, make_batch, loss_of, recipe, keeping, identity, score=score if len(apart) else None, say=processes.say)
    if not scores and len(apart) and processes.is_main():  # else the loop has just taken the last one
        score()
    development = _development(job, trained, scores[-1], corpus, apart) if scores else None
    summary = _summary(job, started, corpus, plan, result, development)
    if not trained.headed:
        processes.say("nothing trained the student's language head: the encoder is left without one")
    stage.finish(trained.kept, tokenizer_from=job.teachers[0], parent=summary["start"], summary=summary, seed=recipe.seed)
    return summary


def _say_plan(job: Job, trained: Trained, corpus: Corpus, plan: Sequence[Step], apart: Rows, origin: JSON) -> None:
    student = trained.student
    layers = modeling.depth(student.config)
    processes.say(f"student: {type(student).__name__}, {layers} layers, {students.parameters_of(student):,} parameters; start: {json.dumps(origin)}")
    if trained.transfer.pairs:
        processes.say("layers: " + ", ".join(f"{ours} from {theirs}" for ours, theirs in trained.transfer.pairs.items()))
    processes.say(f"teacher: {', '.join(job.teachers)}")
    say_text(corpus, plan, apart)
    processes.say(f"recipe: {json.dumps(recipes.settings_of(job.recipe))}")
    tokens = job.recipe.batch_tokens * job.recipe.accumulation
    if student.config.hidden_size >= PAPER_WIDTH and tokens < FEW_TOKENS and not job.recipe_named:
        processes.say(
            f"{tokens:,} tokens a step suit small models on a CPU; for students as wide as this one, --recipe distilbert_paper has the paper's"
        )


def _say_losses(found: JSON) -> str:
    return "held-out text: " + "  ".join(f"{name} {value:.4f}" for name, value in found.items())


def _development(job: Job, trained: Trained, found: JSON, corpus: Corpus, apart: Rows) -> JSON:
    """Losses on the text kept apart; `loss` and `perplexity` are of its masked tokens, where the student has a trained language head."""
    if not trained.headed:
        return {"distillation": found}
    words = mlm.measure(trained.student, corpus, apart, job.recipe)
    processes.say(words.say())
    return {**words.to_json(), "distillation": found}


def _identity(job: Job, corpus: Corpus) -> str:
    start = dataclasses.asdict(job.start) | {"student": model_key(job.start.student) if job.start.student else None}
    return text_identity(job.recipe, corpus, [model_key(source) for source in job.teachers], start)


def _parent(job: Job) -> str:
    """Hash of the weights that the student starts from, or is cut out of."""
    return weights_hash(job.start.student or job.teachers[0])


def _summary(job: Job, started: Started, corpus: Corpus, plan: Sequence[Step], result: LoopResult, development: JSON | None) -> JSON:
    teachers = [weights_hash(source) for source in job.teachers]
    return {
        "step": "distill",
        "name": job.stage.name,
        "start": _parent(job),
        "teacher": teachers[0] if len(teachers) == 1 else teachers,
        "student": started.origin,
        **text_summary(started.model, corpus, job.recipe, plan, result),
        "development": development,
    }


def _parse(argv: list[str]) -> Job:
    parser = verb_parser("pocketqa distill", __doc__)
    words = f"folder or Hub name of a {lm.FAMILIES} with a trained language head; several make an ensemble (default {DEFAULT_TEACHER})"
    parser.add_argument("teacher", nargs="*", default=[DEFAULT_TEACHER], help=words)
    CorpusArguments.add_flags(parser)
    add_flags(parser)
    Stage.add_flags(parser)
    recipes.add_flags(parser, DistillRecipe)
    given = parser.parse_args(argv)
    recipe = recipes.from_arguments(given, DistillRecipe)
    return Job(tuple(given.teacher), CorpusArguments.of(given), start_of(given), recipe, Stage.of(given), bool(given.recipe))

"""Masked-language modelling over a text corpus: gives an encoder a language head, or trains on.

    pocketqa pretrain BASE --corpus text/*.txt.xz --out runs-local/base-mlm
    pocketqa pretrain BASE --layers 12 --insert copy --corpus text/ --tokens 10000000 --out runs-local/teacher-mlm     # grown on the way
    pocketqa pretrain bert-base-uncased --corpus wikitext:wikitext-103-raw-v1 --recipe pretrain_bert --out runs-local/more

A corpus is text files (.txt, also .gz, .bz2, .xz, .zst), folders of them, or Hub data sets NAME[@REVISION][:CONFIG[:SPLIT]][#COLUMN]: a paragraph a
line, a blank line between documents.  It is tokenised once, into --cache.  Some of it is kept apart, the same text whatever --seed, and the loss on
it is printed at the end and, with --evaluate-every, on the way.  A stopped run goes on when the same command is given again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from distillation.models import modeling
from distillation.models.modeling import dropout_rates
from distillation.models.students import parameters_of
from distillation.models.teachers import check_fit
from distillation.text import lm, mlm
from distillation.text.corpus import Corpus, CorpusArguments, Rows, hold_out, plan_steps
from distillation.text.masking import MaskedBatch, masked_batch
from distillation.text.pretrain_recipe import PretrainRecipe
from distillation.text.text_training import say_text, shared_corpus, text_identity, text_run, text_summary
from distillation.training import processes, recipes
from distillation.training.checkpoints import grown_from, model_key, weights_hash
from distillation.training.loop import LoopResult, Step, run
from distillation.training.stage import Stage, carry_out
from pocketqa.arguments import verb_parser
from pocketqa.features import Tokenizer
from pocketqa.types import JSON


@dataclass(frozen=True, slots=True)
class Job:
    """A pre-training run, fully resolved."""

    model: str
    text: CorpusArguments
    layers: int | None  # grow to so many
    insert: str
    recipe: PretrainRecipe
    stage: Stage


def main(argv: list[str]) -> int:
    """The verb `pocketqa pretrain`."""
    job = _parse(argv)
    stage = job.stage
    following = f"pocketqa distill {stage.out} --corpus {' '.join(job.text.paths)} --out {stage.out}-student"
    return carry_out(stage, lambda: pretrain(job), lambda summary: text_run(stage, summary, "teacher", ("start", "grown"), argv), following)


def pretrain(job: Job) -> JSON:
    """Run a job and leave a checkpoint folder; returns its summary (also in the manifest)."""
    recipe, stage = job.recipe, job.stage
    torch.manual_seed(recipe.seed)
    model, new_head = _start(job)
    work = stage.begin(job.model)
    check_fit(Tokenizer(work / "tokenizer.json"), recipe.max_tokens, [job.model])
    corpus = shared_corpus(job.text, work, recipe)
    if new_head and recipe.unigram_bias:
        mlm.start_bias(lm.decoder_bias(model), corpus.counts, corpus.vocabulary.special)
    rows, apart = hold_out(corpus.lengths, recipe.heldout_tokens)
    plan = plan_steps(corpus.lengths, recipe, rows, recipe.tokens)
    _say_plan(job, model, corpus, plan, apart)

    def make_batch(indices: Sequence[int], step: int) -> MaskedBatch:
        return masked_batch(corpus, indices, step, recipe)

    scores: list[mlm.Development] = []

    def score() -> float:
        measured = mlm.measure(model, corpus, apart, recipe)
        processes.say(measured.say())
        scores.append(measured)
        return -measured.loss

    parent = weights_hash(job.model)
    result = run(
        model,
        plan,
        make_batch,
        mlm.loss_function(model),
        recipe,
        dataclasses.replace(stage.keeping, parent=parent, grown=_grown(job), seed=recipe.seed),
        _identity(job, corpus),
        score=score if len(apart) else None,
        say=processes.say,
    )
    if not scores and len(apart) and processes.is_main():  # else the loop has just taken the last one
        score()
    development = scores[-1] if scores else None
    summary = _summary(job, model, corpus, plan, result, development)
    stage.finish(model, tokenizer_from=job.model, parent=parent, summary=summary, seed=recipe.seed)
    return summary


def _start(job: Job) -> tuple[PreTrainedModel, bool]:
    """The model to train, and whether its language head is new."""
    config = modeling.load_config(job.model)
    model, missing = lm.load_or_start(job.model, **dropout_rates(config.model_type, job.recipe.dropout, job.recipe.attention_dropout))
    if job.layers is not None and job.layers != config.num_hidden_layers:
        model = lm.grow_language_model(model, job.layers, job.insert)
    return model, bool(missing)


def _say_plan(job: Job, model: PreTrainedModel, corpus: Corpus, plan: Sequence[Step], apart: Rows) -> None:
    processes.say(f"model {job.model}: {type(model).__name__}, {model.config.num_hidden_layers} layers, {parameters_of(model):,} parameters")
    say_text(corpus, plan, apart)
    processes.say(f"recipe: {json.dumps(recipes.settings_of(job.recipe))}")


def _identity(job: Job, corpus: Corpus) -> str:
    return text_identity(job.recipe, corpus, model_key(job.model), job.layers, job.insert)


def _grown(job: Job) -> JSON | None:
    """How the model was grown, here or before."""
    shallow = modeling.load_config(job.model).num_hidden_layers
    if job.layers in (None, shallow):
        return grown_from(job.model)
    return {"from_layers": shallow, "layers": job.layers, "insert": job.insert}


def _summary(job: Job, model: PreTrainedModel, corpus: Corpus, plan: Sequence[Step], result: LoopResult, development: mlm.Development | None) -> JSON:
    return {
        "step": "pretrain",
        "name": job.stage.name,
        "start": weights_hash(job.model),
        "grown": _grown(job),
        **text_summary(model, corpus, job.recipe, plan, result),
        "development": development.to_json() if development else None,
    }


def _parse(argv: list[str]) -> Job:
    parser = verb_parser("pocketqa pretrain", __doc__)
    parser.add_argument("model", help=f"folder or Hub name of a {lm.FAMILIES}, with or without a language head; a question-answering head is dropped")
    CorpusArguments.add_flags(parser)
    parser.add_argument("--layers", type=int, metavar="N", help="grow a BERT to so many layers first, as `pocketqa grow` does")
    parser.add_argument("--insert", choices=("copy", "quiet"), default="copy", help="how the layers between start (default copy)")
    Stage.add_flags(parser)
    recipes.add_flags(parser, PretrainRecipe)
    given = parser.parse_args(argv)
    recipe = recipes.from_arguments(given, PretrainRecipe)
    return Job(given.model, CorpusArguments.of(given), given.layers, given.insert, recipe, Stage.of(given))

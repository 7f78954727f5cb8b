"""Masked-language modelling over a text corpus: gives an encoder a language head, or trains on.

    pocketqa pretrain BASE --corpus text/*.txt.xz --out runs-local/base-mlm
    pocketqa pretrain BASE --layers 12 --insert copy --corpus text/ --tokens 10000000 --out runs-local/teacher-mlm     # grown on the way
    pocketqa pretrain bert-base-uncased --corpus wikitext:wikitext-103-raw-v1 --recipe pretrain_bert --out runs-local/more

A corpus is text files (.txt, also .gz, .bz2, .xz, .zst), folders of them, or Hub data sets NAME[@REVISION][:CONFIG[:SPLIT]]: a paragraph a line, a
blank line between documents.  It is tokenised once, into --cache.  Some of it is kept apart, and the loss on it is printed at the end and, with
--evaluate-every, on the way.  A stopped run goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from distillation.text import lm, mlm
from distillation.text.corpus import Corpus, CorpusArguments, Rows, Step, hold_out, open_corpus, plan_size, plan_steps
from distillation.text.masking import MaskedBatch, masked_batch
from distillation.text.pretrain_recipe import PretrainRecipe, TextRecipe
from distillation.training import processes, recipes
from distillation.training.checkpoints import weights_hash
from distillation.training.loop import LoopResult, Stopped, run
from distillation.training.stage import Stage
from pocketqa.errors import TrainingError
from pocketqa.folders import MANIFEST, ModelFolder
from pocketqa.runs import DataFile, RunFile, Subject, new_run, training_results, write
from pocketqa.types import JSON

LARGEST_WASTE = 0.05  # of positions, on padding


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
    try:
        summary = pretrain(job)
    except Stopped as stopped:
        processes.say(str(stopped))
        return 143
    if job.stage.run_file and processes.is_main():
        processes.say(f"run file: {write(_run_of(job, summary, argv), job.stage.run_file)}")
    if processes.is_main():
        print(json.dumps(summary, sort_keys=True))
    processes.say(f"next: pocketqa distill {job.stage.out} --corpus {' '.join(job.text.paths)} --out {job.stage.out}-student")
    return 0


def pretrain(job: Job) -> JSON:
    """Run a job and leave a checkpoint folder; returns its summary (also in the manifest)."""
    recipe, stage = job.recipe, job.stage
    torch.manual_seed(recipe.seed)
    model, new_head = _start(job)
    corpus = shared_corpus(job.text, stage.begin(job.model), recipe)
    check_fit(model, corpus, job.model)
    if new_head and recipe.unigram_bias:
        mlm.start_bias(lm.decoder_bias(model), corpus.counts, corpus.vocabulary.special)
    rows, apart = hold_out(corpus.lengths, recipe.heldout_tokens, recipe.seed)
    plan = plan_steps(corpus.lengths, recipe, rows)
    _say_plan(job, model, corpus, plan, apart)

    def make_batch(indices: Sequence[int], step: int) -> MaskedBatch:
        return masked_batch(corpus, indices, step, recipe)

    scores: list[mlm.Development] = []

    def score() -> float:
        measured = mlm.measure(model, corpus, apart, recipe)
        processes.say(measured.say())
        scores.append(measured)
        return -measured.loss

    result = run(
        model,
        plan,
        make_batch,
        mlm.loss_function(model),
        recipe,
        stage.keeping,
        _identity(job, corpus),
        score=score if len(apart) else None,
        say=processes.say,
    )
    if not scores and len(apart) and processes.is_main():  # else the loop has just taken the last one
        score()
    development = scores[-1] if scores else None
    summary = _summary(job, model, corpus, plan, result, development)
    stage.finish(model, tokenizer_from=job.model, parent=weights_hash(job.model), summary=summary, seed=recipe.seed)
    return summary


def shared_corpus(text: CorpusArguments, tokenizer: Path, recipe: TextRecipe) -> Corpus:
    """The corpus of a command line; the main process tokenises it, the others find it in the cache."""
    if not processes.is_main():
        processes.wait()
    corpus = open_corpus(text.paths, tokenizer, recipe.rows(text.limit), text.cache, processes.say)
    if processes.is_main():
        processes.wait()
    return corpus


def check_fit(model: PreTrainedModel, corpus: Corpus, name: str) -> None:
    """Raise TrainingError where a model has no embedding for some token or position of a corpus."""
    config = model.config
    if config.vocab_size < corpus.vocabulary.size:
        raise TrainingError(
            f"The tokenizer of {name} has {corpus.vocabulary.size} entries, its model only {config.vocab_size} embeddings: no pair. "
            "Copy the checkpoint again from where it came from."
        )
    if config.max_position_embeddings < corpus.options.max_tokens:
        raise TrainingError(
            f"--max-tokens {corpus.options.max_tokens} exceeds the {config.max_position_embeddings} positions of {name}. Lower --max-tokens."
        )


def grown_from(source: str) -> JSON | None:
    """What the manifest of a checkpoint says of how it was grown: from_layers, layers, insert; None where it was not."""
    if not (Path(source) / MANIFEST).is_file():
        return None
    config = ModelFolder(Path(source)).read_manifest().config
    grown: JSON | None = config if config.get("step") == "grow" else config.get("grown")
    return {key: grown[key] for key in ("from_layers", "layers", "insert")} if grown else None


def dropout_of(model_type: str, recipe: TextRecipe) -> dict[str, float]:
    """The configuration values that set a recipe's dropout."""
    names = ("dropout", "attention_dropout") if model_type == "distilbert" else ("hidden_dropout_prob", "attention_probs_dropout_prob")
    return dict(zip(names, (recipe.dropout, recipe.attention_dropout), strict=True))


def _start(job: Job) -> tuple[PreTrainedModel, bool]:
    """The model to train, and whether its language head is new."""
    config = lm.load_config(job.model)
    model, missing = lm.load_or_start(job.model, **dropout_of(config.model_type, job.recipe))
    if job.layers is not None and job.layers != config.num_hidden_layers:
        model = lm.grow_language_model(model, job.layers, job.insert)
    return model, bool(missing)


def _say_plan(job: Job, model: PreTrainedModel, corpus: Corpus, plan: Sequence[Step], apart: Rows) -> None:
    tokens, waste = plan_size(plan, corpus.lengths)
    parameters = sum(p.numel() for p in model.parameters())
    processes.say(f"model {job.model}: {type(model).__name__}, {model.config.num_hidden_layers} layers, {parameters:,} parameters")
    processes.say(corpus.say())
    processes.say(f"{len(apart):,} rows ({int(corpus.lengths[apart].sum()):,} tokens) kept apart for the development loss")
    processes.say(f"{len(plan):,} steps, {tokens:,} tokens, padding waste {100 * waste:.1f} %, {torch.get_num_threads()} threads")
    if waste > LARGEST_WASTE:
        processes.say(f"warning: more than {100 * LARGEST_WASTE:.0f} % of the positions are padding; raise --batch-tokens or leave --packed on")
    processes.say(f"recipe: {json.dumps(dataclasses.asdict(job.recipe))}")


def _identity(job: Job, corpus: Corpus) -> str:
    parts = [dataclasses.asdict(job.recipe), corpus.key, weights_hash(job.model), job.layers, job.insert]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _summary(job: Job, model: PreTrainedModel, corpus: Corpus, plan: Sequence[Step], result: LoopResult, development: mlm.Development | None) -> JSON:
    grown = grown_from(job.model)
    if job.layers is not None and job.layers != lm.load_config(job.model).num_hidden_layers:
        grown = {"from_layers": lm.load_config(job.model).num_hidden_layers, "layers": job.layers, "insert": job.insert}
    return {
        "step": "pretrain",
        "name": job.stage.name,
        "start": weights_hash(job.model),
        "grown": grown,
        "data": [{"file": source["name"], **{key: source[key] for key in ("sha256", "tokens", "documents")}} for source in corpus.sources],
        "corpus": corpus.key,
        "recipe": dataclasses.asdict(job.recipe),
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": sum(len(batch) for step in plan for batch in step),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "losses": result.losses,
        "development": development.to_json() if development else None,
    }


def _run_of(job: Job, summary: JSON, argv: Sequence[str]) -> RunFile:
    results = training_results(
        questions=summary["rows"],
        steps=summary["steps"],
        tokens=summary["tokens"],
        seconds=summary["seconds"],
        loss=summary["losses"].get("loss"),
        recipe={**summary["recipe"], "start": summary["start"], "grown": summary["grown"], "corpus": summary["corpus"]},
        stage="pretrain",
        losses=summary["losses"],
        development=summary["development"],
    )
    data = [DataFile(source["file"], source["sha256"], source["documents"], "training") for source in summary["data"]]
    name, threads = job.stage.name, torch.get_num_threads()
    subject = Subject(name, "teacher", weights_hash(str(job.stage.out)), precision=job.recipe.precision, threads=threads)
    return new_run("training", name, [subject], data, ["pocketqa", "pretrain", *argv], results)


def _parse(argv: list[str]) -> Job:
    parser = argparse.ArgumentParser(prog="pocketqa pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help=f"folder or Hub name of a {lm.FAMILIES}, with or without a language head; a question-answering head is dropped")
    CorpusArguments.add_flags(parser)
    parser.add_argument("--layers", type=int, metavar="N", help="grow a BERT to so many layers first, as `pocketqa grow` does")
    parser.add_argument("--insert", choices=("copy", "quiet"), default="copy", help="how the layers between start (default copy)")
    Stage.add_flags(parser)
    recipes.add_flags(parser, PretrainRecipe)
    given = parser.parse_args(argv)
    recipe = recipes.from_arguments(given, PretrainRecipe)
    return Job(given.model, CorpusArguments.of(given), given.layers, given.insert, recipe, Stage.of(given))

"""What trainings on text share: opening the corpus, saying the plan, the summary of a run and its run file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from distillation.models.students import parameters_of
from distillation.text.corpus import HELD_OUT_SEED, Corpus, CorpusArguments, Rows, open_corpus, plan_size
from distillation.text.pretrain_recipe import TextRecipe
from distillation.training import processes
from distillation.training.checkpoints import weights_hash
from distillation.training.loop import LoopResult, Step
from distillation.training.recipes import settings_of
from distillation.training.stage import Stage
from pocketqa.runs import DataFile, RunFile, Subject, new_run, training_results
from pocketqa.types import JSON

LARGEST_WASTE = 0.05  # of positions, on padding


def shared_corpus(text: CorpusArguments, tokenizer: Path, recipe: TextRecipe) -> Corpus:
    """The corpus of a command line; the main process tokenises it, the others find it in the cache."""
    if not processes.is_main():
        processes.wait()
    corpus = open_corpus(text.paths, tokenizer, recipe.rows(text.limit), text.cache, processes.say)
    if processes.is_main():
        processes.wait()
    return corpus


def say_text(corpus: Corpus, plan: Sequence[Step], apart: Rows) -> None:
    """Tell what will be read and in how many steps, with a warning where much of it is padding."""
    tokens, waste = plan_size(plan, corpus.lengths)
    processes.say(corpus.say())
    processes.say(f"{len(apart):,} rows ({int(corpus.lengths[apart].sum()):,} tokens) kept apart for the development loss")
    processes.say(f"{len(plan):,} steps, {tokens:,} tokens, padding waste {100 * waste:.1f} %, {torch.get_num_threads()} threads")
    if waste > LARGEST_WASTE:
        processes.say(f"warning: more than {100 * LARGEST_WASTE:.0f} % of the positions are padding; raise --batch-tokens or leave --packed on")


def text_identity(recipe: TextRecipe, corpus: Corpus, *start: object) -> str:
    """Hash of everything that a training on text depends on.  start: what settles the models that it begins with."""
    parts = [settings_of(recipe), corpus.key, *start]
    if recipe.heldout_tokens and recipe.seed != HELD_OUT_SEED:
        parts.append("one text kept apart for all seeds")  # once each seed kept its own apart
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def text_summary(model: PreTrainedModel, corpus: Corpus, recipe: TextRecipe, plan: Sequence[Step], result: LoopResult) -> JSON:
    """What the manifest says of any training on text."""
    return {
        "data": [{"file": source["name"], **{key: source[key] for key in ("sha256", "tokens", "documents")}} for source in corpus.sources],
        "corpus": corpus.key,
        "recipe": settings_of(recipe),
        "parameters": parameters_of(model),
        "rows": sum(len(batch) for step in plan for batch in step),
        "steps": result.steps,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "losses": result.losses,
    }


def text_run(stage: Stage, summary: JSON, role: str, origins: Sequence[str], argv: Sequence[str]) -> RunFile:
    """The run file of a finished training on text.  origins: the fields of the summary that say what it started from."""
    results = training_results(
        questions=summary["rows"],
        steps=summary["steps"],
        tokens=summary["tokens"],
        seconds=summary["seconds"],
        loss=summary["losses"].get("loss"),
        recipe={**summary["recipe"], **{key: summary[key] for key in (*origins, "corpus")}},
        stage=summary["step"],
        losses=summary["losses"],
        development=summary["development"],
    )
    data = [DataFile(source["file"], source["sha256"], source["documents"], "training") for source in summary["data"]]
    precision, threads = summary["recipe"]["precision"], torch.get_num_threads()
    subject = Subject(stage.name, role, weights_hash(str(stage.out)), precision=precision, threads=threads)
    return new_run("training", stage.name, [subject], data, ["pocketqa", summary["step"], *argv], results)

"""How long an ablation will take: from what is finished of it, else from counts of operations and a measured rate of this machine.

Operations are counted as twice the multiplications of matrix products, a backward pass as two forward ones; attention's own products are left out,
since they are a few percent at these lengths.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from distillation.ablation.ablation_plan import Common, LayerMaps, Plan, recipe_of, student_start
from distillation.ablation.ablation_work import Work
from pocketqa import squad
from pocketqa.folders import ModelFolder
from pocketqa.reporting.tables import duration
from pocketqa.runs import read

SHARE = 0.4  # of the rate of large products that trainings of small models reach here: a rough figure, corrected by the first finished run
LETTERS_PER_TOKEN = 4.3  # of English text in BERT's vocabulary
FORWARD, TRAINED = 2, 6  # operations a weight and token


@dataclass(frozen=True, slots=True)
class Times:
    """Expected seconds of one work, and whether they come from a finished one."""

    seconds: float
    known: bool


@dataclass(frozen=True, slots=True)
class Sizes:
    """What operations are counted from: weights of the layers of both models and of the vocabulary, and tokens of the data."""

    small: float
    large: float
    vocabulary: float
    questions: float  # of one pass over the training questions
    dev: float
    final: float


def layer_maps(common: Common) -> LayerMaps:
    """Depths of teacher and student, as the flags of all distillations say, and the layers that `pocketqa distill` takes by itself."""
    from distillation.models import modeling, students

    deep, start = modeling.depth(modeling.load_config(common.teacher)), student_start(common.distill_flags)
    layers, _ = students.layers_of_start(common.teacher, deep, start.layers or max(1, deep // 2), start.teacher_layers)
    return LayerMaps(deep, len(layers), layers)


def say_times(plan: Plan, common: Common, maps: LayerMaps, say: Callable[[str], None]) -> None:
    """Print what each kind of work is expected to take, and all of it.  Students that are only cut out of the teacher take seconds."""
    left = [work for work in plan.works if not work.done and work.verb != "student"]
    known = [_like(plan, work) for work in left]
    sizes = _sizes(common, maps) if None in known else None
    times = [
        Times(operations(work, sizes) / (SHARE * matrix_rate(_precision(work, common))), known=False)
        if sizes and seconds is None
        else Times(seconds or 0.0, known=True)
        for work, seconds in zip(left, known, strict=True)
    ]
    for verb in ("distill", "finetune", "evaluate", "final"):
        of_verb = [expected for work, expected in zip(left, times, strict=True) if work.verb == verb]
        if of_verb:
            source = "as the finished ones took" if all(one.known for one in of_verb) else "estimated"
            say(f"{len(of_verb)} to {verb}: {duration(max(one.seconds for one in of_verb))} each, {source}")
    say(f"expected time of all that is left: {duration(sum(one.seconds for one in times))}")
    if not all(one.known for one in times):
        say(f"estimates: operations over {SHARE:.0%} of the rate of large matrix products measured now; a finished run of each kind replaces them")


def _like(plan: Plan, wanted: Work) -> float | None:
    """Seconds of a finished work of the same kind, of the same row if there is one; else None."""
    alike = [work for work in plan.works if work.done and _kind(work) == _kind(wanted)]
    if not alike:
        return None
    work = min(alike, key=lambda work: work.row.name != wanted.row.name)
    if work.leaves.suffix == ".json":
        return float(read(work.leaves).results["seconds"])
    return float(ModelFolder(work.leaves).read_manifest().config["seconds"])


def _kind(work: Work) -> tuple[object, ...]:
    """The same for works that take about the same time."""
    row = work.row
    if work.verb == "distill":
        return work.verb, row.distill if "--recipe" in row.distill else ()
    if work.verb == "finetune":
        return work.verb, row.teacher, row.stages, work.stage
    return work.verb, row.start == "reader"


def _precision(work: Work, common: Common) -> str:
    """Of a work's arithmetic."""
    from distillation.knowledge.distill_recipe import DistillRecipe
    from distillation.questions.finetune_recipe import ReaderRecipe

    kind = {"distill": DistillRecipe, "finetune": ReaderRecipe}.get(work.verb)
    return recipe_of(kind, work.words).precision if kind else common.precision


def operations(work: Work, sizes: Sizes) -> float:
    """Operations of one work, as its flags say."""
    from distillation.knowledge.distill_recipe import DistillRecipe
    from distillation.questions.finetune_recipe import ReaderRecipe

    if work.verb == "distill":
        text = recipe_of(DistillRecipe, work.words)
        predicted = 1.0 if text.ce_positions == "all" else text.masked  # share of the tokens whose vocabulary is computed
        vocabulary = predicted * sizes.vocabulary if text.alpha_ce + text.alpha_mlm else 0.0
        return text.tokens * (TRAINED * (sizes.small + vocabulary) + FORWARD * (sizes.large + vocabulary))
    if work.verb == "finetune":
        recipe = recipe_of(ReaderRecipe, work.words)
        runs_along = recipe.any_transfer() or recipe.kl_over_padding
        passes = (recipe.epochs if runs_along else 1.0) if work.row.teacher else 0.0  # of the teacher; its soft targets are kept
        return sizes.questions * (recipe.epochs * TRAINED * sizes.small + passes * FORWARD * sizes.large)
    tokens = sizes.dev if work.verb == "evaluate" else sizes.final
    return tokens * FORWARD * (sizes.large if work.row.start == "reader" else sizes.small)


def _sizes(common: Common, maps: LayerMaps) -> Sizes:
    from distillation.models import modeling
    from distillation.questions.data import DataSource

    config = modeling.load_config(common.teacher)
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * modeling.inner_size(config)
    sources = [DataSource.parse(text) for text in common.data]
    return Sizes(
        small=maps.student * layer,
        large=maps.teacher * layer,
        vocabulary=config.vocab_size * config.hidden_size,
        questions=sum(source.fraction * _tokens(source.path, split="train") for source in sources),
        dev=_tokens(common.dev, common.dev_limit),
        final=_tokens(common.final) if common.final else 0.0,
    )


def _tokens(path: str, limit: int | None = None, split: str = "validation") -> float:
    """Of the questions and passages of a file, from their letters."""
    return sum(len(example.question) + len(example.context) for example in squad.load(path, limit, split=split)) / LETTERS_PER_TOKEN


@functools.cache
def matrix_rate(precision: str) -> float:
    """Operations a second of large matrix products on this machine, in a precision of a recipe."""
    from distillation import speed
    from distillation.training.loop import DTYPES

    return 1e12 * speed.matrix_rate(DTYPES[precision])

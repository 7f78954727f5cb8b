"""How long an ablation will take: from what is finished of it, else from counts of operations and a measured rate of this machine.

Operations are counted as twice the multiplications of matrix products, a backward pass as two forward ones; attention's own products are left out,
since they are a few percent at these lengths.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from distillation.ablation.ablation_plan import Common, LayerMaps, Plan
from distillation.ablation.ablation_work import Work
from distillation.training import recipes
from pocketqa import squad
from pocketqa.folders import ModelFolder
from pocketqa.reporting.tables import duration
from pocketqa.runs import read

SHARE = 0.4  # of the rate of large products that trainings of small models reach here: a rough figure, corrected by the first finished run
SIZE = 1024  # of the matrices of the probe
LETTERS_PER_TOKEN = 4.3  # of English text in BERT's vocabulary
FORWARD, TRAINED = 2, 6  # operations a weight and token

R = TypeVar("R", bound=recipes.Recipe)


@dataclass(frozen=True, slots=True)
class Times:
    """Expected seconds of one work, and whether they come from a finished one."""

    seconds: float
    known: bool


def layer_maps(common: Common) -> LayerMaps:
    """Depths of teacher and student, as the flags of all distillations say, and the layers that `pocketqa distill` takes by itself."""
    from distillation.models import modeling, students
    from distillation.training.checkpoints import grown_from

    deep = modeling.depth(modeling.load_config(common.teacher))
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--layers", type=int)
    few = parser.parse_known_args(list(common.distill_flags))[0].layers or max(1, deep // 2)
    grown = grown_from(common.teacher)
    return LayerMaps(deep, few, students.choose_layers(deep, few, grown["from_layers"] if grown else None))


def say_times(plan: Plan, common: Common, maps: LayerMaps, say: Callable[[str], None]) -> None:
    """Print what each kind of work is expected to take, and all of it."""
    left = [work for work in plan.works if not work.done]
    guesses = _guesses(common, maps) if any(_like(plan, work) is None for work in left) else {}
    times = [_expected(plan, work, guesses) for work in left]
    for verb in ("distill", "finetune", "evaluate", "final"):
        of_verb = [expected for work, expected in zip(left, times, strict=True) if work.verb == verb]
        if of_verb:
            source = "as the finished ones took" if all(one.known for one in of_verb) else "estimated"
            say(f"{len(of_verb)} to {verb}: {duration(max(one.seconds for one in of_verb))} each, {source}")
    say(f"expected time of all that is left: {duration(sum(one.seconds for one in times))}")
    if not all(one.known for one in times):
        say(f"estimates: operations over {SHARE:.0%} of the rate of large matrix products measured now; a finished run of each kind replaces them")


def _expected(plan: Plan, work: Work, guesses: dict[str, float]) -> Times:
    finished = _like(plan, work)
    return Times(guesses[work.verb], known=False) if finished is None else Times(finished, known=True)


def _like(plan: Plan, wanted: Work) -> float | None:
    """Seconds of a finished work of the same verb, or None."""
    for work in plan.works:
        if work.verb == wanted.verb and work.done and work.row.teacher == wanted.row.teacher:
            if work.leaves.suffix == ".json":
                return float(read(work.leaves).results["seconds"])
            return float(ModelFolder(work.leaves).read_manifest().config["seconds"])
    return None


def _guesses(common: Common, maps: LayerMaps) -> dict[str, float]:
    """Expected seconds of one work of each verb."""
    from distillation.knowledge.distill_recipe import DistillRecipe
    from distillation.models import modeling

    config = modeling.load_config(common.teacher)
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * int(getattr(config, "intermediate_size", 4 * config.hidden_size))
    small, large = maps.student * layer, maps.teacher * layer
    recipe = _recipe(DistillRecipe, common.distill_flags)
    predicted = 1.0 if recipe.ce_positions == "all" else recipe.masked  # share of the tokens whose vocabulary is computed
    vocabulary = predicted * config.vocab_size * config.hidden_size
    distilled = TRAINED * (small + vocabulary) + FORWARD * (large + vocabulary)
    rate = SHARE * matrix_rate()
    return {
        "distill": common.tokens * distilled / rate,
        "finetune": _question_tokens(common) * TRAINED * small / rate,
        "evaluate": _letters(common.dev, common.dev_limit) / LETTERS_PER_TOKEN * FORWARD * small / rate,
        "final": _letters(common.final) / LETTERS_PER_TOKEN * FORWARD * small / rate if common.final else 0.0,
    }


def _question_tokens(common: Common) -> float:
    """Tokens of a fine-tuning, from the letters of its questions and passages."""
    from distillation.questions.data import DataSource
    from distillation.questions.finetune_recipe import ReaderRecipe

    sources = [DataSource.parse(text) for text in common.data]
    letters = sum(source.fraction * _letters(source.path) for source in sources)
    return _recipe(ReaderRecipe, common.finetune_flags).epochs * letters / LETTERS_PER_TOKEN


def _recipe(kind: type[R], flags: Sequence[str]) -> R:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    recipes.add_flags(parser, kind)
    return recipes.from_arguments(parser.parse_known_args(list(flags))[0], kind)


def _letters(path: str, limit: int | None = None) -> float:
    return float(sum(len(example.question) + len(example.context) for example in squad.load(path, limit)))


def matrix_rate() -> float:
    """Operations a second of products of bf16 matrices on this machine."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    a: Any = torch.rand(SIZE, SIZE, device=device).to(torch.bfloat16)
    b = a.T.contiguous()
    best = float("inf")
    for _ in range(8):  # the first ones warm up
        began = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the product
        best = min(best, time.perf_counter() - began)
    return 2 * SIZE**3 / best

"""How long a comparison on tasks will take: from finished fine-tunings of the same model and task, else counted as `ablation_cost` counts."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distillation.ablation.ablation_cost import FORWARD, LETTERS_PER_TOKEN, SHARE, TRAINED, matrix_rate
from distillation.ablation.ablation_work import Work
from distillation.glue.classification import task_named
from distillation.glue.task_recipe import TaskRecipe
from distillation.glue.tasks import load_examples
from distillation.training import recipes
from pocketqa.reporting.tables import duration


def say_times(works: Sequence[Work], data: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Print what is expected of each task and of all that is left.  data: the folder of each task."""
    known = {_cell(work): seconds for work in works if work.done and (seconds := _seconds(work)) is not None}
    left = [work for work in works if not work.done]
    counted = [work for work in left if _cell(work) not in known]
    times = [known[_cell(work)] if _cell(work) in known else _counted(work, data[_task(work)]) for work in left]
    for task in dict.fromkeys(map(_task, left)):
        mine = [seconds for work, seconds in zip(left, times, strict=True) if _task(work) == task]
        say(f"{len(mine)} on {task_named(task).title}: {duration(sum(mine))}")
    say(f"expected time of all that is left: {duration(sum(times))}")
    if counted:
        say(f"estimates: operations over {SHARE:.0%} of the rate of large matrix products measured now; a finished one of each kind replaces them")


def _counted(work: Work, data: str) -> float:
    return operations(work, data) / (SHARE * matrix_rate(_recipe(work).precision))


def operations(work: Work, data: str) -> float:
    """Operations of a fine-tuning and of the score after it."""
    from distillation.models import modeling

    task, recipe = task_named(_task(work)), _recipe(work)
    config = modeling.load_config(work.words[0])
    wide, inner = int(config.hidden_size), modeling.inner_size(config)
    weights = modeling.depth(config) * (4 * wide**2 + 2 * wide * inner)
    train, dev = (_tokens(data, task.name, split, recipe.max_tokens) for split in task.splits)
    return weights * (recipe.epochs * TRAINED * train + FORWARD * dev)


def _recipe(work: Work) -> TaskRecipe:
    """As the verb resolves it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    recipes.add_flags(parser, TaskRecipe)
    flags = parser.parse_known_args(list(work.words))[0]
    named = flags.recipe or task_named(_task(work)).recipe
    return recipes.from_arguments(argparse.Namespace(**{**vars(flags), "recipe": named}), TaskRecipe)


@functools.cache  # of every model and seed the same
def _tokens(data: str, name: str, split: str, longest: int) -> float:
    task = task_named(name)
    texts = (len(example.first) + len(example.second or "") for example in load_examples(data, task, split))
    return sum(min(letters / LETTERS_PER_TOKEN + 2, longest) for letters in texts)


def _task(work: Work) -> str:
    return work.words[work.words.index("--task") + 1]


def _cell(work: Work) -> tuple[str, str]:
    return _task(work), work.row.name


def _seconds(work: Work) -> float | None:
    found = json.loads(Path(work.note).read_text(encoding="utf-8")).get("seconds")
    return None if found is None else float(found)

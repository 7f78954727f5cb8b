"""What the student of `pocketqa distill` starts from, as the command line says it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from distillation.knowledge.distill_recipe import DistillRecipe
from distillation.models import modeling, students
from distillation.text import lm
from distillation.training import processes
from distillation.training.checkpoints import weights_hash
from pocketqa.errors import TrainingError
from pocketqa.types import JSON


@dataclass(frozen=True, slots=True)
class Start:
    """What the student starts from, as the command line says it."""

    student: str | None = None
    layers: int | None = None
    teacher_layers: tuple[int, ...] | None = None
    random: bool = False
    drop_token_types: bool = False
    hidden: int | None = None
    heads: int | None = None
    intermediate: int | None = None
    bottleneck: int | None = None

    @property
    def configured(self) -> bool:
        """Whether the student has a geometry of its own."""
        return any(value is not None for value in (self.hidden, self.heads, self.intermediate, self.bottleneck))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Those of a Start."""
    group = parser.add_argument_group("student")
    group.add_argument("--layers", type=int, metavar="N", help="layers of the student (default: half the teacher's)")
    group.add_argument("--teacher-layers", type=int, nargs="+", metavar="I", help="copy exactly these layers, counted from 0")
    group.add_argument("--drop-token-types", action="store_true", help="do not fold token-type row 0 into the positions")
    group.add_argument("--random-init", action="store_true", help="draw all weights at random instead of copying")
    group.add_argument("--student", metavar="MODEL", help="start from this checkpoint")
    group.add_argument("--hidden", type=int, metavar="H", help="hidden size of a student drawn at random (default: the teacher's)")
    group.add_argument("--heads", type=int, metavar="A", help="its attention heads (default: the teacher's)")
    group.add_argument(
        "--intermediate", type=int, metavar="I", help="its feed-forward size (default: the teacher's; 4 x --hidden or --bottleneck where given)"
    )
    group.add_argument("--bottleneck", type=int, metavar="H", help="make it a MobileBERT, so wide inside its layers")


def start_of(given: argparse.Namespace) -> Start:
    """From a parsed command line.  Raises TrainingError for wishes that contradict one another."""
    layers = tuple(given.teacher_layers) if given.teacher_layers else None
    start = Start(
        given.student,
        given.layers,
        layers,
        given.random_init,
        given.drop_token_types,
        given.hidden,
        given.heads,
        given.intermediate,
        given.bottleneck,
    )
    problems = []
    sizes = {name: getattr(given, name) for name in ("layers", "hidden", "heads", "intermediate", "bottleneck")}
    problems += [f"--{name} must be at least 1, found {value}" for name, value in sizes.items() if value is not None and value < 1]
    if start.student and (start.configured or start.random or start.layers or layers):
        problems.append("--student is whole; it cannot be combined with --layers, --teacher-layers, --random-init or sizes")
    if start.drop_token_types and (start.student or start.configured or start.random):
        problems.append("--drop-token-types is for layers that are copied; it cannot be combined with --student, --random-init or sizes")
    if layers and (start.configured or start.random):
        problems.append("--teacher-layers copies layers; it cannot be combined with --random-init or sizes")
    if layers and start.layers not in (None, len(layers)):
        problems.append(f"--layers {start.layers} contradicts the {len(layers)} of --teacher-layers")
    if problems:
        raise TrainingError("The student cannot be made: " + "; ".join(problems) + ".")
    return start


@dataclass(frozen=True, slots=True, eq=False)
class Started:
    """A student before its training."""

    model: PreTrainedModel
    origin: JSON  # what the manifest says of its start
    headed: bool  # whether its language head and embeddings are trained ones, its own or its teacher's, not drawn at random


def start_student(start: Start, source: str, teacher: PreTrainedModel, recipe: DistillRecipe) -> Started:
    """The student.  source: where the teacher was loaded from.

    Raises TrainingError where teacher and wishes do not fit.
    """
    headed = True
    if start.student:
        made, missing = lm.load_or_start(start.student)
        if missing and recipe.any_distillation():
            raise lm.no_head(start.student, missing)
        headed, origin = not missing, {"student": weights_hash(start.student)}
    else:
        deep = modeling.depth(teacher.config)
        layers = start.layers or (len(start.teacher_layers) if start.teacher_layers else max(1, deep // 2))
        if layers > deep:
            raise TrainingError(
                f"A student of {layers} layers cannot start from a teacher of {deep}. Ask for 1 to {deep}, or name one with --student."
            )
        if start.bottleneck:
            made = students.bottleneck_student(teacher, layers, start.bottleneck, start.hidden, start.heads, start.intermediate)
            headed, origin = students.gives_head(teacher, made), {"configuration": "mobilebert"}
        elif start.configured or start.random:
            intermediate = start.intermediate or (None if start.hidden else modeling.inner_size(teacher.config))
            made = students.configured_student(teacher.config, layers, start.hidden, start.heads, intermediate)
            headed, origin = False, {"configuration": "distilbert"}
        else:
            made, origin = _copied(start, source, teacher, layers)
    for name, value in modeling.dropout_rates(made.config.model_type, recipe.dropout, recipe.attention_dropout).items():
        setattr(made.config, name, value)
    _set_dropout(made, recipe)
    return Started(made, origin, headed)


def _copied(start: Start, source: str, teacher: PreTrainedModel, layers: int) -> tuple[PreTrainedModel, JSON]:
    typed = teacher.config.model_type == "bert"  # has token types
    if start.drop_token_types and not typed:
        raise TrainingError(f"Expected a BERT for --drop-token-types, found {type(teacher).__name__} in {source}. Leave the flag out.")
    chosen, how = students.layers_of_start(source, modeling.depth(teacher.config), layers, start.teacher_layers)
    processes.say(f"student: teacher layers {' '.join(map(str, chosen))}, {how}")
    fold = typed and not start.drop_token_types
    return students.language_student(teacher, chosen, fold), {"teacher_layers": list(chosen), "fold_token_type": fold}


def _set_dropout(model: PreTrainedModel, recipe: DistillRecipe) -> None:
    """Give the dropout of a model that is built already the recipe's rates."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            inside = name.endswith(("attention.dropout", "attention.self.dropout"))
            module.p = recipe.attention_dropout if inside else recipe.dropout
        if hasattr(module, "dropout_prob"):  # what the fast attention path reads
            module.dropout_prob = recipe.attention_dropout

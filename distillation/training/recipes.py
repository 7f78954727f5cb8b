"""Recipes are data: a TOML file read into a frozen dataclass, flags on top, every problem gathered and raised at once.

`Recipe` holds what the training loop needs; each verb that trains adds its own fields in a subclass.
"""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pocketqa.errors import TrainingError

PRESETS = Path(__file__).parents[1] / "presets"
PREFIX = "ablation_"  # of the presets that are ablations and not recipes
LATER = {"schedule": "linear"}  # fields that older trainings lack, and what those did
PRECISIONS = ("bf16", "fp16", "fp32")
# Fields that say nothing without a teacher, beside all weights of losses.
TAUGHT = ("temperature", "kl_over_padding", "layer_map", "hidden_embeddings", "hidden_normalised", "projection")

T = TypeVar("T", float, int, bool, str)
R = TypeVar("R", bound="Recipe")


def setting(
    default: T, words: str, *, above: float | None = None, least: float | None = None, most: float | None = None, choices: tuple[str, ...] = ()
) -> T:
    """A field of a recipe: its default, one line for --help, and what it may be (above < value, least <= value <= most, or one of choices)."""
    made: Any = field(default=default, metadata={"words": words, "above": above, "least": least, "most": most, "choices": choices})
    return made  # type: ignore[no-any-return]


def share(default: float, words: str) -> float:
    """A field between 0 and 1."""
    return setting(default, words, least=0.0, most=1.0)


@dataclass(frozen=True, slots=True)
class Recipe:
    """What every training has.

    One optimiser step sees `accumulation` micro-batches of at most `batch_tokens` tokens each, padding included, however many processes share them.

    Where the defaults come from (each verb's recipe says it of its own):
    dropout, weight_decay, beta1: Devlin et al. 2018, appendix A.2; clip, max_tokens (of questions): the code released with it.
    beta2, eps, warmup (of fine-tuning): Liu et al. 2019.
    This project's own choices, for hidden size 384 on a CPU: epochs, batch_tokens, accumulation, precision, seed; learning_rate, above the 5e-5 of
    Devlin et al. 2018 since small models want more (Turc et al. 2019 try up to 3e-4); attention_dropout 0, because dropping attention probabilities,
    the largest tensors of all, takes time.
    """

    epochs: float = setting(1.0, "passes over the data; a fraction takes the first batches of a pass", above=0)
    batch_tokens: int = setting(6000, "tokens of a micro-batch, padding included", least=1)
    accumulation: int = setting(1, "micro-batches of one optimiser step, over all processes", least=1)
    learning_rate: float = setting(2e-4, "largest learning rate, after a linear warm-up", above=0)
    warmup: float = share(0.06, "share of all steps in which the learning rate rises")
    schedule: str = setting("linear", "after the warm-up: linear to 0, or constant", choices=("linear", "constant"))
    weight_decay: float = setting(0.01, "on matrices, not on biases and LayerNorms", least=0)
    clip: float = setting(1.0, "largest norm of the gradient", above=0)
    beta1: float = share(0.9, "AdamW's first decay")
    beta2: float = share(0.98, "AdamW's second decay")
    eps: float = setting(1e-6, "AdamW's epsilon", above=0)
    dropout: float = share(0.1, "on hidden states")
    attention_dropout: float = share(0.0, "on attention probabilities; above 0 it takes time on a CPU")
    max_tokens: int = setting(384, "longest sequence", least=8)
    precision: str = setting("bf16", "of products; weights and optimiser stay in fp32", choices=PRECISIONS)
    seed: int = setting(0, "of everything drawn at random", least=0)

    def problems(self) -> list[str]:
        """Sentences on everything that is wrong, empty when nothing is."""
        found = []
        for item in dataclasses.fields(self):
            found += _problems_of(_flag(item.name), getattr(self, item.name), item.metadata)
        for name in ("beta1", "beta2"):
            if getattr(self, name) == 1:  # a mean that never moves
                found.append(f"{_flag(name)} must be below 1, found {getattr(self, name)}")
        if self.batch_tokens < self.max_tokens:
            found.append(f"--batch-tokens ({self.batch_tokens}) must hold at least one sequence of --max-tokens ({self.max_tokens})")
        return found


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """All fields, as manifests and identities of runs hold them; without those that came later where they leave a training as it was before them."""
    return {name: value for name, value in dataclasses.asdict(recipe).items() if LATER.get(name) != value}


def add_flags(parser: argparse.ArgumentParser, kind: type[Recipe]) -> None:
    """One flag for every field, without defaults, so that only what was typed overrides the file."""
    group = parser.add_argument_group("recipe (each flag overrides the recipe file)")
    names = ", ".join(recipe_names(kind))
    group.add_argument("--recipe", metavar="FILE", help=f"TOML file with any of the fields below, or a recipe of the package: {names}")
    for item in dataclasses.fields(kind):
        words = f"{item.metadata['words']} (default {item.default})"
        options: dict[str, Any] = {"dest": f"recipe_{item.name}", "default": None, "help": words}
        if isinstance(item.default, bool):
            group.add_argument(_flag(item.name), action=argparse.BooleanOptionalAction, **options)
        else:
            metavar = "|".join(item.metadata["choices"]) or type(item.default).__name__.upper()
            group.add_argument(_flag(item.name), type=type(item.default), metavar=metavar, **options)


def from_arguments(arguments: argparse.Namespace, kind: type[R], taught: bool = True) -> R:
    """The recipe of a parsed command line.  Raises TrainingError with all problems at once.

    taught: whether there is a teacher; where there is none, a flag or recipe that names what only a teacher gives a meaning is refused.
    """
    typed = {item.name: given for item in dataclasses.fields(kind) if (given := getattr(arguments, f"recipe_{item.name}")) is not None}
    named = {**_of_file(arguments.recipe, kind), **typed}
    if found := [] if taught else [_flag(name) for name in named if name in TAUGHT or name.startswith("alpha_")]:
        raise TrainingError(f"Expected a --teacher for {', '.join(found)}, found none. Name one, or leave these out of the flags and of the recipe.")
    return resolve(kind, None, named)


def resolve(kind: type[R], path: str | None, overrides: dict[str, Any]) -> R:
    """The recipe of a TOML file (None: the defaults) with some fields replaced.  Raises TrainingError with all problems at once."""
    recipe = kind(**(_of_file(path, kind) | overrides))
    if found := recipe.problems():
        raise TrainingError("The recipe cannot be run: " + "; ".join(found) + ".")
    return recipe


def recipe_file(name: str) -> str:
    """Path of a recipe that comes with the package, by its name without .toml."""
    path = PRESETS / f"{name}.toml"
    if not path.is_file():
        raise TrainingError(f"Expected one of the recipes {', '.join(recipe_names())}, found {name!r}.")
    return str(path)


def recipe_names(kind: type[Recipe] | None = None) -> list[str]:
    """Names of the recipes of the package, of a kind those whose fields it has."""
    fields = {item.name for item in dataclasses.fields(kind)} if kind else None
    found = (path for path in sorted(PRESETS.glob("*.toml")) if not path.stem.startswith(PREFIX))
    return [path.stem for path in found if fields is None or fields >= tomllib.loads(path.read_text(encoding="utf-8")).keys()]


def _of_file(path: str | None, kind: type[Recipe]) -> dict[str, Any]:
    """The fields that a recipe file names, by name; none where there is no file."""
    if not path:
        return {}
    known: dict[str, Any] = {item.name: item for item in dataclasses.fields(kind)}
    if not Path(path).exists() and "/" not in path and not path.endswith(".toml"):
        path = recipe_file(path)
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"Expected a recipe in TOML at {path}: {error}") from None
    problems = [f"unknown field {name!r}" for name in table if name not in known]
    values = {}
    for name, value in table.items():
        if name in known:
            wanted = type(known[name].default)
            if isinstance(value, bool) is not (wanted is bool) or not isinstance(value, (int, float) if wanted is float else wanted):
                problems.append(f"{name} must be {wanted.__name__}, found {value!r}")
            else:
                values[name] = wanted(value)
    if problems:
        raise TrainingError(f"{path}: {'; '.join(problems)}. Fields: {', '.join(known)}.")
    return values


def _problems_of(flag: str, value: Any, bounds: Any) -> list[str]:
    above, least, most, choices = bounds["above"], bounds["least"], bounds["most"], bounds["choices"]
    if choices and value not in choices:
        return [f"{flag} must be {' or '.join(choices)}, found {value!r}"]
    if least == 0.0 and most == 1.0 and not 0 <= value <= 1:
        return [f"{flag} must be between 0 and 1, found {value}"]
    if above is not None and not value > above:
        return [f"{flag} must be above {above:g}, found {value}"]
    if least is not None and not value >= least:
        return [f"{flag} must be at least {least:g}, found {value}"]
    return []


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

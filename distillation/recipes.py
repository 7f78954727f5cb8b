"""Recipes are data: a TOML file read into a frozen dataclass, flags on top, every problem gathered and raised at once."""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketqa.errors import OptionsError, TrainingError
from pocketqa.types import SPECIAL_TOKENS, WindowOptions


@dataclass(frozen=True, slots=True)
class FinetuneRecipe:
    """Question-answering fine-tuning.  Defaults suit hidden size 384 on a CPU; `distillation/squad_paper.toml` holds the DistilBERT paper's.

    alpha_ce weighs the soft targets of a teacher, alpha_squad the gold answers (both 0.5 in the released DistilBERT script, as is temperature 2).
    attention_dropout is 0 because dropout inside attention takes PyTorch off its fast attention path on a CPU.
    """

    epochs: float = 2.0
    batch_tokens: int = 6000
    learning_rate: float = 2e-4
    warmup: float = 0.06
    weight_decay: float = 0.01
    clip: float = 1.0
    beta2: float = 0.98
    eps: float = 1e-6
    dropout: float = 0.1
    attention_dropout: float = 0.0
    max_tokens: int = 384
    doc_stride: int = 128
    max_question_tokens: int = 64
    negative_windows: float = 0.5
    wrong_paragraph: float = 0.1
    temperature: float = 2.0
    alpha_ce: float = 0.5
    alpha_squad: float = 0.5
    precision: str = "bf16"
    seed: int = 0

    def windows(self) -> WindowOptions:
        """How questions and passages are cut."""
        return WindowOptions(self.max_tokens, self.doc_stride, self.max_question_tokens)

    def problems(self) -> list[str]:
        """Sentences on everything that is wrong, empty when nothing is."""
        found = []
        for name in ("epochs", "batch_tokens", "learning_rate", "clip", "temperature"):
            if getattr(self, name) <= 0:
                found.append(f"{_flag(name)} must be above 0, found {getattr(self, name)}")
        for name in ("warmup", "dropout", "attention_dropout", "negative_windows", "wrong_paragraph"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{_flag(name)} must be between 0 and 1, found {getattr(self, name)}")
        if min(self.alpha_ce, self.alpha_squad) < 0 or self.alpha_ce + self.alpha_squad == 0:
            found.append(f"--alpha-ce and --alpha-squad must be 0 or more and not both 0, found {self.alpha_ce} and {self.alpha_squad}")
        if self.precision not in {"bf16", "fp32"}:
            found.append(f"--precision must be bf16 or fp32, found {self.precision!r}")
        if self.max_tokens - SPECIAL_TOKENS - self.max_question_tokens <= self.doc_stride:
            found.append(
                f"--max-tokens {self.max_tokens} leaves no step beyond --doc-stride {self.doc_stride} after questions of {self.max_question_tokens}"
            )
        try:
            self.windows()
        except OptionsError as error:
            found.append(str(error))
        if self.batch_tokens < self.max_tokens:
            found.append(f"--batch-tokens ({self.batch_tokens}) must hold at least one window of --max-tokens ({self.max_tokens})")
        return found


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for every field, without defaults, so that only what was typed overrides the file."""
    group = parser.add_argument_group("recipe (each flag overrides the recipe file)")
    group.add_argument("--recipe", metavar="FILE", help="TOML file with any of the fields below")
    for field in dataclasses.fields(FinetuneRecipe):
        default = field.default
        group.add_argument(
            _flag(field.name), type=type(default), metavar=type(default).__name__.upper(), help=f"default {default}", dest=f"recipe_{field.name}"
        )


def from_arguments(arguments: argparse.Namespace) -> FinetuneRecipe:
    """The recipe of a parsed command line.  Raises TrainingError with all problems at once."""
    known = {field.name: field for field in dataclasses.fields(FinetuneRecipe)}
    values = _read(arguments.recipe, known) if arguments.recipe else {}
    values |= {name: given for name in known if (given := getattr(arguments, f"recipe_{name}")) is not None}
    recipe = FinetuneRecipe(**values)
    if found := recipe.problems():
        raise TrainingError("The recipe cannot be run: " + "; ".join(found) + ".")
    return recipe


def _read(path: str, known: dict[str, Any]) -> dict[str, Any]:
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"Expected a recipe in TOML at {path}: {error}") from None
    problems = [f"unknown field {name!r}" for name in table if name not in known]
    values = {}
    for name, value in table.items():
        if name in known:
            wanted = type(known[name].default)
            if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
                problems.append(f"{name} must be {wanted.__name__}, found {value!r}")
            else:
                values[name] = wanted(value)
    if problems:
        raise TrainingError(f"{path}: {'; '.join(problems)}. Fields: {', '.join(known)}.")
    return values


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")

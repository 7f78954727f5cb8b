"""Settings of `pocketqa finetune` for questions: those of every reader, and of what it may learn from a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from distillation.knowledge.transfer_recipe import TransferRecipe
from distillation.training.recipes import FinetuneRecipe, Recipe, setting
from pocketqa.errors import OptionsError
from pocketqa.types import SPECIAL_TOKENS


@dataclass(frozen=True, slots=True)
class ReaderRecipe(FinetuneRecipe, TransferRecipe):
    """Fine-tuning on questions, with losses between layers where there is a teacher.

    Presets: squad_paper (the DistilBERT paper's second step), tinybert_intermediate and tinybert_prediction (one after the other), patient.
    """

    kl_over_padding: bool = setting(False, "let the soft targets take in every position, question and padding too (as released)")

    def problems(self) -> list[str]:
        """Those of every recipe, and of windows and weights."""
        found = Recipe.problems(self)
        if self.alpha_ce + self.alpha_squad == 0 and not self.any_transfer():
            found.append("--alpha-ce and --alpha-squad must not both be 0 without a loss between layers")
        if self.max_tokens - SPECIAL_TOKENS - self.max_question_tokens <= self.doc_stride:
            found.append(
                f"--max-tokens {self.max_tokens} leaves no step beyond --doc-stride {self.doc_stride} after questions of {self.max_question_tokens}"
            )
        try:
            self.windows()
        except OptionsError as error:
            found.append(str(error))
        return found

"""Settings of `pocketqa finetune` for questions: those of every reader, and of what it may learn from a teacher."""

from __future__ import annotations

from dataclasses import dataclass

from distillation.knowledge.transfer_recipe import TransferRecipe
from distillation.training.recipes import Recipe, setting, share
from pocketqa.errors import OptionsError
from pocketqa.types import SPECIAL_TOKENS, WindowOptions


@dataclass(frozen=True, slots=True)
class ReaderRecipe(Recipe, TransferRecipe):
    """Fine-tuning on questions, with losses between layers where there is a teacher.  Defaults suit hidden size 384 on a CPU.

    alpha_ce weighs the soft targets of a teacher, alpha_squad the gold answers (both 0.5 in the released DistilBERT script, as is temperature 2).
    epochs: as Devlin et al. 2018 for SQuAD 2.0.  doc_stride, max_question_tokens: numbers of the code released with it, where a stride is the step
    from window to window and longer questions are cut.
    This project's own choices: negative_windows and wrong_paragraph, so that a reader learns to refuse without seeing mostly refusals, and
    kl_over_padding off, because no answer lies in the question or in padding.
    Presets: squad_paper (the DistilBERT paper's second step), tinybert_intermediate and tinybert_prediction (one after the other), patient.
    """

    epochs: float = setting(2.0, "passes over the data; a fraction takes the first batches of a pass", above=0)
    doc_stride: int = setting(128, "overlap of two windows of a passage, in tokens", least=0)
    max_question_tokens: int = setting(64, "longer questions are left out", least=1)
    negative_windows: float = share(0.5, "share of the windows without their answer that are kept")
    wrong_paragraph: float = share(0.1, "questions put to another paragraph as well, as a share of all")
    temperature: float = setting(2.0, "of the soft targets", above=0)
    alpha_ce: float = setting(0.5, "weight of the soft targets of a teacher", least=0)
    alpha_squad: float = setting(0.5, "weight of the gold answers, where there is a teacher", least=0)
    kl_over_padding: bool = setting(False, "let the soft targets take in every position, question and padding too (as released)")

    def windows(self) -> WindowOptions:
        """How questions and passages are cut."""
        return WindowOptions(self.max_tokens, self.doc_stride, self.max_question_tokens)

    def problems(self) -> list[str]:
        """Those of every recipe, and of windows and weights."""
        found = Recipe.problems(self) + self.problems_of_transfer()
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

"""Settings of `pocketqa distill`."""

from __future__ import annotations

from dataclasses import dataclass

from distillation.knowledge.transfer_recipe import TransferRecipe
from distillation.text.pretrain_recipe import TextRecipe
from distillation.training.recipes import setting, share


@dataclass(frozen=True, slots=True)
class DistillRecipe(TextRecipe, TransferRecipe):
    """Distillation on text.  Defaults suit hidden size 384 on a CPU; `presets/distilbert_paper.toml` holds the released DistilBERT's settings.

    alpha_ce, alpha_mlm, alpha_cos 5, 2, 1, temperature 2, learning rate 5e-4, warm-up 5 %, clip 5: the command in the README of the released
    DistilBERT and the defaults of its script.  weight_decay 0 and eps 1e-6: the same script.  What differs from it, for speed on a CPU: soft targets
    at masked positions only, so that the vocabulary is computed for 15 % of the tokens (there all); no dropout, which short trainings do not need
    (0.1); one pass (3); packed rows of 256 tokens (a document's, of 512) and 6000 tokens a step (4K examples in the paper); tokens to predict drawn
    whatever their count (count_smoothing 0.7); bf16 (fp32); seed 0 (56).  The preset tells what differs in kind.

    knowledge: when losses between layers act (Sun et al. 2020, section 4.4).  auxiliary: all the time, beside the others.  joint: alone, for the
    first transfer_share of the steps, and then not at all.  progressive: the same, one layer after another from the lowest, those below frozen.
    """

    learning_rate: float = setting(5e-4, "largest learning rate, after a linear warm-up", above=0)
    warmup: float = share(0.05, "share of all steps in which the learning rate rises")
    weight_decay: float = setting(0.0, "on matrices, not on biases and LayerNorms", least=0)
    clip: float = setting(5.0, "largest norm of the gradient", above=0)
    dropout: float = share(0.0, "on the student's hidden states")
    alpha_ce: float = setting(5.0, "weight of the teacher's soft targets over the vocabulary", least=0)
    alpha_mlm: float = setting(2.0, "weight of the masked tokens themselves", least=0)
    alpha_cos: float = setting(1.0, "weight of 1 - cosine of the last hidden states", least=0)
    temperature: float = setting(2.0, "of the soft targets", above=0)
    ce_positions: str = setting("masked", "tokens with soft targets: masked ones, or all (as released)", choices=("masked", "all"))
    knowledge: str = setting("auxiliary", "when losses between layers act", choices=("auxiliary", "joint", "progressive"))
    transfer_share: float = share(0.0, "joint, progressive: share of all steps for the losses between layers")

    def problems(self) -> list[str]:
        """Those of every training on text, and of the losses."""
        found = TextRecipe.problems(self) + self.problems_of_transfer()
        if not self.any_distillation() and not self.any_transfer():
            found.append("every weight is 0; set --alpha-ce, --alpha-mlm, --alpha-cos or one of the losses between layers")
        if self.knowledge != "auxiliary" and not (self.any_transfer() and self.transfer_share > 0):
            found.append(f"--knowledge {self.knowledge} needs a loss between layers and --transfer-share above 0")
        if self.knowledge != "auxiliary" and self.transfer_share < 1 and not self.any_distillation():
            found.append(
                f"--knowledge {self.knowledge} leaves no loss for the steps after --transfer-share {self.transfer_share}; "
                "set it to 1, or --alpha-ce, --alpha-mlm or --alpha-cos above 0"
            )
        if self.knowledge == "auxiliary" and self.transfer_share > 0:
            found.append("--transfer-share needs --knowledge joint or progressive")
        return found

    def any_distillation(self) -> bool:
        """Whether one of the three losses of the last layer and the vocabulary is on."""
        return self.alpha_ce + self.alpha_mlm + self.alpha_cos > 0

"""Settings of the losses between the insides of two models, for `pocketqa distill` and `pocketqa finetune` alike."""

from __future__ import annotations

from dataclasses import dataclass

from distillation.training.recipes import setting


@dataclass(frozen=True)  # without slots: a class can have only one parent with them, and a recipe's is Recipe
class TransferRecipe:
    """Weights of losses between layers; each is off at 0.

    TinyBERT (Jiao et al. 2020): alpha_hidden and alpha_attention.  Patient KD (Sun et al. 2019): alpha_patient.  MobileBERT (Sun et al. 2020):
    alpha_hidden (its feature map), alpha_attention_kl, alpha_mean, alpha_variance.

    layer_map: for each student layer in turn the teacher layer it learns from, counted from 0, or - for none.  PKD-Skip 12 -> 6 is "1,3,5,7,9,-".
        Left empty: the teacher's layers in as many equal blocks as the student has, and the last of each (TinyBERT's i -> 3i for 12 -> 4).
    """

    alpha_hidden: float = setting(0.0, "weight of the squared difference of hidden states, summed over layers", least=0)
    alpha_attention: float = setting(0.0, "weight of the squared difference of attention scores before softmax, summed over layers", least=0)
    alpha_patient: float = setting(0.0, "weight of the squared difference of normalised [CLS] states, averaged over layers", least=0)
    alpha_attention_kl: float = setting(0.0, "weight of KL between attention distributions, summed over layers", least=0)
    alpha_mean: float = setting(0.0, "weight of the squared difference of the means of hidden states, summed over layers", least=0)
    alpha_variance: float = setting(0.0, "weight of the difference of the variances of hidden states, summed over layers", least=0)
    layer_map: str = setting("", "teacher layer of each student layer, as 1,3,5,7,9,- (default: the last of equal blocks)")
    hidden_embeddings: bool = setting(True, "let the loss on hidden states take the embeddings in")
    hidden_normalised: bool = setting(False, "compare hidden states at mean 0 and variance 1")
    projection: bool = setting(True, "where hidden sizes differ, learn a matrix (one for all layers) from the student's to the teacher's")

    def problems_of_transfer(self) -> list[str]:
        """A map of layers that no loss looks at."""
        return ["--layer-map needs a loss between layers, such as --alpha-hidden"] if self.layer_map and not self.any_transfer() else []

    def any_transfer(self) -> bool:
        """Whether a loss between layers is on."""
        return self.needs_states() or self.needs_scores()

    def needs_states(self) -> bool:
        """Whether hidden states are needed."""
        return self.alpha_hidden + self.alpha_patient + self.alpha_mean + self.alpha_variance > 0

    def needs_scores(self) -> bool:
        """Whether attention scores are needed."""
        return self.alpha_attention + self.alpha_attention_kl > 0

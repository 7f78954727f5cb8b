"""Settings of trainings on text: those of every corpus (`TextRecipe`), and those of `pocketqa pretrain`."""

from __future__ import annotations

from dataclasses import dataclass

from distillation.text.corpus import CorpusOptions
from distillation.training.recipes import Recipe, setting, share


@dataclass(frozen=True, slots=True)
class TextRecipe(Recipe):
    """A training on masked text.

    masked, mask_token, random_token: Devlin et al. 2018 (the rest of the chosen tokens stay as they are); drawn anew in each step: Liu et al. 2019.
    count_smoothing: rare tokens are chosen more often, p ~ count^-0.7 in the released DistilBERT (Sanh et al. 2019), after Lample and Conneau 2019.
    min_tokens: the released DistilBERT leaves out sequences of 11 tokens and fewer.
    This project's own choices: max_tokens, rows that a CPU trains on quickly, and heldout_tokens.
    """

    max_tokens: int = setting(256, "longest row, [CLS] and [SEP] included", least=8)
    packed: bool = setting(True, "let the text run on from row to row; else one document a row, and batches of like lengths")
    min_tokens: int = setting(12, "shorter rows are left out", least=3)
    masked: float = share(0.15, "share of the tokens that are to be predicted")
    mask_token: float = share(0.8, "share of those that become [MASK]")
    random_token: float = share(0.1, "share of those that become another token")
    count_smoothing: float = setting(0.0, "above 0: tokens are chosen with p ~ count^-X, 0.7 in the released DistilBERT", least=0)
    tokens: int = setting(0, "train on so many tokens, over as many passes as that takes (0: --epochs passes)", least=0)
    heldout_tokens: int = setting(50_000, "tokens kept apart for a development loss, at most a tenth of the corpus (0: none)", least=0)

    def problems(self) -> list[str]:
        """Those of every recipe, and of masks."""
        found = Recipe.problems(self)
        if self.mask_token + self.random_token > 1:
            found.append(f"--mask-token ({self.mask_token}) and --random-token ({self.random_token}) must not exceed 1 together")
        if self.masked == 0:
            found.append("--masked must be above 0: nothing would be predicted")
        return found

    def rows(self, limit: int = 0) -> CorpusOptions:
        """How text becomes rows."""
        return CorpusOptions(self.max_tokens, self.packed, self.min_tokens, limit)


@dataclass(frozen=True, slots=True)
class PretrainRecipe(TextRecipe):
    """Masked-language modelling.  Defaults suit hidden size 384 on a CPU; `presets/pretrain_bert.toml` holds the original's.

    learning_rate: twice BERT's 1e-4, as the defaults go on from trained layers for a short while; beta2 and eps: Liu et al. 2019.
    dropout: none, as ALBERT's (Lan et al. 2019, section 4.8), since text is seldom seen twice; it also costs time on a CPU.
    unigram_bias: a new head's bias starts at the log of how often each token occurs, so that training does not begin by learning frequencies.
    """

    learning_rate: float = setting(2e-4, "largest learning rate, after a linear warm-up", above=0)
    dropout: float = share(0.0, "on hidden states")
    unigram_bias: bool = setting(True, "start the bias of a new language head at the log frequencies of the corpus")

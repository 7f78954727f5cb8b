"""Settings of fine-tuning on a task of classification."""

from __future__ import annotations

from dataclasses import dataclass

from distillation.training.recipes import Recipe, setting, share


@dataclass(frozen=True, slots=True)
class TaskRecipe(Recipe):
    """Fine-tuning on a task.

    epochs, batch_rows, warmup, weight_decay: Devlin et al. 2018, section 4.1 and the code released with it (`presets/glue_bert.toml` holds the rest).
    learning_rate: their largest doubled, since small models want more (Turc et al. 2019 try up to 3e-4).
    head_dropout: 0.1 in BERT, 0.2 in the released DistilBERT.
    temperature, alpha_ce, alpha_gold: as in the second step on questions; for a real number the teacher's loss is a squared error.
    held_out: the number of epochs is fixed unless this is above 0; then so much of the TRAINING data is kept apart, and the best epoch on it wins.
    """

    epochs: float = setting(3.0, "passes over the data; a fraction takes the first batches of a pass", above=0)
    batch_rows: int = setting(32, "examples of one optimiser step, however many micro-batches and processes share them", least=1)
    learning_rate: float = setting(1e-4, "largest learning rate, after a linear warm-up", above=0)
    warmup: float = share(0.1, "share of all steps in which the learning rate rises")
    beta2: float = share(0.999, "AdamW's second decay")
    head_dropout: float = share(0.1, "before the classifier")
    max_tokens: int = setting(128, "longest example; longer ones lose the end of their longer text", least=8, most=512)
    temperature: float = setting(2.0, "of the soft targets", above=0)
    alpha_ce: float = setting(0.5, "weight of the soft targets of a teacher", least=0)
    alpha_gold: float = setting(0.5, "weight of the gold labels, where there is a teacher", least=0)
    held_out: float = share(0.0, "share of the training data on which the best epoch is chosen (0: the last epoch is taken)")

    def problems(self) -> list[str]:
        """Those of every recipe, and of weights and held-out data."""
        found = Recipe.problems(self)
        if self.max_tokens > 512:
            found.append(f"--max-tokens ({self.max_tokens}) must not exceed the 512 positions of BERT")
        if self.alpha_ce + self.alpha_gold == 0:
            found.append("--alpha-ce and --alpha-gold must not both be 0")
        if self.held_out >= 0.9:
            found.append(f"--held-out ({self.held_out}) leaves too little to train on; keep at least a tenth")
        return found

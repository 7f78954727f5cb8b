"""What `pocketqa distill` minimises: soft targets, masked tokens, cosine of the last hidden states, and losses between layers.

Legend: B rows, T positions, N positions taken out of the flat (B * T), H hidden size, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from distillation.knowledge import losses
from distillation.knowledge.distill_recipe import DistillRecipe
from distillation.knowledge.losses import LossTerms
from distillation.knowledge.observation import Observed, layers_of, observe
from distillation.knowledge.transfer import Trained
from distillation.questions.data import epoch_batches
from distillation.text.corpus import HELD_OUT_SEED, Corpus, Rows
from distillation.text.lm import vocabulary_logits
from distillation.text.masking import MASKED, TOKENS, MaskedBatch, masked_batch
from distillation.text.mlm import MEASURE
from distillation.training import processes
from distillation.training.loop import DTYPES


@dataclass(frozen=True, slots=True, eq=False)
class StepBatch:
    """A masked micro-batch and the optimiser step it is for, from 0; MEASURE outside training."""

    text: MaskedBatch
    step: int

    @property
    def tokens(self) -> int:
        """Without padding."""
        return self.text.tokens

    @property
    def counts(self) -> dict[str, float]:
        """What the losses are averaged over."""
        return self.text.counts

    def to(self, device: torch.device) -> StepBatch:
        """The same on a device."""
        return StepBatch(self.text.to(device), self.step)


@dataclass(frozen=True, slots=True)
class Phase:
    """Which losses act at a step."""

    distillation: bool = True
    transfer: bool = True
    layers: tuple[int, ...] | None = None  # only these student layers, and those below frozen; None: all


def phase_at(step: int, steps: int, recipe: DistillRecipe, layers: Sequence[int]) -> Phase:
    """The losses of one of `steps` steps; layers: the student's that have a partner, ascending.  MEASURE: all of them."""
    if step == MEASURE or recipe.knowledge == "auxiliary":
        return Phase()
    first = max(1, round(recipe.transfer_share * steps))
    if step >= first:
        return Phase(transfer=False)
    if recipe.knowledge == "joint":
        return Phase(distillation=False)
    return Phase(distillation=False, layers=(layers[step * len(layers) // first],))


def trains_head(steps: int, recipe: DistillRecipe, layers: Sequence[int]) -> bool:
    """Whether a loss reaches the language head in `steps` steps; layers: as for phase_at, in whose last phase it does or never."""
    return recipe.alpha_ce + recipe.alpha_mlm > 0 and phase_at(steps - 1, steps, recipe, layers).distillation


def loss_function(
    trained: Trained, teachers: Sequence[PreTrainedModel], recipe: DistillRecipe, steps: int
) -> Callable[[StepBatch, Mapping[str, float]], LossTerms]:
    """The loss of one micro-batch.  teachers: the first one's layers and last states are learnt from, and the soft targets of all.

    What no loss of the recipe needs is not computed: no teacher for alpha_mlm alone, the vocabulary only at positions that a loss looks at.
    """
    student, transfer = trained.student, trained.transfer

    def loss_of(batch: StepBatch, counts: Mapping[str, float]) -> LossTerms:
        text, phase = batch.text, phase_at(batch.step, steps, recipe, list(transfer.pairs))
        inside = phase.transfer and recipe.any_transfer()
        states, ours, theirs = transfer.wants() if inside else (False, [], [])
        inputs = {"input_ids": text.ids, "attention_mask": text.mask}
        needed = teachers if phase.distillation and recipe.alpha_ce else teachers[: int(inside or (phase.distillation and recipe.alpha_cos > 0))]
        with torch.no_grad():
            seen = [observe(teacher, inputs, states and not i, () if i else theirs) for i, teacher in enumerate(needed)]
        first = min(phase.layers or [0])
        frozen = not phase.distillation and (first > 0 or trained.embedded)
        with _frozen_below(student, first) if frozen else contextlib.nullcontext():
            made = observe(student, inputs, states, ours)
        parts: dict[str, Tensor] = {}
        total = torch.zeros((), device=text.ids.device)
        if phase.distillation:
            total = total + _distillation(student, teachers, made, seen, text, counts, recipe, parts)
        if inside:
            value, named = transfer.terms(made, seen[0], text.mask, counts, phase.layers)
            total = total + value
            parts |= named
        absent = dict.fromkeys(part_names(recipe), torch.zeros((), device=text.ids.device))  # every step reports the same names
        return LossTerms(total, {"loss": total.detach(), **absent, **parts})

    return loss_of


def final_loss(parts: Mapping[str, float], recipe: DistillRecipe) -> float:
    """What a run is to end with, of all measured losses: those between layers do not count where the last steps are without them."""
    if recipe.knowledge == "auxiliary" or recipe.transfer_share == 1:
        return parts["loss"]
    return float(sum(getattr(recipe, f"alpha_{name}") * parts.get(f"loss_{name}", 0.0) for name in ("ce", "mlm", "cos")))


def part_names(recipe: DistillRecipe) -> list[str]:
    """Names of all losses that are on in some phase, as they are logged."""
    return [f"loss_{item.name.removeprefix('alpha_')}" for item in fields(recipe) if item.name.startswith("alpha_") and getattr(recipe, item.name)]


def measure(trained: Trained, teachers: Sequence[PreTrainedModel], corpus: Corpus, rows: Rows, recipe: DistillRecipe, steps: int) -> dict[str, float]:
    """Every loss of the recipe on some rows, without dropout and with the same masks every time, whatever the seed.

    The mode of the model is left as it was.
    """
    recipe = replace(recipe, seed=HELD_OUT_SEED)
    training, device = trained.training, processes.device()
    trained.eval()
    loss_of = loss_function(trained, teachers, recipe, steps)
    chosen = epoch_batches(corpus.lengths[rows], recipe.batch_tokens, seed=recipe.seed)
    batches = [StepBatch(masked_batch(corpus, rows[some].tolist(), MEASURE, recipe), MEASURE) for some in chosen]
    counts = processes.add_up(batch.counts for batch in batches)
    sums: dict[str, float] = {}
    with torch.no_grad(), torch.autocast(device.type, dtype=DTYPES[recipe.precision], enabled=recipe.precision != "fp32"):
        for batch in batches:
            for name, value in loss_of(batch.to(device), counts).parts.items():
                sums[name] = sums.get(name, 0.0) + float(value)
    trained.train(training)
    return sums


def _distillation(
    student: PreTrainedModel,
    teachers: Sequence[PreTrainedModel],
    made: Observed,
    seen: Sequence[Observed],
    text: MaskedBatch,
    counts: Mapping[str, float],
    recipe: DistillRecipe,
    parts: dict[str, Tensor],
) -> Tensor:
    """The triple loss (Sanh et al. 2019); its parts are added to `parts`."""
    total = torch.zeros((), device=text.ids.device)
    kept = text.mask.flatten().nonzero()[:, 0]  # (N,) all tokens
    everywhere = recipe.alpha_ce > 0 and recipe.ce_positions == "all"
    places = kept if everywhere else text.targets  # (N,) where the vocabulary is needed
    if recipe.alpha_ce or recipe.alpha_mlm:
        logits = vocabulary_logits(student, _rows(made, places))  # (N, V)
    if recipe.alpha_ce:
        with torch.no_grad():
            soft = [vocabulary_logits(teacher, _rows(out, places)) for teacher, out in zip(teachers, seen, strict=True)]
            target = losses.ensemble(soft, recipe.temperature)  # (N, V)
        ce = losses.soft_targets(logits, target, recipe.temperature, counts[TOKENS if everywhere else MASKED])
        parts["loss_ce"], total = ce.detach(), total + recipe.alpha_ce * ce
    if recipe.alpha_mlm:
        asked = logits[torch.searchsorted(kept, text.targets)] if everywhere else logits
        mlm = losses.masked_cross_entropy(asked, text.labels, counts[MASKED])
        parts["loss_mlm"], total = mlm.detach(), total + recipe.alpha_mlm * mlm
    if recipe.alpha_cos:
        cos = losses.cosine(_rows(made, kept), _rows(seen[0], kept), counts[TOKENS])
        parts["loss_cos"], total = cos.detach(), total + recipe.alpha_cos * cos
    return total


def _rows(out: Observed, places: Tensor) -> Tensor:
    return out.last.flatten(0, 1).index_select(0, places)  # (N, H)


@contextlib.contextmanager
def _frozen_below(student: PreTrainedModel, layer: int) -> Iterator[None]:
    """Let no gradient into what lies below a layer: below layer 0 the embeddings, which the released code copies and leaves alone while layers learn.

    "Progressive knowledge transfer" (Sun et al. 2020, section 4.4).  The optimiser leaves parameters without a gradient alone.
    """

    def cut(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if given:
            return (given[0].detach(), *given[1:]), named
        return given, {**named, "hidden_states": named["hidden_states"].detach()}

    hook = layers_of(student)[layer].register_forward_pre_hook(cut, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()

"""The one training loop: given batches and a loss function it forwards, backs up, clips, steps, logs, saves and resumes exactly.

An optimiser step is a list of micro-batches.  Process r of n takes those numbered r, r + n, ...; a loss is a sum divided by counts over the whole
step; gradients are summed.  So the same step has the same loss and gradient (up to rounding) however it is split, except for dropout: its masks
depend on (seed, step, process).  Nothing else is drawn, so a run that goes on with as many processes as before goes on bit for bit; with another
number, batches and masks of tokens are the same, and dropout differs.  (On a GPU, "bit for bit" is up to the order in which it adds.)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from distillation.knowledge.losses import LossTerms
from distillation.training import checkpoints, processes
from distillation.training.faster import FasterOnCPU
from distillation.training.keeping import Keeper, Keeping
from distillation.training.memory import keep_pages
from distillation.training.processes import StopSignal
from distillation.training.recipes import Recipe
from distillation.training.reporting import Reporter, check_board, means
from pocketqa.errors import TrainingError

__all__ = ["Batch", "Keeping", "LoopResult", "LossFunction", "MakeBatch", "Step", "Stopped", "learning_rate", "make_optimizer", "run"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LOSS_SCALE_LEAST = 1e-4  # fairseq's: where fp16 gradients overflow even so, they are not finite at all
TOTAL, TOKENS, STOP = "", " tokens", " stop"  # travel with the named parts of a loss from process to process


class Batch(Protocol):
    """A micro-batch."""

    @property
    def tokens(self) -> int:
        """Tokens without padding."""

    @property
    def counts(self) -> Mapping[str, float]:
        """What it adds to each denominator: rows, tokens, masked positions ..."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""


B = TypeVar("B", bound=Batch)
Step = Sequence[Sequence[int]]  # the micro-batches of one optimiser step, each the indices of its examples
MakeBatch = Callable[[Sequence[int], int], B]  # (indices, step from 0): whatever is drawn depends on (seed, step, index)
LossFunction = Callable[[B, Mapping[str, float]], LossTerms]  # second: the counts of the whole step, over all processes


@dataclass(frozen=True, slots=True)
class LoopResult:
    """What a run did: numbers for manifest and run file."""

    steps: int
    tokens: int
    seconds: float
    losses: dict[str, float]  # means over the last tenth of the steps
    best_step: int | None = None  # of the development scores, where any were taken
    best_score: float | None = None


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


def run(
    model: nn.Module,
    plan: Sequence[Step],
    make_batch: MakeBatch[B],
    loss_of: LossFunction[B],
    recipe: Recipe,
    keeping: Keeping,
    identity: str,
    *,
    score: Callable[[], float] | None = None,
    say: Callable[[str], None] = processes.say,
) -> LoopResult:
    """Train `model` on the planned steps.

    model: all that is trained, in one module; it is moved to the device of its process.  identity: hash of everything the run depends on; a state of
    another run is refused.  score: a development score, higher is better, taken by the main process alone with the model in evaluation mode.
    Raises Stopped after SIGTERM or SIGINT once the state of the last whole step is saved: between two micro-batches, whose step begins anew when the
    run goes on; with several processes after the step.  TrainingError where a loss is not finite, the disk is full or a state is damaged.
    """
    check(recipe, keeping, score is not None, plan)
    if processes.is_main():
        try:
            keeping.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise checkpoints.not_written(keeping.folder, error) from error
    keep_pages()
    model.to(processes.device())
    optimizer = make_optimizer(model, recipe)
    scaler = torch.amp.GradScaler(processes.device().type, enabled=recipe.precision == "fp16")
    scaler.scale(torch.zeros((), device=processes.device()))  # it starts with its first use, which a process without a micro-batch never makes
    if processes.world() > 1 and processes.is_main():
        say(f"{processes.world()} processes, each on {processes.device().type}, gradients summed by {processes.state().backend}")
    keeper = Keeper(keeping, identity, len(plan), model, optimizer, scaler)
    progress = keeper.resume(say)
    model.train()
    with StopSignal() as stop, _reporter(keeping, say, len(plan), progress.step) as reporter:
        while progress.step < len(plan):
            rate = learning_rate(progress.step, len(plan), recipe)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(step_seed(recipe.seed, progress.step, processes.rank()))
            sums = _backward(plan[progress.step], progress.step, make_batch, loss_of, recipe, scaler, stop)
            if sums is None:  # the weights are those after the last whole step, and all that a step draws depends on its number
                optimizer.zero_grad(set_to_none=True)
                keeper.save(progress, now=True)
                raise _stopped(progress.step, plan)
            norm = _update(model, optimizer, scaler, recipe, sums, f"at step {progress.step}; the last saved state is in {keeping.state}")
            progress.count(sums.tokens, sums.parts, keep=len(plan) // 10)
            stopping = sums.stop and progress.step < len(plan)
            if reporter:
                reporter.step(progress.step, sums.parts, sums.tokens, progress.tokens, rate, norm)
                keeper.score(progress, score, reporter)
                keeper.save(progress, now=stopping or progress.step == len(plan))
                keeper.number(progress)
            if stopping:
                processes.wait()  # until the state is saved: the end of one process makes a launcher end all
                raise _stopped(progress.step, plan)
    best_step, best_score = processes.from_main(progress.best) or (None, None)
    losses = {name: round(value, 5) for name, value in means(progress.recent).items()}
    return LoopResult(len(plan), progress.tokens, progress.seconds, losses, best_step, best_score)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True)


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Linear warm-up, then linear decay to 0 (Devlin et al. 2018) or none.  `step` counts from 0."""
    warm = max(1, round(recipe.warmup * steps))
    decayed = 1.0 if recipe.schedule == "constant" else (steps - step) / max(1, steps - warm)
    return recipe.learning_rate * ((step + 1) / warm if step < warm else decayed)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Of the dropout of one step in one process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])


@dataclass(frozen=True, slots=True)
class _Sums:
    """What one step came to, over all its micro-batches and processes."""

    loss: float
    parts: dict[str, float]
    tokens: int
    stop: bool  # some process was asked to stop


def _backward(
    step: Step, number: int, make_batch: MakeBatch[B], loss_of: LossFunction[B], recipe: Recipe, scaler: torch.amp.GradScaler, stop: StopSignal
) -> _Sums | None:
    """Add the gradients of this process's micro-batches to what the parameters hold.  None where it was asked to stop between two of them.

    Only a process that is alone stops there: several would have to agree before each micro-batch, and do so at the end of a step.
    """
    device = processes.device()
    batches = [make_batch(indices, number).to(device) for indices in step[processes.rank() :: processes.world()]]
    counts = processes.add(processes.add_up(batch.counts for batch in batches))
    sums: dict[str, Tensor] = {}
    for at, batch in enumerate(batches):
        if at and stop.asked and processes.world() == 1:
            return None
        with torch.autocast(device.type, dtype=DTYPES[recipe.precision], enabled=recipe.precision != "fp32"), FasterOnCPU():
            terms = loss_of(batch, counts)
        scaler.scale(terms.total).backward()
        for name, value in {TOTAL: terms.total, **terms.parts}.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach().float()
    values = torch.stack(list(sums.values())).tolist() if sums else []  # one wait for the device a step
    tokens = float(sum(batch.tokens for batch in batches))
    everywhere = processes.add({**dict(zip(sums, values, strict=True)), TOKENS: tokens, STOP: float(stop.asked)})
    total, tokens, asked = everywhere.pop(TOTAL), everywhere.pop(TOKENS), everywhere.pop(STOP)
    return _Sums(total, everywhere, round(tokens), asked > 0)


def _stopped(step: int, plan: Sequence[Step]) -> Stopped:
    return Stopped(f"Stopped at step {step} of {len(plan)}; the same command goes on from there.")


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, recipe: Recipe, sums: _Sums, where: str) -> float:
    """Sum the gradients over the processes, clip them and step.  Returns their norm before clipping."""
    if not math.isfinite(sums.loss):
        parts = ", ".join(f"{name} {value:.4g}" for name, value in sums.parts.items())
        raise TrainingError(f"Expected a finite loss, found {sums.loss} ({parts}) {where}. Lower the learning rate, with another --out.")
    parameters = [p for p in model.parameters() if p.requires_grad]
    processes.sum_gradients(parameters)
    scaler.unscale_(optimizer)
    norm = float(nn.utils.clip_grad_norm_(parameters, recipe.clip))
    if not math.isfinite(norm) and (not scaler.is_enabled() or scaler.get_scale() < LOSS_SCALE_LEAST):
        raise TrainingError(
            f"Expected a finite gradient, found a norm of {norm} (loss {sums.loss:.4g}) {where}. Lower the learning rate, with another --out."
        )
    scaler.step(optimizer)  # in fp16 it leaves out a step whose gradients overflowed, and lowers its scale
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def check(recipe: Recipe, keeping: Keeping, scored: bool, plan: Sequence[Step]) -> None:
    """Raise what can be known to fail before anything is computed.  `run` asks first thing; who computes much before it asks itself."""
    if recipe.precision == "fp16" and processes.device().type == "cpu":
        raise TrainingError("Expected a GPU for --precision fp16, found a CPU, on which it gains nothing. Use bf16 or fp32.")
    if keeping.evaluate_every and not scored:
        raise TrainingError("Expected development data for --evaluate-every, found none. Name some, or leave the flag out.")
    if plan and len(plan[0]) < processes.world():
        raise TrainingError(
            f"Expected a micro-batch for each of the {processes.world()} processes, found steps of {len(plan[0])}. "
            f"Give --accumulation {processes.world()} or a multiple of it (and fewer --batch-tokens, if a step is to stay as it is)."
        )
    check_board(keeping.tensorboard)


def _reporter(keeping: Keeping, say: Callable[[str], None], steps: int, first: int) -> contextlib.AbstractContextManager[Reporter | None]:
    if not processes.is_main():
        return contextlib.nullcontext()
    return Reporter(keeping.folder, say, steps, first, keeping.log_every, keeping.tensorboard)

"""The one training loop: given batches and a loss function it forwards, backs up, clips, steps, logs, saves and resumes exactly.

One log line a report: step, loss terms, learning rate, tokens per second, time left.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO

import torch
from torch import nn

from distillation.checkpoints import find_state, load_state, read_progress, save_state
from distillation.data import TrainingBatch
from distillation.losses import LossTerms
from pocketqa.errors import TrainingError
from pocketqa.types import JSON

LossFunction = Callable[[TrainingBatch], LossTerms]


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """Optimiser and bookkeeping of a run."""

    learning_rate: float = 1e-4
    warmup: float = 0.06  # share of all steps
    weight_decay: float = 0.01  # not on biases and LayerNorms
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6
    clip: float = 1.0  # largest gradient norm
    precision: str = "bf16"  # "bf16" (autocast) or "fp32"
    seed: int = 0
    save_every: float = 600.0  # seconds between states from which a stopped run goes on
    log_every: float = 15.0  # seconds


@dataclass(frozen=True, slots=True)
class LoopResult:
    """What a run did: numbers for manifest and run file."""

    steps: int
    tokens: int
    seconds: float
    losses: dict[str, float]  # means over the last tenth of the steps


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


def run(
    model: nn.Module,
    plan: Sequence[Sequence[int]],
    make_batch: Callable[[Sequence[int]], TrainingBatch],
    loss_of: LossFunction,
    options: LoopOptions,
    folder: Path,
    identity: str,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> LoopResult:
    """Train `model` on the planned batches, one optimiser step each.

    folder: holds log.jsonl and the state/ to resume from; identity: hash of everything the run depends on; a state of another run is refused.
    Raises Stopped after SIGTERM or SIGINT once the state is saved, TrainingError when the loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    optimizer = make_optimizer(model, options)
    progress = _resume(folder / "state", model, optimizer, identity, say)
    model.train()
    with _StopSignal() as stop, (folder / "log.jsonl").open("a") as log:
        reporter = _Reporter(log, say, len(plan), progress, options.log_every)
        saved = time.monotonic()
        while progress.step < len(plan):
            rate = learning_rate(progress.step, len(plan), options)
            for group in optimizer.param_groups:
                group["lr"] = rate
            batch = make_batch(plan[progress.step])
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.precision == "bf16"):
                terms = loss_of(batch)
            if not torch.isfinite(terms.total):
                found = f"The loss is {terms.total.item()} at step {progress.step}."
                raise TrainingError(f"{found} Lower the learning rate; the last saved state is in {folder / 'state'}.")
            terms.total.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.count(batch.tokens, {name: value.item() for name, value in terms.parts.items()}, keep=len(plan) // 10)
            reporter.maybe(rate)
            finished = progress.step == len(plan)
            if stop.asked or finished or time.monotonic() - saved >= options.save_every:
                save_state(folder / "state", model, optimizer, progress.to_json(identity))
                saved = time.monotonic()
            if stop.asked and not finished:
                raise Stopped(f"Stopped at step {progress.step} of {len(plan)}; the same command goes on from there.")
    return LoopResult(len(plan), progress.tokens, progress.seconds, _means(progress.recent))


def make_optimizer(model: nn.Module, options: LoopOptions) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=options.betas, eps=options.eps, fused=True)


def learning_rate(step: int, steps: int, options: LoopOptions) -> float:
    """Linear warm-up, then linear decay to 0 (Devlin et al. 2018).  `step` counts from 0."""
    warm = max(1, round(options.warmup * steps))
    factor = (step + 1) / warm if step < warm else (steps - step) / max(1, steps - warm)
    return options.learning_rate * factor


class _Progress:
    """How far a run is: what a stopped run needs besides tensors."""

    def __init__(self, step: int = 0, tokens: int = 0, seconds: float = 0.0, recent: Sequence[dict[str, float]] = ()) -> None:
        self.step = step
        self.tokens = tokens
        self.recent = list(recent)  # loss terms of the last steps
        self._seconds = seconds
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Spent in training, earlier sessions included."""
        return self._seconds + time.monotonic() - self._began

    def count(self, tokens: int, terms: dict[str, float], keep: int) -> None:
        self.step += 1
        self.tokens += tokens
        self.recent = [*self.recent[-keep:], terms] if keep else [terms]

    def to_json(self, identity: str) -> JSON:
        return {"step": self.step, "tokens": self.tokens, "seconds": self.seconds, "recent": self.recent, "identity": identity}


class _Reporter:
    """Writes a log line every so many seconds, and after the last step."""

    def __init__(self, log: TextIO, say: Callable[[str], None], steps: int, progress: _Progress, every: float) -> None:
        self._log, self._say, self._steps, self._progress, self._every = log, say, steps, progress, every
        self._began = self._told = time.monotonic()
        self._first_step, self._told_tokens = progress.step, progress.tokens

    def maybe(self, rate: float) -> None:
        now, progress = time.monotonic(), self._progress
        if now - self._told < self._every and progress.step < self._steps:
            return
        speed = round((progress.tokens - self._told_tokens) / max(now - self._told, 1e-9))
        left = (now - self._began) / (progress.step - self._first_step) * (self._steps - progress.step)
        line = {"step": progress.step, "steps": self._steps, **_means(progress.recent[-50:]), "lr": rate, "tokens_per_second": speed}
        self._log.write(json.dumps(line | {"tokens": progress.tokens}) + "\n")
        self._log.flush()
        self._say(_line(line, left))
        self._told, self._told_tokens = now, progress.tokens


def _resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, identity: str, say: Callable[[str], None]) -> _Progress:
    found = find_state(folder)
    if found is None:
        return _Progress()
    document: JSON = read_progress(found)
    if document["identity"] != identity:
        raise TrainingError(
            f"{found} belongs to a run with other data, options or starting weights. Give another --out, or delete {folder.parent} to start again."
        )
    load_state(found, model, optimizer)
    say(f"resuming at step {document['step']}")
    return _Progress(document["step"], document["tokens"], document["seconds"], document["recent"])


class _StopSignal:
    """Turns SIGTERM and SIGINT into a flag for the duration of a run; a second signal acts as usual."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, object] = {}

    def __enter__(self) -> _StopSignal:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._old[number] = signal.signal(number, self._note)
            except ValueError:  # not the main thread: the caller owns the signals
                return self
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._old[number])  # type: ignore[arg-type]

    def __exit__(self, *details: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: round(sum(row[name] for row in rows) / len(rows), 5) for name in rows[0]} if rows else {}


def _line(values: JSON, left: float) -> str:
    losses = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if name.startswith("loss"))
    minutes = f"{int(left // 60)} min {int(left % 60):02d} s left"
    return f"step {values['step']}/{values['steps']}  {losses}  lr {values['lr']:.2e}  {values['tokens_per_second']} tokens/s  {minutes}"

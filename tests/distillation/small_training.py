"""A training of milliseconds: a little classifier on numbers, with noise drawn in each step, dropout, and a weight that few rows use.

As a program it is one of several processes: it trains in several ways, one after the other, and its main process leaves the results in a folder.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distillation.knowledge.losses import LossTerms
from distillation.training import loop, processes
from distillation.training.recipes import Recipe

ROWS, FEATURES, CLASSES = 240, 6, 3
RECIPE = Recipe(learning_rate=1e-2, warmup=0.1, precision="fp32", seed=3)
SILENT = 1e9  # seconds


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    x: Tensor  # (B, F)
    y: Tensor  # (B,)
    rare: Tensor  # (B,) rows that use the rare weight
    tokens: int

    @property
    def counts(self) -> dict[str, float]:
        return {"rows": len(self.x)}

    def to(self, device: torch.device) -> Rows:
        return replace(self, x=self.x.to(device), y=self.y.to(device), rare=self.rare.to(device))


class Classifier(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(FEATURES, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(dropout))
        self.head = nn.Linear(16, CLASSES)
        self.rare = nn.Parameter(torch.ones(CLASSES))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, batch: Rows) -> Tensor:
        logits: Tensor = self.head(self.body(batch.x))  # (B, C)
        return logits + batch.rare[:, None] * self.rare if batch.rare.any() else logits


def plan_of(steps: int = 20, split: int = 1) -> list[list[list[int]]]:
    """Steps of 12 rows in 3 micro-batches, uneven; each of them cut into `split`.  The last step has one micro-batch."""
    order = np.random.default_rng(1).permutation(ROWS)[: 12 * steps].tolist()
    plan = []
    for step in range(steps):
        rows = order[12 * step : 12 * step + 12]
        parts = [rows[:6], rows[6:10], rows[10:]] if step < steps - 1 else [rows]
        plan.append([part[at::split] for part in parts for at in range(split)])
    return plan


def make_batch(indices: Sequence[int], step: int) -> Rows:
    drawn = [np.random.default_rng((7, step, index)).standard_normal(FEATURES) for index in indices]
    fixed = [np.random.default_rng((8, index)).standard_normal(FEATURES) for index in indices]
    y = torch.tensor([index % CLASSES for index in indices])
    rare = torch.tensor([float(index < 4) for index in indices])
    return Rows(torch.tensor(np.array(drawn) * 0.1 + np.array(fixed)).float(), y, rare, 5 * len(indices))


def loss_function(model: Classifier) -> Callable[[Rows, Mapping[str, float]], LossTerms]:
    def loss_of(batch: Rows, counts: Mapping[str, float]) -> LossTerms:
        logits = model(batch).float()
        ce = F.cross_entropy(logits, batch.y, reduction="sum") / counts["rows"]
        size = logits.square().sum() / counts["rows"]
        total = ce + 0.01 * size
        return LossTerms(total, {"loss": total.detach(), "loss_ce": ce.detach(), "loss_size": size.detach()})

    return loss_of


def train(
    folder: Path,
    *,
    dropout: float = 0.0,
    split: int = 1,
    recipe: Recipe = RECIPE,
    at: Mapping[int, Callable[[], object]] | None = None,
    identity: str = "same",
    steps: int = 20,
    say: Callable[[str], None] = lambda line: None,
    score: Callable[[Classifier], float] | None = None,
    **keeping: float,
) -> tuple[Classifier, loop.LoopResult]:
    """Train in a folder; `at`: what happens as the batches of a step (from 0) are made."""
    model, happening = Classifier(dropout), dict(at or {})

    def eventful(indices: Sequence[int], step: int) -> Rows:
        if step in happening:
            happening.pop(step)()
        return make_batch(indices, step)

    kept = loop.Keeping(folder, **{"save_every": SILENT, "log_every": 0.0, **keeping})  # type: ignore[arg-type]
    scored = None if score is None else lambda: score(model)
    return model, loop.run(model, plan_of(steps, split), eventful, loss_function(model), recipe, kept, identity, score=scored, say=say)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path) -> None:
    """What each of several processes does; those beside the main one get a folder of their own, in which nothing may appear."""
    mine = folder if processes.is_main() else folder / f"of-rank-{processes.rank()}"
    second = processes.rank() == 1
    train(mine / "plain")
    train(mine / "dropout", dropout=0.2, at={0: lambda: print("seed", torch.initial_seed(), file=sys.stderr)})
    for name, dropout in (("stopped", 0.2), ("handed-on", 0.0)):
        try:
            train(mine / name, dropout=dropout, at={9: stop} if second else None)
        except loop.Stopped as stopped:
            processes.say(f"{name}: {stopped}")
    train(mine / "stopped", dropout=0.2)
    processes.wait()
    if not processes.is_main():
        sys.exit(0 if not mine.exists() else f"{mine} should not be there")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""What a training keeps beside its log: the state a stopped run goes on from, numbered checkpoints, and the best by development score."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from distillation.training import checkpoints, processes
from distillation.training.checkpoints import BEST, NUMBERED
from distillation.training.reporting import Reporter
from pocketqa.errors import TrainingError
from pocketqa.types import JSON, NoAnswer


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a run tells and keeps: where, and how often."""

    folder: Path
    save_every: float = 600.0  # seconds between states from which a stopped run goes on
    log_every: float = 15.0  # seconds between lines
    checkpoint_every: int = 0  # steps between numbered checkpoints; 0: none
    keep: int = 3  # numbered checkpoints
    evaluate_every: int = 0  # steps between development scores, of which the best is kept; 0: none
    tensorboard: bool = False
    parent: str | None = None  # this and the next three: what manifests of its checkpoints say, as that of the finished folder does
    grown: JSON | None = None  # see checkpoints.grown_from
    seed: int | None = None
    no_answer: NoAnswer | None = None  # without a threshold, which is chosen at the end

    @property
    def state(self) -> Path:
        """What a stopped run goes on from."""
        return self.folder / "state"


class Progress:
    """How far a run is: what a stopped run needs besides tensors."""

    def __init__(self, document: JSON | None = None) -> None:
        known: JSON = document or {"step": 0, "tokens": 0, "seconds": 0.0, "recent": [], "best": None}
        self.step: int = known["step"]
        self.tokens: int = known["tokens"]
        self.recent: list[dict[str, float]] = known["recent"]  # loss terms of the last steps
        self.best: tuple[int, float] | None = tuple(known["best"]) if known["best"] else None  # step and development score; main process only
        self._seconds: float = known["seconds"]
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Spent in training, earlier sessions included."""
        return self._seconds + time.monotonic() - self._began

    def count(self, tokens: int, terms: Mapping[str, float], keep: int) -> None:
        """Note a finished step; the terms of the last `keep` steps stay, at least one."""
        self.step += 1
        self.tokens += tokens
        self.recent = [*self.recent, dict(terms)][-max(1, keep) :]

    def to_json(self) -> JSON:
        """For progress.json."""
        return {"step": self.step, "tokens": self.tokens, "seconds": self.seconds, "recent": self.recent, "best": self.best}


class Keeper:
    """Saves and restores one run."""

    def __init__(
        self, keeping: Keeping, identity: str, steps: int, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self._keeping, self._identity, self._steps = keeping, identity, steps
        self._model, self._optimizer, self._scaler = model, optimizer, scaler
        self._saved = time.monotonic()

    def resume(self, say: Callable[[str], None]) -> Progress:
        """Go on from the saved state, or start; either way every process gets the main one's tensors.  Only the main process reads files."""
        folder = self._keeping.folder
        found = checkpoints.find_state(self._keeping.state) if processes.is_main() else None
        document = processes.from_main(checkpoints.read_progress(found) if found else None)
        if document is not None and (document["identity"] != self._identity or document["steps"] != self._steps):
            raise TrainingError(
                f"{found or self._keeping.state} belongs to a run with other data, options or starting weights. "
                f"Give another --out, or delete {folder} to start again."
            )
        mine = checkpoints.read_tensors(found, document) if found and document else checkpoints.state_tensors(self._model, self._optimizer)
        tensors = processes.tensors_from_main(mine)
        try:
            checkpoints.restore(self._model, self._optimizer, tensors)
        except (KeyError, RuntimeError, ValueError) as error:
            raise TrainingError(f"{self._keeping.state} is of another model: {error}. Delete {folder} to start again.") from None
        if document is None:
            if processes.is_main():
                checkpoints.forget(folder)
            return Progress()
        self._scaler.load_state_dict(document["scaler"])
        if processes.is_main():
            say(f"resuming at step {document['step']}{_other_processes(document['processes'])}")
        return Progress(document)

    def save(self, progress: Progress, now: bool) -> None:
        """Save the state, `now` or when it is time."""
        if now or time.monotonic() - self._saved >= self._keeping.save_every:
            document = {**progress.to_json(), "identity": self._identity, "steps": self._steps, "scaler": dict(self._scaler.state_dict())}
            document["processes"] = processes.world()
            checkpoints.save_state(self._keeping.state, checkpoints.state_tensors(self._model, self._optimizer), document)
            self._saved = time.monotonic()

    def number(self, progress: Progress) -> None:
        """Keep a numbered checkpoint where one is due, and only the last of them."""
        if self._keeping.checkpoint_every and progress.step % self._keeping.checkpoint_every == 0:
            self._checkpoint(f"{NUMBERED}{progress.step}", {"step": progress.step})
            checkpoints.prune(self._keeping.folder, self._keeping.keep)

    def score(self, progress: Progress, score: Callable[[], float] | None, reporter: Reporter) -> None:
        """Take a development score where one is due, at the end too, and keep the model where it is the best."""
        every = self._keeping.evaluate_every
        if score is None or not every or (progress.step % every and progress.step < self._steps):
            return
        self._model.eval()
        with torch.no_grad():
            value = float(score())
        self._model.train()
        if not math.isfinite(value):
            raise TrainingError(
                f"Expected a finite development score after step {progress.step}, found {value}. Lower the learning rate, with another --out."
            )
        better = progress.best is None or value > progress.best[1]
        reporter.score(progress.step, value, better)
        if better:
            progress.best = (progress.step, value)
            self._checkpoint(BEST, {"step": progress.step, "score": value})

    def _checkpoint(self, name: str, config: JSON) -> None:
        kept = self._keeping
        config = {**config, "run": self._identity, **({"grown": kept.grown} if kept.grown else {})}
        place = kept.folder / name
        checkpoints.save_checkpoint(place, self._model, kept.folder, config, parent=kept.parent, seed=kept.seed, no_answer=kept.no_answer)


def _other_processes(before: int) -> str:
    """What to say when a run goes on with another number of processes."""
    if before == processes.world():
        return ""
    return f", with {processes.world()} process(es) in place of {before}: the same batches, but other dropout"

"""What a training tells of itself: a line every so often, the same as JSON in log.jsonl, and TensorBoard's curves where they are asked for."""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from distillation.training.checkpoints import not_written
from pocketqa.errors import MissingExtra
from pocketqa.types import JSON

LOG = "log.jsonl"
BOARD = "tensorboard"  # folder of event files


class Reporter:
    """Reports the means since its last line every `every` seconds, and after the last step; only the main process has one.

    first: the step that a resumed run goes on from; what an earlier session logged beyond it goes.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], steps: int, first: int, every: float, tensorboard: bool) -> None:
        self._say, self._steps, self._every, self._first = say, steps, every, first
        self._began = self._told = time.monotonic()
        self._terms: list[Mapping[str, float]] = []  # of the steps since the last line
        self._tokens = 0  # of those steps
        self._path = folder / LOG
        try:
            _forget(self._path, first)
            self._log = self._path.open("a")
        except OSError as error:
            raise not_written(self._path, error) from error
        self._board = _board(folder / BOARD, first) if tensorboard else None

    def __enter__(self) -> Reporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._board:
            self._board.close()
        self._log.close()

    def step(self, step: int, terms: Mapping[str, float], tokens: int, total_tokens: int, rate: float, norm: float) -> None:
        """Note a finished step (counted from 1), and tell of it when it is time."""
        now = time.monotonic()
        self._terms.append(terms)
        self._tokens += tokens
        if now - self._told < self._every and step < self._steps:
            return
        speed = round(self._tokens / max(now - self._told, 1e-9))
        left = (now - self._began) / (step - self._first) * (self._steps - step)
        known = {"gradient_norm": norm} if math.isfinite(norm) else {}  # fp16's may overflow, and JSON knows no infinity
        values = {**means(self._terms), "lr": rate, **known, "tokens_per_second": speed}
        self._write({"step": step, "steps": self._steps, **values, "tokens": total_tokens})
        self._draw(step, values)
        self._say(_line(step, self._steps, values, left))
        self._told, self._terms, self._tokens = now, [], 0

    def score(self, step: int, score: float, best: bool) -> None:
        """Tell of a development score."""
        self._write({"step": step, "score": score, "best": best})
        self._draw(step, {"score": score})
        self._say(f"step {step}/{self._steps}  development score {score:.4f}{', the best so far' if best else ''}")

    def _write(self, line: JSON) -> None:
        try:
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()
        except OSError as error:
            raise not_written(self._path, error) from error

    def _draw(self, step: int, values: Mapping[str, float]) -> None:
        if self._board:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)


def check_board(wanted: bool) -> None:
    """Raise MissingExtra where TensorBoard is wanted and not installed."""
    if wanted and importlib.util.find_spec("tensorboard") is None:
        raise MissingExtra("tensorboard", "train", "--tensorboard")


def means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each name over all rows; a term that a row lacks is 0 there."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: sum(row.get(name, 0.0) for row in rows) / len(rows) for name in names}


def _board(folder: Path, first: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first + 1)


def _forget(path: Path, first: int) -> None:
    """Leave only whole lines up to step `first` in a log."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= first:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a kill
    path.write_text("".join(kept))


def _line(step: int, steps: int, values: Mapping[str, float], left: float) -> str:
    losses = "  ".join(f"{name} {value:.4f}" for name, value in values.items() if name.startswith("loss"))
    hours, minutes, seconds = int(left // 3600), int(left % 3600 // 60), int(left % 60)
    remaining = f"{hours} h {minutes:02d} min left" if hours else f"{minutes} min {seconds:02d} s left"
    return f"step {step}/{steps}  {losses}  lr {values['lr']:.2e}  {values['tokens_per_second']} tokens/s  {remaining}"

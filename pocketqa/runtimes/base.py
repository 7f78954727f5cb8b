"""The seam between text and arithmetic: a runtime turns a padded batch into start and end logits."""

from __future__ import annotations

from typing import Protocol

from pocketqa.types import Batch, RuntimeInfo, SpanLogits


class Runtime(Protocol):
    """An inference engine holding one question-answering model.  `forward` may be called from several threads."""

    @property
    def info(self) -> RuntimeInfo:
        """Engine, version, precision, threads."""
        ...

    @property
    def lengths(self) -> tuple[int, ...] | None:
        """The fixed lengths this engine takes, ascending, or None when any length up to 512 will do."""
        ...

    @property
    def max_batch(self) -> int | None:
        """Most rows of one batch, or None for no limit of its own."""
        ...

    def forward(self, batch: Batch) -> SpanLogits:
        """Logits (B, T) for a batch (B, T); padding positions hold arbitrary finite values.  Raises EngineError."""
        ...

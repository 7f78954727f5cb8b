"""Core ML itself as a runtime: on a Mac, on the compute unit asked for.

What a Mac's Neural Engine computes is not promised to be what a phone's computes, but it is the same framework reading the same file.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import numpy as np

from mobile_export.formats.metadata import END, INPUT, START
from mobile_export.tools import import_coremltools
from pocketqa.errors import EngineError
from pocketqa.runtimes.loading import plain
from pocketqa.types import Batch, RuntimeInfo, SpanLogits

UNITS = {"cpu": "CPU_ONLY", "gpu": "CPU_AND_GPU", "ne": "CPU_AND_NE", "all": "ALL"}  # ours -> coremltools.ComputeUnit
NOT_CHECKED = ("phones: Core ML ran on this Mac, whose compute units and system are others",)


class CoreMLRuntime:
    """One compiled model.  Core ML takes one window at a time (its input has batch 1); a batch is as many predictions."""

    max_batch: int | None = None

    def __init__(self, model: Any, lengths: tuple[int, ...], info: RuntimeInfo) -> None:
        """model: has `predict({"input_ids": (1, T) int32})`, as coremltools.models.MLModel has."""
        self._model = model
        self.lengths: tuple[int, ...] | None = lengths
        self.info = info

    @classmethod
    def open(cls, package: Path, lengths: tuple[int, ...], precision: str, unit: str = "all") -> CoreMLRuntime:
        """Let Core ML compile the model for a unit of UNITS.  Raises EngineError anywhere but on a Mac, and where Core ML refuses the model."""
        if platform.system() != "Darwin":
            raise EngineError(
                f"Core ML predicts on macOS only; this is {platform.system()}. Leave --engine out: the interpreter runs the same file here."
            )
        ct = import_coremltools()
        try:
            model = ct.models.MLModel(str(package), compute_units=getattr(ct.ComputeUnit, UNITS[unit]))
        except Exception as error:  # RuntimeError and NSError in several wrappings
            raise EngineError(f"Core ML cannot open {package}: {plain(error)}") from error
        return cls(model, lengths, RuntimeInfo(f"coreml-{unit}", f"macOS {platform.mac_ver()[0]}", precision, 1))

    def forward(self, batch: Batch) -> SpanLogits:
        """Logits (B, T).  Raises EngineError."""
        start, end = np.zeros(batch.shape, dtype=np.float32), np.zeros(batch.shape, dtype=np.float32)  # (B, T)
        for row in range(batch.shape[0]):
            try:
                found = self._model.predict({INPUT: batch.ids[row : row + 1].astype(np.int32)})
            except Exception as error:
                raise EngineError(f"Core ML cannot compute a window of {batch.shape[1]} tokens: {plain(error)}") from error
            start[row], end[row] = found[START][0], found[END][0]
        return SpanLogits(start, end)

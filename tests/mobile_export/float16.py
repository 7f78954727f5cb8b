"""float16 on any machine: operations of torch with their results rounded, and packages made of a network and read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mobile_export.checkpoint.checkpoints import Checkpoint
from mobile_export.formats.coreml import export_package
from mobile_export.interpreter.interpreter import Interpreter
from mobile_export.interpreter.mlprogram import Program, open_program
from mobile_export.targets import find_target


class Rounded(TorchFunctionMode):
    """Within it, what torch computes in float32 is rounded to float16 after each operation, infinities and all."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.half().float() if isinstance(result, torch.Tensor) and result.dtype == torch.float32 else result


def half_logits(network: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits (2, 1, T) of a network whose weights and values are rounded to float16."""
    with torch.inference_mode(), Rounded():
        return torch.stack(network(ids.int()))


def package(checkpoint: Checkpoint, folder: Path, target: str, lengths: Sequence[int], layout: str = "standard") -> Program:
    """The program that `pocketqa export` writes for these."""
    export_package(checkpoint, folder / "Reader.mlpackage", find_target(target), tuple(lengths), layout)
    return open_program(folder / "Reader.mlpackage")


def run(program: Program, ids: torch.Tensor) -> np.ndarray[Any, Any]:
    """Logits (2, 1, T) of a package, by the interpreter."""
    return np.stack(Interpreter(program).run(ids.int().numpy()))


def decibels(given: Any, reference: Any) -> float:
    """Peak signal-to-noise ratio."""
    given, reference = np.asarray(given, np.float64), np.asarray(reference, np.float64)
    return float(20 * np.log10(np.abs(reference).max()) - 10 * np.log10(np.mean((given - reference) ** 2)))

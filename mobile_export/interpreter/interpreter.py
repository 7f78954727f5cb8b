"""Run a saved ML program on any machine, from its specification and weight file and nothing else.

    program = open_program("Student.mlpackage")
    start, end = Interpreter(program).run(ids)             # ids (B, T) int32 -> two arrays (B, T) float32

    Interpreter(program, replace={"words_to_fp16": values})    # other values for a constant, by the names of `weights(program)`
    Interpreter(program, rounding=False)                       # the same operations in float32: what the conversion did, without what float16 does
    watching = Interpreter(program, watch=True)                # then, after run(ids): watching.statistics[operation name]
    InterpreterRuntime(program)                                # as a `pocketqa.runtimes.base.Runtime`

Each operation is computed with torch kernels in float32 and its result rounded to the type that the program declares for it, float16 for nearly all:
products of float16 numbers are exact in float32, sums are accumulated there.  Compressed weights are decoded once, in the beginning.

The program is written for one query, (1, T), and the rows of a batch are computed one after another: together (torch.func.vmap) they took longer at
384 tokens, where their values no longer fit into the processor's caches, and as long at 128.  So a query's logits do not depend on its neighbours.

An operation, argument or type that is not known raises EngineError.  What is not modelled: NOT_CHECKED.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobile_export.formats.metadata import END, START
from mobile_export.interpreter.decoding import weights
from mobile_export.interpreter.mlprogram import Operation, Program, Value
from mobile_export.interpreter.planning import FLOATS, plan, rounded, run
from pocketqa import __version__
from pocketqa.errors import EngineError
from pocketqa.runtimes.cores import usable_cores
from pocketqa.types import Batch, RuntimeInfo, SpanLogits

__all__ = ["NOT_CHECKED", "Interpreter", "InterpreterRuntime", "OperationStatistics", "weights"]

NOT_CHECKED = (
    "Core ML's own arithmetic: the interpreter rounds to float16 after each operation and accumulates in float32; the Neural Engine and the GPU "
    "accumulate, fuse and round in ways that Apple does not document",
    "float16 subnormals, which a device may flush to zero",
    "the compilation of the package on a device, and which of its units runs an operation",
)

Observer = Callable[[Operation, Value, Tensor, Tensor], Tensor | None]
"""Given an operation, its output, the result before and after rounding; what it returns, if anything, is used in place of the result."""


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """What an operation left, over all runs.

    non_finite: values that are infinite or NaN.
    overflows: those among them that were finite before they were rounded to the declared type.
    largest: greatest finite magnitude before rounding.
    """

    type: str
    non_finite: int
    overflows: int
    largest: float


class Interpreter:
    """A program ready to run.  `run` may be called from several threads, unless it watches."""

    def __init__(self, program: Program, *, replace: Mapping[str, NDArray[Any]] | None = None, watch: bool = False, rounding: bool = True) -> None:
        """Decode the constants and look up every operation.  Raises EngineError naming what is not known.

        replace: constant name -> values (of the constant's shape) used in place of the stored ones, rounded to its declared type.
        watch: fill `statistics` (slower).
        rounding: False keeps float16 values in float32.
        """
        self.program = program
        self.statistics: dict[str, OperationStatistics] = {}
        self._watch, self._rounding = watch, rounding
        self.input, self._outputs = _features(program)
        self.steps = plan(program, replace or {})
        _keep_freed_memory()

    def run(self, ids: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Start and end logits (B, T) of token ids (B, T), whose rows are independent queries of a length that the program takes.

        Raises EngineError for other lengths, and where an operation fails.
        """
        observer = self._note if self._watch else None
        with torch.inference_mode():
            pairs = [self._compute(query, observer) for query in self._queries(ids)]
        start, end = (torch.cat([pair[place] for pair in pairs]).numpy() for place in (0, 1))  # (B, T)
        return start, end

    def observe(self, ids: NDArray[Any], observer: Observer) -> None:
        """Run one query, ids (1, T), and show `observer` each result as it is computed, constants aside."""
        (query,) = self._queries(ids)  # (1, T)
        with torch.inference_mode():
            self._compute(query, observer)

    def _queries(self, ids: NDArray[Any]) -> Tensor:
        shapes = self.program.inputs[0].shapes
        if ids.ndim != 2 or not len(ids) or (1, ids.shape[1]) not in shapes:
            expected = " or ".join(f"(B, {shape[1]})" for shape in shapes)
            raise EngineError(f"Expected ids of shape {expected}, which the program takes; found {ids.shape}.")
        return torch.from_numpy(np.array(ids, np.int32))[:, None]  # (B, 1, T)

    def _note(self, operation: Operation, output: Value, raw: Tensor, rounded: Tensor) -> None:
        if output.dtype not in FLOATS:
            return
        before = self.statistics.get(operation.name, OperationStatistics(operation.type, 0, 0, 0.0))
        finite, was_finite = rounded.isfinite(), raw.isfinite()
        self.statistics[operation.name] = OperationStatistics(
            operation.type,
            before.non_finite + int(finite.logical_not().sum()),
            before.overflows + int((was_finite & ~finite).sum()),
            max(before.largest, float(torch.where(was_finite, raw.abs(), 0).amax())),
        )

    def _compute(self, query: Tensor, observer: Observer | None = None) -> tuple[Tensor, Tensor]:
        """Logits (1, T) of a query (1, T)."""
        values: dict[str, Tensor] = {self.input: query}
        for step in self.steps:
            results = run(step, values, widen=observer is not None or not self._rounding or not step.kernel.exact)
            for output, result in zip(step.operation.outputs, results, strict=True):
                value = rounded(step.operation, output, result, self._rounding)
                replaced = observer(step.operation, output, result, value) if observer else None
                values[output.name] = value if replaced is None else replaced
            for name in step.last_uses:
                del values[name]
        start, end = (values[name] for name in self._outputs)
        return start, end


class InterpreterRuntime:
    """A program as an engine of `pocketqa.reader.Reader`.  May be called from several threads."""

    max_batch: int | None = None

    def __init__(self, program: Program, threads: int | None = None) -> None:
        """threads is a setting of the whole process in PyTorch; None: as many as there are cores to use.  Raises EngineError as Interpreter does."""
        torch.set_num_threads(threads or min(torch.get_num_threads(), usable_cores()))
        self._interpreter = Interpreter(program)
        self.lengths: tuple[int, ...] | None = tuple(sorted(shape[1] for shape in program.inputs[0].shapes))
        self.info = RuntimeInfo("interpreter", f"{__version__}, PyTorch {torch.__version__}", _precision(program), torch.get_num_threads())

    def forward(self, batch: Batch) -> SpanLogits:
        """Logits (B, T) of the ids alone, from which the program derives mask and token types.  Raises EngineError."""
        return SpanLogits(*self._interpreter.run(batch.ids))


def _precision(program: Program) -> str:
    """How the weights are stored, in one word; float16 ones beside compressed ones go unmentioned."""
    schemes = {info.scheme for info in weights(program).values()} - {"fp16"}
    return "mixed" if len(schemes) > 1 else next(iter(schemes), "fp16")


def _keep_freed_memory() -> None:
    """Let glibc reuse the memory of intermediate values (a setting of the process): handing it back and faulting it in again, page by page, took
    longer than the arithmetic.  The numbers are M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3)."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 32 * 2**20)  # the greatest that it takes
        libc.mallopt(-1, 512 * 2**20)


def _features(program: Program) -> tuple[str, tuple[str, str]]:
    """Names of the one input and of the start and end logits."""
    inputs = [(feature.name, feature.dtype) for feature in program.inputs]
    if len(inputs) != 1 or inputs[0][1] != "int32" or any(len(shape) != 2 or shape[0] != 1 for shape in program.inputs[0].shapes):
        raise EngineError(f"{program.path}: expected one input, token ids (1, T) of type int32, found {inputs}.")
    if {START, END} != {feature.name for feature in program.outputs}:
        raise EngineError(f"{program.path}: expected the outputs {START} and {END}, found {[feature.name for feature in program.outputs]}.")
    return inputs[0][0], (START, END)

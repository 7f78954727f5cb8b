"""OpenVINO on the CPU: bf16 where the processor computes it (several times faster with AMX), else fp32; or from a form in int8.

OpenVINO imports the package openvino-telemetry, which writes an identifier into the home folder and reports the import to Google Analytics.
It is hidden for the time of the import; OpenVINO then takes the silent stub that it brings for installs without that package.
"""

from __future__ import annotations

import functools
import queue
import sys
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np

from pocketqa.errors import EngineError, MissingExtra
from pocketqa.folders import ModelFolder
from pocketqa.runtimes.cores import usable_cores
from pocketqa.runtimes.forms import INT8
from pocketqa.runtimes.loading import OUTPUTS, check_names, feed, graph_path, plain
from pocketqa.types import Batch, RuntimeInfo, SpanLogits

DEVICE = "CPU"
TELEMETRY = "openvino_telemetry"
_HINTS = {"fp32": "f32", "bf16": "bf16"}
# OpenVINO keeps what it prepared for a shape of batch, by default up to 5,000 entries of each kind of operation: some MiB for each shape.  This many
# are enough for the shapes that come again and again, and those that are rare are prepared anew at little cost.
_PREPARED = 128


@functools.cache
def silent_openvino() -> Any:
    """The module `openvino`, without telemetry.  Raises MissingExtra, or EngineError where its libraries do not load.

    A program that has imported OpenVINO or its telemetry before has decided for itself.
    """
    hide = "openvino" not in sys.modules and TELEMETRY not in sys.modules
    if hide:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]  # Python's way to say: not installed
    try:
        import openvino
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise EngineError(f"OpenVINO is installed but incomplete: {error}") from error
        raise MissingExtra("openvino", "openvino", "The engine 'openvino'") from None
    except ImportError as error:
        raise EngineError(f"OpenVINO is installed but does not load on this machine: {error}") from error
    finally:
        if hide:
            del sys.modules[TELEMETRY]
    if getattr(openvino, "__file__", None) is None:  # a mere folder of that name in the working directory
        raise MissingExtra("openvino", "openvino", "The engine 'openvino'")
    return openvino


def computes_bf16() -> bool:
    """Whether OpenVINO says that this processor computes in bf16.  Raises as `silent_openvino`, and EngineError where it has no CPU plugin."""
    try:
        return "BF16" in _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    except RuntimeError as error:
        raise EngineError(f"OpenVINO is installed but finds no processor to compute on: {plain(error)}") from error


class OpenVinoRuntime:
    """One compiled model over a model folder.  Each call borrows an inference request of its own, so several threads may call at once."""

    lengths: tuple[int, ...] | None = None
    max_batch: int | None = None

    def __init__(self, folder: ModelFolder, precision: str | None = None, threads: int | None = None, form: Path | None = None) -> None:
        """Compile the folder's graph; precision None takes bf16 where the processor has it.  Raises FolderError, MissingExtra, EngineError.

        form: graph of an int8 form of the folder, in place of its own; what is not quantised there is computed in the precision.
        """
        version = silent_openvino().__version__
        able = computes_bf16()
        if precision == "bf16" and not able:
            raise EngineError("OpenVINO finds no bf16 arithmetic on this processor. Leave the precision out, or ask for fp32.")
        precision = precision or ("bf16" if able else "fp32")
        threads = threads or usable_cores()
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "ENABLE_CPU_PINNING": False,  # two processes, or teacher and student in one, would be pinned to the same cores
        }
        with graph_path(folder) if form is None else nullcontext(form) as path:
            try:
                self._compiled = _core().compile_model(str(path), DEVICE, options)
            except Exception as error:  # RuntimeError and others, without a base of their own
                raise EngineError(f"OpenVINO {version} cannot open {form or folder.graph}: {plain(error)}") from error
        self._inputs = [port.get_any_name() for port in self._compiled.inputs]
        check_names(self._inputs, [port.get_any_name() for port in self._compiled.outputs], "OpenVINO")
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.info = RuntimeInfo("openvino", version.partition("-")[0], precision if form is None else INT8, threads)

    def forward(self, batch: Batch) -> SpanLogits:
        """Logits (B, T).  Raises EngineError."""
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self._compiled.create_infer_request()
        try:
            request.infer(feed(batch, self._inputs), share_inputs=True)
            start, end = (np.array(request.get_tensor(name).data, dtype=np.float32) for name in OUTPUTS)  # copies (B, T): the request is used again
        except Exception as error:
            raise EngineError(f"OpenVINO cannot compute a batch of {batch.shape[0]} x {batch.shape[1]}: {plain(error)}") from error
        self._idle.put(request)
        return SpanLogits(start, end)


@functools.cache
def _core() -> Any:
    core = silent_openvino().Core()
    with suppress(RuntimeError):  # no public property: a version without it keeps as much as it likes
        core.set_property(DEVICE, {"CPU_RUNTIME_CACHE_CAPACITY": _PREPARED})
    return core

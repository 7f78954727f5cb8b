"""ONNX Runtime on the CPU, in fp32 or from a form in int8: the engine of the base install.

Official builds from 1.29 on write a device identifier and a database below the cache folder and send events to Microsoft, from the import on.
ORT_DISABLE_TELEMETRY=1 in the environment before the import keeps all of it from being created (Privacy.md of the package).
"""

from __future__ import annotations

import functools
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from pocketqa.errors import EngineError
from pocketqa.folders import ModelFolder
from pocketqa.runtimes.cores import usable_cores
from pocketqa.runtimes.forms import INT8
from pocketqa.runtimes.loading import OUTPUTS, check_names, feed, graph_path, plain
from pocketqa.types import Batch, RuntimeInfo, SpanLogits

TELEMETRY_SWITCH = "ORT_DISABLE_TELEMETRY"


@functools.cache
def silent_onnxruntime() -> Any:
    """The module `onnxruntime`, without telemetry unless the environment asks for it.  Raises EngineError where it does not load."""
    wanted = os.environ.setdefault(TELEMETRY_SWITCH, "1") == "0"
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"ONNX Runtime, which the base install brings, does not load: {error}. Install it with: pip install onnxruntime") from error
    if not wanted:
        onnxruntime.disable_telemetry_events()  # builds for Windows apps do not read the switch
    return onnxruntime


class OnnxRuntime:
    """One session over a model folder.  Sessions of ONNX Runtime may be run from several threads at once."""

    lengths: tuple[int, ...] | None = None

    def __init__(self, folder: ModelFolder, threads: int | None = None, form: Path | None = None) -> None:
        """Open the folder.  form: graph of an int8 form of it, in place of its own.  Raises FolderError, EngineError where a graph is refused."""
        onnxruntime = silent_onnxruntime()
        threads = threads or usable_cores()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # errors; they come as exceptions too
        with graph_path(folder) if form is None else nullcontext(form) as path:
            try:
                self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            except Exception as error:  # the library's exceptions have no common base of their own
                raise EngineError(f"ONNX Runtime {onnxruntime.__version__} cannot open {form or folder.graph}: {plain(error)}") from error
        self._inputs = [item.name for item in self._session.get_inputs()]
        check_names(self._inputs, [item.name for item in self._session.get_outputs()], "ONNX Runtime")
        # A form quantises the inputs of each product as they come, with one scale a batch: beside others a window would get other logits.
        self.max_batch: int | None = None if form is None else 1
        self.info = RuntimeInfo("onnxruntime", onnxruntime.__version__, "fp32" if form is None else INT8, threads)

    def forward(self, batch: Batch) -> SpanLogits:
        """Logits (B, T).  Raises EngineError."""
        try:
            start, end = self._session.run(list(OUTPUTS), feed(batch, self._inputs))  # (B, T) each
        except Exception as error:
            raise EngineError(f"ONNX Runtime cannot compute a batch of {batch.shape[0]} x {batch.shape[1]}: {plain(error)}") from error
        return SpanLogits(np.asarray(start, dtype=np.float32), np.asarray(end, dtype=np.float32))

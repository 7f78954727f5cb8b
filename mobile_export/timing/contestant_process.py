"""The process of one contestant: loads a model, answers queries one at a time, and says how long each stage took.

Started by processes.Process as `python -m mobile_export.timing.contestant_process`.  One JSON document a line: requests on standard input, replies on
standard output.  Anything that a library prints goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pocketqa.chatter import hush
from pocketqa.types import JSON

if TYPE_CHECKING:
    from pocketqa.folders import ModelFolder
    from pocketqa.reader import Reader
    from pocketqa.runtimes import Runtime

MIB = 2**20


class Answering:
    """The state of the process: a reader, the queries, and what has been used so far."""

    def __init__(self, born: float) -> None:
        self._born = born  # seconds since the epoch
        self._reader: Reader | None = None
        self._queries: list[list[object]] = []
        self._windows: Sequence[int] = ()
        self._seen: set[int] = set()
        self._cpu = 0.0
        self._waited: float | None = None

    def open(self, path: str, form: str, engine: str, precision: str, threads: int, unit: str, cores: Sequence[int]) -> JSON:
        """Pin, import, load."""
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        folder = Path(path)
        _import_engine(folder, engine)
        started, memory_before, fetched_before = time.time() - self._born, status_mib("VmRSS"), fetched_bytes()
        began = time.perf_counter()
        self._reader = _open(folder, form, engine, precision, threads, unit)
        load = time.perf_counter() - began
        fetched_after = fetched_bytes()
        fetched = None if fetched_before is None or fetched_after is None else (fetched_after - fetched_before) / MIB
        return {
            "info": asdict(self._reader.info),
            "start": started,
            "load": load,
            "fetched": fetched,
            "memory_before": memory_before,
            "memory_after": status_mib("VmRSS"),
            "lengths": self._reader.runtime.lengths,
            "vocabulary": self._reader.tokenizer.vocabulary_hash,
        }

    def workload(self, queries: list[list[object]], window: Sequence[int]) -> JSON:
        """Keep the queries."""
        self._queries, self._windows = queries, window
        self._cpu, self._waited = time.process_time(), waited_seconds()
        return {}

    def ask(self, number: int) -> JSON:
        """Answer one query."""
        question, context, ids = self._queries[number]
        assert self._reader is not None and isinstance(ids, list)
        sample = _forward_only(self._reader, ids) if ids else _answer(self._reader, str(question), str(context), self._windows)
        lengths = sample.pop("lengths")
        new = [length for length in lengths if length not in self._seen]
        self._seen.update(lengths)
        return {**sample, "positions": sum(lengths), "windows": len(lengths), "new_length": bool(new)}

    def close(self) -> JSON:
        """The closing account."""
        waited = waited_seconds()
        since = None if waited is None or self._waited is None else waited - self._waited
        return {"peak": peak_mib(), "cpu": time.process_time() - self._cpu, "waited": since}


def main() -> int:
    """Answer requests until the input ends."""
    hush()
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print must not get between the replies
    answering = Answering(_born())
    for line in sys.stdin:
        request: JSON = json.loads(line)
        try:
            reply = _reply(answering, request)
        except Exception as error:  # every failure is the parent's to report
            reply = {"error": f"{error}" or type(error).__name__}
        _send(replies, reply)
        if "close" in request:
            break
    return 0


def _reply(answering: Answering, request: JSON) -> JSON:
    if "open" in request:
        return answering.open(**request["open"])
    if "workload" in request:
        return answering.workload(**request["workload"])
    return answering.ask(request["ask"]) if "ask" in request else answering.close()


def _send(replies: IO[str], reply: JSON) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _answer(reader: Reader, question: str, context: str, window: Sequence[int]) -> JSON:
    """Tokenise, forward (each window on its own, batch 1, padded where the engine takes fixed lengths only), decode."""
    from pocketqa.spans import longest_safe_answer
    from pocketqa.types import Request, SpanOptions, WindowOptions

    options = WindowOptions(*window)
    safe = longest_safe_answer(options.doc_stride) if options.doc_stride else SpanOptions().max_answer_tokens
    spans = SpanOptions(max_answer_tokens=min(SpanOptions().max_answer_tokens, safe))
    began = time.perf_counter_ns()
    encoded = reader.encode([Request(question, (context,))], options)
    tokenised = time.perf_counter_ns()
    logits = reader.forward(encoded, max_batch_tokens=1)
    computed = time.perf_counter_ns()
    reader.decode(encoded, logits, spans)
    ended = time.perf_counter_ns()
    lengths = [_padded(len(window), reader.runtime.lengths) for window in encoded.windows]
    seconds = {"tokenise": tokenised - began, "forward": computed - tokenised, "decode": ended - computed}
    return {**{stage: value / 1e9 for stage, value in seconds.items()}, "tokens": encoded.tokens, "lengths": lengths}


def _forward_only(reader: Reader, ids: list[int]) -> JSON:
    """Ids as they stand, none of them masked."""
    import numpy as np

    from pocketqa.types import Batch

    row = np.array([ids], dtype=np.int32)  # (1, T)
    batch = Batch(row, np.zeros_like(row), np.ones_like(row))
    began = time.perf_counter_ns()
    reader.runtime.forward(batch)
    forward = (time.perf_counter_ns() - began) / 1e9
    return {"tokenise": 0.0, "forward": forward, "decode": 0.0, "tokens": len(ids), "lengths": [len(ids)]}


def _padded(length: int, lengths: Sequence[int] | None) -> int:
    return length if lengths is None else min(fixed for fixed in lengths if fixed >= length)


def _import_engine(folder: Path, engine: str) -> None:
    """Import what the engine needs, so that the load that follows is of the model only."""
    importlib.import_module("pocketqa.reader")
    if engine == "onnxruntime":
        from pocketqa.runtimes.onnx import silent_onnxruntime

        silent_onnxruntime()
    elif engine == "openvino":
        from pocketqa.runtimes.openvino import silent_openvino

        silent_openvino().Core()
    elif engine == "pytorch":
        kind = json.loads((folder / "config.json").read_bytes()).get("model_type", "bert")
        importlib.import_module(f"transformers.models.{kind}.modeling_{kind}")
        importlib.import_module("transformers").AutoModelForQuestionAnswering  # noqa: B018  (transformers imports as attributes are read)
    else:
        importlib.import_module("mobile_export.bundle")
        importlib.import_module("executorch.extension.pybindings._C" if engine == "executorch" else "coremltools")
        importlib.import_module("mobile_export.formats.executorch" if engine == "executorch" else "mobile_export.formats.coreml_runtime")


def _open(folder: Path, form: str, engine: str, precision: str, threads: int, unit: str) -> Reader:
    """Tokenizer and engine, without the hashes that the parent has compared already: a reader that asks for them would warm a cold cache."""
    from pocketqa.features import Tokenizer
    from pocketqa.folders import ModelFolder
    from pocketqa.reader import Reader
    from pocketqa.runtimes import open_runtime
    from pocketqa.runtimes.forms import FORMS, INT8

    model = ModelFolder(folder)
    if form == "model" and precision == INT8 and engine in FORMS:
        return Reader(Tokenizer(model.tokenizer), _open_int8(model, engine, threads))
    if form == "model":
        return Reader(Tokenizer(model.tokenizer), open_runtime(model, engine=engine, precision=precision, threads=threads))
    from mobile_export.bundle import Bundle

    bundle = Bundle(folder, model.read_manifest())
    if engine == "executorch":
        from mobile_export.formats.executorch import ExecuTorchRuntime

        return Reader(Tokenizer(bundle.tokenizer), ExecuTorchRuntime(bundle.package, threads))
    from mobile_export.formats.coreml_runtime import CoreMLRuntime

    return Reader(Tokenizer(bundle.tokenizer), CoreMLRuntime.open(bundle.package, bundle.lengths, bundle.scheme, unit))


def _open_int8(model: ModelFolder, engine: str, threads: int) -> Runtime:
    from pocketqa.runtimes.forms import FORMS, form_folder

    graph = form_folder(model, engine) / FORMS[engine][1]
    if engine == "openvino":
        from pocketqa.runtimes.openvino import OpenVinoRuntime

        return OpenVinoRuntime(model, None, threads, graph)
    from pocketqa.runtimes.onnx import OnnxRuntime

    return OnnxRuntime(model, threads, graph)


def _born() -> float:
    """When this process was started, in seconds since the epoch; now, where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return time.time()
    return time.time() - (uptime - ticks / os.sysconf("SC_CLK_TCK"))


def status_mib(field: str) -> float | None:
    """A size from /proc/self/status in MiB; None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), None)


def peak_mib() -> float | None:
    """The peak of this process's resident memory.  Linux counts the parent's in what getrusage says of a child, but not in VmHWM."""
    if (peak := status_mib("VmHWM")) is not None:
        return peak
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB  # bytes there
    return None


def fetched_bytes() -> int | None:
    """Bytes that this process had fetched from storage, or None."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("read_bytes:")), None)


def waited_seconds() -> float | None:
    """Seconds in which threads of this process were ready but had no core: others were using it.  None where the kernel keeps no account."""
    try:
        records = [(task / "schedstat").read_text(encoding="ascii").split() for task in Path("/proc/self/task").iterdir()]
    except OSError:
        return None
    return sum(int(record[1]) for record in records if len(record) > 1) / 1e9


if __name__ == "__main__":
    sys.exit(main())

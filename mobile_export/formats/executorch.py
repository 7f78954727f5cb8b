"""ExecuTorch programs (.pte) for XNNPACK, the CPU engine of phones: written here, and run here as a `Runtime`.

A program has one method a window length: XNNPACK takes more of a graph whose shapes are fixed, and the methods share one copy of the weights.
`forward`, or `forward_128`, `forward_384`, ...: token ids (1, T) int32 to start and end logits (1, T) float32; mask and segments are derived from the
ids inside, as in the Core ML packages (`network.py`).  The methods `scheme` and `checkpoint` return what the program is.

    fp32   everything in float32
    int8   weights of matrix products in int8 with a scale an output channel, their inputs quantised as they come; the word embeddings in int8 with a
           scale a row.  Both scales are the largest |value| of the channel or row over 127.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mobile_export.networks.network import export_network
from mobile_export.networks.windows import made_windows
from mobile_export.silence import silence
from mobile_export.tools import missing
from pocketqa.errors import CorruptFolder, EngineError, OptionsError
from pocketqa.runtimes.cores import usable_cores
from pocketqa.types import Batch, RuntimeInfo, SpanLogits

if TYPE_CHECKING:
    from mobile_export.checkpoint.checkpoints import Checkpoint

# Scheme -> largest difference of a logit, in units of the window's largest where that exceeds 1.  float32 sums in another order differ by some 1e-5;
# 8 bits are judged by `pocketqa verify` on real text, and here only told from a program that computes something else, which is off by about 1.
LIMITS = {"fp32": 1e-4, "int8": 0.5}
FORWARD, SCHEME, CHECKPOINT = "forward", "scheme", "checkpoint"
INT8_MAX = 127
SEGMENTS = 2  # rows of BERT's table of token types, which is too small to be worth 8 bits

_engine = threading.RLock()  # the threads and the memory of intermediate values are shared by all programs of a process


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    methods: their names, one a window length.
    difference: largest |logit| off the same network in PyTorch float32 on made-up windows, relative to the window's largest logit above 1.
    """

    methods: tuple[str, ...]
    difference: float


def write_pte(checkpoint: Checkpoint, lengths: Sequence[int], path: Path, scheme: str) -> Written:
    """Lower the checkpoint's export network to `path`, read the file again and compare its logits.  The same bytes each time.

    lengths: window lengths, ascending.  Raises OptionsError for another scheme, MissingExtra, and EngineError where a weight product is not
    quantised or not delegated, or the logits are not those of PyTorch; nothing is left at `path` then.
    """
    if scheme not in LIMITS:
        raise OptionsError(f"Expected a scheme out of {', '.join(LIMITS)} for ExecuTorch, found {scheme!r}.")
    if not lengths:
        raise OptionsError("Expected at least one window length, found none.")
    markers, vocabulary = checkpoint.vocabulary.markers, checkpoint.model.config.vocab_size
    with silence():
        methods, networks = {}, {}
        for length in lengths:
            name = FORWARD if len(lengths) == 1 else f"{FORWARD}_{length}"
            networks[length] = export_network(checkpoint.model, markers, (length,), epsilon=0.0)  # float32 needs no larger epsilon
            ids = made_windows(vocabulary, markers, length)[0]  # (1, T)
            methods[name] = _traced(networks[length], ids, scheme)
        edge, program = _lowered(methods, {SCHEME: scheme, CHECKPOINT: checkpoint.sha256})
    _refuse_portable(edge, next(iter(methods)))
    _write(path, program.write_to_file)
    try:
        runtime = ExecuTorchRuntime(path)
        windows = {length: made_windows(vocabulary, markers, length, seed=1)[:-1] for length in lengths}  # padding alone has no answer to compare
        difference = max(_difference(runtime, networks[length], ids, markers.pad) for length in lengths for ids in windows[length])
        if not difference <= LIMITS[scheme]:  # also when it is no number
            raise EngineError(f"Expected logits of {path.name} within {LIMITS[scheme]:g} of PyTorch's, found a difference of {difference:.3g}.")
    except BaseException:
        path.unlink()
        raise
    return Written(tuple(methods), difference)


class ExecuTorchRuntime:
    """A program written by `write_pte`.  A length is loaded, and takes its share of memory, when it is first asked for."""

    max_batch: int | None = 1

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        """Open a .pte file.  threads: a setting of the whole process in ExecuTorch; None takes all usable cores.

        Raises MissingExtra, CorruptFolder where the file cannot be read, EngineError where it is a program of something else.
        """
        engine = _import_engine()
        threads = threads or usable_cores()
        with _engine, _told(f"ExecuTorch cannot open {path}", CorruptFolder):
            if engine._threadpool_get_thread_count() != threads:
                engine._unsafe_reset_threadpool(threads)  # unsafe while a program runs, hence the lock
            self._program = engine._load_program(str(path), program_verification=engine.Verification.InternalConsistency)
            names = [self._program.get_method_name(number) for number in range(self._program.num_methods())]
            inputs = {name: self._program.method_meta(name) for name in names if name.startswith(FORWARD)}
            lengths = {int(meta.input_tensor_meta(0).sizes()[1]): name for name, meta in inputs.items()}
            scheme = self._program.load_method(SCHEME).call([])[0] if SCHEME in names else None
        if scheme not in LIMITS or not lengths:
            raise EngineError(f"Expected a program written by `pocketqa export` at {path}, found one with the methods {', '.join(names)}.")
        self._names, self._methods = lengths, dict[int, Any]()
        self.lengths: tuple[int, ...] | None = tuple(sorted(lengths))
        self.info = RuntimeInfo("executorch", metadata.version("executorch"), scheme, threads)

    def forward(self, batch: Batch) -> SpanLogits:
        """Logits (1, T) for one window padded to one of the lengths.  Raises EngineError."""
        rows, length = batch.shape
        if rows != 1 or length not in self._names:
            raise EngineError(f"ExecuTorch cannot compute a batch of {rows} x {length}: this program takes 1 x {' or '.join(map(str, self._names))}.")
        ids = torch.from_numpy(np.ascontiguousarray(batch.ids, dtype=np.int32))  # (1, T)
        with _engine:
            if length not in self._methods:
                with _told(f"ExecuTorch cannot load {self._names[length]}", EngineError):
                    self._methods[length] = self._program.load_method(self._names[length])
            try:
                start, end = self._methods[length].call([ids])  # (1, T) each, copies
            except RuntimeError as error:
                raise EngineError(f"ExecuTorch cannot compute a batch of {rows} x {length}: {error}") from error
        return SpanLogits(start.numpy(), end.numpy())


def _import_engine() -> Any:
    """The compiled module itself: the Python around it would import ExecuTorch's compiler for seconds, and adds nothing that is needed here."""
    try:
        from executorch.extension.pybindings import _C
    except ImportError as error:
        raise missing("executorch", "running ExecuTorch programs") from error
    return _C


def _traced(network: torch.nn.Module, ids: torch.Tensor, scheme: str) -> torch.export.ExportedProgram:
    exported = torch.export.export(network, (ids,))
    if scheme == "fp32":
        return exported
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True))
    graph = prepare_pt2e(exported.module(), quantizer)
    graph(ids)  # observes the weights; inputs are observed on the phone
    graph = convert_pt2e(graph)
    _quantise_embeddings(graph)
    _refuse_unquantised(graph)
    return torch.export.export(graph, (ids,))


def _quantise_embeddings(graph: torch.fx.GraphModule) -> None:
    """Replace each lookup in a large table by one in int8 rows times one of their scales, with operations that every ExecuTorch build has."""
    aten = torch.ops.aten
    for number, node in enumerate(list(graph.graph.nodes)):
        if node.target != aten.embedding.default or node.args[0].op != "get_attr":
            continue
        table = getattr(graph, node.args[0].target).detach()  # (V, H)
        if table.shape[0] <= SEGMENTS:
            continue
        scale = (table.abs().amax(1, keepdim=True) / INT8_MAX).clamp(min=torch.finfo(torch.float32).tiny)  # (V, 1)
        graph.register_buffer(f"rows_{number}", (table / scale).round().to(torch.int8))  # (V, H)
        graph.register_buffer(f"scales_{number}", scale)
        with graph.graph.inserting_before(node):
            rows, scales = (
                graph.graph.call_function(aten.embedding.default, (graph.graph.get_attr(f"{kind}_{number}"), node.args[1]))
                for kind in ("rows", "scales")
            )  # (1, T, H), (1, T, 1)
            values = graph.graph.call_function(aten.to.dtype, (rows, torch.float32))
            product = graph.graph.call_function(aten.mul.Tensor, (values, scales))  # (1, T, H)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def _refuse_unquantised(graph: torch.fx.GraphModule) -> None:
    """Raises EngineError naming the products whose weights stayed in float32: the quantiser passes over what it does not recognise."""
    products = [node for node in graph.graph.nodes if node.target == torch.ops.aten.linear.default]
    left = [str(node) for node in products if "dequantize" not in str(getattr(node.args[1], "target", ""))]
    if left or not products:
        raise EngineError(
            f"Expected every matrix product quantised to int8, found {len(left)} of {len(products)} left in float32: {', '.join(left)}."
        )


def _lowered(methods: dict[str, torch.export.ExportedProgram], constants: dict[str, str]) -> tuple[Any, Any]:
    """(the program of edge operations with XNNPACK's parts taken out, the finished program)."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.backends.xnnpack.utils.configs import (
        get_transform_passes,
        get_xnnpack_edge_compile_config,
        get_xnnpack_executorch_backend_config,
    )
    from executorch.exir import to_edge_transform_and_lower

    edge = to_edge_transform_and_lower(
        methods,
        transform_passes=get_transform_passes(),  # takes out expansions to the same shape, which would cut XNNPACK's stretches apart
        partitioner=[XnnpackPartitioner()],
        compile_config=get_xnnpack_edge_compile_config(),
        constant_methods=constants,
    )
    return edge, edge.to_executorch(get_xnnpack_executorch_backend_config())


def _refuse_portable(edge: Any, method: str) -> None:
    """Raises EngineError where a matrix product is left to the portable kernels, which are slow."""
    with silence():
        from executorch.devtools.backend_debug import get_delegation_info

        info = get_delegation_info(edge.exported_program(method).graph_module)
    portable = sorted(name for name, counts in info.delegation_by_operator.items() if counts.non_delegated)
    if left := [name for name in portable if any(product in name for product in ("linear", "addmm", "bmm", "matmul"))]:
        raise EngineError(f"Expected XNNPACK to take every matrix product, found {', '.join(left)} left to the portable kernels.")


def _write(path: Path, write: Callable[[Any], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        write(file)


def _difference(runtime: ExecuTorchRuntime, network: torch.nn.Module, ids: torch.Tensor, pad: int) -> float:
    """Over the positions of ids (1, T) that are no padding."""
    real = ids[0].numpy() != pad  # (T,)
    with torch.inference_mode():
        expected = torch.stack(network(ids)).numpy()[..., real]  # (2, 1, tokens)
    values = ids.numpy()
    logits = runtime.forward(Batch(values, np.zeros_like(values), np.ones_like(values)))
    found = np.stack((logits.start, logits.end))[..., real]  # (2, 1, tokens)
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


@contextlib.contextmanager
def _told(about: str, kind: type[CorruptFolder] | type[EngineError]) -> Iterator[None]:
    """Keep what the C++ libraries write to standard error as they start and load (on Linux, that they look for files of Android's) for the message
    of the error, should there be one.
    """
    with tempfile.TemporaryFile() as log:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except RuntimeError as error:
            log.seek(0)
            lines = log.read().decode(errors="replace").splitlines()
            raise kind(f"{about}: {error}. {' '.join(lines[-1:])}") from error
        finally:
            os.dup2(kept, 2)
            os.close(kept)

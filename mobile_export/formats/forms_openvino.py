"""The int8 form of a model folder for OpenVINO: weights and activations in int8, ranges of the activations measured on a sample (NNCF).

NNCF, too, passes over weights that reach a product through a Cast or a Transpose: it is given the graph that `forms_onnx.fold` makes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobile_export.formats.forms_onnx import fold, products
from mobile_export.silence import silence
from pocketqa.errors import EngineError
from pocketqa.folders import ModelFolder
from pocketqa.runtimes.loading import feed
from pocketqa.runtimes.openvino import TELEMETRY, OpenVinoRuntime, silent_openvino
from pocketqa.types import JSON

if TYPE_CHECKING:
    from mobile_export.formats.forms import Sample

SMOOTHINGS = (0.7, 0.85, 0.95)  # the a of `forms_onnx`
INTEGERS = {"i8", "u8"}


def quantised(model: ModelFolder, sample: Sample, out: Path, say: Callable[[str], None]) -> Iterator[JSON]:
    """Write `out`/model.xml and model.bin and say what was tried and chosen; once for each smoothing, the one nearest to the logits first.

    Raises EngineError where a product was left out.
    """
    import onnx

    core = silent_openvino().Core()
    folded = fold(model)
    weighted = {node.name for node in products(folded)}
    attention = [node.name for node in folded.graph.node if node.op_type == "MatMul" and node.name not in weighted]
    tried: dict[float, float] = {}
    with tempfile.TemporaryDirectory(prefix="pocketqa-") as scratch:
        onnx.save(folded, str(Path(scratch) / "model.onnx"))

        def attempt(smoothing: float, path: Path) -> None:
            _write(core.read_model(str(Path(scratch) / "model.onnx")), sample, attention, smoothing, path)
            refuse_leftovers(core.read_model(str(path)), len(weighted))
            tried[smoothing] = sample.distance(OpenVinoRuntime(model, form=path))
            say(f"Smoothing {smoothing}: logits moved by {tried[smoothing]:.4f} on average")

        for smoothing in SMOOTHINGS:
            attempt(smoothing, Path(scratch) / f"{smoothing}.xml")  # a file each: OpenVINO may still map those before
        distances = [{"smoothing": smoothing, "distance": round(moved, 5)} for smoothing, moved in tried.items()]
        for smoothing, moved in sorted(tried.items(), key=lambda item: item[1]):
            for suffix in (".xml", ".bin"):
                (out / f"model{suffix}").unlink(missing_ok=True)  # OpenVINO may still map the file before
                shutil.copyfile(Path(scratch) / f"{smoothing}{suffix}", out / f"model{suffix}")
            yield {"products": len(weighted), "smoothing": smoothing, "distance": round(moved, 5), "tried": distances}


def _write(graph: Any, sample: Sample, attention: Sequence[str], smoothing: float, path: Path) -> None:
    nncf = _silent_nncf()
    names = [port.get_any_name() for port in graph.inputs]
    batches = [feed(batch, names) for batch in sample.batches()]
    with silence():
        nncf.set_log_level("ERROR")
        quantised = nncf.quantize(
            graph,
            nncf.Dataset(batches),
            preset=nncf.QuantizationPreset.MIXED,  # asymmetric ranges for activations: those behind a GELU are
            model_type=nncf.ModelType.TRANSFORMER,  # leaves the softmax and the norms alone
            ignored_scope=nncf.IgnoredScope(names=list(attention)),  # products of two activations have no weight to gain from
            subset_size=len(batches),
            advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=smoothing)),
        )
        silent_openvino().save_model(quantised, str(path), compress_to_fp16=True)


def refuse_leftovers(graph: Any, count: int) -> None:
    """Raises EngineError where not exactly `count` products have an integer weight and a quantised input, or another product has a weight."""
    leaves: dict[str, set[str]] = {}  # of what follows from constants alone: the types of those constants
    quantised, left = 0, []
    for node in graph.get_ordered_ops():
        sources = [node.input_value(side).get_node() for side in range(node.get_input_size())]
        names = [source.get_name() for source in sources]
        if node.get_type_name() == "Constant":
            leaves[node.get_name()] = {node.get_element_type().get_type_name()}
        elif sources and all(name in leaves for name in names):
            leaves[node.get_name()] = set().union(*(leaves[name] for name in names))
        elif node.get_type_name() == "MatMul" and any(name in leaves for name in names):
            weight, other = sorted(sources, key=lambda source: source.get_name() not in leaves)
            if leaves[weight.get_name()] & INTEGERS and _is_quantised(other):
                quantised += 1
            else:
                left.append(node.get_friendly_name())
    if left or quantised != count or not count:
        raise EngineError(
            f"Expected {count or 'some'} products of weights in int8, found {quantised}; left as they were: {', '.join(left[:3]) or 'none'}"
            f"{f' and {len(left) - 3} more' if len(left) > 3 else ''}. The form was not kept: this version of NNCF is not supported."
        )


def _is_quantised(node: Any) -> bool:
    """Whether an input was quantised, before it was given another shape perhaps."""
    while node.get_type_name() in ("Reshape", "Transpose"):
        node = node.input_value(0).get_node()
    return bool(node.get_type_name() == "FakeQuantize")


def _silent_nncf() -> Any:
    """The module, without the telemetry that it would import (see `pocketqa.runtimes.openvino`)."""
    hide = TELEMETRY not in sys.modules
    if hide:
        sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        with silence():
            import nncf
    finally:
        if hide:
            del sys.modules[TELEMETRY]
    return nncf

"""The int8 form of a model folder for ONNX Runtime: weights of matrix products in int8, their inputs quantised as they come.

Three things stand between the graph of a model folder and ONNX Runtime's own quantiser:

    It sees a weight only where it is an initialiser, and passes over all others without a word.  In our graphs a Cast and a Transpose follow each
    (see `graph.py`): both are folded here, and afterwards every product is looked for.
    Word embeddings stay in float16, as they are in the folder: the Cast moves behind the lookup.
    The inputs of a product get one scale, which a few large channels take for themselves.  Before quantising, each channel is divided by
    s = max|x|^a / max|w|^(1 - a), and the weights multiplied by it (SmoothQuant, arXiv 2211.10438, equation 4).  Which a, and which weight type,
    is decided by the logits on a sample, since it depends on the model and on the processor's integer instructions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mobile_export.silence import silence
from pocketqa.errors import EngineError
from pocketqa.folders import ModelFolder
from pocketqa.runtimes.loading import feed, graph_path
from pocketqa.runtimes.onnx import OnnxRuntime, silent_onnxruntime
from pocketqa.types import JSON, Floats

if TYPE_CHECKING:
    from mobile_export.formats.forms import Sample

PRODUCTS = ("MatMul", "Gemm", "Conv")
SMALLEST = 1e-5  # of a channel's largest value: one that is zero on the whole sample is left as it is
SIGNED, UNSIGNED = "QInt8", "QUInt8"  # ONNX Runtime has the faster kernels for signed weights

Peaks = Mapping[str, Floats]  # name of an input -> largest |x| of each channel (C,)


@dataclass(frozen=True, slots=True)
class Way:
    """One way to quantise.  smoothing: the a above, None for none; reduced: weights in 7 bits, for processors whose sums of products saturate."""

    smoothing: float | None
    weights: str = SIGNED
    per_channel: bool = True
    reduced: bool = False

    @property
    def words(self) -> str:
        """For people."""
        smoothing = "no smoothing" if self.smoothing is None else f"smoothing {self.smoothing}"
        return f"{smoothing}, {self.weights} with a scale for each {'channel' if self.per_channel else 'weight'}{', 7 bits' if self.reduced else ''}"


SMOOTHINGS = (None, 0.5, 0.8, 0.9)
WAYS = tuple(Way(None, weights, per_channel, reduced) for weights in (SIGNED, UNSIGNED) for per_channel in (True, False) for reduced in (False, True))


def quantised(model: ModelFolder, sample: Sample, out: Path, say: Callable[[str], None]) -> Iterator[JSON]:
    """Write `out`/model.onnx and say what was tried and chosen; once more for each call of next, in the order of `candidates`.

    Raises EngineError where a product was left out.
    """
    folded = fold(model)
    count = len(products(folded))
    tried: dict[Way, float] = {}
    with tempfile.TemporaryDirectory(prefix="pocketqa-") as scratch:
        peaks = _peaks(folded, sample, Path(scratch) / "model.onnx")

        def attempt(way: Way, path: Path) -> None:
            _write(_smoothed(folded, peaks, way.smoothing), way, path)
            refuse_leftovers(path, count)
            tried[way] = sample.distance(OnnxRuntime(model, form=path))
            say(f"{way.words}: logits moved by {tried[way]:.4f} on average")

        for smoothing in SMOOTHINGS:
            attempt(Way(smoothing), Path(scratch) / "model.onnx")
        smoothing = candidates(tried)[0].smoothing
        for way in WAYS[1:]:
            attempt(replace(way, smoothing=smoothing), Path(scratch) / "model.onnx")
    distances = [asdict(way) | {"distance": round(moved, 5)} for way, moved in tried.items()]
    for best in candidates(tried):
        attempt(best, out / "model.onnx")
        yield {"products": count, **asdict(best), "distance": round(tried[best], 5), "tried": distances}


def candidates(tried: Mapping[Way, float]) -> list[Way]:
    """The way that moves the logits least with signed weights, which have the faster kernels, then that with unsigned ones where it is nearer."""
    nearest = [min(ways, key=lambda way: tried[way]) for kind in (SIGNED, UNSIGNED) if (ways := [way for way in tried if way.weights == kind])]
    return [way for way in nearest if tried[way] <= tried[nearest[0]]]


def fold(model: ModelFolder) -> Any:
    """The folder's graph with its weights in it: Casts and Transposes of weights folded, the Casts of looked-up tables moved behind the lookup."""
    import onnx

    with graph_path(model) as path:
        loaded = onnx.load(str(path))
    graph = loaded.graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    users: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, set()).add(node.op_type)
    tables: dict[str, str] = {}  # float32 name -> float16 initialiser
    nodes = []
    for node in graph.node:  # in topological order, as ONNX demands
        source = node.input[0] if node.input else ""
        if node.op_type == "Cast" and source in values and users.get(node.output[0]) == {"Gather"}:
            tables[node.output[0]] = source
        elif node.op_type == "Cast" and source in values:
            values[node.output[0]] = values[source].astype(onnx.helper.tensor_dtype_to_np_dtype(node.attribute[0].i))
        elif node.op_type == "Transpose" and source in values:
            values[node.output[0]] = np.ascontiguousarray(values[source].transpose(node.attribute[0].ints))
        else:
            nodes.append(node)
        if node.op_type == "Gather" and source in tables:
            result = node.output[0]
            node.input[0], node.output[0] = tables[source], f"{result}.float16"
            nodes.append(onnx.helper.make_node("Cast", [node.output[0]], [result], name=f"{result}.Cast", to=onnx.TensorProto.FLOAT))
    _rewrite(graph, nodes, values)
    return loaded


def products(model: Any) -> list[Any]:
    """The float products with a weight: one of the two factors follows from constants alone, however many operations lie between."""
    constants = {tensor.name for tensor in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if all(name in constants for name in node.input if name):
            constants.update(node.output)
        elif node.op_type in PRODUCTS and any(name in constants for name in node.input[:2]):
            found.append(node)
    return found


def refuse_leftovers(path: Path, count: int) -> None:
    """Raises EngineError where a quantised graph does not hold `count` integer products and no other product with a weight."""
    import onnx

    model = onnx.load(str(path))
    left = [node.name for node in products(model)]
    quantised = sum(node.op_type == "MatMulInteger" for node in model.graph.node)
    if left or quantised != count or not count:
        raise EngineError(
            f"Expected {count or 'some'} products of weights in int8, found {quantised}; left in float32: {', '.join(left[:3]) or 'none'}"
            f"{f' and {len(left) - 3} more' if len(left) > 3 else ''}. The form was not kept: this version of the quantiser is not supported."
        )


def _peaks(model: Any, sample: Sample, path: Path) -> Peaks:
    """Largest |x| of each channel (C,) of the inputs of weighted MatMuls, over the sample."""
    import onnx

    weights = {tensor.name for tensor in model.graph.initializer}
    names = sorted({node.input[0] for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights})
    if not names:
        return {}  # which `refuse_leftovers` explains
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    onnx.save(watched, str(path))
    options = silent_onnxruntime().SessionOptions()
    options.log_severity_level = 3
    session = silent_onnxruntime().InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = [item.name for item in session.get_inputs()]
    peaks: dict[str, Floats] = {}
    for batch in sample.batches():
        for name, values in zip(names, session.run(names, feed(batch, inputs)), strict=True):
            highest = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)  # (C,)
            peaks[name] = np.maximum(peaks.get(name, highest), highest)
    return peaks


def _smoothed(model: Any, peaks: Peaks, smoothing: float | None) -> Any:
    """A copy in which the inputs x of weighted MatMuls are divided by s (C,) and the rows of the weights (C, D) multiplied by it."""
    import onnx

    result = onnx.ModelProto()
    result.CopyFrom(model)
    if smoothing is None:
        return result
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in result.graph.initializer}
    users = [node for node in result.graph.node if node.op_type == "MatMul" and node.input[1] in values]
    scales = {name: _scale(peak, [values[node.input[1]] for node in users if node.input[0] == name], smoothing) for name, peak in peaks.items()}
    nodes = []
    for node in result.graph.node:
        if node.op_type == "MatMul" and node.input[1] in values:
            name, weight = node.input
            if f"{name}.scale" not in values:  # the first product of this input
                values[f"{name}.scale"] = 1 / scales[name]
                nodes.append(onnx.helper.make_node("Mul", [name, f"{name}.scale"], [f"{name}.smooth"], name=f"{name}.Mul"))
            values[f"{weight}.{name}"] = values[weight] * scales[name][:, None]
            node.input[:] = [f"{name}.smooth", f"{weight}.{name}"]
        nodes.append(node)
    _rewrite(result.graph, nodes, values)
    return result


def _scale(peak: Floats, weights: list[Floats], smoothing: float) -> Floats:
    """s (C,) of an input with the given peaks (C,) and the weights (C, D) of all its products."""
    largest = np.max([np.abs(weight).max(axis=1) for weight in weights], axis=0)  # (C,)
    scale = np.maximum(peak, SMALLEST) ** smoothing / np.maximum(largest, SMALLEST) ** (1 - smoothing)
    return np.where(peak > SMALLEST, scale, 1).astype(np.float32)


def _rewrite(graph: Any, nodes: list[Any], values: Mapping[str, NDArray[Any]]) -> None:
    """Give the graph these nodes, and as initialisers those of the values that they use."""
    import onnx

    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # copies: the nodes may be the graph's own
    needed = {name for node in kept for name in node.input}
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in values.items() if name in needed)
    graph.node.extend(kept)


def _write(model: Any, way: Way, path: Path) -> None:
    """Let ONNX Runtime's quantiser write the model."""
    with silence():
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=way.per_channel,
            reduce_range=way.reduced,
            weight_type=getattr(QuantType, way.weights),
        )

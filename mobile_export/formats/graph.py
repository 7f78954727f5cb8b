"""The ONNX graph of a model folder: exported by optimum in fp32, then relinked, so that its weights are those of model.safetensors.

Every initialiser of the exported graph carries the name of a parameter (constants are not folded at export, which would rename and transpose
them).  Relinking replaces its values by a reference (file, offset, length) to the float16 tensor of that name, followed by a Cast to float32:

    model.safetensors[bert...weight] (float16) --Cast--> bert...weight.float32 --Transpose--> MatMul

Engines fold Cast and Transpose of a constant while they make the session, so nothing of it is left at run time.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pocketqa.errors import FolderError
from pocketqa.weights import TensorEntry, safetensors_header

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OPSETS = (17, 18, 19, 20)  # 17 brought LayerNormalization as one node; 20 is the last that PyTorch's TorchScript exporter writes
DEFAULT_OPSET = 17
LARGEST_CONSTANT = 16_384  # bytes that may stay in the graph: 512 position numbers take 4,096, a forgotten bias of a wide layer would not fit
SUFFIX = ".float32"


def export_graph(model: PreTrainedModel, graph: Path, weights: Path, opset: int = DEFAULT_OPSET) -> None:
    """Export the model to `graph`, pointing into `weights` (a safetensors file beside it, holding the model's parameters in float16)."""
    _export(model, graph, opset)
    parameters = {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}
    relink(graph, weights, parameters)


def relink(graph: Path, weights: Path, parameters: dict[str, np.ndarray]) -> None:
    """Replace the values of every initialiser by the place of the tensor of its name.  Raises FolderError where something cannot be linked."""
    import onnx

    model = onnx.load(str(graph))
    tensors = safetensors_header(weights)
    casts, kept = [], []
    for initializer in model.graph.initializer:
        if initializer.name not in parameters:
            kept.append(initializer)
            continue
        if not np.array_equal(onnx.numpy_helper.to_array(initializer), parameters[initializer.name]):
            raise FolderError(f"The exported graph holds other values of {initializer.name} than the model: this exporter version is not supported.")
        kept.append(_external(initializer.name, tensors[initializer.name], weights.name))
        casts.append(
            onnx.helper.make_node("Cast", [initializer.name], [initializer.name + SUFFIX], name=f"{initializer.name}.Cast", to=onnx.TensorProto.FLOAT)
        )
    linked = {cast.input[0] for cast in casts}
    nodes = list(model.graph.node)
    for node in nodes:
        node.input[:] = [name + SUFFIX if name in linked else name for name in node.input]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend([*casts, *nodes])
    _refuse_leftovers(model)
    onnx.save(model, str(graph))
    onnx.checker.check_model(str(graph))


def _export(model: PreTrainedModel, graph: Path, opset: int) -> None:
    from optimum.exporters.onnx import export
    from optimum.exporters.tasks import TasksManager
    from torch.jit import TracerWarning  # type: ignore[attr-defined]

    constructor = TasksManager.get_exporter_config_constructor("onnx", model=model, task="question-answering", library_name="transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)  # shapes are traced on purpose; agreement is measured for other shapes
        warnings.simplefilter("ignore", DeprecationWarning)  # optimum chooses PyTorch's older exporter
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)  # of slices (MobileBERT's trigrams): nothing is folded on purpose
        warnings.filterwarnings("ignore", message="Constant folding - ")  # nothing is to be folded
        export(model, constructor(model.config), graph, opset=opset, do_constant_folding=False, disable_dynamic_axes_fix=True)


def _external(name: str, tensor: TensorEntry, location: str) -> Any:
    import onnx

    if tensor.dtype != "F16":
        raise FolderError(f"Expected {name} as F16 in {location}, found {tensor.dtype}.")
    proto = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT16, dims=tensor.shape, data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", tensor.offset), ("length", tensor.length)):
        proto.external_data.add(key=key, value=str(value))
    return proto


def _refuse_leftovers(model: Any) -> None:
    """Raises FolderError where the graph still holds a large constant, which would be a second copy of a weight."""
    constants = [(tensor.name, tensor) for tensor in model.graph.initializer if not tensor.external_data]
    constants += [(node.name, attribute.t) for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    large = [f"{name} ({tensor.ByteSize()} bytes)" for name, tensor in constants if tensor.ByteSize() > LARGEST_CONSTANT]
    if large:
        raise FolderError(
            f"The exported graph holds weights that are no parameters of the model: {', '.join(large)}. This architecture is not supported."
        )

"""The ONNX graph of a model folder: nodes in float32 whose weights are those of model.safetensors.

Every weight is an initialiser with the name of a parameter.  It refers (file, offset, length) to the float16 tensor of that name, and a Cast to
float32 follows:

    model.safetensors[bert...weight] (float16) --Cast--> bert...weight.float32 --Transpose--> MatMul

Engines fold Cast and Transpose of a constant while they make the session, so nothing of it is left at run time.  What is computed with the weights
stands in `graph_families.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from pocketqa.errors import FolderError
from pocketqa.runtimes.loading import OUTPUTS
from pocketqa.weights import safetensors_header

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

OPSETS = (17, 18, 19, 20)  # 17 brought LayerNormalization as one node; the operators used here are the same in all four
DEFAULT_OPSET = 17
SUFFIX = ".float32"
AXES = ("batch_size", "sequence_length")  # of every input and output


def export_graph(model: PreTrainedModel, graph: Path, weights: Path, opset: int = DEFAULT_OPSET) -> None:
    """Write the model to `graph`, pointing into `weights` (a safetensors file beside it, holding the model's parameters in float16).

    Raises FolderError for a model that is of none of the families, and where the file does not hold a parameter.
    """
    import onnx

    from mobile_export.formats.graph_families import write_network  # loads PyTorch

    writer = GraphWriter(model, weights)
    inputs = write_network(writer, model)
    onnx.save(writer.finish(inputs, opset), str(graph))
    onnx.checker.check_model(str(graph))


class GraphWriter:
    """The nodes of a graph, written one after another.  Tensors are known by their names; each method returns the name of one.

    scope: what the names of the next nodes begin with.
    """

    def __init__(self, model: PreTrainedModel, weights: Path) -> None:
        self.scope = ""
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._location, self._tensors = weights.name, safetensors_header(weights)
        self._nodes: list[Any] = []
        self._initializers: dict[str, Any] = {}
        self._counts: Counter[str] = Counter()

    def node(self, operator: str, *inputs: str, name: str | None = None, **attributes: Any) -> str:
        """One operator of one output.  Node and output share a name: by default the scope, the operator, and a number from the second on."""
        import onnx

        if name is None:
            label = f"{self.scope}/{operator}"
            self._counts[label] += 1
            name = label if self._counts[label] == 1 else f"{label}_{self._counts[label]}"
        self._nodes.append(onnx.helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: ArrayLike) -> str:
        """Whole numbers as int64, others as float32.  Equal constants are there once."""
        import onnx

        array = np.asarray(values)
        array = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        name = f"constant {array.tolist()}"
        self._initializers.setdefault(name, onnx.numpy_helper.from_array(array, name))
        return name

    def parameter(self, tensor: Tensor) -> str:
        """A parameter of the model in float32.  Raises FolderError where the weight file does not hold it in float16."""
        import onnx

        name = self._names[id(tensor)]
        if name not in self._initializers:
            self._initializers[name] = self._external(name, tuple(tensor.shape))
            self.node("Cast", name, name=name + SUFFIX, to=onnx.TensorProto.FLOAT)
        return name + SUFFIX

    def path(self, tensor: Tensor) -> str:
        """The place of a parameter in the model: its name without the last part."""
        return self._names[id(tensor)].rpartition(".")[0]

    def finish(self, inputs: Sequence[str], opset: int) -> Any:
        """The model, from whole numbers (B, T) to logits (B, T)."""
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self._nodes,
            "question answering",
            [helper.make_tensor_value_info(name, TensorProto.INT64, AXES) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, AXES) for name in OUTPUTS],
            list(self._initializers.values()),
        )
        opsets = [helper.make_opsetid("", opset)]
        return helper.make_model_gen_version(graph, opset_imports=opsets, producer_name="pocketqa")

    def _external(self, name: str, shape: tuple[int, ...]) -> Any:
        import onnx

        found = self._tensors.get(name)
        if found is None or (found.dtype, found.shape) != ("F16", shape):
            words = "none" if found is None else f"{found.dtype} {list(found.shape)}"
            raise FolderError(f"Expected {name} as F16 {list(shape)} in {self._location}, found {words}.")
        proto = onnx.TensorProto(name=name, data_type=onnx.TensorProto.FLOAT16, dims=shape, data_location=onnx.TensorProto.EXTERNAL)
        for key, value in (("location", self._location), ("offset", found.offset), ("length", found.length)):
            proto.external_data.add(key=key, value=str(value))
        return proto

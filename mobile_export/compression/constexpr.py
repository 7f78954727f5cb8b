"""Compressed weights in a saved ML program: its constants replaced, every other operation as it was.

coremltools' own way (`coremltools.optimize.coreml`) reads the whole program, compresses, and converts it again.  With version 9.0 that renames
operations, wraps the gather of an iOS 18 program a second time (four more operations for every question asked), and raises the version of an iOS 15
program.  Here one constant after the other becomes the operation that coremltools would write for it, under the constant's own name; a test compares
the two.  Up to iOS 17 the parts of a form are attributes, from iOS 18 on they are inputs (coremltools, converters/mil/mil/ops/defs/iOS16/
constexpr_ops.py and iOS18/compression.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobile_export.compression.quantisation import Form, Integers, Palette
from mobile_export.interpreter.mlprogram import open_program
from mobile_export.tools import check_can_write

SPECIFICATION = Path("Data/com.apple.CoreML/model.mlmodel")
WEIGHTS = Path("Data/com.apple.CoreML/weights/weight.bin")
IOS18 = 9  # specification version
WEIGHT_FILE = "@model_path/weights/weight.bin"

Choose = Callable[[str, NDArray[Any]], Form | None]
"""Given a constant of the weight file, by the name that operations use, and its values: its form, or None to leave it."""


def rewrite(package: Path, raw: Path, choose: Choose) -> None:
    """Copy the ML program `package` to `raw` (specification and weight file, no manifest) with the forms that `choose` gives.

    One weight is in memory at a time.
    """
    check_can_write()
    from coremltools.libmilstoragepython import _BlobStorageWriter
    from coremltools.proto import Model_pb2

    constants = {constant.blob: constant for constant in open_program(package).constants() if constant.blob is not None}
    model: Any = Model_pb2.Model()
    model.ParseFromString((package / SPECIFICATION).read_bytes())
    (raw / WEIGHTS).parent.mkdir(parents=True)
    writer = _Writer(_BlobStorageWriter(str(raw / WEIGHTS)), model.specificationVersion)
    function = model.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        for value in _values_in_file(operation):
            constant = constants[value.blobFileValue.offset]
            form = choose(operation.outputs[0].name, constant.value) if operation.type == "const" else None
            if form is None:
                value.blobFileValue.offset = writer.blob(constant.value, constant.dtype)
            else:
                writer.replace(operation, form)
    del writer  # the file is finished when its writer is gone
    (raw / SPECIFICATION).write_bytes(model.SerializeToString(deterministic=True))


def _values_in_file(operation: Any) -> Iterator[Any]:
    values = [value for _, value in sorted(operation.attributes.items())]
    values += [binding.value for _, bound in sorted(operation.inputs.items()) for binding in bound.arguments]
    return (value for value in values if value.WhichOneof("value") == "blobFileValue")


class _Writer:
    """Writes blobs and the operations that name them, in the manner of a specification version."""

    def __init__(self, storage: Any, specification: int) -> None:
        self.storage, self.as_inputs = storage, specification >= IOS18

    def blob(self, values: NDArray[Any], dtype: str) -> int:
        """The offset of the values in the weight file."""
        flat = np.ascontiguousarray(values).ravel()
        kind = {"float16": "fp16", "float32": "float"}.get(dtype, dtype)
        return int(getattr(self.storage, f"write_{kind}_data")(flat.view(np.uint16) if dtype == "float16" else flat))

    def replace(self, operation: Any, form: Form) -> None:
        """Turn a `const` into the operation that decodes `form`."""
        shape = np.array([dimension.constant.size for dimension in operation.outputs[0].type.tensorType.dimensions], np.uint32)
        del operation.attributes["val"]
        if isinstance(form, Integers):
            self._integers(operation, form)
        elif isinstance(form, Palette):
            operation.type = "constexpr_lut_to_dense"
            self._packed(operation, "indices", form.indices, f"uint{form.bits}", shape)
            table = form.table.reshape(*(1 for _ in shape), -1, 1) if self.as_inputs else form.table
            self._part(operation, "lut", table, "float16")
        else:
            operation.type = "constexpr_sparse_to_dense"
            self._part(operation, "nonzero_data", form.kept, "float16")
            self._packed(operation, "mask", form.mask.astype(np.uint8), "uint1", shape)

    def _integers(self, operation: Any, form: Integers) -> None:
        from coremltools.converters.mil.backend.mil.helper import create_scalar_value

        operation.type = "constexpr_blockwise_shift_scale" if self.as_inputs else "constexpr_affine_dequantize"
        if self.as_inputs:
            self._part(operation, "data", form.data, f"int{form.bits}")
            self._part(operation, "scale", form.scale, "float16")
        else:
            self._part(operation, "quantized_data", form.data, "int8")
            self._part(operation, "zero_point", np.zeros(form.scale.size, np.int8), "int8")
            self._part(operation, "scale", form.scale.ravel(), "float16")
            operation.attributes["axis"].CopyFrom(create_scalar_value(np.int32(form.axis)))

    def _packed(self, operation: Any, key: str, values: NDArray[np.uint8], dtype: str, shape: NDArray[np.uint32]) -> None:
        """Values of few bits: a type of their own from iOS 18 on, before it bytes beside the shape."""
        from coremltools.converters.mil.backend.mil.helper import create_tensor_value

        if self.as_inputs:
            self._part(operation, key, values, dtype)
        else:
            self._part(operation, key, pack(values, int(dtype.removeprefix("uint"))), "uint8")
            operation.attributes["shape"].CopyFrom(create_tensor_value(shape))

    def _part(self, operation: Any, key: str, values: NDArray[Any], dtype: str) -> None:
        from coremltools.converters.mil.backend.mil.helper import create_file_value_tensor
        from coremltools.proto import MIL_pb2

        number = MIL_pb2.DataType.Value(dtype.upper())
        value = create_file_value_tensor(WEIGHT_FILE, self.blob(values, dtype), values.shape, number)
        if self.as_inputs:
            operation.inputs[key].arguments.add().value.CopyFrom(value)
        else:
            operation.attributes[key].CopyFrom(value)


def pack(values: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Values below 2^bits in bytes without gaps, the first in the least significant bits of the first byte."""
    flags = np.unpackbits(values.reshape(-1, 1), axis=1, count=bits, bitorder="little")  # (N, bits)
    return np.packbits(flags.ravel(), bitorder="little")

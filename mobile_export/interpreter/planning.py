"""An ML program made ready to run: constants decoded, arguments bound, every operation looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobile_export.interpreter.decoding import constant_values, is_constant
from mobile_export.interpreter.mlprogram import Constant, Operation, Program, Value
from mobile_export.interpreter.operations import KERNELS, Kernel
from pocketqa.errors import EngineError

FLOATS = {"float16": torch.float16, "float32": torch.float32}
INTEGERS = ("int32", "int16", "uint16", "int8", "uint8")
TYPES = {"fp16": "float16", "fp32": "float32", "bool": "bool"} | {name: name for name in INTEGERS}  # as casts name them


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """An operation made ready: `fixed` arguments have their values, `bound` ones name what is computed before them."""

    operation: Operation
    kernel: Kernel
    fixed: dict[str, Any]
    bound: dict[str, tuple[str | Tensor, ...]]
    last_uses: tuple[str, ...]  # values that no later step takes


def plan(program: Program, replace: Mapping[str, NDArray[Any]]) -> list[Step]:
    """The steps of a program in order, constants aside.  Raises EngineError naming the operation, argument, type or constant that is not known."""
    constants = _Constants(program, replace)
    opset = int(program.opset.removeprefix("CoreML"))
    steps = [_step(operation, constants, opset) for operation in program.operations if not is_constant(operation)]
    last: dict[str, int] = {}
    for place, step in enumerate(steps):
        names = [output.name for output in step.operation.outputs]
        names += [name for bound in step.bound.values() for name in bound if isinstance(name, str)]
        last |= dict.fromkeys(names, place)
    kept = {feature.name for feature in program.outputs}
    ends: list[list[str]] = [[] for _ in steps]
    for name, place in last.items():
        if name not in kept:
            ends[place].append(name)
    return [Step(step.operation, step.kernel, step.fixed, step.bound, tuple(names)) for step, names in zip(steps, ends, strict=True)]


class _Constants:
    """The constants of a program as tensors, each converted once."""

    def __init__(self, program: Program, replace: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = constant_values(program)
        if unknown := sorted(set(replace) - set(self._arrays)):
            raise EngineError(f"{program.path}: no constant of the program is called {', '.join(unknown)}.")
        for name, values in replace.items():
            stored = self._arrays[name]
            if stored.dtype.kind != "f" or values.shape != stored.shape:
                raise EngineError(f"Expected values of shape {stored.shape} for the float constant {name}, found {stored.dtype} and {values.shape}.")
            self._arrays[name] = values.astype(stored.dtype)
        self._tensors: dict[tuple[str, bool], Tensor] = {}

    def array(self, bound: str | Constant) -> NDArray[Any] | None:
        """The value of a constant; None for the name of what is computed."""
        return self._arrays.get(bound) if isinstance(bound, str) else bound.value

    def tensor(self, bound: str | Constant, widen: bool) -> str | Tensor:
        """A constant as float16, float32, int32 or bool, float16 as float32 where asked; the name itself of what is computed."""
        array = self.array(bound)
        if array is None:
            return str(bound)
        key = (bound if isinstance(bound, str) else bound.name, widen)
        if key not in self._tensors:
            self._tensors[key] = _tensor(key[0], array, widen)
        return self._tensors[key]


def _tensor(name: str, array: NDArray[Any], widen: bool) -> Tensor:
    kind = array.dtype.kind
    if kind == "f" and array.dtype.itemsize <= 4:
        return torch.from_numpy(array.astype(np.float32 if widen else array.dtype))
    if kind == "b":
        return torch.from_numpy(array.copy())
    if kind in "iu" and (not array.size or (array.min() >= -(2**31) and array.max() < 2**31)):
        return torch.from_numpy(array.astype(np.int32))
    raise EngineError(f"The constant {name!r} is of type {array.dtype} or of a range that is not known here.")


def _step(operation: Operation, constants: _Constants, opset: int) -> Step:
    kernel = KERNELS.get(operation.type)
    if kernel is None:
        raise EngineError(f"Operation {operation.name!r} is of type {operation.type!r}, which is not known here.")
    unknown = sorted((set(operation.inputs) - set(kernel.kinds)) | (set(operation.attributes) - {"name"}))
    missing = sorted(set(kernel.kinds) - set(operation.inputs) - set(kernel.defaults) - {"opset"})
    strange = sorted({output.dtype for output in operation.outputs} - set(FLOATS) - set(INTEGERS) - {"bool"})
    for problem, names in (("has arguments that are not known here", unknown), ("lacks", missing), ("leaves types that are not known here", strange)):
        if names:
            raise EngineError(f"Operation {operation.name!r} of type {operation.type!r} {problem}: {', '.join(names)}.")
    fixed: dict[str, Any] = {"opset": opset} if "opset" in kernel.kinds else {}
    if operation.outputs[0].dtype == "float16":  # a default is of the type of the operation's own numbers
        fixed |= {key: float(np.float16(value)) for key, value in kernel.defaults.items() if isinstance(value, float)}
    bound: dict[str, tuple[str | Tensor, ...]] = {}
    for key, group in operation.inputs.items():
        kind = kernel.kinds[key]
        if kind != "Tensors" and len(group) != 1:
            raise EngineError(f"Operation {operation.name!r} of type {operation.type!r}: expected one value for {key}, found {len(group)}.")
        if kind in ("Tensor", "Tensors"):
            try:
                bound[key] = tuple(constants.tensor(value, widen=not kernel.exact) for value in group)
            except EngineError as error:
                raise EngineError(f"Operation {operation.name!r} of type {operation.type!r}, {key}: {error}") from None
        elif (array := constants.array(group[0])) is not None:
            try:
                fixed[key] = _plain(kind, array)
            except (ValueError, IndexError) as error:
                raise EngineError(f"Operation {operation.name!r} of type {operation.type!r}, {key}: {error}") from None
        else:
            bound[key] = (str(group[0]),)
    if operation.type == "cast" and TYPES.get(fixed.get("dtype", "")) != operation.outputs[0].dtype:
        raise EngineError(
            f"Operation {operation.name!r} of type 'cast': {fixed.get('dtype')} does not give {operation.outputs[0].dtype} as declared."
        )
    return Step(operation, kernel, fixed, bound, ())


def _plain(kind: str, value: NDArray[Any] | Tensor) -> Any:
    """A constant, or a value that does not depend on the ids, as Python has it."""
    flat = value.reshape(-1).tolist()
    match kind:
        case "Ints":
            return tuple(int(item) for item in flat)
        case "Bools":
            return tuple(bool(item) for item in flat)
        case "Number":
            return flat[0]
    return {"int": int, "float": float, "bool": bool, "str": str}[kind](flat[0])


def run(step: Step, values: Mapping[str, Tensor], widen: bool) -> tuple[Tensor, ...]:
    """The results of an operation, before they are rounded to their declared types."""
    arguments = dict(step.fixed)
    for key, group in step.bound.items():
        kind, found = step.kernel.kinds[key], [values[value] if isinstance(value, str) else value for value in group]
        if kind not in ("Tensor", "Tensors"):
            arguments[key] = _plain(kind, found[0])
            continue
        tensors = [tensor.float() if widen and tensor.dtype == torch.float16 else tensor for tensor in found]
        arguments[key] = tensors if kind == "Tensors" else tensors[0]
    try:
        results = step.kernel.function(**arguments)
    except (RuntimeError, LookupError, ValueError, TypeError, ArithmeticError) as error:
        operation = step.operation
        raise EngineError(f"Operation {operation.name!r} of type {operation.type!r} cannot be computed: {error}") from error
    return (results,) if isinstance(results, Tensor) else results


def rounded(operation: Operation, output: Value, result: Tensor, to_half: bool = True) -> Tensor:
    """A result in its declared type, or float32 for float16.  Raises EngineError where it is of another kind or shape."""
    fits = len(result.shape) == len(output.shape) and all(size in (None, found) for size, found in zip(output.shape, result.shape, strict=True))
    if output.dtype in FLOATS:
        kind, value = result.is_floating_point(), result.to(FLOATS[output.dtype] if to_half else torch.float32)
    elif output.dtype == "bool":
        kind, value = result.dtype == torch.bool, result
    else:
        kind, value = result.dtype in (torch.int32, torch.int64), result.to(torch.int32)
    if not (fits and kind):
        raise EngineError(
            f"Operation {operation.name!r} of type {operation.type!r}: expected {output.dtype} {output.shape} as declared, "
            f"found {str(result.dtype).removeprefix('torch.')} {tuple(result.shape)}."
        )
    return value

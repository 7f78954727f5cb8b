"""What would go wrong on a phone, read off a saved package.

Errors refuse an export.  Known from the field: masks built from the smallest float32 become -infinity in float16 and give NaN
(https://github.com/apple/coremltools/pull/2669), LayerNorm epsilons of 1e-12 become zero, ids are declared as floats
(https://github.com/apple/coremltools/issues/1039), and passes raise the specification version beyond what the phone loads.

Warnings are reported: operations that Core ML is known to compute outside the Neural Engine, where it is told to use it.  Which unit computes what is
decided on the phone and documented nowhere in full, so the list is what is known: the Engine's arithmetic is float16
(https://apple.github.io/coremltools/docs-guides/source/typed-execution.html), and some types of operations have no place on it
(https://github.com/hollance/neural-engine, "unsupported layers").  On a Mac, `MLComputePlan` says what holds there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from mobile_export.interpreter.mlprogram import Constant, Operation, Program
from mobile_export.targets import Target

FLOAT16_MAX = float(np.finfo(np.float16).max)
LARGEST_SCALAR = FLOAT16_MAX / 2  # a mask of -65504, float16's own smallest, is finite until a score is added to it

OFF_ENGINE = {  # operation type -> what it does
    "gather": "looks rows up",
    "gather_along_axis": "looks values up",
    "gather_nd": "looks values up",
    "scatter": "writes by index",
    "scatter_along_axis": "writes by index",
    "scatter_nd": "writes by index",
    "non_zero": "has an output of unknown shape",
    "lstm": "is recurrent",
    "gru": "is recurrent",
    "rnn": "is recurrent",
    "cond": "is control flow",
    "while_loop": "is control flow",
    "shape": "computes a shape",
}
BORDER = ("const", "cast")  # a cast at the border of float16 belongs to both sides


def find_hazards(program: Program, specification: int) -> list[str]:
    """Errors: sentences that each name the place; empty for a sound package.  `specification`: the version that the target loads."""
    found = []
    if program.specification != specification:
        found.append(f"the specification version must be {specification} for the target, found {program.specification}")
    found += [f"input {f.name!r} must be int32 token ids, found {f.dtype}" for f in program.inputs if f.dtype != "int32"]
    found += [f"output {f.name!r} must be float32, found {f.dtype}" for f in program.outputs if f.dtype != "float32"]
    for constant in program.constants():
        found += _range_hazards(constant)
    named = program.named_constants()
    for operation in program.operations:
        found += _epsilon_hazards(operation, named)
    return found


def find_warnings(program: Program, target: Target) -> list[str]:
    """Warnings: operations that leave the Neural Engine, one sentence a kind of reason; none for a target that has no use for it."""
    if "ane" not in target.layouts:
        return []
    types: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for operation in program.operations:
        if operation.type in OFF_ENGINE:
            types[operation.type] += 1
        elif operation.type not in BORDER and not operation.type.startswith("constexpr_") and operation.outputs[0].dtype != "float16":
            kinds[operation.outputs[0].dtype] += 1
    found = [f"{kind} ({count}) {OFF_ENGINE[kind]}, which the Neural Engine does not do" for kind, count in sorted(types.items())]
    found += [f"{kind} results ({count}): the Neural Engine computes in float16, so they leave it" for kind, count in sorted(kinds.items())]
    return found


def _range_hazards(constant: Constant) -> Iterator[str]:
    if constant.value.dtype.kind != "f":
        return
    magnitude = np.abs(constant.value.astype(np.float32, copy=False))
    if unusable := int(np.count_nonzero(~(magnitude <= FLOAT16_MAX))):  # the comparison is false for NaN as well
        yield f"constant {constant.name!r} holds {unusable} value(s) that are not finite in float16 (limit {FLOAT16_MAX:g})"
    elif constant.value.size == 1 and magnitude.item() > LARGEST_SCALAR:
        yield f"constant {constant.name!r} is {constant.value.item():g}: what is added to it soon overflows float16 (limit {FLOAT16_MAX:g})"


def _epsilon_hazards(operation: Operation, named: dict[str, Constant]) -> Iterator[str]:
    for bound in operation.inputs.get("epsilon", ()):
        constant = named[bound] if isinstance(bound, str) else bound
        if np.float16(constant.value.item()) == 0:
            yield f"the epsilon of {operation.type} {operation.name!r} is zero in float16 (found {constant.value.item():g})"

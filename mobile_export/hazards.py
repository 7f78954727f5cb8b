"""What would go wrong in float16 on a phone, read off a saved package.  An export with a hazard is not kept.

Known from the field: masks built from the smallest float32 become -infinity and give NaN (https://github.com/apple/coremltools/pull/2669),
LayerNorm epsilons of 1e-12 become zero, ids are declared as floats (https://github.com/apple/coremltools/issues/1039), and passes raise the
specification version beyond what the phone loads.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mobile_export.mlprogram import Constant, Operation, Program

FLOAT16_MAX = float(np.finfo(np.float16).max)


def find_hazards(program: Program, specification: int) -> list[str]:
    """Sentences that each name the place; empty for a sound package.  `specification`: the version that the target loads."""
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


def _range_hazards(constant: Constant) -> Iterator[str]:
    if constant.value.dtype.kind != "f":
        return
    value = constant.value.astype(np.float32, copy=False)
    if unusable := int(np.count_nonzero(~(np.abs(value) <= FLOAT16_MAX))):  # the comparison is false for NaN as well
        yield f"constant {constant.name!r} holds {unusable} value(s) that are not finite in float16 (limit {FLOAT16_MAX:g})"


def _epsilon_hazards(operation: Operation, named: dict[str, Constant]) -> Iterator[str]:
    for bound in operation.inputs.get("epsilon", ()):
        constant = named[bound] if isinstance(bound, str) else bound
        if np.float16(constant.value.item()) == 0:
            yield f"the epsilon of {operation.type} {operation.name!r} is zero in float16 (found {constant.value.item():g})"

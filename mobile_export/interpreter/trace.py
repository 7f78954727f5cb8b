"""What each operation of a program computed on one window, small enough to lie in a bundle, so that a later change can be named.

    trace = record_trace(program, trace_window(program))       # at export: JSON for trace.json
    for finding in compare_trace(program, trace):              # in `pocketqa verify`: what differs, in the order of the program
        print(finding)

What the comparison is based on: the program as it was recorded.  A trace says which operation has changed since, not whether the program was right
then; that is for the logits of the checkpoint (`golden.json`).

Three things are recorded.  Of each constant, a hash of its decoded values, which are the same on every machine.  Of each operation, its type and
what it takes.  And what it computes: each operation is run alone, on made-up floats that follow from the names of the values it takes and on the
integers that the window gives it, and sums of its results with pseudo-random signs are kept, over up to SLICES slices of each axis.  A change of 2 %
in one row of a weight is seen in the sum of a slice.  Rounding errors are not (another order of summation moves a float16 result now and then by its
last bit): TOLERANCE times the root of the slice's sum of squares is far above them, because nothing is carried from one operation to the next.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mobile_export.interpreter.decoding import constant_values, is_constant
from mobile_export.interpreter.interpreter import Interpreter
from mobile_export.interpreter.mlprogram import Constant, Operation, Program, Value
from mobile_export.interpreter.planning import rounded, run
from pocketqa.errors import EngineError
from pocketqa.types import JSON

FORMAT = 1
SLICES = 16
DIGITS = 6
TOLERANCE = 2e-4
FILLED = 0.75  # of the window; the rest is padding
QUESTION = 0.25
SCALES = 12  # made-up values have magnitudes of 1, 1/2, ..., 1/2048 along their first axis, so that epsilons are felt
POSITIVE = ("log", "pow", "real_div", "reduce_log_sum", "rsqrt", "sqrt")  # which signed values would leave without a result


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference from the trace, and the operation in which it arises.

    what: "value"; "constant NAME"; "type"; "inputs"; "absent" or "new" operations; "program" where it cannot be run at all.
    """

    operation: str
    type: str
    what: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.type} {self.operation!r}: {self.what}: expected {self.expected}, found {self.found}"


def trace_window(program: Program) -> NDArray[np.int32]:
    """Token ids (1, T) in which little hides: words from the whole vocabulary, two segments, padding; made from the program's metadata.

    T is the greatest length.  Raises EngineError for a package without the metadata of this project's exports.
    """
    keys = {name: f"pocketqa.{name}" for name in ("vocabulary", "pad_id", "cls_id", "sep_id")}
    if missing := [key for key in keys.values() if key not in program.metadata]:
        raise EngineError(f"{program.path}: expected metadata of a package exported by PocketQA, found no {', '.join(missing)}.")
    pad, cls, sep = (int(program.metadata[keys[name]]) for name in ("pad_id", "cls_id", "sep_id"))
    words = np.setdiff1d(np.arange(program.metadata[keys["vocabulary"]].rstrip("\n").count("\n") + 1), (pad, cls, sep))
    length = max(shape[1] for shape in program.inputs[0].shapes)
    filled, question = int(FILLED * length), int(QUESTION * length)
    ids = np.full((1, length), pad, np.int32)
    ids[0, :filled] = words[np.linspace(0, len(words) - 1, filled).astype(int)]
    ids[0, 0], ids[0, question], ids[0, filled - 1] = cls, sep, sep
    return ids


def record_trace(program: Program, ids: NDArray[Any]) -> JSON:
    """The trace of a program on `ids` (1, T).  Raises EngineError where it cannot be run or leaves values that are not finite."""
    values = constant_values(program)
    constants = {name: _constant_digest(value) for name, value in values.items()}
    operations = {operation.name: _wiring(operation) for operation in program.operations if not is_constant(operation)}
    for name, digest, _ in _digests(program, ids):
        if digest is None:
            raise EngineError(f"{program.path}: the values of operation {name!r} are not finite, so there is nothing to record.")
        operations[name]["value"] = [float(f"{number:.{DIGITS}g}") for number in digest]
    return {"format": FORMAT, "ids": ids[0].tolist(), "constants": constants, "operations": operations}


def compare_trace(program: Program, trace: JSON) -> list[Finding]:
    """Where a program differs from a trace, in program order.  Empty for the same program on any processor."""
    if trace.get("format") != FORMAT:
        raise EngineError(f"Expected a trace of format {FORMAT}, found {trace.get('format')!r}. Make the bundle again with `pocketqa export`.")
    recorded: JSON = trace["operations"]
    operations = {operation.name: operation for operation in program.operations if not is_constant(operation)}
    findings = [Finding(name, str(was["type"]), "absent", "it", "none") for name, was in recorded.items() if name not in operations]
    findings += [Finding(name, operation.type, "new", "none", "it") for name, operation in operations.items() if name not in recorded]
    common = {name: operation for name, operation in operations.items() if name in recorded}
    for name, operation in common.items():
        findings += _compare_wiring(operation, recorded[name])
    findings += _compare_constants(program, trace["constants"])
    findings += _compare_values(program, common, trace)
    places = {name: place for place, name in enumerate(operations)}
    return sorted(findings, key=lambda finding: places.get(finding.operation, len(places)))


def _compare_wiring(operation: Operation, was: JSON) -> Iterator[Finding]:
    now = _wiring(operation)
    if now["type"] != was["type"]:
        yield Finding(operation.name, operation.type, "type", str(was["type"]), operation.type)
    if now["inputs"] != was["inputs"]:
        yield Finding(operation.name, operation.type, "inputs", _text(was["inputs"]), _text(now["inputs"]))


def _compare_constants(program: Program, recorded: JSON) -> Iterator[Finding]:
    """A constant's finding goes to the first operation that takes it."""
    users: dict[str, Operation] = {}
    for operation in program.operations:
        for bound in (b for group in operation.inputs.values() for b in group if isinstance(b, str)):
            users.setdefault(bound, operation)
    for name, value in constant_values(program).items():
        now, was = _constant_digest(value), recorded.get(name)
        if now != was and name in users and not is_constant(users[name]):
            yield Finding(users[name].name, users[name].type, f"constant {name}", str(was), now)


def _compare_values(program: Program, operations: dict[str, Operation], trace: JSON) -> Iterator[Finding]:
    try:
        for name, digest, limits in _digests(program, np.array([trace["ids"]], np.int32)):
            if name in operations and (problem := _difference(digest, limits, np.array(trace["operations"][name]["value"]))):
                yield Finding(name, operations[name].type, "value", *problem)
    except EngineError as error:  # where the wiring was changed
        yield Finding("main", "function", "program", "one that can be run", str(error))


def _difference(digest: NDArray[Any] | None, limits: NDArray[Any], was: NDArray[Any]) -> tuple[str, str] | None:
    """(expected, found) where a digest lies beyond its limits."""
    if digest is None:
        return "finite values", "values that are not"
    if digest.shape != was.shape:
        return f"a digest of {was.size} sums", f"one of {digest.size}"
    beyond = np.abs(digest - was) - limits
    place = int(beyond.argmax())
    return (f"a sum of {was[place]:g} within {limits[place]:.2g}", f"{digest[place]:g}") if beyond[place] > 0 else None


def _digests(program: Program, ids: NDArray[Any]) -> Iterator[tuple[str, NDArray[np.float64] | None, NDArray[np.float64]]]:
    """(operation, sums, how much each may differ) in program order, each operation alone; None for values that are not finite."""
    interpreter = Interpreter(program)
    values: dict[str, Tensor] = {interpreter.input: torch.from_numpy(np.array(ids, np.int32))}

    def see(operation: Operation, output: Value, raw: Tensor, rounded: Tensor) -> None:
        values[output.name] = rounded.new_empty(()).expand(rounded.shape) if rounded.is_floating_point() else rounded  # of floats, type and shape

    interpreter.observe(ids, see)
    with torch.inference_mode():
        for step in interpreter.steps:
            positive = step.operation.type in POSITIVE
            names = {name for group in step.bound.values() for name in group if isinstance(name, str)}
            taken = {name: _made_up(name, values[name], positive) if values[name].is_floating_point() else values[name] for name in names}
            results = run(step, taken, widen=True)
            parts = [_sums(rounded(step.operation, *pair).double().numpy()) for pair in zip(step.operation.outputs, results, strict=True)]
            sums, limits = np.concatenate(parts, axis=1)
            yield step.operation.name, sums if np.isfinite(sums).all() else None, limits


def _made_up(name: str, like: Tensor, positive: bool) -> Tensor:
    """Values between 0.25 and 2 in magnitude of the type and shape of a float, different for each name, smaller and smaller along the first axis."""
    numbers = np.arange(like.numel(), dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(zlib.crc32(name.encode()))
    numbers = (numbers ^ (numbers >> np.uint32(15))) * np.uint32(0x85EBCA6B)  # a round of MurmurHash3's finalizer: neighbours become unlike
    numbers ^= numbers >> np.uint32(13)
    magnitudes = 0.25 + (numbers >> np.uint32(8)) * (1.75 / 2**24)
    signed = magnitudes if positive else np.where(numbers & np.uint32(1), magnitudes, -magnitudes)
    shaped = signed.reshape(tuple(like.shape))
    axis = next((axis for axis, size in enumerate(like.shape) if size > 1), None)
    if axis is not None:
        shaped = shaped * 0.5 ** (np.arange(like.shape[axis]) % SCALES).reshape([-1 if a == axis else 1 for a in range(like.ndim)])
    return torch.from_numpy(shaped).to(like.dtype)


@np.errstate(invalid="ignore")  # infinities of both signs: the caller says so
def _sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(2, S): signed sums over slices of each axis, and the limits of their differences."""
    signs = (np.arange(values.size, dtype=np.uint32) * np.uint32(0x9E3779B1) >> np.uint32(31)).reshape(values.shape) * 2.0 - 1.0  # Fibonacci hashing
    signed, squares = values * signs, values**2
    sums, limits = [signed.sum()], [squares.sum()]
    for axis, size in enumerate(values.shape):
        if size > 1:
            edges = np.linspace(0, size, min(size, SLICES), endpoint=False).astype(int)
            others = tuple(other for other in range(values.ndim) if other != axis)
            sums += np.add.reduceat(signed.sum(others), edges).tolist()
            limits += np.add.reduceat(squares.sum(others), edges).tolist()
    return np.array([sums, TOLERANCE * np.sqrt(limits)])


def _wiring(operation: Operation) -> JSON:
    return {
        "type": operation.type,
        "inputs": {
            key: [_constant_digest(bound.value) if isinstance(bound, Constant) else bound for bound in group]
            for key, group in operation.inputs.items()
        },
    }


def _constant_digest(value: NDArray[Any]) -> str:
    """A small constant itself; type, shape, norm and hash of a large one."""
    if value.size <= 4:
        return f"{value.dtype} {value.tolist()}" if value.dtype.kind != "U" else str(value)
    norm = np.sqrt(np.square(value.astype(np.float64)).sum())
    return f"{value.dtype} {value.shape} norm {norm:.6g} sha256 {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"


def _text(inputs: JSON) -> str:
    return ", ".join(f"{key}={'+'.join(group)}" for key, group in inputs.items())

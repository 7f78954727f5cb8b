"""Faults put into a program, one at a time: a row of a weight, two operands exchanged, a constant altered."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from mobile_export.interpreter.decoding import is_constant
from mobile_export.interpreter.mlprogram import Constant, Operation, Program

OTHER_WORDS = {"EXACT": "TANH_APPROXIMATION", "TANH_APPROXIMATION": "EXACT", "fp16": "int32", "fp32": "fp16", "int32": "fp16", "valid": "custom"}
OTHER_WORDS |= {"uint16": "bool", "int16": "bool", "bool": "int32"}


@dataclass(frozen=True)
class Mutation:
    """kind: "row", "operands" or "constant"; operations: those in which it can be said to lie, all takers of a shared constant."""

    kind: str
    what: str
    operations: frozenset[str]
    program: Program


def mutations(program: Program) -> Iterator[Mutation]:
    """Every fault, in program order."""
    for place, operation in enumerate(program.operations):
        if operation.type == "const":
            constant = operation.attributes["val"]
            for kind, what, value in altered(constant):
                if np.array_equal(value, constant.value):  # rounded back to what it was
                    continue
                changed = dataclasses.replace(operation, attributes=operation.attributes | {"val": dataclasses.replace(constant, value=value)})
                users = {op.name for op in program.operations if operation.name in [b for group in op.inputs.values() for b in group]}
                yield Mutation(kind, f"{operation.name}: {what}", frozenset(users), _with(program, place, changed))
        elif not is_constant(operation):
            for what, inputs in exchanged(operation):
                changed = dataclasses.replace(operation, inputs=inputs)
                yield Mutation("operands", f"{operation.type} {operation.name}: {what}", frozenset({operation.name}), _with(program, place, changed))


def altered(constant: Constant) -> Iterator[tuple[str, str, Any]]:
    """(kind, what, other values) of a constant."""
    value = constant.value
    if constant.blob is not None and value.dtype.kind == "f":
        row = _row(value)
        scaled = value.astype(np.float32)
        scaled[row] *= 1.02
        yield "row", f"row {row} times 1.02", scaled.astype(value.dtype)
    elif value.dtype.kind == "f":
        yield "constant", "times 1.02", np.asarray(value * 1.02, value.dtype)
        yield "constant", "times 1000", np.asarray((value.astype(np.float64) * 1000).clip(-60000, 60000), value.dtype)
        yield "constant", "negated", np.asarray(-value)
    elif value.dtype.kind == "b":
        for place in np.ndindex(value.shape):
            flipped = np.array(value)
            flipped[place] = not flipped[place]
            yield "constant", f"{list(place)} flipped", flipped
    elif value.dtype.kind == "U":
        other = _other_word(str(value))
        yield "constant", f"{value} to {other}", np.array(other)
    else:
        for place in list(np.ndindex(value.shape))[:8]:
            more = np.array(value)
            more[place] += 1
            yield "constant", f"{list(place)} plus 1", more
        if value.ndim == 1 and len(value) > 1:
            yield "constant", "reversed", value[::-1].copy()


def exchanged(operation: Operation) -> Iterator[tuple[str, dict[str, tuple[str | Constant, ...]]]]:
    """(what, inputs) with two arguments exchanged, or two values of one argument."""
    for first, second in combinations(operation.inputs, 2):
        yield f"{first} and {second} exchanged", operation.inputs | {first: operation.inputs[second], second: operation.inputs[first]}
    for key, group in operation.inputs.items():
        for left, right in combinations(range(len(group)), 2):
            order = list(group)
            order[left], order[right] = order[right], order[left]
            yield f"{key} {left} and {right} exchanged", operation.inputs | {key: tuple(order)}


def _other_word(word: str) -> str:
    """A word that means something else where this one stands; of an einsum, the result with its first and last axes exchanged."""
    factors, arrow, result = word.partition("->")
    return f"{factors}{arrow}{result[-1]}{result[1:-1]}{result[0]}" if arrow else OTHER_WORDS[word]


def _row(value: Any) -> int:
    """Somewhere in the middle, where there is something to scale."""
    flat = np.abs(value.astype(np.float32).reshape(len(value), -1)).sum(1)
    return int(np.argsort(flat)[len(flat) // 2])


def _with(program: Program, place: int, operation: Operation) -> Program:
    operations = list(program.operations)
    operations[place] = operation
    return dataclasses.replace(program, operations=tuple(operations))

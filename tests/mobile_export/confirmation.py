"""Does each operation of a saved program compute something that the network computes in PyTorch?  Independent of the converter and its names.

    network = export_network(model, markers, lengths, layout=layout)      # float32; checks.py compares it with the model of transformers
    confirmation = confirm(open_program("Student.mlpackage"), network, ids)
    confirmation.unconfirmed, confirmation.foreign                        # what has no counterpart, in program order

The network runs in float32 and every tensor that it computes on the way is kept.  The program runs without float16's rounding, with its weights as
they are stored, and each of its results is looked for among those tensors by its shape, axes of size 1 aside, and its values: slice by slice, along
every axis, within LIMIT of the slice's norm.  It is then replaced by its counterpart, so that nothing is carried on to the operations behind it.  A
row of a weight that is 2 % off, an axis or an operand in another place leave no counterpart.  The constants of a program whose weights are not
compressed are looked for among the network's parameters too, bit by bit as float16.

Not seen: what the window does not touch, and what a converter splits or merges in a way that the network does not know (it stays unconfirmed).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mobile_export.formats.metadata import END, START
from mobile_export.interpreter.decoding import weights
from mobile_export.interpreter.interpreter import Interpreter
from mobile_export.interpreter.mlprogram import Operation, Program, Value

LIMIT = 5e-4  # half of what a float16 number can be off by, relatively: constants are rounded once, and in sums the errors partly cancel
FEW = 8
LEAST = 0.03  # of the largest slice's norm: smaller ones, zeros among them, are compared with this much


@dataclass(frozen=True, slots=True)
class Confirmation:
    """All in program order.

    confirmed: operation name -> difference from its counterpart, relative to the norm of the slice where it is greatest.
    unconfirmed: (operation name, type) of those without a counterpart, or that give a logit of the program without being the network's.
    foreign: float constants of at least FEW values that are no parameter or buffer of the network.
    """

    confirmed: dict[str, float]
    unconfirmed: tuple[tuple[str, str], ...]
    foreign: tuple[str, ...]

    @property
    def largest(self) -> float:
        """Greatest difference of a confirmed operation."""
        return max(self.confirmed.values(), default=0.0)


def confirm(program: Program, network: nn.Module, ids: NDArray[Any]) -> Confirmation:
    """Look for every result of the program on `ids` (1, T) among the tensors of `network(ids)`.  Raises EngineError where the program fails."""
    with _Recorder() as recorder, torch.inference_mode():
        logits = dict(zip((START, END), network(torch.from_numpy(np.array(ids, np.int32))), strict=True))
    differences: dict[str, float] = {}
    types: dict[str, str] = {}

    def look_up(operation: Operation, output: Value, raw: Tensor, result: Tensor) -> Tensor | None:
        difference, counterpart = recorder.closest(result)
        if output.name in logits:
            difference = _difference(result.squeeze().double(), logits[output.name].squeeze().double())
        types[operation.name] = operation.type
        differences[operation.name] = max(differences.get(operation.name, 0.0), difference)
        return counterpart if difference <= LIMIT else None

    Interpreter(program, rounding=False).observe(ids, look_up)
    confirmed = {name: difference for name, difference in differences.items() if difference <= LIMIT}
    unconfirmed = tuple((name, types[name]) for name in differences if name not in confirmed)
    return Confirmation(confirmed, unconfirmed, _foreign(program, network))


def _foreign(program: Program, network: nn.Module) -> tuple[str, ...]:
    known = {_bits(tensor.detach().numpy()) for tensor in (*network.parameters(), *network.buffers())}
    return tuple(name for name, info in weights(program, least=FEW).items() if _bits(info.value()) not in known)


def _bits(values: NDArray[Any]) -> tuple[tuple[int, ...], bytes]:
    """Shape without ones, and the values as float16."""
    return tuple(size for size in values.shape if size > 1), values.astype(np.float16).tobytes()


class _Recorder(TorchFunctionMode):
    """Keeps every tensor that a function of torch returns within it."""

    def __init__(self) -> None:
        super().__init__()
        self._tensors: dict[tuple[int, ...], list[tuple[float, Tensor]]] = {}  # shape without ones -> norm, values

    def __torch_function__(self, func: Any, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and tensor.numel():
                values = tensor.detach().squeeze().double()
                self._tensors.setdefault(tuple(values.shape), []).append((float(values.norm()), values))
        return result

    def closest(self, result: Tensor) -> tuple[float, Tensor]:
        """(difference, values as `result`) of the tensor that is most like `result`; infinite where none is nearly as large."""
        values = result.squeeze().double()
        norm = float(values.norm())
        best, counterpart = math.inf, result
        for other, kept in self._tensors.get(tuple(values.shape), []):
            if abs(norm - other) <= 2 * LIMIT * other and (difference := _difference(values, kept)) < best:
                best, counterpart = difference, kept.reshape(result.shape).to(result.dtype)
        return best, counterpart


def _difference(values: Tensor, reference: Tensor) -> float:
    """Greatest norm of a slice of the difference, as a part of the norm of the reference's slice."""
    apart, squares = (values - reference).square(), reference.square()
    worst = 0.0
    for axis in range(values.ndim) if values.ndim else (None,):
        others = [other for other in range(values.ndim) if other != axis]
        sums, norms = (t.sum(others) if others else t for t in (apart, squares))
        floor = LEAST**2 * norms.max()
        ratio = torch.where(sums > 0, sums / norms.clamp(min=floor), 0)  # 0 / 0 where both are zero everywhere
        worst = max(worst, float(ratio.max().sqrt()))
    return worst

"""The register of the operations of ML programs: how a function is found by an operation's type and given its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

Ints = tuple[int, ...]
Bools = tuple[bool, ...]
Tensors = list[Tensor]
Number = int | float | bool
Results = Tensor | tuple[Tensor, ...]

Function = TypeVar("Function", bound=Callable[..., Results])

IOS17 = 7  # opset CoreML7


@dataclass(frozen=True, slots=True)
class Kernel:
    """How an operation is computed.

    function: its parameters have the names of the operation's arguments, and `opset` where it asks for it.
    kinds: what each parameter is given, as annotated: "Tensor", "Tensors", "Ints", "Bools", "Number", "int", "float", "bool" or "str".
    defaults: of the parameters that may be absent.
    exact: gives the same bits from float16 as from float32 rounded afterwards: it moves values, compares them, or its kernel in torch widens them.
    """

    function: Callable[..., Results]
    kinds: dict[str, str]
    defaults: dict[str, Any]
    exact: bool


KERNELS: dict[str, Kernel] = {}


def kernel(*types: str, exact: bool = False) -> Callable[[Function], Function]:
    """Register a function for operations of these types; without types, for its own name."""

    def register(function: Function) -> Function:
        parameters = inspect.signature(function).parameters
        kinds = {name: str(p.annotation).removesuffix(" | None") for name, p in parameters.items()}
        defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        for name in types or (function.__name__.removeprefix("_"),):
            KERNELS[name] = Kernel(function, kinds, defaults, exact)
        return function

    return register

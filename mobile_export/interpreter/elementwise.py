"""The operations of an ML program that compute element by element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mobile_export.interpreter.kernels import kernel

EXACT_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "relu": torch.relu,
    "relu6": functional.relu6,
    "round": torch.round,  # half to even, as numpy's in the definition
    "sign": torch.sign,
}
UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "sin": torch.sin,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tanh": torch.tanh,
}
EXACT_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "sub": torch.sub,
}
BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"floor_div": torch.floor_divide, "mod": torch.remainder, "pow": torch.pow}


def _register_unary(name: str, function: Callable[[Tensor], Tensor], exact: bool) -> None:
    @kernel(name, exact=exact)
    def unary(x: Tensor) -> Tensor:
        return function(x)


def _register_binary(name: str, function: Callable[[Tensor, Tensor], Tensor], exact: bool) -> None:
    @kernel(name, exact=exact)
    def binary(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)


for _table, _exact in ((EXACT_UNARY, True), (UNARY, False)):
    for _name, _unary in _table.items():
        _register_unary(_name, _unary, _exact)
for _pairs, _exact in ((EXACT_BINARY, True), (BINARY, False)):
    for _name, _binary in _pairs.items():
        _register_binary(_name, _binary, _exact)


@kernel()
def _real_div(x: Tensor, y: Tensor) -> Tensor:
    if not (x.is_floating_point() and y.is_floating_point()):
        raise ValueError("a quotient of integers is not known here")
    return x / y


@kernel()
def _clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


@kernel()
def _elu(x: Tensor, alpha: float) -> Tensor:
    return functional.elu(x, alpha)


@kernel()
def _gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    return functional.gelu(x, approximate={"EXACT": "none", "TANH_APPROXIMATION": "tanh"}[mode])


@kernel()
def _inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return 1 / (x + epsilon)


@kernel()
def _leaky_relu(x: Tensor, alpha: float) -> Tensor:
    return functional.leaky_relu(x, alpha)


@kernel()
def _linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    return alpha * x + beta


@kernel()
def _log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return torch.log(x + epsilon)


@kernel()
def _rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return torch.rsqrt(x + epsilon)


@kernel()
def _sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    return (alpha * x + beta).clamp(0, 1)


@kernel()
def _threshold(x: Tensor, alpha: float) -> Tensor:
    return x.clamp(min=alpha)


@kernel(exact=True)
def _select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)


@kernel(exact=True)
def _identity(x: Tensor) -> Tensor:
    return x


@kernel(exact=True)
def _cast(x: Tensor, dtype: str) -> Tensor:
    """To integers: towards zero, then the low bits (as far as a program's own values fit, none are lost)."""
    if dtype == "bool":
        return x != 0
    if dtype in ("fp16", "fp32"):
        return x.float()
    bits = {"int32": 32, "int16": 16, "uint16": 16, "int8": 8, "uint8": 8}[dtype]
    whole = x.to(torch.int32)
    if bits == 32:
        return whole
    low = whole & (2**bits - 1)
    return low if dtype.startswith("u") else torch.where(low < 2 ** (bits - 1), low, low - 2**bits)

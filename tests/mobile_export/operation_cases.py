"""Arguments and expected results of every operation that the interpreter knows, drawn at random; what is expected is PyTorch's in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Choice = TypeVar("Choice")
Arguments = dict[str, Any]
Expected = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor that an operation takes as a constant."""

    values: Tensor


class Draw:
    """Random shapes and values, as a program has them."""

    def __init__(self, seed: int) -> None:
        self.torch, self.numpy = torch.Generator().manual_seed(seed), np.random.default_rng(seed)

    def size(self, low: int = 1, high: int = 6) -> int:
        return int(self.numpy.integers(low, high + 1))

    def shape(self, rank: int | None = None) -> tuple[int, ...]:
        return tuple(self.size() for _ in range(self.size(1, 4) if rank is None else rank))

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.torch).half()

    def positive(self, *shape: int) -> Tensor:
        return self.normal(*shape).abs() + 0.1

    def whole(self, low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=self.torch, dtype=torch.int32)

    def flags(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.torch) < 0.5

    def among(self, *choices: Choice) -> Choice:
        return choices[int(self.numpy.integers(len(choices)))]

    def axis(self, rank: int) -> int:
        return int(self.numpy.integers(-rank, rank))

    def axes(self, rank: int) -> list[int]:
        return sorted(int(a) for a in self.numpy.choice(rank, self.size(1, rank), replace=False))

    def pair(self) -> tuple[Tensor, Tensor]:
        """Two shapes of which one broadcasts to the other."""
        shape = self.shape(3)
        return self.normal(*shape), self.normal(*(self.among(1, size) for size in shape[self.size(0, 2) :]))


Case = Callable[[Draw], tuple[Arguments, Expected]]
CASES: dict[str, list[Case]] = {}


def case(*types: str) -> Callable[[Any], Any]:
    """Register a function of (draw) or of (draw, type) that makes a case of each of these types."""

    def register(function: Any) -> Any:
        takes_type = function.__code__.co_argcount == 2
        for kind in types:
            CASES.setdefault(kind, []).append(functools.partial(_make, function, (kind,) if takes_type else ()))
        return function

    return register


def _make(function: Any, rest: tuple[str, ...], draw: Draw) -> tuple[Arguments, Expected]:
    made: tuple[Arguments, Expected] = function(draw, *rest)
    return made


def unary(kind: str, reference: Callable[[Tensor], Tensor], positive: bool = False) -> None:
    @case(kind)
    def one(draw: Draw) -> tuple[Arguments, Expected]:
        x = (draw.positive if positive else draw.normal)(*draw.shape()) * 3
        return {"x": x}, reference(x.double())


def binary(kind: str, reference: Callable[[Tensor, Tensor], Tensor]) -> None:
    @case(kind)
    def two(draw: Draw) -> tuple[Arguments, Expected]:
        x, y = draw.pair()
        return {"x": x, "y": y}, reference(x.double(), y.double())

    @case(kind)
    def constant(draw: Draw) -> tuple[Arguments, Expected]:
        x, y = draw.pair()
        return {"x": x, "y": Stored(y)}, reference(x.double(), y.double())


UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "floor": torch.floor,
    "identity": torch.clone,
    "relu": functional.relu,
    "relu6": functional.relu6,
    "round": torch.round,
    "sigmoid": torch.sigmoid,
    "sign": torch.sign,
    "silu": functional.silu,
    "sin": torch.sin,
    "softplus": functional.softplus,
    "softsign": functional.softsign,
    "square": torch.square,
    "tanh": torch.tanh,
}
for name, function in UNARY.items():
    unary(name, function)
unary("sqrt", torch.sqrt, positive=True)
unary("rsqrt", torch.rsqrt, positive=True)  # its own epsilon, 1e-12, is zero in float16
unary("log", torch.log, positive=True)
unary("inverse", lambda x: 1 / (x + float(np.float16(1e-4))), positive=True)

BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "equal": torch.eq,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "mul": torch.mul,
    "not_equal": torch.ne,
    "sub": torch.sub,
}
for name, pairwise in BINARY.items():
    binary(name, pairwise)


@case(*BINARY, "floor_div", "mod")
def whole_numbers(draw: Draw, kind: str) -> tuple[Arguments, Expected]:
    x, y = draw.whole(-3, 4, 2, 5), draw.whole(1, 4, 5)
    references = BINARY | {"floor_div": torch.floor_divide, "mod": torch.remainder}
    return {"x": x, "y": y}, references[kind](x, y)


@case("logical_and", "logical_or", "logical_xor")
def logic(draw: Draw, kind: str) -> tuple[Arguments, Expected]:
    x, y = draw.flags(3, 4), draw.flags(4)
    return {"x": x, "y": y}, getattr(torch, kind)(x, y)


@case("logical_not")
def negation(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.flags(*draw.shape())
    return {"x": x}, ~x


@case("real_div", "floor_div", "mod", "pow")
def quotients(draw: Draw, kind: str) -> tuple[Arguments, Expected]:
    x, y = draw.positive(3, 4), draw.positive(4)
    references: dict[str, Any] = {"real_div": torch.div, "floor_div": torch.floor_divide, "mod": torch.remainder, "pow": torch.pow}
    return {"x": x, "y": y}, references[kind](x.double(), y.double())


@case("rsqrt", "log", "inverse")
def with_epsilon(draw: Draw, kind: str) -> tuple[Arguments, Expected]:
    x = draw.positive(*draw.shape())
    shifted = x.double() + 0.25
    return {"x": x, "epsilon": 0.25}, {"rsqrt": torch.rsqrt, "log": torch.log, "inverse": torch.reciprocal}[kind](shifted)


@case("clip", "elu", "leaky_relu", "linear_activation", "sigmoid_hard", "threshold")
def with_parameters(draw: Draw, kind: str) -> tuple[Arguments, Expected]:
    x = draw.normal(*draw.shape()) * 2
    wide = x.double()
    references = {
        "clip": ({"alpha": -0.5, "beta": 1.25}, wide.clamp(-0.5, 1.25)),
        "elu": ({"alpha": 0.75}, functional.elu(wide, 0.75)),
        "leaky_relu": ({"alpha": 0.125}, functional.leaky_relu(wide, 0.125)),
        "linear_activation": ({"alpha": 1.5, "beta": -0.25}, 1.5 * wide - 0.25),
        "sigmoid_hard": ({"alpha": 0.25, "beta": 0.5}, (0.25 * wide + 0.5).clamp(0, 1)),
        "threshold": ({"alpha": 0.5}, functional.threshold(wide, 0.5, 0.5)),
    }
    arguments, expected = references[kind]
    return {"x": x} | arguments, expected


@case("gelu")
def gelus(draw: Draw) -> tuple[Arguments, Expected]:
    x, mode = draw.normal(*draw.shape()) * 3, draw.among("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION", None)
    wide = x.double()
    if mode == "SIGMOID_APPROXIMATION":
        return {"x": x, "mode": mode}, wide * torch.sigmoid(1.702 * wide)
    expected = functional.gelu(wide, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")
    return {"x": x} | ({"mode": mode} if mode else {}), expected


@case("select")
def selections(draw: Draw) -> tuple[Arguments, Expected]:
    cond = draw.flags(draw.size(), 1)
    a, b = draw.normal(1, 5), draw.normal(cond.shape[0], 5)
    return {"cond": cond, "a": a, "b": b}, torch.where(cond, a, b).double()


@case("cast")
def casts(draw: Draw) -> tuple[Arguments, Expected]:
    flags = draw.flags(3, 4)
    return draw.among(
        ({"x": flags, "dtype": "fp16"}, flags.double()),
        ({"x": flags, "dtype": "int32"}, flags.int()),
        ({"x": flags.int(), "dtype": "bool"}, flags),
        ({"x": torch.tensor([-1.75, 2.5, 0.99]).half(), "dtype": "int32"}, torch.tensor([-1, 2, 0])),
        ({"x": torch.tensor([0, 30521, 65535], dtype=torch.int32), "dtype": "uint16"}, torch.tensor([0, 30521, 65535])),
        ({"x": torch.tensor([-4, 32767, 7], dtype=torch.int32), "dtype": "int16"}, torch.tensor([-4, 32767, 7])),
        ({"x": torch.tensor([300, -1], dtype=torch.int32), "dtype": "uint8"}, torch.tensor([44, 255])),
    )


@case("linear")
def linears(draw: Draw) -> tuple[Arguments, Expected]:
    x, inside, outside = draw.shape(draw.size(0, 2)), draw.size(1, 40), draw.size()
    values, weight, bias = draw.normal(*x, inside), draw.normal(outside, inside), draw.normal(outside)
    arguments: Arguments = {"x": values, "weight": Stored(weight)}
    if draw.among(True, False):
        return arguments, functional.linear(values.double(), weight.double())
    return arguments | {"bias": Stored(bias)}, functional.linear(values.double(), weight.double(), bias.double())


@case("matmul")
def matmuls(draw: Draw) -> tuple[Arguments, Expected]:
    lead, rows, inner, columns = draw.shape(draw.size(0, 2)), draw.size(), draw.size(), draw.size()
    x, y = draw.normal(*lead, rows, inner), draw.normal(*(draw.among(lead, ())), inner, columns)
    turn_x, turn_y = draw.among(True, False), draw.among(True, False)
    arguments = {"x": x.mT.contiguous() if turn_x else x, "y": y.mT.contiguous() if turn_y else y, "transpose_x": turn_x, "transpose_y": turn_y}
    return arguments, x.double() @ y.double()


@case("matmul")
def vectors(draw: Draw) -> tuple[Arguments, Expected]:
    x, y = draw.normal(4), draw.normal(3, 4, 2)
    return {"x": x, "y": y}, x.double() @ y.double()


@case("einsum")
def einsums(draw: Draw) -> tuple[Arguments, Expected]:
    n, c, h, w, u = (draw.size() for _ in range(5))
    if draw.among(True, False):
        x, y = draw.normal(n, c, h, w), draw.normal(draw.among(n, 1), w, h, u)
        return {"values": [x, y], "equation": "nchw,nwhu->nchu"}, torch.einsum("nchw,nwhu->nchu", x.double(), y.double().expand(n, w, h, u))
    x, y = draw.normal(c, h, w), draw.normal(w, h, u)
    return {"values": [x, y], "equation": "chw,whr->chr"}, torch.einsum("chw,whr->chr", x.double(), y.double())


@case("conv")
def pointwise(draw: Draw) -> tuple[Arguments, Expected]:
    inside, outside, length = draw.size(), draw.size(), draw.size(1, 9)
    x, weight, bias = draw.normal(draw.size(1, 2), inside, 1, length), draw.normal(outside, inside, 1, 1), draw.normal(outside)
    arguments: Arguments = {
        "x": x,
        "weight": Stored(weight),
        "strides": [1, 1],
        "pad_type": "valid",
        "pad": [0] * 4,
        "dilations": [1, 1],
        "groups": 1,
    }
    expected = functional.conv2d(x.double(), weight.double())
    if draw.among(True, False):
        return arguments, expected
    return arguments | {"bias": Stored(bias)}, expected + bias.double()[:, None, None]


@case("conv")
def convolutions(draw: Draw) -> tuple[Arguments, Expected]:
    groups, stride, dilation = draw.among(1, 2), draw.among(1, 2), draw.among(1, 2)
    x, weight, bias = draw.normal(2, 4, 9, 8), draw.normal(6, 4 // groups, 3, 2), draw.normal(6)
    pads = [draw.size(0, 2) for _ in range(4)]
    arguments: Arguments = {"x": x, "weight": Stored(weight), "bias": Stored(bias), "strides": [stride, 1], "pad_type": "custom", "pad": pads}
    padded = functional.pad(x.double(), [pads[2], pads[3], pads[0], pads[1]])
    expected = functional.conv2d(padded, weight.double(), bias.double(), (stride, 1), 0, dilation, groups)
    return arguments | {"dilations": [dilation] * 2, "groups": groups}, expected


@case("conv")
def convolutions_of_one_axis(draw: Draw) -> tuple[Arguments, Expected]:
    x, weight = draw.normal(1, 3, 7), draw.normal(2, 3, 3)
    return {"x": x, "weight": weight, "pad_type": "same"}, functional.conv1d(x.double(), weight.double(), padding="same")


@case("scaled_dot_product_attention")
def attentions(draw: Draw) -> tuple[Arguments, Expected]:
    lead, rows, places, size = draw.shape(2), draw.size(), draw.size(), draw.size()
    query, key, value = draw.normal(*lead, rows, size), draw.normal(*lead, places, size), draw.normal(*lead, places, 3)
    keep = draw.flags(*lead, rows, places) | (torch.arange(places) == 0)
    mask = draw.among(None, keep, draw.normal(rows, places))
    arguments = {"query": query, "key": key, "value": value} | ({} if mask is None else {"attn_mask": mask})
    wide = mask.double() if mask is not None and mask.dtype == torch.float16 else mask
    return arguments, functional.scaled_dot_product_attention(query.double(), key.double(), value.double(), wide)


@case("softmax")
def softmaxes(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(*draw.shape()) * 4
    axis = draw.axis(x.ndim)
    return {"x": x, "axis": axis}, x.double().softmax(axis)


@case("layer_norm")
def layer_norms(draw: Draw) -> tuple[Arguments, Expected]:
    x, last, epsilon = draw.normal(2, draw.size(), draw.size(4, 40)), draw.among(1, 2), draw.among(2.0**-10, 0.25)
    shape = x.shape[-last:]
    gamma, beta = draw.normal(*shape), draw.normal(*shape)
    arguments: Arguments = {"x": x, "axes": list(range(-last, 0)), "epsilon": epsilon}
    if draw.among(True, False):
        return arguments, functional.layer_norm(x.double(), shape, eps=epsilon)
    expected = functional.layer_norm(x.double(), shape, gamma.double(), beta.double(), epsilon)
    return arguments | {"gamma": Stored(gamma), "beta": Stored(beta)}, expected


@case("layer_norm")
def layer_norms_of_channels(draw: Draw) -> tuple[Arguments, Expected]:
    """The Neural Engine's layout normalises (B, C, 1, S) over its second axis."""
    channels = draw.size(4, 40)
    x, gamma, beta = draw.normal(2, channels, 1, draw.size()), draw.normal(channels), draw.normal(channels)
    expected = functional.layer_norm(x.double().movedim(1, -1), (channels,), gamma.double(), beta.double(), 2.0**-10).movedim(-1, 1)
    return {"x": x, "axes": [1], "gamma": Stored(gamma), "beta": Stored(beta), "epsilon": 2.0**-10}, expected


@case("batch_norm", "instance_norm")
def channel_norms(draw: Draw, kind: str) -> tuple[Arguments, Expected]:
    channels = draw.size()
    x, gamma, beta, mean, variance = draw.normal(2, channels, 3, 4), *(draw.normal(channels) for _ in range(3)), draw.positive(channels)
    arguments: Arguments = {"x": x, "gamma": Stored(gamma), "beta": Stored(beta), "epsilon": 2.0**-10}
    if kind == "instance_norm":
        return arguments, functional.instance_norm(x.double(), weight=gamma.double(), bias=beta.double(), eps=2.0**-10)
    expected = functional.batch_norm(x.double(), mean.double(), variance.double(), gamma.double(), beta.double(), eps=2.0**-10)
    return arguments | {"mean": Stored(mean), "variance": Stored(variance)}, expected


@case("l2_norm")
def l2_norms(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(2, 3, 4, 5)
    return {"x": x, "epsilon": 2.0**-10}, x.double() / (x.double().square().sum((1, 2, 3), keepdim=True) + 2.0**-10).sqrt()


REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "reduce_l1_norm": lambda x, axes, keep: torch.linalg.vector_norm(x, 1, axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep),
    "reduce_log_sum": lambda x, axes, keep: torch.sum(x, axes, keep).log(),
    "reduce_log_sum_exp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "reduce_max": lambda x, axes, keep: torch.amax(x, axes, keep),
    "reduce_mean": lambda x, axes, keep: torch.mean(x, axes, keep),
    "reduce_min": lambda x, axes, keep: torch.amin(x, axes, keep),
    "reduce_sum": lambda x, axes, keep: torch.sum(x, axes, keep),
    "reduce_sum_square": lambda x, axes, keep: torch.sum(x**2, axes, keep),
}


@case(*REDUCTIONS)
def reductions(draw: Draw, kind: str) -> tuple[Arguments, Expected]:
    x = draw.positive(*draw.shape(3))
    axes, keep = draw.axes(3), draw.among(True, False)
    every = draw.among(True, False)
    return {"x": x, "keep_dims": keep} | ({} if every else {"axes": axes}), REDUCTIONS[kind](x.double(), [0, 1, 2] if every else axes, keep)


@case("reduce_min", "reduce_max", "reduce_sum")
def whole_reductions(draw: Draw, kind: str) -> tuple[Arguments, Expected]:
    x = draw.whole(-9, 9, 1, 7)
    return {"x": x, "axes": [-1], "keep_dims": True}, REDUCTIONS[kind](x, [-1], True)


@case("reduce_argmax", "reduce_argmin")
def places_of_extremes(draw: Draw, kind: str) -> tuple[Arguments, Expected]:
    x = torch.randperm(24, generator=draw.torch).half().reshape(2, 3, 4)
    axis, keep = draw.axis(3), draw.among(True, False)
    return {"x": x, "axis": axis, "keep_dims": keep}, getattr(torch, kind.removeprefix("reduce_"))(x, axis, keep)


@case("cumsum")
def running_sums(draw: Draw) -> tuple[Arguments, Expected]:
    x, exclusive, reverse = draw.normal(3, draw.size(2, 6)), draw.among(True, False), draw.among(True, False)
    wide = x.double().flip(1) if reverse else x.double()
    total = wide.cumsum(1) - (wide if exclusive else 0)
    return {"x": x, "axis": 1, "exclusive": exclusive, "reverse": reverse}, total.flip(1) if reverse else total


@case("shape")
def shapes(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(*draw.shape())
    return {"x": x}, torch.tensor(x.shape)


@case("reshape")
def reshapes(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(2, 3, 4)
    shape, expected = draw.among(([6, 4], [6, 4]), ([-1, 2], [12, 2]), ([0, -1, 2], [2, 6, 2]), ([1, 24], [1, 24]))
    return {"x": x, "shape": draw.among(shape, torch.tensor(shape, dtype=torch.int32))}, x.double().reshape(expected)


@case("transpose")
def transposes(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(*draw.shape())
    perm = draw.numpy.permutation(x.ndim).tolist()
    return {"x": x, "perm": [p - draw.among(0, x.ndim) for p in perm]}, x.double().permute(perm)


@case("expand_dims")
def new_axes(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(3, 4)
    return {"x": x, "axes": draw.among([0], [-3])}, x.double()[None]


@case("expand_dims")
def several_new_axes(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(3, 4)
    return {"x": x, "axes": [1, -1]}, x.double()[:, None, :, None]


@case("squeeze")
def lost_axes(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(1, 3, 1, 4)
    axes = draw.among([0], [2], [0, -2], [0, 1], None)
    return {"x": x} | ({"axes": axes} if axes else {}), x.double().squeeze(axes) if axes else x.double().squeeze()


@case("concat")
def concatenations(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.shape(3)
    axis = draw.axis(3)
    if draw.among(True, False):
        values = [draw.normal(*x) for _ in range(3)]
        mixed = torch.stack(values, axis % 3 + 1).flatten(axis % 3, axis % 3 + 1)
        return {"values": values, "axis": axis, "interleave": True}, mixed.double()
    values = [draw.normal(*(draw.size() if place == axis % 3 else size for place, size in enumerate(x))) for _ in range(3)]
    return {"values": [values[0], Stored(values[1]), values[2]], "axis": axis}, torch.cat(values, axis).double()


@case("concat")
def concatenations_of_numbers(draw: Draw) -> tuple[Arguments, Expected]:
    number = draw.whole(0, 9)
    return {"values": [Stored(torch.tensor([1, 2])), number, Stored(torch.tensor([7]))], "axis": 0}, torch.tensor([1, 2, int(number), 7])


@case("stack")
def stacks(draw: Draw) -> tuple[Arguments, Expected]:
    shape = draw.shape(2)
    values, axis = [draw.normal(*shape) for _ in range(3)], draw.axis(3)
    return {"values": values, "axis": axis}, torch.stack(values, axis).double()


@case("split")
def splits(draw: Draw) -> tuple[Arguments, Expected]:
    x, axis = draw.normal(2, 6, 3), draw.among(1, -2)
    if draw.among(True, False):
        return {"x": x, "axis": axis, "num_splits": 3}, x.double().split(2, 1)
    return {"x": x, "axis": axis, "split_sizes": [1, 3, 2]}, x.double().split([1, 3, 2], 1)


@case("slice_by_index")
def slices(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(4, 5, 6)
    begins, ends = [draw.size(-2, 2) for _ in range(3)], [draw.size(3, 7) for _ in range(3)]
    strides = [draw.among(1, 1, 2, -1) for _ in range(3)]
    begins = [first if step > 0 else 3 for first, step in zip(begins, strides, strict=True)]
    ends = [last if step > 0 else draw.size(0, 1) for last, step in zip(ends, strides, strict=True)]
    masks = [[draw.among(False, False, True) for _ in range(3)] for _ in range(2)]
    dropped = [draw.among(False, False, True) for _ in range(3)]
    index: list[Any] = []
    for axis in range(3):
        first, last = None if masks[0][axis] else begins[axis], None if masks[1][axis] else ends[axis]
        index.append(begins[axis] if dropped[axis] else slice(first, last, strides[axis]))
    arguments = {"x": x, "begin": begins, "end": ends, "stride": strides, "begin_mask": masks[0], "end_mask": masks[1], "squeeze_mask": dropped}
    return arguments, torch.from_numpy(np.ascontiguousarray(x.double().numpy()[tuple(index)]))


@case("slice_by_index")
def slices_of_computed_length(draw: Draw) -> tuple[Arguments, Expected]:
    x, last = draw.normal(2, 8), draw.size(1, 8)
    return {"x": x, "begin": [0, 0], "end": torch.tensor([2, last], dtype=torch.int32), "end_mask": [True, False]}, x.double()[:, :last]


@case("slice_by_size")
def slices_by_size(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(4, 5)
    return draw.among(
        ({"x": x, "begin": [1, 2], "size": [2, -1]}, x.double()[1:3, 2:]),
        ({"x": x, "begin": [-2, 0], "size": [1, 5]}, x.double()[2:3]),
    )


@case("reverse")
def reversals(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(*draw.shape(3))
    axes = draw.among(None, [0], [-1, 0])
    return {"x": x} | ({"axes": axes} if axes else {}), x.double().flip(axes or [0, 1, 2])


@case("tile")
def tiles(draw: Draw) -> tuple[Arguments, Expected]:
    x, reps = draw.normal(*draw.shape(3)), [draw.size(1, 3) for _ in range(3)]
    return {"x": x, "reps": reps}, x.double().repeat(*reps)


@case("pad")
def pads(draw: Draw) -> tuple[Arguments, Expected]:
    x, pad, mode = draw.normal(2, 3, 5, 4), [draw.size(0, 3) for _ in range(4)], draw.among("constant", "reflect", "replicate")
    wide, turned = x.double(), [*pad[2:], *pad[:2]]
    if mode == "constant":
        return {"x": x, "pad": pad, "mode": mode, "constant_val": 0.5}, functional.pad(wide, turned, value=0.5)
    return {"x": x, "pad": pad, "mode": mode}, functional.pad(wide, turned, mode=mode)


@case("fill")
def fillings(draw: Draw) -> tuple[Arguments, Expected]:
    shape = list(draw.shape())
    value = draw.among(0.5, 7, True)
    dtype = {float: torch.float64, int: torch.int32, bool: torch.bool}[type(value)]
    given: list[Any] = [shape, torch.tensor(shape, dtype=torch.int32)]
    return {"shape": draw.among(*given), "value": value}, torch.full(shape, value, dtype=dtype)


@case("fill")
def fillings_with_zeros(draw: Draw) -> tuple[Arguments, Expected]:
    return {"shape": [2, 3]}, torch.zeros(2, 3).double()


@case("fill_like")
def fillings_like(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.whole(0, 5, *draw.shape())
    value = draw.among(9, -1.5)
    return {"ref_tensor": x, "value": value}, torch.full(x.shape, value, dtype=torch.int32 if value == 9 else torch.float64)


@case("range_1d")
def ranges(draw: Draw) -> tuple[Arguments, Expected]:
    end = draw.whole(3, 9)
    return {"start": 1, "end": end, "step": 2}, torch.arange(1, int(end), 2)


@case("range_1d")
def ranges_of_fractions(draw: Draw) -> tuple[Arguments, Expected]:
    return {"start": 0.0, "end": 2.0, "step": 0.25}, torch.arange(0, 2, 0.25).double()


@case("one_hot")
def one_hots(draw: Draw) -> tuple[Arguments, Expected]:
    indices, axis = draw.whole(0, 5, 2, 3), draw.among(-1, 0, 1)
    hot = functional.one_hot(indices.long(), 5).movedim(-1, axis)
    return {"indices": indices, "one_hot_vector_size": 5, "axis": axis, "on_value": 2.5, "off_value": -1.0}, torch.where(hot == 1, 2.5, -1.0).double()


@case("gather")
def gathers(draw: Draw) -> tuple[Arguments, Expected]:
    x, axis = draw.normal(*draw.shape(3)), draw.axis(3)
    indices = draw.whole(0, x.shape[axis], *draw.shape(draw.size(0, 2)))
    values = np.take(x.double().numpy(), indices.numpy(), axis)
    return {"x": draw.among(x, Stored(x)), "indices": indices, "axis": axis}, torch.from_numpy(values)


@case("gather")
def gathers_in_batches(draw: Draw) -> tuple[Arguments, Expected]:
    """tf.gather with batch_dims: each row with its own indices."""
    x, axis = draw.normal(2, 3, 4, 5), draw.among(1, 2, 3)
    indices = draw.whole(0, x.shape[axis], 2, 6)
    expected = torch.stack([row.index_select(axis - 1, own) for row, own in zip(x.double(), indices, strict=True)])
    return {"x": x, "indices": indices, "axis": axis, "batch_dims": 1, "validate_indices": False}, expected


@case("gather_along_axis")
def gathers_along(draw: Draw) -> tuple[Arguments, Expected]:
    x, axis = draw.normal(3, 4, 5), draw.axis(3)
    shape = [7 if place == axis % 3 else size for place, size in enumerate(x.shape)]
    indices = draw.whole(0, x.shape[axis], *shape)
    return {"x": x, "indices": indices, "axis": axis}, torch.take_along_dim(x.double(), indices.long(), axis)


@case("gather_nd")
def gathers_of_places(draw: Draw) -> tuple[Arguments, Expected]:
    x = draw.normal(3, 4, 5)
    rows, columns = draw.whole(0, 3, 6), draw.whole(0, 4, 6)
    return {"x": x, "indices": torch.stack((rows, columns), -1)}, x.double()[rows.long(), columns.long()]


@case("gather_nd")
def gathers_of_places_in_batches(draw: Draw) -> tuple[Arguments, Expected]:
    x, places = draw.normal(3, 4, 5), draw.whole(0, 4, 3, 2, 1)
    expected = torch.stack([row[own[:, 0].long()] for row, own in zip(x.double(), places, strict=True)])
    return {"x": x, "indices": places, "batch_dims": 1}, expected

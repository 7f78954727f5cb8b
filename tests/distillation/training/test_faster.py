"""Attention and dropout of our own: their values, their gradients, and where they stand in for PyTorch's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distillation.training import faster
from distillation.training.faster import FasterOnCPU, attention, dropout

ROWS, HEADS, POSITIONS, SIZE = 3, 2, 7, 4
PADDED = 5  # of the last row: positions that are looked at
Three = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def qkv() -> Three:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, ROWS, HEADS, POSITIONS, SIZE).unbind()
    return query, key, value


def masks() -> list[Tensor | None]:
    """No mask; one of truths; one of numbers as transformers makes it."""
    seen = torch.ones(ROWS, 1, 1, POSITIONS, dtype=torch.bool)
    seen[-1, ..., PADDED:] = False
    return [None, seen, torch.zeros(ROWS, 1, POSITIONS, POSITIONS).masked_fill(~seen, torch.finfo(torch.float32).min)]


def as_leaves(qkv: Three, dtype: torch.dtype) -> Three:
    query, key, value = (x.to(dtype).detach().requires_grad_() for x in qkv)
    return query, key, value


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """The formula, one position after another, in float64."""
    out = torch.zeros(query.shape, dtype=torch.float64)
    for row in range(ROWS):
        seen = PADDED if mask is not None and row == ROWS - 1 else POSITIONS
        for head in range(HEADS):
            for position in range(POSITIONS):
                products = [float(query[row, head, position].double() @ key[row, head, other].double()) for other in range(seen)]
                powers = [math.exp(product * (scale or 1 / math.sqrt(SIZE))) for product in products]
                out[row, head, position] = sum(power / sum(powers) * value[row, head, other].double() for other, power in enumerate(powers))
    return out


@pytest.mark.parametrize("mask", masks())
@pytest.mark.parametrize("scale", [None, 0.3])
def test_values_are_those_of_the_formula(qkv: Three, mask: Tensor | None, scale: float | None) -> None:
    expected = by_hand(*qkv, mask, scale)
    assert torch.allclose(attention(*qkv, mask, scale=scale).double(), expected, atol=1e-6)
    assert torch.allclose(attention(*as_leaves(qkv, torch.bfloat16), mask, scale=scale).double(), expected, atol=0.03)


@pytest.mark.parametrize("mask", masks())
def test_gradients_are_those_of_pytorch_in_float64(qkv: Three, mask: Tensor | None) -> None:
    double = mask.double() if mask is not None and mask.is_floating_point() else mask
    exact = as_leaves(qkv, torch.float64)
    F.scaled_dot_product_attention(*exact, attn_mask=double).square().sum().backward()
    ours = as_leaves(qkv, torch.float32)
    attention(*ours, mask).square().sum().backward()
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad.double(), other.grad, atol=1e-5)


def test_a_row_of_padding_alone_is_still_a_number(qkv: Three) -> None:
    query, key, value = as_leaves(qkv, torch.bfloat16)
    nothing = torch.full((ROWS, 1, POSITIONS, POSITIONS), torch.finfo(torch.float32).min)
    out = attention(query, key, value, nothing)
    out.float().sum().backward()
    assert torch.isfinite(out).all()
    assert query.grad is not None
    assert torch.isfinite(query.grad).all()


def test_dropout_takes_its_share_and_keeps_the_sum() -> None:
    torch.manual_seed(0)
    length, rate = 2_000, 0.25
    query = torch.zeros(1, 1, 1, SIZE)
    ones = torch.ones(1, 1, length, SIZE)
    kept = attention(query, ones, ones, dropout_p=rate)[0, 0, 0, 0].item() * (1 - rate)  # all weights are 1 / length
    assert abs(kept - (1 - rate)) < 4 * math.sqrt(rate * (1 - rate) / length)
    assert kept != 1 - rate
    assert attention(query, ones, ones)[0, 0, 0, 0].item() == pytest.approx(1.0, abs=1e-4)


def test_it_stands_in_where_it_pays_only(qkv: Three, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def counted(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        calls.append(query.dtype)
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(faster, "attention", counted)
    wanted = as_leaves(qkv, torch.bfloat16)

    def run(*args: Any, **kwargs: Any) -> int:
        F.scaled_dot_product_attention(*args, **kwargs)
        return len(calls)

    assert run(*wanted) == 0
    with FasterOnCPU():
        assert run(*wanted) == 1
        assert run(*wanted, is_causal=False, dropout_p=0.1) == 2
        assert run(*wanted, is_causal=True) == 2
        assert run(*as_leaves(qkv, torch.float32)) == 2
        assert run(*as_leaves(qkv, torch.float32), dropout_p=0.1) == 3
        assert run(*(x.detach() for x in wanted)) == 3
        with torch.no_grad():
            assert run(*(x.bfloat16() for x in qkv)) == 3
        F.scaled_dot_product_attention(query=wanted[0], key=wanted[1], value=wanted[2])
    assert run(*wanted) == len(calls) == 4


@pytest.mark.parametrize("shape", [(5,), (3, 7, 11), (400, 500)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_what_it_should_and_its_gradient_is_the_same_choice(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    rate = 0.3
    values = torch.ones(shape, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    out = dropout(values, rate)
    out.sum().backward()
    assert out.shape == values.shape
    assert out.dtype == dtype
    assert set(out.detach().flatten().tolist()) <= {0.0, torch.tensor(1 / (1 - rate), dtype=dtype).item()}
    assert values.grad is not None
    assert torch.equal(values.grad, out.detach())
    count = values.numel()
    assert abs((out == 0).sum().item() - rate * count) <= 4 * math.sqrt(rate * (1 - rate) * count)
    torch.manual_seed(1)
    assert torch.equal(dropout(values, rate), out)


def test_neighbours_are_dropped_independently() -> None:
    """Four elements share one random word; what befalls one says nothing of the others."""
    torch.manual_seed(2)
    rows, rate = 50_000, 0.5
    gone = (dropout(torch.ones(rows, 4), rate) == 0).double()
    together = (gone.T @ gone / rows).triu(1)
    expected = torch.full((4, 4), rate**2, dtype=torch.float64).triu(1)
    assert torch.allclose(together, expected, atol=4 * math.sqrt(rate**2 * (1 - rate**2) / rows))


def test_modules_take_the_faster_dropout_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def counted(values: Tensor, rate: float) -> Tensor:
        calls.append(rate)
        return dropout(values, rate)

    monkeypatch.setattr(faster, "dropout", counted)
    layer = torch.nn.Dropout(0.1)
    layer(torch.ones(4))
    assert calls == []
    with FasterOnCPU():
        layer(torch.ones(4))
        F.dropout(torch.ones(4), 0.2)
        assert calls == [0.1, 0.2]
        assert torch.equal(layer.eval()(torch.ones(4)), torch.ones(4))
        torch.nn.Dropout(0.3, inplace=True)(torch.ones(4))
        F.dropout(torch.ones(4), 0.0)
    assert calls == [0.1, 0.2]


def test_all_may_be_dropped(qkv: Three) -> None:
    assert torch.equal(dropout(torch.ones(3), 1.0), torch.zeros(3))
    assert torch.equal(dropout(torch.ones(9), 1 - 1e-9), torch.zeros(9))
    assert torch.equal(attention(*as_leaves(qkv, torch.bfloat16), dropout_p=1.0), torch.zeros(ROWS, HEADS, POSITIONS, SIZE, dtype=torch.bfloat16))

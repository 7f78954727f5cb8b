"""The losses against numbers worked by hand and against plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distillation import losses


def test_cross_entropy_by_hand() -> None:
    # Three positions, the last not allowed: softmax of (0, ln 3) is (1/4, 3/4).
    logits = torch.tensor([[0.0, math.log(3.0), 99.0]])
    allowed = torch.tensor([[True, True, False]])
    loss = losses.span_cross_entropy(logits, logits, torch.tensor([1]), torch.tensor([0]), allowed)
    assert loss.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 4)) / 2, abs=1e-6)


def test_kl_by_hand() -> None:
    # Teacher (1/2, 1/2), student (1/4, 3/4) at temperature 1: KL = 1/2 ln 2 + 1/2 ln(2/3).
    teacher, student = torch.tensor([[0.0, 0.0, 7.0]]), torch.tensor([[0.0, math.log(3.0), -7.0]])
    allowed = torch.tensor([[True, True, False]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert losses.span_kl((student, student), (teacher, teacher), allowed, 1.0).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_kl_against_numpy(temperature: float) -> None:
    rng = np.random.default_rng(0)
    allowed = rng.random((4, 9)) < 0.7
    allowed[:, 0] = True
    pairs = [(rng.normal(size=(4, 9)), rng.normal(size=(4, 9))) for _ in range(2)]  # start and end: student, teacher
    expected = 0.0
    for s, t in pairs:
        for row in range(4):
            p, q = (np.exp(x[row][allowed[row]] / temperature) for x in (t, s))
            p, q = p / p.sum(), q / q.sum()
            expected += float((p * np.log(p / q)).sum()) / 4 / 2 * temperature**2
    got = losses.span_kl(
        tuple(torch.tensor(s) for s, _ in pairs),  # type: ignore[arg-type]
        tuple(torch.tensor(t) for _, t in pairs),  # type: ignore[arg-type]
        torch.from_numpy(allowed),
        temperature,
    )
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_positions_that_are_not_allowed_neither_count_nor_learn() -> None:
    student = torch.zeros(1, 4, requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0, 50.0, -50.0]])
    allowed = torch.tensor([[True, True, False, False]])
    loss = losses.span_kl((student, student), (teacher, teacher), allowed, 2.0)
    loss.backward()
    assert student.grad is not None
    assert student.grad[0, 2:].abs().max().item() == 0.0
    assert student.grad[0, :2].abs().min().item() > 0.0
    other = losses.span_kl((student, student), (teacher + torch.tensor([0.0, 0.0, 9.0, 9.0]),) * 2, allowed, 2.0)
    assert other.item() == pytest.approx(loss.item())

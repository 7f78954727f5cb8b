"""The losses against numbers worked by hand and against plain numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from distillation.knowledge import losses


def test_cross_entropy_by_hand() -> None:
    # Three positions, the last not allowed: softmax of (0, ln 3) is (1/4, 3/4).
    logits = torch.tensor([[0.0, math.log(3.0), 99.0]])
    allowed = torch.tensor([[True, True, False]])
    loss = losses.span_cross_entropy(logits, logits, torch.tensor([1]), torch.tensor([0]), allowed, 1.0)
    assert loss.item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 4)) / 2, abs=1e-6)


def test_kl_by_hand() -> None:
    # Teacher (1/2, 1/2), student (1/4, 3/4) at temperature 1: KL = 1/2 ln 2 + 1/2 ln(2/3).
    teacher, student = torch.tensor([[0.0, 0.0, 7.0]]), torch.tensor([[0.0, math.log(3.0), -7.0]])
    allowed = torch.tensor([[True, True, False]])
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert losses.span_kl((student, student), (teacher, teacher), allowed, 1.0, 1.0).item() == pytest.approx(expected, abs=1e-6)


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
        4.0,
    )
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_positions_that_are_not_allowed_neither_count_nor_learn() -> None:
    student = torch.zeros(1, 4, requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0, 50.0, -50.0]])
    allowed = torch.tensor([[True, True, False, False]])
    loss = losses.span_kl((student, student), (teacher, teacher), allowed, 2.0, 1.0)
    loss.backward()
    assert student.grad is not None
    assert student.grad[0, 2:].abs().max().item() == 0.0
    assert student.grad[0, :2].abs().min().item() > 0.0
    other = losses.span_kl((student, student), (teacher + torch.tensor([0.0, 0.0, 9.0, 9.0]),) * 2, allowed, 2.0, 1.0)
    assert other.item() == pytest.approx(loss.item())


def softmax(values: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    powers = np.exp(values / temperature)
    shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares


def test_a_row_without_a_target_adds_nothing() -> None:
    logits, allowed = torch.randn(2, 5), torch.ones(2, 5, dtype=torch.bool)
    first = losses.span_cross_entropy(logits[:1], logits[:1], torch.tensor([1]), torch.tensor([2]), allowed[:1], 1.0)
    both = losses.span_cross_entropy(logits, logits, torch.tensor([1, -100]), torch.tensor([2, -100]), allowed, 1.0)
    assert both.item() == pytest.approx(first.item())


def test_parts_of_a_step_add_up() -> None:
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(6, 9), torch.randn(6, 9), torch.randint(9, (6,))
    for loss in (
        lambda rows: losses.soft_targets(student[rows], teacher[rows], 2.0, 6.0),
        lambda rows: losses.masked_cross_entropy(student[rows], labels[rows], 6.0),
        lambda rows: losses.cosine(student[rows], teacher[rows], 6.0),
        lambda rows: losses.patient(student[rows], teacher[rows], 6.0),
    ):
        assert float(loss(slice(0, 2)) + loss(slice(2, 6))) == pytest.approx(float(loss(slice(0, 6))), rel=1e-5)


def test_soft_targets_against_numpy() -> None:
    rng = np.random.default_rng(1)
    s, t = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))
    p, q = softmax(t, 3.0), softmax(s, 3.0)
    expected = (p * np.log(p / q)).sum() * 9 / 11
    assert losses.soft_targets(torch.tensor(s), torch.tensor(t), 3.0, 11.0).item() == pytest.approx(expected, rel=1e-5)


def test_masked_cross_entropy_by_hand() -> None:
    # softmax of (0, ln 3) is (1/4, 3/4).
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 8
    assert losses.masked_cross_entropy(logits, torch.tensor([1, 0]), 8.0).item() == pytest.approx(expected, abs=1e-6)


def test_cosine_by_hand() -> None:
    # Angles of 0, 90 and 180 degrees: 0 + 1 + 2.
    student = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    teacher = torch.tensor([[5.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    assert losses.cosine(student, teacher, 3.0).item() == pytest.approx(1.0, abs=1e-6)


def test_an_ensemble_is_the_mean_of_probabilities() -> None:
    rng = np.random.default_rng(2)
    teachers = [rng.normal(size=(4, 6)) for _ in range(3)]
    mean = np.mean([softmax(t, 2.0) for t in teachers], axis=0)
    got = losses.ensemble([torch.tensor(t) for t in teachers], 2.0)
    assert np.allclose(torch.softmax(got / 2.0, dim=-1).numpy(), mean, atol=1e-6)
    alone = torch.tensor(teachers[0])
    assert losses.ensemble([alone], 2.0) is alone


def test_an_ensemble_of_spans_looks_at_allowed_positions_only() -> None:
    one, two = torch.tensor([[0.0, 1.0, 40.0]]), torch.tensor([[2.0, 0.0, -40.0]])
    allowed = torch.tensor([[True, True, False]])
    start, _ = losses.span_ensemble([(one, one), (two, two)], allowed, 1.0)
    mean = (softmax(np.array([0.0, 1.0])) + softmax(np.array([2.0, 0.0]))) / 2
    assert np.allclose(torch.softmax(start, dim=-1)[0].numpy(), [*mean, 0.0], atol=1e-6)


def states() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4, 6)), np.array([[1, 1, 1, 1], [1, 1, 0, 0]])


@pytest.mark.parametrize("normalised", [False, True])
def test_hidden_states_against_numpy(normalised: bool) -> None:
    s, t, mask = states()
    expected = 0.0
    for row, position in zip(*mask.nonzero(), strict=True):
        ours, theirs = s[row, position], t[row, position]
        if normalised:
            ours, theirs = ((x - x.mean()) / math.sqrt(x.var() + 1e-5) for x in (ours, theirs))
        expected += ((ours - theirs) ** 2).mean() / 6
    got = losses.hidden_mse(torch.tensor(s), torch.tensor(t), torch.tensor(mask), 6.0, normalised)
    assert got.item() == pytest.approx(expected, rel=1e-5)


def test_feature_statistics_against_numpy() -> None:
    s, t, mask = states()
    kept = mask.astype(bool)
    means = ((s.mean(-1) - t.mean(-1)) ** 2)[kept].sum() / 6
    variances = np.abs(s.var(-1) - t.var(-1))[kept].sum() / 6
    got = losses.feature_statistics(torch.tensor(s), torch.tensor(t), torch.tensor(mask), 6.0)
    assert [value.item() for value in got] == pytest.approx([means, variances], rel=1e-5)


def test_attention_losses_against_numpy() -> None:
    rng = np.random.default_rng(4)
    s, t = rng.normal(size=(2, 3, 4, 4)), rng.normal(size=(2, 3, 4, 4))
    lengths = [4, 2]
    squares = divergence = 0.0
    for row, length in enumerate(lengths):
        ours, theirs = s[row, :, :length, :length], t[row, :, :length, :length]
        squares += ((ours - theirs) ** 2).mean(axis=(0, 2)).sum() / 6
        p, q = softmax(theirs), softmax(ours)
        divergence += (p * np.log(p / q)).sum(axis=-1).mean(axis=0).sum() / 6
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    pair = torch.tensor(s), torch.tensor(t)
    assert losses.attention_mse(*pair, mask, 6.0).item() == pytest.approx(squares, rel=1e-5)
    assert losses.attention_kl(*pair, mask, 6.0).item() == pytest.approx(divergence, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_losses_are_in_float32_under_autocast(dtype: torch.dtype) -> None:
    student, teacher, mask = torch.full((1, 1, 512, 512), 12.0), torch.zeros(1, 1, 512, 512), torch.ones(1, 512)
    with torch.autocast("cpu", dtype):
        found = losses.attention_mse(student, teacher, mask, 512.0)
    assert found.item() == pytest.approx(144.0, rel=1e-6)  # the sum over keys, 73,728, is beyond float16


def test_patience_by_hand() -> None:
    # Of length 1 they are (0.6, 0.8) and (1, 0): squares 0.16 and 0.64, mean 0.4.
    assert losses.patient(torch.tensor([[3.0, 4.0]]), torch.tensor([[9.0, 0.0]]), 1.0).item() == pytest.approx(0.4, abs=1e-6)

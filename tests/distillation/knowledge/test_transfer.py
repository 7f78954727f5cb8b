"""Losses between layers: which layers, which weights, what does not fit."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from distillation.knowledge import losses
from distillation.knowledge.observation import Observed
from distillation.knowledge.transfer import Transfer, layer_pairs
from distillation.knowledge.transfer_recipe import TransferRecipe
from pocketqa.errors import TrainingError

COUNTS = {"rows": 2.0, "tokens": 6.0}
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def config(layers: int, hidden: int = 6, heads: int = 3) -> SimpleNamespace:
    return SimpleNamespace(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads)


def seen(layers: int, hidden: int, seed: int) -> Observed:
    torch.manual_seed(seed)
    states = tuple(torch.randn(2, 4, hidden) for _ in range(layers + 1))
    return Observed(states[-1], states, {layer: torch.randn(2, 3, 4, 4) for layer in range(layers)})


@pytest.mark.parametrize(
    ("text", "teacher", "student", "pairs"),
    [
        ("", 12, 4, {0: 2, 1: 5, 2: 8, 3: 11}),  # TinyBERT: hidden state i from 3 i
        ("", 12, 6, {0: 1, 1: 3, 2: 5, 3: 7, 4: 9, 5: 11}),
        ("", 5, 2, {0: 1, 1: 4}),
        ("1,3,5,7,9,-", 12, 6, {0: 1, 1: 3, 2: 5, 3: 7, 4: 9}),  # PKD-Skip
        ("3, 3", 4, 2, {0: 3, 1: 3}),
    ],
)
def test_layer_maps(text: str, teacher: int, student: int, pairs: dict[int, int]) -> None:
    assert layer_pairs(text, teacher, student) == pairs


@pytest.mark.parametrize("text", ["1,2,3", "1,4", "-,-", "a,b", "1,-2"])
def test_layer_maps_that_do_not_fit(text: str) -> None:
    with pytest.raises(TrainingError, match="Expected 2 teacher layers from 0 to 3"):
        layer_pairs(text, 4, 2)


def test_more_student_than_teacher_layers() -> None:
    with pytest.raises(TrainingError, match="A student of 5 layers cannot learn layer by layer from a teacher of 4"):
        Transfer(config(5), config(4), TransferRecipe(alpha_hidden=1.0))
    assert Transfer(config(5), config(4), TransferRecipe()).pairs == {}


def test_the_sum_is_weighted_and_the_parts_are_not() -> None:
    recipe = TransferRecipe(2.0, 3.0, 5.0, 7.0, 11.0, 13.0)
    transfer = Transfer(config(2), config(4), recipe)
    student, teacher = seen(2, 6, 0), seen(4, 6, 1)
    total, parts = transfer.terms(student, teacher, MASK, COUNTS)
    hidden = sum(losses.hidden_mse(student.states[i], teacher.states[2 * i], MASK, 6.0) for i in range(3))
    attention = sum(losses.attention_mse(student.scores[i], teacher.scores[2 * i + 1], MASK, 6.0) for i in range(2))
    kl = sum(losses.attention_kl(student.scores[i], teacher.scores[2 * i + 1], MASK, 6.0) for i in range(2))
    patient = sum(losses.patient(student.states[i][:, 0], teacher.states[2 * i][:, 0], 2.0) for i in (1, 2)) / 2
    statistics = [losses.feature_statistics(student.states[i], teacher.states[2 * i], MASK, 6.0) for i in (1, 2)]
    mean, variance = (sum(pair[side] for pair in statistics) for side in (0, 1))
    expected = {
        "loss_hidden": hidden,
        "loss_attention": attention,
        "loss_patient": patient,
        "loss_attention_kl": kl,
        "loss_mean": mean,
        "loss_variance": variance,
    }
    assert {name: float(value) for name, value in parts.items()} == pytest.approx({name: float(value) for name, value in expected.items()})
    weighted = 2 * hidden + 3 * attention + 5 * patient + 7 * kl + 11 * mean + 13 * variance
    assert float(total) == pytest.approx(float(weighted))


def test_one_layer_alone_and_the_embeddings_with_the_first() -> None:
    transfer = Transfer(config(2), config(2), TransferRecipe(alpha_hidden=1.0))
    student, teacher = seen(2, 6, 0), seen(2, 6, 1)
    each = [float(losses.hidden_mse(student.states[i], teacher.states[i], MASK, 6.0)) for i in range(3)]
    assert float(transfer.terms(student, teacher, MASK, COUNTS, (0,))[0]) == pytest.approx(each[0] + each[1])
    assert float(transfer.terms(student, teacher, MASK, COUNTS, (1,))[0]) == pytest.approx(each[2])
    without = Transfer(config(2), config(2), TransferRecipe(alpha_hidden=1.0, hidden_embeddings=False))
    assert float(without.terms(student, teacher, MASK, COUNTS)[0]) == pytest.approx(each[1] + each[2])


def test_other_sizes_need_a_projection() -> None:
    with pytest.raises(TrainingError, match=r"need one size, found 4 and 6.*--projection"):
        Transfer(config(2, hidden=4), config(2), TransferRecipe(alpha_hidden=1.0, projection=False))
    transfer = Transfer(config(2, hidden=4), config(2), TransferRecipe(alpha_hidden=1.0))
    assert transfer.projection is not None
    student, teacher = seen(2, 4, 0), seen(2, 6, 1)
    by_hand = [states @ transfer.projection.weight.T + transfer.projection.bias for states in student.states]
    expected = sum(losses.hidden_mse(by_hand[i].detach(), teacher.states[i], MASK, 6.0).item() for i in range(3))
    total, _ = transfer.terms(student, teacher, MASK, COUNTS)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert transfer.projection.weight.grad is not None
    assert Transfer(config(2, hidden=4), config(2), TransferRecipe(alpha_attention=1.0)).projection is None


def test_other_heads_are_refused() -> None:
    with pytest.raises(TrainingError, match="as many heads on both sides, found 2 and 3"):
        Transfer(config(2, heads=2), config(2), TransferRecipe(alpha_attention=1.0))

"""Students with a language head hold what they were copied from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, BertForMaskedLM, DistilBertForMaskedLM

from distillation.models import modeling, students
from distillation.text import lm
from pocketqa.errors import TrainingError
from tests.tiny import tiny_bert, tiny_distilbert, tiny_mobilebert

IDS = torch.arange(5, 25).reshape(2, 10)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> BertForMaskedLM:
    model = lm.load_language_model(str(tiny_bert(tmp_path_factory.mktemp("bert"), layers=4)), new_head=True).eval()
    assert isinstance(model, BertForMaskedLM)
    torch.nn.init.normal_(model.cls.predictions.bias)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    return found


@pytest.mark.parametrize(
    ("teacher_layers", "student_layers", "base", "expected"),
    [
        (12, 6, None, (0, 2, 4, 7, 9, 11)),
        (12, 6, 6, (0, 2, 4, 6, 8, 10)),
        (12, 4, None, (0, 4, 7, 11)),
        (12, 3, 6, (0, 4, 10)),
        (12, 8, 6, (0, 2, 3, 5, 6, 8, 9, 11)),
        (6, 6, None, tuple(range(6))),
        (6, 1, None, (0,)),
    ],
)
def test_which_layers(teacher_layers: int, student_layers: int, base: int | None, expected: tuple[int, ...]) -> None:
    assert students.choose_layers(teacher_layers, student_layers, base) == expected


def test_more_student_than_teacher_layers_is_refused() -> None:
    with pytest.raises(TrainingError, match="Ask for 1 to 6"):
        students.choose_layers(6, 7)


def test_a_student_with_all_layers_says_what_its_teacher_does(teacher: BertForMaskedLM) -> None:
    student = students.language_student(teacher, range(4))
    assert torch.allclose(logits(student), logits(teacher), atol=1e-4)
    assert student.vocab_projector.weight is student.distilbert.embeddings.word_embeddings.weight
    dropped = students.language_student(teacher, range(4), fold_token_type=False)
    assert not torch.allclose(logits(dropped), logits(teacher), atol=1e-2)


def test_a_distilbert_is_a_teacher_too(tmp_path: Path) -> None:
    model = lm.load_language_model(str(tiny_distilbert(tmp_path / "d", layers=2)), new_head=True)
    assert torch.allclose(logits(students.language_student(model, range(2))), logits(model), atol=1e-5)


def test_geometries(teacher: BertForMaskedLM) -> None:
    tiny = students.configured_student(teacher.config, layers=2, hidden=24, heads=3)
    assert isinstance(tiny, DistilBertForMaskedLM)
    assert (tiny.config.dim, tiny.config.n_heads, tiny.config.hidden_dim, tiny.config.n_layers) == (24, 3, 96, 2)
    with pytest.raises(TrainingError, match="heads divide, found 25"):
        students.configured_student(teacher.config, layers=2, hidden=25)


def test_the_geometries_of_tinybert() -> None:
    config = AutoConfig.for_model("bert")
    four = students.configured_student(config, layers=4, hidden=312, intermediate=1200)
    six = students.configured_student(config, layers=6, hidden=768)
    # The paper gives 14.5 and 67.0 million, with a pooler and token types; the head's transform and bias are not counted there.
    assert students.parameters_of(four.distilbert) / 1e6 == pytest.approx(14.5, abs=0.3)
    assert students.parameters_of(six.distilbert) / 1e6 == pytest.approx(67.0, abs=0.7)


def test_a_bottleneck_student_takes_embeddings_and_head_of_its_teacher(tmp_path: Path) -> None:
    config = modeling.load_config(str(tiny_mobilebert(tmp_path / "m")))
    wide = students.inverted_bottleneck(config, layers=2, inner=32, hidden=16, heads=2)
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(TrainingError, match="pocketqa pretrain"):
        lm.load_language_model(str(tmp_path / "wide"))
    teacher = lm.load_language_model(str(tmp_path / "wide"), new_head=True)
    student = students.bottleneck_student(teacher, layers=2, bottleneck=8)
    assert (student.config.hidden_size, student.config.intra_bottleneck_size, student.config.num_feedforward_networks) == (16, 8, 4)
    ours, theirs = student.state_dict(), teacher.state_dict()
    for name in ("mobilebert.embeddings.word_embeddings.weight", "mobilebert.embeddings.LayerNorm.weight", "cls.predictions.transform.dense.weight"):
        assert torch.equal(ours[name], theirs[name])
    assert logits(student).shape == logits(teacher).shape
    with pytest.raises(TrainingError, match="heads divide, found 7"):
        students.bottleneck_student(teacher, layers=2, bottleneck=7)
    with pytest.raises(TrainingError, match="--bottleneck"):
        students.language_student(teacher, [0])


def test_mobilebert_has_the_size_of_the_papers() -> None:
    teacher = BertForMaskedLM(AutoConfig.for_model("bert", hidden_size=512, num_attention_heads=4, num_hidden_layers=1, intermediate_size=64))
    student = students.bottleneck_student(teacher, layers=24, bottleneck=128)
    assert students.parameters_of(student.mobilebert) / 1e6 == pytest.approx(25.3, abs=0.8)  # Sun et al. 2020, table 1, with the pooler

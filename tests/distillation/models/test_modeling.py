"""Growing a teacher and cutting a student copy what they should and nothing else."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertForQuestionAnswering

from distillation.models import modeling, students
from distillation.training.checkpoints import save_tokenizer
from pocketqa.errors import TrainingError
from tests.tiny import tiny_base, tiny_bert, tiny_distilbert, tiny_tinybert


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> BertForQuestionAnswering:
    model = modeling.load_reader(str(tiny_bert(tmp_path_factory.mktemp("bert"), layers=4))).eval()
    assert isinstance(model, BertForQuestionAnswering)
    return model


def logits(model: Any, token_types: bool = True) -> torch.Tensor:
    ids = torch.arange(5, 25).reshape(2, 10)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": torch.zeros_like(ids)} if token_types else {})
    with torch.inference_mode():
        out = model.eval()(**inputs)
    return torch.stack((out.start_logits, out.end_logits))[:, mask.bool()]


def test_a_student_with_all_layers_computes_what_the_teacher_does_on_segment_0(bert: BertForQuestionAnswering) -> None:
    student = modeling.student_from_teacher(bert, range(4))
    assert (logits(student, token_types=False) - logits(bert)).abs().max().item() < 1e-5


def test_dropping_the_token_type_row_changes_the_logits(bert: BertForQuestionAnswering) -> None:
    student = modeling.student_from_teacher(bert, range(4), fold_token_type=False)
    assert (logits(student, token_types=False) - logits(bert)).abs().max().item() > 1e-3


def test_student_layers_are_the_named_teacher_layers(bert: BertForQuestionAnswering) -> None:
    student = modeling.student_from_teacher(bert, [3, 1]).state_dict()
    teacher = bert.state_dict()
    for target, origin in ((0, 3), (1, 1)):
        ours = student[f"distilbert.transformer.layer.{target}.ffn.lin1.weight"]
        assert torch.equal(ours, teacher[f"bert.encoder.layer.{origin}.intermediate.dense.weight"])
    assert not any("token_type" in name or "pooler" in name for name in student)


def test_growing_repeats_each_layer_in_place(bert: BertForQuestionAnswering) -> None:
    grown = modeling.grow(bert, 8)
    old, new = bert.state_dict(), grown.state_dict()
    key = "bert.encoder.layer.{}.attention.self.query.weight"
    for target in range(8):
        assert torch.equal(new[key.format(target)], old[key.format(target // 2)])
    assert modeling.depth(grown.config) == 8


def test_first_layer_of_each_block_of_a_grown_teacher_is_its_ancestor(bert: BertForQuestionAnswering) -> None:
    grown = modeling.grow(bert, 8)
    student = modeling.student_from_teacher(grown, students.choose_layers(8, 4, base_layers=4))
    assert (logits(student, token_types=False) - logits(bert)).abs().max().item() < 1e-5


def test_quiet_layers_change_little(bert: BertForQuestionAnswering) -> None:
    before = logits(bert)
    quiet = (logits(modeling.grow(bert, 8, "quiet")) - before).abs().mean().item()
    copied = (logits(modeling.grow(bert, 8, "copy")) - before).abs().mean().item()
    assert quiet < copied / 3


def test_quiet_layers_are_the_identity_where_gains_are_uniform(bert: BertForQuestionAnswering) -> None:
    plain = modeling.grow(bert, 4)
    for name, parameter in plain.named_parameters():
        if ".output.LayerNorm." in name and ".attention." not in name:
            torch.nn.init.constant_(parameter, float(name.endswith("weight")))
    assert (logits(modeling.grow(plain, 8, "quiet")) - logits(plain)).abs().max().item() < 1e-4


def test_growing_to_a_depth_that_does_not_divide_is_refused(bert: BertForQuestionAnswering) -> None:
    with pytest.raises(TrainingError, match="multiple of 4"):
        modeling.grow(bert, 6)


def test_an_encoder_without_a_head_gets_one_and_nothing_else_may_be_missing(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    torch.manual_seed(1)
    first = modeling.load_reader(str(base)).state_dict()["qa_outputs.weight"]
    torch.manual_seed(1)
    assert torch.equal(first, modeling.load_reader(str(base)).state_dict()["qa_outputs.weight"])
    broken = tiny_distilbert(tmp_path / "broken")
    config = (broken / "config.json").read_text()
    (broken / "config.json").write_text(config.replace('"n_layers": 2', '"n_layers": 3'))
    with pytest.raises(TrainingError, match="lacks 16 weights"):
        modeling.load_reader(str(broken))


def test_a_folder_as_older_berts_and_tinyberts_are_published(tmp_path: Path) -> None:
    folder = tiny_tinybert(tmp_path / "Tiny")
    wanted = logits(modeling.load_reader(str(folder), new_head=False))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    for path in folder.iterdir():
        if path.name not in ("config.json", "vocab.txt", "pytorch_model.bin"):
            path.unlink()
    with pytest.raises(TrainingError, match=r"found only pytorch_model\.bin.* once, in that folder, with: python -c") as refused:
        modeling.load_reader(str(folder))
    _, _, command = str(refused.value).partition("with: python ")
    subprocess.run([sys.executable, *shlex.split(command)], cwd=folder, check=True)
    assert torch.equal(logits(modeling.load_reader(str(folder), new_head=False)), wanted)
    save_tokenizer(str(folder), tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_what_students_cannot_be_made_of_says_what_can_be_done(tmp_path: Path) -> None:
    config = modeling.load_config(str(tiny_bert(tmp_path / "bert")))
    config.hidden_act = "relu"
    with pytest.raises(TrainingError, match=r"Expected gelu, .* found 'relu' in the teacher\. Name another teacher, or .*--bottleneck.*--student"):
        modeling.distilbert_config(config, 1)


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(TrainingError, match=r"`model_type` key in its config\.json$"):  # and no list of all there are
        modeling.load_config(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(TrainingError, match="found model type 'gpt2'"):
        modeling.load_config(str(tmp_path))
    with pytest.raises(TrainingError, match=r"config\.json"):
        modeling.load_config(str(tmp_path / ".."))

"""The teacher cache gives back what the teacher says, and notices every change to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from distillation.models import modeling
from distillation.questions import teacher_cache
from distillation.questions.data import NegativeOptions, TrainingWindow, to_batch, training_windows
from distillation.questions.teacher_cache import TeacherLogits, teacher_logits
from distillation.text import corpus_cache
from pocketqa import squad
from pocketqa.errors import TrainingError
from pocketqa.features import Tokenizer
from pocketqa.types import WindowOptions
from tests.tiny import tiny_bert, tiny_squad


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("teacher") / "bert")


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory, source: Path) -> list[TrainingWindow]:
    examples = squad.load(str(tiny_squad(tmp_path_factory.mktemp("data") / "tiny.json")))
    return training_windows(examples, Tokenizer(source / "tokenizer.json"), WindowOptions(96, 16, 40), NegativeOptions(), seed=0)


def load(source: Path) -> Callable[[], PreTrainedModel]:
    return lambda: modeling.load_reader(str(source)).eval()


def never() -> PreTrainedModel:
    raise AssertionError("the teacher must not be loaded")


def open_cache(cache: Path, source: Path, windows: list[TrainingWindow], loader: Any) -> TeacherLogits:
    return teacher_logits(cache, str(source), windows, 0, "fp32", loader)


def test_it_tells_how_far_it_has_read(
    tmp_path: Path, source: Path, windows: list[TrainingWindow], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(corpus_cache, "REPORT_SECONDS", 0.0)
    monkeypatch.setattr(teacher_cache, "TOKENS_AT_ONCE", 96)
    open_cache(tmp_path, source, windows, load(source))
    told = re.findall(r"([\d,]+) windows, [\d,]+ a second, (\d+) % read, \d+ s left", "".join(capsys.readouterr()))
    assert len(told) > 3
    assert told[-1] == (str(len(windows)), "100")
    assert [int(share) for _, share in told] == sorted(int(share) for _, share in told)


def test_it_holds_what_the_teacher_says(tmp_path: Path, source: Path, windows: list[TrainingWindow]) -> None:
    open_cache(tmp_path, source, windows, load(source))
    cached = open_cache(tmp_path, source, windows, never)
    chosen = [3, 0, 7]
    start, end = cached.of(chosen)
    batch = to_batch([windows[i] for i in chosen], 0)
    model: Any = load(source)()
    with torch.no_grad():
        out = model(input_ids=batch.ids, attention_mask=batch.mask, token_type_ids=batch.token_types)
    kept = batch.mask.bool()
    assert start.shape == batch.ids.shape
    assert torch.allclose(start[kept], out.start_logits[kept], atol=1e-4)
    assert torch.allclose(end[kept], out.end_logits[kept], atol=1e-4)
    assert not start[~kept].any()


def test_logits_that_are_not_finite_are_not_kept(tmp_path: Path, source: Path, windows: list[TrainingWindow]) -> None:
    def overflowing() -> PreTrainedModel:
        model: PreTrainedModel = modeling.load_reader(str(source)).eval()
        model.get_parameter("qa_outputs.bias").data.fill_(float("inf"))
        return model

    with pytest.raises(TrainingError, match=r"logits are not finite in fp32.*Try --precision fp32"):
        open_cache(tmp_path, source, windows, overflowing)
    open_cache(tmp_path, source, windows, load(source))  # nothing stands in its place


def test_other_data_and_other_teachers_get_their_own(tmp_path: Path, source: Path, windows: list[TrainingWindow]) -> None:
    open_cache(tmp_path, source, windows, load(source))
    other = tiny_bert(tmp_path / "other", seed=1)
    for some, model, precision in ((windows[1:], source, "fp32"), (windows, other, "fp32"), (windows, source, "bf16")):
        teacher_logits(tmp_path, str(model), some, 0, precision, load(model))
    assert len(list(tmp_path.glob("teacher-*"))) == 4
    moved = [TrainingWindow(item.window, 0, 0) for item in windows]
    open_cache(tmp_path, source, moved, never)  # targets do not count


def test_a_changed_byte_is_noticed_and_named(tmp_path: Path, source: Path, windows: list[TrainingWindow]) -> None:
    open_cache(tmp_path, source, windows, load(source))
    (folder,) = tmp_path.glob("teacher-*")
    data = bytearray((folder / "logits.f32").read_bytes())
    data[40] ^= 1
    (folder / "logits.f32").write_bytes(data)
    with pytest.raises(TrainingError, match=r"logits\.f32 is damaged: expected sha256 .*Delete"):
        open_cache(tmp_path, source, windows, never)
    (folder / "logits.f32").unlink()
    with pytest.raises(TrainingError, match="is damaged"):
        open_cache(tmp_path, source, windows, never)
    (folder / "index.json").write_text("{")
    with pytest.raises(TrainingError, match="is damaged"):
        open_cache(tmp_path, source, windows, never)


def test_a_cache_of_other_windows_under_its_name_is_noticed(tmp_path: Path, source: Path, windows: list[TrainingWindow]) -> None:
    open_cache(tmp_path, source, windows, load(source))
    (folder,) = tmp_path.glob("teacher-*")
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, "key": "0" * 64}))
    with pytest.raises(TrainingError, match="key 000000"):
        open_cache(tmp_path, source, windows, never)


def test_a_killed_write_leaves_none(tmp_path: Path, source: Path, windows: list[TrainingWindow], monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(teacher_cache, "_fill", dies)
        with pytest.raises(KeyboardInterrupt):
            open_cache(tmp_path, source, windows, load(source))
    assert list(tmp_path.iterdir()) == []
    open_cache(tmp_path, source, windows, load(source))
    (folder,) = tmp_path.glob("teacher-*")
    leftover = folder.with_name(f".{folder.name}.abc.partial")  # of a process that could not clean up
    folder.rename(leftover)
    open_cache(tmp_path, source, windows, load(source))
    assert leftover.exists()  # so young that another process may be writing it
    old = time.time() - 3600
    for path in (leftover, *leftover.iterdir()):
        os.utime(path, (old, old))
    shutil.rmtree(folder)
    open_cache(tmp_path, source, windows, load(source))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_full_disk_is_said(tmp_path: Path, source: Path, windows: list[TrainingWindow], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(teacher_cache, "_reserve", full)
    with pytest.raises(TrainingError, match="No space left on device"):
        open_cache(tmp_path, source, windows, load(source))
    assert list(tmp_path.iterdir()) == []


def test_the_space_is_taken_before_it_is_mapped(tmp_path: Path) -> None:
    teacher_cache._reserve(tmp_path / "zeros", (1 << 20) + 12)
    assert np.fromfile(tmp_path / "zeros", dtype=np.uint8).sum() == 0
    assert (tmp_path / "zeros").stat().st_size == (1 << 20) + 12

"""`pocketqa benchmark --workload training`: one loss in every way, operations counted by hand, and the verb run whole."""

from __future__ import annotations

import json
import platform
import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from distillation import speed
from distillation.speed_ways import EVERYWHERE, WATERFALL, Task, Way, batches, encoder_operations, head_operations
from distillation.text import lm
from distillation.text.corpus import Corpus, open_corpus
from distillation.text.masking import MaskedBatch, masked_batch
from distillation.text.pretrain_recipe import PretrainRecipe
from distillation.training import memory
from pocketqa import runs
from pocketqa.errors import OptionsError, TrainingError
from tests.tiny import SPECIAL, tiny_bert, tiny_distilbert

VOCABULARY = [*SPECIAL, *(f"w{number}" for number in range(30))]
V, H, INNER = len(VOCABULARY), 32, 128
RECIPE = PretrainRecipe(max_tokens=32, batch_tokens=128, min_tokens=3)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("speed")
    pick = random.Random(0)
    text = folder / "words.txt"
    text.write_text("\n\n".join(" ".join(f"w{pick.randrange(30)}" for _ in range(pick.randint(4, 60))) for _ in range(60)))
    student = tiny_distilbert(folder / "student", layers=1, vocabulary=VOCABULARY)
    return student, tiny_bert(folder / "teacher", layers=2, vocabulary=VOCABULARY), text


def parts(places: tuple[Path, Path, Path], tmp_path: Path) -> tuple[PreTrainedModel, PreTrainedModel, Corpus, Corpus]:
    student, teacher, text = places
    models = [lm.load_language_model(str(folder), new_head=True).eval() for folder in (student, teacher)]
    running, apart = (open_corpus([str(text)], student, PretrainRecipe(max_tokens=32, packed=p).rows(), tmp_path / "cache") for p in (True, False))
    return models[0], models[1], running, apart


def test_every_way_has_the_same_loss(places: tuple[Path, Path, Path], tmp_path: Path) -> None:
    student, teacher, running, apart = parts(places, tmp_path)
    for corpus in (running, apart):
        batch = masked_batch(corpus, range(4), 0, RECIPE)
        for task, ways in ((Task(student), WATERFALL), (Task(student, teacher), WATERFALL), (Task(student, teacher, True), EVERYWHERE)):
            values = [task.loss(batch, way).item() for way in ways]
            assert max(values) - min(values) < 1e-5
        assert Task(student, teacher, True).loss(batch, WATERFALL[0]).item() != pytest.approx(Task(student, teacher).loss(batch, WATERFALL[0]).item())
    for precision in ("bf16", "fp32"):
        recipe = PretrainRecipe(max_tokens=32, batch_tokens=128, precision=precision)
        found = speed.loss_difference(Task(student, teacher), WATERFALL, running, apart, recipe, precision)
        assert found.share < (0.2 if precision == "bf16" else 1e-5) and found.absolute < (20 if precision == "bf16" else 1e-3)


def test_gradients_of_the_ways_agree(places: tuple[Path, Path, Path], tmp_path: Path) -> None:
    student, teacher, running, _ = parts(places, tmp_path)
    batch = masked_batch(running, range(4), 0, RECIPE)
    found = []
    for way in (WATERFALL[0], WATERFALL[-1]):
        student.zero_grad()
        Task(student, teacher).loss(batch, way).backward()
        found.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert torch.allclose(found[0], found[1], atol=1e-4)


def test_operations_are_those_of_the_products(places: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    student, teacher, running, _ = parts(places, tmp_path)
    batch = masked_batch(running, range(4), 0, RECIPE)
    rows, longest = batch.ids.shape
    for model, layers in ((student, 1), (teacher, 2)):
        assert encoder_operations(model, rows, longest) == layers * rows * longest * (4 * H * H + 2 * H * INNER + 2 * longest * H)
        assert head_operations(model, 10) == 10 * (H * H + H * V)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused product is not counted by the library
        Task(teacher).loss(batch, WATERFALL[-1]).backward()
    assert Task(teacher).operations(batch, WATERFALL[-1]) == pytest.approx(counter.get_total_flops(), rel=0.05)


def test_plain_batches_are_padded_and_ours_are_not(places: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, _, running, apart = parts(places, tmp_path)
    for way, most in ((WATERFALL[0], 0.6), (WATERFALL[1], 0.05)):
        source = batches(way, running, apart, RECIPE)
        drawn = [next(source) for _ in range(30)]  # more than one pass
        waste = 1 - sum(batch.tokens for batch in drawn) / sum(batch.ids.numel() for batch in drawn)
        assert (waste > 0.1) == (way is WATERFALL[0])
        assert waste < most
        assert all(batch.ids.numel() <= RECIPE.batch_tokens for batch in drawn)


def test_plain_batches_have_as_many_positions_as_ours(places: tuple[Path, Path, Path], tmp_path: Path) -> None:
    student, pick = places[0], random.Random(0)
    text = tmp_path / "short.txt"
    text.write_text("\n\n".join(" ".join(f"w{pick.randrange(30)}" for _ in range(pick.randint(10, 14))) for _ in range(60)))
    running, apart = (open_corpus([str(text)], student, PretrainRecipe(max_tokens=32, packed=p).rows(), tmp_path / "cache") for p in (True, False))
    plain, ours = ([batch.ids.numel() for _, batch in zip(range(20), batches(way, running, apart, RECIPE), strict=False)] for way in WATERFALL[:2])
    assert max(plain) <= max(ours)
    assert sum(plain) > 0.9 * sum(ours)  # though half a row is long enough for any document


def test_an_absolute_difference_decides(places: tuple[Path, Path, Path], tmp_path: Path) -> None:
    class Off(Task):
        def loss(self, batch: MaskedBatch, way: Way) -> torch.Tensor:
            return torch.tensor(30.0 + (0.002 if way.faster else 0.0))  # less than a thousandth of the loss

    _, teacher, running, apart = parts(places, tmp_path)
    with pytest.raises(TrainingError, match=r"within 0\.001 in fp32 .* differ by 0\.002 and 6\.7e-05 of it"):
        speed.measure_task(Off(teacher), WATERFALL, running, apart, RECIPE, 2, 1)


def test_the_verb_leaves_run_files(places: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher, text = places
    common = ["--workload", "training", str(student), "--corpus", str(text), "--cache", str(tmp_path / "cache"), "--max-tokens", "32"]
    small = ["--batch-tokens", "128", "--rounds", "3", "--steps", "1", "--precision", "fp32", "--run-file", str(tmp_path / "runs")]
    assert speed.main([*common, *small]) == 0
    out = capsys.readouterr().out
    assert "ours / plain:" in out
    (document,) = json.loads(out.splitlines()[-1])
    assert [row["step"] for row in document["waterfall"]] == [way.words for way in WATERFALL]
    assert document["loss_difference"] < 1e-4 and document["loss_difference_absolute"]["fp32"] < 1e-3
    assert 0 < document["matrix_rate"]["reached_tflops"] < document["matrix_rate"]["measured_tflops"]
    assert speed.main([*common, *small, "--teacher", str(teacher)]) == 0
    triple, everywhere = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (triple["workload"], len(everywhere["waterfall"])) == ("triple loss, soft targets at masked tokens", 2)
    kinds = [run.kind for run in runs.read_all(tmp_path / "runs").values()]
    assert kinds == ["training-speed"] * 3


def test_what_cannot_be_measured_is_refused(places: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, _, text = places
    with pytest.raises(OptionsError, match="at least 2 rounds"):
        speed.main([str(student), "--corpus", str(text), "--rounds", "1"])
    _, teacher, running, apart = parts(places, tmp_path)
    monkeypatch.setattr(speed, "loss_difference", lambda *rest: speed.Difference(0.0, 0.5))
    with pytest.raises(TrainingError, match=r"differ by 0 and 0\.5 of it"):
        speed.measure_task(Task(teacher), WATERFALL, running, apart, RECIPE, 2, 1)


def test_the_allocator_can_be_set_and_put_back() -> None:
    possible = platform.system() == "Linux" and platform.libc_ver()[0] == "glibc"
    assert (memory.keep_pages(), memory.give_back_pages()) == (possible, possible)

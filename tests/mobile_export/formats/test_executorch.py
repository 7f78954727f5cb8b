"""ExecuTorch programs: written from tiny checkpoints, read again from the file, and compared with transformers."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mobile_export.checkpoint.checkpoints import open_checkpoint
from mobile_export.formats import executorch
from mobile_export.formats.executorch import ExecuTorchRuntime, write_pte
from mobile_export.package import package
from mobile_export.silence import silence
from pocketqa.errors import CorruptFolder, EngineError, OptionsError
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder, sha256_file
from pocketqa.golden import Golden, replay
from pocketqa.reader import Reader
from pocketqa.runtimes import open_runtime
from pocketqa.types import Batch, SpanLogits
from tests.packaged import MAKERS, random_batch, workspace

LENGTHS = (32, 48)


@functools.cache
def model_folder(kind: str) -> Path:
    """A model folder of one layer."""
    place = Path(workspace().name) / "executorch"
    source = MAKERS[kind](place / f"{kind}-checkpoint", layers=1)
    package(str(source), place / kind, say=lambda line: None)
    return place / kind


@functools.cache
def written(kind: str, scheme: str) -> Path:
    """A program of that folder, written once."""
    path = Path(workspace().name) / f"{kind}-{scheme}.pte"
    assert write_pte(open_checkpoint(str(model_folder(kind))), LENGTHS, path, scheme).methods == ("forward_32", "forward_48")
    return path


def difference(kind: str, scheme: str, length: int, filled: int) -> tuple[float, float]:
    """(largest difference from transformers on the tokens, spread of its logits)."""
    folder = ModelFolder(model_folder(kind))
    batch = window(length, filled, folder)
    expected = open_runtime(folder, "pytorch").forward(batch)
    found = ExecuTorchRuntime(written(kind, scheme), threads=1).forward(batch)
    assert found.start.shape == found.end.shape == (1, length) and found.start.dtype == np.float32
    apart = max(float(np.abs(a - b)[0, :filled].max()) for a, b in ((found.start, expected.start), (found.end, expected.end)))
    return apart, float(np.ptp(expected.start[0, :filled]))


def window(length: int, filled: int, folder: ModelFolder) -> Batch:
    """[CLS] question [SEP] passage [SEP] padding, the shape that the graph reads mask and segments off."""
    tokenizer = Tokenizer(folder.tokenizer)
    specials = {name: tokenizer._fast.token_to_id(name) for name in ("[CLS]", "[SEP]")}
    batch = random_batch(1, length)
    sep = filled // 3
    ids, mask = batch.ids.copy(), np.zeros_like(batch.ids)
    ids[0, 0], ids[0, sep], ids[0, filled - 1], ids[0, filled:] = specials["[CLS]"], specials["[SEP]"], specials["[SEP]"], tokenizer.pad_id
    mask[0, :filled] = 1
    types = np.zeros_like(ids)
    types[0, sep + 1 : filled] = 1
    return Batch(ids, types, mask)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize(("length", "filled"), [(32, 32), (32, 9), (48, 30)])
def test_float32_programs_agree_with_transformers(kind, length, filled):
    apart, spread = difference(kind, "fp32", length, filled)
    assert apart < 1e-4 < 1 < spread


def test_int8_programs_stay_near_transformers():
    apart, spread = difference("distilbert", "int8", 48, 30)
    assert 1e-3 < apart < 0.1 * spread  # 8 bits are felt, and no more than felt


def test_int8_takes_three_quarters_off_the_weights():
    parameters = open_checkpoint(str(model_folder("distilbert"))).model.named_parameters()
    weights = 4 * sum(values.numel() for name, values in parameters if "pooler" not in name and "position" not in name)
    fp32, int8 = (written("distilbert", scheme).stat().st_size for scheme in ("fp32", "int8"))
    assert fp32 > weights
    assert fp32 - int8 > 0.5 * weights  # the rest: norms, biases, scales, and the graph's own operations, which weigh more here than in a real model


@pytest.mark.full
def test_two_processes_write_the_same_bytes(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from mobile_export.checkpoint.checkpoints import open_checkpoint; from mobile_export.formats.executorch import write_pte\n"
        "for scheme in ('fp32', 'int8'): write_pte(open_checkpoint(sys.argv[1]), [32, 48], Path(sys.argv[2], scheme), scheme)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(model_folder("distilbert")), str(tmp_path)],
        env=os.environ | {"PYTHONHASHSEED": "1", "PYTHONPATH": str(Path(executorch.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for scheme in ("fp32", "int8"):
        assert sha256_file(tmp_path / scheme) == sha256_file(written("distilbert", scheme))


def test_one_length_holds_the_same_weights_and_replays_the_golden_questions(tmp_path):
    folder = ModelFolder(model_folder("distilbert"))
    one = write_pte(open_checkpoint(str(folder.path)), [384], tmp_path / "one.pte", "int8")
    assert one.methods == ("forward",)
    assert written("distilbert", "int8").stat().st_size < 1.4 * (tmp_path / "one.pte").stat().st_size
    reader = Reader(Tokenizer(folder.tokenizer), ExecuTorchRuntime(tmp_path / "one.pte"))
    assert replay(reader, Golden.load(folder.golden)) == []


def test_info_lengths_and_threads():
    runtime = ExecuTorchRuntime(written("distilbert", "int8"), threads=2)
    assert (runtime.info.engine, runtime.info.precision, runtime.info.threads) == ("executorch", "int8", 2)
    assert runtime.lengths == LENGTHS and runtime.max_batch == 1
    from executorch.extension.pybindings import _C

    assert _C._threadpool_get_thread_count() == 2
    ExecuTorchRuntime(written("distilbert", "int8"), threads=1)
    assert _C._threadpool_get_thread_count() == 1


def test_several_threads_get_their_own_answers():
    folder = ModelFolder(model_folder("distilbert"))
    runtime = ExecuTorchRuntime(written("distilbert", "fp32"), threads=1)
    batches = [window(LENGTHS[i % 2], 10 + i, folder) for i in range(12)]
    expected = [runtime.forward(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for want, found in zip(expected, pool.map(runtime.forward, batches), strict=True):
            np.testing.assert_array_equal(found.start, want.start)
            np.testing.assert_array_equal(found.end, want.end)


def test_batches_that_a_program_does_not_take():
    runtime = ExecuTorchRuntime(written("distilbert", "fp32"))
    for rows, length in ((2, 32), (1, 33)):
        with pytest.raises(EngineError, match=rf"batch of {rows} x {length}: this program takes 1 x 32 or 48"):
            runtime.forward(random_batch(rows, length))
    beyond = random_batch(1, 32)
    with pytest.raises(EngineError, match="cannot compute a batch of 1 x 32"):
        runtime.forward(Batch(beyond.ids + 100_000, beyond.token_types, beyond.mask))
    assert runtime.forward(beyond).start.shape == (1, 32)  # and it goes on


def test_nothing_is_printed(tmp_path):
    path = written("distilbert", "int8")
    code = "import sys; from mobile_export.formats.executorch import ExecuTorchRuntime; print(ExecuTorchRuntime(sys.argv[1]).lengths)"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(32, 48)\n", "")


def test_files_that_are_no_program(tmp_path):
    whole = written("distilbert", "fp32").read_bytes()
    for name, content in {"none": None, "cut": whole[:50_000], "other": b"nothing of the kind" * 100}.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(CorruptFolder, match="ExecuTorch cannot open") as raised:
            ExecuTorchRuntime(path)
        assert "\n" not in str(raised.value)


def test_a_program_of_something_else_is_refused(tmp_path):
    from executorch.exir import to_edge

    class Doubling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    with silence():
        to_edge(torch.export.export(Doubling(), (torch.ones(1, 4),))).to_executorch().save(str(tmp_path / "x.pte"))
    with pytest.raises(EngineError, match="pocketqa export"):
        ExecuTorchRuntime(tmp_path / "x.pte")


def test_a_program_that_computes_something_else_is_not_kept(tmp_path, monkeypatch):
    forward = ExecuTorchRuntime.forward

    def shifted(self: ExecuTorchRuntime, batch: Batch) -> SpanLogits:
        logits = forward(self, batch)
        return SpanLogits(logits.start, logits.end + 0.01)

    monkeypatch.setattr(ExecuTorchRuntime, "forward", shifted)
    with pytest.raises(EngineError, match=r"within 0\.0001 of PyTorch's, found a difference of 0\.0"):
        write_pte(open_checkpoint(str(model_folder("distilbert"))), [32], tmp_path / "x.pte", "fp32")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_the_quantiser_passes_over_are_an_error(tmp_path, monkeypatch):
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer

    monkeypatch.setattr(xnnpack_quantizer.XNNPACKQuantizer, "set_global", lambda self, config: self)
    with pytest.raises(EngineError, match="found 7 of 7 left in float32"):
        write_pte(open_checkpoint(str(model_folder("distilbert"))), [32], tmp_path / "x.pte", "int8")
    assert list(tmp_path.iterdir()) == []


def test_products_that_xnnpack_does_not_take_are_an_error(tmp_path, monkeypatch):
    with silence():
        from executorch.backends.xnnpack.partition import xnnpack_partitioner

    whole = xnnpack_partitioner.XnnpackPartitioner
    products = ("LinearConfig", "AddmmConfig", "MMConfig")
    without = [config for config in xnnpack_partitioner.ALL_PARTITIONER_CONFIGS if config.__name__ not in products]
    monkeypatch.setattr(xnnpack_partitioner, "XnnpackPartitioner", lambda: whole(configs=without))
    with pytest.raises(EngineError, match=r"found aten_.* left to the portable kernels"):
        write_pte(open_checkpoint(str(model_folder("distilbert"))), [32], tmp_path / "x.pte", "fp32")
    assert list(tmp_path.iterdir()) == []


def test_schemes_and_lengths_that_cannot_be(tmp_path):
    checkpoint = open_checkpoint(str(model_folder("distilbert")))
    with pytest.raises(OptionsError, match="fp32, int8 for ExecuTorch, found 'palette4'"):
        write_pte(checkpoint, [32], tmp_path / "x.pte", "palette4")
    with pytest.raises(OptionsError, match="at least one window length"):
        write_pte(checkpoint, [], tmp_path / "x.pte", "fp32")

"""The Neural Engine layout: the same logits as transformers, in the form that Apple describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobile_export.checkpoint.checkpoints import Checkpoint, open_checkpoint
from mobile_export.networks import checks
from mobile_export.networks.ane import LEAST_GAIN, ChannelNorm, as_convolution
from mobile_export.networks.network import export_network
from mobile_export.networks.windows import made_windows
from pocketqa.errors import OptionsError
from pocketqa.golden import Golden
from tests.mobile_export.float16 import decibels, half_logits, package, run
from tests.tiny import tiny_bert, tiny_distilbert, tiny_mobilebert, tiny_tinybert

REPOSITORY = Path(__file__).parents[3]
MAKERS = {"bert": tiny_bert, "distilbert": tiny_distilbert, "tinybert": tiny_tinybert}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("checkpoints")
    return {kind: open_checkpoint(str(make(root / kind))) for kind, make in MAKERS.items()}


def reference(checkpoint: Checkpoint, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return checks._reference(checkpoint.model, checkpoint.vocabulary.markers, ids)


def windows(checkpoint: Checkpoint, length: int) -> list[torch.Tensor]:
    """Without the one of padding alone, whose logits mean nothing."""
    return made_windows(checkpoint.model.config.vocab_size, checkpoint.vocabulary.markers, length)[:-1]


def exported(checkpoint: Checkpoint, lengths: tuple[int, ...], epsilon: float = 0.0) -> Any:
    return export_network(checkpoint.model, checkpoint.vocabulary.markers, lengths, layout="ane", epsilon=epsilon)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("length", [16, 63, 384])
def test_equals_transformers(checkpoints: dict[str, Checkpoint], kind: str, length: int) -> None:
    for ids in windows(checkpoints[kind], length):
        expected = reference(checkpoints[kind], ids)
        assert expected.std() > 0.1
        for lengths in ((length,), (length, 512)):
            with torch.inference_mode():
                start, end = exported(checkpoints[kind], lengths)(ids)
            assert start.shape == end.shape == (1, length)  # the batch is kept, which Apple's own head drops
            torch.testing.assert_close(torch.stack((start, end)), expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_float16_stays_finite_and_close_even_where_all_is_padding(checkpoints: dict[str, Checkpoint], kind: str) -> None:
    network = exported(checkpoints[kind], (64,), epsilon=2.0**-23)
    for ids in windows(checkpoints[kind], 64):
        assert decibels(half_logits(network, ids), reference(checkpoints[kind], ids)) > 50
    assert half_logits(network, torch.zeros((1, 64), dtype=torch.int32)).isfinite().all()


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_the_check_measures_this_layout(checkpoints: dict[str, Checkpoint], kind: str) -> None:
    checkpoint = checkpoints[kind]
    agreement = checks.check_agreement(checkpoint.model, checkpoint.vocabulary.markers, (64, 128), layout="ane")
    assert agreement.transformers < 1e-5
    assert agreement.psnr > 100
    standard = checks.check_agreement(checkpoint.model, checkpoint.vocabulary.markers, (64, 128))
    assert agreement.largest == pytest.approx(standard.largest, rel=1e-3)  # squares inside of a norm, fused in the package, are not counted


@pytest.mark.parametrize(("kind", "target", "lengths"), [("distilbert", "ios16", (64,)), ("bert", "ios18", (32, 64))])
def test_the_package_has_the_form_and_computes_the_model(
    checkpoints: dict[str, Checkpoint], tmp_path: Path, kind: str, target: str, lengths: tuple[int, ...]
) -> None:
    checkpoint = checkpoints[kind]
    program = package(checkpoint, tmp_path, target, lengths, "ane")
    counts = program.operation_types()
    layers, heads = 2, 2
    assert counts["conv"] == 6 * layers + 1 and counts["einsum"] == 2 * heads * layers and counts["softmax"] == heads * layers
    norms = [operation for operation in program.operations if operation.type == "layer_norm"]
    assert len(norms) == 2 * layers + 1 and all({"gamma", "beta"} <= set(norm.inputs) for norm in norms)
    assert not {"linear", "matmul", "reshape", "reduce_mean", "rsqrt", "square"} & set(counts)  # every norm is fused, nothing is reshaped
    for length in lengths:
        for ids in windows(checkpoint, length):  # random weights that float16 must round: the bundled student keeps to Apple's 60, below
            assert decibels(run(program, ids), reference(checkpoint, ids)) > 50


@pytest.mark.full
@pytest.mark.parametrize(("model", "target", "lengths"), [("student", "ios16", (384,)), ("teacher", "ios17", (128, 384))])
def test_packages_of_the_bundled_pair_keep_to_60_decibels(tmp_path: Path, model: str, target: str, lengths: tuple[int, ...]) -> None:
    from transformers import BertTokenizerFast

    checkpoint = open_checkpoint(str(REPOSITORY / "models" / model))
    tokenizer = BertTokenizerFast.from_pretrained(checkpoint.folder)
    program = package(checkpoint, tmp_path, target, lengths, "ane")
    for length in lengths:
        given, expected = [], []
        for golden in Golden.load(checkpoint.folder / "golden.json").questions:
            encoded = tokenizer(
                golden.question, golden.context, max_length=length, padding="max_length", truncation="only_second", return_tensors="pt"
            )
            given.append(run(program, encoded.input_ids))
            expected.append(reference(checkpoint, encoded.input_ids))
        assert decibels(np.stack(given), np.stack(expected)) > 60


@pytest.mark.parametrize("weight", [0.0, 1e-9, -1e-9, -0.5, 1.0])
def test_the_norm_is_layer_norm_whatever_its_weight(weight: float) -> None:
    norm = torch.nn.LayerNorm(8, eps=1e-12)
    torch.nn.init.constant_(norm.weight, weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn((1, 8, 1, 5), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = norm(x.transpose(1, 3)).transpose(1, 3)
        torch.testing.assert_close(ChannelNorm(norm, 0.0)(x), expected, rtol=0, atol=4 * LEAST_GAIN)
    assert ChannelNorm(norm, 1e-6).epsilon == 1e-6


def test_a_convolution_shares_the_weights_of_its_linear_map() -> None:
    linear = torch.nn.Linear(4, 3)
    convolution = as_convolution(linear)
    assert convolution.weight.data_ptr() == linear.weight.data_ptr() and convolution.weight.shape == (3, 4, 1, 1)
    x = torch.randn((1, 5, 4))
    torch.testing.assert_close(convolution(x.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2), linear(x))


def test_mobilebert_has_no_such_layout(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_mobilebert(tmp_path / "mobilebert")))
    with pytest.raises(OptionsError, match=r"--layout standard for a MobileBERT, found ane"):
        exported(checkpoint, (64,))

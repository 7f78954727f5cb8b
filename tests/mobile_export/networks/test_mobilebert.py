"""MobileBERT: the exported network against transformers in every variant, and its values brought back into float16 without loss."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobile_export.checkpoint.checkpoints import Checkpoint, open_checkpoint
from mobile_export.networks import checks
from mobile_export.networks.mobilebert import MobileSpanNetwork
from mobile_export.networks.network import export_network
from mobile_export.networks.windows import FLOAT16_MAX, made_windows
from mobile_export.package import package as package_folder
from pocketqa.errors import EngineError, FolderError
from pocketqa.folders import ModelFolder
from pocketqa.runtimes import open_runtime
from tests.mobile_export.float16 import decibels, half_logits, package, run
from tests.packaged import random_batch
from tests.tiny import MOBILEBERT_VARIANTS, tiny_mobilebert

VARIANTS = {"as published": {}, **MOBILEBERT_VARIANTS, "one token type": {"type_vocab_size": 1}}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(str(tiny_mobilebert(tmp_path_factory.mktemp("mobilebert"))))


def reference(checkpoint: Checkpoint, ids: torch.Tensor, model: Any = None) -> torch.Tensor:
    with torch.inference_mode():
        return checks._reference(model or checkpoint.model, checkpoint.vocabulary.markers, ids)


def windows(checkpoint: Checkpoint, length: int, seed: int = 0) -> list[torch.Tensor]:
    """Without the one of padding alone, whose logits mean nothing."""
    return made_windows(checkpoint.model.config.vocab_size, checkpoint.vocabulary.markers, length, seed)[:-1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_transformers(tmp_path: Path, variant: str) -> None:
    checkpoint = open_checkpoint(str(tiny_mobilebert(tmp_path / "variant", **VARIANTS[variant])))
    for length in (16, 63):
        for lengths in ((length,), (length, 96)):
            network = export_network(checkpoint.model, checkpoint.vocabulary.markers, lengths, epsilon=0.0)
            for ids in windows(checkpoint, length):
                expected = reference(checkpoint, ids)
                assert expected.std() > 0.1
                with torch.inference_mode():
                    torch.testing.assert_close(torch.stack(network(ids)), expected, rtol=1e-5, atol=2e-5)
    agreement = checks.check_agreement(checkpoint.model, checkpoint.vocabulary.markers, (64,))
    assert agreement.psnr > 90


def louder(model: Any, factor: float) -> Any:
    """A copy whose stream of hidden states is `factor` times as large, and whose logits are the same to the last bit if that is a power of two."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for affine in (made.mobilebert.embeddings.LayerNorm, *(layer.output.bottleneck.dense for layer in made.mobilebert.encoder.layer)):
            affine.weight.mul_(factor)
            affine.bias.mul_(factor)
        for layer in made.mobilebert.encoder.layer:
            layer.output.bottleneck.LayerNorm.bias.mul_(factor)
            for reader in (layer.bottleneck.input.dense, layer.bottleneck.attention.dense, layer.attention.self.value):
                reader.weight.div_(factor)
        made.qa_outputs.weight.div_(factor)
    return made


@pytest.mark.parametrize("exponent", [0, 17, 24])
def test_a_stream_beyond_float16_is_scaled_back_without_loss(plain: Checkpoint, exponent: int) -> None:
    model, markers = louder(plain.model, 2.0**exponent), plain.vocabulary.markers
    network = MobileSpanNetwork(model, markers, (64,)).eval()
    ids = windows(plain, 64, seed=1)[1]
    with torch.inference_mode():
        before = torch.stack(network(ids))
    torch.testing.assert_close(before, reference(plain, ids), rtol=0, atol=1e-5)
    assert half_logits(rounded(network), ids).isfinite().all() == (exponent == 0)
    assert (network.fit_range(windows(plain, 64)) > 0) == (exponent > 0)
    with torch.inference_mode():
        torch.testing.assert_close(torch.stack(network(ids)), before, rtol=0, atol=0)  # powers of two: not one bit of a mantissa
    assert decibels(half_logits(rounded(network), ids), reference(plain, ids)) > 50
    assert network.fit_range(windows(plain, 64)) == 0  # once is enough


def rounded(network: MobileSpanNetwork) -> MobileSpanNetwork:
    """A copy with the weights of a float16 package."""
    made = copy.deepcopy(network)
    for values in (*made.parameters(), *made.buffers()):
        if values.is_floating_point():
            values.copy_(values.half())
    return made


def test_every_tensor_of_the_network_may_be_scaled(plain: Checkpoint) -> None:
    """Each of them is made large in turn.  What takes no scale is set to nothing, since it would follow: queries, keys and logits."""
    quiet: Any = copy.deepcopy(plain.model)
    with torch.no_grad():
        for name, values in quiet.named_parameters():
            if "query" in name or "key" in name or "qa_outputs" in name:
                values.zero_()
    maps = [name for name in dict(quiet.named_parameters()) if name.endswith(("dense.weight", "value.weight", "embedding_transformation.weight"))]
    assert len(maps) == 1 + 2 * (5 + 2 * plain.model.config.num_feedforward_networks)
    for name in maps:
        model = copy.deepcopy(quiet)
        with torch.no_grad():
            dict(model.named_parameters())[name][0] *= 2.0**20  # one channel of what this map leaves
        network, largest = MobileSpanNetwork(model, plain.vocabulary.markers, (32,)).eval(), []
        for _ in range(2):
            with checks.Watch(network) as watch, torch.inference_mode():
                for ids in windows(plain, 32):
                    network(ids)
            largest.append(watch.largest)
            network.fit_range(windows(plain, 32))
        assert largest[0] > FLOAT16_MAX > 2 * largest[1], (name, largest, watch.place)


def test_queries_beyond_float16_are_refused_since_a_softmax_takes_no_scale(plain: Checkpoint) -> None:
    model: Any = copy.deepcopy(plain.model)
    attention = model.mobilebert.encoder.layer[1].attention.self
    with torch.no_grad():
        for values in attention.query.parameters():
            values.mul_(2.0**20)
        for values in attention.key.parameters():
            values.mul_(2.0**-20)
    with pytest.raises(EngineError, match=r"leaves float16.*after layers\.1\.query\.weight"):
        checks.check_agreement(model, plain.vocabulary.markers, (64,))


@pytest.mark.parametrize(("target", "lengths"), [("ios15", (48,)), ("ios17", (32, 48))])
def test_the_package_computes_a_model_that_plain_float16_would_not(plain: Checkpoint, tmp_path: Path, target: str, lengths: tuple[int, ...]) -> None:
    loud = open_checkpoint(str(plain.folder))
    loud.model.load_state_dict(louder(plain.model, 2.0**20).state_dict())
    program = package(loud, tmp_path, target, lengths)
    assert not {"layer_norm", "batch_norm"} & set(program.operation_types())
    for length in lengths:
        for ids in windows(plain, length):
            assert decibels(run(program, ids), reference(plain, ids)) > 50
        assert np.isfinite(run(program, torch.zeros((1, length), dtype=torch.int32))).all()


@pytest.mark.parametrize("variant", ["as published", "LayerNorm"])
def test_it_is_packaged_and_served(tmp_path: Path, variant: str) -> None:
    source = tiny_mobilebert(tmp_path / "checkpoint", **VARIANTS[variant])
    made = package_folder(str(source), tmp_path / "model", say=lambda line: None)
    assert made.agreement < 1e-4
    folder, batch = ModelFolder(tmp_path / "model"), random_batch(3, 40)
    given, expected = (open_runtime(folder, engine).forward(batch) for engine in ("onnxruntime", "pytorch"))
    real = batch.mask.astype(bool)
    np.testing.assert_allclose(given.start[real], expected.start[real], rtol=0, atol=1e-4)
    np.testing.assert_allclose(given.end[real], expected.end[real], rtol=0, atol=1e-4)


def test_variants_that_are_not_exported_say_so(plain: Checkpoint) -> None:
    model: Any = copy.deepcopy(plain.model)
    model.config.hidden_act = "silu"
    with pytest.raises(FolderError, match="activation 'silu'"):
        export_network(model, plain.vocabulary.markers, (64,))

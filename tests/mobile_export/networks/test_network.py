"""The network that is exported against the model of transformers, in float32, and alone in float16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mobile_export.checkpoint.checkpoints import Checkpoint, open_checkpoint
from mobile_export.checkpoint.sources import read_config
from mobile_export.checkpoint.vocabulary import Markers
from mobile_export.networks import checks, network, parts
from mobile_export.networks.network import export_network
from pocketqa.errors import EngineError, FolderError, IncompleteFolder, OptionsError
from tests.mobile_export.float16 import half_logits
from tests.tiny import tiny_bert, tiny_distilbert, tiny_tinybert

QUESTION = "Who built the bridge?"
PASSAGE = "The bridge was built by two sisters. It stands to this day, and every spring the river rises to its arches."


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    root = tmp_path_factory.mktemp("checkpoints")
    makers = {"bert": tiny_bert, "distilbert": tiny_distilbert, "tinybert": tiny_tinybert}
    return {kind: open_checkpoint(str(make(root / kind))) for kind, make in makers.items()}


def tokenise(checkpoint: Checkpoint, length: int) -> Any:
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(checkpoint.folder)
    return tokenizer(QUESTION, PASSAGE, max_length=length, padding="max_length", truncation=True, return_tensors="pt")


def logits(checkpoint: Checkpoint, ids: torch.Tensor, lengths: tuple[int, ...], epsilon: float = 0.0) -> torch.Tensor:
    with torch.inference_mode():
        exported = export_network(checkpoint.model, checkpoint.vocabulary.markers, lengths, epsilon=epsilon)
        return torch.stack(exported(ids.int()))  # (2, 1, T)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "tinybert"])
@pytest.mark.parametrize(("length", "padded"), [(16, False), (63, False), (384, True), (511, True)])
def test_equals_transformers_on_real_windows_padded_or_cut(checkpoints: dict[str, Checkpoint], kind: str, length: int, padded: bool) -> None:
    checkpoint = checkpoints[kind]
    encoded = tokenise(checkpoint, length)
    assert bool((encoded["attention_mask"] == 0).any()) == padded  # the others are cut
    assert encoded["token_type_ids"].any()  # made by the tokenizer, derived from the ids by us
    if kind == "distilbert":
        del encoded["token_type_ids"]
    with torch.inference_mode():
        output = checkpoint.model(**encoded)
    reference = torch.stack((output.start_logits, output.end_logits))
    assert reference.std() > 0.1
    for lengths in ((length,), (length, 512)):  # fixed, and with positions cut to the input
        torch.testing.assert_close(logits(checkpoint, encoded["input_ids"], lengths), reference, rtol=0, atol=1e-5)


def test_token_types_matter(checkpoints: dict[str, Checkpoint]) -> None:
    encoded = tokenise(checkpoints["bert"], 384)
    with torch.inference_mode():
        without = checkpoints["bert"].model(**(dict(encoded) | {"token_type_ids": torch.zeros_like(encoded["token_type_ids"])})).start_logits
    assert (logits(checkpoints["bert"], encoded["input_ids"], (384,))[0] - without).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_padding_changes_nothing(checkpoints: dict[str, Checkpoint], kind: str) -> None:
    short, long = (tokenise(checkpoints[kind], length)["input_ids"] for length in (256, 384))
    assert (short[0, -1], long[0, 255]) == (0, 0)
    torch.testing.assert_close(logits(checkpoints[kind], short, (256,)), logits(checkpoints[kind], long, (384,))[..., :256], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_float16_gives_finite_logits_even_on_padding_alone(checkpoints: dict[str, Checkpoint], kind: str) -> None:
    checkpoint = checkpoints[kind]
    safe = export_network(checkpoint.model, checkpoint.vocabulary.markers, (384,))
    for ids in (tokenise(checkpoint, 384)["input_ids"], torch.zeros((1, 384), dtype=torch.int32)):
        assert half_logits(safe, ids).isfinite().all()
    for precision, finite in ((network.MASKED, True), (torch.finfo(torch.float32).min, False)):
        bias = torch.tensor([precision] * 8).half()
        assert bias.softmax(-1).isfinite().all() == finite  # why the mask is not the smallest float32


def test_safe_epsilon_survives_float16_and_is_small(checkpoints: dict[str, Checkpoint]) -> None:
    assert torch.tensor(network.SAFE_EPSILON).half().item() == network.SAFE_EPSILON
    model, markers = checkpoints["bert"].model, checkpoints["bert"].vocabulary.markers
    assert torch.tensor(model.config.layer_norm_eps).half().item() == 0
    epsilons = {module.eps for module in export_network(model, markers, (64,)).modules() if isinstance(module, torch.nn.LayerNorm)}
    assert epsilons == {network.SAFE_EPSILON}


def test_check_passes_and_says_how_close(checkpoints: dict[str, Checkpoint]) -> None:
    for checkpoint in checkpoints.values():
        agreement = checks.check_agreement(checkpoint.model, checkpoint.vocabulary.markers, (64, 128))
        assert agreement.transformers < 1e-5
        assert 0 < agreement.epsilon < 1e-4
        assert agreement.inputs == 6
        assert 100 < agreement.psnr < 200
        assert 1 < agreement.largest < 100  # the mask apart


def test_decibels_worked_by_hand() -> None:
    assert checks._psnr(10.0, 1e-4) == pytest.approx(60.0)  # 100 / 0.0001 is a million
    assert checks._psnr(1.0, 0.0) < float("inf")
    assert checks._psnr(1.0, float("nan")) == -float("inf")


def test_check_notices_another_activation(checkpoints: dict[str, Checkpoint], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parts.ACTIVATIONS, "gelu", parts.ACTIVATIONS["gelu_new"])  # differs from gelu by at most 5e-4
    with pytest.raises(EngineError, match=r"differs from the checkpoint.*Nothing was written"):
        checks.check_agreement(checkpoints["bert"].model, checkpoints["bert"].vocabulary.markers, (64,))


def test_check_notices_a_wrong_pad_id(checkpoints: dict[str, Checkpoint]) -> None:
    checkpoint = checkpoints["bert"]
    right = tokenise(checkpoint, 384)["input_ids"]
    swapped = export_network(checkpoint.model, Markers(pad=1, sep=checkpoint.vocabulary.markers.sep, cls=checkpoint.vocabulary.cls_id), (384,))
    with torch.inference_mode():
        assert (swapped(right.int())[0] - logits(checkpoint, right, (384,))[0]).abs().max() > 1e-2


def test_check_notices_an_epsilon_that_float16_loses(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    model = open_checkpoint(str(tiny_bert(tmp_path / "flat"))).model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embeddings" in name and "LayerNorm" not in name:
                parameter.mul_(1e-3)  # variances of 1e-7, the size of the safe epsilon
    with pytest.raises(EngineError, match="float16 cannot hold"):
        checks.check_agreement(model, checkpoints["bert"].vocabulary.markers, (64,))


def test_check_notices_values_beyond_float16_and_says_where(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    model: Any = open_checkpoint(str(tiny_bert(tmp_path / "loud"))).model
    with torch.no_grad():
        feeding = model.bert.encoder.layer[1]
        feeding.intermediate.dense.weight.mul_(1e5)
        feeding.output.dense.weight.mul_(1e-5)
    with pytest.raises(EngineError, match=r"leaves float16.*after layers\.1\.feed_in\.weight on made-up windows"):
        checks.check_agreement(model, checkpoints["bert"].vocabulary.markers, (64,))


def test_refuses_variants_that_it_does_not_compute(checkpoints: dict[str, Checkpoint], tmp_path: Path) -> None:
    model = open_checkpoint(str(tiny_bert(tmp_path / "odd"))).model
    markers = checkpoints["bert"].vocabulary.markers
    model.prune_heads({0: [1]})
    model.config.hidden_act, model.config.position_embedding_type = "silu", "relative_key"
    with pytest.raises(FolderError, match=r"'silu'.*'relative_key'.*pruned"):
        export_network(model, markers, (64,))
    model.config.model_type = "roberta"
    with pytest.raises(FolderError, match="'roberta': only BERT, DistilBERT and MobileBERT"):
        export_network(model, markers, (64,))
    with pytest.raises(ValueError, match="512 positions"):
        export_network(checkpoints["bert"].model, markers, (513,))
    with pytest.raises(OptionsError, match="standard, ane, found 'gpu'"):
        export_network(checkpoints["bert"].model, markers, (64,), layout="gpu")


def test_fewer_positions_than_a_server_needs_are_enough_for_an_export(tmp_path: Path) -> None:
    folder = tiny_bert(tmp_path / "short", positions=128)
    checkpoint = open_checkpoint(str(folder))
    assert checkpoint.positions == 128
    assert checks.check_agreement(checkpoint.model, checkpoint.vocabulary.markers, (128,)).transformers < 1e-5
    with pytest.raises(FolderError, match="at least 512, found 128"):
        read_config(folder)


def test_a_tinybert_with_pickled_weights_alone_is_told_to_convert_them(tmp_path: Path) -> None:
    folder = tiny_tinybert(tmp_path / "published")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(IncompleteFolder, match=r"only pytorch_model\.bin.*Convert PyTorch weights that you trust"):
        open_checkpoint(str(folder))

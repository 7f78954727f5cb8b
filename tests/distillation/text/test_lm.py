"""Language heads: loaded, refused, grown, and applied to chosen positions as the library applies them to all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    MobileBertConfig,
    MobileBertForMaskedLM,
    PreTrainedModel,
)

from distillation.text import lm
from pocketqa.errors import TrainingError
from tests.tiny import tiny_base, tiny_bert, tiny_distilbert, tiny_mobilebert

V, H = 60, 32


def language_models() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    bert = BertConfig(vocab_size=V, hidden_size=H, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3)
    distilbert = DistilBertConfig(vocab_size=V, dim=H, hidden_dim=64, n_layers=2, n_heads=2, initializer_range=0.3)
    mobilebert = MobileBertConfig(
        vocab_size=V,
        hidden_size=H,
        embedding_size=16,
        intra_bottleneck_size=16,
        intermediate_size=H,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    return [BertForMaskedLM(bert).eval(), DistilBertForMaskedLM(distilbert).eval(), MobileBertForMaskedLM(mobilebert).eval()]


@pytest.mark.parametrize("number", range(3))
def test_chosen_rows_get_the_logits_that_all_positions_get(number: int) -> None:
    model = language_models()[number]
    ids, mask = torch.randint(5, V, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[1, 6:] = 0
    targets = torch.tensor([1, 5, 10, 25])
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits.flatten(0, 1)[targets]
        hidden = lm.hidden_states(model, ids, mask)
        assert torch.allclose(lm.vocabulary_logits(model, hidden.flatten(0, 1)[targets]), expected, atol=1e-5)


@pytest.mark.parametrize("make", [tiny_bert, tiny_base, tiny_distilbert, tiny_mobilebert])
def test_a_checkpoint_without_a_head_is_refused_with_the_command_that_trains_one(tmp_path: Path, make: object) -> None:
    source = str(make(tmp_path / "model"))  # type: ignore[operator]
    with pytest.raises(TrainingError, match=rf"no trained language head .* pocketqa pretrain {source} --corpus TEXT --out {source}-mlm"):
        lm.load_language_model(source)
    assert lm.load_language_model(source, new_head=True).config.vocab_size > 0
    model, missing = lm.load_or_start(source)
    assert missing
    assert tied(model)


def tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_trained_head_is_loaded_with_overrides(tmp_path: Path) -> None:
    model = language_models()[0]
    model.save_pretrained(tmp_path)
    loaded = lm.load_language_model(str(tmp_path), hidden_dropout_prob=0.3)
    assert loaded.config.hidden_dropout_prob == 0.3
    assert lm.load_or_start(str(tmp_path))[1] == []
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))


def test_other_families_and_incomplete_checkpoints_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(TrainingError, match="found model type 'gpt2'"):
        lm.load_language_model(str(tmp_path))
    with pytest.raises(TrainingError, match="neither a model folder nor a Hub model"):
        lm.load_language_model(str(tmp_path / "nothing"))
    source = tiny_base(tmp_path / "base")
    config = (source / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    (source / "config.json").write_text(config)
    with pytest.raises(TrainingError, match="lacks 16 weights of a bert encoder"):
        lm.load_language_model(str(source), new_head=True)


def test_a_grown_model_keeps_head_and_layers(tmp_path: Path) -> None:
    model = language_models()[0]
    deep = lm.grow_language_model(model, 4, "copy")
    source, grown = model.state_dict(), deep.state_dict()
    for layer in range(4):
        name = "attention.self.query.weight"
        assert torch.equal(grown[f"bert.encoder.layer.{layer}.{name}"], source[f"bert.encoder.layer.{layer // 2}.{name}"])
    assert all(torch.equal(grown[key], source[key]) for key in source if "encoder" not in key)
    assert tied(deep)
    same = lm.grow_language_model(model, 2, "copy").eval()
    ids = torch.randint(5, V, (2, 7))
    with torch.no_grad():
        assert torch.equal(same(input_ids=ids).logits, model(input_ids=ids).logits)
    deep.save_pretrained(tmp_path)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path).config.num_hidden_layers == 4
    with pytest.raises(TrainingError, match="Expected a BERT to grow"):
        lm.grow_language_model(language_models()[1], 4, "copy")


def test_the_bias_is_the_parameter_that_the_head_uses() -> None:
    for model in language_models():
        ids = torch.randint(5, V, (1, 6))
        with torch.no_grad():
            before = model(input_ids=ids).logits
            lm.decoder_bias(model).add_(1.0)
            assert torch.allclose(model(input_ids=ids).logits, before + 1.0, atol=1e-5)

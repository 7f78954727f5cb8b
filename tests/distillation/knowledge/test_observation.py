"""What is observed inside a model is what its slow attention path reports, and observing changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distillation.knowledge.observation import layers_of, observe
from distillation.models import modeling
from tests.tiny import tiny_bert, tiny_distilbert, tiny_mobilebert

MAKERS: dict[str, Any] = {"bert": tiny_bert, "distilbert": tiny_distilbert, "mobilebert": tiny_mobilebert}


@pytest.mark.parametrize("family", list(MAKERS))
def test_states_and_scores_are_those_of_the_slow_path(family: str, tmp_path: Path) -> None:
    folder = str(MAKERS[family](tmp_path / family, layers=3))
    ids = torch.arange(5, 25).reshape(2, 10)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    fast: Any = modeling.load_reader(folder).eval()
    slow: Any = modeling.load_reader(folder, _attn_implementation="eager").eval()
    with torch.no_grad():
        plain = fast.base_model(**inputs).last_hidden_state
        seen = observe(fast, inputs, states=True, scores=[0, 2])
        expected = slow.base_model(**inputs, output_hidden_states=True, output_attentions=True)
    assert torch.equal(seen.last, plain)
    if family != "mobilebert":  # it has a slow path only
        assert fast.config._attn_implementation == "sdpa"
    assert len(seen.states) == 4
    for ours, theirs in zip(seen.states, expected.hidden_states, strict=True):
        assert torch.allclose(ours[mask.bool()], theirs[mask.bool()], atol=1e-4)
    assert list(seen.scores) == [0, 2]
    for layer, scores in seen.scores.items():
        shares = torch.softmax(scores.masked_fill(mask[:, None, None, :] == 0, -1e9), dim=-1)
        theirs = expected.attentions[layer]
        assert torch.allclose(shares.transpose(1, 2)[mask.bool()], theirs.transpose(1, 2)[mask.bool()], atol=1e-4)
    assert not any(module._forward_hooks for module in layers_of(fast).modules())


def test_nothing_is_kept_that_is_not_asked_for(tmp_path: Path) -> None:
    model = modeling.load_reader(str(tiny_bert(tmp_path / "bert"))).eval()
    seen = observe(model, {"input_ids": torch.ones(1, 4, dtype=torch.long), "attention_mask": torch.ones(1, 4, dtype=torch.long)}, False, ())
    assert (seen.states, dict(seen.scores)) == ((), {})

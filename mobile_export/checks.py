"""Is the network that will be exported the network of the checkpoint?  Compared in float32, before a package is written.

What a package's own float16 program computes is another question, answered from the saved bytes (`mlprogram.py` reads them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mobile_export.network import SAFE_EPSILON, Markers, Parts, SpanNetwork, parts_of
from pocketqa.errors import EngineError

MAX_DIFFERENCE = 1e-4  # float32 sums in another order differ by some 1e-5 over twelve layers
MAX_EPSILON_EFFECT = 1e-2  # the order of what rounding the operations to float16 costs anyway


@dataclass(frozen=True, slots=True)
class Agreement:
    """Largest differences of the logits, absolute where logits are below 1 and relative to the window's largest logit above.

    transformers: exported network with the checkpoint's own epsilon, against the model of transformers.
    epsilon: the same network with its float16-safe epsilon, against itself with the checkpoint's.
    inputs: how many windows were compared.
    """

    transformers: float
    epsilon: float
    inputs: int


def check_agreement(model: Any, markers: Markers, lengths: Sequence[int], cls_id: int) -> Agreement:
    """Compare the export network of `model` with `model` itself on windows of several fillings; `lengths` ascending.

    Raises EngineError beyond the limits above.
    """
    parts = parts_of(model)
    with torch.inference_mode():
        differences = [_compare(model, parts, markers, lengths, ids) for ids in _windows(parts, markers, cls_id, max(lengths))]
        for length in lengths[:-1]:
            differences.append(_compare(model, parts, markers, lengths, _windows(parts, markers, cls_id, length)[1]))
    agreement = Agreement(max(d for d, _ in differences), max(e for _, e in differences), len(differences))
    if not agreement.transformers <= MAX_DIFFERENCE:
        raise EngineError(
            f"The network to export differs from the checkpoint: expected logits within {MAX_DIFFERENCE:g} of transformers, "
            f"found {agreement.transformers:.3g}. Nothing was written. Please report this with the checkpoint's config.json."
        )
    if not agreement.epsilon <= MAX_EPSILON_EFFECT:
        raise EngineError(
            f"This checkpoint depends on LayerNorm epsilons that float16 cannot hold: raising them to {SAFE_EPSILON:.3g} moves its logits by "
            f"{agreement.epsilon:.3g} (limit {MAX_EPSILON_EFFECT:g}). Nothing was written. Fine-tune it with layer_norm_eps 1e-6 in config.json."
        )
    return agreement


def _compare(model: Any, parts: Parts, markers: Markers, lengths: Sequence[int], ids: Tensor) -> tuple[float, float]:
    """(difference from transformers, effect of the epsilon) on ids (1, T)."""
    exact = torch.stack(SpanNetwork(parts, markers, lengths, epsilon=0.0).eval()(ids))  # (2, 1, T)
    safe = torch.stack(SpanNetwork(parts, markers, lengths).eval()(ids))  # (2, 1, T)
    if ids.eq(markers.pad).all():  # every score is MASKED plus rounding noise, here as in transformers: to be finite is all there is to ask
        return (0.0 if safe.isfinite().all() else float("inf")), 0.0
    reference = _reference(model, markers, ids)  # (2, 1, T)
    unit = max(1.0, _largest(reference))
    return _largest(exact - reference) / unit, _largest(safe - exact) / unit


def _reference(model: Any, markers: Markers, ids: Tensor) -> Tensor:
    """Logits (2, 1, T) of the model of transformers, given the mask and the token types that a tokenizer makes for these ids."""
    mask = ids.ne(markers.pad).long()
    arguments = {"input_ids": ids.long(), "attention_mask": mask}
    if model.config.model_type == "bert":
        seps_before = ids.eq(markers.sep).long().cumsum(-1) - ids.eq(markers.sep).long()  # (1, T) [SEP] tokens strictly before
        arguments["token_type_ids"] = (seps_before.clamp(max=1) * mask).clamp(max=model.config.type_vocab_size - 1)
    output = model(**arguments)
    return torch.stack((output.start_logits, output.end_logits))


def _windows(parts: Parts, markers: Markers, cls_id: int, length: int) -> list[Tensor]:
    """Windows (1, T) `[CLS] question [SEP] passage [SEP] padding` of random words: full, half full, the shortest, and padding alone."""
    generator = torch.Generator().manual_seed(length)
    vocabulary = parts.words.shape[0]
    windows = []
    for filled in (length, max(8, length // 2 + 1), 6):
        ids = torch.randint(vocabulary, (1, length), generator=generator, dtype=torch.int32)
        special = (ids == markers.pad) | (ids == markers.sep)
        ids[special] = next(i for i in range(vocabulary) if i not in (markers.pad, markers.sep, cls_id))
        ids[0, 0], ids[0, filled // 3], ids[0, filled - 1], ids[0, filled:] = cls_id, markers.sep, markers.sep, markers.pad
        windows.append(ids)
    return [*windows, torch.full((1, length), markers.pad, dtype=torch.int32)]


def _largest(difference: Tensor) -> float:
    largest = difference.abs().max().item()
    return float("inf") if largest != largest else largest  # NaN compares false with every limit

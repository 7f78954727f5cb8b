"""The question-answering network as it is exported: plain torch, one input, float16-safe.

Why not trace the model of transformers?  Its forward casts shapes with `int()`, which coremltools 9.0 cannot read beside numpy 2.4
(https://github.com/apple/coremltools/issues/2633); it builds its mask from the smallest float32, which is -infinity in float16 and turns a
fully padded window into NaN; and it takes two or three inputs that the token ids already determine.  These modules hold the same layers, shared
and not copied, in the same order of operations (`mobilebert.py` and `ane.py` say where they depart), and `checks.py` compares the two before
anything is written.

Shapes: B = 1 rows (a phone asks one question at a time), T token positions, H hidden size, A attention heads, D = H / A, F feed-forward size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from mobile_export.checkpoint.vocabulary import Markers
from mobile_export.networks.ane import AneSpanNetwork
from mobile_export.networks.mobilebert import MobileSpanNetwork
from mobile_export.networks.parts import ACTIVATIONS, Layer, Parts, check_exportable, parts_of
from mobile_export.networks.windows import MASKED, SAFE_EPSILON, WindowNetwork, attend, made_windows, safe_norm
from mobile_export.targets import LAYOUTS
from pocketqa.errors import OptionsError

__all__ = ["MASKED", "SAFE_EPSILON", "Markers", "Parts", "SpanNetwork", "WindowNetwork", "export_network", "parts_of"]


def export_network(model: Any, markers: Markers, lengths: Sequence[int], *, layout: str = "standard", epsilon: float = SAFE_EPSILON) -> WindowNetwork:
    """The network to export, in evaluation mode: token ids (1, T) int32 to start and end logits (1, T).

    layout: "standard", or "ane" for Apple's Neural Engine.
    epsilon: least LayerNorm epsilon.  0 is for float32: it keeps the checkpoint's own, and a MobileBERT's values where they are.
    Raises OptionsError for an unknown layout or one that the family does not have, FolderError for variants that are not exported.
    """
    if layout not in LAYOUTS:
        raise OptionsError(f"Expected a layout among {', '.join(LAYOUTS)}, found {layout!r}.")
    check_exportable(model)
    if model.config.model_type == "mobilebert":
        if layout == "ane":
            raise OptionsError(
                "Expected --layout standard for a MobileBERT, found ane: the Neural Engine layout is written for BERT and DistilBERT. "
                "Leave the option out."
            )
        mobile = MobileSpanNetwork(model, markers, lengths, epsilon).eval()
        if epsilon:
            mobile.fit_range(made_windows(model.config.vocab_size, markers, max(lengths)))
        return mobile
    network = SpanNetwork if layout == "standard" else AneSpanNetwork
    return network(parts_of(model), markers, lengths, epsilon).eval()


class SpanNetwork(WindowNetwork):
    """BERT (TinyBERT too, which is a BERT of other sizes) and DistilBERT, each position a row."""

    def __init__(self, parts: Parts, markers: Markers, lengths: Sequence[int], epsilon: float = SAFE_EPSILON) -> None:
        super().__init__(parts.words, parts.positions, parts.token_types, markers, lengths)
        self.embedding_norm = safe_norm(parts.embedding_norm, epsilon)
        self.layers = nn.ModuleList(TransformerLayer(layer, parts.heads, ACTIVATIONS[parts.activation], epsilon) for layer in parts.layers)
        self.span_head = parts.span_head

    def encode(self, words: Tensor, places: Tensor, attention_bias: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end logits (1, T)."""
        hidden = self.embedding_norm(words + places)  # (1, T, H)
        for layer in self.layers:
            hidden = layer(hidden, attention_bias)
        span_logits = self.span_head(hidden)  # (1, T, 2)
        return span_logits[..., 0], span_logits[..., 1]


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each followed by a residual sum and LayerNorm (arXiv 1706.03762, post-norm)."""

    def __init__(self, layer: Layer, heads: int, activation: Callable[[Tensor], Tensor], epsilon: float) -> None:
        super().__init__()
        self.query, self.key, self.value, self.attention_out = layer.query, layer.key, layer.value, layer.attention_out
        self.feed_in, self.feed_out = layer.feed_in, layer.feed_out
        self.attention_norm, self.feed_norm = safe_norm(layer.attention_norm, epsilon), safe_norm(layer.feed_norm, epsilon)
        self.heads, self.width = heads, layer.query.out_features // heads
        self.activation = activation

    def forward(self, hidden: Tensor, attention_bias: Tensor) -> Tensor:
        """(1, T, H) to (1, T, H)."""
        mixed = attend(self.query(hidden), self.key(hidden), self.value(hidden), attention_bias, self.heads, self.width)  # (1, T, H)
        hidden = self.attention_norm(hidden + self.attention_out(mixed))
        output: Tensor = self.feed_norm(hidden + self.feed_out(self.activation(self.feed_in(hidden))))
        return output

"""Is the network that will be exported that of the checkpoint, and does it stay within float16?  Asked in float32, before a package is written.

What a package's own float16 program computes is another question, answered from the saved bytes (`mlprogram.py` reads them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mobile_export.networks.ane import ChannelNorm
from mobile_export.networks.network import MASKED, SAFE_EPSILON, Markers, export_network
from mobile_export.networks.windows import FLOAT16_MAX, made_windows
from pocketqa.errors import EngineError

MAX_DIFFERENCE = 1e-4  # float32 sums in another order differ by some 1e-5 over twelve layers
MAX_EPSILON_EFFECT = 1e-2  # the order of what rounding the operations to float16 costs anyway
MIN_PSNR = 60.0  # decibels; the floor that Apple sets for its own Neural Engine layout (ml-ane-transformers)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Largest differences of the logits, absolute where logits are below 1 and relative to the window's largest logit above.

    transformers: exported network with the checkpoint's own epsilon, against the model of transformers.
    epsilon: the same network with its float16-safe epsilon, against itself with the checkpoint's.
    inputs: how many windows were compared.
    psnr: decibels, 10 log10(peak^2 / mean squared difference), of the network as it is exported against transformers; peak is the largest |logit|.
    largest: the largest |value| that any operation of it gave, the mask apart; float16 ends at 65504.
    """

    transformers: float
    epsilon: float
    inputs: int
    psnr: float
    largest: float


def check_agreement(model: Any, markers: Markers, lengths: Sequence[int], *, layout: str = "standard") -> Agreement:
    """Compare the export network of `model` with `model` itself on windows of several fillings; `lengths` ascending.

    Raises EngineError beyond the limits above, and where a value exceeds float16.
    """
    vocabulary = model.config.vocab_size
    windows = made_windows(vocabulary, markers, max(lengths), seed=1)  # not those that a network's ranges were fitted to
    windows += [made_windows(vocabulary, markers, length, seed=1)[1] for length in lengths[:-1]]
    with torch.inference_mode():
        exact = export_network(model, markers, lengths, layout=layout, epsilon=0.0)
        safe = export_network(model, markers, lengths, layout=layout)
        watch = Watch(safe)
        differences, squares, peak = [], [], 0.0
        for ids in windows:
            with watch:
                given = torch.stack(safe(ids))  # (2, 1, T)
            if ids.eq(markers.pad).all():  # every score is MASKED plus rounding noise, here as in transformers: to be finite is all there is to ask
                differences.append((0.0 if given.isfinite().all() else math.inf, 0.0))
                continue
            reference, own = _reference(model, markers, ids), torch.stack(exact(ids))  # (2, 1, T)
            unit = max(1.0, _largest(reference))
            differences.append((_largest(own - reference) / unit, _largest(given - own) / unit))
            squares.append((given - reference).double().square().flatten())
            peak = max(peak, _largest(reference))
    agreement = Agreement(
        transformers=max(d for d, _ in differences),
        epsilon=max(e for _, e in differences),
        inputs=len(differences),
        psnr=_psnr(peak, torch.cat(squares).mean().item()),
        largest=watch.largest,
    )
    _refuse(agreement, watch.place)
    return agreement


def _refuse(agreement: Agreement, place: str) -> None:
    if not agreement.transformers <= MAX_DIFFERENCE:
        raise EngineError(
            f"The network to export differs from the checkpoint: expected logits within {MAX_DIFFERENCE:g} of transformers, "
            f"found {agreement.transformers:.3g}. Nothing was written. Please report this with the checkpoint's config.json."
        )
    if not (agreement.epsilon <= MAX_EPSILON_EFFECT and agreement.psnr >= MIN_PSNR):
        raise EngineError(
            f"This checkpoint depends on LayerNorm epsilons that float16 cannot hold: raising them to {SAFE_EPSILON:.3g} moves its logits by "
            f"{agreement.epsilon:.3g} (limit {MAX_EPSILON_EFFECT:g}; PSNR {agreement.psnr:.0f} dB, at least {MIN_PSNR:.0f}). "
            "Nothing was written. Fine-tune it with layer_norm_eps 1e-6 in config.json."
        )
    if not agreement.largest <= FLOAT16_MAX:
        raise EngineError(
            f"This checkpoint leaves float16: expected values within {FLOAT16_MAX:g}, found {agreement.largest:.3g} after {place} "
            "on made-up windows. Nothing was written, since a phone would compute infinities. "
            "Serve this model in float32 with: pocketqa package CHECKPOINT --out DIR"
        )


class Watch(TorchFunctionMode):
    """Looks at every operation of a network: `largest` is the largest |value| that one gave, `place` the weights that it used or followed.

    A ChannelNorm counts as one operation, which it is in the package; what a device does inside of a `layer_norm` is not known.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.largest, self.place = 0.0, "the input"
        self._names = {id(values): name for name, values in network.named_parameters()}
        self._recent = self.place
        self._within = False
        for name, module in network.named_modules():
            if isinstance(module, ChannelNorm):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(partial(self._leave, name))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch around each of its functions; what they call themselves is not seen."""
        result = func(*args, **(kwargs or {}))
        if not self._within:
            self._recent = next((self._names[id(argument)] for argument in args if id(argument) in self._names), self._recent)
            self._look(result)
        return result

    def _look(self, result: Any) -> None:
        if isinstance(result, Tensor) and result.is_floating_point():
            masked = (result - MASKED).abs() < -MASKED / 2  # the mask is known to fit; what it was added to counts
            if (peak := _largest(torch.where(masked, result - MASKED, result))) > self.largest:
                self.largest, self.place = peak, self._recent

    def _enter(self, *_: Any) -> None:
        self._within = True

    def _leave(self, name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        self._recent = name
        self._look(output)
        self._within = False


def _reference(model: Any, markers: Markers, ids: Tensor) -> Tensor:
    """Logits (2, 1, T) of the model of transformers, given the mask and the token types that a tokenizer makes for these ids."""
    mask = ids.ne(markers.pad).long()
    arguments = {"input_ids": ids.long(), "attention_mask": mask}
    if model.config.model_type != "distilbert":
        seps_before = ids.eq(markers.sep).long().cumsum(-1) - ids.eq(markers.sep).long()  # (1, T) [SEP] tokens strictly before
        arguments["token_type_ids"] = (seps_before.clamp(max=1) * mask).clamp(max=model.config.type_vocab_size - 1)
    output = model(**arguments, return_dict=True)
    return torch.stack((output.start_logits, output.end_logits))


def _psnr(peak: float, mean_square: float) -> float:
    floor = torch.finfo(torch.float32).tiny  # equal logits would give infinity, which JSON cannot hold
    return 10.0 * math.log10(max(peak * peak, floor) / max(mean_square, floor)) if math.isfinite(mean_square) else -math.inf


def _largest(values: Tensor) -> float:
    largest = values.abs().max().item()
    return math.inf if largest != largest else largest  # NaN compares false with every limit

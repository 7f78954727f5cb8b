"""A bundle with weights of fewer bits: which weight takes which scheme, the package, and the proof that nothing else has changed.

    parts = plan(open_program(bundle.package), "palette4", embeddings="int8")
    compress_bundle(bundle, Path("Student-palette4"), "palette4", {part.name: part.scheme for part in parts})

Decided here, for every scheme: vectors (biases, LayerNorm) and arrays of no more than THRESHOLD values (the span head) stay in float16, where scales
and tables would cost what they save; positions are stored as the words are, to which they are added.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mobile_export.bundle import SPECIFICATION, Bundle, derive_bundle
from mobile_export.compression.constexpr import IOS18, rewrite
from mobile_export.compression.quantisation import BITS, SPARSITY, Form, block_size, channel_axis, quantise, stored_bytes
from mobile_export.formats.coreml import lay_out
from mobile_export.formats.metadata import carried_metadata
from mobile_export.interpreter.decoding import WeightInfo, weights
from mobile_export.interpreter.mlprogram import Constant, Operation, Program, open_program
from pocketqa.errors import EngineError, OptionsError
from pocketqa.types import JSON

THRESHOLD = 2048  # values, as in coremltools
EMBEDDINGS = {
    "int4": ("int8", "each token reads its row as it is stored, without the averaging of a product, so rows keep 8 bits"),
    "sparse": ("int8", "8 bits are smaller than half of the values left out, and nearer to them"),
}
"""Schemes that are not used for the embeddings unless asked for: what is, and why.  The others are."""

SMALL = "biases, norms, small"

Forms = Mapping[str, Form]  # by the name of the weight


@dataclass(frozen=True, slots=True)
class Part:
    """A float constant of a program: the group it belongs to, its scheme, and its bytes in float16 and in the scheme."""

    name: str
    group: str
    shape: tuple[int, ...]
    scheme: str
    before: int
    after: int


def plan(program: Program, scheme: str, embeddings: str | None = None, sparsity: float = SPARSITY) -> list[Part]:
    """What becomes of every weight.  Raises OptionsError for a program that is not all float16, or a sparsity outside 0 to 1."""
    if not 0 < sparsity < 1:
        raise OptionsError(f"Expected --sparsity between 0 and 1, the share of weights that become zero; found {sparsity:g}.")
    embeddings = embeddings or EMBEDDINGS.get(scheme, (scheme, ""))[0]
    chosen = {name: embeddings if group_of(name) in ("word embeddings", "positions") else scheme for name in compressible(program)}
    return parts_of(program, chosen, sparsity)


def parts_of(program: Program, schemes: Mapping[str, str], sparsity: float = SPARSITY) -> list[Part]:
    """Every float constant of a program with the scheme it is given, fp16 where it is given none."""
    parts = []
    for info in weights(program, least=1).values():
        scheme = schemes.get(info.name, "fp16")
        group = group_of(info.name) if _is_large(info) else SMALL
        after = stored_bytes(info.shape, scheme, sparsity, zero_points=program.specification < IOS18)
        parts.append(Part(info.name, group, info.shape, scheme, info.stored_bytes, after))
    return parts


def compressible(program: Program) -> dict[str, WeightInfo]:
    """The weights that a scheme applies to, by name, in program order.  Raises OptionsError where one is compressed already or not float16."""
    found = weights(program, least=1)
    if other := [info.name for info in found.values() if info.scheme != "fp16"]:
        raise OptionsError(
            f"Expected a bundle of scheme fp16, found {found[other[0]].scheme} in {other[0]}. Compress the bundle that `pocketqa export` wrote."
        )
    return {name: info for name, info in found.items() if _is_large(info)}


def group_of(name: str) -> str:
    """The part of the network that a constant belongs to, from the name that the export gave it."""
    layer = re.match(r"layers_(\d+)_(.+)", name)
    if layer:
        part = "attention" if re.search(r"query|key|value|attention", layer[2]) else "feed-forward"
        return f"layer {layer[1]} {part}"
    for start, group in (("words", "word embeddings"), ("position", "positions"), ("token_types", "token types"), ("span_head", "head")):
        if name.startswith(start):
            return group
    return "other"


def table(parts: Sequence[Part]) -> str:
    """The parts by group, as lines of text: how many weights, bytes before and after, schemes."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(re.sub(r"layer \d+ ", "", part.group), []).append(part)
    groups[SMALL] = groups.pop(SMALL, [])  # last
    lines = [f"{'':22}{'weights':>8}{'fp16 bytes':>14}{'bytes after':>14}  scheme"]
    for group, members in [*groups.items(), ("all", list(parts))]:
        schemes = " ".join(dict.fromkeys(part.scheme for part in members)) if group != "all" else ""
        before, after = sum(part.before for part in members), sum(part.after for part in members)
        lines.append(f"{group:22}{len(members):>8}{before:>14,}{after:>14,}  {schemes}".rstrip())
    return "\n".join(lines)


def compress_bundle(
    parent: Bundle,
    path: Path,
    scheme: str,
    schemes: Mapping[str, str],
    *,
    sparsity: float = SPARSITY,
    forms: Forms | None = None,
    replace: bool = False,
) -> Bundle:
    """Write the bundle of `parent` with each weight in its scheme; `scheme` names the whole.  `forms`: those of weights that are quantised already.

    Nothing depends on chance, so the same call leaves the same bytes.  Raises EngineError where the written package is not what it should be.
    """
    known = forms or {}

    def choose(name: str, values: NDArray[Any]) -> Form | None:
        if schemes.get(name, "fp16") == "fp16":
            return None
        return known[name] if name in known else quantise(values, schemes[name], sparsity)

    def make_package(finished: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="pocketqa-compress-") as workshop:
            raw = Path(workshop) / "raw.mlpackage"
            rewrite(parent.package, raw, choose)
            lay_out(raw, finished, carried_metadata(parent.package / SPECIFICATION, scheme))
        check_package(open_program(parent.package), open_program(finished), schemes, sparsity)

    compressed = {name: stored for name, stored in schemes.items() if stored != "fp16"}
    compression: JSON = {"weights": compressed} | ({"sparsity": sparsity} if "sparse" in compressed.values() else {})
    return derive_bundle(parent, path, make_package, scheme=scheme, compression=compression, replace=replace)


def check_package(original: Program, compressed: Program, schemes: Mapping[str, str], sparsity: float = SPARSITY) -> None:
    """Compare a package with the one it was made from, from the saved bytes of both.  Raises EngineError that lists what differs.

    Every weight must be stored in its scheme and decode to within what the scheme allows; all other constants, every operation, inputs, outputs and
    the specification version must be the same.  (Passes of coremltools are known to leave weights they skip changed: pull request 2777.)
    """
    before, after = weights(original, least=1), weights(compressed, least=1)
    problems = [f"{name} is missing" for name in before if name not in after]
    if compressed.specification != original.specification:
        problems.append(f"the specification version is {compressed.specification}, was {original.specification}")
    if _interface(compressed) != _interface(original):
        problems.append("inputs, outputs or the set of operations are not the original's")
    problems += _changed_operations(original, compressed, before.keys())
    for name in before.keys() & after.keys():
        scheme = schemes.get(name, "fp16")
        if after[name].scheme != scheme:
            problems.append(f"{name} is stored as {after[name].scheme}, not as {scheme}")
        elif problem := _difference(before[name].value(), after[name].value(), scheme, sparsity):
            problems.append(f"{name} ({scheme}): {problem}")
    if problems:
        raise EngineError(f"The compressed package is not what it should be, so nothing was written: {'; '.join(sorted(problems)[:5])}.")


def _is_large(info: WeightInfo) -> bool:
    """Whether it is a matrix, table or convolution of enough values, in whose channels there is more than one."""
    within = math.prod(info.shape[channel_axis(info.shape) + 1 :])
    return within > 1 and math.prod(info.shape) > THRESHOLD


def _interface(program: Program) -> tuple[Any, ...]:
    return program.opset, program.inputs, program.outputs


def _changed_operations(original: Program, compressed: Program, names: Collection[str]) -> list[str]:
    """What differs among the operations, constants other than the weights `names` included."""
    was, now = ({op.name: _described(op) for op in program.operations if op.name not in names} for program in (original, compressed))
    if list(was) != list(now):
        return ["the operations are not those of the original, or in another order"]
    return [f"operation {name} is not that of the original" for name in was if was[name] != now[name]]


def _described(operation: Operation) -> tuple[Any, ...]:
    """All that an operation is, in a form that can be compared."""

    def plain(bound: str | Constant) -> Any:
        return bound if isinstance(bound, str) else (bound.dtype, bound.value.shape, bound.value.tobytes())

    inputs = {key: [plain(bound) for bound in group] for key, group in operation.inputs.items()}
    return operation.type, inputs, {key: plain(value) for key, value in operation.attributes.items()}, operation.outputs


def _difference(weight: NDArray[np.float32], decoded: NDArray[np.float32], scheme: str, sparsity: float) -> str:
    """How a decoded weight departs from the original by more than its scheme may, or nothing."""
    if decoded.shape != weight.shape:
        return f"its shape is {decoded.shape}, was {weight.shape}"
    if scheme == "fp16":
        return "" if np.array_equal(decoded, weight) else f"{np.count_nonzero(decoded != weight)} values have changed"
    if scheme == "sparse":
        return _sparse_difference(weight, decoded, int(weight.size * sparsity))
    if scheme.startswith("palette"):
        return _palette_difference(weight.ravel(), decoded.ravel(), 2 ** BITS[scheme])
    channels = weight.shape[channel_axis(weight.shape)]
    blocks = channels if scheme == "int8" else channels * weight.shape[channel_axis(weight.shape) + 1] // block_size(weight.shape)
    step = np.abs(weight).reshape(blocks, -1).max(1, keepdims=True) / np.float32(2 ** (BITS[scheme] - 1) - 1)  # (blocks, 1)
    # half a step, a scale rounded up to the next float16, and the product rounded to float16; of what was wanted, since inf would allow inf
    allowed = step * np.float32(0.5 + 2**-10) + np.abs(weight).reshape(blocks, -1) * np.float32(2**-11) + np.float32(2**-24)
    beyond = np.count_nonzero(~(np.abs(decoded - weight).reshape(blocks, -1) <= allowed))  # the comparison is false for NaN as well
    return f"{beyond} values are further than half a step from the original" if beyond else ""


def _palette_difference(weight: NDArray[np.float32], decoded: NDArray[np.float32], size: int) -> str:
    """Each value must be the nearest of at most `size` entries, and these no worse than as many in equal steps.  weight, decoded: (N,)."""
    entries = np.unique(decoded)
    if len(entries) > size or not np.isfinite(entries).all():
        return f"it has {len(entries)} distinct values, at most {size} finite ones are possible"
    nearest = entries[np.searchsorted((entries[1:] + entries[:-1]) / 2, weight)]  # (N,)
    error = np.abs(decoded - weight)
    if beyond := np.count_nonzero(error > np.abs(nearest - weight) * np.float32(1 + 1e-5)):
        return f"{beyond} values are not the nearest entry of the palette"
    least, step = weight.min(), (weight.max() - weight.min()) / size
    equal = least + (np.clip(np.floor((weight - least) / step), 0, size - 1) + np.float32(0.5)) * step if step else weight  # (N,)
    rounding = weight.size * float(np.abs(weight).max() * 2**-11) ** 2  # of the entries, to float16
    if np.sum(error**2, dtype=np.float64) > np.sum((equal - weight) ** 2, dtype=np.float64) + rounding:
        return "its palette is worse than one in equal steps"
    return ""


def _sparse_difference(weight: NDArray[np.float32], decoded: NDArray[np.float32], zeros: int) -> str:
    """Exactly `zeros` values must have gone, beside those that were zero before, and none larger than one that stayed."""
    gone, stayed = (decoded == 0) & (weight != 0), decoded != 0
    if not np.array_equal(decoded[stayed], weight[stayed]):
        return "values that should stay have changed"
    if np.count_nonzero(gone) > zeros or np.count_nonzero(~stayed) < zeros:
        return f"{np.count_nonzero(gone)} values have become zero, expected {zeros}"
    if gone.any() and stayed.any() and np.abs(weight[gone]).max() > np.abs(weight[stayed]).min():
        return "larger values have become zero than some that stayed"
    return ""

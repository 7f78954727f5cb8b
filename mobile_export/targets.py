"""What each export target may hold: systems, formats, schemes and layouts in one table, enforced here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pocketqa.errors import OptionsError
from pocketqa.types import MAX_WINDOW_TOKENS

MIN_LENGTH = 16
DEFAULT_LENGTHS = (384,)  # of the BERT SQuAD recipe, and of WindowOptions
LAYOUTS = ("standard", "ane")
DEFAULT_LAYOUT = "standard"
MIXED = "mixed"  # a scheme for each weight, chosen among those of the target
SCHEMES = ("fp16", "int8", "palette6", "palette4", "int4", "sparse", MIXED, "fp32")
"""How weights are stored: float16; int8 with a scale a channel; tables of 64 or 16 values with indices of 6 or 4 bits; int4 with a scale a block;
float16 with most values zero, which are left out; float32."""


@dataclass(frozen=True, slots=True)
class Form:
    """What is written: "mlprogram", "neuralnetwork" or "executorch", and the ending of its file or folder."""

    format: str
    suffix: str


PROGRAM = Form("mlprogram", ".mlpackage")
NETWORK = Form("neuralnetwork", ".mlmodel")
EXECUTORCH = Form("executorch", ".pte")


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment target.

    coreml: name of the constant in `coremltools.target`; empty for ExecuTorch.
    specification: version that a program for it has, and the highest that loads there; 0 for ExecuTorch, whose files carry their own.
    minimum_os, devices: the oldest system and phones it serves, for the help text.
    forms: what each scheme is written as.
    layouts: arrangements of the tensors that make sense there.
    """

    name: str
    coreml: str
    specification: int
    minimum_os: str
    devices: str
    forms: dict[str, Form]
    layouts: tuple[str, ...] = LAYOUTS


# Compressed weights came to ML programs with iOS 16 (per-channel int8, palettes, sparse) and iOS 18 (int4 in blocks): coremltools guide, "What's New"
# of its optimisation section.  A pass for them raises an older program's version, and the phone no longer loads it.  Before iOS 16 only the older
# `neuralnetwork` type stores 8 bits.
_BEFORE_IOS16 = {"fp16": PROGRAM, "int8": NETWORK}
_FROM_IOS16 = dict.fromkeys(("fp16", "int8", "palette6", "palette4", "sparse", MIXED), PROGRAM)
_FROM_IOS18 = _FROM_IOS16 | {"int4": PROGRAM}
_ON_EXECUTORCH = {"fp32": EXECUTORCH, "int8": EXECUTORCH}
_STANDARD = (DEFAULT_LAYOUT,)

TARGETS = {
    target.name: target
    for target in (
        Target("iphone7plus", "iOS15", 6, "iOS 15", "iPhone 7 Plus: stops at iOS 15, no Neural Engine for Core ML", _BEFORE_IOS16, _STANDARD),
        Target("ios15", "iOS15", 6, "iOS 15", "iPhone 6s and later", _BEFORE_IOS16),
        Target("ios16", "iOS16", 7, "iOS 16", "iPhone 8 and later", _FROM_IOS16),
        Target("ios17", "iOS17", 8, "iOS 17", "iPhone XS, XR and later", _FROM_IOS16),
        Target("ios18", "iOS18", 9, "iOS 18", "iPhone XS, XR and later, on iOS 18", _FROM_IOS18),
        Target("executorch", "", 0, "iOS 17", "the CPU of any phone, with ExecuTorch's own runtime and XNNPACK", _ON_EXECUTORCH, _STANDARD),
    )
}


def find_target(name: str) -> Target:
    """The target of that name.  Raises OptionsError that lists them."""
    if name not in TARGETS:
        raise OptionsError(f"Expected --target to be one of {', '.join(TARGETS)}; found {name!r}.")
    return TARGETS[name]


def check_scheme(target: Target, scheme: str) -> Form:
    """What the scheme is written as for the target.  Raises OptionsError that names the targets it needs."""
    if scheme not in SCHEMES:
        raise OptionsError(f"Expected --scheme to be one of {', '.join(SCHEMES)}; found {scheme!r}.")
    if scheme not in target.forms:
        needed = ", ".join(other.name for other in TARGETS.values() if scheme in other.forms)
        raise OptionsError(
            f"The scheme {scheme} needs the target {needed}; found {target.name} ({target.minimum_os}), which takes {', '.join(target.forms)}."
        )
    return target.forms[scheme]


def check_layout(target: Target, layout: str, form: Form = PROGRAM) -> str:
    """The layout.  Raises OptionsError where it is unknown or has no place on the target or in the form."""
    if layout not in LAYOUTS:
        raise OptionsError(f"Expected --layout to be one of {', '.join(LAYOUTS)}; found {layout!r}.")
    if layout not in target.layouts:
        needed = ", ".join(other.name for other in TARGETS.values() if layout in other.layouts)
        raise OptionsError(
            f"The layout {layout} is for the Neural Engine and needs the target {needed}; found {target.name} ({target.devices}). "
            f"Export it with --layout {DEFAULT_LAYOUT}."
        )
    if form is NETWORK and layout != DEFAULT_LAYOUT:
        raise OptionsError(
            f"The layout {layout} needs an ML program, and 8 bits before iOS 16 are another type ({NETWORK.format}). "
            f"Export with --scheme fp16 or with --layout {DEFAULT_LAYOUT}."
        )
    return layout


def check_lengths(lengths: Sequence[int], positions: int = MAX_WINDOW_TOKENS) -> tuple[int, ...]:
    """The lengths ascending, without repetitions.  Raises OptionsError outside 16 to 512 or beyond the checkpoint's `positions`.

    Every target takes several lengths: before iOS 18 a program may have one input of enumerated shapes, and ours has one input.
    """
    if not lengths:
        raise OptionsError("Expected a length, such as --length 384 or --lengths 64,128,256,384,512; found none.")
    highest = min(MAX_WINDOW_TOKENS, positions)
    wrong = [length for length in lengths if not MIN_LENGTH <= length <= highest]
    if wrong:
        limit = f"the checkpoint has {positions} positions" if positions < MAX_WINDOW_TOKENS else "the limit of BERT's position table"
        found = ", ".join(map(str, wrong))
        raise OptionsError(
            f"Expected window lengths between {MIN_LENGTH} and {highest} tokens ({limit}), found {found}. Choose with --length or --lengths."
        )
    return tuple(sorted(set(lengths)))

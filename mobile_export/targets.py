"""What each export target may hold: one table, enforced here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

from pocketqa.errors import OptionsError
from pocketqa.types import MAX_WINDOW_TOKENS

MIN_LENGTH = 16
DEFAULT_LENGTHS = (384,)  # of the BERT SQuAD recipe, and of WindowOptions


@dataclass(frozen=True, slots=True)
class Target:
    """A deployment target.

    coreml: name of the constant in `coremltools.target`.
    specification: version that a package for it has; a higher one does not load there.
    devices: the oldest phones it serves, for the help text.
    """

    name: str
    coreml: str
    specification: int
    minimum_os: str
    devices: str


TARGETS = {
    target.name: target
    for target in (
        Target("iphone7plus", "iOS15", 6, "iOS 15", "iPhone 7 Plus, which stops at iOS 15 and has no Neural Engine for Core ML"),
        Target("ios15", "iOS15", 6, "iOS 15", "iPhone 6s and later"),
        Target("ios16", "iOS16", 7, "iOS 16", "iPhone 8 and later"),
        Target("ios17", "iOS17", 8, "iOS 17", "iPhone XS, XR and later"),
        Target("ios18", "iOS18", 9, "iOS 18", "iPhone XS, XR and later, on iOS 18"),
    )
}


def find_target(name: str) -> Target:
    """The target of that name.  Raises OptionsError that lists them."""
    if name not in TARGETS:
        raise OptionsError(f"Expected --target to be one of {', '.join(TARGETS)}; found {name!r}.")
    return TARGETS[name]


def check_lengths(lengths: tuple[int, ...], positions: int = MAX_WINDOW_TOKENS) -> tuple[int, ...]:
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

"""The table of targets, schemes, forms and layouts."""

from __future__ import annotations

import pytest

from mobile_export import targets
from mobile_export.targets import SCHEMES, TARGETS, check_layout, check_lengths, check_scheme, find_target
from pocketqa.errors import OptionsError

# Written here a second time, from Apple's "What's New" of coremltools' optimisation and from what ExecuTorch's XNNPACK takes.
PROGRAM, NETWORK, EXECUTORCH = ("mlprogram", ".mlpackage"), ("neuralnetwork", ".mlmodel"), ("executorch", ".pte")
BEFORE_IOS16 = {"fp16": PROGRAM, "int8": NETWORK}
FROM_IOS16 = dict.fromkeys(("fp16", "int8", "palette6", "palette4", "sparse", "mixed"), PROGRAM)
ALLOWED = {
    "iphone7plus": BEFORE_IOS16,
    "ios15": BEFORE_IOS16,
    "ios16": FROM_IOS16,
    "ios17": FROM_IOS16,
    "ios18": FROM_IOS16 | {"int4": PROGRAM},
    "executorch": {"fp32": EXECUTORCH, "int8": EXECUTORCH},
}


@pytest.mark.parametrize("name", ALLOWED)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_target_takes_its_schemes_and_no_other(name: str, scheme: str) -> None:
    if scheme in ALLOWED[name]:
        form = check_scheme(find_target(name), scheme)
        assert (form.format, form.suffix) == ALLOWED[name][scheme]
    else:
        with pytest.raises(OptionsError, match=f"scheme {scheme} needs the target .*found {name} "):
            check_scheme(find_target(name), scheme)


def test_an_impossible_pair_names_the_target_that_it_needs() -> None:
    assert set(TARGETS) == set(ALLOWED)
    with pytest.raises(OptionsError, match=r"int4 needs the target ios18; found ios17 \(iOS 17\), which takes fp16, int8"):
        check_scheme(find_target("ios17"), "int4")
    with pytest.raises(OptionsError, match=r"palette4 needs the target ios16, ios17, ios18; found iphone7plus"):
        check_scheme(find_target("iphone7plus"), "palette4")
    with pytest.raises(OptionsError, match="fp32 needs the target executorch; found ios16"):
        check_scheme(find_target("ios16"), "fp32")


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(OptionsError, match="iphone7plus, ios15, ios16, ios17, ios18, executorch; found 'ios14'"):
        find_target("ios14")
    with pytest.raises(OptionsError, match=r"fp16, int8, .*; found 'int3'"):
        check_scheme(find_target("ios16"), "int3")
    with pytest.raises(OptionsError, match="standard, ane; found 'nchw'"):
        check_layout(find_target("ios16"), "nchw")


def test_the_neural_engine_layout_needs_a_neural_engine() -> None:
    for name in ("ios15", "ios16", "ios17", "ios18"):
        assert check_layout(find_target(name), "ane") == "ane"
    for name in ("iphone7plus", "executorch"):
        assert check_layout(find_target(name), "standard") == "standard"
        with pytest.raises(OptionsError, match=f"needs the target ios15, ios16, ios17, ios18; found {name}"):
            check_layout(find_target(name), "ane")
    ios15 = find_target("ios15")
    with pytest.raises(OptionsError, match=r"needs an ML program.*neuralnetwork"):
        check_layout(ios15, "ane", check_scheme(ios15, "int8"))


def test_lengths_are_sorted_and_end_at_the_checkpoints_positions() -> None:
    assert check_lengths((128, 64, 128), 128) == (64, 128)
    assert check_lengths(targets.DEFAULT_LENGTHS) == (384,)
    with pytest.raises(OptionsError, match=r"between 16 and 256 tokens \(the checkpoint has 256 positions\), found 384"):
        check_lengths((384,), 256)
    with pytest.raises(OptionsError, match="found none"):
        check_lengths(())

"""What the Swift of a bundle and its how-to say, as far as that shows without a Swift compiler."""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobile_export.checkpoint.checkpoints import open_checkpoint
from mobile_export.formats import howto
from mobile_export.formats.metadata import user_metadata
from mobile_export.targets import TARGETS
from mobile_export.verification.golden import TOLERANCE
from pocketqa.spans import whole_characters
from tests.packaged import model_folder

SWIFT = Path(howto.__file__).parents[1] / "swift" / "QuestionAnswering.swift"
CATEGORIES = {".nonspacingMark": "Mn", ".enclosingMark": "Me", ".spacingMark": "Mc", ".control": "Cc"}
CATEGORIES |= {".spaceSeparator": "Zs", ".lineSeparator": "Zl", ".paragraphSeparator": "Zp", ".connectorPunctuation": "Pc", ".dashPunctuation": "Pd"}
CATEGORIES |= {".openPunctuation": "Ps", ".closePunctuation": "Pe", ".initialPunctuation": "Pi", ".finalPunctuation": "Pf", ".otherPunctuation": "Po"}
MARKS, EMOJI = "\u0301\u0300\u02ff\u093f\u20e3\ufe0f\u200d", "\U0001f469\U0001f680\U0001f3fa\U0001f3fb\U0001f3ff\U0001f400"
JAMO = "\u1112\u1161\u11ab\u0e33\u0eb3\u10ff\u1200"
APART = " \u2028\u2029_-()\u00ab\u00bb.\n"  # one of each category
ALPHABET = f"ab1#{MARKS}{APART}{EMOJI}{JAMO}\U000e001f\U000e0020\U000e007f\U000e0080"


def written(folder: Path, scheme: str) -> str:
    """HOWTO.md of a bundle in that scheme."""
    target = next(name for name, target in TARGETS.items() if scheme in target.forms)
    window = {"max_tokens": 384, "doc_stride": 128, "max_question_tokens": 64}
    tokenizer = {"lowercase": True, "strip_accents": True, "split_ideographs": True}
    config = {"target": target, "scheme": scheme, "layout": "standard", "format": TARGETS[target].forms[scheme].format, "lengths": [384]}
    howto.write_howto(folder, "tiny", "ab12", False, config | {"package": "Tiny.x", "window": window, "tokenizer": tokenizer}, {})
    return (folder / "HOWTO.md").read_text(encoding="utf-8")


def body(name: str) -> str:
    """The lines of a Swift function."""
    found = re.search(rf"^(?:private )?func {name}\(.*?\{{\n(.*?)^\}}", SWIFT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert found, name
    return found[1]


def in_python(swift: str, changes: dict[str, str]) -> str:
    """Swift lines as Python: the few constructions that the rule is made of, each by its pattern."""
    for pattern, replacement in changes.items():
        swift = re.sub(pattern, replacement, swift, flags=re.MULTILINE)
    return swift


def swift_rule() -> Callable[[str, int, int], tuple[int, int]]:
    """`wholeCharacters` of the Swift, translated line by line, so that a change there changes this."""
    both = {r"//.*$": "", r"^    ": "", r"\b(?:let|var) ": "", r"true": "True", r"false": "False", r"&&": "and", r"\|\|": "or"}
    inside = in_python(
        body("isInside"),
        both
        | {r"^(if .*?) \{ (.*) \}\s*$": r"\1: \2", r"scalars\.count": "len(scalars)", r"scalars\[(.*?)\]\.value": r"ord(scalars[\1])"}
        | {r"^switch scalars\[place\]\.properties\.generalCategory \{$": "category = unicodedata.category(scalars[place])", r"^\}$": ""}
        | {r"^case (.*): return (True|False)$": r"if category in names('\1'): return \2", r"^default: break$": ""}
        | {r"\((0x\w+)\.\.\.(0x\w+)\)\.contains\((\w+)\)": r"(\1 <= \3 <= \2)"},
    )
    around = in_python(body("wholeCharacters"), both | {r"^(while .*?) \{ (.*) \}$": r"\1: \2", r"begin\.\.<end": "(begin, end)"})
    constants = re.findall(r"^private let (\w+)(?:: UInt32)? = (\w+)", SWIFT.read_text(encoding="utf-8"), re.MULTILINE)
    scope: dict[str, Any] = {name: int(value, 0) for name, value in constants}
    scope |= {"unicodedata": unicodedata, "names": lambda listed: [CATEGORIES[name] for name in listed.split(", ")]}
    for name, arguments, lines in (("isInside", "scalars, place", inside), ("wholeCharacters", "scalars, begin, end", around)):
        exec("\n    ".join([f"def {name}({arguments}):", *lines.splitlines()]), scope)
    rule: Callable[[str, int, int], tuple[int, int]] = scope["wholeCharacters"]
    return rule


def test_answers_in_an_app_end_where_those_of_this_library_do() -> None:
    rule, draw = swift_rule(), random.Random(0)
    assert rule("e\u0301a", 1, 1) == (0, 2)
    for _ in range(6000):
        text = "".join(draw.choices(ALPHABET, k=draw.randint(0, 8)))
        begin, end = sorted(draw.randint(0, len(text)) for _ in range(2))
        assert rule(text, begin, end) == whole_characters(text, begin, end), ascii(text)
    assert rule("x\u200d" * 90, 80, 81) == whole_characters("x\u200d" * 90, 80, 81) == (48, 113)
    assert "let place = wholeCharacters(scalars, span.start, span.end)" in SWIFT.read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", list(howto.SCHEMES))
def test_the_test_for_the_phone_allows_what_verify_allows(tmp_path: Path, scheme: str) -> None:
    text = written(tmp_path, scheme)
    (given,) = re.findall(r"differences\(fromGolden: .*, tolerance: ([\d.]+)\)", text)
    assert TOLERANCE.get(scheme, 0.3) <= float(given) < 1  # 4 bits differ by more than a quarter in runs/verification-*-palette4-*.json
    assert ("move logits by design" in text) == (scheme not in TOLERANCE)
    assert "tolerance: Float)" in SWIFT.read_text(encoding="utf-8")  # and none is assumed where none is given


def test_an_actor_loads_beside_its_caller_and_may_hand_answers_over(tmp_path: Path) -> None:
    text, swift = written(tmp_path, "fp16"), SWIFT.read_text(encoding="utf-8")
    assert "init(folder: URL) async throws {" in text and "try await Questions(folder: folder)" in text
    assert "private var reader: QuestionReader!" in text  # whole before it loads, so that the load is on the actor
    assert "public struct Answer: Equatable, Sendable {" in swift


def test_the_model_beside_a_manifest_goes_before_one_in_the_app_and_must_be_the_manifests() -> None:
    load = SWIFT.read_text(encoding="utf-8").split("public static func load(")[1].split("private static func compiled(")[0]
    places = ["fileExists(atPath: beside.path)", "fileExists(atPath: source.path)", "Bundle.main.url(forResource: compiledName"]
    assert sorted(places, key=load.index) == places
    checkpoint = open_checkpoint(str(model_folder("distilbert")))
    written = user_metadata(checkpoint, TARGETS["ios16"], [384], "standard", "fp16")
    compared = re.findall(r'\("(pocketqa\.\w+)", settings\.([\w.]+)\)', load)
    assert compared == [("pocketqa.checkpoint_sha256", "parent"), ("pocketqa.scheme", "config.scheme")]
    assert [written[key] for key, _ in compared] == [checkpoint.sha256, "fp16"]


def test_of_no_answers_asked_for_none_is_given() -> None:
    assert "chosen.prefix(max(0, count))" in SWIFT.read_text(encoding="utf-8")  # prefix traps below zero


def test_the_contract_says_when_there_is_no_answer_and_which_unicode(tmp_path: Path) -> None:
    text = written(tmp_path, "fp16")
    assert "less `no_answer.threshold`" in text and "Unicode 8" in text


def test_the_folder_is_found_whether_xcode_keeps_it_or_not(tmp_path: Path) -> None:
    text = written(tmp_path, "fp16")
    assert text.count('Bundle.main.url(forResource: "Tiny", withExtension: nil) ?? Bundle.main.resourceURL') == 3
    assert "*Build Folder Contents*" in text and "*Default Actor Isolation*" in text


def test_what_an_app_asks_wrongly_is_thrown_and_what_it_compiles_is_kept() -> None:
    swift = SWIFT.read_text(encoding="utf-8")
    assert "if allowNoAnswer && !settings.noAnswer.trained { throw QuestionError.noAnswerUntrained }" in swift
    assert swift.count("MLModel.compileModel(") == 1 and "moveItem(at: made, to: kept)" in swift

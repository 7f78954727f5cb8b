"""The Swift of a bundle, compiled and run: tokens, windows and answers are those of this library, and what HOWTO.md says to write compiles.

It needs a Swift compiler: `swiftc`, or POCKETQA_SWIFT with the words that run a command where there is one, which sees the same files:
    POCKETQA_SWIFT="docker run --rm -v /tmp:/tmp -v $PWD:$PWD swift:6.0" make test-full
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobile_export import benchmark
from mobile_export.timing.latency import read_latency
from pocketqa import report
from pocketqa.errors import PocketQAError
from pocketqa.features import Tokenizer
from pocketqa.folders import sha256_file
from pocketqa.reader import Reader
from pocketqa.spans import longest_safe_answer
from pocketqa.types import Batch, NoAnswer, Request, RuntimeInfo, SpanLogits, SpanOptions, WindowOptions
from tests.conftest import NO_SWIFT
from tests.mobile_export.bundles import bundle_of
from tests.mobile_export.formats.test_swift import SWIFT, written
from tests.packaged import model_folder

STUDENT = Path(__file__).resolve().parents[3] / "models" / "student"
TIMING = SWIFT.with_name("Timing.swift")
OURS = Path(__file__).with_name("swift")
WINDOW = {"max_tokens": 64, "doc_stride": 21, "max_question_tokens": 16}
LONGEST = longest_safe_answer(WINDOW["doc_stride"])
WORDS = (STUDENT / "vocab.txt").read_text(encoding="utf-8").splitlines()[1996:12000]
ODD = [
    "É", "e\u0301", "\u1e9b\u0323", "İ", "ß", "ﬁ", "Ǆ", "ό", "Ω", "中", "文字", "\U00020000",
    "\u3400", "ひらがな", "カ゛", "한국어", "\u1112\u1161\u11ab", "ไทยกำ", "لعربية", "עִבְרִית",
    "हिन्दी", "അവന്\u200d", "\U0001f469\u200d\U0001f680", "\U0001f44d\U0001f3fd", "\U0001f1e9\U0001f1ea",
    "☃\ufe0f", "[SEP]", "[UNK]", "##ing", "$5.00", "a-b_c", "«x»", "…", "—", "'s",
    "\u00ad", "\u200b", "\ufeff", "\ufffd", "\x00", "\x07", "\u2028", "\u3000", "\u00a0",
    "\t", "\r\n", "x" * 101, "é" * 100, "1/2", "½", "Å", "\u212b", "ſ",
]  # fmt: skip

CALLER = """
@MainActor func ask(_ folder: URL) async throws -> String {
    let questions = try await Questions(folder: folder)
    return try await questions.answer("Who built it?", in: "Ada built it.").text
}
"""

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]


def there(*words: str) -> subprocess.CompletedProcess[str]:
    """A command where Swift is."""
    return subprocess.run([*shlex.split(os.environ.get("POCKETQA_SWIFT", "")), *words], capture_output=True, text=True, timeout=240)


def swiftc(*words: str | Path) -> None:
    """Compile without a word of complaint."""
    done = there("swiftc", *map(str, words))
    assert done.returncode == 0 and not done.stderr, done.stderr


@pytest.fixture(scope="module", autouse=True)
def compiler() -> None:
    """Skips where there is none."""
    if not os.environ.get("POCKETQA_SWIFT") and shutil.which("swiftc") is None:
        pytest.skip(NO_SWIFT)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that puts questions to the Swift of a bundle."""
    out = tmp_path_factory.mktemp("swift") / "probe"
    swiftc("-O", "-parse-as-library", "-o", out, OURS / "probe.swift", SWIFT, TIMING)
    return out


class Made:
    """A runtime whose logits follow from ids and positions alone, as in probe.swift."""

    info = RuntimeInfo("made", "1", "fp32", 1)
    lengths = (WINDOW["max_tokens"],)
    max_batch = None

    def forward(self, batch: Batch) -> SpanLogits:
        """(B, T)."""
        places = np.arange(batch.shape[1]) * 104_729  # (T,)
        start, end = (((batch.ids.astype(np.int64) * factor + places) % 2003).astype(np.float32) / np.float32(128) for factor in (7919, 6271))
        return SpanLogits(start, end)


def ask(probe: Path, folder: Path, texts: Sequence[str], cases: Sequence[tuple[str, str, int, bool]]) -> Any:
    """What an app with that bundle finds."""
    asked = [{"question": q, "context": c, "count": n, "allowNoAnswer": allowed} for q, c, n, allowed in cases]
    (folder / "input.json").write_text(json.dumps({"texts": texts, "cases": asked}), encoding="utf-8")
    done = there(str(probe), str(folder), str(folder / "input.json"))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def bundle(folder: Path, no_answer: NoAnswer, model: Path = STUDENT) -> Path:
    """What an app reads of a bundle, with the vocabulary of a model folder: of the bundled student, or cased."""
    folder.mkdir()
    shutil.copy(model / "vocab.txt", folder)
    manifest = json.loads((bundle_of("bert") / "manifest.json").read_bytes())
    settings = {"lowercase": model == STUDENT, "strip_accents": model == STUDENT, "split_ideographs": True}
    manifest["config"] |= {"window": WINDOW, "lengths": list(Made.lengths), "tokenizer": settings}
    manifest["no_answer"] = {"trained": no_answer.trained, "threshold": no_answer.threshold}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def text_of(draw: random.Random, parts: int) -> str:
    """So many words and oddities."""
    kinds = (lambda: draw.choice(WORDS), lambda: draw.choice(WORDS).title(), lambda: draw.choice(ODD))
    return "".join(draw.choice(kinds)() + draw.choice(["", " ", " ", ", "]) for _ in range(parts))


@pytest.mark.parametrize("scheme", ["fp16", "fp32"])  # of Core ML and of ExecuTorch
def test_the_swift_of_a_bundle_and_of_its_how_to_compiles(tmp_path: Path, scheme: str) -> None:
    """Without a warning as Swift 5 and 6: the app, its tests, and those that time.  Where there is no Core ML, beside as much of it as is named."""
    blocks = re.findall(r"```swift\n(.*?)```", written(tmp_path, scheme), re.DOTALL)
    golden, timing = (next(block for block in blocks if name in block) for name in ("func testGoldenVectors", "func testHowLong"))
    others = [block for block in blocks if block not in (golden, timing)]
    app = ["import Foundation", *others, CALLER, "struct Task { let title: String }"]
    engine = [block for block in others if "import ExecuTorch" in block]
    for name, parts in (("App", app), ("Golden", [golden]), ("Time", [timing, *engine])):
        (tmp_path / f"{name}.swift").write_text("\n".join(parts), encoding="utf-8")
    modules = ["ExecuTorch", "XCTest"] if sys.platform == "darwin" else ["CoreML", "CryptoKit", "ExecuTorch", "XCTest"]
    for module in modules:
        swiftc("-emit-module", "-module-name", module, "-emit-module-path", tmp_path / f"{module}.swiftmodule", OURS / f"{module}.swift")
    for version in ("5", "6"):
        strict = ("-swift-version", version, "-enable-upcoming-feature", "ExistentialAny", "-I", tmp_path)
        place = tmp_path / "YourApp.swiftmodule"
        swiftc("-emit-module", "-enable-testing", "-module-name", "YourApp", "-emit-module-path", place, *strict, SWIFT, tmp_path / "App.swift")
        swiftc("-typecheck", *strict, tmp_path / "Golden.swift")
        swiftc("-typecheck", *strict, SWIFT, TIMING, tmp_path / "Time.swift")


@pytest.mark.parametrize("cased", [False, True])
def test_tokens_are_those_of_the_original_tokenizer(probe: Path, tmp_path: Path, cased: bool) -> None:
    model = model_folder("bert", cased=True) if cased else STUDENT
    draw, tokenizer = random.Random(0), Tokenizer(model / "tokenizer.json")
    texts = [*ODD, *(text_of(draw, draw.randint(1, 12)) for _ in range(3000))]
    found = ask(probe, bundle(tmp_path / "bundle", NoAnswer(), model), texts, [])["tokens"]
    for text, tokens in zip(texts, found, strict=True):
        window = tokenizer.encode([Request("?", (f"{text}.",))], WindowOptions(512)).windows[0]
        expected = [[int(i), *map(int, place)] for i, place in zip(window.ids[window.context_mask], window.offsets[window.context_mask], strict=True)]
        assert tokens == expected[:-1], ascii(text)  # the full stop is there since no passage may be without a token


@pytest.mark.parametrize("no_answer", [NoAnswer(), NoAnswer(True, 1.5), NoAnswer(True)], ids=["untrained", "threshold", "trained"])
def test_windows_and_answers_are_those_of_this_library(probe: Path, tmp_path: Path, no_answer: NoAnswer) -> None:
    draw = random.Random(1)
    reader = Reader(Tokenizer(STUDENT / "tokenizer.json"), Made(), no_answer=no_answer)
    cases = [
        (
            text_of(draw, draw.randint(1, 6)),
            text_of(draw, draw.choice([1, 5, 30, 120])),
            draw.choice([1, 3, 8]),
            no_answer.trained and draw.random() < 0.5,
        )
        for _ in range(400)
    ]
    found = ask(probe, bundle(tmp_path / "bundle", no_answer), [], cases)["cases"]
    answered = 0
    for (question, context, count, allowed), one in zip(cases, found, strict=True):
        try:
            request = Request(question, (context,))
            encoded = reader.encode([request], WindowOptions(**WINDOW))
            expected = reader.decode(encoded, reader.forward(encoded), SpanOptions(LONGEST, count, allowed))[0].answers
        except PocketQAError as error:
            assert one["error"], (error, question, context)
            continue
        assert not one["error"], (one["error"], question, context)
        assert one["windows"] == [window.ids.tolist() for window in encoded.windows]
        places = [(len(context[: a.start].encode("utf-16-le")) // 2, len(a.text.encode("utf-16-le")) // 2) for a in expected]
        assert [(a["text"], (a["location"], a["length"]), a["isNoAnswer"]) for a in one["answers"]] == [
            (a.text, place, a.is_no_answer) for a, place in zip(expected, places, strict=True)
        ]
        assert [a["score"] for a in one["answers"]] == pytest.approx([a.score for a in expected], abs=1e-6)
        answered += len(encoded.windows) > 1
    assert answered > 100


def test_golden_vectors_agree_with_themselves(probe: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle_of("bert"), tmp_path / "bundle")
    assert ask(probe, folder, [], [])["differences"] == []
    golden = json.loads((folder / "golden.json").read_bytes())
    golden["questions"][0]["windows"][0]["start_logits"][0] += 100.0  # of [CLS] in the file and in what the model is said to compute: both move
    golden["texts"][0]["ids"][0] += 1
    (folder / "golden.json").write_text(json.dumps(golden), encoding="utf-8")
    (difference,) = ask(probe, folder, [], [])["differences"]
    assert difference.startswith("The tokens of ")


def test_what_is_timed_on_a_phone_is_a_run_file_of_this_library(probe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two bundles in turns, of which the first takes longer: the probe's models sleep for 3 ms and for 1 ms a window."""
    first, second = (shutil.copytree(bundle_of("bert"), tmp_path / name) for name in ("slow", "quick"))
    for folder in (first, second):
        manifest = json.loads((folder / "manifest.json").read_bytes()) | {"name": folder.name}
        (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    done = there(str(probe), str(first), str(second))
    assert done.returncode == 0, done.stderr
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "phone.json").write_text(done.stdout, encoding="utf-8")
    run = read_latency(tmp_path / "runs" / "phone.json")
    assert benchmark.main(["--check", str(tmp_path / "runs" / "phone.json")]) == 0
    assert "rapid, at least 64 queries and 6 s: valid" in capsys.readouterr().out

    r, slow, quick = run.results, "slow, made fp16", "quick, made fp16"
    golden = json.loads((first / "golden.json").read_bytes())["questions"]
    assert set(r["timings"]) == {slow, quick}
    assert (run.data[0].name, run.data[0].count, run.data[0].sha256) == ("golden.json", len(golden), sha256_file(first / "golden.json"))
    assert [subject.sha256 for subject in run.subjects] == [manifest["parent"]] * 2
    assert r["bytes"][slow]["package"] == sum(path.stat().st_size for path in (first / manifest["config"]["package"]).rglob("*") if path.is_file())
    assert r["queries"][slow] == r["queries"][quick] == r["timings"][slow]["count"] >= 64 and r["seconds"][quick] >= 6
    lengths = [[len(window["ids"]) for window in question["windows"]] for question in golden]
    assert min(map(sum, lengths)) <= r["tokens"][slow]["mean"] <= max(map(sum, lengths))
    for label, nap in ((slow, 3), (quick, 1)):
        stages = r["stages"][label]
        assert stages["forward"]["p50"] >= nap and r["load_seconds"][label]["warm"] > 0 and r["first_run_seconds"][label]["cold"] >= nap / 1e3
        assert sum(stages[stage]["mean"] for stage in ("tokenise", "forward", "decode")) == pytest.approx(r["timings"][label]["mean"], rel=1e-2)
        assert r["quantiles"][label][50] == r["timings"][label]["p50"] and r["quantiles"][label] == sorted(r["quantiles"][label])
    name = f"{slow} / {quick}"
    for kind, share, of in (("ratios", 50, None), ("p90_ratios", 90, None), ("forward_ratios", 50, "forward")):
        found = r[kind][name]
        measured = [(r["stages"][label][of] if of else r["timings"][label])[f"p{share}"] for label in (slow, quick)]
        assert found["low"] <= found["value"] <= found["high"] and found["value"] == pytest.approx(measured[0] / measured[1], rel=1e-3)
    assert r["forward_ratios"][name]["low"] > 1
    assert report.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "RESULTS.md"), "--no-readme"]) == 0
    assert f"| {slow}" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")

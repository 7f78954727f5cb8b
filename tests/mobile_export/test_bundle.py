"""Bundles: what is in them, what refuses to open, and what is made from them."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobile_export.bundle import Bundle, derive_bundle, open_bundle, package_name, sizes
from mobile_export.checkpoint.checkpoints import open_checkpoint
from mobile_export.formats import howto
from mobile_export.formats.coreml import lay_out
from mobile_export.formats.metadata import carried_metadata
from mobile_export.formats.vectors import AWKWARD_TEXTS, golden_vectors, read_vectors
from mobile_export.interpreter.mlprogram import open_program
from mobile_export.targets import TARGETS
from mobile_export.verification.golden import replay_vectors
from pocketqa.errors import CorruptFolder, EngineError, FolderError, IncompleteFolder, OptionsError
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder
from pocketqa.reader import Reader
from pocketqa.runtimes import Runtime, open_runtime
from pocketqa.types import Batch, NoAnswer, SpanLogits, WindowOptions
from tests.mobile_export.bundles import SPECIFICATION, bundle_of, copy_of_bundle
from tests.packaged import model_folder


@pytest.fixture
def bundle() -> Bundle:
    return open_bundle(bundle_of("distilbert"))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return copy_of_bundle("distilbert", tmp_path / "bundle")


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def edit_manifest(folder: Path, **config: Any) -> None:
    file = folder / "manifest.json"
    manifest = json.loads(file.read_bytes())
    manifest["config"] |= config
    file.write_text(json.dumps(manifest), encoding="utf-8")


def test_a_bundle_says_what_it_is(bundle: Bundle) -> None:
    package = {f"TinyDistilbert.mlpackage/{name}" for name in ("Manifest.json", SPECIFICATION, "Data/com.apple.CoreML/weights/weight.bin")}
    beside = {"vocab.txt", "tokenizer.json", "golden.json", "trace.json", "HOWTO.md", "QuestionAnswering.swift", "Timing.swift", "manifest.json"}
    assert names(bundle.path) == package | beside
    assert (bundle.name, bundle.target.name, bundle.scheme, bundle.layout, bundle.format) == (
        "tiny-distilbert",
        "ios16",
        "fp16",
        "standard",
        "mlprogram",
    )
    assert (bundle.lengths, bundle.window, bundle.no_answer) == ((96,), WindowOptions(96, 32, 24), NoAnswer())
    assert bundle.model_hash == json.loads((model_folder("distilbert") / "manifest.json").read_bytes())["files"]["model.safetensors"]
    assert (bundle.manifest.config["specification"], bundle.manifest.config["model_type"]) == (7, "distilbert")
    assert bundle.vocabulary.read_text(encoding="utf-8") == (model_folder("distilbert") / "vocab.txt").read_text(encoding="utf-8")
    assert not re.search(r"20\d\d-\d\d-\d\d", (bundle.path / "manifest.json").read_text(encoding="utf-8"))


def test_sizes_are_those_on_disk_and_of_a_real_archive(bundle: Bundle, tmp_path: Path) -> None:
    files = sorted(file for file in bundle.package.rglob("*") if file.is_file())
    with zipfile.ZipFile(tmp_path / "package.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.relative_to(bundle.path))
    found = sizes(bundle)
    assert found["package"] == sum(file.stat().st_size for file in files)
    assert found["weights"] == next(file.stat().st_size for file in files if file.name == "weight.bin")
    assert found["zipped"] == pytest.approx((tmp_path / "package.zip").stat().st_size, rel=1e-3)  # streamed entries have a few bytes more


@pytest.mark.parametrize("name", ["vocab.txt", "golden.json", "QuestionAnswering.swift", f"TinyDistilbert.mlpackage/{SPECIFICATION}"])
def test_a_changed_byte_refuses_to_open(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(CorruptFolder, match=re.escape(name) + r".*pocketqa export CHECKPOINT --target ios16 --out .* --force"):
        open_bundle(copy)


def test_what_is_no_whole_bundle_says_how_to_make_one(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(IncompleteFolder, match=r"found nothing.*pocketqa export CHECKPOINT --target ios16"):
        open_bundle(tmp_path / "absent")
    with pytest.raises(IncompleteFolder, match="found a bare package"):
        open_bundle(copy / "TinyDistilbert.mlpackage")
    with pytest.raises(FolderError, match=r"found a model.*pocketqa export "):
        open_bundle(model_folder("distilbert"))
    (copy / "tokenizer.json").unlink()
    with pytest.raises(IncompleteFolder, match=r"tokenizer\.json missing"):
        open_bundle(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(IncompleteFolder, match=r"no manifest\.json"):
        open_bundle(copy)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"scheme": "palette4", "target": "ios15"}, "palette4 needs the target ios16"),
        ({"format": "executorch"}, "format mlprogram, found executorch"),
        ({"layout": "ane", "target": "iphone7plus"}, "layout ane"),
        ({"lengths": [64]}, "windows of 96 tokens exceed"),
        ({"package": "Other.mlpackage"}, r"Other\.mlpackage"),
        ({"window": {"tokens": 96}}, "contradicts itself"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(copy: Path, config: dict[str, Any], message: str) -> None:
    edit_manifest(copy, **config)
    with pytest.raises(CorruptFolder, match=message):
        open_bundle(copy)


def copy_package(bundle: Bundle, path: Path) -> None:
    """The package of a bundle, written again."""
    raw = path.parent / "raw.mlpackage"
    shutil.copytree(bundle.package, raw)
    lay_out(raw, path, carried_metadata(bundle.package / SPECIFICATION, "palette4"))
    shutil.rmtree(raw)


def test_a_derived_bundle_shares_what_is_the_checkpoints(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "derived"
    made = derive_bundle(bundle, out, lambda path: copy_package(bundle, path), scheme="palette4", compression={"bits": 4})
    derived = open_bundle(out)
    assert names(out) == names(bundle.path)
    for shared in ("vocabulary", "tokenizer", "golden"):
        assert getattr(derived, shared).read_bytes() == getattr(bundle, shared).read_bytes()
    assert (derived.scheme, derived.manifest.config["compression"], derived.model_hash) == ("palette4", {"bits": 4}, bundle.model_hash)
    assert derived.manifest == made.manifest
    assert "tables of 16 values" in (out / "HOWTO.md").read_text(encoding="utf-8")
    weights = "Data/com.apple.CoreML/weights/weight.bin"
    assert (derived.package / weights).read_bytes() == (bundle.package / weights).read_bytes()
    before, after = open_program(bundle.package).metadata, open_program(derived.package).metadata
    assert {key: (before[key], after[key]) for key in before if before[key] != after[key]} == {"pocketqa.scheme": ("fp16", "palette4")}


def test_a_scheme_or_version_that_the_target_does_not_load_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="int4 needs the target ios18; found ios16"):
        derive_bundle(bundle, tmp_path / "derived", lambda path: copy_package(bundle, path), scheme="int4", compression={})

    def raise_version(path: Path) -> None:
        from coremltools.proto import Model_pb2

        copy_package(bundle, path)
        model: Any = Model_pb2.Model()
        model.ParseFromString((path / SPECIFICATION).read_bytes())
        model.specificationVersion = 8  # what some passes do unasked
        (path / SPECIFICATION).write_bytes(model.SerializeToString())

    with pytest.raises(EngineError, match=r"version 7 or less, which ios16 loads, found 8.*Nothing was written"):
        derive_bundle(bundle, tmp_path / "derived", raise_version, scheme="int8", compression={})
    assert list(tmp_path.iterdir()) == []


def test_only_bundles_are_replaced(bundle: Bundle, copy: Path, tmp_path: Path) -> None:
    def again(path: Path, replace: bool) -> None:
        derive_bundle(bundle, path, lambda package: copy_package(bundle, package), scheme="int8", compression={}, replace=replace)

    with pytest.raises(FolderError, match="--force"):
        again(copy, replace=False)
    again(copy, replace=True)
    assert open_bundle(copy).scheme == "int8"
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "cat.jpg").write_bytes(b"...")
    with pytest.raises(FolderError, match="something else than a bundle"):
        again(tmp_path / "photographs", replace=True)
    with pytest.raises(FolderError, match="found a file"):
        again(tmp_path / "photographs" / "cat.jpg", replace=True)


def test_names_of_models_are_names_of_classes() -> None:
    assert package_name("student", ".mlpackage") == "Student.mlpackage"
    assert package_name("distilbert-base_cased squad", ".pte") == "DistilbertBaseCasedSquad.pte"
    assert package_name("6-layer", ".mlmodel") == "Model6Layer.mlmodel"
    assert package_name("学生", ".pte") == "Model.pte"


def test_no_model_takes_the_name_of_a_type_of_the_app() -> None:
    assert [package_name(name, ".pte") for name in ("answer", "data", "string", "questions")] == [
        "AnswerQA.pte",
        "DataQA.pte",
        "StringQA.pte",
        "QuestionsQA.pte",
    ]
    ours = "".join(howto._template(name) for name in ("QuestionAnswering.swift", "Timing.swift", "HOWTO.md", "executorch.md"))
    own = re.findall(r"^(?:(?:public|private) )?(?:final )?(?:actor|class|enum|protocol|struct) (\w+)", ours, re.MULTILINE)
    assert len(own) > 10 and all(package_name(name, "") == f"{name}QA" for name in own)


def test_golden_vectors_are_what_transformers_computes(bundle: Bundle) -> None:
    model = open_checkpoint(str(model_folder("distilbert"))).model
    document = read_vectors(bundle.golden)
    assert document["window"] == {"max_tokens": 96, "doc_stride": 32, "max_question_tokens": 24}
    assert max(len(question["windows"]) for question in document["questions"]) > 1
    for question in document["questions"]:
        windows = question["windows"]
        with torch.inference_mode():
            outputs = [model(input_ids=torch.tensor([window["ids"]])) for window in windows]
        for window, output in zip(windows, outputs, strict=True):
            assert len(window["ids"]) <= 96
            np.testing.assert_allclose(window["start_logits"], output.start_logits[0], rtol=0, atol=1e-4)
            np.testing.assert_allclose(window["end_logits"], output.end_logits[0], rtol=0, atol=1e-4)
        answer, context = question["answer"], question["context"]
        assert answer["text"] == context[answer["start"] : answer["end"]]
        units = context.encode("utf-16-le")
        assert units[2 * answer["utf16_start"] : 2 * answer["utf16_end"]].decode("utf-16-le") == answer["text"]
        assert 0 < answer["score"] <= 1
        assert question["gap"] >= 0


class Shifting:
    """Another runtime's logits, moved at the last position of each window or at that of [CLS]."""

    def __init__(self, inner: Runtime, place: int) -> None:
        self._inner, self._place = inner, place
        self.lengths, self.max_batch, self.info = inner.lengths, inner.max_batch, inner.info

    def forward(self, batch: Batch) -> SpanLogits:
        logits = self._inner.forward(batch)
        for row, length in enumerate(batch.mask.sum(axis=1)):
            logits.start[row, (0, length - 1)[self._place]] += 50
        return logits


def test_only_positions_that_mean_something_are_held_against_golden_vectors(bundle: Bundle) -> None:
    inner, tokenizer, vectors = (
        open_runtime(ModelFolder(model_folder("distilbert")), "pytorch"),
        Tokenizer(bundle.tokenizer),
        read_vectors(bundle.golden),
    )
    found = [replay_vectors(Reader(tokenizer, Shifting(inner, place)), vectors, "fp16") for place in (0, 1)]
    assert "logits differ from the checkpoint's" in found[0]["problems"][0]  # [CLS]
    assert found[1]["problems"] == [] and found[1]["share"] < 0.005  # the last [SEP]


def test_answers_beyond_an_emoji_are_counted_in_utf16(bundle: Bundle) -> None:
    shifts = [question["answer"]["utf16_start"] - question["answer"]["start"] for question in read_vectors(bundle.golden)["questions"]]
    assert any(shifts)


def test_awkward_texts_have_the_tokens_of_transformers(bundle: Bundle) -> None:
    from transformers import BertTokenizerFast

    stock = BertTokenizerFast.from_pretrained(model_folder("distilbert"))
    texts = read_vectors(bundle.golden)["texts"]
    assert [entry["text"] for entry in texts] == list(AWKWARD_TEXTS)
    for entry in texts:
        if "[SEP]" not in entry["text"]:  # which transformers takes for the token, and an app must not
            assert entry["ids"] == stock(entry["text"], add_special_tokens=False)["input_ids"]
        assert stock.sep_token_id not in entry["ids"]
        assert all(0 <= begin < end <= len(entry["text"].encode("utf-16-le")) // 2 for begin, end in entry["utf16"])


def test_awkward_texts_say_which_whole_characters_an_answer_takes(bundle: Bundle) -> None:
    keys = read_vectors(bundle.golden)["texts"][-1]
    units = keys["text"].encode("utf-16-le")
    whole = [units[2 * begin : 2 * end].decode("utf-16-le") for begin, end in keys["whole"]]
    key, star, flag = "#\ufe0f\u20e3", "*\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f"
    assert [found for found in whole if not found.isalpha()] == [key, key, star, star, flag]
    moved = [(w[0] < u[0], w[1] > u[1]) for w, u in zip(keys["whole"], keys["utf16"], strict=True)]
    assert {(True, False), (False, True)} <= set(moved)  # both ends


def test_windows_too_short_for_a_question_get_a_shorter_one(bundle: Bundle) -> None:
    model, tokenizer = open_checkpoint(str(model_folder("distilbert"))).model, Tokenizer(bundle.tokenizer)
    document = json.loads(golden_vectors(model, tokenizer, WindowOptions(24, 8, 6)))
    assert {question["question"] for question in document["questions"]} == {"Who?"}
    assert all(len(question["windows"]) <= 8 for question in document["questions"])
    with pytest.raises(OptionsError, match="no room for a question"):
        golden_vectors(model, tokenizer, WindowOptions(16, 5, 1))


@pytest.mark.parametrize(("target", "form"), [("ios17", "mlprogram"), ("iphone7plus", "neuralnetwork"), ("executorch", "executorch")])
def test_the_how_to_is_complete_for_every_form(tmp_path: Path, target: str, form: str) -> None:
    scheme = next(name for name, kind in TARGETS[target].forms.items() if kind.format == form)
    window = {"max_tokens": 384, "doc_stride": 128, "max_question_tokens": 64}
    tokenizer = {"lowercase": True, "strip_accents": True, "split_ideographs": True}
    config = {"target": target, "scheme": scheme, "layout": "standard", "format": form, "lengths": [128, 384], "package": "Tiny.x"}
    howto.write_howto(tmp_path, "tiny", "ab12", True, config | {"window": window, "tokenizer": tokenizer}, {"executorch": "1.2.3"})
    text = (tmp_path / "HOWTO.md").read_text(encoding="utf-8")
    assert not re.search(r"\{\{|\}\}", text)
    assert all(word in text for word in ("Tiny.x", "ab12", "128 or 384", "384 tokens", "golden.json", "allowNoAnswer", "QuestionAnswering.swift"))
    assert ("ExecuTorchSpanModel" in text, "computeUnits" in text) == (form == "executorch", form != "executorch")
    platforms = ".iOS(.v17), .macOS(.v14)" if form == "executorch" else ".iOS(.v15), .macOS(.v12)"
    assert f"platforms: [{platforms}]" in text  # those of actors, CryptoKit and ML programs, and of ExecuTorch's own package
    assert ('384: "forward_384"' in text and "swiftpm-1.2.3" in text) == (form == "executorch")
    assert ("2048" in text) == (form == "neuralnetwork")
    swift = (tmp_path / "QuestionAnswering.swift").read_text(encoding="utf-8")
    assert all(f"func {name}" in swift or f"struct {name}" in swift for name in ("answer", "tokens", "makeWindows", "load", "differences"))

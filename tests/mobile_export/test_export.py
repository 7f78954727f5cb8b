"""`pocketqa export`, run whole on tiny checkpoints; what the saved bytes say and compute."""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobile_export.benchmark import main as benchmark
from mobile_export.bundle import open_bundle, sizes
from mobile_export.checkpoint.checkpoints import open_checkpoint
from mobile_export.compress import main as compress
from mobile_export.export import _parser, main
from mobile_export.formats.vectors import read_vectors
from mobile_export.interpreter.interpreter import Interpreter
from mobile_export.interpreter.mlprogram import describe, open_program
from pocketqa import runs
from pocketqa.__main__ import main as pocketqa
from pocketqa.errors import CorruptFolder, EngineError, FolderError, IncompleteFolder, MissingExtra, OptionsError
from pocketqa.types import NoAnswer
from tests.tiny import tiny_base, tiny_bert, tiny_distilbert, tiny_mobilebert, tiny_tinybert

REPOSITORY = Path(__file__).parents[2]
FILES = {"Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"}
PACKAGE = "Bert.mlpackage"
VERSIONS = {"iphone7plus": 6, "ios15": 6, "ios16": 7, "ios17": 8, "ios18": 9}  # Core ML's, written here a second time on purpose


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny checkpoints with float16 weights, as models of this project have them: rounding then cannot hide a difference."""
    root = tmp_path_factory.mktemp("checkpoints")
    made = {"bert": tiny_bert(root / "bert"), "distilbert": tiny_distilbert(root / "distilbert", cased=True)}
    for folder in made.values():
        open_checkpoint(str(folder)).model.half().save_pretrained(folder)
    return made


@pytest.fixture(scope="module")
def bundle(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny BERT with several lengths, for tests that only look at one."""
    out = tmp_path_factory.mktemp("bundles") / "reader"
    assert main([str(folders["bert"]), "--target", "ios16", "--out", str(out), "--lengths", "64,32"]) == 0
    return out


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny BERT, to be spoiled."""
    return Path(shutil.copytree(folders["bert"], tmp_path / "checkpoint"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def tree(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def window(folder: Path, length: int) -> Any:
    """A real question and passage (input_ids, attention_mask, token_type_ids), padded to `length`."""
    from transformers import BertTokenizerFast

    passage = "The old stone bridge was built by two sisters from the valley; it has stood for 300 years."
    return BertTokenizerFast.from_pretrained(folder)(
        "Who built it?", passage, max_length=length, padding="max_length", truncation=True, return_tensors="pt"
    )


def assert_computes(package: Path, folder: Path, lengths: tuple[int, ...]) -> None:
    """The saved operations give the logits of transformers, on tokens and on padding, and finite ones on padding alone."""
    program, model = open_program(package), open_checkpoint(str(folder)).model
    for length in lengths:
        encoded = window(folder, length)
        if model.config.model_type == "distilbert":
            del encoded["token_type_ids"]
        with torch.inference_mode():
            reference = model(**encoded)
        start, end = Interpreter(program, rounding=False).run(encoded["input_ids"].numpy())
        assert start.shape == end.shape == (1, length)
        np.testing.assert_allclose(start, reference.start_logits.numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(end, reference.end_logits.numpy(), rtol=0, atol=1e-4)
        assert all(np.isfinite(logits).all() for logits in Interpreter(program).run(np.zeros((1, length), np.int32)))


@pytest.mark.parametrize(("kind", "target"), [("bert", "iphone7plus"), ("bert", "ios17"), ("distilbert", "ios15"), ("distilbert", "ios18")])
def test_the_command_leaves_a_bundle_that_computes_the_model(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, target: str
) -> None:
    out = tmp_path / "bundle"
    options = ["--length", "96", "--json", "--role", "student", "--run-file", str(tmp_path / "runs" / "export.json")]
    assert main([str(folders[kind]), "--target", target, "--out", str(out), *options]) == 0
    bundle = open_bundle(out)
    package = bundle.package
    run = runs.read(tmp_path / "runs" / "export.json")
    assert run.results["package_bytes"] == sum(map(len, tree(package).values()))
    assert (run.results["specification_version"], run.results["inputs"]) == (VERSIONS[target], {"input_ids": "int32 (1, 96)"})
    assert (run.results["precision"], run.results["layout"], run.subjects[0].sha256) == ("fp16", "standard", bundle.model_hash)
    printed = capsys.readouterr()
    report = json.loads(printed.out)  # one line, and nothing else on standard output
    assert "2 layers x 32" in printed.err
    assert set(tree(package)) == FILES
    assert report["specification_version"] == open_program(package).specification == VERSIONS[target]
    assert [(f["name"], f["dtype"], f["shapes"]) for f in report["inputs"]] == [("input_ids", "int32", [[1, 96]])]
    assert [(f["name"], f["dtype"], f["shapes"]) for f in report["outputs"]] == [
        (name, "float32", [[1, 96]]) for name in ("start_logits", "end_logits")
    ]
    assert all(len(feature["description"]) > 40 for feature in report["inputs"] + report["outputs"])
    assert report["bytes"] == sizes(bundle) == {**report["bytes"], "package": run.results["package_bytes"], "zipped": run.results["zipped_bytes"]}
    assert (report["checks"]["max_difference_from_transformers"], report["checks"]["hazards"]) == (pytest.approx(0, abs=1e-5), [])
    assert bool(report["checks"]["warnings"]) == (target != "iphone7plus")  # which has no Neural Engine to leave
    assert {path.name for path in tmp_path.iterdir()} == {"bundle", "runs"}
    assert_computes(package, folders[kind], (96,))


@pytest.mark.parametrize(("kind", "target"), [("distilbert", "ios17")])
def test_the_neural_engine_layout_is_written_and_named(folders: dict[str, Path], tmp_path: Path, kind: str, target: str) -> None:
    main([str(folders[kind]), "--target", target, "--layout", "ane", "--out", str(tmp_path / "ane"), "--length", "32"])
    bundle = open_bundle(tmp_path / "ane")
    program = open_program(bundle.package)
    assert (bundle.layout, program.metadata["pocketqa.layout"], program.specification) == ("ane", "ane", VERSIONS[target])
    types = program.operation_types()
    assert (types["conv"], "linear" in types) == (13, False)  # two layers of six products, and the head


@pytest.mark.parametrize("make", [tiny_mobilebert, tiny_tinybert])
def test_the_other_families_leave_bundles_that_reproduce_their_golden_vectors(make: Callable[[Path], Path], tmp_path: Path) -> None:
    main([str(make(tmp_path / "model")), "--target", "ios17", "--out", str(tmp_path / "bundle"), "--length", "64"])
    bundle = open_bundle(tmp_path / "bundle")
    interpreter = Interpreter(open_program(bundle.package))
    for question in read_vectors(bundle.golden)["questions"]:
        for window in question["windows"]:
            ids = np.array([window["ids"] + [0] * (64 - len(window["ids"]))], np.int32)  # (1, T)
            for name, found in zip(("start_logits", "end_logits"), interpreter.run(ids), strict=True):
                expected = np.array(window[name])
                assert np.abs(found[0, : len(expected)] - expected).max() < 0.02 * np.ptp(expected)  # float16


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """As where it is not installed: neither the module nor its distribution is found."""
    from_name = Distribution.from_name

    def found(name: str) -> Distribution:
        if name == package:
            raise PackageNotFoundError(name)
        return from_name(name)

    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(Distribution, "from_name", found)


def test_an_executorch_bundle_without_coremltools(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(monkeypatch, "coremltools")  # as on Linux on arm64
    out = tmp_path / "bundle"
    assert main([str(folders["distilbert"]), "--target", "executorch", "--out", str(out), "--lengths", "32,64", "--json"]) == 0
    printed = capsys.readouterr()
    report, bundle = json.loads(printed.out), open_bundle(out)
    [megabytes] = re.findall(r"\(about (\d+) MB in float32\)", printed.err)
    assert int(megabytes) == round(4 * sum(p.numel() for p in open_checkpoint(str(folders["distilbert"])).model.parameters()) / 1e6)
    assert (bundle.format, bundle.scheme, bundle.package.name, bundle.lengths) == ("executorch", "fp32", "Distilbert.pte", (32, 64))
    assert (report["specification_version"], report["inputs"][0]["shapes"]) == (None, [[1, 32], [1, 64]])
    assert report["checks"]["max_difference_from_pytorch"] < 1e-4
    assert "forward_64" in (out / "HOWTO.md").read_text(encoding="utf-8")
    assert set(bundle.manifest.tools) == {"executorch", "numpy", "pocketqa", "python", "torch", "transformers"}
    assert set(tree(out)) == {
        "Distilbert.pte",
        "vocab.txt",
        "tokenizer.json",
        "golden.json",
        "HOWTO.md",
        "QuestionAnswering.swift",
        "Timing.swift",
        "manifest.json",
    }


def test_metadata_is_enough_for_an_app(folders: dict[str, Path], tmp_path: Path) -> None:
    edit(folders["distilbert"] / "config.json", architectures=["DistilBertForQuestionAnswering"])
    (folders["distilbert"] / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [qa]\n---\n# Tiny\n", encoding="utf-8")
    main([str(folders["distilbert"]), "--target", "ios16", "--out", str(tmp_path / "bundle")])
    description = describe(tmp_path / "bundle" / "Distilbert.mlpackage")  # named after the checkpoint
    metadata = description["metadata"]
    vocabulary = (folders["distilbert"] / "vocab.txt").read_text(encoding="utf-8")
    assert metadata["com.apple.coreml.model.preview.type"] == "bertQA"
    assert metadata["pocketqa.vocabulary"] == vocabulary
    tokens = vocabulary.split("\n")
    for name, token in (("pad", "[PAD]"), ("cls", "[CLS]"), ("sep", "[SEP]")):
        assert tokens[int(metadata[f"pocketqa.{name}_id"])] == token
    assert (metadata["pocketqa.lowercase"], metadata["pocketqa.model_type"], metadata["pocketqa.target"]) == ("false", "distilbert", "ios16")
    assert (metadata["pocketqa.scheme"], metadata["pocketqa.layout"]) == ("fp16", "standard")
    assert (metadata["pocketqa.lengths"], metadata["pocketqa.max_tokens"], metadata["pocketqa.doc_stride"]) == ("384", "384", "128")
    assert metadata["pocketqa.checkpoint_sha256"] == open_checkpoint(str(folders["distilbert"])).sha256
    assert {"coremltools", "torch", "transformers", "pocketqa"} <= set(json.loads(metadata["pocketqa.tools"]))
    assert description["about"]["licence"] == "cc-by-4.0"
    assert "conversion_date" not in " ".join(metadata)


@pytest.mark.parametrize(("kind", "target"), [("bert", "iphone7plus"), ("distilbert", "ios17")])
def test_several_lengths_in_one_package_on_every_target(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, target: str
) -> None:
    main([str(folders[kind]), "--target", target, "--out", str(tmp_path / "bundle"), "--lengths", "128,64,96,64"])
    package = open_bundle(tmp_path / "bundle").package
    assert "int32 (1, 128) or (1, 64) or (1, 96)" in capsys.readouterr().out
    program = open_program(package)
    assert (program.specification, program.inputs[0].shapes) == (VERSIONS[target], ((1, 128), (1, 64), (1, 96)))
    assert program.metadata["pocketqa.lengths"] == "64,96,128"
    assert_computes(package, folders[kind], (64, 96, 128))


def test_weights_are_the_checkpoints_bit_by_bit(folders: dict[str, Path], bundle: Path) -> None:
    from safetensors.numpy import load_file

    stored = {constant.value.tobytes() for constant in open_program(bundle / PACKAGE).constants() if constant.value.dtype == np.float16}
    weights = load_file(folders["bert"] / "model.safetensors")
    weights["bert.embeddings.position_embeddings.weight"] = weights["bert.embeddings.position_embeddings.weight"][:64]  # cut to what is used
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.float16)}
    assert [name for name, weight in weights.items() if weight.tobytes() not in stored] == []


def test_the_stock_tools_open_the_package(bundle: Path) -> None:
    from mobile_export.tools import import_coremltools

    coremltools = import_coremltools()
    from coremltools.libmodelpackage import ModelPackage

    assert ModelPackage.isValid(str(bundle / PACKAGE))
    model = coremltools.models.MLModel(str(bundle / PACKAGE), skip_model_load=True)
    assert (model.get_spec().specificationVersion, model.get_spec().WhichOneof("Type")) == (7, "mlProgram")


def test_another_process_leaves_the_same_bytes(folders: dict[str, Path], bundle: Path, tmp_path: Path) -> None:
    """Of the whole bundle, in another place, with other hash seeds, threads and clock; of a neuralnetwork too."""
    network = ["--target", "ios15", "--scheme", "int8", "--length", "32"]
    main([str(folders["bert"]), *network, "--out", str(tmp_path / "network")])
    script = """
import sys
from mobile_export.export import main
folder, out = sys.argv[1:]
main([folder, "--target", "ios16", "--lengths", "32,64", "--out", f"{out}/reader"])
main([folder, "--target", "ios15", "--scheme", "int8", "--length", "32", "--out", f"{out}/network"])
"""
    again = tmp_path / "elsewhere"
    environment = os.environ | {"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "2", "TZ": "Asia/Tokyo"}
    subprocess.run([sys.executable, "-c", script, str(folders["bert"]), str(again)], check=True, cwd=REPOSITORY, env=environment)
    assert tree(again / "reader") == tree(bundle)
    assert tree(again / "network") == tree(tmp_path / "network")


def test_an_existing_bundle_is_replaced_only_when_asked(folders: dict[str, Path], bundle: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    (out / "stray").write_text("from before", encoding="utf-8")
    before = tree(out)
    arguments = [str(folders["bert"]), "--target", "ios15", "--out", str(out), "--length", "32"]
    with pytest.raises(FolderError, match="--force"):
        main(arguments)
    assert tree(out) == before
    main([*arguments, "--force"])
    assert not (out / "stray").exists()
    assert open_bundle(out).target.name == "ios15"


def test_a_bundle_with_a_damaged_manifest_is_made_again_with_the_command_that_is_told(folders: dict[str, Path], bundle: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    for spoil in (lambda file: file.write_bytes(file.read_bytes()[:100]), Path.unlink):
        spoil(out / "manifest.json")
        for opens in (open_bundle, lambda folder: benchmark([str(folder)])):
            with pytest.raises(FolderError, match=r"pocketqa export CHECKPOINT --target") as told:
                opens(out)
            assert "pocketqa package" not in str(told.value)
        main([str(folders["bert"]), "--target", "ios15", "--out", str(out), "--length", "32", "--force"])
        assert open_bundle(out).target.name == "ios15"
    (out / "manifest.json").write_text("{", encoding="utf-8")
    (out / "vocab.txt").unlink()
    with pytest.raises(FolderError, match=r"--force does not replace it\. Choose another --out, or remove the folder"):
        main([str(folders["bert"]), "--target", "ios15", "--out", str(out), "--length", "32", "--force"])


def test_a_checkpoint_from_elsewhere_is_told_what_it_was_trained_for(folders: dict[str, Path], tmp_path: Path) -> None:
    arguments = [str(folders["bert"]), "--target", "ios16", "--length", "32", "--out", str(tmp_path / "bundle")]
    with pytest.raises(OptionsError, match="goes with --no-answer"):
        main([*arguments, "--no-answer-threshold", "0.5"])
    main([*arguments, "--no-answer", "--no-answer-threshold", "0.5"])
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.no_answer == NoAnswer(True, 0.5)
    assert json.loads(open_program(bundle.package).metadata["pocketqa.no_answer"]) == {"threshold": 0.5, "trained": True}
    assert "allowNoAnswer: true" in (bundle.path / "HOWTO.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "typed", [["--lengths", "64,128", "--layout", "ane"], ["--length", "96", "--no-answer", "--no-answer-threshold", "-1.5"], []], ids=" ".join
)
@pytest.mark.parametrize("scheme", ["int8", "mixed"])
def test_the_commands_that_make_another_scheme_ask_for_what_was_typed(tmp_path: Path, typed: list[str], scheme: str) -> None:
    own = ["a model", "--target", "ios16", *typed]
    with pytest.raises(OptionsError) as told:
        main([*own, "--scheme", scheme, "--out", str(tmp_path / "a bundle")])
    commands = re.search(r"pocketqa export (.*), then: pocketqa compress (.*)", str(told.value))
    assert commands is not None
    first, second = map(shlex.split, commands.groups())
    assert _parser().parse_args(first) == _parser().parse_args([*own, "--out", str(tmp_path / "a bundle-fp16")])
    with pytest.raises(IncompleteFolder, match=r"Expected a bundle at .*/a bundle-fp16"):  # its options are accepted
        compress(second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "ios14"], "ios18, executorch; found 'ios14'"),
        (["--target", "ios16", "--scheme", "int4"], "int4 needs the target ios18; found ios16"),
        (["--target", "ios16", "--scheme", "int8"], r"verified first; .*pocketqa compress .*-fp16 --scheme int8 --out"),
        (["--target", "iphone7plus", "--layout", "ane"], "Neural Engine.*found iphone7plus"),
        (["--target", "ios15", "--layout", "ane", "--scheme", "int8"], "needs an ML program"),
        (["--target", "ios16", "--length", "15"], "between 16 and 512.*found 15"),
        (["--target", "ios16", "--lengths", "64,513,600"], "between 16 and 512.*found 513, 600"),
        (["--target", "ios16", "--lengths", "64;128"], "whole numbers separated by commas"),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_work(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        main([str(tmp_path / "absent"), "--out", str(tmp_path / "bundle"), *options])


@pytest.mark.parametrize("suffix", [".mlpackage", ".mlmodel", ".pte"])
def test_a_bare_package_as_out_is_told_to_be_a_folder(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(OptionsError, match=rf"to be a folder, found .*x\{suffix}'.*--out bundles/student-ios16"):
        main(["models/student", "--target", "ios16", "--out", str(tmp_path / f"x{suffix}")])


def refuses(folder: Path, error: type[Exception], message: str) -> None:
    """The export fails with that error and leaves nothing."""
    out = folder.parent / "exports"
    with pytest.raises(error, match=message):
        main([str(folder), "--target", "ios16", "--out", str(out / "bundle"), "--length", "32"])
    assert not out.exists() or list(out.iterdir()) == []


def test_refuses_what_is_no_checkpoint(copy: Path, tmp_path: Path) -> None:
    refuses(tiny_base(tmp_path / "base"), FolderError, "question-answering head.*pocketqa finetune")
    refuses(tmp_path / "absent", IncompleteFolder, "found nothing")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", IncompleteFolder, r"config\.json")
    edit(copy / "config.json", model_type="roberta")
    refuses(copy, FolderError, "(?i)bert.*distilbert.*roberta")


def test_refuses_weights_that_are_absent_cut_or_pickled(copy: Path) -> None:
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refuses(copy, CorruptFolder, "found")
    weights.rename(copy / "pytorch_model.bin")
    refuses(copy, IncompleteFolder, r"model\.safetensors")


def test_refuses_weights_other_than_the_manifest_names(copy: Path) -> None:
    from pocketqa.folders import write_manifest

    write_manifest(copy, kind="checkpoint", name="marked", no_answer=NoAnswer(True, 1.5))
    checkpoint = open_checkpoint(str(copy))
    assert (checkpoint.name, checkpoint.no_answer) == ("marked", NoAnswer(True, 1.5))
    flipped = bytearray((copy / "model.safetensors").read_bytes())
    flipped[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(flipped))
    refuses(copy, CorruptFolder, "differs from its manifest")


def test_refuses_vocabularies_that_do_not_fit(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    edit(copy / "config.json", pad_token_id=1)
    refuses(copy, CorruptFolder, r"pad_token_id 1, but the vocabulary has its padding token at 0")
    edit(copy / "config.json", **config)
    tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    edit(copy / "tokenizer.json", model=tokenizer["model"] | {"vocab": vocabulary | {"extra": len(vocabulary)}})
    refuses(copy, CorruptFolder, "more than the .* rows")
    edit(copy / "tokenizer.json", model=tokenizer["model"] | {"vocab": vocabulary | {"extra": len(vocabulary) + 7}})
    refuses(copy, CorruptFolder, "ids without gaps")
    edit(copy / "tokenizer.json", model={"type": "BPE"})
    refuses(copy, FolderError, "WordPiece.*'BPE'")
    (copy / "tokenizer.json").unlink()
    assert open_checkpoint(str(copy)).vocabulary.tokens[:2] == ("[PAD]", "[UNK]")  # vocab.txt alone will do
    (copy / "vocab.txt").unlink()
    refuses(copy, IncompleteFolder, "found neither")


def test_refuses_tokenizers_that_the_swift_code_does_not_imitate(copy: Path) -> None:
    document = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
    word = next(token for token in document["model"]["vocab"] if token.isalpha())
    added = {"id": document["model"]["vocab"][word], "content": word, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    edit(copy / "tokenizer.json", added_tokens=[*document["added_tokens"], added | {"special": False}], pre_tokenizer={"type": "Whitespace"})
    refuses(copy, FolderError, rf"found one with pre_tokenizer 'Whitespace', added token '{word}'\. An app would see other tokens")
    edit(copy / "tokenizer.json", added_tokens=document["added_tokens"], pre_tokenizer=None)
    refuses(copy, FolderError, "pre_tokenizer None")


def test_refuses_weights_that_float16_cannot_hold(copy: Path) -> None:
    model = open_checkpoint(str(copy)).model
    head = model.get_submodule("qa_outputs")
    assert isinstance(head, torch.nn.Linear)
    torch.nn.init.constant_(head.bias, 1e5)
    model.save_pretrained(copy)
    refuses(copy, EngineError, "float16")


def test_says_what_to_install(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(folders["bert"]), "--target", "ios16", "--out", str(tmp_path / "bundle")]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "coremltools", None)
        with pytest.raises(MissingExtra, match=r"pip install 'pocketqa\[export\]'"):
            main(arguments)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "coremltools.libmilstoragepython", None)
        with pytest.raises(EngineError, match="native libraries"):
            main(arguments)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
        with pytest.raises(EngineError, match=r"3\.13, found 3\.14"):
            main(arguments)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "linux")
        patch.setattr(platform, "machine", lambda: "aarch64")
        patch.setitem(sys.modules, "coremltools", None)
        with pytest.raises(EngineError, match=r"found .* on aarch64.*export for executorch"):
            main(arguments)


@pytest.mark.parametrize(
    ("words", "package"),
    [
        (["export", "CHECKPOINT", "--target", "executorch", "--out", "OUT"], "executorch"),
        (["benchmark", "--preset", "paper", "--engines", "executorch"], "executorch"),
        (["package", "CHECKPOINT", "--out", "OUT"], "onnx"),
        (["package", "CHECKPOINT", "--form", "openvino-int8", "--data", "dev.json"], "nncf"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_a_python_that_the_extra_brings_nothing_for_is_named(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    package: str,
) -> None:
    words = [{"CHECKPOINT": str(folders["bert"]), "OUT": str(tmp_path / "out")}.get(word, word) for word in words]
    hide(monkeypatch, package)
    assert pocketqa(words) == 2
    assert "pip install 'pocketqa[export]'" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version_info", (3, 14, 0, "final", 0))
        assert pocketqa(words) == 2
    said = capsys.readouterr().err
    assert f"found 3.14, for which pocketqa[export] brings no {package}" in said and "pip install" not in said
    assert not (tmp_path / "out").exists()


def test_help_teaches_without_loading_torch() -> None:
    script = """
import sys
from mobile_export.export import main
try:
    main(["--help"])
finally:
    print(sorted({"torch", "coremltools"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.rstrip().endswith("[]")
    assert all(name in done.stdout for name in (*VERSIONS, "--lengths", "input_ids", "pocketqa export models/student"))

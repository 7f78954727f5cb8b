"""`pocketqa export`, run whole on tiny checkpoints; what the saved bytes say and compute."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mobile_export import network, targets
from mobile_export.checkpoints import open_checkpoint
from mobile_export.export import main
from mobile_export.mlprogram import describe, open_program
from pocketqa import runs
from pocketqa.errors import CorruptFolder, EngineError, FolderError, IncompleteFolder, MissingExtra, OptionsError
from tests.mobile_export.replay import replay
from tests.tiny import tiny_base, tiny_bert, tiny_distilbert

REPOSITORY = Path(__file__).parents[2]
FILES = {"Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"}
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
def reader(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the tiny BERT with several lengths, for tests that only look at one."""
    package = tmp_path_factory.mktemp("packages") / "Reader.mlpackage"
    assert main([str(folders["bert"]), "--target", "ios16", "--out", str(package), "--lengths", "64,32"]) == 0
    return package


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
        start, end = replay(program, encoded["input_ids"].numpy())
        assert start.shape == end.shape == (1, length)
        np.testing.assert_allclose(start, reference.start_logits.numpy(), rtol=0, atol=1e-4)
        np.testing.assert_allclose(end, reference.end_logits.numpy(), rtol=0, atol=1e-4)
        assert all(np.isfinite(logits).all() for logits in replay(program, np.zeros((1, length), np.int32)))


@pytest.mark.parametrize(("kind", "target"), [("bert", "iphone7plus"), ("bert", "ios17"), ("distilbert", "ios15"), ("distilbert", "ios18")])
def test_the_command_leaves_a_package_that_computes_the_model(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, target: str
) -> None:
    package = tmp_path / "Reader.mlpackage"
    options = ["--length", "96", "--json", "--role", "student", "--run-file", str(tmp_path / "runs" / "export.json")]
    assert main([str(folders[kind]), "--target", target, "--out", str(package), *options]) == 0
    run = runs.read(tmp_path / "runs" / "export.json")
    assert run.results["package_bytes"] == sum(map(len, tree(package).values()))
    assert (run.results["specification_version"], run.results["inputs"]) == (VERSIONS[target], {"input_ids": "int32 (1, 96)"})
    printed = capsys.readouterr()
    report = json.loads(printed.out)  # one line, and nothing else on standard output
    assert "2 layers x 32" in printed.err
    assert set(tree(package)) == FILES
    assert report["specification_version"] == VERSIONS[target]
    assert [(f["name"], f["dtype"], f["shapes"]) for f in report["inputs"]] == [("input_ids", "int32", [[1, 96]])]
    assert [(f["name"], f["dtype"], f["shapes"]) for f in report["outputs"]] == [
        (name, "float32", [[1, 96]]) for name in ("start_logits", "end_logits")
    ]
    assert all(len(feature["description"]) > 40 for feature in report["inputs"] + report["outputs"])
    assert report["bytes"]["package"] == sum(map(len, tree(package).values()))
    assert report["bytes"]["weights"] == len(tree(package)["Data/com.apple.CoreML/weights/weight.bin"])
    assert (report["checks"]["max_difference_from_transformers"], report["checks"]["hazards"]) == (pytest.approx(0, abs=1e-5), [])
    assert {path.name for path in tmp_path.iterdir()} == {"Reader.mlpackage", "runs"}
    assert_computes(package, folders[kind], (96,))


def test_metadata_is_enough_for_an_app(folders: dict[str, Path], tmp_path: Path) -> None:
    edit(folders["distilbert"] / "config.json", architectures=["DistilBertForQuestionAnswering"])
    (folders["distilbert"] / "README.md").write_text("---\nlicense: cc-by-4.0\ntags: [qa]\n---\n# Tiny\n", encoding="utf-8")
    main([str(folders["distilbert"]), "--target", "ios16", "--out", str(tmp_path)])
    description = describe(tmp_path / "distilbert.mlpackage")  # a folder as --out: the package takes the checkpoint's name
    metadata = description["metadata"]
    vocabulary = (folders["distilbert"] / "vocab.txt").read_text(encoding="utf-8")
    assert metadata["com.apple.coreml.model.preview.type"] == "bertQA"
    assert metadata["pocketqa.vocabulary"] == vocabulary
    tokens = vocabulary.split("\n")
    for name, token in (("pad", "[PAD]"), ("cls", "[CLS]"), ("sep", "[SEP]")):
        assert tokens[int(metadata[f"pocketqa.{name}_id"])] == token
    assert (metadata["pocketqa.lowercase"], metadata["pocketqa.model_type"], metadata["pocketqa.target"]) == ("false", "distilbert", "ios16")
    assert (metadata["pocketqa.lengths"], metadata["pocketqa.max_tokens"], metadata["pocketqa.doc_stride"]) == ("384", "384", "128")
    assert metadata["pocketqa.checkpoint_sha256"] == open_checkpoint(str(folders["distilbert"])).sha256
    assert {"coremltools", "torch", "transformers", "pocketqa"} <= set(json.loads(metadata["pocketqa.tools"]))
    assert description["about"]["licence"] == "cc-by-4.0"
    assert "conversion_date" not in " ".join(metadata)


@pytest.mark.parametrize(("kind", "target"), [("bert", "iphone7plus"), ("distilbert", "ios17")])
def test_several_lengths_in_one_package_on_every_target(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, target: str
) -> None:
    package = tmp_path / "Reader.mlpackage"
    main([str(folders[kind]), "--target", target, "--out", str(package), "--lengths", "128,64,96,64"])
    assert "int32 (1, 128) or (1, 64) or (1, 96)" in capsys.readouterr().out
    program = open_program(package)
    assert (program.specification, program.inputs[0].shapes) == (VERSIONS[target], ((1, 128), (1, 64), (1, 96)))
    assert program.metadata["pocketqa.lengths"] == "64,96,128"
    assert_computes(package, folders[kind], (64, 96, 128))


def test_weights_are_the_checkpoints_bit_by_bit(folders: dict[str, Path], reader: Path) -> None:
    from safetensors.numpy import load_file

    stored = {constant.value.tobytes() for constant in open_program(reader).constants() if constant.value.dtype == np.float16}
    weights = load_file(folders["bert"] / "model.safetensors")
    weights["bert.embeddings.position_embeddings.weight"] = weights["bert.embeddings.position_embeddings.weight"][:64]  # cut to what is used
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.float16)}
    assert [name for name, weight in weights.items() if weight.tobytes() not in stored] == []


def test_the_stock_tools_open_the_package(reader: Path) -> None:
    from mobile_export.tools import import_coremltools

    coremltools = import_coremltools()
    from coremltools.libmodelpackage import ModelPackage

    assert ModelPackage.isValid(str(reader))
    model = coremltools.models.MLModel(str(reader), skip_model_load=True)
    assert (model.get_spec().specificationVersion, model.get_spec().WhichOneof("Type")) == (7, "mlProgram")


def test_another_process_leaves_the_same_bytes(folders: dict[str, Path], reader: Path, tmp_path: Path) -> None:
    again = tmp_path / "elsewhere" / "Again.mlpackage"
    command = [sys.executable, "-m", "pocketqa", "export", str(folders["bert"]), "--target", "ios16", "--lengths", "32,64", "--out", str(again)]
    subprocess.run(command, check=True, cwd=REPOSITORY, env=os.environ | {"PYTHONHASHSEED": "7"})
    assert tree(again) == tree(reader)


def test_an_existing_package_is_replaced_only_when_asked(folders: dict[str, Path], reader: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(reader, tmp_path / "Reader.mlpackage"))
    (package / "stray").write_text("from before", encoding="utf-8")
    before = tree(package)
    arguments = [str(folders["bert"]), "--target", "ios15", "--out", str(package), "--length", "32"]
    with pytest.raises(FolderError, match="--force"):
        main(arguments)
    assert tree(package) == before
    main([*arguments, "--force"])
    assert set(tree(package)) == FILES
    assert open_program(package).specification == VERSIONS["ios15"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "ios14"], "iphone7plus, ios15, ios16, ios17, ios18; found 'ios14'"),
        (["--target", "ios16", "--length", "15"], "between 16 and 512.*found 15"),
        (["--target", "ios16", "--lengths", "64,513,600"], "between 16 and 512.*found 513, 600"),
        (["--target", "ios16", "--lengths", "64;128"], "whole numbers separated by commas"),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_work(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        main([str(tmp_path / "absent"), "--out", str(tmp_path / "x.mlpackage"), *options])


def test_lengths_end_at_the_checkpoints_positions() -> None:
    assert targets.check_lengths((128, 64, 128), 128) == (64, 128)
    with pytest.raises(OptionsError, match=r"between 16 and 256 tokens \(the checkpoint has 256 positions\), found 384"):
        targets.check_lengths((384,), 256)


def refuses(folder: Path, error: type[Exception], message: str) -> None:
    """The export fails with that error and leaves nothing."""
    out = folder.parent / "exports"
    with pytest.raises(error, match=message):
        main([str(folder), "--target", "ios16", "--out", str(out / "x.mlpackage"), "--length", "32"])
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
    from pocketqa.types import NoAnswer

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


def test_refuses_a_mask_that_float16_cannot_hold(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "MASKED", torch.finfo(torch.float32).min)  # what the stock model uses
    refuses(copy, EngineError, "not finite in float16")


def test_refuses_weights_that_float16_cannot_hold(copy: Path) -> None:
    model = open_checkpoint(str(copy)).model
    head = model.get_submodule("qa_outputs")
    assert isinstance(head, torch.nn.Linear)
    torch.nn.init.constant_(head.bias, 1e5)
    model.save_pretrained(copy)
    refuses(copy, EngineError, "not finite in float16")


def test_says_what_to_install(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [str(folders["bert"]), "--target", "ios16", "--out", str(tmp_path / "x.mlpackage")]
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

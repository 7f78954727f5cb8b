"""`pocketqa package`, run whole on tiny checkpoints: the files it leaves, that they open everywhere, and what it refuses."""

from __future__ import annotations

import fnmatch
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, BertTokenizerFast

from mobile_export.checkpoint.checkpoints import open_checkpoint
from mobile_export.checkpoint.sources import locate, read_config
from mobile_export.checkpoint.tokenizer_files import write_tokenizer
from mobile_export.package import main, package
from pocketqa import Reader
from pocketqa.__main__ import main as pocketqa
from pocketqa.errors import CorruptFolder, EngineError, FolderError, IncompleteFolder, OptionsError, PocketQAError
from pocketqa.features import Tokenizer
from pocketqa.folders import ModelFolder, sha256_file, write_manifest
from pocketqa.golden import Golden, replay
from pocketqa.runtimes import open_runtime
from pocketqa.runtimes.onnx import silent_onnxruntime
from pocketqa.types import NoAnswer
from tests.packaged import checkpoint, copy_of, model_folder, random_batch
from tests.tiny import _save, tiny_base, tiny_bert

FILES = {
    "config.json", "golden.json", "manifest.json", "model.onnx", "model.safetensors",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt",
}  # fmt: skip


def quietly(line: str) -> None:
    """Progress that no test reads."""


def test_the_command_run_whole(tmp_path, capsys):
    source, out = checkpoint("bert"), tmp_path / "deep" / "model"
    assert pocketqa(["package", str(source), "--out", str(out), "--name", "Tiny"]) == 0
    assert {path.name for path in out.iterdir()} == FILES and os.listdir(out.parent) == ["model"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"Next: pocketqa serve --student {out} --teacher {out}"
    assert "MB" in lines[-2] and any("agree within" in line for line in lines)
    manifest = ModelFolder(out).verify()
    assert (manifest.kind, manifest.name, manifest.parent) == ("model", "Tiny", sha256_file(source / "model.safetensors"))
    assert {"pocketqa", "torch", "transformers", "onnx"} <= set(manifest.tools)
    assert Reader.open(out, engine="onnxruntime").answer("Who?", "Anna is here.").best.text


def test_json_is_one_line_on_stdout_and_progress_is_on_stderr(tmp_path, capsys):
    assert main([str(checkpoint("distilbert")), "--out", str(tmp_path / "model"), "--json"]) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out)
    folder = ModelFolder(tmp_path / "model")
    assert made["model_hash"] == sha256_file(folder.weights) and made["folder_bytes"] == sum(path.stat().st_size for path in folder.path.iterdir())
    assert made["agreement"] < 1e-4 and made["golden_questions"] >= 5
    assert "Exporting" in captured.err


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_each_parameter_is_there_once_in_float16(kind):
    folder = ModelFolder(model_folder(kind))
    expected = {name: value.astype(np.float16) for name, value in load_file(checkpoint(kind) / "model.safetensors").items()}
    found = load_file(folder.weights)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    parameters = sum(value.size for value in expected.values())
    assert folder.weights.stat().st_size < 2 * parameters + 100 * len(expected) + 1000
    assert folder.graph.stat().st_size < 100_000


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_the_folder_opens_with_transformers_and_optimum_in_float32(kind):
    from optimum.onnxruntime import ORTModelForQuestionAnswering

    folder = model_folder(kind)
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "float32" and config["architectures"] == [
        f"{'Bert' if kind == 'bert' else 'DistilBert'}ForQuestionAnswering"
    ]
    model, loading = AutoModelForQuestionAnswering.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(["Where is Anna?", "Who?"], ["Anna is in the kitchen.", "Bruno."], return_tensors="pt", padding=True)
    optimum = ORTModelForQuestionAnswering.from_pretrained(folder)
    with torch.inference_mode():
        expected, found = model(**inputs), optimum(**inputs)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(found.start_logits[real], expected.start_logits[real], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.end_logits[real], expected.end_logits[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_the_graph_leaves_nothing_to_do_at_run_time(kind, tmp_path):
    """Cast and Transpose of weights are folded as the session is made: what is left of both belongs to the mask and to the heads."""
    options = silent_onnxruntime().SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimised.onnx"), 3
    silent_onnxruntime().InferenceSession(str(ModelFolder(model_folder(kind)).graph), options)
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("Cast") == 1 and operators.count("Transpose") == 2 * 4  # layers; query, key, value and what is mixed of them
    constants = {tensor.name for tensor in graph.initializer}
    assert not [node.name for node in graph.node if set(node.input) <= constants]


@pytest.mark.parametrize("opset", [18, 20])
def test_other_operator_sets_agree_too(opset, tmp_path):
    made = package(str(checkpoint("distilbert")), tmp_path / "model", opset=opset, say=quietly)
    assert made.agreement < 1e-4
    assert onnx.load(str(tmp_path / "model" / "model.onnx"), load_external_data=False).opset_import[0].version == opset


@pytest.mark.parametrize("cased", [False, True])
@pytest.mark.parametrize(
    "dropped",
    [(), ("tokenizer_config.json",), ("tokenizer.json",), ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")],
    ids=["all there", "no settings", "slow vocabulary with settings", "slow vocabulary alone"],
)
def test_casing_survives_however_little_the_checkpoint_says(cased, dropped, tmp_path):
    source = checkpoint("bert", cased)
    copy = shutil.copytree(source, tmp_path / "source")
    for name in dropped:
        (copy / name).unlink()
    (tmp_path / "out").mkdir()
    write_tokenizer(copy, tmp_path / "out", read_config(copy))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {name for name in FILES if "token" in name or name == "vocab.txt"}
    assert Tokenizer(tmp_path / "out" / "tokenizer.json").vocabulary_hash == Tokenizer(source / "tokenizer.json").vocabulary_hash
    words = "Who IS Marguerite?"
    assert BertTokenizerFast.from_pretrained(tmp_path / "out")(words).input_ids == AutoTokenizer.from_pretrained(source)(words).input_ids


def test_a_cased_model_is_packaged_cased():
    folder = model_folder("distilbert", True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert not tokenizer.do_lower_case and tokenizer.tokenize("A b") == ["A", "b"]
    assert Tokenizer(folder / "tokenizer.json").vocabulary_hash == Tokenizer(checkpoint("distilbert", True) / "tokenizer.json").vocabulary_hash


def test_truncation_and_padding_do_not_travel_with_the_tokenizer(tmp_path):
    source = shutil.copytree(checkpoint("bert"), tmp_path / "source")
    document = json.loads((source / "tokenizer.json").read_text())
    document["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (source / "tokenizer.json").write_text(json.dumps(document))
    package(str(source), tmp_path / "model", say=quietly)
    found = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    assert found["truncation"] is None and found["padding"] is None and found["model"] == document["model"]


def test_what_the_checkpoint_knows_travels(tmp_path):
    source = shutil.copytree(checkpoint("distilbert"), tmp_path / "source")
    write_manifest(source, kind="checkpoint", name="Student 7", seed=7, commit="abc", no_answer=NoAnswer(True, 0.25), config={"recipe": {"lr": 2e-4}})
    package(str(source), tmp_path / "model", say=quietly)
    manifest = ModelFolder(tmp_path / "model").verify()
    assert (manifest.name, manifest.seed, manifest.commit, manifest.no_answer) == ("Student 7", 7, "abc", NoAnswer(True, 0.25))
    assert manifest.config["checkpoint"] == {"recipe": {"lr": 2e-4}}
    package(str(tmp_path / "model"), tmp_path / "again", name="Other", say=quietly)
    again = ModelFolder(tmp_path / "again").verify()
    assert (again.name, again.no_answer, again.config) == ("Other", NoAnswer(True, 0.25), manifest.config)
    assert again.files["model.safetensors"] == manifest.files["model.safetensors"] == again.parent


def test_what_a_tokenizer_does_with_ideographs_is_written_into_both_files(tmp_path):
    source = shutil.copytree(checkpoint("bert"), tmp_path / "source")
    document = json.loads((source / "tokenizer.json").read_text())
    document["normalizer"]["handle_chinese_chars"] = False
    (source / "tokenizer.json").write_text(json.dumps(document))
    (source / "tokenizer_config.json").unlink()
    package(str(source), tmp_path / "model", say=quietly)
    assert json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())["tokenize_chinese_chars"] is False
    package(str(tmp_path / "model"), tmp_path / "again", say=quietly)


def test_a_checkpoint_from_elsewhere_is_told_what_it_was_trained_for(tmp_path, capsys):
    from mobile_export.package import main

    words = [str(checkpoint("bert")), "--out", str(tmp_path / "model"), "--no-answer", "--no-answer-threshold", "0.5"]
    assert main(words) == 0
    assert ModelFolder(tmp_path / "model").verify().no_answer == NoAnswer(True, 0.5)
    with pytest.raises(OptionsError, match="goes with --no-answer"):
        main([str(checkpoint("bert")), "--out", str(tmp_path / "other"), "--no-answer-threshold", "0.5"])
    for no_number in ("nan", "-inf"):  # which no JSON of Swift's holds
        with pytest.raises(OptionsError, match=f"a finite number, such as 0 or 1.5; found {no_number}"):
            main([str(checkpoint("bert")), "--out", str(tmp_path / "other"), "--no-answer", f"--no-answer-threshold={no_number}"])
    assert not (tmp_path / "other").exists()


def test_a_bert_of_single_sentences_and_odd_fields_of_a_config(tmp_path):
    from transformers import BertConfig, BertForQuestionAnswering

    def make(size: int) -> BertForQuestionAnswering:
        config = BertConfig(size, 32, 2, 2, 128, type_vocab_size=1, initializer_range=0.3)
        return BertForQuestionAnswering(config)

    source = _save(tmp_path / "source", make, cased=False, seed=0, vocabulary=None)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"return_dict": False, "torchscript": True, "id2label": None}))
    made = package(str(source), tmp_path / "model", say=quietly)
    assert made.agreement < 1e-4
    assert [i.name for i in onnx.load(tmp_path / "model" / "model.onnx", load_external_data=False).graph.input] == ["input_ids", "attention_mask"]


def test_packaging_twice_gives_the_same_bytes(tmp_path):
    package(str(checkpoint("bert")), tmp_path / "model", name="tiny-bert", say=quietly)
    assert ModelFolder(tmp_path / "model").read_manifest() == ModelFolder(model_folder("bert")).read_manifest()


def test_force_replaces_a_model_folder_in_place_and_keeps_its_card(tmp_path, capsys):
    folder = ModelFolder(copy_of("bert", tmp_path / "model"))
    folder.card.write_text("# Written by hand\n")
    folder.golden.unlink()
    assert pocketqa(["package", str(folder.path), "--out", str(folder.path)]) == 2
    assert f"pocketqa package {folder.path} --out {folder.path} --force" in capsys.readouterr().err
    assert pocketqa(["package", str(folder.path), "--out", str(folder.path), "--force"]) == 0
    before, after = ModelFolder(model_folder("bert")).read_manifest(), folder.verify()
    assert (after.name, after.parent, after.files["model.safetensors"]) == ("tiny-bert", before.parent, before.files["model.safetensors"])
    assert before.parent == sha256_file(checkpoint("bert") / "model.safetensors")  # which the repaired folder has not seen
    assert folder.card.read_text() == "# Written by hand\n" and os.listdir(tmp_path) == ["model"]


def test_the_card_is_of_the_same_weights(tmp_path):
    source = shutil.copytree(checkpoint("bert"), tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    said: list[str] = []
    package(str(source), tmp_path / "model", say=said.append)
    card = ModelFolder(tmp_path / "model").card
    assert card.read_text() == (source / "README.md").read_text()  # which states the licence
    card.write_text("# Written by hand\n")
    package(str(source), tmp_path / "model", force=True, say=said.append)
    assert card.read_text() == "# Written by hand\n" and not any("Dropping" in line for line in said)
    package(str(checkpoint("distilbert")), tmp_path / "model", force=True, say=said.append)
    assert not card.exists() and any("Dropping the model card" in line for line in said)


def test_force_never_replaces_something_else(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").write_text("dear")
    with pytest.raises(FolderError, match="holds no model"):
        package(str(checkpoint("bert")), tmp_path / "home", force=True, say=quietly)
    assert os.listdir(tmp_path / "home") == ["letters.txt"]


def broken(tmp_path: Path, kind: str) -> Path:
    """A checkpoint with one thing wrong."""
    if kind == "no head":
        return tiny_base(tmp_path / "base")
    source = shutil.copytree(checkpoint("bert"), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    changes = {
        "another type": {"model_type": "gpt2"},
        "three outputs": {"id2label": {"0": "a", "1": "b", "2": "c"}},
        "few positions": {"max_position_embeddings": 128},
        "another size": {"hidden_size": 64},
        "fewer layers": {"num_hidden_layers": 1},
        "pruned heads": {"pruned_heads": {"0": [1]}},
    }
    settings = {"mecab": {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}, "contradiction": {"do_lower_case": False}}
    if kind in settings:
        said = json.loads((source / "tokenizer_config.json").read_text())
        (source / "tokenizer_config.json").write_text(json.dumps(said | settings[kind]))
        if kind == "mecab":
            (source / "tokenizer.json").unlink()
        return source
    if kind == "no vocabulary size":
        (source / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "vocab_size"}))
    elif kind in changes:
        (source / "config.json").write_text(json.dumps(config | changes[kind]))
    elif kind == "no tokenizer":
        for name in ("tokenizer.json", "vocab.txt"):
            (source / name).unlink()
    elif kind == "another tokenizer":
        document = json.loads((source / "tokenizer.json").read_text())
        (source / "tokenizer.json").write_text(json.dumps(document | {"model": {"type": "BPE", "vocab": {}, "merges": []}}))
    elif kind == "pickled":
        (source / "model.safetensors").rename(source / "pytorch_model.bin")
    else:
        tensors = load_file(source / "model.safetensors")
        if kind == "a layer missing":
            del tensors["bert.encoder.layer.1.output.dense.weight"]
        elif kind == "adapters":
            tensors["bert.encoder.layer.0.attention.self.query.lora_A.default.weight"] = np.ones((4, 32), dtype=np.float32)
        elif kind == "beyond float16":
            tensors["qa_outputs.bias"] = np.array([1e6, 0], dtype=np.float32)
        elif kind == "small vocabulary":
            with (source / "vocab.txt").open("a") as file:
                file.write("extra\nwords\n")
            (source / "tokenizer.json").unlink()
        save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
        if kind == "truncated":
            (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-100])
    return source


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        ("no head", FolderError, "pocketqa finetune"),
        ("another type", FolderError, "model_type should be bert, distilbert or mobilebert, found 'gpt2'"),
        ("three outputs", FolderError, "two outputs"),
        ("few positions", FolderError, "at least 512, found 128"),
        ("no vocabulary size", FolderError, "vocab_size should be a whole number, found None"),
        ("another size", CorruptFolder, "fit its config.json"),
        ("no tokenizer", IncompleteFolder, "Expected a tokenizer"),
        ("another tokenizer", FolderError, "found 'BPE'"),
        ("pickled", IncompleteFolder, "only pytorch_model.bin"),
        ("a layer missing", CorruptFolder, r"1 are missing: bert\.encoder\.layer\.1\.output\.dense\.weight"),
        ("beyond float16", CorruptFolder, "qa_outputs.bias reaches 1e\\+06"),
        ("small vocabulary", CorruptFolder, "more than the"),
        ("truncated", CorruptFolder, "fit its config.json"),
        ("fewer layers", CorruptFolder, r"16 have none: bert\.encoder\.layer\.1.* correct the number of layers"),
        ("adapters", CorruptFolder, r"1 have none: .*lora_A.* Merge adapters first"),
        ("pruned heads", FolderError, "fit its config.json|pruned"),
        ("mecab", FolderError, "found BertJapaneseTokenizer in tokenizer_config.json, which cuts words otherwise"),
        ("contradiction", CorruptFolder, r"contradict each other \(lowercase True and False\)"),
    ],
)
def test_a_checkpoint_that_cannot_be_packaged_says_why_and_leaves_nothing(kind, error, message, tmp_path):
    source = broken(tmp_path, kind)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(error, match=message):
        package(str(source), tmp_path / "model", say=quietly)
    assert sorted(os.listdir(tmp_path)) == before


def test_the_command_that_converts_pickled_weights_makes_what_can_be_packaged_and_no_head_of_noise(tmp_path):
    for kind, whole in (("head", True), ("headless", False)):
        source = shutil.copytree(checkpoint("bert"), tmp_path / kind) if whole else tiny_base(tmp_path / kind)
        tensors = {name: torch.from_numpy(tensor) for name, tensor in load_file(source / "model.safetensors").items()}
        torch.save(tensors, source / "pytorch_model.bin")
        (source / "model.safetensors").unlink()
        with pytest.raises(IncompleteFolder) as refused:
            package(str(source), tmp_path / "model", say=quietly)
        words = shlex.split(str(refused.value).partition("once with: ")[2])
        code = words[2].replace("'MODEL'", repr(str(source))).replace("'FOLDER'", repr(str(tmp_path / f"{kind} converted")))
        done = subprocess.run([sys.executable, *words[1:2], code], capture_output=True, text=True, timeout=120)
        assert (done.returncode == 0) == whole, done.stderr
        assert whole or "qa_outputs" in done.stderr
    assert not (tmp_path / "headless converted").exists()
    package(str(tmp_path / "head converted"), tmp_path / "model", say=quietly)


def test_a_failure_late_in_the_work_leaves_an_old_folder_as_it_was(tmp_path, monkeypatch):
    import mobile_export.package as module

    folder = ModelFolder(copy_of("bert", tmp_path / "model"))
    monkeypatch.setattr(module, "AGREEMENT", 0.0)  # nothing agrees so well
    with pytest.raises(EngineError, match="No folder was written"):
        package(str(checkpoint("bert", True)), folder.path, force=True, say=quietly)
    assert folder.verify().name == "tiny-bert" and os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize(
    ("source", "message"),
    [("./nowhere", "found nothing"), ("/nowhere/at/all", "found nothing"), ("nobody/no-such-model", "the Hugging Face Hub gave no model")],
)
def test_a_source_that_is_not_there(source, message):
    with pytest.raises(IncompleteFolder, match=message):
        locate(source)


def test_what_states_the_licence_comes_from_the_hub_too(tmp_path, monkeypatch):
    source = shutil.copytree(checkpoint("bert"), tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")

    def download(name, allow_patterns):
        """What huggingface_hub.snapshot_download leaves."""
        ignored = [file.name for file in source.iterdir() if not any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns)]
        return str(shutil.copytree(source, tmp_path / "snapshot", ignore=lambda *_: ignored))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert open_checkpoint("somebody/some-model").licence == "cc-by-4.0"


def test_a_folder_without_a_config(tmp_path):
    with pytest.raises(IncompleteFolder, match=r"no config\.json"):
        locate(str(tmp_path))


def test_an_opset_that_is_not_written_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["x", "--out", "y", "--opset", "9"])
    assert "17, 18, 19, 20" in capsys.readouterr().err


def test_a_config_without_model_type_is_a_bert(tmp_path):
    """As TinyBERT is published."""
    source = shutil.copytree(checkpoint("bert"), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({name: value for name, value in config.items() if name not in ("model_type", "architectures")}))
    package(str(source), tmp_path / "model", say=quietly)
    batch = random_batch(2, 20)
    found = open_runtime(ModelFolder(tmp_path / "model"), "onnxruntime").forward(batch)
    np.testing.assert_array_equal(found.start, open_runtime(ModelFolder(model_folder("bert")), "onnxruntime").forward(batch).start)


def test_equal_parameters_are_linked_as_well(tmp_path):
    """Norms of an untrained model: each has its own place in the weights."""
    source = tiny_bert(tmp_path / "source", layers=3)
    tensors = load_file(source / "model.safetensors")
    for name in tensors:
        if name.endswith(("LayerNorm.weight", "LayerNorm.bias")):
            tensors[name] = np.full_like(tensors[name], 1.0 if name.endswith("weight") else 0.0)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    assert package(str(source), tmp_path / "model", say=quietly).agreement < 1e-4


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "pytorch"])
def test_golden_questions_replay_clean_on_every_engine(engine):
    folder = model_folder("distilbert")
    golden = Golden.load(folder / "golden.json")
    assert 5 <= len(golden.questions) <= 8
    assert replay(Reader.open(folder, engine=engine), golden) == []


def test_golden_questions_catch_other_weights_and_another_tokenizer(tmp_path):
    golden = Golden.load(model_folder("distilbert") / "golden.json")
    other = copy_of("distilbert", tmp_path / "model")
    folder = ModelFolder(other)
    tensors = load_file(folder.weights)
    tensors["distilbert.transformer.layer.1.ffn.lin2.weight"] *= np.float16(0.5)
    save_file(tensors, folder.weights, metadata={"format": "pt"})
    problems = replay(Reader(Tokenizer(folder.tokenizer), open_runtime(folder, "onnxruntime")), golden)
    assert any("largest start logit" in problem for problem in problems)
    cased = Reader.open(model_folder("distilbert", True), engine="onnxruntime")
    assert any("tokenizer is not the one" in problem for problem in replay(cased, golden))


@pytest.mark.parametrize(
    "content", ["", "[]", '{"format": 1}', '{"format": 7, "engine": "x", "questions": []}', '{"format": 1, "engine": "x", "questions": [{"a": 1}]}']
)
def test_unreadable_golden_questions_are_corrupt(content, tmp_path):
    (tmp_path / "golden.json").write_text(content)
    with pytest.raises(PocketQAError, match=r"golden\.json"):
        Golden.load(tmp_path / "golden.json")

"""Folders: headers read right, manifests written last, and every way in which a folder can be broken is named with its remedy."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file, save_file

from pocketqa import Reader, folders
from pocketqa.errors import CorruptFolder, FolderError, IncompleteFolder, StaleGraph
from pocketqa.folders import Manifest, ModelFolder, atomic_folder, file_hashes, safetensors_header, sha256_file, write_atomic, write_manifest
from pocketqa.types import NoAnswer
from pocketqa.weights import check_links, external_entries
from tests.packaged import copy_of, model_folder
from tests.tiny import flip


def test_the_header_points_at_the_bytes_of_each_tensor(tmp_path):
    draw = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {
        "a.weight": draw.random((3, 5)).astype(np.float16),
        "b": draw.random(7).astype(np.float32),
        "c": np.arange(4, dtype=np.int64).reshape(2, 2),
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    data = (tmp_path / "x.safetensors").read_bytes()
    header = safetensors_header(tmp_path / "x.safetensors")
    assert set(header) == set(tensors)
    for name, tensor in tensors.items():
        entry = header[name]
        assert entry.shape == tensor.shape
        assert data[entry.offset : entry.offset + entry.length] == tensor.tobytes()
    assert [header[name].dtype for name in ("a.weight", "b", "c")] == ["F16", "F32", "I64"]


@pytest.mark.parametrize(
    "content",
    [b"", b"1234", (10**6).to_bytes(8, "little") + b"{}", (9).to_bytes(8, "little") + b"not json!", (2).to_bytes(8, "little") + b"[]"],
    ids=["empty", "short", "length beyond the file", "not JSON", "not an object"],
)
def test_a_damaged_header_is_corrupt(tmp_path, content):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(CorruptFolder, match=r"x\.safetensors"):
        safetensors_header(tmp_path / "x.safetensors")


def test_truncated_weights_are_corrupt(tmp_path):
    save_file({"a": np.zeros(100, dtype=np.float16)}, tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    (tmp_path / "x.safetensors").write_bytes(data[:-1])
    with pytest.raises(CorruptFolder, match="should end at byte"):
        safetensors_header(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_external_entries_are_those_that_onnx_reads(kind):
    folder = ModelFolder(model_folder(kind))
    expected = []
    for tensor in onnx.load(str(folder.graph), load_external_data=False).graph.initializer:
        if tensor.external_data:
            places = {entry.key: entry.value for entry in tensor.external_data}
            assert tensor.data_type == onnx.TensorProto.FLOAT16
            expected.append((tensor.name, places["location"], "F16", tuple(tensor.dims), int(places["offset"]), int(places["length"])))
    found = [(e.name, e.location, e.tensor.dtype, e.tensor.shape, e.tensor.offset, e.tensor.length) for e in external_entries(folder.graph)]
    assert found == expected
    assert len(found) > 20


@pytest.mark.parametrize("content", [b"\xff\xff\xff", b"hello, this is no graph", b"\x3a\xff\x7f"])
def test_a_file_that_is_no_graph_is_corrupt_or_stale(tmp_path, content):
    save_file({"a": np.zeros(2, dtype=np.float16)}, tmp_path / "model.safetensors")
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(FolderError, match=r"model\.onnx"):
        check_links(tmp_path / "model.onnx", tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {**tensors, "aaa": np.zeros(8, dtype=np.float16)}, "at byte"),  # a new tensor moves the others
        (lambda tensors: {name: value.astype(np.float32) for name, value in tensors.items()}, "F32"),
        (lambda tensors: {name: value.reshape(-1) for name, value in tensors.items()}, r"found F16 \[\d+\]"),
        (lambda tensors: {f"other.{name}": value for name, value in tensors.items()}, "no such tensor"),
    ],
    ids=["moved", "another type", "another shape", "another name"],
)
def test_weights_written_anew_are_stale_and_the_repair_is_named(tmp_path, change, message):
    folder = ModelFolder(copy_of("distilbert", tmp_path / "model"))
    save_file(change(load_file(folder.weights)), folder.weights)
    with pytest.raises(StaleGraph, match=message) as raised:
        folder.verify()
    assert f"pocketqa package {folder.path} --out {folder.path} --force" in str(raised.value)


def test_a_whole_folder_verifies_and_its_manifest_reads_back():
    folder = ModelFolder(model_folder("bert"))
    manifest = folder.verify()
    assert folder.missing() == []
    assert manifest.name == "tiny-bert" and manifest.kind == "model"
    assert set(manifest.files) == {path.name for path in folder.path.iterdir()} - {"manifest.json"}
    assert manifest.files["model.safetensors"] == sha256_file(folder.weights)
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "golden.json", "vocab.txt"])
def test_one_flipped_byte_refuses_to_start(tmp_path, name):
    folder = copy_of("bert", tmp_path / "model")
    data = bytearray((folder / name).read_bytes())
    data[-7] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CorruptFolder, match=name):
        Reader.open(folder, engine="onnxruntime")


def test_what_a_training_reads_of_a_checkpoint_is_compared_with_its_manifest(tmp_path):
    folder = ModelFolder(copy_of("bert", tmp_path / "model"))
    for name in ("vocab.txt", "golden.json"):  # nothing is trained from them
        flip(folder.path / name)
    folder.graph.unlink()
    folder.verify_checkpoint()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        flip(folder.path / name)
        with pytest.raises(CorruptFolder, match=rf"{name} differs from what was saved: .*, or train it again"):
            folder.verify_checkpoint()
        flip(folder.path / name)
    folder.verify_checkpoint()
    flip(folder.weights)
    folder.manifest.unlink()
    folder.verify_checkpoint()  # another program's folder


def test_a_flipped_byte_of_the_graph_refuses_to_start(tmp_path):
    folder = ModelFolder(copy_of("bert", tmp_path / "model"))
    data = bytearray(folder.graph.read_bytes())
    data[data.index(b"Softmax")] ^= 1
    folder.graph.write_bytes(data)
    with pytest.raises(CorruptFolder, match=r"model\.onnx differs"):
        folder.verify()


def test_the_card_may_be_edited(tmp_path):
    folder = ModelFolder(copy_of("bert", tmp_path / "model"))
    folder.card.write_text("# A tiny model\n")
    folder.verify()


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "tokenizer.json", "golden.json", "manifest.json", "vocab.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = ModelFolder(copy_of("bert", tmp_path / "model"))
    (folder.path / name).unlink()
    with pytest.raises(IncompleteFolder, match=name) as raised:
        folder.verify()
    assert "pocketqa package" in str(raised.value)


def test_a_checkpoint_is_told_how_to_become_a_model_folder_elsewhere(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(IncompleteFolder, match=r"model\.onnx, golden\.json, manifest\.json missing") as raised:
        ModelFolder(tmp_path).check()
    assert str(raised.value).endswith(f"pocketqa package {tmp_path} --out DIR")


@pytest.mark.parametrize(("make", "found"), [(lambda path: None, "nothing"), (lambda path: path.write_text(""), "a file")])
def test_no_folder_at_all(tmp_path, make, found):
    make(tmp_path / "x")
    with pytest.raises(IncompleteFolder, match=f"found {found}"):
        ModelFolder(tmp_path / "x").check()


@pytest.mark.parametrize(
    "content",
    ["{", "[]", '{"format": 2, "kind": "model", "name": "x"}', '{"format": 1, "kind": "song", "name": "x"}', '{"format": 1, "kind": "model"}',
     '{"format": 1, "kind": "model", "name": "x", "files": []}', '{"format": 1, "kind": "model", "name": "x", "colour": "red"}'],
)  # fmt: skip
def test_an_unreadable_manifest_is_corrupt(tmp_path, content):
    folder = ModelFolder(copy_of("bert", tmp_path / "model"))
    folder.manifest.write_text(content)
    with pytest.raises(CorruptFolder, match=r"manifest\.json"):
        folder.verify()


def test_a_manifest_without_a_hash_of_the_weights_is_refused(tmp_path):
    folder = ModelFolder(copy_of("bert", tmp_path / "model"))
    document = json.loads(folder.manifest.read_text())
    del document["files"]["model.safetensors"]
    folder.manifest.write_text(json.dumps(document))
    with pytest.raises(CorruptFolder, match=r"sha256 of model\.safetensors"):
        folder.verify()


def test_write_manifest_hashes_everything_but_itself_and_the_card(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("a.txt", "deep/b.txt", "README.md"):
        (tmp_path / name).write_text(name)
    made = write_manifest(tmp_path, kind="checkpoint", name="x", seed=3, no_answer=NoAnswer(True, -1.5), config={"lr": 2e-4})
    again = write_manifest(tmp_path, kind="checkpoint", name="x", seed=3, no_answer=NoAnswer(True, -1.5), config={"lr": 2e-4})
    assert made == again == ModelFolder(tmp_path).read_manifest()
    assert set(made.files) == {"a.txt", "deep/b.txt"} == set(file_hashes(tmp_path))
    assert made.no_answer == NoAnswer(True, -1.5)


def test_write_atomic_replaces_whole_and_leaves_nothing_behind(tmp_path):
    write_atomic(tmp_path / "x", "one")
    write_atomic(tmp_path / "x", b"two")
    assert (tmp_path / "x").read_text() == "two"
    assert os.listdir(tmp_path) == ["x"]


def test_write_atomic_writes_through_a_link(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to("deep/x")
    for text in ("new", "replaced"):
        write_atomic(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "deep" / "x").read_text() == text
    assert os.listdir(tmp_path / "deep") == ["x"]


def test_atomic_folder_puts_all_in_place_with_ordinary_permissions(tmp_path):
    with atomic_folder(tmp_path / "deep" / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("x")
        (folder / "sub" / "x").chmod(0o600)
        assert not (tmp_path / "deep" / "out").exists()
    expected = 0o666 & ~_umask()
    assert stat.S_IMODE((tmp_path / "deep" / "out" / "sub" / "x").stat().st_mode) == expected
    assert os.listdir(tmp_path / "deep") == ["out"]


def test_atomic_folder_leaves_everything_as_it_was_after_an_error(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out", replace=True) as folder:
        (folder / "new").write_text("new")
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["old"]


def test_atomic_folder_replaces_only_when_told(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    with pytest.raises(FolderError, match="--force"), atomic_folder(tmp_path / "out"):
        pass
    with atomic_folder(tmp_path / "out", replace=True) as folder:
        (folder / "new").write_text("new")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["new"]


def test_atomic_folder_writes_through_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_folder(tmp_path / "link") as folder:
        (folder / "x").write_text("x")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "x").is_file()


def test_a_finished_folder_that_cannot_be_put_in_place_is_kept_and_named(tmp_path):
    with pytest.raises(FolderError, match=r"complete but cannot be put at .*: Not a directory") as raised, atomic_folder(tmp_path / "out") as folder:
        (folder / "x").write_text("of hours")
        (tmp_path / "out").write_text("a file came in the way")
    assert f"move {folder} " in str(raised.value) and (folder / "x").read_text() == "of hours"


def test_a_folder_that_another_run_put_there_meanwhile_stays(tmp_path):
    with pytest.raises(FolderError, match="It is kept: move") as raised, atomic_folder(tmp_path / "out") as second:
        (second / "x").write_text("second")
        with atomic_folder(tmp_path / "out") as first:
            (first / "x").write_text("first")
    assert (tmp_path / "out" / "x").read_text() == "first"
    assert str(second) in str(raised.value) and (second / "x").read_text() == "second"


def test_the_root_of_a_file_system_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(FolderError, match=r"root of a file system.*Name a folder in it"), atomic_folder(tmp_path / "out", replace=True):
        pytest.fail("made all the same")
    assert os.listdir(tmp_path) == ["out"]


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(FolderError, match="found a file"), atomic_folder(tmp_path / "out", replace=True):
        pass


def test_moving_a_folder_keeps_it_whole(tmp_path):
    copy_of("bert", tmp_path / "a")
    shutil.move(tmp_path / "a", tmp_path / "b")
    ModelFolder(tmp_path / "b").verify()


def test_an_unreadable_graph_and_weights_are_named(tmp_path):
    with pytest.raises(CorruptFolder, match=r"none\.safetensors"):
        safetensors_header(tmp_path / "none.safetensors")
    with pytest.raises(CorruptFolder, match=r"none\.onnx"):
        external_entries(tmp_path / "none.onnx")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


LONG = "x" * 300  # longer than a name may be: an OSError, as what nobody may read is to anybody but root


def test_what_the_system_does_not_let_be_read(tmp_path, monkeypatch):
    with pytest.raises(IncompleteFolder, match=r"found that it cannot be read \(File name too long\)"):
        ModelFolder(tmp_path / LONG).check()
    folder = ModelFolder(copy_of("bert", tmp_path / "model"))

    def hashed(path: Path) -> str:
        if path == folder.tokenizer:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return sha256_file(path)

    monkeypatch.setattr(folders, "sha256_file", hashed)
    for check in (folder.verify, folder.verify_checkpoint):
        with pytest.raises(CorruptFolder, match=rf"read all of {folder.path}, but {folder.tokenizer} cannot be read: Permission denied"):
            check()
    monkeypatch.setattr(folders, "REQUIRED", (LONG,))
    with pytest.raises(CorruptFolder, match="File name too long"):
        folder.check()


def test_paths_are_quoted_in_commands(tmp_path):
    folder = ModelFolder(copy_of("bert", tmp_path / "my model"))
    folder.golden.unlink()
    with pytest.raises(IncompleteFolder) as raised:
        folder.check()
    assert f"pocketqa package '{Path(tmp_path)}/my model' --out" in str(raised.value)

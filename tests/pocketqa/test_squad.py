"""SQuAD files: both versions, compressed or not, and errors that name file and record."""

import bz2
import gzip
import json
import lzma
import sys
import types
from typing import Any

import pytest

from pocketqa import squad
from pocketqa.errors import DataError, MissingExtra
from pocketqa.types import GoldAnswer

CONTEXT = "Ünïted 👍 cafés: Ada built it."


def record(**change):
    return {"id": "q1", "question": "Who built it?", "answers": [{"text": "Ada", "answer_start": 16}], **change}


def document(*records, context=CONTEXT, title="A mill"):
    return {"version": "1.1", "data": [{"title": title, "paragraphs": [{"context": context, "qas": list(records or [record()])}]}]}


def without(key):
    made = record()
    del made[key]
    return made


def test_version_one(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(document(record(), record(id=7, question="And?"))), encoding="utf-8")
    first, second = squad.load(path)
    assert (first.id, first.question, first.context, first.title) == ("q1", "Who built it?", CONTEXT, "A mill")
    assert first.answers == (GoldAnswer("Ada", 16),) and not first.is_impossible
    assert squad.parse(document(title=None))[0].title == ""
    assert second.id == "7"  # ids may be numbers in a file; predictions are kept by text


def test_version_two():
    impossible = {"id": "q2", "question": "Why?", "is_impossible": True, "answers": [], "plausible_answers": [{"text": "Ada", "answer_start": 16}]}
    found = squad.parse(document(record(is_impossible=False), impossible, record(id="q3", answers=[])))
    assert [(e.is_impossible, len(e.answers)) for e in found] == [(False, 1), (True, 0), (True, 0)]


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz", ".GZ"])
def test_compressed_files(tmp_path, suffix):
    press: Any = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix.lower()]
    data = json.dumps(document(), ensure_ascii=False).encode()
    for prefix in (b"", b"\xef\xbb\xbf"):
        path = tmp_path / f"dev.json{suffix}"
        path.write_bytes(press(prefix + data))
        assert squad.load(str(path))[0].answers[0].text == "Ada"


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
@pytest.mark.parametrize("damage", ["plain", "cut", "flipped"])
def test_damaged_compression(tmp_path, suffix, damage):
    press: Any = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix]
    data = bytearray(press(json.dumps(document()).encode()))
    middle = len(data) // 2
    data[middle : middle + 4] = (byte ^ 0xFF for byte in data[middle : middle + 4])
    whole = press(json.dumps(document()).encode())
    path = tmp_path / f"dev.json{suffix}"
    path.write_bytes({"plain": b"{} not compressed", "cut": whole[:-25], "flipped": bytes(data)}[damage])
    with pytest.raises(DataError, match=r"dev\.json\.\w+: cannot be read or decompressed"):
        squad.load(path)


WHERE = r"dev: data\[0\]\.paragraphs\[0\]\.qas\[0\]"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without("id"), rf"{WHERE}: expected a non-empty 'id', found None"),
        (record(id=""), rf"{WHERE}: expected a non-empty 'id'"),
        (without("question"), rf"{WHERE} \(id q1\): expected the key 'question', found 'id', 'answers'"),
        (record(question="  "), rf"{WHERE} \(id q1\): expected non-empty text for 'question'"),
        (record(question=5), rf"{WHERE} \(id q1\): expected non-empty text for 'question', found 5"),
        (record(answers={"text": ["Ada"]}), rf"{WHERE} \(id q1\)\.answers: expected a list, found dict"),
        (record(answers=["Ada"]), rf"{WHERE} \(id q1\)\.answers\[0\]: expected an object, found str"),
        (record(answers=[{"text": "Ada"}]), rf"{WHERE} \(id q1\)\.answers\[0\]: expected a whole number .* found None"),
        (record(answers=[{"text": "Ada", "answer_start": True}]), "expected a whole number"),
        (record(answers=[{"text": "Ada", "answer_start": "16"}]), "expected a whole number"),
        (record(answers=[{"text": "Ada", "answer_start": -13}]), "expected a whole number"),
        (record(answers=[{"text": "Ada", "answer_start": 17}]), "expected the answer 'Ada' at code point 17 of the context, found 'da '.*not bytes"),
        (record(answers=[{"text": "Ada", "answer_start": 500}]), "found ''"),
        (record(answers=[{"text": "", "answer_start": 0}]), "expected non-empty text for 'text'"),
        (record(is_impossible="no"), "expected true or false for 'is_impossible', found 'no'"),
        (record(is_impossible=True), "'is_impossible' is true, but there are 1 answers.*plausible_answers"),
    ],
)
def test_errors_name_the_record(bad, message):
    with pytest.raises(DataError, match=message):
        squad.parse(document(bad), "dev")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([], "dev: expected an object with the key 'data', found list"),
        ({"version": "1.1"}, "dev: expected the key 'data', found 'version'"),
        ({}, "found an empty object"),
        ({"data": {}}, "dev: data: expected a list, found dict"),
        ({"data": []}, "expected at least one question, found none"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"dev: data\[0\]\.paragraphs\[0\]: expected the key 'context'"),
        ({"data": [{"paragraphs": [{"context": "c"}]}]}, "expected the key 'qas'"),
        ({"data": [{"title": "no paragraphs"}]}, r"dev: data\[0\]: expected the key 'paragraphs'"),
    ],
)
def test_errors_name_the_level(bad, message):
    with pytest.raises(DataError, match=message):
        squad.parse(bad, "dev")


def test_offsets_that_count_bytes_are_refused():
    in_bytes = len(CONTEXT[:16].encode())
    with pytest.raises(DataError, match="count code points"):
        squad.parse(document(record(answers=[{"text": "Ada", "answer_start": in_bytes}])))


def test_files_that_are_not_json_or_not_utf8(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text('{"data": [\n{]}', encoding="utf-8")
    with pytest.raises(DataError, match=r"dev\.json: expected JSON, found an error at line 2, column 2"):
        squad.load(path)
    path.write_bytes(b'{"data": "caf\xe9"}')
    with pytest.raises(DataError, match="expected UTF-8, found byte 0xe9 at position 13"):
        squad.load(path)
    path.write_bytes(b'\xef\xbb\xbf{"data": "caf\xe9"}')
    with pytest.raises(DataError, match="found byte 0xe9 at position 16"):
        squad.load(path)


def test_half_of_a_surrogate_pair_is_refused(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text('{"data": [{"paragraphs": [{"context": "Ada", "qas": [{"id": "q1", "question": "Who \\ud83d?", "answers": []}]}]}]}')
    with pytest.raises(DataError, match=r"\(id q1\): expected whole characters in 'question', found half of a surrogate pair at code point 4"):
        squad.load(path)


def test_one_id_twice_is_refused(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(document(record(), record())), encoding="utf-8")
    with pytest.raises(DataError, match="'q1' occurs twice"):
        squad.load(path)


@pytest.mark.parametrize("name", ["absent.json", "./absent", "a/b/c", "absent.json.gz"])
def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"Expected a SQuAD-format file .* found nothing"):
        squad.load(name)
    with pytest.raises(DataError, match="found a folder"):
        squad.load(tmp_path)


def test_a_place_that_the_system_does_not_let_be_seen(tmp_path):
    with pytest.raises(DataError, match=r"SQuAD-format file at .*, but it cannot be read: File name too long"):
        squad.load(tmp_path / ("x" * 300) / "dev.json")


def test_a_title_that_too_many_passages_share_is_left_out(tmp_path):
    """It stands for passages of unknown articles, which intervals draw one by one; a second question of a passage adds no letters."""

    def article(title, passages):
        letters = "a" * (squad.LONGEST_ARTICLE // 4 - 1)
        qas = [[record(id=f"{title}-{n}-{q}", answers=[]) for q in range(2)] for n in range(passages)]
        return {"title": title, "paragraphs": [{"context": f"{n}{letters}", "qas": qas[n]} for n in range(passages)]}

    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"data": [article("unknown", 5), article("A mill", 4)]}), encoding="utf-8")
    examples = squad.load(path)
    assert [example.title for example in examples] == [""] * 10 + ["A mill"] * 8
    assert len(set(squad.groups_of(examples))) == 5 + 1
    assert set(squad.load(path, 3)) <= set(examples)  # the whole file tells, whatever the sample


def test_a_sample_is_seeded_and_spread(tmp_path):
    path = tmp_path / "dev.json"
    path.write_text(json.dumps(document(*(record(id=f"q{i:03}") for i in range(300)))), encoding="utf-8")
    ids = [e.id for e in squad.load(path, limit=60)]
    assert ids == sorted(ids) and len(set(ids)) == 60
    assert ids == [e.id for e in squad.load(path, limit=60, seed=0)] != [e.id for e in squad.load(path, limit=60, seed=1)]
    thirds = [sum(first <= int(identity[1:]) < first + 100 for identity in ids) for first in (0, 100, 200)]
    assert min(thirds) >= 10
    assert len(squad.load(path, limit=300)) == len(squad.load(path, limit=1000)) == 300
    with pytest.raises(DataError, match="at least 1, found 0"):
        squad.load(path, limit=0)


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for the `datasets` library, which would need a network."""
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name != "owner/set":
            raise FileNotFoundError("no such data set")
        rows = [
            {
                "id": "h1",
                "title": "t",
                "context": "Ada built it.",
                "question": "Who?",
                "answers": {"text": ["Ada", "Ada built"], "answer_start": [0, 0]},
            }
        ]
        return [*rows, {"id": "h2", "title": "t", "context": "Ada built it.", "question": "Why?", "answers": {"text": [], "answer_start": []}}]

    module = types.ModuleType("datasets")
    module.__dict__["load_dataset"] = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_hub_names(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = squad.load("owner/set")
    assert [e.is_impossible for e in found] == [False, True] and found[0].answers[1].text == "Ada built"
    squad.load("owner/set:train")
    squad.load("owner/set", split="train")
    squad.load("owner/set:validation", split="train")
    assert [split for _, split in hub] == ["validation", "train", "train", "validation"]
    with pytest.raises(DataError, match=r"neither a file nor a Hub data set.*FileNotFoundError: no such data set"):
        squad.load("owner/other")


def test_hub_names_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"pocketqa\[train\]"):
        squad.load("squad")

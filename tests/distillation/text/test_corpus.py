"""Text on its way to rows: every kind of source, the cache and its damage, packing, plans, and what stays apart."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard

from distillation.text import corpus_text
from distillation.text.corpus import BLOCK, Corpus, CorpusOptions, hold_out, open_corpus, plan_size, plan_steps
from distillation.text.corpus_cache import INDEX, TOKENS
from pocketqa.errors import DataError, TrainingError
from tests.tiny import SPECIAL, tiny_bert

WORDS = [f"w{number}" for number in range(50)]
VOCABULARY = [*SPECIAL, *WORDS, "##x"]
FIRST = len(SPECIAL)  # id of w0


@dataclass(frozen=True)
class Plan:
    epochs: float = 1.0
    batch_tokens: int = 64
    accumulation: int = 1
    seed: int = 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("model"), vocabulary=VOCABULARY)


def write_documents(path: Path, documents: list[list[int]]) -> Path:
    """One paragraph a document, its words given by number."""
    path.write_text("\n\n".join(" ".join(f"w{n}" for n in document) for document in documents) + "\n", encoding="utf-8")
    return path


def counting(count: int, length: int) -> list[list[int]]:
    return [[(7 * d + i) % 50 for i in range(length)] for d in range(count)]


def open_text(model: Path, tmp_path: Path, *paths: Path | str, say: object = None, **options: int | bool) -> Corpus:
    lines: list[str] = say if isinstance(say, list) else []
    return open_corpus([str(path) for path in paths], model, CorpusOptions(**options), tmp_path / "cache", lines.append)  # type: ignore[arg-type]


def test_packed_rows_run_on_and_keep_every_token(model: Path, tmp_path: Path) -> None:
    documents = counting(20, 13)
    corpus = open_text(model, tmp_path, write_documents(tmp_path / "a.txt", documents), max_tokens=10, packed=True, min_tokens=3)
    assert set(corpus.lengths[:-1]) <= {8, 9, 10}
    stream: list[int] = []
    for index in range(len(corpus)):
        row = corpus.row(index).tolist()
        assert (row[0], row[-1], len(row)) == (2, 3, corpus.lengths[index])
        stream += [token for token in row[1:-1] if token != 3]
    assert stream == [FIRST + n for document in documents for n in document]
    assert (corpus.tokens, corpus.documents) == (20 * 14, 20)
    assert corpus.counts[FIRST:-1].sum() == 20 * 13
    assert corpus.counts[3] == 20


def test_bucketed_rows_stay_in_their_document_and_cut_evenly(model: Path, tmp_path: Path) -> None:
    documents = [list(range(21)), list(range(30, 35)), [1, 2]]
    corpus = open_text(model, tmp_path, write_documents(tmp_path / "a.txt", documents), max_tokens=12, packed=False, min_tokens=5)
    found = [[token - FIRST for token in corpus.row(index)[1:-1]] for index in range(len(corpus))]
    assert found == [list(range(7)), list(range(7, 14)), list(range(14, 21)), list(range(30, 35))]  # the two words are too short a row


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)])
def test_compressed_files_hold_the_same_text(model: Path, tmp_path: Path, suffix: str, pack: object) -> None:
    plain = write_documents(tmp_path / "a.txt", counting(4, 20))
    packed = tmp_path / f"a.txt{suffix}"
    packed.write_bytes(pack(plain.read_bytes()))  # type: ignore[operator]
    first, second = open_text(model, tmp_path, plain), open_text(model, tmp_path, packed)
    assert first.key != second.key
    assert [first.row(i).tolist() for i in range(len(first))] == [second.row(i).tolist() for i in range(len(second))]


def test_zstandard_is_read_or_the_error_says_how(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = write_documents(tmp_path / "a.txt", counting(4, 20))
    packed = tmp_path / "a.txt.zst"
    packed.write_bytes(zstandard.ZstdCompressor().compress(plain.read_bytes()))
    assert open_text(model, tmp_path, packed).tokens == open_text(model, tmp_path, plain).tokens
    for name in ("compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    with pytest.raises(DataError, match="pip install zstandard"):
        open_text(model, tmp_path / "other", packed)


def test_a_folder_gives_its_text_files_in_order(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    (folder / "sub").mkdir(parents=True)
    write_documents(folder / "b.txt", [[2] * 15])
    write_documents(folder / "sub" / "c.txt", [[3] * 15])
    write_documents(folder / "a.txt", [[1] * 15])
    (folder / "README.md").write_text("not to be read")
    corpus = open_text(model, tmp_path, folder, packed=False)
    assert [source["name"] for source in corpus.sources] == ["a.txt", "b.txt", "c.txt"]
    assert [int(corpus.row(index)[1]) - FIRST for index in range(3)] == [1, 2, 3]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"expected \.txt files"):
        open_text(model, tmp_path, tmp_path / "none")


def test_a_limit_ends_the_reading(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(["w1 w2 w3"] * 3000))
    whole, part = open_text(model, tmp_path, path), open_text(model, tmp_path, path, limit=1000)
    assert whole.tokens == 12000
    assert part.tokens == 1000
    assert whole.key != part.key
    assert open_text(model, tmp_path, path, limit=1003).tokens == 1000  # the next document would have a fourth token


def test_a_limit_may_fall_into_a_document_and_ends_the_other_files_too(model: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("w1 w2 w3 w4\nw5 w6 w7\nw8\n")
    second.write_text("w9\n")
    corpus = open_text(model, tmp_path, first, second, limit=8, min_tokens=3)
    assert corpus.row(0)[1:-1].tolist() == [FIRST + n for n in (1, 2, 3, 4, 5, 6, 7)]
    assert (corpus.tokens, [source["tokens"] for source in corpus.sources]) == (8, [8, 0])
    assert open_text(model, tmp_path, first, second, limit=7, min_tokens=3).tokens == 5
    with pytest.raises(DataError, match="Expected a first paragraph of fewer than --corpus-tokens 4 tokens, found a longer one"):
        open_text(model, tmp_path, first, second, limit=4)


def test_the_cache_is_used_again_and_keyed_by_text_and_vocabulary(model: Path, tmp_path: Path) -> None:
    path = write_documents(tmp_path / "a.txt", counting(4, 20))
    lines: list[str] = []
    first = open_text(model, tmp_path, path)
    again = open_text(model, tmp_path, path, say=lines, packed=False)
    assert again.key == first.key
    assert "from the cache" in lines[0]
    write_documents(path, counting(5, 20))
    assert open_text(model, tmp_path, path).key != first.key
    other = tiny_bert(tmp_path / "other", vocabulary=[*VOCABULARY, "more"])
    assert open_text(other, tmp_path, path).key not in {first.key, open_text(model, tmp_path, path).key}


@pytest.mark.parametrize("harm", ["flip", "cut", "index", "gone"])
def test_a_damaged_cache_is_named_and_made_again(model: Path, tmp_path: Path, harm: str) -> None:
    path = write_documents(tmp_path / "a.txt", counting(8, 20))
    first = open_text(model, tmp_path, path)
    rows = [first.row(index).tolist() for index in range(len(first))]
    (folder,) = (tmp_path / "cache").iterdir()
    if harm == "index":
        (folder / INDEX).write_text("{")
    elif harm == "gone":
        (folder / TOKENS).unlink()
    else:
        data = bytearray((folder / TOKENS).read_bytes())
        data[10] ^= 1
        (folder / TOKENS).write_bytes(data if harm == "flip" else data[:-2])
    lines: list[str] = []
    second = open_text(model, tmp_path, path, say=lines)
    assert "is damaged" in lines[0]
    assert folder.name in lines[0]
    assert (INDEX if harm == "index" else TOKENS) in lines[0]
    assert [second.row(index).tolist() for index in range(len(second))] == rows
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [folder.name]


def test_a_killed_tokenisation_leaves_no_cache(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("\n".join(["w1 w2 w3"] * 5000))
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from distillation.text import corpus_cache, corpus\n"
        "append = corpus_cache._Writer._append\n"
        "def slow(self, lines):\n"
        "    append(self, lines)\n"
        "    print('at work', flush=True)\n"
        "    time.sleep(60)\n"
        "corpus_cache._Writer._append = slow\n"
        "corpus.open_corpus([sys.argv[1]], Path(sys.argv[2]), corpus.CorpusOptions(), Path(sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", program, str(path), str(model), str(tmp_path / "cache")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGKILL)
    (left,) = (entry for entry in (tmp_path / "cache").iterdir() if entry.is_dir())
    assert left.name.startswith(".")
    corpus = open_text(model, tmp_path, path)
    assert corpus.tokens == 15001
    assert not list((tmp_path / "cache").glob(".*.lock"))  # the killed one's lock is no lock
    old = time.time() - 3600
    for entry in (left, *left.iterdir()):
        os.utime(entry, (old, old))
    path.write_text("w1 " * 40)
    open_text(model, tmp_path, path)
    assert left.exists()  # of another corpus
    path.write_text("\n".join(["w1 w2 w3"] * 5000))
    (tmp_path / "cache" / left.name.split(".")[1] / TOKENS).unlink()
    open_text(model, tmp_path, path)
    assert not left.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "found no token"),
        (b"\n \n\n", "found no token"),
        ("語 言 文".encode(), "mostly unknown characters"),
        (b"w1 w2\nw3 \x00 w4", "a binary file"),
        (b"w1 w2\nw3 \xff\xfe w4", "expected UTF-8 text"),
    ],
)
def test_text_that_cannot_be_used_is_refused(model: Path, tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        open_text(model, tmp_path, path)
    assert "a.txt" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_truncated_archive_is_refused(model: Path, tmp_path: Path) -> None:
    for suffix, pack in ((".gz", gzip.compress), (".xz", lzma.compress), (".bz2", bz2.compress)):
        path = tmp_path / f"a.txt{suffix}"
        path.write_bytes(pack(os.urandom(3000).hex().encode())[:-40])
        with pytest.raises(DataError, match="cannot be read"):
            open_text(model, tmp_path, path)


def test_what_is_not_there_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing at"):
        open_text(model, tmp_path, tmp_path / "missing.txt")
    with pytest.raises(DataError, match="nor a Hub data set that can be reached"):  # tests run offline
        open_text(model, tmp_path, "somebody/some-text")


def test_a_cache_that_cannot_be_written_is_an_error(model: Path, tmp_path: Path) -> None:
    path = write_documents(tmp_path / "a.txt", counting(4, 20))
    (tmp_path / "cache").write_text("a file in the way")
    with pytest.raises(TrainingError, match="--cache"):
        open_text(model, tmp_path, path)


def test_hub_records_are_documents(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    commit = "0123456789" * 4

    def load_dataset(name: str, config: str | None, **options: object) -> list[dict[str, str]]:
        asked.append((name, config, options))
        return [{"text": "w1 " * 20 + "\n\n" + "w2 " * 20}, {"text": "w3 " * 20}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    corpus = open_text(model, tmp_path, f"owner/name@{commit}:part:test", packed=False)
    assert asked == [("owner/name", "part", {"split": "test", "revision": commit, "streaming": True})]
    assert (corpus.documents, corpus.sources[0]["name"]) == (2, "owner/name:part:test")
    assert corpus.lengths.tolist() == [42, 22]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *a, **k: [{"sentence": "w1", "label": 0}]))
    with pytest.raises(DataError, match=r"expected text in a column 'text', found the columns sentence, label .*Name the column .*#COLUMN"):
        open_text(model, tmp_path, f"owner/other@{commit}")
    named = open_text(model, tmp_path, f"owner/other@{commit}:part#sentence", min_tokens=3)
    assert (named.tokens, named.sources[0]["name"]) == (2, "owner/other:part:train#sentence")
    with pytest.raises(DataError, match="expected text in a column 'label', found the columns"):
        open_text(model, tmp_path, f"owner/other@{commit}:part#label")


def test_a_long_line_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_text, "MAX_LINE", 1000)
    path = tmp_path / "a.txt"
    path.write_text("w1 " * 2000)
    pieces = [line for line, _ in corpus_text.TextFile.of(path).lines()]
    assert max(map(len, pieces)) <= 1000
    assert len(pieces) > 5


def test_blocks_are_held_out_and_never_trained_on() -> None:
    lengths = np.full(1000, 100)
    rows, apart = hold_out(lengths, 5000)
    assert sorted([*rows, *apart]) == list(range(1000))
    assert 5000 - 100 * BLOCK <= lengths[apart].sum() <= 5000
    assert (np.diff(apart) == 1).sum() >= len(apart) - len(apart) // BLOCK - 1
    assert len(hold_out(lengths, 10**9)[1]) <= 100
    assert len(hold_out(lengths, 0)[1]) == 0
    assert len(hold_out(np.array([50]), 1000)[1]) == 0


def test_plans_see_every_row_once_a_pass_with_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(12, 129, size=3000)
    plan = plan_steps(lengths, Plan(epochs=2, batch_tokens=2048, accumulation=4), np.arange(100, 3000))
    seen = [index for step in plan for batch in step for index in batch]
    assert sorted(seen) == sorted([*range(100, 3000)] * 2)
    first, second = seen[:2900], seen[2900:]
    assert sorted(first) == sorted(second) and first != second  # each pass in an order of its own
    assert all(len(step) == 4 for step in plan[:-1])
    assert all(len(batch) * lengths[list(batch)].max() <= 2048 for step in plan for batch in step)
    tokens, waste = plan_size(plan, lengths)
    assert tokens == 2 * lengths[100:].sum()
    assert 0 < waste < 0.05
    assert plan == plan_steps(lengths, Plan(epochs=2, batch_tokens=2048, accumulation=4), np.arange(100, 3000))
    held = sum(sys.getsizeof(batch) for step in plan for batch in step)
    assert held < 16 * len(seen)  # bytes: a list of integers takes more than twice as many


def test_a_token_budget_sets_the_passes() -> None:
    lengths = np.full(1000, 64)
    for budget in (6400, 64_000, 160_000):
        tokens, _ = plan_size(plan_steps(lengths, Plan(epochs=9, batch_tokens=640), tokens=budget), lengths)
        assert tokens == pytest.approx(budget, rel=0.02)
    with pytest.raises(TrainingError, match="no row to train on"):
        plan_steps(lengths, Plan(), np.array([], dtype=np.int64))


def test_rows_need_room(model: Path, tmp_path: Path) -> None:
    path = write_documents(tmp_path / "a.txt", counting(4, 20))
    with pytest.raises(TrainingError, match="Raise --max-tokens"):
        open_text(model, tmp_path, path, max_tokens=2)


def test_the_index_names_its_sources(model: Path, tmp_path: Path) -> None:
    path = write_documents(tmp_path / "a.txt", counting(4, 20))
    open_text(model, tmp_path, path)
    (folder,) = (tmp_path / "cache").iterdir()
    index = json.loads((folder / INDEX).read_text())
    assert index["sources"] == [{"name": "a.txt", "sha256": corpus_text.TextFile.of(path).sha256, "tokens": 84, "documents": 4}]

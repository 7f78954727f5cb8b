"""`pocketqa answer --jsonl` run whole: answers as one at a time, killed and begun again, refused, and over Ray."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pocketqa import answer
from pocketqa.__main__ import main as command
from pocketqa.bulk import blocks, run
from pocketqa.bulk.blocks import BLOCK_LINES
from pocketqa.bulk.lines import Asked
from pocketqa.bulk.ray_data import what_failed
from pocketqa.errors import DataError, EngineError, OptionsError
from pocketqa.reader import Reader
from pocketqa.types import RuntimeInfo
from tests.packaged import model_folder
from tests.pocketqa import little

SAMPLES = Path(__file__).parents[3] / "pocketqa" / "samples.json"
LETTERS = 60  # of a passage: quick to answer, and BLOCK_LINES of them are far from BLOCK_BYTES


def samples(path: Path, lines: int) -> Path:
    """So many lines of the project's own questions, with a bad one at line 5."""
    articles = json.loads(SAMPLES.read_text(encoding="utf-8"))["data"]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    records = [{"id": q["id"], "question": q["question"], "context": p["context"][:LETTERS]} for p in paragraphs for q in p["qas"]]
    texts = [json.dumps(records[number % len(records)]) for number in range(lines)]
    path.write_text("\n".join([*texts[:4], "no json", *texts[5:]]) + "\n", encoding="utf-8")
    return path


def words(source: Path, out: Path, *more: str) -> list[str]:
    model = ["--model", str(model_folder("distilbert")), "--engine", "onnxruntime", "--threads", "1"]
    return ["answer", "--jsonl", str(source), "--out", str(out), *model, *more]


def test_the_whole_command(tmp_path, capfd):
    source, out = samples(tmp_path / "in.jsonl", 40), tmp_path / "out.jsonl"
    assert command(words(source, out)) == run.SOME_FAILED
    said = capfd.readouterr()
    assert said.out.startswith(f"{out}: 40 lines, 1 not answered\n40 lines in ") and "\nline 5: Expected a JSON object" in f"\n{said.err}"
    reader = Reader.open(model_folder("distilbert"), engine="onnxruntime", threads=1)
    asked, found = ([json.loads(line) if line[0] == "{" else None for line in path.read_text("utf-8").splitlines()] for path in (source, out))
    for number, (question, one) in enumerate(zip(asked, found, strict=True), 1):
        assert one is not None and one["line"] == number
        if question is None:
            assert "error" in one
            continue
        best = reader.answer(question["question"], question["context"]).best
        assert (one["id"], one["answer"], one["start"], one["end"]) == (question["id"], best.text, best.start, best.end)
        assert one["score"] == pytest.approx(best.score, abs=1e-5)

    before = out.read_bytes()
    assert command(words(source, out, "--json")) == run.SOME_FAILED
    summary = json.loads(capfd.readouterr().out)
    assert (summary["lines"], summary["answered"], summary["failed"], summary["resumed_at"]) == (40, 39, 1, 40)
    assert summary["model"]["engine"] == "onnxruntime" and len(summary["model"]["sha256"]) == 64
    assert out.read_bytes() == before

    assert command(words(source, out, "--top-k", "2")) == 2
    assert "found another set of options" in capfd.readouterr().err
    assert command(words(source, out, "--top-k", "2", "--force")) == run.SOME_FAILED
    assert len(json.loads(out.read_text("utf-8").splitlines()[0])["answers"]) == 2


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(tmp_path, capfd):
    lines = 5 * BLOCK_LINES + 7
    source, out, whole = samples(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    record = tmp_path / "out.jsonl.run.json"

    def finished() -> int:
        return int(json.loads(record.read_text())["blocks"]) if record.exists() else 0

    for wanted in (1, 3):
        process = subprocess.Popen([sys.executable, "-m", "pocketqa", *words(source, out)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        end = time.monotonic() + 120
        while finished() < wanted:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
        assert finished() < 6 and not out.exists()
    reached = int(json.loads(record.read_text())["lines"])
    assert command(words(source, out, "--json")) == run.SOME_FAILED
    said = capfd.readouterr()
    summary = json.loads(said.out)
    assert summary["resumed_at"] == reached >= 3 * BLOCK_LINES and f"Going on after line {reached:,} of {lines:,}." in said.err
    assert command(words(source, whole)) == run.SOME_FAILED
    assert out.read_bytes() == whole.read_bytes()
    assert [json.loads(line)["line"] for line in out.read_bytes().splitlines()] == list(range(1, lines + 1))


def test_no_more_than_a_block_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_LINES", 20)
    source = samples(tmp_path / "in.jsonl", 60)
    (tmp_path / "manifest.json").write_text("{}")
    reader = little.reader(tmp_path)
    reader.runtime = little.pointing_at(reader.tokenizer, "ada")
    sizes: list[int] = []
    encode = reader.tokenizer.encode

    def counted(requests, options=None):
        sizes.append(len(requests))
        return encode(requests, options)

    monkeypatch.setattr(reader.tokenizer, "encode", counted)
    monkeypatch.setattr(Reader, "open", lambda *_, **__: reader)
    run.answer_file(source, tmp_path / "out", tmp_path, Asked())
    assert sizes == [19, 20, 20]  # one of the first twenty is no question


def test_a_run_is_not_gone_on_with_after_its_model_folder_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_LINES", 20)
    source, out, reader = samples(tmp_path / "in.jsonl", 40), tmp_path / "out", little.reader(tmp_path)
    monkeypatch.setattr(Reader, "open", lambda *_, **__: reader)

    def answer_once(force: bool = False) -> None:
        run.answer_file(source, out, tmp_path, Asked(), force)

    (tmp_path / "manifest.json").write_text('{"files": {"tokenizer.json": "a"}}')
    answer_once()
    answer_once()
    (tmp_path / "manifest.json").write_text('{"files": {"tokenizer.json": "b"}}')
    with pytest.raises(DataError, match="found another manifest"):
        answer_once()
    reader.runtime = quantised = little.HashRuntime()
    monkeypatch.setattr(little.HashRuntime, "info", RuntimeInfo("onnxruntime", "1", "int8", 1))
    form = tmp_path / "forms" / "onnx-int8" / "manifest.json"
    form.parent.mkdir(parents=True)
    form.write_text("one way of quantising")
    answer_once(force=True)
    answer_once()
    form.write_text("another")
    with pytest.raises(DataError, match="found another manifest"):
        answer_once()
    assert quantised.batches


def test_a_standard_output_without_the_letters_of_a_name(tmp_path, monkeypatch):
    source, out, said = samples(tmp_path / "in.jsonl", 6), tmp_path / "rép.jsonl", []
    for more in ([], ["--json"]):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
        assert command(words(source, out, *more)) == run.SOME_FAILED
        said.append(raw.getvalue())
    assert b"r\\xe9p.jsonl: 6 lines" in said[0] and json.loads(said[1])["out"] == str(out)


def test_progress_tells_rate_and_time_left(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(blocks, "BLOCK_LINES", 20)
    source = samples(tmp_path / "in.jsonl", 40)
    (tmp_path / "manifest.json").write_text("{}")
    monkeypatch.setattr(Reader, "open", lambda *_, **__: little.reader(tmp_path))
    monkeypatch.setattr(run, "PROGRESS_SECONDS", 0.0)
    run.answer_file(source, tmp_path / "out", tmp_path, Asked())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("20/40 lines, ") and line.endswith(" min left")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--jsonl", "a"], "found no --out"),
        (["--jsonl", "a", "--out", "b", "--question", "who?"], "found --question"),
        (["--jsonl", "a", "--out", "b", "--context", "text"], "found --context"),
        (["--out", "b"], "found no --question and --out"),
        (["--question", "who?", "--context", "x", "--ray"], "found --ray"),
        (["--question", "who?", "--context", "x", "--force"], "found --force"),
        (["--jsonl", "a", "--out", "b", "--threads", "0"], "--threads to be at least 1, found 0"),
        (["--jsonl", "a", "--out", "b", "--max-question-tokens", "253"], "--max-question-tokens of 1 to 252, .* found 253"),
    ],
)
def test_a_mixture_of_ways_is_refused(given, says):
    with pytest.raises(OptionsError, match=says):
        answer.main(given)


def test_what_cannot_be_answered_at_all(tmp_path, capfd):
    source = samples(tmp_path / "in.jsonl", 6)
    precious = samples(tmp_path / "out.partial", 6).read_bytes()
    assert command(words(tmp_path / "absent", tmp_path / "out")) == 2
    assert command(words(source, source)) == 2
    assert command(words(tmp_path / "out.partial", tmp_path / "out", "--force")) == 2
    assert command(words(source, tmp_path, "--force")) == 2
    assert (tmp_path / "out.partial").read_bytes() == precious
    (tmp_path / "out.partial").unlink()
    assert command(words(source, tmp_path / "out", "--no-answer")) == 2
    said = capfd.readouterr().err
    assert "cannot be read: No such file" in said and said.count("another file for the answers") == 2 and "not trained" in said
    assert f"Expected to write a file at {tmp_path}, found a folder." in said
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "127.0.0.1:70000"])
def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path, capfd, address):
    assert command(words(samples(tmp_path / "in.jsonl", 6), tmp_path / "out", "--ray", address)) == 2
    said = capfd.readouterr().err
    assert f"Expected a Ray cluster at {address}, found none: " in said and "ray start --head" in said


def test_what_a_worker_says_is_told_and_not_what_ray_advises():
    trace = "Worker (pid=1)\n  File x\npocketqa.errors.DataError: Expected 3 lines, found: others.\n\nTo change retries, read on."
    assert what_failed(trace) == "Expected 3 lines, found: others."
    assert what_failed("The actor died.\nOut of memory.\n") == "Out of memory." and what_failed("") == ""


def test_another_model_than_the_run_began_with_is_refused(tmp_path):
    job = run.Job("in", str(model_folder("distilbert")), Asked("onnxruntime", threads=1), ("0" * 64, "onnxruntime 1 fp32", "1" * 64))
    with pytest.raises(
        EngineError, match=f"Expected {'0' * 64} on onnxruntime 1 fp32 with the manifest {'1' * 64} at .*Use one install on all machines"
    ):
        job.open_reader()


@pytest.mark.full
def test_ray_gives_the_same_bytes_also_after_a_stop(tmp_path, capfd):
    """A process of its own: a cluster leaves threads and settings behind."""
    source, here, over_ray = samples(tmp_path / "in.jsonl", 3 * BLOCK_LINES + 9), tmp_path / "here.jsonl", tmp_path / "ray.jsonl"
    assert command(words(source, here)) == run.SOME_FAILED
    # The first of four blocks is there already, from a run on one machine that was killed.
    partial, record = tmp_path / "ray.jsonl.partial", json.loads((tmp_path / "here.jsonl.run.json").read_text())
    first = b"".join(here.read_bytes().splitlines(keepends=True)[:BLOCK_LINES])
    partial.write_bytes(first + b"{")
    (tmp_path / "ray.jsonl.run.json").write_text(json.dumps(record | {"blocks": 1, "lines": BLOCK_LINES, "bytes": len(first), "complete": False}))
    capfd.readouterr()
    python = [sys.executable, "-m", "pocketqa"]
    done = subprocess.run([*python, *words(source, over_ray, "--ray", "--json")], capture_output=True, text=True, timeout=250)
    assert done.returncode == run.SOME_FAILED, done.stderr
    assert json.loads(done.stdout)["resumed_at"] == BLOCK_LINES
    assert over_ray.read_bytes() == here.read_bytes()
    waiting = subprocess.run([*python, *words(source, tmp_path / "x", "--ray", "--threads", "999")], capture_output=True, text=True, timeout=250)
    assert waiting.returncode == 2 and "the cores of the cluster's largest machine that is up, found 999" in waiting.stderr

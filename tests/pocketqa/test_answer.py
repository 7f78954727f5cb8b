"""`pocketqa answer` run whole: what it prints, for a person and for a program, and what it refuses."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pocketqa import answer
from pocketqa.__main__ import main as command
from pocketqa.errors import FolderError, InputError, OptionsError, TextError
from pocketqa.reader import Reader
from pocketqa.types import NoAnswer
from tests.packaged import model_folder
from tests.pocketqa import little

PASSAGE = "The mill\nwas built by Ada in 1850."
QUESTION = "Who built the mill?"


class Ask:
    """Runs the command on a reader that finds "ada", and records the folder and engine that are opened."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.opened: list[tuple[str, str]] = []

    def open(self, folder: Path, engine: str = "auto", threads: int | None = None, precision: str | None = None) -> Reader:
        self.opened.append((str(folder), engine))
        return self.reader

    def __call__(self, *words: str) -> int:
        return answer.main(["--question", QUESTION, *words])


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "student").mkdir(parents=True)
    reader = little.reader(tmp_path)
    reader.runtime = little.pointing_at(reader.tokenizer, "ada")
    made = Ask(reader)
    monkeypatch.setattr(Reader, "open", made.open)
    return made


@pytest.fixture
def stdin(monkeypatch):
    def give(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return give


def test_an_answer_for_a_person(ask, tmp_path, capsys):
    (tmp_path / "history.txt").write_bytes(PASSAGE.encode())
    assert ask("--context-file", "history.txt") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Ada"
    assert lines[1].startswith("   score 0.99") and lines[1].endswith(", history.txt, characters 22 to 25 of 34")
    assert lines[2] == "   The mill was built by «Ada» in 1850."
    assert lines[4] == "little on hash 1, fp32, 1 thread: 1 window, 20 tokens"
    assert lines[5].startswith("tokenise ") and lines[5].endswith(" ms in all")
    assert ask.opened == [("models/student", "auto")]


def test_an_answer_for_a_program(ask, tmp_path, capsys):
    (tmp_path / "history.txt").write_bytes(PASSAGE.encode())
    assert ask("--context", "The bridge of the river.", "--context-file", "history.txt", "--json", "--top-k", "2", "--engine", "onnxruntime") == 0
    document = json.loads(capsys.readouterr().out)
    first, second = document["answers"]
    assert (first["text"], first["start"], first["end"], first["source"], first["file"]) == ("Ada", 22, 25, 1, "history.txt")
    assert first["excerpt"] == "The mill was built by «Ada» in 1850." and first["is_no_answer"] is False
    assert 0 <= second["score"] < first["score"] <= 1
    assert document["question"] == QUESTION
    assert document["model"] == {"name": "little", "sha256": "f" * 64, "engine": "hash", "version": "1", "precision": "fp32", "threads": 1}
    times = document["timings"]
    assert set(times) == {"tokenise", "forward", "decode", "total"} and min(times.values()) >= 0
    assert times["total"] == pytest.approx(times["tokenise"] + times["forward"] + times["decode"])
    assert document["windows"] == 2 and ask.opened == [("models/student", "onnxruntime")]


def test_positions_are_code_points_of_the_file(ask, tmp_path, capsys):
    text = "🙂👍 שלום\r\nAda, é."
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    ask("--context-file", "a.txt", "--json")
    found = json.loads(capsys.readouterr().out)["answers"][0]
    assert (found["text"], text[found["start"] : found["end"]]) == ("Ada", "Ada")
    assert found["excerpt"] == "🙂👍 שלום  «Ada», é."


def test_numbered_answers_name_their_passages(ask, capsys):
    ask("--context", "Ada.", "--context", "by Ada", "--top-k", "3")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1. Ada" and ", passage 1, characters 0 to 3 of 4" in lines[1]
    assert lines[3] == "2. Ada" and ", passage 2, characters 3 to 6 of 6" in lines[4]
    assert lines[6].startswith("3. ")


def test_standard_input(ask, stdin, capsys):
    stdin(PASSAGE.encode())
    ask("--context-file", "-")
    assert ", standard input, characters 22 to 25" in capsys.readouterr().out
    with pytest.raises(TextError, match="only once"):
        ask("--context-file", "-", "--context-file", "-")
    stdin(b"")
    with pytest.raises(TextError, match="standard input, found nothing"):
        ask("--context-file", "-")


def test_no_answer(ask, capsys):
    with pytest.raises(OptionsError, match="not trained"):
        ask("--context", PASSAGE, "--no-answer")
    ask.reader.no_answer = NoAnswer(trained=True, threshold=-100.0)
    ask("--context", PASSAGE, "--no-answer")
    assert capsys.readouterr().out.startswith("(no answer in this passage)\n   score 1.000\n")
    ask("--context", PASSAGE, "--no-answer", "--json")
    found = json.loads(capsys.readouterr().out)["answers"][0]
    assert found["is_no_answer"] and found["file"] is None and found["excerpt"] == "" and found["text"] == ""


@pytest.mark.parametrize(("data", "offset", "byte"), [(b"The caf\xe9 was", 7, "e9"), (b"\xef\xbb\xbfab\xff", 5, "ff"), (b"ab\xc3", 2, "c3")])
def test_a_file_that_is_not_utf8_names_the_byte(ask, tmp_path, data, offset, byte):
    (tmp_path / "latin.txt").write_bytes(data)
    with pytest.raises(TextError, match=rf"latin\.txt: .*byte 0x{byte} at byte offset {offset}\..*iconv"):
        ask("--context-file", "latin.txt")


def test_input_that_cannot_be_used(ask, tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "blank.txt").write_bytes(b" \n")
    with pytest.raises(TextError, match=r"empty\.txt, found nothing"):
        ask("--context-file", "empty.txt")
    with pytest.raises(TextError, match=r"blank\.txt, found only white space"):
        ask("--context-file", "blank.txt")
    with pytest.raises(InputError, match=r"absent\.txt, but it cannot be read: No such file"):
        ask("--context-file", "absent.txt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        ask("--context-file", str(tmp_path))
    with pytest.raises(TextError, match="--context-file FILE"):
        ask()
    with pytest.raises(OptionsError, match="top_k"):
        ask("--context", PASSAGE, "--top-k", "0")
    assert ask.opened == []  # nothing is loaded for input that cannot be used


def test_a_missing_model_says_how_to_get_one(tmp_path):
    for words in (["--model", str(tmp_path / "absent")], ["--model", __file__], ["--model", str(tmp_path / ("x" * 300))]):
        with pytest.raises(FolderError, match=r"models/student.*pocketqa package CHECKPOINT --out DIR"):
            answer.main(["--question", QUESTION, "--context", PASSAGE, *words])


def test_the_bundled_student_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkout = tmp_path / "checkout"
    (checkout / "models" / "student").mkdir(parents=True)
    monkeypatch.setattr(answer, "__file__", str(checkout / "pocketqa" / "answer.py"))
    assert answer.find_model(None) == checkout / "models" / "student"
    (tmp_path / "models" / "student").mkdir(parents=True)
    assert answer.find_model(None) == answer.DEFAULT_MODEL


def test_excerpt_is_one_short_line(ask, capsys):
    ask("--context", "the river " * 30 + "\x1b Ada\u0007\n" + "the mill " * 30)
    line = capsys.readouterr().out.splitlines()[2].strip()
    assert line.startswith("…") and line.endswith("…") and "«Ada»" in line
    assert "\x1b" not in line and "\x07" not in line and len(line) < 2 * answer.EXCERPT_CHARACTERS + 12


@pytest.mark.parametrize("steering", ["\x1b[2J", "\u202e", "\u2066"])
def test_neither_passages_nor_names_steer_the_terminal(ask, tmp_path, capsys, steering):
    (tmp_path / f"a{steering}.txt").write_text(f"by Ada{steering} in", encoding="utf-8")
    ask("--context-file", f"a{steering}.txt")
    said = capsys.readouterr().out
    assert steering not in said and f"a\ufffd{steering[1:]}.txt, characters 3 to 6" in said and f"by «Ada»\ufffd{steering[1:]} in" in said


def test_a_terminal_without_the_letters(ask, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    ask("--context", "🙂 Ada")
    sys.stdout.flush()
    assert b"\\U0001f642 \\xabAda\\xbb" in raw.getvalue()
    raw.truncate(0)
    raw.seek(0)
    ask("--context", "🙂 Ada", "--json")
    sys.stdout.flush()
    assert json.loads(raw.getvalue())["answers"][0]["excerpt"] == "🙂 «Ada»"


@pytest.mark.parametrize("engine", ["onnxruntime", "pytorch"])
def test_the_whole_command_on_a_packaged_folder(tmp_path, capfd, engine):
    (tmp_path / "history.txt").write_bytes(PASSAGE.encode())
    folder = model_folder("distilbert")
    words = ["answer", "--question", QUESTION, "--context-file", str(tmp_path / "history.txt"), "--model", str(folder), "--engine", engine]
    assert command([*words, "--json"]) == 0
    document = json.loads(capfd.readouterr().out)
    best = Reader.open(folder, engine=engine).answer(QUESTION, PASSAGE).best
    found = document["answers"][0]
    assert (found["text"], found["start"], found["end"]) == (best.text, best.start, best.end) and found["text"] == PASSAGE[best.start : best.end]
    assert document["model"]["engine"] == engine and len(document["model"]["sha256"]) == 64
    assert command([*words, "--top-k", "2"]) == 0
    assert capfd.readouterr().out.startswith(f"1. {answer.one_line(best.text)}\n")
    assert command([*words[:-2], "--engine", engine, "--context-file", "absent.txt"]) == 2
    assert "absent.txt, but it cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("way", "says"),
    [
        ("--context Ada >&-", "Expected a standard output to print to, found it closed."),
        ("--context-file - <&-", "Expected a text on standard input, found it closed. Name a file in place of -."),
        ("--context Ada --json >/dev/full", "standard output cannot be written: No space left on device."),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_streams_that_are_closed_or_full(way, says, unbuffered):
    words = [sys.executable, "-m", "pocketqa", "answer", "--question", QUESTION, "--model", str(model_folder("distilbert"))]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", f"{shlex.join(words)} {way}"], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"pocketqa answer: {says}\n")


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        answer.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.count("pocketqa answer --question") == 4 and "--context-file -" in text

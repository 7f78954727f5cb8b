"""The output of a run that stops at any point between two steps, and goes on to the same bytes."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
from pathlib import Path

import pytest

from pocketqa.bulk.lines import Answered, Problem
from pocketqa.bulk.output import Output, check_places
from pocketqa.errors import DataError

RUN = {"input": "a" * 8, "engine": "hash 1 fp32"}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


def block(text: str, *problems: int) -> Answered:
    return Answered(text.encode(), tuple(Problem(line, None, "why") for line in problems))


def test_a_run_from_beginning_to_end(out):
    with Output(out, RUN) as output:
        assert output.state.blocks == 0 and not out.exists()
        output.append(block("1\n2\n", 2), 2)
        output.append(block("3\n"), 1)
        output.finish()
    assert out.read_text() == "1\n2\n3\n" and not output.partial.exists()
    record = json.loads(output.record.read_text())
    assert record["run"] == RUN and record["complete"] is True
    assert {name: record[name] for name in ("blocks", "lines", "failed", "bytes", "problems")} == {
        "blocks": 2, "lines": 3, "failed": 1, "bytes": 6, "problems": ["line 2: why"],
    }  # fmt: skip
    with Output(out, RUN) as again:
        assert again.state == output.state
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl", "out.jsonl.run.json"]


def test_only_the_first_problems_are_kept(out):
    with Output(out, RUN) as output:
        output.append(block("", *range(1, 4)), 3)
        output.append(block("", *range(4, 10)), 6)
        assert output.state.problems == tuple(f"line {number}: why" for number in range(1, 6)) and output.state.failed == 9


def test_what_was_not_recorded_is_written_again(out):
    with Output(out, RUN) as output:
        output.append(block("1\n"), 1)
    with output.partial.open("ab") as file:
        file.write(b"half of a li")  # killed between the write and the record
    with Output(out, RUN) as output:
        assert (output.state.blocks, output.state.lines) == (1, 1)
        output.append(block("2\n"), 1)
        output.finish()
    assert out.read_text() == "1\n2\n"


def test_killed_before_the_very_last_step(out):
    with Output(out, RUN) as output:
        output.append(block("1\n"), 1)
        output.finish()
    for before in (None, "of an earlier run, which --force was to replace"):
        out.rename(output.partial)
        if before:
            out.write_text(before)
        with Output(out, RUN) as again:
            assert again.state.complete
        assert out.read_text() == "1\n" and not output.partial.exists()


def test_a_partial_file_that_lost_bytes_begins_anew(out):
    with Output(out, RUN) as output:
        output.append(block("1\n2\n"), 2)
    output.partial.write_text("1\n")
    with Output(out, RUN) as output:
        assert output.state.blocks == 0 and output.partial.stat().st_size == 0


def test_another_run_is_not_gone_on_with(out):
    with Output(out, RUN) as output:
        output.append(block("1\n"), 1)
    with pytest.raises(DataError, match=r"found another engine\. .*--force"):
        Output(out, RUN | {"engine": "other"})
    with pytest.raises(DataError, match="another engine and another input"):
        Output(out, {"engine": "other"})
    assert output.partial.read_text() == "1\n"
    with Output(out, RUN | {"engine": "other"}, force=True) as output:
        assert output.state.blocks == 0
        output.append(block("new\n"), 1)
        output.finish()
    assert out.read_text() == "new\n"


@pytest.mark.parametrize("force", [False, True])
def test_a_run_that_is_stopped_in_its_first_block(out, force):
    if force:
        out.write_text("of an earlier run, which --force was to replace")
    with Output(out, RUN, force) as output:
        pass
    with output.partial.open("ab") as file:
        file.write(b"half of a li")
    if force:
        with pytest.raises(DataError, match="another engine"):
            Output(out, RUN | {"engine": "other"})
    with Output(out, RUN) as output:
        assert output.state.blocks == 0
        output.append(block("1\n"), 1)
        output.finish()
    assert out.read_text() == "1\n"


def test_a_run_without_a_block_is_in_nobodys_way(out):
    with Output(out, RUN):
        pass
    with Output(out, RUN | {"engine": "other"}) as output:
        output.finish()
    assert json.loads(output.record.read_text())["run"]["engine"] == "other"


def test_somebody_elses_file_is_left_alone(out):
    out.write_text("precious")
    with pytest.raises(DataError, match="no run is recorded for"):
        Output(out, RUN)
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"] and out.read_text() == "precious"


def test_finished_answers_that_were_changed(out):
    with Output(out, RUN) as output:
        output.append(block("1\n"), 1)
        output.finish()
    out.write_text("1")
    with pytest.raises(DataError, match="gone or changed"):
        Output(out, RUN)
    out.unlink()
    with pytest.raises(DataError, match="gone or changed"):
        Output(out, RUN)
    assert not output.partial.exists()


def test_a_second_process_is_kept_out(out):
    with Output(out, RUN) as output:
        output.append(block("1\n"), 1)
        with pytest.raises(DataError, match="another process that writes it"):
            Output(out, RUN)
        assert output.partial.read_text() == "1\n"
    with Output(out, RUN):
        pass


def test_a_forced_run_goes_on_without_force(out):
    with pytest.raises(DataError, match="The same command without --force goes on from here"), Output(out, RUN, force=True) as output:
        out.mkdir()
        output.finish()


def test_a_link_stays_and_its_file_is_written(out, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    out.symlink_to(tmp_path / "elsewhere" / "answers")
    with Output(out, RUN) as output:
        output.append(block("1\n"), 1)
        output.finish()
    assert out.is_symlink() and out.read_text() == "1\n"
    assert sorted(os.listdir(tmp_path / "elsewhere")) == ["answers", "answers.run.json"]
    with Output(out, RUN) as again:
        assert again.state.complete


def test_a_name_too_long_for_what_stands_beside_it_fails_at_the_start(tmp_path):
    with pytest.raises(DataError, match=r"cannot be written: File name too long"):
        Output(tmp_path / ("x" * 245), RUN)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_told_and_the_same_command_goes_on(out):
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN  # so that a limit on the size of files is an error, as a full disk is
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(DataError, match=r"cannot be written any further: File too large\. The same command goes on from here"),
        Output(out, RUN) as output,
    ):
        output.append(block("1\n"), 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3, limits[1]))
        try:
            with output:
                output.append(block("2\n3\n"), 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Output(out, RUN) as output:
        assert output.state.lines == 1
        output.append(block("2\n3\n"), 2)
        output.finish()
    assert out.read_text() == "1\n2\n3\n"


def test_what_comes_in_the_way_of_the_last_step_is_told(out):
    with pytest.raises(DataError, match="cannot be written any further: Is a directory"), Output(out, RUN) as output:
        output.append(block("1\n"), 1)
        out.mkdir()
        output.finish()
    out.rmdir()
    with Output(out, RUN) as output:
        assert output.state.complete
    assert out.read_text() == "1\n"


def test_a_file_system_without_locks_is_told_once(out, monkeypatch, capsys):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with Output(out, RUN) as output:
        output.append(block("1\n"), 1)
        output.append(block("2\n"), 1)
        output.finish()
    assert out.read_text() == "1\n2\n"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{output.partial} cannot be locked (No locks available)")


def test_places_are_looked_at_before_anything_is_computed(out, tmp_path, monkeypatch):
    source = tmp_path / "in.jsonl"
    source.write_text("precious")
    check_places(out, source)
    for name in ("out.jsonl", "out.jsonl.partial", "out.jsonl.run.json"):
        (tmp_path / name).mkdir()
        with pytest.raises(DataError, match=f"Expected to write a file at .*{name}, found a folder"):
            check_places(out, source)
        (tmp_path / name).rmdir()
        for link in ("symlink_to", "hardlink_to"):
            getattr(tmp_path / name, link)(source)
            with pytest.raises(DataError, match=f"another file for the answers than {source} itself, which .*{name} is"):
                check_places(out, source)
            (tmp_path / name).unlink()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for place in (tmp_path / "pipe", Path(os.devnull), tmp_path / "null"):
        with pytest.raises(DataError, match=f"Expected to write a file at {place}, found a pipe or a device"):
            check_places(place, source)
    monkeypatch.chdir(tmp_path)
    for place in ("", ".", "..", "/"):
        with pytest.raises(DataError, match="found a folder"):
            check_places(Path(place), source)


def test_an_empty_run(out):
    for _ in range(2):
        with Output(out, RUN) as output:
            if not output.state.complete:
                output.finish()
        assert out.read_bytes() == b""


def test_records_that_cannot_be_read_and_places_that_cannot_be_written(out, tmp_path):
    record = tmp_path / "out.jsonl.run.json"
    texts = {"{": "Expecting property name", '{"format": 9}': "format 9", "{}": "'format'", '{"format": 1, "problems": []}': "'run'"}
    for text, says in texts.items():
        record.write_text(text)
        with pytest.raises(DataError, match=f"record of a run at .*found: .*{says}.*--force"):
            Output(out, RUN)
    with pytest.raises(DataError, match="cannot be written: No such file"):
        Output(tmp_path / "absent" / "out", RUN)

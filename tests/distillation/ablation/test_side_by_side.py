"""`--jobs`: the order of works that run at once, and whole runs in processes of their own, finished, failed and stopped."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from transformers import BertForMaskedLM

from distillation import ablate
from distillation.ablation.ablation_plan import Common, LayerMaps, choose_rows, make_plan, read_preset
from distillation.ablation.ablation_work import Row, Work
from distillation.ablation.side_by_side import Run, run_all
from pocketqa import runs
from pocketqa.errors import TrainingError
from pocketqa.folders import ModelFolder
from pocketqa.locks import one_maker
from tests.tiny import tiny_bert, tiny_squad


def nothing(line: str) -> None:
    pass


def test_works_wait_for_what_they_start_from(tmp_path: Path) -> None:
    common = Common(
        out=tmp_path, teacher="t", corpus=("text.txt",), data=("a.json",), dev="dev.json", reader="r", tokens=100, base="b", final="final.json"
    )
    rows, _ = choose_rows(read_preset("controls"), None, "r", "b")
    works = make_plan(rows, [0, 1], common, LayerMaps(12, 6, (0, 2, 4, 6, 8, 10))).works
    lock, begun, ended, running, most = threading.Lock(), list[Work](), set[str](), set[Work](), 0

    def do(work: Work, place: str, run: Run) -> int:
        nonlocal most
        with lock:
            needed = {str(other.leaves) for other in works if other != work} & set(work.words)
            assert needed <= ended
            begun.append(work)
            running.add(work)
            most = max(most, len(running))
        time.sleep(0.01)
        with lock:
            running.remove(work)
            ended.add(str(work.leaves))
        return 0

    assert run_all(works, 3, do, {}, nothing) == 0
    assert (most, sorted(map(str, begun))) == (3, sorted(map(str, works)))
    finals = [work.verb == "final" for work in begun]
    assert finals == sorted(finals) and finals[-1] and not finals[0]


def works_of(tmp_path: Path, count: int) -> list[Work]:
    return [Work("evaluate", Row("row", "words"), seed, (str(tmp_path / "none"),), tmp_path / f"{seed}.json", "") for seed in range(count)]


def test_nothing_is_begun_after_a_failure(tmp_path: Path) -> None:
    begun = []

    def do(work: Work, place: str, run: Run) -> int:
        begun.append(place)
        return 2

    assert run_all(works_of(tmp_path, 5), 1, do, {}, nothing) == 2
    assert begun == ["1/5"]
    assert run_all(works_of(tmp_path, 5), 2, do, {}, nothing) == 2
    assert set(begun) <= {"1/5", "2/5"}


def test_what_a_failed_process_said_is_told(tmp_path: Path) -> None:
    said: list[str] = []
    assert run_all(works_of(tmp_path, 1), 2, lambda work, place, run: run(work), {}, said.append) == 2
    (told,) = said
    assert told.startswith(f"[1/1] ended with status 2; {tmp_path / '0.log'} ends so:\n")
    assert told.splitlines()[-1] == "pocketqa evaluate: error: the following arguments are required: --data"


def test_a_failure_after_another_is_told_too(tmp_path: Path) -> None:
    said, both = list[str](), threading.Barrier(2)

    def do(work: Work, place: str, run: Run) -> int:
        both.wait(timeout=60)
        if work.seed == 0:
            return 3
        time.sleep(0.3)
        raise TrainingError("no room")

    with pytest.raises(TrainingError, match="no room"):
        run_all(works_of(tmp_path, 3), 2, do, {}, said.append)
    assert said == ["[2/3] no room"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_work_that_another_process_still_runs(tmp_path: Path, jobs: int) -> None:
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "0.log").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match=r"Another process still runs what .*0\.log tells of"):
            run_all(works_of(tmp_path, 1), jobs, lambda work, place, run: run(work), {"evaluate": lambda words: 0}, nothing)


def test_file_systems_without_locks_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert run_all(works_of(tmp_path, 2), 2, lambda work, place, run: 0, {}, nothing) == 0
    with one_maker(tmp_path / "made", nothing):
        (tmp_path / "made").mkdir()


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    reader = tiny_bert(tmp_path / "reader", layers=2)
    shutil.copytree(reader, tmp_path / "teacher")
    BertForMaskedLM.from_pretrained(reader).save_pretrained(tmp_path / "teacher")  # the head is drawn, and a trained one to all who look
    data = tiny_squad(tmp_path / "data.json", paragraphs=4, questions=2)
    (tmp_path / "text.txt").write_text("The red lamp of Anna is in the kitchen. The blue chair of Bruno is in the hall.\n\n" * 60)
    sources = ["--teacher", str(tmp_path / "teacher"), "--corpus", str(tmp_path / "text.txt"), "--data", str(data), "--dev", str(data)]
    flags = ["--distill-flags", "--max-tokens 64 --batch-tokens 512 --precision fp32 --heldout-tokens 0 --log-every 0.1", "--finetune-flags"]
    small = "--max-tokens 64 --doc-stride 16 --max-question-tokens 40 --batch-tokens 640 --epochs 0.5 --precision fp32"
    return ["--rows", "random", "--seeds", "0", *sources, *flags, small]


def test_a_whole_ablation_side_by_side(tmp_path: Path, command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    together, alone = ([*command, "--tokens", "2000", "--out", str(tmp_path / name)] for name in ("together", "alone"))
    assert ablate.main([*together, "--jobs", "2"]) == 0
    told = capsys.readouterr().err
    assert told.count("] finished in ") == 6
    assert ablate.main(alone) == 0
    capsys.readouterr()

    def left(name: str) -> set[str]:
        return {str(path.relative_to(tmp_path / name)) for path in (tmp_path / name).rglob("*") if path.is_file() and path.suffix != ".log"}

    assert left("together") == left("alone")
    logs = sorted((tmp_path / "together").rglob("*.log"))
    assert len(logs) == 6 and all(log.stat().st_size for log in logs)
    assert sum("from the cache" in log.read_text() for log in logs) == 1  # the corpus that two distillations read
    for name in ("triple-seed-0", "random-seed-0"):
        one, other = (ModelFolder(tmp_path / where / "finetune" / name).read_manifest().config for where in ("together", "alone"))
        assert one["losses"] == pytest.approx(other["losses"], rel=1e-4)
    one, other = (runs.read(tmp_path / where / "runs" / "ablation.json").results["rows"] for where in ("together", "alone"))
    assert [row["name"] for row in one] == [row["name"] for row in other] == ["triple", "random"]
    assert ablate.main([*together, "--jobs", "2"]) == 0
    assert capsys.readouterr().err.count("finished already") == 6 + 1


@pytest.mark.parametrize("how", ["asked", "one failed"])
def test_a_stopped_ablation_saves_all_that_runs(tmp_path: Path, command: list[str], how: str) -> None:
    endless = [*command, "--rows", "random", "no-mlm", "--tokens", "5000000", "--out", str(tmp_path / "out"), "--jobs", "3"]
    process = subprocess.Popen([sys.executable, "-m", "pocketqa", "ablate", *endless], stderr=subprocess.PIPE, text=True)
    logs = [tmp_path / "out" / "distill" / f"{name}-seed-0.log" for name in ("triple", "random", "no-mlm")]
    try:
        while not all(log.exists() and "\nstep " in log.read_text() for log in logs):
            assert process.poll() is None
            time.sleep(0.1)
        if how == "asked":
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
        else:
            victim = str(logs.pop().with_suffix(""))
            listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
            os.kill(next(int(line.split()[0]) for line in listed if f"--out {victim} " in line), signal.SIGKILL)
        _, told = process.communicate(timeout=300)
    finally:
        process.terminate()
        process.wait()
    assert process.returncode == 128 + (signal.SIGTERM if how == "asked" else signal.SIGKILL)
    assert ("was killed by SIGKILL (is there enough memory for --jobs 3?)" in told) == (how != "asked")
    assert "stopping: trainings that run are saved first" in told
    for log in logs:
        assert "Stopped at step" in log.read_text().splitlines()[-1]
        assert (log.with_suffix(".run") / "state" / "progress.json").is_file()


def test_one_process_at_a_time_makes_a_folder(tmp_path: Path) -> None:
    folder, order = tmp_path / "caches" / "made", list[str]()

    def other() -> None:
        with one_maker(folder, order.append):
            order.append("found" if folder.exists() else "made again")

    others = [threading.Thread(target=other) for _ in range(3)]
    with one_maker(folder, order.append):
        for thread in others:
            thread.start()
        while len(order) < len(others):
            time.sleep(0.01)
        order.append("made")
        folder.mkdir()
    for thread in others:
        thread.join()
    assert order == [f"waiting for another run, which makes {folder}"] * 3 + ["made"] + ["found"] * 3
    assert os.listdir(folder.parent) == ["made"]

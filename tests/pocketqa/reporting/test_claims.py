"""The audit of published claims: recomputing, verdicts, queries of run files, the section of RESULTS.md, and the project's own claims."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from pocketqa import report, runs
from pocketqa.errors import DataError
from pocketqa.reporting.claim_queries import NOT_MEASURED, QUERIES, Query, answer
from pocketqa.reporting.claims import AGREES, BOUND, DIFFERS, ONE_READING, STATED, VERDICTS, Claims, read_claims
from pocketqa.statistics import Interval
from pocketqa.task_scores import SIX
from tests.pocketqa.reporting.test_training_tables import ablation_row, made, task_run
from tests.pocketqa.test_report import README, evaluation

ROOT = Path(__file__).parents[3]
FILE = """
[sources.paper]
cite = "Somebody 2020 (arXiv 1)"
seen = "read"
[sources.other]
cite = "Another 2021"
seen = "read"
[tables.speed]
source = "paper"
place = "table 1"
columns = ["a", "b", "c"]
[tables.speed.rows]
big = ["8.0", "200", "1"]
small = ["6.0", "50", ""]
[[claims]]
claim = "75 % is kept"
source = "paper"
place = "abstract"
says = "75"
unit = "%"
recomputed = [{ do = "percent", of = ["speed/small/a", "speed/big/a"], unit = "%" }]
ours = [{ query = "squad scores", role = "teacher" }]
note = "a remark"
"""


def written(tmp_path: Path, text: str = FILE) -> Path:
    path = tmp_path / "claims.toml"
    path.write_text(text, encoding="utf-8")
    return path


def one(tmp_path: Path, entry: str) -> Claims:
    return read_claims(written(tmp_path, FILE.partition("[[claims]]")[0] + "[[claims]]\nsource = 'other'\nplace = ''\n" + entry))


@pytest.mark.parametrize(
    ("recomputed", "value", "text"),
    [
        ("{ do = 'value', of = ['speed/small/b'] }", 50, "50.0"),
        ("{ do = 'percent', of = ['speed/small/a', 'speed/big/a'], unit = '%', digits = 0 }", 75, "75 %"),
        ("{ do = 'less', of = ['speed/big/b', 'speed/small/b'], unit = '%', words = 'of time' }", 75, "75.0 % (of time)"),
        ("{ do = 'faster', of = ['speed/big/b', 'speed/small/b'], unit = '%' }", 300, "300.0 %"),
        ("{ do = 'change', of = ['speed/big/a', 'speed/small/a'], digits = 2 }", -2, "-2.00"),
        ("{ do = 'mean', of = ['speed/big/a..c'] }", 209 / 3, "69.7"),
        ("{ do = 'largest', of = ['speed/small/a..b', 'speed/big/a..b'] }", 150, "150.0"),
    ],
)
def test_what_is_recomputed(tmp_path: Path, recomputed: str, value: float, text: str) -> None:
    (row,) = one(tmp_path, f"claim = '1 of it'\nsays = '1'\nrecomputed = [{recomputed}]").rows
    assert row.recomputed[0].value == pytest.approx(value)
    assert row.recomputed[0].text == text


@pytest.mark.parametrize(
    ("entry", "verdict"),
    [
        ("says = '75'", AGREES),
        ("says = '75.0'", AGREES),
        ("says = '75.4'", DIFFERS),
        ("says = '80'\nto = 10", AGREES),
        ("says = '90'\nto = 10", DIFFERS),
        ("says = '80'\nbound = 'at most'", BOUND),
        ("says = '74'\nbound = 'at most'", DIFFERS),
        ("says = '74'\nverdict = 'unlike things'", STATED[0]),
    ],
)
def test_verdicts_follow_from_the_figures(tmp_path: Path, entry: str, verdict: str) -> None:
    same = "recomputed = [{ do = 'percent', of = ['speed/small/a', 'speed/big/a'] }, { do = 'less', of = ['speed/big/b', 'speed/small/b'] }]"
    (row,) = one(tmp_path, f"claim = '75.4, 75.0, 80, 90, 74 or so'\n{entry}\n{same}").rows
    assert row.verdict == verdict
    assert verdict in VERDICTS


def test_two_readings(tmp_path: Path) -> None:
    both = "recomputed = [{ do = 'faster', of = ['speed/big/b', 'speed/small/b'] }, { do = 'less', of = ['speed/big/b', 'speed/small/b'] }]"
    (row,) = one(tmp_path, f"claim = '75 % faster'\nsays = '75'\n{both}").rows
    assert row.verdict == ONE_READING


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (('"speed/small/a"', '"speed/tiny/a"'), "no figure at 'speed/tiny/a'"),
        (('"speed/small/a"', '"speed/small/c"'), "no figure at 'speed/small/c'"),  # the table is empty there
        (('do = "percent"', 'do = "guess"'), "do must be one of value, percent, .*found 'guess'"),
        (('says = "75"', 'says = "76"'), "says '76', which does not stand in its words"),
        (('says = "75"\n', ""), "expected a verdict, or a figure under says"),
        (('note = "a remark"', 'verdict = "agrees"'), "a verdict that is stated must be one of unlike things, .*found 'agrees'"),
        (('note = "a remark"', 'remark = "a"'), "unknown entry 'remark'"),
        (('query = "squad scores"', 'query = "scores"'), "query must be one of squad scores, .*found 'scores'"),
        (('role = "teacher"', 'first = "teacher"'), "the query 'squad scores' takes role, found first"),
        (('["6.0", "50", ""]', '["6.0", "50"]'), r"table speed, small: expected 3 figures as strings, found \['6.0', '50'\]"),
        (('["6.0", "50", ""]', '["6.0", 50, ""]'), "table speed, small: expected 3 figures as strings"),
        (('source = "paper"\nplace = "abstract"', 'source = "nobody"\nplace = "abstract"'), "source must be one of paper, other, found 'nobody'"),
        (("[[claims]]", "[[claims]"), "expected claims in TOML"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, change: tuple[str, str], problem: str) -> None:
    assert change[0] in FILE
    with pytest.raises(DataError, match=problem):
        read_claims(written(tmp_path, FILE.replace(*change)))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    wrong = FILE.replace('do = "percent"', 'do = "guess"').replace('says = "75"', 'says = "76"').replace('cite = "Another 2021"', "")
    with pytest.raises(DataError, match=r"source other: cite is missing; .*does not stand.*; .*do must be one of"):
        read_claims(written(tmp_path, wrong))


def test_the_section_and_that_edits_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    runs.write(evaluation("teacher", 80), tmp_path / "runs")
    assert report.main([]) == 0
    assert "Claims" not in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")  # no file of claims, no section
    path = written(tmp_path)
    assert report.main([]) == 0
    section = (tmp_path / "RESULTS.md").read_text(encoding="utf-8").split("## Claims audited")[1]
    line = next(line for line in section.splitlines() if "75 % is kept" in line)
    assert line.startswith(
        "| 75 % is kept (1) | Somebody 2020, abstract | table 1: small, a 6.0, big, a 8.0 | 75.0 % | teacher: EM 80.00, F1 84.00, "
    )
    assert line.endswith("runs/evaluation-teacher-pytorch-fp32-squad-dev-2026-02-01.json), 2026-02-01) | agrees |")
    assert "- (1) a remark" in section and "- Somebody 2020 (arXiv 1): read." in section and "Another" not in section
    assert report.main(["--check"]) == 0
    path.write_text(FILE.replace('"6.0"', '"5.0"'), encoding="utf-8")  # a figure of the source, edited
    assert report.main(["--check"]) == 1
    assert "RESULTS.md, line" in capsys.readouterr().err
    path.write_text(FILE, encoding="utf-8")
    runs.write(replace(evaluation("teacher", 70), created="2026-02-09T00:00:00Z"), tmp_path / "runs")  # a run file, measured anew
    assert report.main(["--check"]) == 1
    with pytest.raises(DataError, match="expected claims in TOML"):
        report.main(["--claims", str(tmp_path / "elsewhere.toml")])


# ---- queries


def ask(name: str, found: dict[str, runs.RunFile], **given: str) -> list[str]:
    return answer(Query(name, given), found, lambda file, _: file)


def named(*files: runs.RunFile) -> dict[str, runs.RunFile]:
    return {file.file_name: file for file in files}


def test_retention_is_quoted_only_where_the_teacher_beats_the_control() -> None:
    teacher, student = evaluation("teacher", 80), evaluation("student", 70)
    (line,) = ask("squad", named(teacher, student), first="student", second="teacher")
    assert line.startswith("student less teacher: EM -10.00 [") and "not quoted, the teacher was not shown to beat the control" in line
    (line,) = ask("squad", named(teacher, student, evaluation("control", 60)), first="student", second="teacher")
    assert f"F1 kept: {100 * 76 / 84:.1f} % [" in line
    (line,) = ask("squad", named(teacher, student, evaluation("control", 80)), first="student", second="teacher")
    assert "not quoted" in line
    assert line.endswith(f"({student.file_name})")


def test_queries_of_tasks() -> None:
    runs_of = [*(task_run("rte", "student", wrong, seed) for seed, wrong in enumerate((10, 4, 8))), task_run("rte", "teacher", 2)]
    (line,) = ask("task retention", named(*runs_of), task="rte", first="student", second="teacher")
    assert line.startswith("student: not quoted: the teacher is not shown to beat the control (")
    found = named(*runs_of, task_run("rte", "control", 14))
    (line,) = ask("task retention", found, task="rte", first="student", second="teacher")
    assert line.startswith(f"student: {100 * 32 / 38:.1f} % [") and "rte-student-seed-2" in line  # the median of three seeds
    (line,) = ask("task difference", found, task="rte", first="teacher", second="student")
    assert line.startswith("teacher less student: +15.00 [")
    assert ask("mean retention", found, first="student", second="teacher") == [NOT_MEASURED]
    roles = {"teacher": 2, "student": 4, "control": 12}
    six = named(*(task_run(task, role, wrong) for task in SIX for role, wrong in roles.items()))
    alone = named(*(task_run(task, role, roles[role]) for task in SIX for role in ("teacher", "student")))
    assert ask("mean retention", alone, first="student", second="teacher")[0].startswith("student: not quoted: the teacher is not shown to beat")
    assert ask("mean retention", six, first="student", second="teacher")[0].startswith(f"student: {100 * 36 / 38:.1f} % [")
    assert ask("mean score", six, role="student")[0].startswith("student: 90.00 [")


def test_queries_of_times_and_counts() -> None:
    ratio = Interval(1.6, 1.5, 1.7).to_json()
    races = [
        made("latency", f"{threads} {ratio['value']}", {"workload": "stsb", "timings": {}, "threads": threads, "whole_pass": {"ratios": ratios}})
        for threads, ratios in (
            (1, {"teacher, x fp32 / student, x fp32": {"total": ratio}, "teacher, x fp32 / teacher, y bf16": {"total": ratio}}),
            (2, {"teacher, x fp32 / student, x fp32": {"total": Interval(9, 9, 9).to_json()}}),
        )
    ]
    assert ask("pass", named(*races), first="teacher", second="student") == [
        f"teacher over student, one pass, x fp32, 1 thread: 1.60 [1.50, 1.70] times ({races[0].file_name})"
    ]
    quiet = made("latency", "later", races[1].results)
    loud = made("latency", "loud", races[0].results | {"busy": True})
    assert ask("pass", named(loud), first="teacher", second="student")[0].startswith(
        "teacher over student, one pass, x fp32, 1 thread: 1.60 [1.50, 1.70] times, on a busy machine ("
    )
    subjects = [runs.Subject(role, role, sha256=digit * 64, engine="x", precision="fp32") for role, digit in (("teacher", "a"), ("student", "b"))]
    weighed = replace(races[0], subjects=tuple(subjects))
    assert ask("pass", named(weighed), first="teacher", second="student")[0].startswith(f"teacher `{'a' * 12}` over student `{'b' * 12}`, one pass")
    assert "2 threads: 9.00" in ask("pass", named(quiet, loud), first="teacher", second="student")[0]  # a quiet machine is worth more than one thread
    rows = [{"name": "big", "parameters": 4_000_000}, {"name": "small", "parameters": 3_000_000, "bytes": {"fp16": 6e6}, "speed_up": ratio}]
    zoo = named(made("latency", "zoo", {"workload": "zoo", "timings": {}, "zoo": [*rows, {"name": "quoted"}]}))
    assert ask("counted", zoo, model="small", quantity="parameters")[0].startswith("small: 3.00 M parameters, counted from its configuration (")
    assert ask("counted", zoo, model="small", quantity="bytes fp16")[0].startswith("small: 6.00 MB in float16")
    assert ask("counted less", zoo, first="big", second="small", quantity="parameters")[0].startswith("small: 25.0 % fewer than big, parameters")
    assert ask("counted speed", zoo, model="small")[0].startswith("small in the paper's size: 1.60 [1.50, 1.70] times faster")
    assert ask("counted", zoo, model="quoted", quantity="parameters") == [NOT_MEASURED]
    paper = {"audit": [], "forward_ratios": {"big, x / small, x": {"value": 2.0}, "big, x / small on 64 zeros, x": {"value": 9.0}}}
    race = named(made("latency", "paper", {"workload": "fixed", "timings": {}, **paper}))
    (line,) = ask("paper race", race, first="big", second="small")
    assert line.startswith("small: 50.0 % less time than big on the same inputs, x, on a CPU (")


def test_queries_of_ablations() -> None:
    rows = [ablation_row("full"), ablation_row("random", -1.5, -3.69, f1=68.5)]
    found = named(made("ablation", "paper", runs.ablation_results("F1", "full", rows)))
    assert ask("ablation", found, row="random")[0].startswith("row random: -1.50 [-2.00, -1.00] points of F1 on questions, not of GLUE (")
    assert ask("ablation", found, row="full") == [NOT_MEASURED]
    assert ask("ablation means", found, row="random", against="full")[0].startswith("row random less row full: EM -1.50, F1 -1.50, train.tsv")


def test_a_query_without_run_files_says_so() -> None:
    for name, kind in QUERIES.items():
        assert ask(name, {}, **dict.fromkeys(kind.needs, "parameters")) == [NOT_MEASURED]


# ---- the claims of this project


def test_the_known_outcomes() -> None:
    verdicts = {row.claim: row.verdict for row in read_claims(ROOT / "claims.toml").rows}
    expected = {
        r"97 %": AGREES, r"99\.3 %": AGREES, r"within 3\.9 points": BOUND, r"60 % faster": ONE_READING, r"40 % less computation": DIFFERS,
        r"71 % faster": STATED[0], r"207 MB": STATED[0], r"4\.83 points": DIFFERS, r"without the soft targets: -2\.96": AGREES,
        r"without the cosine loss: -1\.46": AGREES, r"masked-language loss.*-0\.31": AGREES, r"attention patterns": STATED[1], r"62\.2": DIFFERS,
        r"MobileBERT-tiny scores 75\.8": STATED[0], r"STS-B is sentiment analysis": STATED[2], r"79\.8 F1 and 70\.4 EM": DIFFERS,
    }  # fmt: skip
    for words, verdict in expected.items():
        matching = [found for claim, found in verdicts.items() if re.search(words, claim)]
        assert matching == [verdict], words


def test_figures_worked_by_hand() -> None:
    found = {row.claim: [one.value for one in row.recomputed] for row in read_claims(ROOT / "claims.toml").rows}
    assert found["DistilBERT retains 97 % of BERT's language understanding"] == pytest.approx([96.855], abs=1e-3)  # 77.0 / 79.5
    assert found["within 3.9 points of BERT on SQuAD"] == pytest.approx([3.5, 2.7])
    assert found["60 % faster"] == pytest.approx([100 * 258 / 410, 100 * 258 / 668])
    assert found["99.3 % of BERT's accuracy on IMDb"] == pytest.approx([99.3152], abs=1e-4)
    assert found["BERT-base has a GLUE score of 79.5, the mean of its nine tasks"] == pytest.approx([717.5 / 9, 715.5 / 9])


def test_every_claim_stands_in_the_results() -> None:
    page = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    assert [row.claim for row in read_claims(ROOT / "claims.toml").rows if f"| {row.claim}" not in page] == []


def test_tables_of_the_preset_and_of_the_claims_agree() -> None:
    preset = tomllib.loads((ROOT / "distillation" / "presets" / "ablation_paper.toml").read_text(encoding="utf-8"))
    paper = {row["name"]: row["paper"] for row in preset["rows"] if "paper" in row}
    rows = [row for row in read_claims(ROOT / "claims.toml").rows if any(query.name == "ablation" for query in row.ours)]
    assert {query.given["row"]: row.recomputed[0].value for row in rows for query in row.ours} == paper

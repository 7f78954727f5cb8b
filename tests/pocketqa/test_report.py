"""`pocketqa report` run whole on run files made here: what the pages say, and that edits are found."""

from dataclasses import replace

import numpy as np
import pytest

from pocketqa import report, runs
from pocketqa.errors import DataError, OptionsError
from pocketqa.reporting import mobile_tables, tables
from pocketqa.types import JSON, RuntimeInfo, Scores
from tests.pocketqa import mobile_runs

COUNT = 200
IDS = [f"q{i}" for i in range(COUNT)]
ENVIRONMENT = {"cpu": "a processor", "cores": 2}
README = f"# A title\n\nBefore.\n\n{report.START}\nold\n{report.END}\n\nAfter.\n"
SHA = {"teacher": "a" * 64, "student": "b" * 64, "control": "c" * 64}


def right(percent: float) -> np.ndarray:
    """The first questions right, the others wrong: the higher percentage is right wherever the lower one is."""
    return (np.arange(COUNT) < percent * COUNT / 100).astype(float)


def evaluation(role, percent, engine="pytorch", precision="fp32", created="2026-02-01T00:00:00Z", sha=None, split="squad-dev", count=COUNT):
    exact = right(percent)[:count]
    f1 = np.where(exact > 0, 1.0, 0.2)
    info = RuntimeInfo(engine, "1.0", precision, 2)
    scores = Scores(100 * float(exact.mean()), 100 * float(f1.mean()), count)
    return runs.RunFile(
        "evaluation",
        f"{role} {engine} {precision} {split}",
        (runs.Subject.of(role, role, sha or SHA[role], info),),
        (runs.DataFile("dev.json", "d" * 64, count, split),),
        f"pocketqa evaluate {role}",
        created,
        ENVIRONMENT,
        runs.evaluation_results(scores, exact, f1, IDS[:count]),
    )


def other(kind, name, results, split="training", roles=("student",), not_checked=()):
    subjects = tuple(runs.Subject(role, role, SHA[role]) for role in roles)
    data = (runs.DataFile("train.json", "e" * 64, 10, split),)
    return runs.RunFile(kind, name, subjects, data, f"pocketqa {kind}", "2026-02-02T00:00:00Z", ENVIRONMENT, results, not_checked)


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    (tmp_path / "runs").mkdir()

    def write(*files):
        for file in files:
            runs.write(file, tmp_path / "runs")
        return tmp_path

    return write


def row(page: str, *parts: str) -> str:
    found = [line for line in page.splitlines() if line.startswith("|") and all(part in line for part in parts)]
    assert len(found) == 1, found
    return found[0]


def test_no_runs_is_said_honestly(project, capsys):
    folder = project()
    assert report.main([]) == 0
    assert report.NO_RUNS in (folder / "RESULTS.md").read_text(encoding="utf-8")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "not been measured yet" in readme and "old" not in readme
    assert readme.startswith("# A title\n\nBefore.\n") and readme.endswith("\n\nAfter.\n")
    assert report.main(["--check"]) == 0
    assert "agree with 0 run files" in capsys.readouterr().out


def test_scores_with_intervals_differences_and_origin(project):
    folder = project(
        evaluation("teacher", 80),
        evaluation("student", 70),
        evaluation("student", 69, "openvino", "bf16"),
        evaluation("control", 60),
        evaluation("student", 75, split="development"),
    )
    assert report.main([]) == 0
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    for text in (page.split("## Development")[0], readme):
        teacher = row(text, "teacher `aaaaaaaaaaaa`")
        assert "| 200 | 80.00 [" in teacher and "| 84.00 [" in teacher and "| reference |" in teacher
        assert "(runs/evaluation-teacher-pytorch-fp32-squad-dev-2026-02-01.json)" in teacher
        origin = "`pocketqa evaluate teacher`; a processor, 2 cores; 2026-02-01" if text is not readme else "squad-dev-2026-02-01.json), 2026-02-01 |"
        assert origin in teacher
        fast = row(text, "student `bbbbbbbbbbbb`", "openvino 1.0, bf16")
        # two questions of 200 were lost: EM -1, F1 -0.8; a resample has neither in e^-2 of the cases, so the interval reaches zero
        assert "| -0.80 [" in fast and ", 0.00] |" in fast
        assert text.index("teacher `a") < text.index("student `b") < text.index("control `c")
        assert (
            "The teacher `aaaaaaaaaaaa` beats the control `cccccccccccc` by F1: its interval lies above zero "
            "(pytorch fp32, 200 questions of dev.json, paired; EM +20.00" in text
        )
        assert "The student `bbbbbbbbbbbb` beats the control `cccccccccccc` by F1" in text
        assert f"The student `bbbbbbbbbbbb` retains {100 * 76 / 84:.1f} % [" in text and "not quoted" not in text
    assert "| 200 | 75.00 [" in row(page.split("## Development split")[1], "student")
    assert "| 75.00 [" not in readme
    assert "Intervals resample questions." in page


@pytest.mark.parametrize(("teacher", "words"), [(60, "its interval includes zero"), (50, "it is worse")])
def test_a_teacher_that_does_not_beat_the_control(project, teacher, words):
    folder = project(evaluation("teacher", teacher), evaluation("control", 60), evaluation("student", 55))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert f"The teacher `aaaaaaaaaaaa` does not beat the control `cccccccccccc` by F1: {words}" in page
    assert "The student `bbbbbbbbbbbb` against the teacher `aaaaaaaaaaaa`: EM" in page and "Retention is not quoted" in page and "retains" not in page


def test_without_a_control_nothing_is_claimed(project):
    folder = project(evaluation("teacher", 80), evaluation("student", 70, "onnxruntime"))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "No control of its pair was measured" in page and "beats" not in page.replace("beats one is", "")
    assert "retains" not in page  # the two were measured in different engines
    assert "| not measured |" in row(page, "student")


def test_readme_shows_the_current_models_on_the_whole_file(project):
    folder = project(
        evaluation("student", 50, sha="0" * 64, created="2026-01-01T00:00:00Z"),
        evaluation("student", 40, "openvino", "bf16", sha="0" * 64, created="2026-01-01T00:00:00Z"),
        evaluation("student", 70),
        evaluation("student", 100, created="2026-02-03T00:00:00Z", count=100),
    )
    report.main([])
    readme, page = ((folder / name).read_text(encoding="utf-8") for name in ("README.md", "RESULTS.md"))
    assert "| 200 | 70.00 [" in row(readme, "student")
    assert page.count("| student `") == 4  # RESULTS.md keeps every run
    assert page.index("| student `bbbbbbbbbbbb`") < page.index("| student `000000000000`")  # the newest weights first


FIRST, SECOND = ({"teacher": digit * 64, "student": other * 64, "control": third * 64} for digit, other, third in (("1", "2", "3"), ("a", "b", "c")))


def pairs(*found) -> str:
    lines = ["[[pairs]]\n" + "".join(f'{role} = "{digits[:14]}"\n' for role, digits in pair.items()) for pair in found]
    return "\n".join(lines)


def test_models_are_compared_within_their_pair(project):
    trained = other(
        "training", "student", runs.training_results(questions=10, steps=5, tokens=9, seconds=7.0, loss=1.0)
    )  # not rounded to float16 yet
    earlier = [evaluation(role, percent, sha=FIRST[role]) for role, percent in (("teacher", 60), ("student", 55), ("control", 65))]
    later = [evaluation(role, percent, created="2026-01-01T00:00:00Z") for role, percent in (("teacher", 80), ("student", 70), ("control", 60))]
    folder = project(*earlier, *later, trained)
    (folder / "pairs.toml").write_text(pairs(FIRST, SECOND | {"note": "What to know."}), encoding="utf-8")
    assert report.main([]) == 0
    page, readme = ((folder / name).read_text(encoding="utf-8") for name in ("RESULTS.md", "README.md"))
    old = [f"{role} `{FIRST[role][:12]}`" for role in ("control", "student", "teacher")]
    assert (
        f"Measured with earlier weights, in rows that name them or whose run files do: {', '.join(old)}.\nTheir scores are" in page.split("\n## ")[0]
    )
    said = [line for line in page.splitlines() if line.startswith("- The ")]
    assert len(said) == 6 and sum("beats the control `cccccccccccc`" in line for line in said) == 2
    assert "The teacher `111111111111` does not beat the control `333333333333` by F1: it is worse" in said[3]
    assert said[2].startswith("- The student `bbbbbbbbbbbb` retains") and "Retention is not quoted" in said[5]
    assert page.index("- What to know.") < page.index(said[3])
    assert not any(
        digits[:12] in readme for digits in FIRST.values()
    )  # the README speaks of the current pair alone, however late others were measured
    assert "- The student `bbbbbbbbbbbb` retains" in readme and "- What to know." in readme
    (folder / "pairs.toml").write_text(pairs(SECOND, FIRST), encoding="utf-8")
    assert report.main(["--check"]) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[pairs]]\nteacher = "abc"\nreader = "x"\n', "unknown entry 'reader'.*teacher must be 12 or more digits of a sha256, found 'abc'"),
        ("[[pairs]", "Expected a TOML file of pairs"),
        ('[pairs]\nteacher = "abc"\n', r"a pair is a table \[\[pairs\]\]"),
        ("[[pairs]]\nteacher = 123456789012\n", "found 123456789012"),
    ],
)
def test_a_wrong_list_of_pairs_is_an_error(project, text, words):
    folder = project(evaluation("teacher", 80))
    (folder / "pairs.toml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        report.main([])


def test_other_tables(project):
    best = Scores(60.0, 70.0, 10)
    recipe: JSON = {"questions": 1000, "steps": 500, "tokens": 1_234_567, "seconds": 7500.0, "loss": 1.25}
    latency = runs.timing_results(
        "squad questions, batch 1",
        {"teacher": runs.summarise_times([0.02] * 3), "student": runs.summarise_times([0.01] * 3)},
        {"teacher / student": runs.Interval(2.0, 1.9, 2.1)},
        {"student": RuntimeInfo("openvino", "2026.4", "bf16", 2)},
    )
    counts = {"requests": 1200, "failures": 0, "requests_per_second": 31.26}
    load = runs.timing_results("own questions", {"student": runs.summarise_times([0.01])}, extra=counts)
    ports: JSON = {"inputs": {"input_ids": "int32 (1, 128)"}, "outputs": {"start_logits": "float16 (1, 128)"}}
    export = runs.export_results(
        target="ios16", precision="fp16", package_bytes=45_600_000, weight_bytes=45_000_000, specification_version=7, **ports
    )
    folder = project(
        other("training", "student with teacher", runs.training_results(**recipe, best=best)),
        other("training", "control run", runs.training_results(**recipe | {"loss": None, "seconds": 42}), roles=("control",)),
        other("latency", "latency", latency, roles=("teacher", "student")),
        other("load", "load", load, roles=("teacher", "student")),
        other("export", "export", export, not_checked=("no Mac here: the package was not run",)),
    )
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    training, latency_part = page.split("## Training")[1].split("## Latency")
    assert "| 1,000 | 500 | 1,234,567 | 2 h 05 min | 1.2500 | 60.00 / 70.00 of 10 |" in row(training, "student with teacher")
    assert "| 42 s |  |  |" in row(training, "control run")
    assert "| 20.00 | 20.00 | 20.00 | 20.00 | ms |" in row(latency_part, "| teacher |")
    assert "student (openvino 2026.4, bf16, 2 threads)" in latency_part and "2.00 [1.90, 2.10] times" in latency_part
    assert "own questions, 1,200 requests, 0 failures, 31.3 requests a second" in latency_part
    assert "| ios16 | fp16 | 45.6 MB | 45.0 MB | 7 | input_ids: int32 (1, 128) | start_logits: float16 (1, 128) |" in row(page, "ios16")
    assert "- no Mac here: the package was not run ([run file](runs/export-export-2026-02-02.json), 2026-02-02)" in page
    body = page.split("# Results")[1]
    assert all("2026-02-02.json]" in line for line in body.splitlines() if line.startswith("|") and "---" not in line and "measured |" not in line)


def test_check_names_the_first_edited_line(project, capsys):
    folder = project(evaluation("teacher", 80))
    report.main([])
    capsys.readouterr()
    for name in ("RESULTS.md", "README.md"):
        path = folder / name
        before = path.read_text(encoding="utf-8")
        path.write_text(before.replace("80.00 [", "81.00 ["), encoding="utf-8")
        assert report.main(["--check"]) == 1
        error = capsys.readouterr().err
        line = next(i for i, text in enumerate(before.splitlines(), 1) if "80.00 [" in text)
        assert f"{name}, line {line}:" in error and "81.00 [" in error and "pocketqa report" in error
        assert path.read_text(encoding="utf-8") != before  # checking writes nothing
        path.write_text(before, encoding="utf-8")
    assert report.main(["--check"]) == 0
    results = folder / "RESULTS.md"
    results.write_text(results.read_text(encoding="utf-8") + "more", encoding="utf-8")
    assert report.main(["--check"]) == 1
    results.unlink()
    assert report.main(["--check"]) == 1
    assert "RESULTS.md does not exist" in capsys.readouterr().err


def test_check_finds_run_files_that_changed(project):
    folder = project(evaluation("teacher", 80))
    report.main([])
    runs.write(evaluation("student", 70), folder / "runs")
    assert report.main(["--check"]) == 1


def test_retention_takes_the_control_in_whatever_engine_it_was_measured(project):
    everywhere = [evaluation(role, percent, engine) for role, percent in (("teacher", 80), ("student", 78)) for engine in ("onnxruntime", "openvino")]
    folder = project(*everywhere, evaluation("control", 60, "openvino"))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "beats the control `cccccccccccc` by F1: its interval lies above zero (openvino" in page
    assert "The student `bbbbbbbbbbbb` retains 98.1 % [" in page and "Retention is not quoted" not in page


EXPERIMENT = """
[[experiments]]
tried = "a longer | training"
run = "{run}"
without = "a short one"
against = "{against}"
kept = "{kept}"
"""


def test_experiments_are_listed_with_the_figures_of_their_run_files(project):
    scored: JSON = {"questions": 1000, "steps": 500, "tokens": 1_234_567, "seconds": 7500.0, "loss": 1.25}
    trained = [
        other("training", name, runs.training_results(**scored, best=Scores(f1 - 10, f1, 10))) for name, f1 in (("long", 69.5), ("short", 70.0))
    ]
    folder = project(*trained, evaluation("student", 70, split="development"), evaluation("control", 60, split="development"))
    names = {path.name.split("-2026")[0]: path.name for path in (folder / "runs").iterdir()}
    entries = [
        EXPERIMENT.format(run=names["training-long"], against=names["training-short"], kept="no"),
        EXPERIMENT.format(
            run=names["evaluation-student-pytorch-fp32-development"], against=names["evaluation-control-pytorch-fp32-development"], kept="yes"
        ),
    ]
    (folder / "experiments.toml").write_text("".join(entries), encoding="utf-8")
    report.main([])
    log = (folder / "RESULTS.md").read_text(encoding="utf-8").split("## Experiments")[1].split("## ")[0]
    failed, kept = [line for line in log.splitlines() if line.startswith("| a longer")]
    assert failed.startswith(
        "| a longer \\| training | 59.50 / 69.50 of 10 | a short one | 60.00 / 70.00 of 10 | -0.50 | no | [run file](runs/training-long"
    )
    assert "| +8.00 [" in kept and "| yes | [run file](runs/evaluation-student" in kept
    assert report.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[experiments]]\ntried = 1\nmore = 2\n", "without is missing.*unknown entry 'more'.*tried must be str"),
        ("[[experiments]", "Expected a TOML file of experiments"),
        (EXPERIMENT.format(run="a.json", against="b.json", kept="yes"), "run files that are not there: a.json, b.json"),
    ],
)
def test_a_wrong_list_of_experiments_is_an_error(project, text, words):
    folder = project(evaluation("teacher", 80))
    (folder / "experiments.toml").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=words):
        report.main([])


def test_output_is_the_same_every_time_and_from_elsewhere(project, tmp_path, monkeypatch):
    folder = project(evaluation("teacher", 80), evaluation("control", 60))
    report.main([])
    first = (folder / "RESULTS.md").read_bytes(), (folder / "README.md").read_bytes()
    monkeypatch.chdir("/")
    arguments = ["--runs", str(folder / "runs"), "--out", str(folder / "RESULTS.md"), "--readme", str(folder / "README.md")]
    report.main(arguments)
    assert first == ((folder / "RESULTS.md").read_bytes(), (folder / "README.md").read_bytes())
    assert str(tmp_path).encode() not in first[0]
    assert report.main([*arguments, "--check"]) == 0


def test_what_is_said_of_a_projects_own_data_stands_in_its_list_alone(project):
    folder = project(evaluation("teacher", 80))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert report.NOTES["SQuAD v1.1 dev"] in page and "nothing was chosen by it" not in page
    notes = folder / "notes.toml"
    notes.write_text(
        '[[notes]]\nsection = "SQuAD v1.1 dev"\ntext = "Chosen by nothing."\n[[notes]]\nsection = "Zoo"\ntext = "Not shown."\n', encoding="utf-8"
    )
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert f"\n{report.NOTES['SQuAD v1.1 dev']} Chosen by nothing.\n" in page and "Not shown" not in page
    notes.write_text('[[notes]]\nsection = "Zoos"\nwords = "x"\n', encoding="utf-8")
    with pytest.raises(
        DataError, match=r"note 1: section must be one of .*Zoo.*; found 'Zoos'; note 1: text must be str, found None; note 1: unknown entry 'words'"
    ):
        report.main([])


def test_a_page_that_cannot_be_written_is_an_error(project):
    folder = project(evaluation("teacher", 80))
    (folder / "pages").mkdir()
    for out, says in (("nodir/R.md", "No such file"), ("pages", "Is a directory")):
        with pytest.raises(DataError, match=f"Expected to write {out}, but it cannot be written: {says}.*Make its folder"):
            report.main(["--out", out])


def test_readme_without_markers_is_an_error(project):
    folder = project()
    for text in ("nothing", f"{report.END}\n{report.START}", f"{report.START}{report.START}{report.END}"):
        (folder / "README.md").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="results:start"):
            report.main([])
    (folder / "README.md").unlink()
    with pytest.raises(DataError, match="--no-readme"):
        report.main([])
    assert report.main(["--no-readme"]) == 0


def test_a_mistyped_folder_and_a_file_in_the_way_leave_the_pages_alone(project, capsys):
    folder = project(evaluation("teacher", 80))
    assert report.main([]) == 0
    pages = [(folder / name).read_bytes() for name in ("RESULTS.md", "README.md")]
    (folder / "plots").write_text("")
    for flags, error, says in (
        (["--runs", "rusn"], DataError, "Expected a folder of run files at rusn, found nothing"),
        (["--runs", "README.md"], DataError, "found a file"),
        (["--html", "plots"], OptionsError, "found a file at plots"),
    ):
        with pytest.raises(error, match=says):
            report.main(flags)
    assert pages == [(folder / name).read_bytes() for name in ("RESULTS.md", "README.md")]
    (folder / "RESULTS.md").write_bytes(b"\xff")
    assert report.main(["--check"]) == 1 and "RESULTS.md, line 1" in capsys.readouterr().err
    (folder / "README.md").write_bytes(b"\xff" + pages[1])
    with pytest.raises(DataError, match=r"README\.md: expected UTF-8, found another byte at 0"):
        report.main([])


def test_an_edited_run_file_stops_the_report(project):
    folder = project(evaluation("teacher", 80), evaluation("control", 60))
    path = next((folder / "runs").glob("*teacher*"))
    path.write_text(path.read_text(encoding="utf-8").replace('"exact_match": 80.0,', '"exact_match": 82.0,'), encoding="utf-8")
    with pytest.raises(DataError, match="edited"):
        report.main([])


def test_words_for_numbers():
    assert [tables.duration(seconds) for seconds in (0.4, 59.6, 450, 7530)] == ["0 s", "1 min 00 s", "7 min 30 s", "2 h 05 min"]
    assert tables.signed(runs.Interval(0.001, -0.2, 0.204)) == "0.00 [-0.20, +0.20]"
    assert tables.table(("a",), [("x|y\nz",)]) == ["| a |", "| --- |", "| x\\|y z |"]


def test_evaluation_of_other_roles_comes_last():
    base = evaluation("control", 50)
    extra = replace(base, subjects=(replace(base.subjects[0], role="base", sha256="9" * 64),))
    found = tables.evaluations({"x": extra, "c": base, "t": evaluation("teacher", 60)}, "squad-dev")
    assert list(found) == ["t", "c", "x"]


def test_verified_artefacts(project):
    reasons: JSON = {"hazards": ["a mask is infinite"], "non_finite": {"softmax s": 3}, "overflow": {"linear l": 1000, "add a": 2}}
    loud = mobile_runs.verification(
        "teacher",
        "ios18",
        "int4",
        gate={"limit": 0.6, "f1_loss": {"value": 0.2, "low": -0.1, "high": 0.75}, "passed": False},
        layout="ane",
        **reasons,
    )
    alone = mobile_runs.verification(scheme="palette4", megabytes=12.04, right=29, agreement=None, gate=None)
    none_lost = {"value": 0.0, "low": 0.0, "high": 0.0}
    few = mobile_runs.verification(scheme="int8", gate={"limit": 0.6, "f1_loss": none_lost, "questions": 40, "least_questions": 500, "passed": False})
    folder = project(mobile_runs.verification(), alone, loud, few)
    report.main([])
    page, sizes = (folder / "RESULTS.md").read_text(encoding="utf-8").split("## Sizes\n")
    assert "## SQuAD v1.1 dev" in page and report.EXPORTED in page
    fp16 = row(page, "ios16, fp16")
    assert "| student `bbbbbbbbbbbb` | ios16, fp16 | 45.3 MB | 45.3 MB | 40.8 MB | 40 | 75.00 [" in fp16
    assert "| -0.05 [-0.25, +0.05] | 97.50 % (1 differ, every one with a gap below 0.05) | 66.0 dB | passed, limit 0.3 | nothing | [verif" in fp16
    assert "`pocketqa squad-dev student ios16 fp16 standard`" in fp16
    assert "| not measured |  |  | none | nothing |" in row(page, "ios16, palette4")
    assert "| NOT SHOWN: 40 questions, limit 0.6, which needs 500 |" in row(page, "ios16, int8")
    assert "| NOT SHOWN: loss up to 0.75, limit 0.6 | 1 hazards, 3 values not finite, 1,002 values beyond float16 |" in row(
        page, "ios18, layout ane, int4"
    )
    for part in (page, sizes):
        assert part.index("teacher `a") < part.index("ios16, fp16") < part.index("ios16, palette4")  # the larger package first
    assert "| student `bbbbbbbbbbbb` | ios16, fp16 |  | 45.3 MB | 45.3 MB | 40.8 MB | -0.05 [-0.25, +0.05] | [run file](runs/verif" in sizes
    assert "| 12.0 MB | 12.0 MB | 10.8 MB | not measured |" in row(sizes, "ios16, palette4")
    assert report.main(["--check"]) == 0


def test_artefacts_of_one_model_stand_together(project):
    old = mobile_runs.verification(megabytes=99.0)
    old = replace(old, created="2026-01-01T00:00:00Z", subjects=(replace(old.subjects[0], sha256="9" * 64),))
    folder = project(old, mobile_runs.verification(), mobile_runs.verification(scheme="int8", megabytes=23.0))
    report.main([])
    for part in (folder / "RESULTS.md").read_text(encoding="utf-8").split("## Sizes\n"):
        shown = [line.split("`")[1][:1] for line in part.splitlines() if line.startswith("| student `")]
        assert shown == ["b", "b", "9"]  # the newest weights first, though the old package is the largest


def test_combinations_of_a_compression(project):
    many = mobile_runs.point(11.0, 70.0, **{f"layer {i}": "int8" if i < 2 else "palette4" for i in range(6)})
    sizes = {"bytes": {"package": 12_500_000}, "bytes_before": {"package": 45_300_000}}
    folder = project(mobile_runs.compression(1, (*mobile_runs.POINTS, many, mobile_runs.point(46.0, 75.9)), **sizes))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8").split("## Compression")[1]
    assert "student `bbbbbbbbbbbb`: 40 questions. At most 1 points of F1 may be lost. Package: 12.5 MB, was 45.3 MB. [compression-mixed-stu" in page
    assert "| embeddings palette4, layers palette4 | 10.0 MB | 73.00 | 3.00 [2.90, 3.20] | on the front |" in page
    assert "| embeddings int8, layers palette4 | 12.0 MB | 75.40 | 0.60 [0.50, 0.80] | selected |" in page
    assert "| embeddings palette4, layers palette6 | 15.0 MB | 75.00 | 1.00 [0.90, 1.20] |  |" in page  # larger and worse than the selected one
    assert "| 4 in palette4, 2 in int8 | 11.0 MB |" in page and "| float16 | 46.0 MB |" in page
    assert page.index("10.0 MB") < page.index("11.0 MB") < page.index("12.0 MB")


def test_nothing_selected(project):
    folder = project(mobile_runs.compression(None, max_f1_drop=None))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "| selected |" not in page and "may be lost" not in page


def test_pareto_front_by_hand():
    points = [{"bytes": b, "f1": f} for b, f in ((10, 70), (10, 71), (20, 71), (20, 80), (5, 60), (20, 80), (30, 80))]
    assert mobile_tables.pareto(points) == {1, 3, 4, 5}  # of two equal points neither is better; more bytes for the same F1 are worse


def test_races_with_devices_ratios_and_loads(project):
    phone = mobile_runs.race("phone", (("student", "coreml fp16", 2.0),), device=mobile_runs.PHONE, origin={"student, coreml fp16": "configuration"})
    fast = mobile_runs.race(remarks=["a pass takes 410 s"])
    folder = project(fast, phone, mobile_runs.race("crowded", (("student", "pytorch fp32", 30.0),), busy=True))
    report.main([])
    sizes, page = (folder / "RESULTS.md").read_text(encoding="utf-8").split("## Sizes\n")[1].split("## Latency")
    teacher = row(page, "| teacher, onnxruntime fp32 `aaaaaaaaaaaa` | 101 |")
    assert "| 40.00 ms | 56.00 ms | 59.60 ms | 4.00 + 32.00 + 4.00 ms | 0.81 s | 0.32 s | 0.20 s | 0.10 s | 1,310 MiB |" in teacher
    assert (
        "### squad, 1 thread, full\n\nsquad: questions of dev.json. a processor (server), an OS, compute unit cpu; full, valid. [latency-squad-1-"
        in page
    )
    assert "a phone (phone), iOS 17, compute unit ne, thermal state nominal; full, valid. [" in page
    assert "| student, coreml fp16 (random weights) | 101 | 2.00 ms |" in page
    assert "| student, pytorch fp32 `bbbbbbbbbbbb` | 101 | 30.00 ms |" in page
    crowded = page.split("compute unit cpu; full, not valid, BUSY MACHINE. ")[1].splitlines()
    assert crowded[1] == "Busy machine, so its times are not to be trusted: other processes used 40% of the machine."
    ratio = row(page, "teacher, onnxruntime fp32 / student, onnxruntime fp32 |")
    assert "| 2.00 [1.90, 2.10] | 2.20 [2.10, 2.30] | 1.80 [1.70, 1.90] | the student is faster |" in ratio
    assert "| model folder |  | 90.0 MB | 89.0 MB | 80.0 MB |  | [run file](" in row(sizes, "| teacher `aaaaaaaaaaaa` |")
    assert "| coreml fp16 |" in row(sizes, "| student (random weights) |")
    assert "- a pass takes 410 s\n" in page


def test_a_busy_machine_gives_no_verdict(project):
    folder = project(mobile_runs.race(busy=True))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8").split("## Latency")[1]
    assert row(page, "teacher, onnxruntime fp32 / student, onnxruntime fp32 |").endswith("| no verdict: busy machine |")


def test_a_race_of_unlike_work_has_no_verdict_and_says_what_is_padded(project):
    tokens = {"teacher, onnxruntime fp32": {"mean": 128.0, "positions": 384.0}, "student, onnxruntime fp32": {"mean": 128.0, "positions": 128.0}}
    memory = {label: {"peak": 300.0, "before_load": 220.0} for label in tokens}
    folder = project(mobile_runs.race(tokens=tokens, peak_memory_mib=memory, workload="fixed-128: windows of exactly 128 tokens"))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8").split("## Latency")[1]
    assert "| no verdict: they compute other numbers of positions |" in row(page, "teacher, onnxruntime fp32 / student, onnxruntime fp32 |")
    assert page.count("since its program takes fixed lengths") == 1
    assert "- teacher, onnxruntime fp32: computes 384.0 positions a query for 128.0 tokens" in page
    assert "| 300 MiB | 80 MiB |" in row(page, "| teacher, onnxruntime fp32 `aaaaaaaaaaaa` | 101 |")


def test_questions_have_a_verdict_though_padding_is_part_of_their_time(project):
    tokens = {"teacher, onnxruntime fp32": {"mean": 90.0, "positions": 384.0}, "student, onnxruntime fp32": {"mean": 90.0, "positions": 90.0}}
    folder = project(mobile_runs.race(tokens=tokens))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "the student is faster" in page and "computes 384.0 positions a query for 90.0 tokens" in page


def test_what_a_phones_file_may_leave_out_or_give_in_short(project):
    run = mobile_runs.race("phone", (("student", "coreml fp16", 2.0),), device=mobile_runs.PHONE, peak_memory_mib={"student, coreml fp16": 120.0})
    folder = project(replace(run, results={name: value for name, value in run.results.items() if name != "threads"}))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    assert "### squad, compute unit ne, full" in page and "| 120 MiB |  |" in row(page, "| student, coreml fp16 `bbbbbbbbbbbb` | 101 |")


def test_core_ml_is_said_to_decide_on_its_threads(project):
    folder = project(mobile_runs.race("mac", (("student", "coreml-ne fp16", 2.0),), threads=None, device=mobile_runs.SERVER | {"compute_unit": "ne"}))
    report.main([])
    assert "### squad, compute unit ne, full" in (folder / "RESULTS.md").read_text(encoding="utf-8")


def test_the_newest_race_comes_first_and_bytes_once_though_threads_differ(project):
    older = replace(mobile_runs.race("two threads", threads=2), created="2026-01-01T00:00:00Z")
    folder = project(older, mobile_runs.race())
    report.main([])
    sizes, page = (folder / "RESULTS.md").read_text(encoding="utf-8").split("## Sizes\n")[1].split("## Latency")
    assert page.index("### squad, 1 thread, full") < page.index("### squad, 2 threads, full")
    assert sizes.count("| teacher `aaaaaaaaaaaa` |") == 1 and "squad-1-thread-2026-03-01" in row(sizes, "| teacher `aaaaaaaaaaaa` |")


def test_a_contestant_on_other_queries_is_no_other_model_and_files_of_the_newest_race_count(project):
    short, long = (("student", "onnxruntime fp32", 20.0), ("student on 64 zeros", "onnxruntime fp32", 5.0))
    counted = {"package": 45_214_546, "weights": 45_142_924, "zipped": 41_709_387, "parameters": 22_565_378}
    run = mobile_runs.race(contestants=(long, short), bytes={f"{name}, onnxruntime fp32": counted for name, _, _ in (short, long)})
    run = replace(run, subjects=tuple(replace(s, sha256="b" * 64, role="student") for s in run.subjects))
    folder = project(run, mobile_runs.verification(), evaluation("student", 70))
    report.main([])
    sizes = (folder / "RESULTS.md").read_text(encoding="utf-8").split("## Sizes\n")[1].split("## Latency")[0]
    small = (folder / "README.md").read_text(encoding="utf-8").split("As files: ")[1]
    for part in (sizes, small):
        assert [line.split(" | ")[:4] for line in part.splitlines() if line.startswith("| student")] == [
            ["| student `bbbbbbbbbbbb`", "ios16, fp16", "22.6 million", "45.3 MB"],
            ["| student `bbbbbbbbbbbb`", "model folder", "22.6 million", "45.2 MB"],
        ]


def test_the_paper_audited(project):
    folder = project(
        mobile_runs.race(
            "paper", audit=[mobile_runs.AUDIT], title="The experiment: a server CPU in the phone's manner", caveats=["so to say"], busy=True
        )
    )
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8").split("## The paper's phone experiment")[1]
    assert "The experiment: a server CPU in the phone's manner; full, not valid, BUSY MACHINE. [run file]" in page
    assert "Busy machine, so its times are not to be trusted: other processes used 40% of the machine" in page
    assert "| recomputed | NO: there is no attention in it |" in row(page, "207 MB") and "- so to say" in page


def test_the_zoo_beside_its_papers(project):
    folder = project(mobile_runs.zoo(busy=True, load={"reasons": ["crowded"]}))
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8")
    zoo = page.split("## Zoo")[1]
    assert "## Latency" not in page  # a zoo is no race
    counted = row(zoo, "| DistilBERT 6 | 6 x 768 |")
    assert "| 66.36 M | 66 M (+0.6 %), 66.4 M (0.0 %) (not confirmed) | 11.17 B | 11.9 B (-6.1 %) |" in counted
    assert "| 265.5 MB | 132.7 MB | 66.4 MB | 33.2 MB |" in counted
    timed = row(zoo, "| DistilBERT 6 | 50.00 ms | 50.00 ms |")
    assert "| 1.90 [1.71, 2.09] | 1.63 from 410 s (a GPU); 2 (a phone) (not confirmed) |" in timed
    assert "its twin (the network of DistilBERT 6)" in zoo and "| ELMo | not counted |  | 180 M |" in zoo
    assert "- DistilBERT 6, operations, published as 11.9 B: with a half more, it would be 11.9 B." in zoo
    assert "- Published figures: A 2019, table 1; B 2020, table 2." in zoo and "- Not confirmed:" in zoo
    assert "- Busy machine, so its times are not to be trusted: crowded" in zoo


def test_what_was_not_checked_is_said_once(project):
    first, second = (replace(mobile_runs.verification(scheme=scheme), not_checked=("the Neural Engine",)) for scheme in ("fp16", "int8"))
    folder = project(first, second)
    report.main([])
    page = (folder / "RESULTS.md").read_text(encoding="utf-8").split("## Not checked")[1]
    assert page.count("the Neural Engine") == 1 and page.count("[run file]") == 1 and "2026-03-01, and 1 more)" in page


def test_a_page_elsewhere_does_not_tell_of_this_machine(project, tmp_path):
    project(evaluation("teacher", 80))
    (tmp_path / "deep").mkdir()
    report.main(["--no-readme", "--out", str(tmp_path / "deep" / "down.md")])
    assert "](../runs/evaluation-teacher" in (tmp_path / "deep" / "down.md").read_text(encoding="utf-8")


def test_the_time_of_a_question_is_that_of_the_full_race_on_the_fewest_threads():
    slow, fast = (("student", "onnxruntime fp32", 90.0),), (("student", "onnxruntime fp32", 20.0),)
    races = [
        mobile_runs.race("full", fast),
        mobile_runs.race("quick", slow, mode="quick"),
        mobile_runs.race("two threads", slow, threads=2),
        mobile_runs.race("of sentences", slow, workload="stsb: pairs"),
    ]
    for order in (races, races[::-1]):
        times = mobile_tables.question_times({run.name: run for run in order}, lambda name, _: name)
        assert times == {(mobile_runs.SHA["student"], "onnxruntime", "fp32"): "20.0 / 28.0 on 1 thread of a processor, full"}


def test_the_time_of_a_question_on_a_busy_machine_is_called_so_and_a_quiet_one_goes_before():
    crowded = mobile_runs.race("crowded", (("student", "onnxruntime fp32", 90.0),), busy=True)
    [cell] = mobile_tables.question_times({"crowded": crowded}, lambda name, _: name).values()
    assert cell == "90.0 / 126.0 on 1 thread of a processor, a busy machine, crowded"
    older = replace(mobile_runs.race("quiet", (("student", "onnxruntime fp32", 20.0),)), created="2020-01-01T00:00:00Z")
    [cell] = mobile_tables.question_times({"quiet": older, "crowded": crowded}, lambda name, _: name).values()
    assert cell == "20.0 / 28.0 on 1 thread of a processor, quiet"

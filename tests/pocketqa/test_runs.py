"""Run files: what may be written, what is read back, and comparisons of two of them."""

import json
import os
import re
import shlex
import socket
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketqa import environment, runs
from pocketqa.errors import DataError, OptionsError
from pocketqa.types import RuntimeInfo, Scores

EXACT = np.array([1.0, 0.0, 1.0, 0.0])
F1 = np.array([1.0, 0.5, 1.0, 0.0])
IDS = ["a", "b", "c", "d"]


def scores(exact: np.ndarray, f1: np.ndarray) -> Scores:
    return Scores(100 * float(exact.mean()), 100 * float(f1.mean()), len(exact))


def evaluation(exact=EXACT, f1=F1, ids=IDS, name="evaluation", sha="d" * 64, groups=None, **subject) -> runs.RunFile:
    info = RuntimeInfo("onnxruntime", "1.31.0", "fp32", 2)
    return runs.RunFile(
        "evaluation",
        name,
        (replace(runs.Subject.of("student", "student", "a" * 64, info), **subject),),
        (runs.DataFile("dev.json", sha, len(ids), "squad-dev"),),
        "pocketqa evaluate models/student",
        "2026-01-31T12:00:00Z",
        {"cpu": "a processor", "cores": 2},
        runs.evaluation_results(scores(exact, f1), exact, f1, ids, groups),
    )


# ---- values of each question


def test_evaluation_results_keep_every_question():
    results = runs.evaluation_results(scores(EXACT, F1), EXACT, F1, IDS, groups=["x", "y", "x", "y"])
    assert (results["exact_match"], results["f1"], results["count"]) == (50.0, 62.5, 4)
    assert results["intervals"]["f1"]["value"] == 62.5
    assert results["intervals"]["resampled"] == "2 groups of questions"
    stored = runs.per_question(results)
    np.testing.assert_array_equal(stored.exact_match, EXACT)
    np.testing.assert_array_equal(stored.f1, F1)
    np.testing.assert_array_equal(stored.groups, [0, 1, 0, 1])
    assert stored.ids_sha256 == runs.ids_hash(IDS) != runs.ids_hash(IDS[::-1])


def test_ten_thousand_questions_fit_and_stay_within_a_500th(tmp_path):
    random = np.random.default_rng(0)
    f1 = random.random(10_570)
    exact = (random.random(10_570) < 0.7).astype(float)
    run = evaluation(exact, f1, [f"{i:024x}" for i in range(10_570)], groups=np.arange(10_570) // 5)
    path = runs.write(run, tmp_path)
    assert path.stat().st_size < 60_000
    stored = runs.per_question(runs.read(path).results)
    np.testing.assert_array_equal(stored.exact_match, exact)
    assert np.abs(stored.f1 - f1).max() <= 1 / 500 + 1e-12


def test_in_a_folder_a_run_replaces_none_of_another_command(tmp_path):
    first = runs.write(evaluation(), tmp_path)
    other = replace(evaluation(), command="pocketqa evaluate models/student --limit 2")
    assert [runs.write(run, tmp_path).name for run in (other, evaluation(), other)] == [f"{first.stem}-2.json", first.name, f"{first.stem}-2.json"]
    first.write_text("not a run file")
    assert runs.write(evaluation(), tmp_path).name == f"{first.stem}-3.json"
    assert first.read_text() == "not a run file"
    assert len(list(tmp_path.iterdir())) == 3


def test_results_that_contradict_are_refused():
    with pytest.raises(OptionsError, match="4 ids"):
        runs.evaluation_results(Scores(50, 62.5, 3), EXACT, F1, IDS)
    with pytest.raises(OptionsError, match="mean F1"):
        runs.evaluation_results(Scores(50, 99.0, 4), EXACT, F1, IDS)


@pytest.mark.parametrize(("key", "value", "message"), [("f1", 90.0, "edited"), ("exact_match", 51.0, "edited"), ("count", 5, "5 questions")])
def test_edited_means_are_found(key, value, message):
    results = evaluation().results
    with pytest.raises(DataError, match=message):
        runs.per_question({**results, key: value})


def test_damaged_values_are_found():
    results = evaluation().results
    for damage in ({"f1": "!!"}, {"f1": results["per_question"]["f1"][:-8]}, {"exact_match": ""}, {"count": 0}):
        with pytest.raises(DataError):
            runs.per_question({**results, "per_question": {**results["per_question"], **damage}})
    with pytest.raises(DataError, match="pocketqa evaluate"):
        runs.per_question({"exact_match": 1.0, "f1": 1.0, "count": 1})


def test_comparison_is_paired():
    worse, better = np.array([1.0, 0.5, 1.0, 0.1]), np.array([1.0, 1.0, 1.0, 0.1])
    outcome = runs.compare(evaluation(np.array([1.0, 1.0, 1.0, 0.0]), better), evaluation(EXACT, worse))
    assert outcome.retention is not None
    assert (outcome.exact_match.value, outcome.f1.value, outcome.retention.value) == pytest.approx((25, 12.5, 310 / 2.6))
    assert outcome.exact_match.low == 0 and outcome.count == 4
    same = runs.compare(evaluation(EXACT, worse), evaluation(EXACT, worse))
    assert same.f1 == runs.Interval(0, 0, 0) and same.retention == runs.Interval(100, 100, 100)


def test_comparison_agrees_with_the_statistics():
    random = np.random.default_rng(9)
    a, b = (np.round(random.random(60) * 250) / 250 for _ in range(2))
    groups = np.arange(60) // 4
    zero = np.zeros(60)
    ids = [str(i) for i in range(60)]
    outcome = runs.compare(evaluation(zero, a, ids, groups=groups), evaluation(zero, b, ids, groups=groups))
    expected = runs.mean_difference(a, b, groups).scaled(100)
    np.testing.assert_allclose((outcome.f1.value, outcome.f1.low, outcome.f1.high), (expected.value, expected.low, expected.high))
    kept = runs.mean_ratio(a, b, groups).scaled(100)
    assert outcome.retention is not None
    assert (outcome.retention.low, outcome.retention.high) == pytest.approx((kept.low, kept.high))


def test_retention_of_nothing_is_not_a_number():
    assert runs.compare(evaluation(), evaluation(EXACT * 0, F1 * 0)).retention is None


def test_comparison_refuses_other_questions_data_and_kinds():
    with pytest.raises(DataError, match="different questions"):
        runs.compare(evaluation(), evaluation(ids=["a", "b", "d", "c"]))
    with pytest.raises(DataError, match="different data"):
        runs.compare(evaluation(), evaluation(sha="e" * 64))
    training = runs.RunFile(
        "training", "t", (), (), "c", "2026-01-31T12:00:00Z", {}, runs.training_results(questions=1, steps=1, tokens=1, seconds=1, loss=None)
    )
    with pytest.raises(DataError, match="kind 'training'"):
        runs.compare(training, evaluation())


# ---- other kinds


def verification(change: float = 0.0, **results) -> runs.RunFile:
    base = evaluation(f1=np.clip(F1 - change, 0, 1), groups=["x", "y", "x", "y"])
    found = runs.verification_results(
        base.results,
        target="ios16",
        scheme="fp16",
        layout="standard",
        format="mlprogram",
        bytes={"package": 3, "weights": 2, "zipped": 1},
        agreement=None,
        gate=None,
        hazards=[],
        non_finite={},
        overflow={},
        operations={"linear": 2},
        extra={"lengths": [384]},
    )
    return replace(base, kind="verification", results={**found, **results})


def test_a_verification_is_an_evaluation_with_findings(tmp_path):
    run = verification()
    assert runs.read(runs.write(run, tmp_path)) == run
    assert run.results["f1"] == evaluation().results["f1"] and run.results["target"] == "ios16" and run.results["lengths"] == [384]
    for key in ("gate", "f1"):
        with pytest.raises(OptionsError, match=f"results of kind verification need {key}"):
            replace(run, results={name: value for name, value in run.results.items() if name != key})
    with pytest.raises(OptionsError, match="kind verification is of one model, found 2"):
        replace(run, subjects=run.subjects * 2)


def test_verifications_and_evaluations_compare_with_each_other():
    outcome = runs.compare(verification(change=0.1), evaluation(groups=["x", "y", "x", "y"]))
    assert outcome.f1.value == pytest.approx(-7.5)  # three of four questions lose 10 points
    assert runs.compare(verification(), verification()).f1 == runs.Interval(0, 0, 0)


def test_a_compression_names_what_a_point_lacks(tmp_path):
    point = {"bytes": 10, "f1": 80.0, "f1_loss": {"value": 0.1, "low": 0, "high": 0.2}, "chosen": {"embedding": "int8"}}
    results = runs.compression_results("development split, 400 questions", [point], sensitivity={"embedding": {}}, max_f1_drop=0.5, selected=0)
    run = replace(evaluation(), kind="compression", results=results)
    assert runs.read(runs.write(run, tmp_path)).results["points"] == [point]
    with pytest.raises(OptionsError, match="chosen, f1_loss missing"):
        runs.compression_results("w", [{"bytes": 1, "f1": 2}], sensitivity={}, max_f1_drop=1, selected=None)


def test_a_latency_says_which_device_or_none(tmp_path):
    timings = {"student": runs.summarise_times([0.1, 0.2])}
    phone = {"name": "iPhone 7 Plus", "os": "iOS 15.8", "compute_unit": "cpu", "thermal_state": "nominal", "kind": "phone"}
    run = replace(evaluation(), kind="latency", results=runs.timing_results("fixed 384", timings, extra={"device": phone, "mode": "quick"}))
    assert runs.read(runs.write(run, tmp_path)) == run
    replace(run, results=runs.timing_results("fixed 384", timings))  # as before there were devices
    for device, message in (
        ({**phone, "kind": "tablet"}, "server or phone, found 'tablet'"),
        ({"kind": "phone"}, "device needs 'name'"),
        ("a phone", "must be an object"),
    ):
        with pytest.raises(OptionsError, match=message):
            replace(run, results={**run.results, "device": device})


# ---- files


def test_written_and_read_back(tmp_path):
    run = replace(evaluation(), not_checked=("no Apple hardware: \u00ab.mlpackage\u00bb not run",))
    path = runs.write(run, tmp_path / "deeper")
    assert path.name == "evaluation-evaluation-2026-01-31.json"
    assert runs.read(path) == run
    text = path.read_text(encoding="utf-8")
    assert text.endswith("}\n") and list(json.loads(text)) == sorted(json.loads(text))
    assert [item.name for item in path.parent.iterdir()] == [path.name]  # no temporary file is left
    runs.write(replace(run, created="2026-01-30T12:00:00Z"), tmp_path / "earlier.json")
    assert list(runs.read_all(tmp_path)) == ["earlier.json", "deeper/" + path.name]
    assert runs.read_all(tmp_path / "absent") == {}


def test_a_place_that_is_not_ours_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: place != tmp_path)
    with pytest.raises(DataError, match=r"folder .*/a/b, but .* cannot be written to"):
        runs.check_target(tmp_path / "a" / "b")
    runs.check_target(None)


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "f.txt").write_text("")
    (tmp_path / "folder.json").mkdir()
    for place in ("f.txt", "f.txt/run.json", "folder.json"):
        for ask in (runs.check_target, lambda path: runs.write(evaluation(), path)):
            with pytest.raises(DataError, match=r"Expected to write a run file .*Name a folder, or a file that ends in \.json"):
                ask(tmp_path / place)
    for place in ("absent/deeper", "absent/run.json", ".", "run.json"):
        runs.check_target(tmp_path / place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.txt", "folder.json"]


def test_intervals_of_one_article_resample_its_questions():
    of = {count: evaluation(groups=["a", "b", "c", "d"][:count] + ["a"] * (4 - count)).results["intervals"] for count in (1, 2)}
    assert of[1]["resampled"] == "questions" and of[2]["resampled"] == "2 groups of questions"
    assert of[1] == evaluation().results["intervals"]
    alone = [evaluation(f1=f1, groups=["a"] * 4) for f1 in (F1, F1 / 2)]
    assert runs.compare(*alone) == runs.compare(*(evaluation(f1=f1) for f1 in (F1, F1 / 2)))


def test_refuses_too_much(tmp_path):
    with pytest.raises(DataError, match="100000 bytes"):
        runs.write(replace(evaluation(), not_checked=("x" * 100_000,)), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), np.float64("nan")])
def test_refuses_what_is_not_a_number(tmp_path, number):
    run = evaluation()
    with pytest.raises(DataError, match=r"results: notes\[1\]: expected a finite number"):
        runs.write(replace(run, results={**run.results, "notes": [1.0, number]}), tmp_path)
    path = tmp_path / "edited.json"
    path.write_text(re.sub(r'"cores": 2', '"cores": NaN', runs.write(run, tmp_path).read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(DataError, match="NaN"):
        runs.read(path)


def test_refuses_paths_of_the_machine(tmp_path):
    run = evaluation()
    for text in (f"see {tmp_path}/x", "/home/ada/models/x", "~/models/x", r"C:\Users\Ada\x", f"--out={Path.home()}/models/x"):
        with pytest.raises(DataError, match="path of this machine"):
            runs.write(replace(run, results={**run.results, "note": text}), tmp_path)
        with pytest.raises(DataError, match="path of this machine"):
            runs.write(replace(run, results={**run.results, text: 1}), tmp_path)
    allowed = {"endpoint": "POST /v1/answer", "url": "http://127.0.0.1:8000/v1/compare", "unit": "tokens/s", "model": "models/student"}
    runs.write(replace(run, results={**run.results, **allowed}), tmp_path)


def test_no_part_of_a_password_is_kept():
    assert runs.command_line(["--url=https://user:p@ss@host/x@y"]) == "--url=https://host/x@y"


def test_command_line_names_files_not_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "pocketqa",
        "evaluate",
        str(tmp_path / "models" / "student"),
        "--data",
        "/data/squad/dev v1.json",
        "--out=/srv/out/x.json",
        "../../up/a.json",
    ]
    words += ["~/b.json", "models/teacher", "--question", "Who, and / or what?", "http://ada:secret@127.0.0.1:8000/v1", r"C:\data\c.json", ""]
    assert runs.command_line(words) == (
        "pocketqa evaluate models/student --data 'dev v1.json' --out=x.json a.json b.json models/teacher "
        "--question 'Who, and / or what?' http://127.0.0.1:8000/v1 c.json ''"
    )


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--recipe /home/me/mine.toml --cache /scratch/c", "--recipe mine.toml --cache c"),
        ("--epochs 2", "--epochs 2"),
        ("--serve-options=--student /srv/models/student --batching off", "--serve-options=--student student --batching off"),
        ("--data=/srv/my data/dev.json", "--data=dev.json"),
        ("--odd 'quote /x", "--odd 'quote /x"),
    ],
)
def test_flags_within_a_word_are_shortened_too(word, expected):
    assert shlex.split(runs.command_line([word])) == [expected]


def test_runs_of_one_command_on_other_models_or_data_stand_beside_each_other(tmp_path):
    run = evaluation()
    other_model = replace(run, subjects=(replace(run.subjects[0], sha256="e" * 64),))
    other_data = replace(run, data=(replace(run.data[0], sha256="e" * 64),))
    places = [runs.write(each, tmp_path) for each in (run, other_model, other_data, other_model, run)]
    assert len(set(places)) == 3 and places[3] == places[1] and places[4] == places[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "guess"}, "kind must be one of"),
        ({"schema": 2}, "schema must be 1"),
        ({"created": "yesterday"}, "created must be"),
        ({"name": " "}, "name must not be empty"),
        ({"results": {"f1": 1}}, "need exact_match, count"),
        ({"subjects": ()}, "one model, found 0"),
        ({"data": (runs.DataFile("a", "b", 1, "dev"),)}, "split of a must be one of"),
    ],
)
def test_contradictions_are_refused(change, message):
    with pytest.raises(OptionsError, match=message):
        replace(evaluation(), **change)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "evaluation"}', "not json", "null", '{"subjects": [1]}'])
def test_other_files_are_refused_by_name(tmp_path, text):
    (tmp_path / "other.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"other\.json"):
        runs.read_all(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        runs.read(tmp_path / "absent.json")


def test_all_that_is_missing_is_named_at_once(tmp_path):
    (tmp_path / "phone.json").write_text('{"schema": 1, "kind": "latency", "name": "x", "results": {}}')
    with pytest.raises(DataError, match="found none of subjects, data, command, created, environment, not_checked"):
        runs.read(tmp_path / "phone.json")


def test_new_run_describes_the_machine_without_naming_it(tmp_path):
    run = runs.new_run("load", "a load", (), (), ["pocketqa", "x"], runs.timing_results("w", {"teacher": runs.summarise_times([0.1])}))
    assert run.environment["cores"] >= 1 and run.environment["packages"]["numpy"] == np.__version__
    assert set(run.environment) == {"cpu", "instructions", "cores", "memory_gib", "os", "machine", "python", "packages", "commit"}
    runs.write(run, tmp_path)  # holds no path
    text = json.dumps(run.environment)
    assert socket.gethostname() not in text or len(socket.gethostname()) < 4


def test_commit_of_a_checkout_only(tmp_path):
    package = tmp_path / "pocketqa"
    package.mkdir()
    (package / "a.py").write_text("1")
    assert environment.git_commit(package) is None

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "-q")
    assert environment.git_commit(package) is None  # nothing committed yet
    git("add", ".")
    git("commit", "-q", "-m", "a")
    assert environment.git_commit(package) == git("rev-parse", "HEAD")
    (package / "a.py").write_text("2")
    assert environment.git_commit(package) == git("rev-parse", "HEAD") + "+changes"
    nested = package / "site-packages" / "pocketqa"
    nested.mkdir(parents=True)
    assert environment.git_commit(nested) is None  # installed inside somebody else's repository

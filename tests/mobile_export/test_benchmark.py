"""The verb `benchmark` run whole on tiny models, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mobile_export import benchmark
from mobile_export.benchmark import main
from mobile_export.timing.benchmark_options import parse, split_workloads
from mobile_export.timing.contestants import model_contestant
from mobile_export.timing.latency import latency_problems, race_results
from mobile_export.timing.latency_text import race_lines
from mobile_export.timing.single_stream import Rules, race
from mobile_export.timing.sizes import by_precision, deflated, sizes_of
from mobile_export.timing.workloads import squad_workload
from pocketqa import runs
from pocketqa.errors import DataError, EngineError, IncompleteFolder, OptionsError
from tests.packaged import checkpoint, model_folder, workspace
from tests.tiny import tiny_squad

LABELS = ["tiny-bert, onnxruntime fp32", "tiny-distilbert, onnxruntime fp32"]
RATIO = " / ".join(LABELS)
LITTLE = ("--mode", "rapid", "--queries", "4", "--seconds", "0", "--threads", "1")


def models() -> list[str]:
    return [str(model_folder(kind)) for kind in ("bert", "distilbert")]


@pytest.fixture(scope="module")
def written() -> runs.RunFile:
    """The run file of a race of both tiny models on a data file."""
    folder = Path(workspace().name) / "benchmark"
    data = tiny_squad(folder / "dev.json")
    assert main([*models(), *LITTLE, "--workload", "squad", "--data", str(data), "--run-file", str(folder / "run.json")]) == 0
    return runs.read(folder / "run.json")


def test_a_run_file_says_what_was_measured_of_what(written: runs.RunFile) -> None:
    assert (written.kind, written.name) == ("latency", "tiny-bert tiny-distilbert squad 1 thread rapid with minimums of its own")
    hashes = [json.loads((model_folder(kind) / "manifest.json").read_text())["files"]["model.safetensors"] for kind in ("bert", "distilbert")]
    assert [(s.name, s.sha256, s.engine, s.precision, s.threads) for s in written.subjects] == [
        ("tiny-bert", hashes[0], "onnxruntime", "fp32", 1),
        ("tiny-distilbert", hashes[1], "onnxruntime", "fp32", 1),
    ]
    assert [(d.name, d.split) for d in written.data] == [("dev.json", "other")]
    assert written.command.startswith("pocketqa benchmark ")
    assert "phones" in written.not_checked[0]


def test_a_run_file_has_every_field_of_a_latency(written: runs.RunFile) -> None:
    r = written.results
    assert latency_problems(written) == []
    assert list(r["timings"]) == LABELS
    for label in LABELS:
        assert r["timings"][label]["count"] == r["queries"][label] == 4
        stages = r["stages"][label]
        assert sum(stages[stage]["mean"] for stage in ("tokenise", "forward", "decode")) == pytest.approx(r["timings"][label]["mean"], rel=1e-3)
        assert len(r["quantiles"][label]) == 101
        assert r["quantiles"][label] == sorted(r["quantiles"][label])
        assert r["load_seconds"][label]["cold"] > 0
        assert r["bytes"][label]["package"] > r["bytes"][label]["weights"] > 0
        assert r["origin"][label] == "weights"
    assert r["device"]["kind"] == "server"
    assert r["device"]["compute_unit"] == "cpu"
    assert r["rules"] | {"source": ""} == {
        "queries": 4, "seconds": 0.0, "max_seconds": 600.0, "percentile": 90, "source": "", "valid": True, "problems": [],
    }  # fmt: skip
    assert isinstance(r["busy"], bool)


def test_ratios_have_intervals_and_verdicts_follow_from_them(written: runs.RunFile) -> None:
    r = written.results
    assert list(r["ratios"]) == list(r["p90_ratios"]) == list(r["forward_ratios"]) == [RATIO]
    ratio = r["ratios"][RATIO]
    assert ratio["low"] <= ratio["value"] <= ratio["high"]
    medians = [r["timings"][label]["p50"] for label in LABELS]
    assert ratio["value"] == pytest.approx(medians[0] / medians[1], rel=1e-3)
    assert r["verdicts"][RATIO].startswith("no verdict") == (r["busy"] or ratio["low"] <= 1 <= ratio["high"])


def test_each_workload_and_each_number_of_threads_is_a_race(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [models()[1], *LITTLE, "--workload", "squad", "fixed", "--lengths", "24,48", "--json"]
    assert main([*argv, "--run-file", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [race["workload"].split(":")[0] for race in document["races"]] == ["squad", "fixed-24", "fixed-48"]
    assert [list(race["timings"]) for race in document["races"]] == [LABELS[1:]] * 3
    assert [race["tokens"][LABELS[1]]["positions"] for race in document["races"]][1:] == [24, 48]
    assert list(document["sizes"]) == LABELS[1:]
    assert len(runs.read_all(tmp_path)) == 3


def test_engines_of_one_model_are_compared() -> None:
    contestants = [model_contestant(models()[1], engine, 1) for engine in ("onnxruntime", "pytorch")]
    done = race(contestants, squad_workload(limit=9), Rules("rapid", 4, 0.0), cold=False)
    tokens = [[sample.tokens for sample in entry.samples] for entry in done.entries]
    assert tokens[0] == tokens[1]  # the same queries in the same order
    assert len(set(tokens[0])) > 1
    found = race_results(done, {})
    assert list(found["ratios"]) == ["tiny-distilbert, onnxruntime fp32 / tiny-distilbert, pytorch fp32"]
    assert found["engines"]["tiny-distilbert, pytorch fp32"].startswith("pytorch ")
    assert found["load_seconds"]["tiny-distilbert, pytorch fp32"]["cold"] is None


def test_stsb_is_one_whole_pass_beside_the_paper(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pairs = ["A man is dancing.\tA man sings.\t2.5", "Two dogs\tDogs\t4.0", "A plane is taking off.\tAn air plane is taking off.\t5.0"]
    (tmp_path / "dev.tsv").write_text("\n".join(["sentence1\tsentence2\tlabel", *pairs]) + "\n", encoding="utf-8")
    assert main([*LITTLE, "--workload", "stsb", str(tmp_path), *models()]) == 0
    text = capsys.readouterr().out
    assert "1 thread, whole pass: NOT VALID: tiny-bert, onnxruntime fp32: a whole pass is 1,500 queries, found 3" in text
    assert "668 s with BERT-base, 410 s with DistilBERT" in text
    assert "1.63 times" in text
    assert '"60 % faster" is that ratio of throughputs less one; in time it is 39% less' in text
    assert "in place of a regression head" in text
    assert f"{RATIO}: a pass takes" in text


def test_a_busy_machine_is_shouted_about(written: runs.RunFile) -> None:
    quiet: dict[str, Any] = {**written.results, "busy": False}
    assert "BUSY" not in "\n".join(race_lines(quiet))
    loud = {**quiet, "busy": True, "load": {**quiet["load"], "reasons": ["other processes used 60% of the machine"]}}
    assert "BUSY MACHINE: do not trust these times.\n  other processes used 60% of the machine\n!!!!!" in "\n".join(race_lines(loud))


def test_a_result_that_breaks_the_rules_says_so(written: runs.RunFile) -> None:
    rules = {**written.results["rules"], "valid": False, "problems": ["a: 3 queries, at least 64 are needed"]}
    assert "NOT VALID: a: 3 queries, at least 64 are needed" in "\n".join(race_lines({**written.results, "rules": rules}))


def test_a_median_that_never_settled_is_said(written: runs.RunFile) -> None:
    restless = {**written.results["warm_up"], LABELS[0]: {"queries": 64, "steady": False}}
    assert f"{LABELS[0]}: its times had not settled after 64 queries" in race_lines({**written.results, "warm_up": restless})


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_bundle_races_in_its_own_engine_and_core_ml_gives_its_sizes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from mobile_export.checkpoint.checkpoints import open_checkpoint
    from mobile_export.formats.exporting import export_bundle
    from mobile_export.targets import find_target

    for target, scheme in (("executorch", "int8"), ("ios16", "fp16")):
        export_bundle(open_checkpoint(str(model_folder("distilbert"))), tmp_path / target, find_target(target), (64,), scheme=scheme)
    bundles = sorted(map(str, tmp_path.iterdir()))
    assert main([*bundles, *LITTLE, "--workload", "squad", "fixed", "--lengths", "128", "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    name = "tiny-distilbert, executorch int8"
    assert list(document["sizes"]) == [name, "tiny-distilbert, coreml-cpu fp16"]
    assert f"{name}: takes windows of 64 tokens, so it is left out of fixed-128" in captured.err
    [squad] = document["races"]
    if sys.platform != "darwin":
        assert "Core ML computes on a Mac only" in captured.err
        assert list(squad["timings"]) == [name]
    assert squad["tokens"][name]["positions"] == 64 * squad["tokens"][name]["windows"]  # padded to what the program takes
    assert squad["tokens"][name]["mean"] < squad["tokens"][name]["positions"]


def test_control_c_leaves_a_run_file_that_is_not_valid(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pocketqa", "benchmark", models()[1], "--mode", "full", "--threads", "1", "--workload", "squad"]
    process = subprocess.Popen([*command, "--run-file", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("warming up"):
            break
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    assert "NOT VALID" in out
    [run] = runs.read_all(tmp_path).values()
    assert run.results["interrupted"]
    assert run.results["rules"]["problems"][-1] == "the run was interrupted"


# --- sizes ---------------------------------------------------------------------------------------------------------------------------------------


def test_bytes_by_precision() -> None:
    assert by_precision(66_364_418) == {
        "fp32": 265_457_672, "fp16": 132_728_836, "int8": 66_364_418, "6 bits": 49_773_313, "4 bits": 33_182_209,
    }  # fmt: skip


def test_sizes_of_a_model_folder() -> None:
    from transformers import AutoModelForQuestionAnswering

    found = sizes_of(model_contestant(model_folder("bert"), "onnxruntime", 1))
    files = [model_folder("bert") / name for name in ("model.safetensors", "model.onnx")]
    assert found["weights"] == files[0].stat().st_size
    assert found["package"] == found["weights"] + files[1].stat().st_size
    assert found["zipped"] == deflated(files) < found["package"]
    model = AutoModelForQuestionAnswering.from_pretrained(checkpoint("bert"))
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_deflated_is_what_a_zip_archive_holds(tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "a").write_bytes(bytes(range(256)) * 9000)  # more than one chunk
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(tmp_path / "a", "a")
        assert abs(archive.getinfo("a").compress_size - deflated([tmp_path / "a"])) < 64


# --- what is refused -----------------------------------------------------------------------------------------------------------------------------


def test_words_after_workload() -> None:
    assert split_workloads([]) == (("squad", "fixed"), None, [])
    assert split_workloads(["stsb", "DIR", "a", "b"]) == (("stsb",), Path("DIR"), ["a", "b"])
    assert split_workloads(["fixed", "stsb", "DIR"]) == (("fixed", "stsb"), Path("DIR"), [])
    with pytest.raises(OptionsError, match=r"folder of GLUE's STS-B after --workload stsb"):
        split_workloads(["stsb"])
    with pytest.raises(OptionsError, match="found 'glue'"):
        split_workloads(["glue"])


@pytest.mark.parametrize(
    ("argv", "error", "says"),
    [
        ([], OptionsError, "expected a model folder or a bundle, found none"),
        (["m", "--preset", "paper"], OptionsError, "has two models, which --teacher and --student name"),
        (["m", "--workload", "stsb", "d", "--data", "f"], OptionsError, "follows the word stsb"),
        (["m", "--teacher", "t", "--packages", "b"], OptionsError, "--teacher belongs to --preset paper; --packages belongs to --preset paper"),
        (["--preset", "zoo", "--phone", "p"], OptionsError, "--phone belongs to --preset paper"),
        (["--preset", "zoo", "--data", "d"], OptionsError, "--data belongs to races without --preset and to --preset paper"),
        (["--preset", "paper", "--workload", "squad", "--lengths", "64"], OptionsError, "--workload belongs to races.*; --lengths belongs to races"),
        (["--preset", "zoo", "--compute-unit", "all"], OptionsError, "--compute-unit belongs to races without --preset"),
        (["--preset", "zoo", "--threads", "1,2"], OptionsError, "one number of threads, found 1,2"),
        (["nothing-there"], IncompleteFolder, "Expected a model folder at nothing-there"),
        (["MODEL", "--engines", "tensorrt"], OptionsError, "Expected engines out of"),
        (["MODEL", "--engines", "onnxruntime:bf16", "--workload", "squad"], EngineError, "not in 'bf16'"),
        (["MODEL", "--threads", "0"], OptionsError, "whole numbers above 0"),
        (["MODEL", "--threads", "99999"], OptionsError, "more than the"),
        (["MODEL", "--lengths", "9000", "--workload", "fixed"], OptionsError, "between 16 and 512"),
        (["MODEL", "--queries", "0"], OptionsError, "--queries must be at least 1"),
        (["MODEL", "--run-file", "one.json"], OptionsError, "Expected --run-file to be a folder"),
        (["MODEL", "MODEL", "--workload", "squad"], OptionsError, "given twice"),
        (["MODEL", "--data", "missing.json"], DataError, "missing.json"),
    ],
)
def test_what_cannot_be_measured_is_refused(argv: list[str], error: type[Exception], says: str) -> None:
    folder = models()[1]
    with pytest.raises(error, match=says):
        main([folder if word == "MODEL" else word for word in argv])


@pytest.mark.parametrize("preset", [(), ("--preset", "paper"), ("--preset", "zoo")])
def test_an_unusable_run_file_is_told_before_the_race(preset: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="found a file"):
        main([*(preset or models()), *LITTLE, "--run-file", str(tmp_path / "file")])
    assert capsys.readouterr() == ("", "")


def test_options_at_their_defaults_are_not_refused() -> None:
    for preset in ("paper", "zoo"):
        assert parse(["--preset", preset, "--lengths", "128,384", "--compute-unit", "cpu", "--threads", "1"]).preset == preset
    assert parse(["--preset", "paper", "--data", "d", "--teacher", "t", "--packages", "b"]).data == "d"


def test_an_engine_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobile_export.timing.contestants.available_engines", lambda: ("onnxruntime",))
    with pytest.raises(EngineError, match="openvino is not installed"):
        main([models()[1], "--engines", "openvino"])


# --- run files of phones -------------------------------------------------------------------------------------------------------------------------


def phone_file(written: runs.RunFile, path: Path, **device: object) -> Path:
    """The run file as a phone would write it, after as many queries and seconds as the mode rapid asks for."""
    from dataclasses import replace

    timings = {label: {**timing, "count": 64, "mean": 101.6} for label, timing in written.results["timings"].items()}
    enough = {"mode": "rapid", "timings": timings, "queries": dict.fromkeys(LABELS, 64), "seconds": dict.fromkeys(LABELS, 6.5)}
    block = {"name": "iPhone 7 Plus", "os": "iOS 15.8", "compute_unit": "cpu", "thermal_state": "nominal", "kind": "phone"} | device
    return runs.write(replace(written, results={**written.results, **enough, "device": block}), path)


def changed(path: Path, place: str, value: object) -> Path:
    """A run file with another value at a place of its results, as "timings/LABEL/p90"."""
    document = json.loads(path.read_text())
    found = document["results"]
    *way, last = [LABELS[0] if word == "LABEL" else word for word in place.split("/")]
    for word in way:
        found = found[word]
    if value is ...:
        del found[last]
    else:
        found[last] = value
    path.write_text(json.dumps(document))
    return path


def test_a_phones_run_file_is_read(written: runs.RunFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(phone_file(written, tmp_path / "phone.json"))]) == 0
    text = capsys.readouterr().out
    assert "a latency of kind phone, iPhone 7 Plus, iOS 15.8, compute unit cpu" in text
    assert "rapid, at least 64 queries and 6 s: valid" in text
    assert f"  {LABELS[0]}: p90 " in text


def test_what_is_wrong_with_a_phones_run_file_is_listed_at_once(written: runs.RunFile, tmp_path: Path) -> None:
    path = phone_file(written, tmp_path / "phone.json", thermal_state=None, compute_unit="npu")
    document = json.loads(path.read_text())
    del document["results"]["load_seconds"][LABELS[0]]["warm"], document["results"]["mode"]
    path.write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        main(["--check", str(path)])
    for says in (
        "compute_unit must be one of cpu, gpu, ne, all, found 'npu'",
        "the thermal_state of a phone must be one of nominal, fair, serious, critical, found None",
        f"load_seconds needs cold and warm for '{LABELS[0]}'",
        "mode must be one of whole pass, full, quick, rapid, full with minimums of its own",
    ):
        assert says in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("load_seconds", None, "load_seconds needs cold and warm"),
        ("bytes", [], "bytes needs package"),
        ("bytes/LABEL/package", None, "bytes.package of .* must be a number, found None"),
        ("load_seconds/LABEL/cold", "1", "load_seconds.cold of .* must be a number or null, found '1'"),
        ("timings/LABEL", 3, r"timings of .* must be a summary \(count, mean, p50, p90, p99, unit\), found 3"),
        ("timings/LABEL/p90", ..., "p90 must be a number, found None"),
        ("timings/LABEL/p90", "1", "p90 must be a number, found '1'"),
        ("timings/LABEL/p50", True, "p50 must be a number, found True"),
        ("timings/LABEL/mean", -1, "mean must be a number, found -1"),
        ("timings/LABEL/p99", 10**400, "p99 must be a number, found 1000"),
        ("timings/LABEL/unit", ..., "unit must be one of s, ms, us, found None"),
        ("timings/LABEL/unit", ["ms"], r"unit must be one of s, ms, us, found \['ms'\]"),
        ("stages/LABEL/forward", {}, "stages.forward of .*: count must be a number, found None"),
        ("queries", ..., "queries needs a number for .*, found None"),
        ("seconds/LABEL", "60", "seconds needs a number for .*, found '60'"),
        ("forward_ratios", None, "forward_ratios, where there are any, must hold"),
        (
            "forward_ratios",
            {"a / b": {"value": 0, "low": 0, "high": 1}},
            "forward_ratios, where there are any, must hold .* above 0",
        ),
        ("tokens", {"a": 3}, "tokens, where there are any, must hold the numbers mean and positions"),
        ("rules", {"queries": 1, "seconds": [], "valid": True}, "rules needs queries and seconds, which are numbers"),
        ("mode", ["full"], "mode must be one of"),
        ("timings/LABEL/count", 3, "queries of .* must be the count of its timings, 3, found 64"),
        ("queries/LABEL", 1024, "queries of .* must be the count of its timings, 64, found 1024"),
        ("timings/LABEL/p50", 9e9, r"expected p50 <= p90 <= p99, found 9000000000\.0, "),
        ("stages/LABEL/forward/p99", 0, "stages.forward of .*: expected p50 <= p90 <= p99"),
        ("seconds/LABEL", 60, r"seconds of .* must be mean x count of its timings, 6\.502, found 60"),
    ],
)
def test_a_phones_run_file_of_other_types_is_refused_in_words(written: runs.RunFile, tmp_path: Path, place: str, value: object, says: str) -> None:
    path = changed(phone_file(written, tmp_path / "phone.json"), place, value)
    with pytest.raises(DataError, match=says):
        main(["--check", str(path)])
    with pytest.raises(DataError, match=says):
        main(["--preset", "paper", "--phone", str(path)])


@pytest.mark.parametrize(
    ("mode", "queries", "seconds", "says"),
    [
        ("full", 1, 61.0, "full, at least 1,024 queries and 60 s: NOT VALID: {label}: 1 queries, at least 1,024 are needed"),
        ("quick", 128, 0, "quick, at least 128 queries and 10 s: NOT VALID: {label}: 0.0 s, at least 10 s are needed"),
        ("rapid with minimums of its own", 4, 6.0, "at least 64 queries and 6 s: NOT VALID: {label}: 4 queries, at least 64 are needed"),
        ("whole pass", 1499, 9.0, "NOT VALID: {label}: 1,499 queries, at least 1,500 are needed"),
    ],
)
def test_validity_is_worked_out_and_not_believed(
    written: runs.RunFile, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, queries: int, seconds: float, says: str
) -> None:
    path = phone_file(written, tmp_path / "phone.json")
    claim = {"queries": 1, "seconds": 0, "valid": True}
    for place, value in (("mode", mode), ("rules", claim), ("queries/LABEL", queries), ("seconds/LABEL", seconds)):
        changed(path, place, value)
    changed(changed(path, "timings/LABEL/count", queries), "timings/LABEL/mean", 1000 * seconds / queries)
    assert main(["--check", str(path)]) == 1
    assert says.format(label=LABELS[0]) in capsys.readouterr().out
    assert main(["--check", str(path), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rules"]["valid"] is False


def test_what_a_file_says_against_itself_is_believed(written: runs.RunFile, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check", str(changed(phone_file(written, tmp_path / "phone.json"), "rules/valid", False))]) == 1
    assert "NOT VALID: the file itself says so" in capsys.readouterr().out


def test_help_imports_no_engine() -> None:
    code = (
        "import sys\nfrom mobile_export.benchmark import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'coremltools', 'executorch', 'onnxruntime', 'openvino') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(benchmark.__file__).parent.parent, timeout=60)
    assert done.stdout.endswith("[]\n"), done.stderr
    assert "thermal_state" in done.stdout

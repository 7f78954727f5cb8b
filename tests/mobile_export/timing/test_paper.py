"""The audit of the paper: its arithmetic by hand and against transformers, its flags, and the whole preset on tiny models."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mobile_export.benchmark import main
from mobile_export.checkpoint import geometry
from mobile_export.checkpoint.geometry import BERT_BASE, DISTILBERT, Geometry, make_folder, parameters_of
from mobile_export.timing import paper, paper_audit
from mobile_export.timing.benchmark_options import HUB, parse
from mobile_export.timing.contestants import folder_contestant
from mobile_export.timing.paper_audit import audit, complete_parameters, published_parameters, time_cut
from mobile_export.timing.single_stream import Rules, race
from mobile_export.timing.workloads import squad_workload
from pocketqa import runs
from pocketqa.errors import OptionsError
from pocketqa.folders import ModelFolder
from pocketqa.runtimes.onnx import OnnxRuntime
from pocketqa.runtimes.pytorch import PyTorchRuntime
from tests.packaged import checkpoint, model_folder, random_batch

LITTLE = ("--mode", "rapid", "--queries", "3", "--seconds", "0", "--threads", "1", "--engines", "onnxruntime")
TINY = Geometry("tiny", "distilbert", {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2, "vocab_size": 200, "initializer_range": 0.3})


def test_the_published_file_is_its_parameter_list() -> None:
    # 30,522 x 768; 2 x 768; 6 x (768 x 3,072 + 3,072 + 3,072 x 768 + 768); 6 x 2 x 2 x 768
    assert list(published_parameters().values()) == [23_440_896, 1_536, 28_334_592, 18_432]
    assert 4 * sum(published_parameters().values()) == 207_181_824
    assert paper_audit.PUBLISHED_FILE - 207_181_824 == 3_702


@pytest.mark.parametrize(
    ("made", "layers", "segments", "count"), [(DISTILBERT, 6, 0, 66_364_418), (BERT_BASE, 12, 2, 108_893_186)], ids=["student", "teacher"]
)
def test_complete_models_have_the_parameters_of_transformers(made: Geometry, layers: int, segments: int, count: int) -> None:
    import torch

    assert sum(complete_parameters(layers, segments).values()) == count
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in geometry.build(made).parameters()) == count


def test_the_percentages_are_cuts_of_time() -> None:
    assert time_cut(1.118, 0.319) == pytest.approx(0.7147, abs=1e-4)
    assert time_cut(0.472, 0.311) == pytest.approx(0.3411, abs=1e-4)


def test_rows_without_any_race_say_so_and_flag_what_is_unlike() -> None:
    rows = audit([], {"student-ios15": {"package": 133_000_000, "zipped": 120_000_000}}, None)
    whole, timed, sizes, faster, unlike, later, cpu = rows
    assert "207,185,526 bytes = 207,181,824 bytes of float32" in whole.published
    assert "3,702 bytes of format" in whole.published
    assert "fp16 132.7, int8 66.4" in whole.ours
    assert "student-ios15: package 133.0, zipped 120.0 MB" in whole.ours
    assert "93,769,728 bytes = 93.8 MB" in timed.ours
    assert "39.1% fewer" in sizes.ours
    assert "71.5% less time" in faster.published
    assert "34.1% less time, 1.52 times" in later.published
    assert {row.ours for row in (faster, unlike, later)} == {"not measured"}
    assert [row.like_for_like for row in rows] == [False, False, True, False, False, True, True]
    assert faster.cells()[-1].startswith("NO, IT DOES NOT")
    assert "ratio of throughputs" in cpu.conditions


def ratios(teacher: str = "BERT-base", parameters: int = 66_364_418) -> dict[str, object]:
    student = "DistilBERT, onnxruntime fp32"
    return {
        "threads": 2,
        "origin": {student: "configuration"},
        "bytes": {student: {"parameters": parameters}},
        "forward_ratios": {
            f"{teacher}, onnxruntime fp32 / {student}": {"value": 2.0, "low": 1.9, "high": 2.1},
            f"{teacher}, onnxruntime fp32 / DistilBERT on 64 zeros, onnxruntime fp32": {"value": 10.0, "low": 9.0, "high": 11.0},
            f"{student} / DistilBERT on 64 zeros, onnxruntime fp32": {"value": 5.0, "low": 4.0, "high": 6.0},
        },
    }


def test_ratios_of_a_race_stand_in_their_rows() -> None:
    rows = audit([ratios()], {}, None)
    assert rows[3].ours == rows[5].ours == "onnxruntime fp32, 2 threads: 2.00 [1.90, 2.10] times, 50.0% less time"
    assert rows[4].ours == "onnxruntime fp32, 2 threads: 10.00 [9.00, 11.00] times, 90.0% less time"
    assert "parameters from configuration" in rows[5].conditions


def test_another_geometry_is_flagged() -> None:
    later = audit([ratios(parameters=22_000_000)], {}, None)[5]
    assert not later.like_for_like
    assert "what was given as DistilBERT has 22,000,000 parameters, not about 66,364,418" in later.conditions
    assert audit([ratios(parameters=65_190_912)], {}, None)[5].like_for_like  # a cased vocabulary


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(TINY, tmp_path_factory.mktemp("geometry") / "tiny")


def test_a_model_from_a_configuration_computes_in_both_engines(made: Path) -> None:
    batch = random_batch(2, 40)
    ours, exact = OnnxRuntime(ModelFolder(made), threads=1).forward(batch), PyTorchRuntime.open(ModelFolder(made)).forward(batch)
    real = batch.mask.astype(bool)  # (B, T)
    assert np.ptp(exact.start[real]) > 0.1
    np.testing.assert_allclose(ours.start[real], exact.start[real], atol=1e-4)
    np.testing.assert_allclose(ours.end[real], exact.end[real], atol=1e-4)


def test_a_model_from_a_configuration_is_seeded_and_cannot_be_served(made: Path, tmp_path: Path) -> None:
    again, other = make_folder(TINY, tmp_path / "again", graph=False), make_folder(TINY, tmp_path / "other", graph=False, seed=1)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (made, again, other)]
    assert weights[0] == weights[1] != weights[2]
    assert ModelFolder(made).missing() == ["golden.json", "manifest.json"]
    # 200 words, 512 positions, 1 norm; 2 layers of 4 maps, 2 maps of 64, 2 norms; head
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    assert parameters_of(made / "model.safetensors") == 32 * (200 + 512 + 2) + 2 * layer + 2 * 32 + 2


def test_a_vocabulary_too_large_for_the_table_is_replaced_by_letters(made: Path) -> None:
    document = json.loads((made / "tokenizer.json").read_text())
    assert {"a", "##z", "[PAD]", "[SEP]"} <= set(document["model"]["vocab"])
    assert len(document["model"]["vocab"]) <= 200


def test_a_model_from_a_configuration_races(made: Path) -> None:
    contestant = folder_contestant(made, "onnxruntime", 1, name="tiny")
    done = race([contestant], squad_workload(limit=3), Rules("rapid", 2, 0.0), cold=False)
    assert len(done.entries[0].samples) == 2
    assert done.entries[0].contestant.origin == "configuration"


def test_the_whole_preset_on_folders_that_are_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--preset", "paper", *LITTLE, "--teacher", str(model_folder("bert")), "--student", str(model_folder("distilbert"))]
    assert main([*argv, "--run-file", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("# The DistilBERT paper's phone experiment: a server CPU in the phone's manner\n")
    assert "parameters from weights" in text
    assert "not about 66,364,418" in text
    assert "DistilBERT on 64 zeros, onnxruntime fp32" in text
    [run] = runs.read_all(tmp_path).values()
    assert run.name == "paper 1 thread rapid with minimums of its own"
    assert run.results["title"] in text
    assert len(run.results["audit"]) == 7
    tokens = run.results["tokens"]
    assert [tokens[f"{name}, onnxruntime fp32"]["positions"] for name in ("BERT-base", "DistilBERT", "DistilBERT on 64 zeros")] == [384, 384, 64]
    assert {s.role for s in run.subjects} == {"teacher", "student"}
    phone = replace(run, results={**run.results, "device": {**run.results["device"], "kind": "phone", "name": "iPhone 7", "thermal_state": "fair"}})
    path = runs.write(phone, tmp_path / "phone.json")
    assert "on iPhone 7 and on a server CPU" in paper.title_of(phone)
    rows = audit([run.results], {}, runs.read(path))
    row = rows[-2]
    assert (row.claim, row.like_for_like) == ("the same on a phone", False)
    assert row.why_not == "it does not say that all computed as many positions; it is not valid under its rules"
    assert "iPhone 7, another phone" in row.conditions and "thermal state fair" in row.conditions
    found = phone.results["stages"]["DistilBERT, onnxruntime fp32"]["forward"]
    assert f"DistilBERT, onnxruntime fp32: p50 {found['p50']:.1f}, p90 {found['p90']:.1f} ms" in row.ours  # without tokenisation, as the paper
    name = "BERT-base, onnxruntime fp32 / DistilBERT, onnxruntime fp32"
    times = phone.results["forward_ratios"][name]["value"]
    assert f"{name}: {times:.2f} [" in row.ours and f"times, {1 - 1 / times:.1%} less time" in row.ours
    tokens = {key: {"mean": 100.0, "positions": 384.0} for key in phone.results["tokens"]}
    device = phone.results["device"] | {"name": "iPhone9,4"}
    enough = {"mode": "rapid", "queries": dict.fromkeys(tokens, 64), "seconds": dict.fromkeys(tokens, 7.0), "tokens": tokens, "device": device}
    row = audit([run.results], {}, replace(phone, results=phone.results | enough))[-2]
    assert row.like_for_like and "iPhone9,4, the paper's phone; " in row.conditions
    row = audit([run.results], {}, replace(phone, results=phone.results | enough, subjects=phone.subjects[:1]))[-2]
    assert (row.like_for_like, row.why_not) == (False, "it is of one model alone")


def test_programs_made_on_the_way_lie_in_the_temporary_folder(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    given = {role: shutil.copytree(model_folder(kind), tmp_path / "models" / role) for role, kind in (("teacher", "bert"), ("student", "distilbert"))}
    arguments = parse(["--preset", "paper", "--engines", "executorch", "--teacher", str(given["teacher"]), "--student", str(given["student"])])
    for _ in range(2):
        with paper.contestants_of(arguments) as (contestants, _):
            assert [contestant.engine for contestant in contestants] == ["executorch"] * 2
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["student", "teacher"]


def test_weights_in_the_hubs_cache_are_found_without_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name = HUB["student"]
    assert paper.cached(name) is None
    repository = tmp_path / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    for file in checkpoint("distilbert").iterdir():
        (snapshot / file.name).write_bytes(file.read_bytes())
    assert paper.cached(name) == snapshot
    folder, origin = paper.find_model(None, name, DISTILBERT, tmp_path / "packaged")
    assert origin == "weights"
    assert ModelFolder(folder).verify().name == "DistilBERT"


def test_core_ml_is_no_engine_of_this_preset() -> None:
    with pytest.raises(OptionsError, match="come from a phone's run file"):
        main(["--preset", "paper", "--engines", "coreml"])


def test_engines_that_are_not_named_are_the_presets_own_choice() -> None:
    assert parse(["--preset", "paper"]).engines is None
    assert paper._default_engines()[0] == "onnxruntime"

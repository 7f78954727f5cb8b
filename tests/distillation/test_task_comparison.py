"""`pocketqa ablate --preset tasks`: the preset, the plan, whole runs on tiny models and tasks, going on, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from distillation import ablate
from distillation.ablation import task_comparison, task_cost
from distillation.ablation.task_comparison import choose, make_works
from distillation.glue.classification import TASKS
from pocketqa import runs
from pocketqa.errors import OptionsError, TrainingError
from pocketqa.folders import sha256_file
from pocketqa.task_scores import SIX
from tests.distillation.test_classify import glue
from tests.tiny import tiny_bert, tiny_distilbert

FLAGS = "--max-tokens 32 --batch-tokens 512 --batch-rows 8 --precision fp32 --learning-rate 2e-3 --dropout 0 --epochs 1"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("places")
    glue(folder / "glue", "sst2", 24)
    glue(folder / "glue", "stsb", 24)
    tiny_bert(folder / "teacher", layers=2)
    tiny_distilbert(folder / "student", layers=1)
    tiny_distilbert(folder / "base", layers=1)
    return folder


def command(places: Path, out: Path, *more: str) -> list[str]:
    models = ["--teacher", str(places / "teacher"), "--student", str(places / "student"), "--base", str(places / "base")]
    return ["--preset", "tasks", *models, "--data", str(places / "glue"), "--out", str(out), "--finetune-flags", FLAGS, *more]


# ---- the preset and the plan


def test_the_preset_has_the_six_tasks_and_imdb(tmp_path: Path) -> None:
    for name in TASKS:
        glue(tmp_path, name, 4)
    planned, left_out = choose(None, None, [str(tmp_path)], ["--epochs", "2"])
    assert ({plan.task.name for plan in planned}, left_out) == ({*SIX, "imdb"}, ())
    seeds = {plan.task.name: plan.seeds for plan in planned}
    assert seeds == {**dict.fromkeys(("cola", "mrpc", "stsb", "rte", "wnli"), (0, 1, 2, 3, 4)), "sst2": (0,), "imdb": (0,)}
    flags = {plan.task.name: plan.finetune for plan in planned}
    assert flags["imdb"] == ("--epochs", "0.5", "--max-tokens", "128", "--epochs", "2")  # what is typed comes last, and so wins
    fewer, _ = choose(["RTE", "SST-2"], [7, 8], [str(tmp_path)], [])
    assert {plan.task.name: plan.seeds for plan in fewer} == {"rte": (7, 8), "sst2": (7,)}


def test_tasks_without_data_are_left_out(places: Path) -> None:
    planned, left_out = choose(None, None, [str(places / "glue")], [])
    assert [plan.task.name for plan in planned] == ["stsb", "sst2"]
    assert left_out[0] == "rte (no folder rte in glue)" and len(left_out) == 5
    with pytest.raises(OptionsError, match=r"nothing to compare on: rte \(no folder rte in glue\)"):
        choose(["rte"], None, [str(places / "glue")], [])
    with pytest.raises(OptionsError, match=r"Expected tasks out of rte, wnli, .*found qqp"):
        choose(["qqp"], None, [str(places / "glue")], [])


def test_seeds_are_paired_and_in_the_outer_loop(places: Path, tmp_path: Path) -> None:
    planned, _ = choose(["stsb", "sst2"], [3, 5], [str(places / "glue")], [])
    starts = {role: str(places / name) for role, name in (("teacher", "teacher"), ("student", "student"), ("control", "base"))}
    works = make_works(planned, starts, tmp_path / "out")
    assert [work.leaves.stem for work in works] == [
        *(f"{task}-{role}-seed-3" for task in ("stsb", "sst2") for role in starts), *(f"stsb-{role}-seed-5" for role in starts),
    ]  # fmt: skip
    flags = [work.words[work.words.index("--task") :] for work in works[:3]]
    assert {words[words.index("--seed") + 1] for words in flags} == {"3"}
    assert {words[6:] for words in flags} == {flags[0][6:]}  # but for the role, the same for all
    assert works[1].identity != works[2].identity  # two roles, though both models are the same
    again = make_works(planned, starts, tmp_path / "elsewhere")
    assert [work.identity for work in again] == [work.identity for work in works]


# ---- whole runs


def test_a_comparison_leaves_run_files_and_goes_on(
    places: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(task_cost, "matrix_rate", lambda precision: 1e9)
    assert ablate.main([*command(places, out), "--dry-run"]) == 0
    planned = capsys.readouterr().err
    assert "18 fine-tunings of teacher, student, control on 2 tasks, 0 of them finished already" in planned
    assert "left out: rte (no folder rte in glue)" in planned and "expected time of all that is left" in planned and "estimates:" in planned
    assert not out.exists()

    monkeypatch.setitem(task_comparison.VERBS, "finetune", lambda argv: 143)  # stopped
    assert ablate.main(command(places, out)) == 143
    monkeypatch.undo()
    assert ablate.main(command(places, out, "--seeds", "0", "--tasks", "stsb", "--keep-models")) == 0
    assert sorted(path.name for path in (out / "models").iterdir()) == [f"stsb-{role}-seed-0" for role in ("control", "student", "teacher")]
    capsys.readouterr()
    folder = tmp_path / "runs"
    assert ablate.main(command(places, out, "--seeds", "0", "1", "--run-file", str(folder))) == 0
    printed = capsys.readouterr()
    assert printed.err.count("finished already") == 3 + 1  # each, and their number
    assert len(list((out / "models").iterdir())) == 3  # the later ones are gone
    assert f"next: pocketqa report --no-readme --runs {out / 'classification'} --out" in printed.err
    assert not (out / "new").exists() or not list((out / "new").iterdir())

    found = runs.read_all(folder)
    assert sorted(run.name for run in found.values()) == sorted(
        [f"stsb {role} seed {seed}" for role in ("teacher", "student", "control") for seed in (0, 1)]
        + [f"sst2 {role} seed 0" for role in ("teacher", "student", "control")]
    )
    assert {run.kind for run in found.values()} == {"classification"}
    teacher = next(run for run in found.values() if run.name == "sst2 teacher seed 0")
    assert teacher.data[0].sha256 == sha256_file(places / "glue" / "sst2" / "dev.tsv")
    assert "| SST-2 | 12 | student |" in printed.out and "| STS-B | 12 | control |" in printed.out
    assert "mean of six |" not in printed.out
    assert ablate.main([*command(places, out), "--dry-run"]) == 0
    assert "9 on STS-B: " in capsys.readouterr().err and "estimates" not in printed.err  # three seeds are left, three models each


def test_a_kill_between_training_and_its_run_files(places: Path, tmp_path: Path) -> None:
    out, only = tmp_path / "out", ["--seeds", "0", "--tasks", "sst2"]
    assert ablate.main(command(places, out, *only, "--keep-models")) == 0
    leaves = out / "classification" / "sst2-student-seed-0.json"
    first = runs.read(leaves)
    leaves.unlink()  # its checkpoint is finished, its run file was never written
    assert ablate.main(command(places, out, *only)) == 0
    assert runs.read(leaves).results == {**first.results, "seconds": runs.read(leaves).results["seconds"]}


def test_other_settings_in_the_same_folder_are_refused(places: Path, tmp_path: Path) -> None:
    out, only = tmp_path / "out", ["--seeds", "0", "--tasks", "sst2"]
    assert ablate.main(command(places, out, *only)) == 0
    with pytest.raises(TrainingError, match="begun with other settings or data"):
        ablate.main([*command(places, out, *only), "--finetune-flags", FLAGS + " --warmup 0.2"])


def test_bad_calls(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionsError, match=r"--seeds must differ, found 1 1; --run-file must be a folder.*; --data must name folders, found nowhere"):
        ablate.main([*command(places, tmp_path / "out"), "--seeds", "1", "1", "--run-file", "x.json", "--data", "nowhere"])
    refused = "finetune of teacher, student, control: unrecognized arguments: --lr 1e-4. `pocketqa finetune --help` says"
    for dry in ([], ["--dry-run"]):
        with pytest.raises(OptionsError, match=refused):
            ablate.main([*command(places, tmp_path / "out"), "--finetune-flags", "--lr 1e-4", *dry])
    for flags, said in (("--keep 0", "--keep must be at least 1, found 0"), ("--evaluate-every 5 --held-out 0", "--evaluate-every chooses by")):
        with pytest.raises(OptionsError, match=said):
            ablate.main([*command(places, tmp_path / "out"), "--finetune-flags", flags])
    with pytest.raises(OptionsError, match="it sets --seed, --teacher itself"):
        ablate.main([*command(places, tmp_path / "out"), "--finetune-flags=--seed=1 --teacher T"])
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionsError, match="takes no launcher"):
        ablate.main(command(places, tmp_path / "out"))


def test_operations_by_hand(tmp_path: Path) -> None:
    lines = "sentence\tlabel\n" + "abcdefgh" * 5 + "\t1\n" + "a" * 400 + "\t0\n"  # 40 and 400 letters
    for split in ("train", "dev"):
        (tmp_path / "sst2").mkdir(exist_ok=True)
        (tmp_path / "sst2" / f"{split}.tsv").write_text(lines, encoding="utf-8")
    start = str(tiny_bert(tmp_path / "teacher", layers=2))
    planned, _ = choose(["sst2"], [0], [str(tmp_path)], ["--epochs", "2", "--max-tokens", "50"])
    (work,) = make_works(planned, {"teacher": start}, tmp_path / "out")
    tokens = (40 / 4.3 + 2) + 50  # the second text is cut
    weights = 2 * 12 * 32 * 32  # layers of the tiny model
    assert task_cost.operations(work, str(tmp_path)) == pytest.approx(weights * tokens * (2 * 6 + 2))

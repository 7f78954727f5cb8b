"""What RESULTS.md and the figures say of trainings by stage, tasks, ablations and the speed of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketqa import report, runs
from pocketqa.errors import OptionsError
from pocketqa.reporting import figures
from pocketqa.statistics import Interval
from pocketqa.task_scores import SIX
from pocketqa.types import JSON, Scores

SHA = {"teacher": "a" * 64, "student": "b" * 64, "control": "c" * 64}
COUNT = 40
RIGHT = np.arange(COUNT) % 2
TITLES = {"cola": "CoLA", "stsb": "STS-B"}


def made(kind, name, results, role="student", data=("train.tsv", "e" * 64, "training"), created="2026-03-01T00:00:00Z"):
    subject = runs.Subject(role, role, SHA[role])
    files = (runs.DataFile(data[0], data[1], 10, data[2]),)
    return runs.RunFile(kind, name, (subject,), files, f"pocketqa {kind} {name}", created, {"cpu": "a processor", "cores": 2}, results)


def task_run(task, role, wrong, seed=0):
    """`wrong` of 40 examples wrong, the first ones."""
    said = np.where(np.arange(COUNT) < wrong, 1 - RIGHT, RIGHT)
    accuracy = 100 * float((said == RIGHT).mean())
    results = runs.classification_results(task, {"accuracy": accuracy}, said, RIGHT, seed=seed, extra={"title": TITLES.get(task, task.upper())})
    return made("classification", f"{task} {role} seed {seed}", results, role, (f"{task} dev.tsv", "f" * 64, "other"))


def ablation_row(name, difference=None, paper=None, against="full", f1=70.0):
    interval = None if difference is None else Interval(difference, difference - 0.5, difference + 0.5).to_json()
    seeds = [{"seed": s, "f1": f1 + s, "difference": None if difference is None else difference + (s - 0.5) / 10} for s in (0, 1)]
    return {
        "name": name, "words": f"row {name}", "against": None if difference is None else against, "f1": f1, "exact_match": f1 - 12,
        "seeds": seeds, "difference": interval, "paper": paper,
    }  # fmt: skip


def ablation():
    rows = [ablation_row("full"), ablation_row("no L_ce", -1.5, -2.96, f1=68.5), ablation_row("temperature 1", 0.2, f1=70.2)]
    notes = ["the paper's measure is another"]
    return made("ablation", "paper", runs.ablation_results("F1 on 40 questions, 2 seeds", "full", rows, extra={"notes": notes}))


def speed(**extra):
    waterfall = [
        {"step": "the plain way", "tokens_per_second": 1000.0},
        {"step": "projection of masked positions", "tokens_per_second": 1500.0, "ratio": Interval(1.5, 1.4, 1.6).to_json()},
        {"step": "something slower", "tokens_per_second": 1450.0, "ratio": Interval(0.97, 0.9, 1.0).to_json()},
    ]
    rates = {"plain": Interval(1000, 990, 1010), "pocketqa": Interval(1450, 1400, 1500)}
    rate = {"measured_tflops": 2.0, "reached_tflops": 0.9}
    results = runs.training_speed_results("a BERT of 12 layers", rates, Interval(1.45, 1.4, 1.5), waterfall, matrix_rate=rate, loss_difference=2e-4)
    return made("training-speed", "training", {**results, **extra})


def page(folder: Path, *files: runs.RunFile) -> str:
    for file in files:
        runs.write(file, folder / "runs")
    assert report.main(["--runs", str(folder / "runs"), "--out", str(folder / "RESULTS.md"), "--no-readme"]) == 0
    assert report.main(["--runs", str(folder / "runs"), "--out", str(folder / "RESULTS.md"), "--no-readme", "--check"]) == 0
    return (folder / "RESULTS.md").read_text(encoding="utf-8")


def row(text: str, *parts: str) -> str:
    found = [line for line in text.splitlines() if line.startswith("|") and all(part in line for part in parts)]
    assert len(found) == 1, found
    return found[0]


def test_trainings_stand_by_stage(tmp_path: Path) -> None:
    counts: JSON = {"questions": 1000, "steps": 500, "tokens": 1_200_000, "seconds": 600.0, "loss": 2.5}
    text = page(
        tmp_path,
        made("training", "teacher head", runs.training_results(**counts, stage="pretrain", development={"loss": 2.4, "perplexity": 11.02})),
        made("training", "triple", runs.training_results(**counts, stage="distill", losses={"loss": 2.5, "loss_ce": 1.25, "loss_cos": 0.125})),
        made("training", "reader", runs.training_results(**counts, best=Scores(60.0, 70.0, 10))),
    )
    training = text.split("## Training")[1]
    assert training.index("Masked-language modelling:") < training.index("Distillation on text:") < training.index("Fine-tuning:")
    assert "| 1,000 | 500 | 1,200,000 | 10 min 00 s | 2,000 | 2.5000 | 2.4000, perplexity 11.02 |" in row(training, "teacher head")
    assert "| 2,000 | ce 1.2500, cos 0.1250 |  |" in row(training, "triple")
    assert "| reader (student) `bbbbbbbbbbbb` |" in row(training, "reader") and "| 60.00 / 70.00 of 10" in row(training, "reader")


def test_a_training_has_a_known_stage() -> None:
    with pytest.raises(OptionsError, match="pretrain, distill, finetune, found 'guess'"):
        runs.training_results(questions=1, steps=1, tokens=1, seconds=1, loss=None, stage="guess")


def test_tasks_stand_beside_control_and_teacher(tmp_path: Path) -> None:
    seeds = [task_run("rte", "student", wrong, seed) for seed, wrong in enumerate((10, 4, 8))]
    text = page(tmp_path, task_run("rte", "teacher", 2), *seeds, task_run("rte", "control", 12), task_run("imdb", "student", 4))
    tasks = text.split("## Classification")[1]
    student = row(tasks, "| RTE | 40 | student |")
    assert "| 80.00 [" in student  # the median of 75, 90 and 80
    assert "| accuracy 80.00 | 3: 75.00 to 90.00 | +10.00 [" in student
    assert f"| {100 * 32 / 38:.1f} [" in student
    teacher = row(tasks, "| RTE | 40 | teacher |")
    assert "| 1 | +25.00 [" in teacher and teacher.endswith("|  |")
    assert row(tasks, "| RTE | 40 | control |").count("[") == 2  # a score and a retention
    assert "| not measured | not measured |" in row(tasks, "| IMDB | 40 | student |")
    assert tasks.index("| RTE | 40 | teacher |") < tasks.index("| RTE | 40 | student |") < tasks.index("| RTE | 40 | control |")
    assert "mean of six |" not in tasks
    assert "`pocketqa classification rte student seed 1`" in row(tasks, "| RTE | student `bbbbbbbbbbbb` | 1 |")


@pytest.mark.parametrize("what", ["start", "teacher", "settings"])
def test_seeds_of_another_training_are_not_mixed_in(tmp_path: Path, what: str) -> None:
    def trained(wrong: int, seed: int, how: str, day: int) -> runs.RunFile:
        run: runs.RunFile = task_run("rte", "student", wrong, seed)
        return replace(run, results=run.results | {"settings": "same", what: how}, created=f"2026-03-0{day}T00:00:00Z", name=f"{run.name} {how}")

    earlier = [trained(30, seed, "first", 2) for seed in range(4)]
    text = page(tmp_path, trained(4, 0, "second", 1), *earlier, trained(6, 1, "second", 3))
    assert "| 2: 85.00 to 90.00 |" in text and "25.00" not in text


def test_a_sample_gives_way_to_the_whole(tmp_path: Path) -> None:
    whole = task_run("rte", "student", 4)
    said = 1 - RIGHT[:10]
    part = runs.classification_results("rte", {"accuracy": 0.0}, said, RIGHT[:10], seed=0, extra={"title": "RTE"})
    sample = replace(whole, results=part, created="2026-03-09T00:00:00Z", name="sample")
    assert "| RTE | 40 | student | 90.00 [" in page(tmp_path, whole, sample)


def test_what_a_teacher_does_not_have_of_its_own_is_not_retained(tmp_path: Path) -> None:
    text = page(tmp_path, *(task_run(task, role, many) for task in SIX for role, many in {"teacher": 4, "student": 4, "control": 4}.items()))
    for line in (
        row(text, "| RTE | 40 | student |"),
        *(row(text, f"| {mean} |", "student") for mean in ("mean of six", "mean of five, without WNLI")),
    ):
        assert line.endswith("| not quoted: the teacher is not shown to beat the control |")


def test_a_mean_that_wnli_carries_alone_is_told_from_one_that_it_does_not(tmp_path: Path) -> None:
    def wrong(task: str, role: str) -> int:
        return {"teacher": 2, "student": 4, "control": 38}[role] if task == "wnli" else 4

    text = page(tmp_path, *(task_run(task, role, wrong(task, role)) for task in SIX for role in ("teacher", "student", "control")))
    unquoted = "not quoted: the teacher is not shown to beat the control |"
    assert row(text, "| mean of six |", "student").endswith(f"] | {unquoted}")
    assert row(text, "| mean of five, without WNLI |", "student").endswith(f"| 0.00 [0.00, 0.00] | {unquoted}")


def test_examples_that_were_cut_are_told_of(tmp_path: Path) -> None:
    runs_of = [task_run("imdb", role, 4) for role in ("teacher", "student")]
    text = page(tmp_path, *(replace(run, results=run.results | {"cut": 33, "max_tokens": 128}) for run in runs_of), task_run("rte", "student", 4))
    assert [line for line in text.splitlines() if "were cut" in line] == ["- IMDB: 33 of 40 examples are longer than 128 tokens and were cut."]


def test_a_teacher_that_does_not_beat_the_commonest_class_has_nothing_to_keep(tmp_path: Path) -> None:
    common = int(max(RIGHT.sum(), COUNT - RIGHT.sum()))
    text = page(tmp_path, task_run("wnli", "teacher", COUNT - common), task_run("wnli", "student", COUNT - common), task_run("wnli", "control", 38))
    assert row(text, "| WNLI | 40 | student |").endswith("| not quoted: the teacher is not shown to beat the commonest class |")
    blind = row(text, "| WNLI | 40 | always the commonest class |")
    assert f"| {100 * common / COUNT:.2f} [" in blind and blind.endswith(f"| accuracy {100 * common / COUNT:.2f} |  |  |  |")


def test_the_mean_of_six_is_of_one_model(tmp_path: Path) -> None:
    def of(task: str, role: str, start: str) -> runs.RunFile:
        run: runs.RunFile = task_run(task, role, 4)
        return replace(run, results=run.results | {"start": start})

    mixed = [of(task, "student", "new" if task in ("rte", "wnli") else "old") for task in SIX]
    text = page(tmp_path, *mixed, *(of(task, "teacher", "one") for task in SIX))
    assert "| mean of six |  | teacher |" in text and "| mean of six |  | student |" not in text


def test_the_mean_of_six_is_called_that(tmp_path: Path) -> None:
    wrong = {"teacher": 2, "student": 4, "control": 8}
    text = page(tmp_path, *(task_run(task, role, many) for task in SIX for role, many in wrong.items()))
    tasks = text.split("## Classification")[1]
    student = row(tasks, "| mean of six |", "student")
    assert "| 90.00 [" in student
    assert "| +10.00 [" in student
    assert f"| {100 * 36 / 38:.1f} [" in student
    assert "is not the GLUE score" in tasks
    alone = row(tasks, "| CoLA | 40 | student |").split("[")[1].split("]")[0].split(", ")
    mean = student.split("[")[1].split("]")[0].split(", ")
    assert float(mean[1]) - float(mean[0]) < float(alone[1]) - float(alone[0])  # six tasks are more examples than one


def test_an_ablation_beside_the_paper(tmp_path: Path) -> None:
    text = page(tmp_path, ablation()).split("## Ablation")[1]
    assert "paper: F1 on 40 questions, 2 seeds. [ablation-paper-2026-03-01.json]" in text
    assert "| row full | 58.00 | 70.00 |  | reference | 70.00, 71.00 |  |" in text
    assert "| row no L_ce | 56.50 | 68.50 | full | -1.50 [-2.00, -1.00] | -1.55, -1.45 | -2.96 |" in text
    assert "| +0.20 [-0.30, +0.70] | +0.15, +0.25 |  |" in row(text, "temperature 1")
    assert "- the paper's measure is another" in text


def test_an_ablation_with_a_teacher_among_its_rows_says_what_is_retained(tmp_path: Path) -> None:
    kept = Interval(98.25, 97.5, 99.0).to_json()
    rows = [ablation_row("full") | {"retention": kept}, ablation_row("the teacher", 1.2, f1=71.2) | {"retention": None}]
    text = page(tmp_path, made("ablation", "controls", runs.ablation_results("F1 on 40 questions", "full", rows))).split("## Ablation")[1]
    assert "| by seed | percent of the teacher's F1 [95 %] |" in text  # what no row has is no column
    assert "| 70.00, 71.00 | 98.2 [97.5, 99.0] |" in row(text, "row full") and row(text, "row the teacher").endswith("|  |")


def test_an_ablation_is_checked() -> None:
    with pytest.raises(OptionsError, match="paper missing"):
        runs.ablation_results("x", "full", [{key: value for key, value in ablation_row("full").items() if key != "paper"}])
    with pytest.raises(OptionsError, match=r"another of its rows \(full\)"):
        runs.ablation_results("x", "all", [ablation_row("full")])


def test_the_speed_of_training(tmp_path: Path) -> None:
    text = page(tmp_path, speed(busy=True, load={"reasons": ["others computed"]}, loss_difference_absolute={"bf16": 3e-3, "fp32": 2e-6})).split(
        "## Training speed"
    )[1]
    assert "plain: 1000.00 [990.00, 1010.00] tokens a second; pocketqa: 1450.00 [1400.00, 1500.00] tokens a second; 1.45 [1.40, 1.50] times." in text
    assert "| projection of masked positions | 1,500 | 1.50 [1.40, 1.60] |" in text
    assert "- Reached: 0.900 TFLOP/s, 45 % of the 2.000 TFLOP/s" in text
    assert "differ by at most 2.0e-04 of the loss (3.0e-03 in bf16, 2.0e-06 in fp32)." in text
    assert "- Busy machine, so its times are not to be trusted: others computed" in text
    with pytest.raises(OptionsError, match="Row 1 of a waterfall needs ratio"):
        runs.training_speed_results("x", {}, Interval(1, 1, 1), [{"step": "a", "tokens_per_second": 1}, {"step": "b", "tokens_per_second": 1}])


def test_figures_of_ablation_and_speed() -> None:
    found = figures.pictures({"ablation-paper.json": ablation(), "training-speed.json": speed()}, report.TITLES)
    assert [(picture.name, picture.section) for picture in found] == [
        ("ablation-ablation-paper", "Ablation"),
        ("speed-training-speed", "Training speed"),
    ]
    for picture in found:
        assert picture.png.startswith(b"\x89PNG")
    assert "row no L_ce -1.50" in found[0].alt
    assert "the plain way 1,000" in found[1].alt

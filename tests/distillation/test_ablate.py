"""`pocketqa ablate`: presets, plans, and whole runs on tiny models, with a stand-in where the distillation itself is not the question."""

from __future__ import annotations

import dataclasses
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import BertForMaskedLM, DistilBertForQuestionAnswering

from distillation import ablate, finetune
from distillation import distill as distill_verb
from distillation.ablation import ablation_cost
from distillation.ablation.ablation_plan import Common, LayerMaps, choose_rows, make_plan, read_preset
from distillation.ablation.ablation_table import ablation_run
from distillation.ablation.ablation_work import check_words
from distillation.training.recipes import PRESETS
from pocketqa import report, runs
from pocketqa.errors import DataError, OptionsError, PocketQAError, TrainingError
from pocketqa.folders import ModelFolder, sha256_file, write_manifest
from pocketqa.statistics import Interval, mean_difference
from tests.pocketqa.test_report import evaluation
from tests.tiny import tiny_bert, tiny_distilbert, tiny_squad

TWO = """reference = "whole"
[[rows]]
name = "less"
words = "something left out"
distill = ["--alpha-ce", "0"]
paper = -2.96
[[rows]]
name = "whole"
words = "everything"
[[rows]]
name = "tuned"
words = "the same, fine-tuned otherwise"
finetune = ["--weight-decay", "0.5"]
[[rows]]
name = "taught"
words = "with a reader"
teacher = true
"""
SIX_OF_TWELVE = LayerMaps(12, 6, (0, 2, 4, 6, 8, 10))
FINETUNE = "--max-tokens 64 --doc-stride 16 --max-question-tokens 40 --batch-tokens 640 --epochs 0.5 --precision fp32"


@pytest.fixture
def preset(tmp_path: Path) -> str:
    path = tmp_path / "two.toml"
    path.write_text(TWO)
    return str(path)


def common(**changes: object) -> Common:
    values: dict[str, object] = {
        "out": Path("out"), "teacher": "t", "corpus": ("text.txt",), "data": ("a.json@0.5",), "dev": "dev.json", "reader": None, "tokens": 100,
    }  # fmt: skip
    return Common(**(values | changes))  # type: ignore[arg-type]


# ---- presets and plans


def test_the_preset_of_the_paper() -> None:
    rows = {row.name: row for row in read_preset("paper")}
    assert next(iter(rows)) == "triple"
    assert rows["triple"].against is None
    papers = {name: row.paper for name, row in rows.items() if row.paper is not None}
    assert papers == {"no-ce": -2.96, "no-cos": -1.46, "no-mlm": -0.31, "no-ce-no-mlm": -2.96, "no-cos-no-mlm": -1.46, "random": -3.69}
    left_out = {name: set(row.distill[::2]) for name, row in rows.items() if name.startswith("no-")}
    assert left_out == {
        "no-ce": {"--alpha-ce"}, "no-cos": {"--alpha-cos"}, "no-mlm": {"--alpha-mlm"},
        "no-ce-no-mlm": {"--alpha-ce", "--alpha-mlm"}, "no-cos-no-mlm": {"--alpha-cos", "--alpha-mlm"},
    }  # fmt: skip
    assert rows["second-step-padding"].against == "second-step"
    assert all(row.against == "triple" for name, row in rows.items() if name not in ("triple", "second-step-padding"))


def test_rows_bring_the_rows_they_are_compared_with() -> None:
    rows = read_preset("paper")
    chosen, left_out = choose_rows(rows, ["second-step-padding"], "reader")
    assert ([row.name for row in chosen], left_out) == (["triple", "second-step", "second-step-padding"], ())
    chosen, left_out = choose_rows(rows, ["no-mlm", "second-step"], None)
    assert ([row.name for row in chosen], left_out) == (["triple", "no-mlm"], ("second-step (needs --reader)",))
    with pytest.raises(OptionsError, match="found nothing-like-it"):
        choose_rows(rows, ["nothing-like-it"], None)


def test_a_plan_pairs_seeds_and_shares_distillations(preset: str) -> None:
    rows, left_out = choose_rows(read_preset(preset), None, "reader")
    plan = make_plan(rows, [3, 5], common(reader="reader"), SIX_OF_TWELVE, left_out)
    assert [row.name for row in plan.rows] == ["whole", "less", "tuned", "taught"]
    assert [(work.verb, work.row.name) for work in plan.works[: len(plan.works) // 2]] == [
        ("distill", "whole"), ("finetune", "whole"), ("evaluate", "whole"),
        ("distill", "less"), ("finetune", "less"), ("evaluate", "less"),
        ("finetune", "tuned"), ("evaluate", "tuned"), ("finetune", "taught"), ("evaluate", "taught"),
    ]  # fmt: skip
    assert [work.seed for work in plan.works] == [3] * 10 + [5] * 10
    by_name = {(work.verb, work.row.name, work.seed): work for work in plan.works}
    words = by_name["distill", "less", 5].words
    assert words[-6:] == ("--tokens", "100", "--seed", "5", "--alpha-ce", "0")
    assert by_name["finetune", "tuned", 3].words[0] == str(Path("out/distill/whole-seed-3"))
    assert "--teacher" in by_name["finetune", "taught", 3].words and "--teacher" not in by_name["finetune", "tuned", 3].words
    assert "--no-teacher" in by_name["finetune", "tuned", 3].words  # flags of all rows may speak of a teacher
    assert len({work.identity for work in plan.works}) == len(plan.works)
    elsewhere = make_plan(rows, [3, 5], common(reader="reader", out=Path("elsewhere")), SIX_OF_TWELVE)
    assert [work.identity for work in elsewhere.works] == [work.identity for work in plan.works]
    longer = make_plan(rows, [3, 5], common(reader="reader", tokens=200), SIX_OF_TWELVE)
    assert not {work.identity for work in longer.works} & {work.identity for work in plan.works}


def test_layers_are_filled_in() -> None:
    names = ["first-layers", "last-layers", "even-layers", "spread-layers"]
    rows, _ = choose_rows(read_preset("paper"), names, None)
    plan = make_plan(rows, [0], common(), SIX_OF_TWELVE)
    works = {work.row.name: work.words[-6:] for work in plan.works if work.verb == "distill" and work.row.distill}
    assert {name: " ".join(words) for name, words in works.items()} == {
        "first-layers": "0 1 2 3 4 5", "last-layers": "6 7 8 9 10 11", "spread-layers": "0 2 4 7 9 11",
    }  # fmt: skip
    assert plan.left_out == ("even-layers (the layers that are taken anyway)",)
    released = make_plan(rows, [0], common(), LayerMaps(12, 6, (0, 2, 4, 7, 9, 11)))
    assert released.left_out == ("spread-layers (the layers that are taken anyway)",)
    assert LayerMaps(4, 1, (0,)).filled("{spread_layers}") == LayerMaps(4, 1, (0,)).filled("{even_layers}") == ["0"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("reference = ", "refer = "), r"unknown entry 'refer'; reference must be the name of a row"),
        (('words = "everything"', "words = 3"), "row 'whole': words must be str"),
        (('name = "tuned"', 'name = "whole"'), "row 'whole': a name is its own"),
        (("teacher = true", 'against = "nobody"'), "row 'taught': against must name a row, found 'nobody'"),
        (("teacher = true", "teacher = true\nepochs = 3"), "row 'taught': unknown entry 'epochs'"),
        (("teacher = true", 'start = "somewhere"'), "row 'taught': start must be one of base, student, reader, found 'somewhere'"),
        (
            ("teacher = true", 'stages = [["--epochs", "1"]]\nfinetune = ["--epochs", "1"]'),
            "row 'taught': finetune is for one fine-tuning and stages for",
        ),
        (("teacher = true", 'paper_of = "tuned"'), "row 'taught': paper_of must name a row that has an entry paper, found 'tuned'"),
        (("teacher = true", 'paper = 1.0\npaper_of = "tuned"'), "row 'taught': paper and paper_of are two ways to say the same, found both"),
        (("teacher = true", "stages = []"), r"row 'taught': stages must be lists of flags, found \[\]"),
        (("teacher = true", 'stages = ["--epochs"]'), "row 'taught': stages must be lists of flags"),
        (("teacher = true", 'start = "student"\ndistill = []'), "row 'taught': distill goes with a distillation, and start = 'student' has none"),
        (("[[rows]]", "[[row]]"), r"expected a list of tables \[\[rows\]\]"),
        (("reference", "= ="), "Expected a preset of an ablation"),
    ],
)
def test_wrong_presets_are_refused(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(TWO.replace(*change))
    with pytest.raises(OptionsError, match=message):
        read_preset(str(path))
    with pytest.raises(OptionsError, match=r"Expected a preset of an ablation \(.*paper.*\).* found 'other'"):
        read_preset("other")


def test_controls_start_from_what_was_not_distilled(tmp_path: Path) -> None:
    rows, left_out = choose_rows(read_preset("controls"), None, "reader", "base")
    assert left_out == ()
    plan = make_plan(rows, [7, 8], common(reader="reader", base="base", final="final.json", out=Path("out")), SIX_OF_TWELVE)
    read = [work for work in plan.works if work.row.name == "teacher"]
    assert [(work.verb, work.seed) for work in read] == [("evaluate", 7), ("final", 7)]  # one model, whatever the seed
    assert [plan.evaluation("teacher", seed, verb) for seed in (7, 8) for verb in ("evaluate", "final")] == read * 2
    assert plan.evaluation("base", 8).seed == 8
    plan = make_plan(rows, [7], common(reader="reader", base="base", final="final.json", out=Path("out")), SIX_OF_TWELVE)
    did = {(work.verb, work.row.name): work.words for work in plan.works}
    assert [name for verb, name in did if verb == "distill"] == ["general"]  # one for both rows that are distilled
    starts = {name: (words[0], "--teacher" in words) for (verb, name), words in did.items() if verb == "finetune"}
    assert starts == {
        "base": ("base", False), "second-step": ("base", True),
        "general": (str(Path("out/distill/general-seed-7")), False), "general-second-step": (str(Path("out/distill/general-seed-7")), True),
    }  # fmt: skip
    assert did["evaluate", "teacher"][0] == "reader"
    assert [work.row.name for work in plan.works[-5:] if work.verb == "final"] == [row.name for row in rows]  # once everything else is done
    assert did["final", "base"][:3] == (str(Path("out/finetune/base-seed-7")), "--data", "final.json")
    with pytest.raises(OptionsError, match="The row base, with which the others are compared, needs --base"):
        choose_rows(read_preset("controls"), None, "reader")
    assert choose_rows(read_preset("controls"), ["second-step"], None, "base")[1] == ("second-step (needs --reader)",)


def test_stages_start_from_one_another_and_take_as_many_steps(tmp_path: Path) -> None:
    rows, left_out = choose_rows(read_preset("recipes"), None, "reader")
    assert ([row.name for row in rows], left_out) == (["undistilled", "distilbert", "tinybert"], ())
    flags = ("--epochs", "4", "--batch-tokens", "3000")
    plan = make_plan(rows, [7], common(reader="reader", finetune_flags=flags, distill_flags=("--drop-token-types",)), SIX_OF_TWELVE)
    assert [(work.verb, work.row.name, work.stage) for work in plan.works] == [
        ("student", "undistilled", 0), ("finetune", "undistilled", 0), ("evaluate", "undistilled", 0),
        ("distill", "distilbert", 0), ("finetune", "distilbert", 0), ("evaluate", "distilbert", 0),
        ("distill", "tinybert", 0), ("finetune", "tinybert", 0), ("finetune", "tinybert", 1), ("evaluate", "tinybert", 0),
    ]  # fmt: skip
    made, own, _, _, plain, _, distilled, first, second, scored = plan.works
    assert made.words == (
        "t",
        "--out",
        str(Path("out/student/undistilled-seed-7")),
        *("--teacher-layers", "0", "2", "4", "6", "8", "10", "--drop-token-types", "--seed", "7"),
    )
    assert distilled.words[-2:] == ("--recipe", "tinybert_general")
    assert [work.words[0] for work in (own, first, second, scored)] == [str(work.leaves) for work in (made, distilled, first, second)]
    assert "--teacher" not in own.words
    recipes = [finetune._parse([*work.words, "--out", str(tmp_path / "new")]).recipe for work in (own, plain, first, second)]
    assert [recipe.epochs for recipe in recipes] == [4.0, 4.0, 2.0, 2.0]
    assert {(recipe.batch_tokens, recipe.negative_windows, recipe.wrong_paragraph, recipe.accumulation) for recipe in recipes} == {
        (3000, 0.5, 0.1, 1)
    }
    assert [(recipe.alpha_hidden, recipe.alpha_ce, recipe.learning_rate) for recipe in recipes[2:]] == [(1.0, 0.0, 5e-5), (0.0, 1.0, 3e-5)]
    usual = make_plan(rows, [7], common(reader="reader"), SIX_OF_TWELVE).works
    assert [finetune._parse([*usual[i].words, "--out", str(tmp_path / "new")]).recipe.epochs for i in (1, 4, 7, 8)] == [2.0, 2.0, 1.0, 1.0]
    shared = make_plan(rows, [7], common(reader="reader", finetune_flags=("--recipe", "squad_paper", "--epochs", "2")), SIX_OF_TWELVE).works
    found = [finetune._parse([*shared[i].words, "--out", str(tmp_path / "new")]) for i in (1, 4)]
    assert [(len(job.teachers), job.recipe.learning_rate) for job in found] == [(0, 5e-5), (1, 5e-5)]
    for epochs in ("1", "0.5", "3"):  # both stages would see the same half
        with pytest.raises(OptionsError, match=f"row tinybert trains a stage for {float(epochs) / 2:g} epochs.*a multiple of 2 in --finetune-flags"):
            make_plan(rows, [7], common(reader="reader", finetune_flags=("--epochs", epochs)), SIX_OF_TWELVE)
    with pytest.raises(OptionsError, match="The row undistilled starts from the teacher's layers, and --distill-flags ask for another student"):
        make_plan(rows, [7], common(reader="reader", distill_flags=("--random-init",)), SIX_OF_TWELVE)


def test_what_flags_and_folders_name_is_part_of_a_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").mkdir()
    rows = read_preset("recipes")[:2]

    def identities() -> list[str]:
        flags = {"distill_flags": ("--recipe=mine.toml",), "finetune_flags": ("--unlabelled", "more.json@0.5", "--recipe", "squad_paper")}
        return [work.identity for work in make_plan(rows, [0], common(corpus=("text",), reader="r", **flags), SIX_OF_TWELVE).works]

    contents = {"mine.toml": "epochs = 1.0", "more.json": "{}", "text/a.txt": "some text", "cache.bin": "1"}
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    first = identities()
    changed = {}
    for name, other in (("mine.toml", "epochs = 2.0"), ("more.json", "[]"), ("text/a.txt", "same size"), ("cache.bin", "2")):
        (tmp_path / name).write_text(other)
        changed[name] = [before != now for before, now in zip(first, identities(), strict=True)]
        (tmp_path / name).write_text(contents[name])
    distilled = [False] * 3 + [True] * 3  # the first row is not distilled
    assert changed == {
        "mine.toml": distilled,
        "more.json": [False, *[True] * 2, False, *[True] * 2],
        "text/a.txt": distilled,
        "cache.bin": [False] * 6,
    }
    assert identities() == first
    with pytest.raises(TrainingError, match=r"Expected one of the recipes .*found 'nothing'"):
        make_plan(rows, [0], common(distill_flags=("--recipe", "nothing"), reader="r"), SIX_OF_TWELVE)


def test_what_a_model_computes_is_part_of_a_work(tmp_path: Path) -> None:
    rows = [row for row in read_preset("controls") if row.name in ("base", "general")]
    models = {name: str(tiny_distilbert(tmp_path / name, layers=1)) for name in ("teacher", "base")}

    def identities() -> list[str]:
        return [work.identity for work in make_plan(rows, [0], common(**models), SIX_OF_TWELVE).works]

    first = identities()
    for model, own in (("base", [True] * 2 + [False] * 3), ("teacher", [False] * 2 + [True] * 3)):
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            path = tmp_path / model / name
            content = path.read_bytes()
            path.write_bytes(content + b" ")
            assert [before != now for before, now in zip(first, identities(), strict=True)] == own, path
            path.write_bytes(content)


def test_a_model_of_the_hub_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    rows, found = [row for row in read_preset("controls") if row.name in ("base", "general")], []
    place = tmp_path / "models--owner--name"
    for commit in ("a" * 40, "b" * 40, "a" * 40):
        for folder in (place / "refs", place / "snapshots" / commit):
            folder.mkdir(parents=True, exist_ok=True)
        (place / "refs" / "main").write_text(commit)
        (place / "snapshots" / commit / "config.json").write_text("{}")
        found.append([work.identity for work in make_plan(rows, [0], common(teacher="owner/name", base="base"), SIX_OF_TWELVE).works])
    assert [first != second for first, second in zip(*found[:2], strict=True)] == [False] * 2 + [True] * 3
    assert found[0] == found[2]


# ---- whole runs


class StandIn:
    """A distillation that leaves a random student, another one for other flags and seeds."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.status = 0

    def __call__(self, argv: list[str]) -> int:
        self.calls.append(argv)
        if self.status:
            return self.status
        out = Path(argv[argv.index("--out") + 1])
        tiny_distilbert(out, layers=1)
        torch.manual_seed(int(argv[argv.index("--seed") + 1]))
        model = DistilBertForQuestionAnswering.from_pretrained(out)
        if "--alpha-ce" in argv:
            torch.nn.init.normal_(model.distilbert.embeddings.word_embeddings.weight)
        torch.nn.init.normal_(model.qa_outputs.weight)
        model.save_pretrained(out)
        write_manifest(out, kind="checkpoint", name=out.name, config={"seconds": 30.0})
        return 0


@pytest.fixture
def distill(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setitem(ablate.VERBS, "distill", stand_in)
    return stand_in


@pytest.fixture
def command(tmp_path: Path, preset: str) -> list[str]:
    teacher = tiny_bert(tmp_path / "teacher")
    data = tiny_squad(tmp_path / "train.json", paragraphs=4, questions=2)
    dev = tiny_squad(tmp_path / "dev.json", paragraphs=6, questions=2, seed=1)
    (tmp_path / "text.txt").write_text("Some text.\n")
    sources = ["--teacher", str(teacher), "--corpus", str(tmp_path / "text.txt"), "--data", str(data), "--dev", str(dev), "--seeds", "0", "1"]
    return ["--preset", preset, *sources, "--tokens", "50", "--out", str(tmp_path / "out"), "--finetune-flags", FINETUNE]


def test_a_whole_ablation_and_a_second_call(
    tmp_path: Path, distill: StandIn, command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ablate.main([*command, "--dry-run"]) == 0
    planned = capsys.readouterr()
    assert "left out: taught (needs --reader)" in planned.err
    assert "4 to distill" in planned.err and "estimated" in planned.err and "expected time of all that is left" in planned.err
    assert not (tmp_path / "out").exists()

    distill.status = 143  # stopped
    assert ablate.main(command) == 143
    distill.status = 0
    assert ablate.main([*command, "--seeds", "0"]) == 0
    capsys.readouterr()
    assert ablate.main([*command, "--dry-run"]) == 0
    assert "2 to distill: 30 s each, as the finished ones took" in capsys.readouterr().err
    assert ablate.main([*command, "--run-file", str(tmp_path / "runs")]) == 0
    printed = capsys.readouterr()
    assert printed.err.count("finished already") == 8 + 1  # each, and their number
    assert len(distill.calls) == 1 + 4
    assert "| something left out |" in printed.out and "| -2.96 |" in printed.out
    (run,) = runs.read_all(tmp_path / "runs").values()
    assert run == runs.read(tmp_path / "out" / "runs" / "ablation.json")
    (following,) = (line for line in printed.err.splitlines() if line.startswith("next: pocketqa report "))
    assert report.main(shlex.split(following.partition("    ")[0])[3:]) == 0
    drawn = sorted(path.name for path in (tmp_path / "out" / "report").iterdir())
    assert drawn == ["ablation-ablation.png", "index.html"]
    assert (run.kind, run.results["reference"], run.results["seeds"], run.results["left_out"]) == (
        "ablation",
        "whole",
        [0, 1],
        ["taught (needs --reader)"],
    )

    rows = {row["name"]: row for row in run.results["rows"]}
    found = {name: [runs.read(tmp_path / "out" / "evaluate" / f"{name}-seed-{seed}.json") for seed in (0, 1)] for name in rows}
    for name, row in rows.items():
        assert row["f1"] == pytest.approx(np.mean([one.results["f1"] for one in found[name]]))
    values = {name: np.mean([runs.per_question(one.results).f1 for one in pair], axis=0) for name, pair in found.items()}
    groups = runs.per_question(found["whole"][0].results).groups
    expected = mean_difference(values["less"], values["whole"], groups).scaled(100)
    assert Interval.from_json(rows["less"]["difference"]) == pytest.approx(expected, abs=1e-5) or rows["less"]["difference"] == expected.to_json()
    for i, one in enumerate(rows["less"]["seeds"]):
        assert one["difference"] == pytest.approx(found["less"][i].results["f1"] - found["whole"][i].results["f1"], abs=1e-5)


def test_other_settings_in_the_same_folder_are_refused(tmp_path: Path, distill: StandIn, command: list[str]) -> None:
    assert ablate.main([*command, "--rows", "whole", "--seeds", "0"]) == 0
    with pytest.raises(TrainingError, match="begun with other settings or data"):
        ablate.main([*command, "--rows", "whole", "--seeds", "0", "--tokens", "60"])
    shutil.rmtree(tmp_path / "out" / "distill")
    tiny_distilbert(tmp_path / "out" / "distill" / "whole-seed-0")
    write_manifest(tmp_path / "out" / "distill" / "whole-seed-0", kind="checkpoint", name="x")
    with pytest.raises(TrainingError, match="was not left by an ablation"):
        ablate.main([*command, "--rows", "whole", "--seeds", "0"])


def test_what_works_will_read_is_read_before_the_first(tmp_path: Path, distill: StandIn, command: list[str]) -> None:
    for flag in ("--data", "--dev", "--final"):
        for asked in ([], ["--dry-run"]):
            with pytest.raises(DataError, match=r"missing\.json, found nothing"):
                ablate.main([*command, flag, str(tmp_path / "missing.json"), *asked])
    for flag in ("--reader", "--base"):
        with pytest.raises(PocketQAError, match="missing"):
            ablate.main([*command, flag, str(tmp_path / "missing")])
    assert not distill.calls and not (tmp_path / "out").exists()


def test_folders_of_other_settings_are_refused_before_the_first_work(tmp_path: Path, distill: StandIn, command: list[str]) -> None:
    assert ablate.main([*command, "--rows", "whole", "--seeds", "1", "--tokens", "60"]) == 0
    with pytest.raises(TrainingError, match="begun with other settings or data"):
        ablate.main([*command, "--rows", "whole", "--seeds", "0", "1"])
    assert len(distill.calls) == 1


def test_rows_without_the_row_they_are_compared_with_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "chain.toml"
    rows = [("b", "a", "teacher = true"), ("c", "b", ""), ("d", "c", ""), ("e", "a", "")]
    entries = [f'[[rows]]\nname = "{name}"\nwords = "{name}"\nagainst = "{against}"\n{more}\n' for name, against, more in rows]
    path.write_text('reference = "a"\n[[rows]]\nname = "a"\nwords = "a"\n' + "".join(entries))
    kept, left_out = choose_rows(read_preset(str(path)), None, None)
    assert [row.name for row in kept] == ["a", "e"]
    assert left_out == ("b (needs --reader)", "c (compared with b, which is left out)", "d (compared with c, which is left out)")
    path.write_text(path.read_text().replace("teacher = true", 'distill = ["--teacher-layers", "{even_layers}"]'))
    rows_kept, _ = choose_rows(read_preset(str(path)), None, None)
    plan = make_plan(rows_kept, [0], common(), SIX_OF_TWELVE)
    assert [row.name for row in plan.rows] == ["a", "e"] and [words.split()[0] for words in plan.left_out] == ["b", "c", "d"]


def test_bad_calls(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionsError, match=r"--seeds must differ, found 1 1; --tokens must be at least 1, found 0"):
        ablate.main([*command, "--seeds", "1", "1", "--tokens", "0"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionsError, match="takes no launcher; --jobs"):
        ablate.main(command)


@pytest.mark.parametrize(
    ("preset", "flags", "message"),
    [
        ("paper", ["--finetune-flags=--lr 1e-4"], "finetune of triple, no-mlm: unrecognized arguments: --lr 1e-4. `pocketqa finetune --help` says"),
        ("paper", ["--finetune-flags=--epochs 0"], "finetune of triple, no-mlm: The recipe cannot be run: --epochs must be above 0, found 0.0"),
        ("paper", ["--finetune-flags=--help"], "finetune of triple, no-mlm: expected flags of a run, found --help"),
        ("paper", ["--distill-flags=--tempo 1", "--finetune-flags=--lr 1"], "distill of .*--tempo 1; finetune of .*--lr 1. `pocketqa distill"),
        ("paper", ["--distill-flags=--layers two"], "argument --layers: invalid int value: 'two' in '--layers two'. `pocketqa distill --help`"),
        ("recipes", ["--finetune-flags=--epochs one"], "argument --epochs: invalid float value: 'one' in '--epochs one'"),
        # an abbreviation that `finetune` would read and the stages of TinyBERT, which share the epochs, would not
        ("recipes", ["--finetune-flags=--epoch 1"], "finetune of undistilled, tinybert: unrecognized arguments: --epoch 1"),
        ("paper", ["--distill-flags=--tokens=9", "--finetune-flags=--seed 5 --teacher t"], "it sets --seed, --teacher, --tokens itself"),
    ],
)
def test_flags_that_a_verb_refuses_are_refused_at_once(command: list[str], distill: StandIn, preset: str, flags: list[str], message: str) -> None:
    teacher = command[command.index("--teacher") + 1]
    rows = {"paper": "no-mlm", "recipes": "tinybert"}
    for dry in ([], ["--dry-run"]):
        with pytest.raises(OptionsError, match=message):
            ablate.main([*command, "--preset", preset, "--rows", rows[preset], "--reader", teacher, *flags, *dry])
    assert distill.calls == []


def scored(tmp_path: Path, reader: float, base: float) -> dict[str, Any]:
    """The results of an ablation of controls in two seeds, as its evaluations say."""
    rows, _ = choose_rows(read_preset("controls"), None, "reader", "base")
    flags = {"finetune_flags": ("--learning-rate", "1e-4"), "distill_flags": ("--accumulation", "2")}
    mine = common(reader="reader", base="base", out=tmp_path, **flags)
    plan = make_plan(rows, [0, 1], mine, SIX_OF_TWELVE)
    for work in plan.works:
        if work.verb == "evaluate":
            percent = {"teacher": reader, "base": base}.get(work.row.name, (reader + base) / 2)
            runs.write(evaluation("student", percent), work.leaves)
    return ablation_run(plan, [0, 1], mine, ["pocketqa", "ablate"], "evaluate", "controls").results


def test_what_rows_keep_of_a_teacher_that_beats_the_control(tmp_path: Path) -> None:
    found = scored(tmp_path, reader=90, base=50)
    rows = {row["name"]: row for row in found["rows"]}
    f1 = {name: row["f1"] for name, row in rows.items()}
    assert f1["base"] < f1["general"] < f1["teacher"]
    assert rows["general"]["retention"]["value"] == pytest.approx(100 * f1["general"] / f1["teacher"], abs=0.01)
    assert rows["teacher"]["retention"] is None
    assert not any("not quoted" in note for note in found["notes"])
    questions = "questions: learning rate 0.0001, 6,000 tokens a step, dropout 0.1 (attention 0), bf16"
    assert f"Trained with {questions} (base, second-step)." in found["notes"]
    text = "text: learning rate 0.0005, 12,000 tokens a step, dropout 0 (attention 0), bf16"
    assert f"Trained with {text}; {questions} (general, general-second-step)." in found["notes"]


def test_nothing_is_kept_of_a_teacher_that_does_not_beat_the_control(tmp_path: Path) -> None:
    found = scored(tmp_path, reader=60, base=60)
    assert {str(row["retention"]) for row in found["rows"]} == {"None"}
    assert any("is not quoted, since the teacher is not shown to beat a row that was not distilled" in note for note in found["notes"])


def test_flags_of_what_is_finished_are_not_looked_at(tmp_path: Path) -> None:
    rows = read_preset("paper")[:1]
    works = make_plan(rows, [0, 1], common(out=tmp_path, finetune_flags=("--lr", "1")), SIX_OF_TWELVE).works
    for work in works:
        if work.verb == "finetune":
            work.leaves.mkdir(parents=True)
            write_manifest(work.leaves, kind="checkpoint", name="x")
    check_words(works, {"finetune": finetune._parse})


def test_the_cost_counts_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation_cost, "matrix_rate", lambda precision: 1e9)
    dev = tiny_squad(tmp_path / "dev.json")
    teacher = tiny_bert(tmp_path / "teacher", layers=4)
    source = common(teacher=str(teacher), data=(f"{dev}@0.5",), dev=str(dev), tokens=1000)
    maps = ablation_cost.layer_maps(source)
    assert maps == LayerMaps(4, 2, (0, 3))
    layer, vocabulary = 12 * 32 * 32, len((teacher / "vocab.txt").read_text(encoding="utf-8").splitlines()) * 32
    masked = 0.15 * vocabulary

    def costs(which: Common, preset: str = "recipes") -> dict[tuple[str, str, int], float]:
        rows, sizes = choose_rows(read_preset(preset), None, "r", "b")[0], ablation_cost._sizes(which, maps)
        works = make_plan(rows, [0], dataclasses.replace(which, reader="r", base="b"), maps).works
        return {(work.verb, work.row.name, work.stage): ablation_cost.operations(work, sizes) for work in works if work.verb != "student"}

    found = costs(source)
    assert found["distill", "distilbert", 0] == pytest.approx(1000 * (6 * (2 * layer + masked) + 2 * (4 * layer + masked)))
    assert found["distill", "tinybert", 0] == pytest.approx(1000 * (6 * 2 * layer + 2 * 4 * layer))  # no loss on the vocabulary
    tokens = found["evaluate", "undistilled", 0] / (2 * 2 * layer)
    passes = {name: value / (0.5 * tokens * layer) for name, value in found.items() if name[0] == "finetune"}  # 0.5: the share of the questions
    assert passes["finetune", "undistilled", 0] == pytest.approx(2 * 6 * 2)  # epochs, training, layers
    assert passes["finetune", "distilbert", 0] == pytest.approx(2 * 6 * 2 + 2 * 4)  # the teacher reads once, and what it says is kept
    assert passes["finetune", "tinybert", 0] == pytest.approx(6 * 2 + 2 * 4)  # half of the epochs, the teacher beside the student
    assert passes["finetune", "tinybert", 1] == pytest.approx(6 * 2 + 2 * 4)
    works = make_plan(choose_rows(read_preset("recipes"), None, "r", "b")[0], [0], dataclasses.replace(source, reader="r"), maps).works
    precisions = [(work.verb, work.row.name, ablation_cost._precision(work, source)) for work in works if work.row.name != "undistilled"]
    assert set(precisions) == {
        ("distill", "distilbert", "bf16"), ("finetune", "distilbert", "bf16"), ("evaluate", "distilbert", "fp32"),
        ("distill", "tinybert", "fp32"), ("finetune", "tinybert", "fp32"), ("evaluate", "tinybert", "fp32"),
    }  # fmt: skip
    assert costs(source, "controls")["evaluate", "teacher", 0] == pytest.approx(tokens * 2 * 4 * layer)
    other = dataclasses.replace(source, distill_flags=("--layers", "3", "--ce-positions", "all"))
    assert ablation_cost.layer_maps(other).student == 3
    assert ablation_cost.layer_maps(dataclasses.replace(source, distill_flags=("--teacher-layers", "1", "2", "3"))) == LayerMaps(4, 3, (1, 2, 3))
    everywhere = costs(other)["distill", "distilbert", 0]
    assert everywhere == pytest.approx(1000 * (6 * (2 * layer + vocabulary) + 2 * (4 * layer + vocabulary)))


def test_every_flag_of_the_preset_is_one_of_the_verbs(tmp_path: Path) -> None:
    rows, _ = choose_rows(read_preset("paper"), None, "reader")
    for work in make_plan(rows, [0], common(reader="reader", out=tmp_path), SIX_OF_TWELVE).works:
        if work.verb == "distill":
            job = distill_verb._parse(list(work.words))
            assert (job.recipe.tokens, job.start.random) == (100, work.row.name == "random")
        elif work.verb == "finetune":
            reader = finetune._parse(list(work.words))
            assert bool(reader.teachers) == work.row.teacher
            assert reader.recipe.kl_over_padding == (work.row.name == "second-step-padding")


def test_real_distillations_of_a_tiny_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = tiny_bert(tmp_path / "reader", layers=2)
    teacher = BertForMaskedLM.from_pretrained(reader)  # the head is drawn, and from now on a trained one to all who look
    shutil.copytree(reader, tmp_path / "teacher")
    teacher.save_pretrained(tmp_path / "teacher")
    data = tiny_squad(tmp_path / "data.json", paragraphs=4, questions=2)
    text = "The red lamp of Anna is in the kitchen. The blue chair of Bruno is in the hall.\n\n"
    (tmp_path / "text.txt").write_text(text * 60)
    sources = ["--teacher", str(tmp_path / "teacher"), "--corpus", str(tmp_path / "text.txt"), "--data", str(data), "--dev", str(data)]
    flags = ["--distill-flags", "--max-tokens 64 --batch-tokens 512 --precision fp32 --heldout-tokens 0", "--finetune-flags", FINETUNE]
    rows = ["--rows", "random", "second-step-padding", "--reader", str(reader), "--seeds", "0", "--tokens", "2000"]
    assert ablate.main([*sources, *flags, *rows, "--out", str(tmp_path / "out")]) == 0
    run = runs.read(tmp_path / "out" / "runs" / "ablation.json")
    found = {row["name"]: row for row in run.results["rows"]}
    assert list(found) == ["triple", "random", "second-step", "second-step-padding"]
    assert (found["random"]["paper"], found["second-step-padding"]["against"]) == (-3.69, "second-step")
    assert sorted(path.name for path in (tmp_path / "out" / "distill").iterdir() if path.suffix != ".json") == [
        "corpus-cache", "random-seed-0", "triple-seed-0",
    ]  # fmt: skip
    printed = capsys.readouterr()
    assert "| random initialisation |" in printed.out
    assert "[9/10] " in printed.err

    base = tiny_distilbert(tmp_path / "base", layers=1)
    final = tiny_squad(tmp_path / "final.json", paragraphs=40, questions=3)  # so many that every resample has something right
    controls = [
        "--preset",
        "controls",
        "--reader",
        str(reader),
        "--base",
        str(base),
        "--final",
        str(final),
        "--precision",
        "bf16",
        "--tokens",
        "2000",
    ]
    assert ablate.main([*sources, *flags, *controls, "--seeds", "0", "--out", str(tmp_path / "controls"), "--run-file", str(tmp_path / "runs")]) == 0
    written = {run.name: run for run in runs.read_all(tmp_path / "runs").values()}
    assert {name: run.data[0].split for name, run in written.items()} == {
        "controls development": "development", "controls squad-dev": "squad-dev",
    }  # fmt: skip
    ours = {row["name"]: row for row in written["controls squad-dev"].results["rows"]}
    assert list(ours) == ["base", "second-step", "general", "general-second-step", "teacher"]
    scored = runs.read(tmp_path / "controls" / "final" / "teacher-seed-0.json")
    assert (scored.subjects[0].precision, scored.results["f1"]) == ("bf16", pytest.approx(ours["teacher"]["f1"], abs=1e-5))
    assert ours["teacher"]["difference"]["value"] == pytest.approx(ours["teacher"]["f1"] - ours["base"]["f1"], abs=0.6)  # run files hold hundredths
    assert ours["general-second-step"]["against"] == "second-step"
    beyond = pytest.approx(ours["general-second-step"]["f1"] - ours["base"]["f1"], abs=0.6)
    told = re.search(
        r"fine-tuned with the teacher, less base fine-tuned, no teacher: F1 ([-+.\d]+) \[", " ".join(written["controls squad-dev"].results["notes"])
    )
    assert told and float(told[1]) == beyond
    assert written["controls squad-dev"].results["data"] == {"name": "final.json", "split": "squad-dev", "count": 120}
    general = runs.read(tmp_path / "controls" / "final" / "general-seed-0.json")
    retained = runs.compare(general, scored).retention
    assert retained is not None and ours["general"]["retention"] in (retained.to_json(), None)  # None where the teacher does not beat the base
    assert ours["teacher"]["retention"] is None and found["random"]["retention"] is None  # itself; no reader among the rows


def test_recipes_with_stages_run_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = tiny_bert(tmp_path / "reader", layers=3)
    shutil.copytree(reader, tmp_path / "teacher")
    BertForMaskedLM.from_pretrained(reader).save_pretrained(tmp_path / "teacher")
    data = tiny_squad(tmp_path / "data.json", paragraphs=8, questions=2)
    (tmp_path / "text.txt").write_text("The red lamp of Anna is in the kitchen. The blue chair of Bruno is in the hall.\n\n" * 60)
    sources = ["--teacher", str(tmp_path / "teacher"), "--corpus", str(tmp_path / "text.txt"), "--data", str(data), "--dev", str(data)]
    flags = ["--distill-flags", "--layers 2 --max-tokens 64 --batch-tokens 512 --precision fp32 --heldout-tokens 0", "--finetune-flags"]
    flags += [FINETUNE.replace("--epochs 0.5", "--epochs 2"), "--tokens", "2000", "--seeds", "0", "--out", str(tmp_path / "out")]
    command = ["--preset", "recipes", "--reader", str(reader), *sources, *flags]
    assert ablate.main([*command, "--dry-run"]) == 0
    planned = capsys.readouterr().err
    assert "1 to cut out of the teacher, 2 to distill, 4 to finetune, 3 to evaluate" in planned
    assert "stage 1 --recipe tinybert_intermediate; stage 2 --recipe tinybert_prediction" in planned and "4 to finetune: " in planned
    assert ablate.main(command) == 0
    printed = capsys.readouterr()
    assert "finetune tinybert, stage 2 of 2, seed 0: " in printed.err and "| TinyBERT: layers on text" in printed.out

    out = tmp_path / "out"
    made = {path.name: ModelFolder(path).read_manifest() for path in (out / "finetune").iterdir() if path.is_dir() and path.name != "teacher-cache"}
    steps = {name.removesuffix("-seed-0"): manifest.config["steps"] for name, manifest in made.items()}
    assert set(steps) == {"undistilled", "distilbert", "tinybert-stage-1", "tinybert"}
    assert steps["undistilled"] == steps["distilbert"] > 2
    assert abs(steps["tinybert-stage-1"] + steps["tinybert"] - steps["distilbert"]) <= 1
    assert made["tinybert-seed-0"].parent == sha256_file(out / "finetune" / "tinybert-stage-1-seed-0" / "model.safetensors")
    assert made["undistilled-seed-0"].config["teacher"] is None

    student, theirs = (load_file(folder / "model.safetensors") for folder in (out / "student" / "undistilled-seed-0", tmp_path / "teacher"))
    for ours, layer in enumerate((0, 2)):
        name = "ffn.lin1.weight"
        assert (student[f"distilbert.transformer.layer.{ours}.{name}"] == theirs[f"bert.encoder.layer.{layer}.intermediate.dense.weight"]).all()
    folded = theirs["bert.embeddings.position_embeddings.weight"] + theirs["bert.embeddings.token_type_embeddings.weight"][0]
    assert (student["distilbert.embeddings.position_embeddings.weight"] == folded).all()

    rows = {row["name"]: row for row in runs.read(out / "runs" / "ablation.json").results["rows"]}
    assert (rows["undistilled"]["start"], rows["tinybert"]["stages"]) == (
        "student",
        [["--recipe", "tinybert_intermediate"], ["--recipe", "tinybert_prediction"]],
    )
    assert ablate.main(command) == 0
    assert capsys.readouterr().err.count("finished already") == 10 + 1


def test_presets_stand_where_the_plan_looks() -> None:
    assert (PRESETS / "ablation_paper.toml").is_file()

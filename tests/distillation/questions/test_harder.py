"""Whole articles, wrong paragraphs, and `pocketqa evaluate` with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from distillation import evaluate
from distillation.questions.harder import BETWEEN, refusals, whole_articles
from pocketqa import report, runs, squad
from pocketqa.errors import DataError, OptionsError
from pocketqa.folders import write_manifest
from pocketqa.types import GoldAnswer, NoAnswer, QAExample
from tests.tiny import tiny_bert, tiny_squad


def test_articles_by_hand() -> None:
    first = QAExample("1", "who", "Anna built it.", (GoldAnswer("Anna", 0),), title="Mill")
    second = QAExample("2", "where", "It is in Rome.", (GoldAnswer("Rome", 9), GoldAnswer("in Rome", 6)), title="Mill")
    again = QAExample("3", "what", "It is in Rome.", (GoldAnswer("It", 0),), title="Mill")
    other = QAExample("4", "what", "Red.", (GoldAnswer("Red", 0),), title="Lamp")
    made = whole_articles([second, again, other], [first, second, again, other], "file")
    assert made[0].context == made[1].context == f"Anna built it.{BETWEEN}It is in Rome."
    assert made[2].context == "Red."
    assert [answer.text for answer in made[0].answers] == ["Rome", "in Rome"]
    for example in made:
        assert all(example.context[answer.start : answer.start + len(answer.text)] == answer.text for answer in example.answers)
    with pytest.raises(DataError, match="file: the question '5' has no title of an article"):
        whole_articles([first], [first, QAExample("5", "q", "c")], "file")


def test_refusals_by_hand() -> None:
    right, wrong = np.array([-3, -1, 0, 2], dtype=np.float32), np.array([-2, 1, 3], dtype=np.float32)
    f1 = np.array([1.0, 0.5, 0.0, 1.0])
    found = refusals(right, f1, ["a", "b", "c", "d"], wrong, 0.5)
    # of 12 pairs the wrong one is above in 1 + 3 + 4
    assert found["auroc"] == pytest.approx(8 / 12, abs=1e-6)
    assert (found["wrong_paragraphs"], found["threshold"]) == (3, 0.5)
    assert (found["refused_wrong"], found["refused_right"]) == (pytest.approx(2 / 3, abs=1e-6), 0.25)
    assert found["f1_cost"]["value"] == pytest.approx(100 * 1.0 / 4)  # the last one was right and is refused
    assert found["f1_cost"]["low"] <= found["f1_cost"]["value"] <= found["f1_cost"]["high"]
    assert set(refusals(right, f1, ["a"] * 4, wrong, None)) == {"auroc", "wrong_paragraphs", "threshold"}


def test_both_are_measured_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, folder = tiny_squad(tmp_path / "dev.json", paragraphs=4, questions=3), str(tmp_path / "runs")
    model = tiny_bert(tmp_path / "model")
    write_manifest(model, kind="checkpoint", name="student", no_answer=NoAnswer(trained=True, threshold=-0.01))
    common = [str(model), "--data", str(data), "--split", "squad-dev", "--role", "student", "--run-file", folder, "--json"]
    assert evaluate.main([*common, "--wrong-paragraphs"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["no_answer"]["wrong_paragraphs"] > 0 and 0 <= printed["no_answer"]["auroc"] <= 1
    assert evaluate.main([*common, "--whole-articles"]) == 0
    joined = json.loads(capsys.readouterr().out)
    assert joined["count"] == 12 and "no_answer" not in joined

    found = {run.name: run for run in runs.read_all(folder).values()}
    own, articles = found["squad-dev student pytorch fp32"], found["squad-dev student pytorch fp32 whole articles"]
    assert (own.results["contexts"], articles.results["contexts"]) == ("paragraphs", "articles")
    assert own.results["no_answer"] == printed["no_answer"]
    out = tmp_path / "RESULTS.md"
    assert report.main(["--runs", folder, "--out", str(out), "--no-readme"]) == 0
    page = out.read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| student `")]
    assert len(rows) == 3  # paragraphs, whole articles, refusals: neither of the later ones stands among the first
    assert f"| {joined['exact_match']:.2f} [" in rows[1] and " | -" in rows[1] + " | +" and "not measured" not in rows[1]
    assert f"| {printed['no_answer']['wrong_paragraphs']} | {printed['no_answer']['auroc']:.3f} |" in rows[2]
    older = replace(articles, name="older", created="2020-01-01T00:00:00Z", results=articles.results | {"seconds": 1.0})
    runs.write(older, folder)
    assert report.main(["--runs", folder, "--out", str(out), "--no-readme"]) == 0
    assert older.file_name not in out.read_text(encoding="utf-8") and articles.file_name in out.read_text(encoding="utf-8")
    (out.parent / "runs" / own.file_name).unlink()
    assert report.main(["--runs", folder, "--out", str(out), "--no-readme"]) == 0
    page = out.read_text(encoding="utf-8")
    assert "## SQuAD v1.1 dev" in page and "| not measured on the same questions |" in page and " in 2 groups | " in page


def test_a_model_without_a_threshold_has_an_auroc_only(tmp_path: Path) -> None:
    data, model = tiny_squad(tmp_path / "dev.json", paragraphs=4, questions=2), tiny_bert(tmp_path / "model")
    assert (
        evaluate.main([str(model), "--data", str(data), "--wrong-paragraphs", "--run-file", str(tmp_path / "runs"), "--split", "out-of-domain"]) == 0
    )
    assert report.main(["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "RESULTS.md"), "--no-readme"]) == 0
    page = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    assert "## Out of domain" in page and "| no threshold | no threshold | no threshold |" in page


def test_limits_keep_whole_articles(tmp_path: Path) -> None:
    everything = squad.load(tiny_squad(tmp_path / "dev.json", paragraphs=4, questions=3))
    made = whole_articles(squad.load(tmp_path / "dev.json", 2, 0), everything, "dev")
    assert len(made) == 2 and all(example.context.count(BETWEEN) == 1 for example in made)


def test_bad_calls(tmp_path: Path) -> None:
    data = str(tiny_squad(tmp_path / "dev.json", paragraphs=2, questions=2, impossible=True))
    model = str(tiny_bert(tmp_path / "model"))
    with pytest.raises(OptionsError, match="goes neither with --whole-articles"):
        evaluate.main([model, "--data", data, "--wrong-paragraphs", "--whole-articles"])
    with pytest.raises(OptionsError, match="Expected only answerable questions"):
        evaluate.main([model, "--data", data, "--wrong-paragraphs"])
    one = str(tiny_squad(tmp_path / "one.json", paragraphs=1, questions=2))
    with pytest.raises(OptionsError, match="Expected articles of several paragraphs"):
        evaluate.main([model, "--data", one, "--wrong-paragraphs"])

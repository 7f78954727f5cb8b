"""`pocketqa evaluate`: predictions files, checkpoints, thresholds."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distillation import evaluate
from distillation.questions import harder
from pocketqa import runs, squad
from pocketqa.errors import DataError, OptionsError, TrainingError
from pocketqa.evaluation import Predictions, open_reader, predict
from pocketqa.folders import write_manifest
from pocketqa.metrics import normalize_answer
from pocketqa.types import NoAnswer
from tests.tiny import tiny_base, tiny_bert, tiny_squad


def test_a_predictions_file_is_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_squad(tmp_path / "tiny.json", paragraphs=2, questions=2)
    examples = squad.load(data)
    answers = {example.id: example.answers[0].text for example in examples}
    answers[examples[0].id] = "nowhere"
    answers[examples[1].id] = answers[examples[1].id].removeprefix("the ").upper() + "!"
    (tmp_path / "predictions.json").write_text(json.dumps(answers))
    assert evaluate.main(["--predictions", str(tmp_path / "predictions.json"), "--data", str(data), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["exact_match"], printed["f1"], printed["count"]) == (75.0, 75.0, 4)
    assert printed["f1_interval"][0] <= 75.0 <= printed["f1_interval"][1]


def test_a_checkpoint_is_scored_and_leaves_a_run_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_squad(tmp_path / "tiny.json", paragraphs=4, questions=3)
    model = tiny_bert(tmp_path / "model")
    command = [str(model), "--data", str(data), "--json", "--out", str(tmp_path / "predictions.json"), "--run-file", str(tmp_path / "run.json")]
    assert evaluate.main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    assert evaluate.main(["--predictions", str(tmp_path / "predictions.json"), "--data", str(data), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert {key: again[key] for key in again if key in printed} == {key: printed[key] for key in again}
    assert again["f1_interval"] and again["exact_match_interval"]
    run = runs.read(tmp_path / "run.json")
    assert run.results["count"] == 12
    assert run.results["f1"] == pytest.approx(printed["f1"], abs=1e-4)
    assert run.subjects[0].engine == "pytorch"


def test_questions_without_an_answer_are_scored_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_squad(tmp_path / "tiny.json", impossible=True)
    model = tiny_bert(tmp_path / "model")
    examples = squad.load(data)
    margins = predict(open_reader(str(model)), examples).margins
    write_manifest(model, kind="checkpoint", name="reader", no_answer=NoAnswer(trained=True, threshold=float(np.median(margins))))
    out, run = tmp_path / "predictions.json", tmp_path / "run.json"
    command = [str(model), "--data", str(data)]
    assert evaluate.main([*command, "--out", str(out), "--run-file", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    parts, said = printed["by_answerability"], json.loads(out.read_text())
    assert {name: part["count"] for name, part in parts.items()} == {"has answer": 18, "no answer": 6}
    assert 0 < list(said.values()).count("") < len(said)
    silent = 100 * sum(not normalize_answer(said[example.id]) for example in examples if example.is_impossible) / 6
    assert (parts["no answer"]["exact_match"], parts["no answer"]["f1"]) == (pytest.approx(silent), pytest.approx(silent))
    for name in ("exact_match", "f1"):
        assert printed[name] == pytest.approx((18 * parts["has answer"][name] + 6 * parts["no answer"][name]) / 24)
    assert runs.read(run).results["by_answerability"] == parts
    assert evaluate.main(command) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[-1] for row in rows if row[1:2] == ["answer"]] == ["18", "6"]


def test_scores_are_told_where_their_files_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tiny_squad(tmp_path / "tiny.json", paragraphs=4, questions=3)
    model, place = tiny_bert(tmp_path / "model"), tmp_path / "runs"

    def meanwhile(*given: Any, **named: Any) -> Predictions:
        place.mkdir() if "--out" in words else place.write_text("came in the way")
        return predict(*given, **named)

    monkeypatch.setattr(evaluate, "predict", meanwhile)
    for option, says in (("--run-file", "Expected to write a run file at"), ("--out", "Expected to write the predictions to")):
        words = [str(model), "--data", str(data), "--json", option, str(place)]
        with pytest.raises(DataError, match=says):
            evaluate.main(words)
        assert json.loads(capsys.readouterr().out)["count"] == 12
        place.unlink(missing_ok=True) if option == "--run-file" else place.rmdir()


def test_places_are_looked_at_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "f.txt").write_text("")
    with pytest.raises(DataError, match=r"Expected to write a run file to the folder .*found a file"):
        evaluate.main(["model", "--data", "absent.json", "--run-file", str(tmp_path / "f.txt")])
    with pytest.raises(OptionsError, match=r"found a folder\. Name a file with --out"):
        evaluate.main(["model", "--data", "absent.json", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "fp32, bf16 or int8" in capsys.readouterr().out


def test_of_one_article_questions_are_resampled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_squad(tmp_path / "tiny.json", paragraphs=2, questions=4)  # two paragraphs are an article
    examples = squad.load(data)
    assert len({example.title for example in examples}) == 1
    answers = {example.id: example.answers[0].text if i % 2 else "nowhere" for i, example in enumerate(examples)}
    (tmp_path / "predictions.json").write_text(json.dumps(answers))
    assert evaluate.main(["--predictions", str(tmp_path / "predictions.json"), "--data", str(data), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["f1_interval"][0] < printed["f1"] < printed["f1_interval"][1]


def test_limit_is_a_seeded_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_squad(tmp_path / "tiny.json", paragraphs=4, questions=3)
    model = tiny_bert(tmp_path / "model")
    assert evaluate.main([str(model), "--data", str(data), "--limit", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["count"] == 5


def test_bad_calls(tmp_path: Path) -> None:
    data = tiny_squad(tmp_path / "tiny.json")
    with pytest.raises(OptionsError, match="neither"):
        evaluate.main(["--data", str(data)])
    for flag, value in (
        ("--run-file", "x.json"),
        ("--out", "x.json"),
        ("--engine", "pytorch"),
        ("--threads", "1"),
        ("--max-tokens", "96"),
        ("--role", "x"),
    ):
        with pytest.raises(OptionsError, match=f"--predictions scores texts that are written already, without {flag}. Name a MODEL"):
            evaluate.main(["--predictions", str(tmp_path / "predictions.json"), "--data", str(data), flag, value])
    written = data.read_bytes()
    with pytest.raises(OptionsError, match="--out would overwrite the questions"):
        evaluate.main([str(tmp_path / "model"), "--data", str(data), "--out", str(data)])
    assert data.read_bytes() == written
    with pytest.raises(DataError, match="seed of a sample must be at least 0, found -1"):
        evaluate.main([str(tmp_path / "model"), "--data", str(data), "--limit", "1", "--seed", "-1"])
    with pytest.raises(TrainingError, match="no question-answering head"):
        evaluate.main([str(tiny_base(tmp_path / "base")), "--data", str(data)])
    with pytest.raises(OptionsError, match="not a packaged model"):
        evaluate.main([str(tmp_path / "base"), "--data", str(data), "--engine", "onnxruntime"])
    (tmp_path / "predictions.json").write_text('{"x": 3}')
    with pytest.raises(DataError, match="expected text as the answer to 'x'"):
        evaluate.main(["--predictions", str(tmp_path / "predictions.json"), "--data", str(data)])
    (tmp_path / "predictions.json").write_text('{"x": "y"}')
    with pytest.raises(DataError, match="None of the 1 predictions"):
        evaluate.main(["--predictions", str(tmp_path / "predictions.json"), "--data", str(data)])


def test_what_cannot_be_asked_is_said_before_the_first_forward_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, long = str(tiny_bert(tmp_path / "model")), " ".join(["the mill"] * 60)
    monkeypatch.setattr(evaluate, "predict", lambda *_, **__: pytest.fail("began to answer"))

    def data(*questions: tuple[str, str, bool]) -> str:
        asked = [
            {"context": context, "qas": [{"id": str(n), "question": question, "answers": [] if none else [{"text": "the", "answer_start": 0}]}]}
            for n, (question, context, none) in enumerate(questions)
        ]
        (tmp_path / "asked.json").write_text(json.dumps({"data": [{"title": "a", "paragraphs": asked}]}))
        return str(tmp_path / "asked.json")

    fine = ("who", "the mill", False)
    for questions, flags, error, says in (
        (
            [fine, (" ".join(["who"] * 300), "the mill", False), fine],
            [],
            DataError,
            "The question '1' cannot be asked: .* Shorten it, or leave it out",
        ),
        ([fine, fine, ("\u200d", "the mill", False)], [], DataError, "The question '2' cannot be asked: The question holds no word"),
        (
            [fine, ("who", long, False)],
            ["--max-tokens", "64", "--doc-stride", "16"],
            OptionsError,
            "or lower max_answer_tokens to 8",
        ),
        ([fine, ("who", "a", True)], ["--wrong-paragraphs"], OptionsError, "Expected only answerable questions"),
        ([fine], ["--wrong-paragraphs"], OptionsError, "found none among the questions asked"),
    ):
        with pytest.raises(error, match=says):
            evaluate.main([model, "--data", data(*questions), *flags])


def test_one_question_has_no_interval_and_names_are_printed_in_any_encoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_squad(tmp_path / "m\u00fchle\u6570.json", paragraphs=2, questions=2)
    (tmp_path / "predictions.json").write_text(json.dumps({example.id: "nowhere" for example in squad.load(data)}))
    said = []
    for flags in (["--json"], []):
        raw = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1", write_through=True))
        assert evaluate.main(["--predictions", str(tmp_path / "predictions.json"), "--data", str(data), "--limit", "1", *flags]) == 0
        said.append(raw.getvalue().decode("latin-1"))
    printed = json.loads(said[0])
    assert (printed["count"], printed["f1"], printed["f1_interval"]) == (1, 0.0, None)
    assert said[1].startswith("data m\u00fchle\\u6570.json\n")


margins = st.lists(st.integers(-8, 8).map(float), min_size=1, max_size=12)


@given(margins, margins, st.sampled_from((0.5, 0.25, 0.9)))
def test_the_threshold_is_the_best_of_all(answerable: list[float], unanswerable: list[float], share: float) -> None:
    f1 = np.array([(hash((i, m)) % 5) / 4 for i, m in enumerate(answerable)])
    right, wrong = np.array(answerable, dtype=np.float32), np.array(unanswerable, dtype=np.float32)

    def value(threshold: float) -> float:
        return float((1 - share) * (f1 * (right <= threshold)).mean() + share * (wrong > threshold).mean())

    threshold, best = evaluate.best_threshold(right, f1, wrong, share)
    assert value(threshold) == pytest.approx(best)
    assert best == pytest.approx(max(value(t) for t in np.arange(-9.5, 10)))


@given(margins, margins)
def test_auroc_counts_pairs(negatives: list[float], positives: list[float]) -> None:
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    got = harder.auroc(np.array(negatives, dtype=np.float32), np.array(positives, dtype=np.float32))
    assert got == pytest.approx(sum(pairs) / len(pairs))

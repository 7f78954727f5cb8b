"""Tasks of classification: reading their files, rows and batches, official metrics, heads."""

from __future__ import annotations

import gzip
import lzma
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from distillation.glue import task_data, task_metrics, task_model, tasks
from distillation.glue.classification import TASKS, TextExample, task_named
from distillation.glue.task_recipe import TaskRecipe
from pocketqa.errors import DataError, OptionsError, TrainingError
from pocketqa.task_scores import SIX
from tests.tiny import tiny_base, tiny_bert, tiny_distilbert, tiny_mobilebert

REAL_COUNTS = {
    "cola": (8551, 1043), "sst2": (67349, 872), "mrpc": (3668, 408), "stsb": (5749, 1500), "rte": (2490, 277), "wnli": (635, 71),
}  # fmt: skip


def write(path: Path, *rows: tuple[str, ...]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ---- files


def test_tab_separated_files_have_no_quoting(tmp_path: Path) -> None:
    write(tmp_path / "dev.tsv", ("sentence1", "sentence2", "label"), ('He said "no .', '" Yes', "1"), ("a", "b", "0"))
    found = tasks.load_examples(str(tmp_path), TASKS["mrpc"], "dev")
    assert found == [TextExample('He said "no .', '" Yes', 1.0), TextExample("a", "b", 0.0)]


def test_csv_files_are_quoted_and_may_be_compressed(tmp_path: Path) -> None:
    text = 'text,label\n"He said ""no"",\nand left",1\nplain,neg\n'
    (tmp_path / "test.full.csv.xz").write_bytes(lzma.compress(text.encode()))
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress(text.encode()))
    for split in ("test", "train"):
        found = tasks.load_examples(str(tmp_path), TASKS["imdb"], split)
        assert found == [TextExample('He said "no",\nand left', None, 1.0), TextExample("plain", None, 0.0)]


@pytest.mark.parametrize(
    ("task", "header", "row", "expected"),
    [
        ("mnli", ("index", "sentence1", "sentence2", "gold_label"), ("7", "a", "b", "contradiction"), ("a", "b", 2.0)),
        ("mnli", ("premise", "hypothesis", "label"), ("a", "b", "1"), ("a", "b", 1.0)),
        ("qqp", ("id", "question1", "question2", "is_duplicate"), ("7", "a", "b", "0"), ("a", "b", 0.0)),
        ("mrpc", ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"), ("1", "7", "8", "a", "b"), ("a", "b", 1.0)),
        ("qnli", ("index", "question", "sentence", "label"), ("7", "a", "b", "not_entailment"), ("a", "b", 1.0)),
        ("stsb", ("genre", "sentence1", "sentence2", "score"), ("news", "a", "b", "3.80"), ("a", "b", 3.8)),
        ("sst2", ("sentence", "label"), ("a", "1"), ("a", None, 1.0)),
    ],
)
def test_columns_of_the_usual_files(tmp_path: Path, task: str, header: tuple[str, ...], row: tuple[str, ...], expected: tuple[object, ...]) -> None:
    path = write(tmp_path / "dev.tsv", header, row)
    assert tasks.load_examples(str(path), TASKS[task], "dev") == [TextExample(*expected)]  # type: ignore[arg-type]


def test_files_as_glue_distributes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "CoLA" / "train.tsv", ("gj04", "1", "", "Our friends won."), ("gj04", "0", "*", "They drank the pub."))
    expected = [TextExample("Our friends won.", None, 1.0), TextExample("They drank the pub.", None, 0.0)]
    assert tasks.load_examples(str(tmp_path), TASKS["cola"], "train") == expected
    write(tmp_path / "CoLA" / "dev.tsv", ("source", "label", "mark", "sentence"), ("gj04", "1", "", "Our friends won."))
    assert tasks.load_examples(str(tmp_path), TASKS["cola"], "dev") == expected[:1]  # with a header of the same names
    whole = ("7", "8", "9", "a", "b", "1")
    write(tmp_path / "QQP" / "train.tsv", ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"), whole, ("7", "8", "9"), whole)
    assert tasks.load_examples(str(tmp_path), TASKS["qqp"], "train") == [TextExample("a", "b", 1.0)] * 2
    assert "left out 1 rows with other than 6 columns" in capsys.readouterr().err
    write(tmp_path / "SST-2" / "dev.tsv", ("sentence", "label"), ("a", "1"))
    assert tasks.load_examples(str(tmp_path), TASKS["sst2"], "dev") == [TextExample("a", None, 1.0)]


def test_a_folder_of_tasks_and_a_seeded_sample(tmp_path: Path) -> None:
    rows = [(f"text {i}", str(i % 2)) for i in range(30)]
    write(tmp_path / "cola" / "train.tsv", ("sentence", "label"), *rows)
    whole = tasks.load_examples(str(tmp_path), TASKS["cola"], "train")
    some = tasks.load_examples(str(tmp_path), TASKS["cola"], "train", limit=7, seed=1)
    assert len(whole) == 30
    assert some == [example for example in whole if example in some]
    assert len(some) == 7
    assert tasks.source_name(str(tmp_path), TASKS["cola"], "train")[0] == "cola train.tsv"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("sentence", "labels"), ("a", "1")], r"expected the columns of SST-2, found sentence, labels; missing: label or gold_label"),
        ([("text2", "label"), ("a", "1")], "missing: sentence1 or question1"),
        ([("sentence", "label"), ("a", "1", "more")], r"row 2: expected 2 columns, found 3 \(a tab-separated file has no quoting"),
        ([("sentence", "label"), ("a", "2")], r"row 2: expected a label of SST-2 \(0, 1\), found '2'"),
        ([("sentence", "label"), ("a", "-1")], "A hidden label"),
        ([("sentence", "label")], "at least one example of SST-2, found none"),
    ],
)
def test_bad_files_are_named_with_their_row(tmp_path: Path, rows: list[tuple[str, ...]], message: str) -> None:
    path = write(tmp_path / "dev.tsv", *rows)
    with pytest.raises(DataError, match=message):
        tasks.load_examples(str(path), TASKS["sst2"], "dev")


def test_bad_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected train\.tsv .*found dev\.tsv"):
        write(tmp_path / "dev.tsv", ("sentence", "label"), ("a", "1"))
        tasks.load_examples(str(tmp_path), TASKS["sst2"], "train")
    with pytest.raises(DataError, match="found nothing"):
        tasks.load_examples(str(tmp_path / "nowhere"), TASKS["sst2"], "train")
    (tmp_path / "bad.tsv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="cannot be read or decompressed"):
        tasks.load_examples(str(tmp_path / "bad.tsv.gz"), TASKS["sst2"], "train")
    for label, hint in (("x", ""), ("nan", ""), ("5.5", ""), ("-1.0", " A hidden label: this split cannot be scored or trained on.")):
        with pytest.raises(DataError, match=rf"expected a number from 0 to 5 as label of STS-B, found '{label}'\.{hint}$"):
            tasks.load_examples(str(write(tmp_path / "s.tsv", ("sentence1", "sentence2", "label"), ("a", "b", label))), TASKS["stsb"], "train")
    with pytest.raises(DataError, match="at least 1, found 0"):
        tasks.load_examples(str(tmp_path), TASKS["sst2"], "dev", limit=0)
    with pytest.raises(OptionsError, match="Expected one of the tasks cola"):
        task_named("squad")
    assert task_named("STS-B").name == "stsb"


class Rows(list[dict[str, object]]):
    """As much of a data set of the library `datasets` as is used."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


def test_data_sets_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def load_dataset(*names: str, split: str) -> Rows:
        asked.append((*names, split))
        if names[0] == "nobody/nothing":
            raise FileNotFoundError("not there")
        return Rows([{"idx": 0, "premise": "a", "hypothesis": "b", "text": "c", "label": 1}])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert tasks.load_examples("nyu-mll/glue", TASKS["mnli"], "dev_matched") == [TextExample("a", "b", 1.0)]
    assert tasks.load_examples("stanfordnlp/imdb", TASKS["imdb"], "test") == [TextExample("c", None, 1.0)]
    assert asked == [("nyu-mll/glue", "mnli", "validation_matched"), ("stanfordnlp/imdb", "test")]
    with pytest.raises(DataError, match="neither a file nor a Hub data set"):
        tasks.load_examples("nobody/nothing", TASKS["sst2"], "dev")
    assert tasks.source_name("nyu-mll/glue", TASKS["rte"], "dev")[0] == "nyu-mll/glue rte dev"


@pytest.mark.full
def test_real_files(data_folder: Path) -> None:
    for name, counts in REAL_COUNTS.items():
        for split, count in zip(("train", "dev"), counts, strict=True):
            assert len(tasks.load_examples(str(data_folder / "glue"), TASKS[name], split)) == count
    assert set(REAL_COUNTS) == set(SIX)


# ---- rows and batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("tiny") / "bert")


def test_rows_are_cut_from_the_longer_text(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, cut = task_data.encode([TextExample("a b c", "d e f g h i j k", 1.0), TextExample("a", "b", 0.0)], tokenizer, 10)
    words = [tokenizer.convert_ids_to_tokens(row.ids) for row in rows]
    assert words[0] == ["[CLS]", "a", "b", "c", "[SEP]", "d", "e", "f", "g", "[SEP]"]
    assert rows[0].second_from == 5
    assert cut == 1
    literal, _ = task_data.encode([TextExample("a [SEP] b", "c", 0.0)], tokenizer, 32)
    assert tokenizer.convert_ids_to_tokens(literal[0].ids).count("[SEP]") == 2  # a [SEP] in a text is text
    single, _ = task_data.encode([TextExample("a b", None, 0.0)], tokenizer, 10)
    assert (len(single[0].ids), single[0].second_from) == (4, 4)
    batch = task_data.to_batch([rows[0], single[0]], TASKS["rte"], tokenizer.pad_token_id)
    assert batch.mask.tolist() == [[1] * 10, [1] * 4 + [0] * 6]
    assert batch.token_types.tolist() == [[0] * 5 + [1] * 5, [0] * 10]
    assert (batch.tokens, batch.counts) == (14, {"rows": 2})
    assert batch.labels.dtype == torch.int64
    assert task_data.to_batch(rows, TASKS["stsb"], 0).labels.dtype == torch.float32


def test_a_plan_sees_every_row_once_a_pass_in_steps_of_equal_rows(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    examples = [TextExample("a " * (1 + i % 30), None, 0.0) for i in range(100)]
    rows, _ = task_data.encode(examples, tokenizer, 64)
    chosen, apart = task_data.split_rows(rows, 0.1, seed=3)
    assert sorted(chosen + apart) == list(range(100))
    assert len(apart) == 10
    recipe = TaskRecipe(epochs=2.5, batch_rows=16, batch_tokens=128, max_tokens=64)
    plan, per_epoch = task_data.make_plan(rows, chosen, recipe)
    assert (per_epoch, len(plan)) == (6, 15)
    for epoch in (plan[:6], plan[6:12]):
        seen = [index for step in epoch for piece in step for index in piece]
        assert sorted(seen) == chosen
    assert plan[:6] != plan[6:12]
    for step in plan:
        assert all(len(piece) * max(len(rows[i].ids) for i in piece) <= 2 * 128 for piece in step)  # split evenly by rows
    assert (plan, per_epoch) == task_data.make_plan(rows, chosen, recipe)
    halves, _ = task_data.make_plan(rows, chosen, TaskRecipe(epochs=1, accumulation=4, max_tokens=64))
    assert {len(step) for step in halves} == {4}


# ---- metrics


def test_official_metrics_by_hand() -> None:
    right, said = [1, 1, 1, 0, 0], [1, 1, 0, 0, 1]  # tp 2, fn 1, fp 1, tn 1
    assert task_metrics.task_metrics(TASKS["mrpc"], said, right) == {"accuracy": pytest.approx(60), "f1": pytest.approx(100 * 4 / 6)}
    assert task_metrics.task_score(TASKS["mrpc"], said, right) == pytest.approx((60 + 100 * 4 / 6) / 2)
    assert task_metrics.task_metrics(TASKS["cola"], said, right)["matthews"] == pytest.approx(100 * (2 * 1 - 1 * 1) / np.sqrt(3 * 3 * 2 * 2))
    numbers = task_metrics.task_metrics(TASKS["stsb"], [1.0, 2.0, 4.0], [1.0, 3.0, 2.0])
    assert numbers["spearman"] == pytest.approx(50)
    assert numbers["pearson"] == pytest.approx(100 * np.corrcoef([1, 2, 4], [1, 3, 2])[0, 1])
    assert task_metrics.task_metrics(TASKS["stsb"], [1.0, 1.0], [1.0, 3.0]) == {"pearson": 0.0, "spearman": 0.0}


# ---- heads


def load(source: Path, task: str, seed: int = 0, **more: object) -> tuple[Any, list[str]]:
    said: list[str] = []
    torch.manual_seed(seed)
    return task_model.load_classifier(str(source), TASKS[task], new_head=True, say=said.append, **more), said


def test_heads_of_other_tasks_are_dropped_with_a_word(tmp_path: Path, folder: Path) -> None:
    model, said = load(folder, "mnli", hidden_dropout_prob=0.3)
    assert model.config.num_labels == 3
    assert model.config.hidden_dropout_prob == 0.3
    assert model.config.id2label[2] == "contradiction"
    assert any("dropped the weights of another head: qa_outputs" in line for line in said)
    assert any('"classifier"' in line and "bert.pooler" in line for line in said)
    model, said = load(tiny_distilbert(tmp_path / "distilbert"), "stsb")
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert any("pre_classifier" in line for line in said)
    model, said = load(tiny_mobilebert(tmp_path / "mobilebert"), "rte")
    assert any("mobilebert.pooler" in line for line in said)
    model, said = load(tiny_base(tmp_path / "base"), "cola")
    assert not any("pooler" in line for line in said)  # a trained pooler is kept
    model.save_pretrained(tmp_path / "trained")
    again, said = load(tmp_path / "trained", "cola")
    assert said == []
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    for other in ("mnli", "rte"):  # three classes do not fit into two, and two of another task are others
        head, said = load(tmp_path / "trained", other, seed=1)
        assert any('"classifier"' in line for line in said)
        assert head.config.finetuning_task == other
        assert not torch.equal(head.classifier.weight[:2], model.classifier.weight)


def test_a_head_that_does_not_say_of_which_task_it_is_is_drawn_anew(tmp_path: Path) -> None:
    model, _ = load(tiny_distilbert(tmp_path / "distilbert"), "rte")
    del model.config.finetuning_task  # as in most folders of the Hub
    model.save_pretrained(tmp_path / "unsaid")
    other, said = load(tmp_path / "unsaid", "sst2", seed=1)
    assert any('"classifier", "pre_classifier"' in line for line in said)
    for head in ("classifier", "pre_classifier"):
        assert not torch.equal(getattr(other, head).weight, getattr(model, head).weight)


def test_a_teacher_with_its_classes_in_another_order_is_refused(tmp_path: Path, folder: Path) -> None:
    model, _ = load(folder, "mnli")
    model.config.finetuning_task = "MNLI"  # the name in another of the usual ways
    model.save_pretrained(tmp_path / "ours")
    task_model.load_classifier(str(tmp_path / "ours"), TASKS["mnli"], new_head=False)
    model.config.id2label = {0: "contradiction", 1: "entailment", 2: "neutral"}
    model.save_pretrained(tmp_path / "theirs")
    with pytest.raises(TrainingError, match="in another order than the data: contradiction, entailment, neutral; expected entailment, neutral"):
        task_model.load_classifier(str(tmp_path / "theirs"), TASKS["mnli"], new_head=False)
    assert any('"classifier"' in line for line in load(tmp_path / "theirs", "mnli")[1])  # as a start it gets a new head
    assert load(tmp_path / "ours", "mnli")[1] == []


def test_a_teacher_must_have_learnt_the_task(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(TrainingError, match=r"Expected a checkpoint trained on RTE, found one of no task.*--task rte"):
        task_model.load_classifier(str(folder), TASKS["rte"], new_head=False)
    model, _ = load(folder, "cola")
    model.save_pretrained(tmp_path / "cola")
    with pytest.raises(TrainingError, match="trained on RTE, found one of cola"):
        task_model.load_classifier(str(tmp_path / "cola"), TASKS["rte"], new_head=False)


def test_predictions_do_not_depend_on_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows, _ = task_data.encode([TextExample("a " * (1 + i % 7), "b c", 0.0) for i in range(9)], tokenizer, 32)
    model, _ = load(folder, "rte")
    model.train()
    together = task_model.predict(model, rows, TASKS["rte"], tokenizer.pad_token_id)
    assert model.training
    monkeypatch.setattr(task_model, "PREDICT_TOKENS", 1)
    torch.testing.assert_close(task_model.predict(model, rows, TASKS["rte"], tokenizer.pad_token_id), together, atol=1e-5, rtol=1e-5)
    assert task_model.predictions_of(together, TASKS["rte"]).tolist() == together.argmax(dim=1).tolist()
    assert task_model.predictions_of(together, TASKS["stsb"]).tolist() == together[:, 0].tolist()

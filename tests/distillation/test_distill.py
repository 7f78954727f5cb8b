"""`pocketqa distill` runs whole on tiny models, each of its recipes; what it leaves, that it learns, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from transformers import AutoModelForMaskedLM

from distillation import distill, grow, pretrain
from distillation.knowledge import distill_losses
from distillation.knowledge.distill_losses import Phase, StepBatch, final_loss, loss_function, phase_at
from distillation.knowledge.distill_recipe import DistillRecipe
from distillation.knowledge.transfer import Trained, Transfer
from distillation.models.students import language_student
from distillation.text import lm
from distillation.text.corpus import Corpus, CorpusOptions, open_corpus
from distillation.text.masking import MaskedBatch, masked_batch
from distillation.text.mlm import MEASURE
from distillation.training import recipes
from pocketqa import runs
from pocketqa.errors import CorruptFolder, TrainingError, VocabularyMismatch
from pocketqa.folders import ModelFolder
from tests.tiny import SPECIAL, flip, tiny_bert, tiny_distilbert

COLOURS, THINGS = ["red", "blue", "green", "white"], ["lamp", "chair", "kettle", "coat"]
VOCABULARY = [*SPECIAL, "the", "is", "in", "and", "house", ".", *COLOURS, *THINGS]
SMALL = ["--max-tokens", "32", "--batch-tokens", "512", "--heldout-tokens", "600", "--accumulation", "1"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in which the colour settles the thing."""
    pick = random.Random(0)
    documents = []
    for _ in range(200):
        pairs = [pick.randrange(4) for _ in range(pick.randint(1, 4))]
        documents.append(" ".join(f"the {COLOURS[p]} {THINGS[p]} is in the house ." for p in pairs))
    path = tmp_path_factory.mktemp("text") / "houses.txt"
    path.write_text("\n\n".join(documents))
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, text: Path) -> Path:
    """Four layers grown from two, with a trained head."""
    folder = tmp_path_factory.mktemp("teacher")
    tiny_bert(folder / "base", vocabulary=VOCABULARY)
    command = [str(folder / "base"), "--layers", "4", "--corpus", str(text), "--out", str(folder / "teacher"), "--tokens", "2000", "--dropout", "0"]
    assert pretrain.main([*command, *SMALL]) == 0
    return folder / "teacher"


def run_distill(teacher: Path, text: Path, out: Path, *flags: str) -> dict[str, Any]:
    assert distill.main([str(teacher), "--corpus", str(text), "--out", str(out), *SMALL, *flags]) == 0
    config: dict[str, Any] = ModelFolder(out).read_manifest().config
    return config


def test_the_triple_loss_from_start_to_folder(tmp_path: Path, teacher: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs_folder = str(tmp_path / "runs")
    config = run_distill(teacher, text, tmp_path / "out", "--epochs", "8", "--run-file", runs_folder, "--evaluate-every", "60", "--log-every", "0")
    printed = capsys.readouterr()
    assert "student: teacher layers 0 2, those of the 2-layer base it was grown from" in printed.err
    assert "pocketqa finetune" in printed.err
    assert json.loads(printed.out.splitlines()[-1]) == config
    assert config["student"] == {"teacher_layers": [0, 2], "fold_token_type": True}
    assert set(config["losses"]) == {"loss", "loss_ce", "loss_mlm", "loss_cos"}
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert config["losses"]["loss"] < next(line["loss"] for line in log if "loss" in line)
    parts = config["development"]["distillation"]
    assert parts["loss"] == pytest.approx(5 * parts["loss_ce"] + 2 * parts["loss_mlm"] + parts["loss_cos"], rel=1e-3)
    assert config["development"]["loss"] == pytest.approx(parts["loss_mlm"], rel=1e-2)
    manifest = ModelFolder(tmp_path / "out").read_manifest()
    assert manifest.parent == config["teacher"] == ModelFolder(teacher).read_manifest().files["model.safetensors"]
    (run,) = runs.read_all(tmp_path / "runs").values()
    assert (run.kind, run.results["stage"]) == ("training", "distill")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert (model.config.model_type, model.config.n_layers) == ("distilbert", 2)
    assert not lm.load_or_start(str(tmp_path / "out"))[1]


def test_a_student_starts_where_it_is_told_to(tmp_path: Path, teacher: Path, text: Path) -> None:
    first = run_distill(teacher, text, tmp_path / "a", "--tokens", "600", "--teacher-layers", "1", "2", "3", "--drop-token-types")
    assert first["student"] == {"teacher_layers": [1, 2, 3], "fold_token_type": False}
    drawn = run_distill(teacher, text, tmp_path / "b", "--tokens", "600", "--random-init", "--ce-positions", "all")
    assert drawn["student"] == {"configuration": "distilbert"}
    again = run_distill(teacher, text, tmp_path / "c", "--tokens", "600", "--student", str(tmp_path / "b"))
    assert again["start"] == ModelFolder(tmp_path / "b").read_manifest().files["model.safetensors"]
    assert drawn["parameters"] == again["parameters"]


def test_a_wide_student_is_told_of_the_papers_settings(tmp_path: Path, teacher: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = ["--hidden", "768", "--heads", "2", "--intermediate", "16", "--layers", "1", "--alpha-cos", "0", "--tokens", "600"]
    run_distill(teacher, text, tmp_path / "wide", *wide)
    assert "512 tokens a step suit small models on a CPU" in capsys.readouterr().err
    run_distill(teacher, text, tmp_path / "many", *wide, "--accumulation", "128")
    (tmp_path / "mine.toml").write_text("alpha_mlm = 1.0\n")
    run_distill(teacher, text, tmp_path / "named", *wide, "--recipe", str(tmp_path / "mine.toml"))
    run_distill(teacher, text, tmp_path / "narrow", "--tokens", "600")
    assert "suit small models" not in capsys.readouterr().err


def test_one_text_is_kept_apart_for_all_seeds_and_padding_is_warned_of(
    tmp_path: Path, teacher: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--learning-rate", "1e-12", "--epochs", "1", "--no-packed", "--batch-tokens", "4096", "--checkpoint-every", "1"]
    found = [run_distill(teacher, text, tmp_path / seed, *flags, "--seed", seed)["development"] for seed in ("0", "1")]
    apart = [{**one.pop("distillation"), **one} for one in found]
    assert apart[0] == pytest.approx(apart[1], rel=1e-4)  # of what is one and the same model
    ours, theirs = (ModelFolder(folder).read_manifest() for folder in (next((tmp_path / "1").glob("checkpoint-*")), tmp_path / "1"))
    assert (ours.seed, ours.parent) == (theirs.seed, theirs.parent) == (1, ours.parent)
    assert "warning: more than 5 % of the positions are padding; raise --batch-tokens or leave --packed on" in capsys.readouterr().err


def test_two_teachers(tmp_path: Path, teacher: Path, text: Path) -> None:
    student = run_distill(teacher, text, tmp_path / "a", "--tokens", "600")
    command = [str(teacher), str(tmp_path / "a"), "--corpus", str(text), "--out", str(tmp_path / "b"), "--tokens", "600", *SMALL]
    assert distill.main(command) == 0
    config = ModelFolder(tmp_path / "b").read_manifest().config
    small = run_distill(tmp_path / "a", text, tmp_path / "c", "--tokens", "600")
    assert [one["student"]["fold_token_type"] for one in (config, small)] == [True, False]  # a DistilBERT has no token types
    with pytest.raises(TrainingError, match=r"Expected a BERT for --drop-token-types, found DistilBertForMaskedLM in .*a\. Leave the flag out"):
        run_distill(tmp_path / "a", text, tmp_path / "d", "--tokens", "600", "--drop-token-types")
    assert config["teacher"] == [student["teacher"], ModelFolder(tmp_path / "a").read_manifest().files["model.safetensors"]]


def test_tinybert_leaves_an_encoder(tmp_path: Path, teacher: Path, text: Path) -> None:
    config = run_distill(teacher, text, tmp_path / "out", "--recipe", "tinybert_general", "--layers", "2", "--hidden", "16", "--epochs", "1")
    assert set(config["losses"]) == {"loss", "loss_hidden", "loss_attention"}
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert not any("vocab" in name or "projection" in name for name in names)
    with pytest.raises(TrainingError, match="no trained language head"):
        lm.load_language_model(str(tmp_path / "out"))


@pytest.mark.parametrize(
    "flags",
    [
        ["--student", "{headless}", "--alpha-ce", "0", "--alpha-mlm", "0", "--alpha-cos", "0"],
        ["--random-init", "--knowledge", "joint", "--transfer-share", "1"],
        ["--bottleneck", "8", "--knowledge", "progressive", "--transfer-share", "1"],
    ],
    ids=["a student without one", "drawn, no step for it", "drawn, MobileBERT"],
)
def test_a_language_head_that_nothing_trained_is_not_left(tmp_path: Path, teacher: Path, text: Path, flags: list[str]) -> None:
    headless = str(tiny_distilbert(tmp_path / "headless", vocabulary=VOCABULARY))
    words = [flag.format(headless=headless) for flag in flags]
    config = run_distill(teacher, text, tmp_path / "out", *words, "--alpha-hidden", "1", "--tokens", "1500", "--checkpoint-every", "1")
    assert set(config["development"]) == {"distillation"}  # a random head has no perplexity
    (*_, numbered) = (tmp_path / "out").glob("checkpoint-*")
    for folder in (tmp_path / "out", numbered):
        with pytest.raises(TrainingError, match="no trained language head"):
            lm.load_language_model(str(folder))


def test_a_trained_head_stays_where_no_loss_reaches_it(tmp_path: Path, teacher: Path, text: Path) -> None:
    flags = ["--student", str(teacher), "--recipe", "tinybert_general", "--epochs", "1"]
    config = run_distill(teacher, text, tmp_path / "out", *flags, "--learning-rate", "1e-9", "--dropout", "0", "--attention-dropout", "0")
    assert config["development"]["loss"] == pytest.approx(ModelFolder(teacher).read_manifest().config["development"]["loss"], rel=0.05)
    assert not lm.load_or_start(str(tmp_path / "out"))[1]


@pytest.mark.parametrize("knowledge", ["auxiliary", "joint", "progressive"])
def test_mobilebert(tmp_path: Path, teacher: Path, text: Path, knowledge: str) -> None:
    made = ["--inverted-bottleneck", "32", "--hidden", "16", "--heads", "2", "--layers", "2", "--out", str(tmp_path / "ib")]
    assert grow.main([str(teacher), *made]) == 0
    assert pretrain.main([str(tmp_path / "ib"), "--corpus", str(text), "--out", str(tmp_path / "wide"), "--tokens", "600", *SMALL]) == 0
    flags = ["--layers", "2", "--bottleneck", "8", "--recipe", f"mobilebert_{knowledge}", "--tokens", "4000"]
    config = run_distill(tmp_path / "wide", text, tmp_path / "out", *flags)
    assert (config["student"], config["recipe"]["knowledge"]) == ({"configuration": "mobilebert"}, knowledge)
    wanted = {"loss", "loss_ce", "loss_mlm", "loss_hidden", "loss_attention_kl", "loss_mean", "loss_variance"}
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert wanted <= {name for line in log for name in line}
    assert wanted == set(config["development"]["distillation"])
    if knowledge != "auxiliary":
        assert (config["losses"]["loss_hidden"], config["losses"]["loss_ce"] > 0) == (0.0, True)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, teacher: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--hidden", "16", "--alpha-cos", "0", "--alpha-hidden", "1", "--knowledge", "progressive", "--transfer-share", "0.5", "--dropout", "0.1"]
    command = [str(teacher), "--corpus", str(text), "--tokens", "4000", *SMALL, *flags]
    assert distill.main([*command, "--out", str(tmp_path / "straight")]) == 0

    def stops(corpus: Corpus, indices: Sequence[int], step: int, recipe: DistillRecipe) -> MaskedBatch:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return masked_batch(corpus, indices, step, recipe)

    with monkeypatch.context() as patch:
        patch.setattr(distill, "masked_batch", stops)
        assert distill.main([*command, "--out", str(tmp_path / "resumed")]) == 143
    edited, other = tmp_path / "edited.txt", tmp_path / "other"
    edited.write_text(text.read_text().replace("red", "blue", 1))
    shutil.copytree(teacher, other)
    flip(other / "model.safetensors")
    (other / "manifest.json").unlink()  # which would name the change
    for changed in (
        [*command, "--learning-rate", "1e-5"],
        [*command, "--corpus", str(edited)],
        [*command, "--heads", "4"],
        [str(other), *command[1:]],
    ):
        with pytest.raises(TrainingError, match="other data, options or starting weights"):
            distill.main([*changed, "--out", str(tmp_path / "resumed")])
    assert distill.main([*command, "--out", str(tmp_path / "resumed")]) == 0
    straight, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "resumed"))
    assert straight.keys() == resumed.keys()
    assert all((straight[name] == resumed[name]).all() for name in straight)


def batch_of(teacher: Path, text: Path, cache: Path, step: int = 0) -> StepBatch:
    corpus = open_corpus([str(text)], teacher, CorpusOptions(max_tokens=32, packed=False), cache)
    return StepBatch(masked_batch(corpus, [0, 1, 2, 3], step, DistillRecipe()), step)


@pytest.mark.parametrize("positions", ["masked", "all"])
def test_the_loss_against_the_librarys_logits(tmp_path: Path, teacher: Path, text: Path, positions: str) -> None:
    big = lm.load_language_model(str(teacher)).eval()
    small = language_student(big, [0, 2]).eval()
    recipe = DistillRecipe(ce_positions=positions)
    batch = batch_of(teacher, text, tmp_path)
    terms = loss_function(Trained(small, Transfer(small.config, big.config, recipe)), [big], recipe, 10)(batch, batch.counts)
    inputs = {"input_ids": batch.text.ids, "attention_mask": batch.text.mask}
    with torch.no_grad():
        ours, theirs = (model(**inputs, output_hidden_states=True) for model in (small, big))
    kept = batch.text.mask.bool()
    p, q = (torch.softmax(out.logits.double() / 2, dim=-1) for out in (theirs, ours))
    kl = (p * (p / q).log()).sum(dim=-1) * 4  # (B, T)
    at_masks = kl.flatten()[batch.text.targets]
    ce = float(at_masks.mean() if positions == "masked" else kl[kept].mean())
    mlm = float(F.cross_entropy(ours.logits.flatten(0, 1)[batch.text.targets], batch.text.labels))
    a, b = (out.hidden_states[-1][kept] for out in (ours, theirs))
    cos = float((1 - (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).mean())
    assert {name: float(value) for name, value in terms.parts.items()} == pytest.approx(
        {"loss": 5 * ce + 2 * mlm + cos, "loss_ce": ce, "loss_mlm": mlm, "loss_cos": cos}, rel=1e-4
    )


def test_what_no_loss_needs_is_not_computed(tmp_path: Path, teacher: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    big = lm.load_language_model(str(teacher)).eval()
    small = language_student(big, [0, 2]).eval()
    calls: list[int] = []

    def counted(model: Any, rows: torch.Tensor) -> torch.Tensor:
        calls.append(len(rows))
        return lm.vocabulary_logits(model, rows)

    monkeypatch.setattr(distill_losses, "vocabulary_logits", counted)
    batch = batch_of(teacher, text, tmp_path)
    mlm_alone, cosine_alone = DistillRecipe(alpha_ce=0.0, alpha_cos=0.0), DistillRecipe(alpha_ce=0.0, alpha_mlm=0.0)
    for recipe, expected in ((mlm_alone, 1), (cosine_alone, 0), (DistillRecipe(), 2)):
        calls.clear()
        loss_function(Trained(small, Transfer(small.config, big.config, recipe)), [big], recipe, 10)(batch, batch.counts)
        assert calls == [len(batch.text.targets)] * expected


def test_phases() -> None:
    joint = DistillRecipe(alpha_hidden=1.0, knowledge="joint", transfer_share=0.5)
    assert [phase_at(step, 4, joint, [0, 1]) for step in range(4)] == [Phase(distillation=False)] * 2 + [Phase(transfer=False)] * 2
    progressive = dataclasses.replace(joint, knowledge="progressive")
    layers = [phase_at(step, 8, progressive, [0, 1]).layers for step in range(8)]
    assert layers == [(0,), (0,), (1,), (1,), None, None, None, None]
    assert phase_at(MEASURE, 8, progressive, [0, 1]) == Phase()


def test_the_best_checkpoint_is_that_of_the_losses_a_run_ends_with() -> None:
    parts = {"loss": 90.0, "loss_ce": 2.0, "loss_mlm": 3.0, "loss_hidden": 80.0}
    joint = DistillRecipe(alpha_ce=0.5, alpha_mlm=0.5, alpha_cos=0.0, alpha_hidden=1.0, knowledge="joint", transfer_share=0.5)
    assert final_loss(parts, joint) == 2.5
    assert final_loss(parts, dataclasses.replace(joint, transfer_share=1.0)) == 90.0
    assert final_loss(parts, DistillRecipe(alpha_hidden=1.0)) == 90.0


def test_progressive_transfer_freezes_what_lies_below(tmp_path: Path, teacher: Path, text: Path) -> None:
    big = lm.load_language_model(str(teacher)).eval()
    small = language_student(big, [0, 3])
    recipe = DistillRecipe(alpha_hidden=1.0, alpha_attention=1.0, knowledge="progressive", transfer_share=1.0)

    def touched(step: int, **changes: Any) -> set[str]:
        embedded = changes.pop("embedded", True)
        changed = dataclasses.replace(recipe, **changes)
        loss_of = loss_function(Trained(small, Transfer(small.config, big.config, changed), embedded=embedded), [big], changed, 4)
        batch = batch_of(teacher, text, tmp_path, step)
        small.zero_grad(set_to_none=True)
        loss_of(batch, batch.counts).total.backward()
        named = [name for name, parameter in small.named_parameters() if parameter.grad is not None]
        return {".".join(name.split(".")[1:4]) if ".layer." in name else name.split(".")[1] for name in named}

    assert touched(0) == {"embeddings", "transformer.layer.0"}
    assert touched(3) == {"transformer.layer.1"}
    assert touched(0, hidden_embeddings=False) == {"transformer.layer.0"}  # MobileBERT's: copied embeddings stay while layers learn
    assert touched(0, hidden_embeddings=False, knowledge="joint") == {"transformer.layer.0", "transformer.layer.1"}
    assert "embeddings" in touched(0, hidden_embeddings=False, knowledge="auxiliary", transfer_share=0.0)
    assert touched(0, hidden_embeddings=False, embedded=False) == {"embeddings", "transformer.layer.0"}  # drawn at random


def test_what_does_not_fit_is_refused(tmp_path: Path, teacher: Path, text: Path) -> None:
    common = ["--corpus", str(text), "--out", str(tmp_path / "out"), *SMALL]
    bare = tiny_bert(tmp_path / "bare", vocabulary=VOCABULARY)
    with pytest.raises(TrainingError, match=r"no trained language head.*pocketqa pretrain"):
        distill.main([str(bare), *common])
    with pytest.raises(TrainingError, match="A student of 5 layers cannot start from a teacher of 4"):
        distill.main([str(teacher), *common, "--layers", "5"])
    with pytest.raises(TrainingError, match=r"needs one hidden size, found 16 and 32.*--alpha-cos 0"):
        distill.main([str(teacher), *common, "--hidden", "16"])
    with pytest.raises(TrainingError, match=r"need one size, found 16 and 32"):
        distill.main([str(teacher), *common, "--hidden", "16", "--alpha-cos", "0", "--alpha-hidden", "1", "--no-projection"])
    with pytest.raises(TrainingError, match=r"cannot be run: --layer-map needs a loss between layers"):
        distill.main([str(teacher), *common, "--layer-map", "1,3"])
    for ways in (["--random-init"], ["--hidden", "16"], ["--student", str(teacher)]):
        with pytest.raises(TrainingError, match="--drop-token-types is for layers that are copied; it cannot be combined with"):
            distill.main([str(teacher), *common, "--drop-token-types", *ways])
    with pytest.raises(TrainingError, match="--student is whole"):
        distill.main([str(teacher), *common, "--student", str(teacher), "--layers", "2"])
    other = tiny_bert(tmp_path / "other", vocabulary=[*VOCABULARY[:-1], "sofa"])
    assert pretrain.main([str(other), "--corpus", str(text), "--out", str(tmp_path / "other-mlm"), "--tokens", "600", *SMALL]) == 0
    with pytest.raises(VocabularyMismatch, match="Expected one vocabulary, found two"):
        distill.main([str(teacher), str(tmp_path / "other-mlm"), *common])
    more = tiny_bert(tmp_path / "more", vocabulary=[*VOCABULARY, "sofa"])
    assert pretrain.main([str(more), "--corpus", str(text), "--out", str(tmp_path / "more-mlm"), "--tokens", "600", *SMALL]) == 0
    with pytest.raises(VocabularyMismatch, match="entries of the vocabulary"):
        distill.main([str(teacher), str(tmp_path / "more-mlm"), *common])


def test_a_damaged_teacher_is_refused(tmp_path: Path, teacher: Path, text: Path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    flip(tmp_path / "teacher" / "model.safetensors")
    common = [str(tmp_path / "teacher"), "--corpus", str(text), "--out", str(tmp_path / "out"), *SMALL]
    for command in ([*common, "--tokens", "600"], [str(teacher), "--student", *common]):
        with pytest.raises(CorruptFolder, match=r"teacher/model\.safetensors differs from what was saved"):
            distill.main(command)
    assert not (tmp_path / "out.run").exists()


def test_recipes_that_make_no_sense() -> None:
    with pytest.raises(TrainingError, match=r"every weight is 0.*"):
        recipes.resolve(DistillRecipe, None, {"alpha_ce": 0.0, "alpha_mlm": 0.0, "alpha_cos": 0.0})
    with pytest.raises(TrainingError, match="--knowledge joint needs"):
        recipes.resolve(DistillRecipe, None, {"knowledge": "joint"})
    with pytest.raises(TrainingError, match="--transfer-share needs"):
        recipes.resolve(DistillRecipe, None, {"transfer_share": 0.5})
    alone = {"alpha_ce": 0.0, "alpha_mlm": 0.0, "alpha_cos": 0.0, "alpha_hidden": 1.0, "knowledge": "progressive"}
    with pytest.raises(TrainingError, match=r"--knowledge progressive leaves no loss for the steps after --transfer-share 0\.5; set it to 1"):
        recipes.resolve(DistillRecipe, None, {**alone, "transfer_share": 0.5})
    assert recipes.resolve(DistillRecipe, None, {**alone, "transfer_share": 1.0}).problems() == []


def test_the_papers_preset() -> None:
    recipe = recipes.resolve(DistillRecipe, "distilbert_paper", {})
    assert (recipe.alpha_ce, recipe.alpha_mlm, recipe.alpha_cos, recipe.temperature, recipe.ce_positions) == (5.0, 2.0, 1.0, 2.0, "all")
    assert recipe.batch_tokens // recipe.max_tokens * recipe.accumulation == 4000  # "up to 4K examples"

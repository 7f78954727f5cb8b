"""`pocketqa pretrain` runs whole on tiny models: what it leaves, that it learns, that it resumes, what it refuses."""

from __future__ import annotations

import hashlib
import json
import math
import random
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertModel

from distillation import grow, pretrain
from distillation.text import lm, mlm
from distillation.text.corpus import Corpus, CorpusOptions, open_corpus
from distillation.text.masking import MaskedBatch, masked_batch
from distillation.text.pretrain_recipe import PretrainRecipe
from distillation.text.text_training import text_identity
from distillation.training.checkpoints import grown_from
from distillation.training.recipes import settings_of
from pocketqa.errors import DataError, TrainingError
from pocketqa.folders import ModelFolder
from tests.tiny import SPECIAL, tiny_base, tiny_bert, tiny_distilbert

COLOURS, THINGS = ["red", "blue", "green", "white"], ["lamp", "chair", "kettle", "coat"]
VOCABULARY = [*SPECIAL, "the", "is", "in", "and", "house", ".", *COLOURS, *THINGS]
SMALL = ["--max-tokens", "32", "--batch-tokens", "512", "--dropout", "0", "--heldout-tokens", "600"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sentences in which the colour settles the thing, so that a model can learn to fill a gap."""
    pick = random.Random(0)
    documents = []
    for _ in range(300):
        pairs = [pick.randrange(4) for _ in range(pick.randint(1, 4))]
        documents.append(" ".join(f"the {COLOURS[p]} {THINGS[p]} is in the house ." for p in pairs))
    path = tmp_path_factory.mktemp("text") / "houses.txt"
    path.write_text("\n\n".join(documents))
    return path


def summary_of(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    document: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return document


def test_a_base_without_a_head_gets_one_that_predicts(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_base(tmp_path / "base", vocabulary=VOCABULARY)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    BertModel(config).save_pretrained(base)  # with the small weights of a real start, which learn faster than the tests' usual ones
    sentences = tmp_path / "houses.txt"
    sentences.write_text(text.read_text().replace(" . ", " .\n\n"))
    command = [str(base), "--corpus", str(sentences), "--out", str(tmp_path / "out"), "--epochs", "25", "--learning-rate", "1e-2", *SMALL]
    assert pretrain.main([*command, "--no-packed", "--min-tokens", "3"]) == 0
    captured = capsys.readouterr()
    summary = json.loads(captured.out.splitlines()[-1])
    assert summary["development"]["loss"] < 1.0  # 2.25 for a guess by frequency
    assert summary["development"]["perplexity"] == pytest.approx(math.exp(summary["development"]["loss"]))
    assert "padding waste 0." in captured.err
    assert "pocketqa distill" in captured.err
    manifest = ModelFolder(tmp_path / "out").read_manifest()
    assert manifest.config["development"] == summary["development"]
    assert manifest.config["data"] == [{"file": "houses.txt", **{key: summary["data"][0][key] for key in ("sha256", "tokens", "documents")}}]
    assert (manifest.kind, manifest.config["step"], manifest.config["grown"]) == ("checkpoint", "pretrain", None)
    assert not (tmp_path / "out.run").exists()
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(tmp_path / "out"), AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer("the green [MASK] is in the house .", return_tensors="pt")
    with torch.no_grad():
        best = int(model(**inputs).logits[0, 3].argmax())
    assert tokenizer.convert_ids_to_tokens(best) in THINGS  # which of them, 25 passes teach on some processors only: sums round otherwise
    assert lm.load_or_start(str(tmp_path / "out"))[1] == []


def test_growing_on_the_way_equals_growing_first(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_bert(tmp_path / "base", vocabulary=VOCABULARY)
    assert grow.main([str(base), "--layers", "4", "--out", str(tmp_path / "grown")]) == 0
    common = ["--corpus", str(text), "--tokens", "2000", *SMALL]
    assert pretrain.main([str(base), "--layers", "4", *common, "--checkpoint-every", "1", "--keep", "1", "--out", str(tmp_path / "a")]) == 0
    (numbered,) = (tmp_path / "a").glob("checkpoint-*")
    assert grown_from(str(numbered)) == grown_from(str(tmp_path / "a"))
    first = summary_of(capsys)
    assert pretrain.main([str(tmp_path / "grown"), *common, "--out", str(tmp_path / "b")]) == 0
    second = summary_of(capsys)
    assert first["grown"] == second["grown"] == {"from_layers": 2, "layers": 4, "insert": "copy"}
    assert first["losses"] == second["losses"]
    a, b = load_file(tmp_path / "a" / "model.safetensors"), load_file(tmp_path / "b" / "model.safetensors")
    assert a.keys() == b.keys()
    assert all((a[name] == b[name]).all() for name in a)
    assert first["tokens"] == pytest.approx(2000, rel=0.3)


def test_a_student_trains_on_without_a_new_head(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tiny_distilbert(tmp_path / "base", vocabulary=VOCABULARY)
    common = ["--corpus", str(text), "--tokens", "1500", *SMALL]
    assert pretrain.main([str(base), *common, "--out", str(tmp_path / "first")]) == 0
    assert pretrain.main([str(tmp_path / "first"), *common, "--no-packed", "--count-smoothing", "0.7", "--out", str(tmp_path / "second")]) == 0
    err = capsys.readouterr().err
    assert "one document each" in err
    assert ModelFolder(tmp_path / "second").read_manifest().parent == ModelFolder(tmp_path / "first").read_manifest().files["model.safetensors"]


def test_one_text_is_kept_apart_for_all_seeds(tmp_path: Path, text: Path) -> None:
    base = tiny_bert(tmp_path / "base", vocabulary=VOCABULARY)
    common = ["--corpus", str(text), "--tokens", "600", *SMALL]
    assert pretrain.main([str(base), *common, "--out", str(tmp_path / "headed")]) == 0
    found = []
    for seed in ("0", "1"):
        out = tmp_path / seed
        ways = ["--seed", seed, "--learning-rate", "1e-12", "--checkpoint-every", "1"]
        assert pretrain.main([str(tmp_path / "headed"), *common, *ways, "--out", str(out)]) == 0
        finished = ModelFolder(out).read_manifest()
        (first, *_) = out.glob("checkpoint-*")
        numbered = ModelFolder(first).read_manifest()
        assert (numbered.seed, numbered.parent) == (finished.seed, finished.parent) == (int(seed), numbered.parent)
        found.append(finished.config["development"])
    assert found[0] == pytest.approx(found[1], rel=1e-5)  # of what is one and the same model


def test_a_run_that_kept_another_text_apart_is_told_from_one_of_today(tmp_path: Path, text: Path) -> None:
    corpus = open_corpus([str(text)], tiny_bert(tmp_path / "base", vocabulary=VOCABULARY), CorpusOptions(max_tokens=32), tmp_path / "cache")
    same = []
    for recipe in (PretrainRecipe(), PretrainRecipe(seed=1), PretrainRecipe(seed=1, heldout_tokens=0)):
        before = json.dumps([settings_of(recipe), corpus.key, "start"], sort_keys=True)
        same.append(text_identity(recipe, corpus, "start") == hashlib.sha256(before.encode()).hexdigest())
    assert same == [True, False, True]


def test_a_stopped_run_goes_on_bit_for_bit_with_the_same_words_alone(tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base(tmp_path / "base", vocabulary=VOCABULARY)
    flags = ["--layers", "4", "--corpus", str(text), "--tokens", "4000", *SMALL, "--dropout", "0.1"]
    assert pretrain.main([str(base), *flags, "--out", str(tmp_path / "straight")]) == 0
    command = [str(base), *flags, "--out", str(tmp_path / "out")]

    def stops(corpus: Corpus, indices: Sequence[int], step: int, recipe: PretrainRecipe) -> MaskedBatch:
        if step == 3:
            signal.raise_signal(signal.SIGTERM)
        return masked_batch(corpus, indices, step, recipe)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "masked_batch", stops)
        assert pretrain.main(command) == 143
    edited, other = tmp_path / "edited.txt", tiny_base(tmp_path / "other", vocabulary=VOCABULARY, seed=1)
    edited.write_text(text.read_text().replace("red", "blue", 1))
    for changed in (
        [*command, "--learning-rate", "1e-5"],
        [*command, "--corpus", str(edited)],
        [*command, "--insert", "quiet"],
        [str(other), *command[1:]],
    ):
        with pytest.raises(TrainingError, match="other data, options or starting weights"):
            pretrain.main(changed)
    assert pretrain.main(command) == 0
    straight, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("straight", "out"))
    assert straight.keys() == resumed.keys()
    assert all((straight[name] == resumed[name]).all() for name in straight)


def test_the_loss_is_the_librarys_at_the_masked_positions(tmp_path: Path, text: Path) -> None:
    model = lm.load_language_model(str(tiny_bert(tmp_path / "base", vocabulary=VOCABULARY)), new_head=True).eval()
    corpus = open_corpus([str(text)], tmp_path / "base", CorpusOptions(max_tokens=32, packed=False), tmp_path / "cache")
    batch = masked_batch(corpus, [0, 3, 4], 0, PretrainRecipe())
    labels = torch.full(batch.ids.shape, -100).flatten()
    labels[batch.targets] = batch.labels
    expected = model(input_ids=batch.ids, attention_mask=batch.mask, labels=labels.reshape(batch.ids.shape)).loss
    terms = mlm.loss_function(model)(batch, batch.counts)
    assert terms.total.item() == pytest.approx(expected.item(), abs=1e-5)
    twice = mlm.loss_function(model)(batch, {name: 2 * value for name, value in batch.counts.items()})
    assert twice.total.item() == pytest.approx(expected.item() / 2, abs=1e-5)


def test_the_measurement_is_a_mean_over_all_masked_tokens(tmp_path: Path, text: Path) -> None:
    model = lm.load_language_model(str(tiny_bert(tmp_path / "base", vocabulary=VOCABULARY)), new_head=True)
    corpus = open_corpus([str(text)], tmp_path / "base", CorpusOptions(max_tokens=32), tmp_path / "cache")
    recipe = PretrainRecipe(precision="fp32", batch_tokens=128, max_tokens=32)
    rows = np.arange(10)
    model.train()
    measured = mlm.measure(model, corpus, rows, recipe)
    assert model.training
    assert measured == mlm.measure(model, corpus, rows, recipe)
    model.eval()
    batch = masked_batch(corpus, list(range(10)), mlm.MEASURE, recipe)
    with torch.no_grad():
        logits = model(input_ids=batch.ids, attention_mask=batch.mask).logits.flatten(0, 1)[batch.targets]
    assert measured.loss == pytest.approx(float(F.cross_entropy(logits, batch.labels)), abs=1e-5)
    assert measured.accuracy == pytest.approx(float((logits.argmax(-1) == batch.labels).float().mean()))
    assert measured.masked == len(batch.labels)


def test_a_new_bias_starts_at_the_frequencies() -> None:
    bias = torch.nn.Parameter(torch.zeros(6))
    mlm.start_bias(bias, np.array([50, 0, 9, 89]), special=[0])
    expected = np.log(np.array([1, 1, 10, 90]) / 102)
    assert bias[:4].tolist() == pytest.approx(expected.tolist())
    assert bias[4:].tolist() == pytest.approx([float(expected.min())] * 2)


def test_what_does_not_fit_is_refused(tmp_path: Path, text: Path) -> None:
    base = tiny_base(tmp_path / "base", vocabulary=VOCABULARY)
    out = ["--out", str(tmp_path / "out")]
    with pytest.raises(TrainingError, match=r"Expected 600 positions in .*base, .*found 512\. Lower --max-tokens"):
        pretrain.main([str(base), "--corpus", str(text), *out, "--max-tokens", "600"])
    with pytest.raises(TrainingError, match="grows to a multiple of 2"):
        pretrain.main([str(base), "--corpus", str(text), *out, "--layers", "3"])
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="found no token"):
        pretrain.main([str(base), "--corpus", str(tmp_path / "empty.txt"), *out])
    with pytest.raises(TrainingError, match="is not empty"):
        pretrain.main([str(base), "--corpus", str(text), "--out", str(base)])
    small = tiny_base(tmp_path / "small", vocabulary=VOCABULARY[:-2])
    for name in ("config.json", "model.safetensors"):
        (base / name).write_bytes((small / name).read_bytes())
    with pytest.raises(TrainingError, match=r"tokenizer of .* has 19 entries, the model .*base only 17 embeddings"):
        pretrain.main([str(base), "--corpus", str(text), *out])
    assert not (tmp_path / "out").exists()

"""Masks: their shares, that they depend on seed, step and row alone, and count smoothing against its definition."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from distillation.text.corpus import Corpus, CorpusOptions, open_corpus
from distillation.text.masking import mask_row, masked_batch, ordinary_ids, sampling_weights
from distillation.text.pretrain_recipe import PretrainRecipe
from distillation.training.recipes import resolve
from pocketqa.errors import TrainingError
from tests.tiny import SPECIAL, tiny_bert

WORDS = [f"w{number}" for number in range(40)]
MASK = SPECIAL.index("[MASK]")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    model = tiny_bert(folder / "model", vocabulary=[*SPECIAL, *WORDS])
    random = np.random.default_rng(0)
    documents = [" ".join(f"w{n}" for n in random.integers(40, size=length)) for length in random.integers(10, 90, size=300)]
    (folder / "a.txt").write_text("\n\n".join(documents))
    return open_corpus([str(folder / "a.txt")], model, CorpusOptions(max_tokens=64, packed=False), folder / "cache")


def test_shares_are_those_of_the_recipe(corpus: Corpus) -> None:
    batch = masked_batch(corpus, range(len(corpus)), 0, PretrainRecipe())
    original = np.concatenate([corpus.row(index) for index in range(len(corpus))])
    ordinary = int((original >= len(SPECIAL)).sum())
    assert batch.tokens == len(original) == int(batch.mask.sum())
    assert len(batch.targets) / ordinary == pytest.approx(0.15, abs=0.005)
    seen = batch.ids.flatten()[batch.targets]
    assert float((seen == MASK).float().mean()) == pytest.approx(0.8, abs=0.03)
    assert float((seen == batch.labels).float().mean()) == pytest.approx(0.1 + 0.1 / 40, abs=0.03)
    assert int(batch.labels.min()) >= len(SPECIAL)
    assert batch.counts == {"masked": len(batch.targets), "tokens": batch.tokens, "rows": len(corpus)}


def test_everything_else_stays_as_it_was(corpus: Corpus) -> None:
    batch = masked_batch(corpus, [3, 5, 8], 7, PretrainRecipe())
    restored = batch.ids.flatten().clone()
    restored[batch.targets] = batch.labels
    for number, index in enumerate((3, 5, 8)):
        row = corpus.row(index)
        assert restored.reshape(batch.ids.shape)[number, : len(row)].tolist() == row.tolist()
        assert batch.mask[number].tolist() == [1] * len(row) + [0] * (batch.ids.shape[1] - len(row))
        assert (batch.ids[number, len(row) :] == corpus.vocabulary.pad_id).all()


def test_a_mask_depends_on_seed_step_and_row_alone(corpus: Corpus) -> None:
    def seen(indices: list[int], step: int, seed: int = 0) -> list[int]:
        batch = masked_batch(corpus, indices, step, PretrainRecipe(seed=seed))
        at = indices.index(4)
        return batch.ids[at, : corpus.lengths[4]].tolist()

    assert seen([4, 9], 2) == seen([1, 2, 4], 2) == seen([4], 2)
    assert seen([4], 2) != seen([4], 3)
    assert seen([4], 2) != seen([4], 2, seed=1)


def test_count_smoothing_follows_its_formula() -> None:
    recipe = dataclasses.replace(PretrainRecipe(), masked=0.01, count_smoothing=0.7)
    counts = np.array([0, 0, 0, 0, 0, 1000, 10, 100])
    vocabulary = type("V", (), {"size": 8, "special": (0, 1, 2, 3, 4)})()
    weights = sampling_weights(counts, vocabulary, 0.7)
    assert weights[:5].tolist() == [0.0] * 5
    assert weights[5:] == pytest.approx([1000**-0.7, 10**-0.7, 100**-0.7])
    row, ordinary = np.array([2, 5, 6, 7, 3]), ordinary_ids(vocabulary)
    drawn = [int(mask_row(row, weights, ordinary, 4, recipe, np.random.default_rng(seed))[0][0]) for seed in range(6000)]
    shares = np.bincount(drawn, minlength=5) / 6000
    assert shares[[0, 4]].tolist() == [0.0, 0.0]
    assert shares[1:4] == pytest.approx(weights[5:] / weights[5:].sum(), abs=0.02)


def test_a_row_without_words_has_nothing_to_predict() -> None:
    chosen, seen = mask_row(np.array([2, 1, 3]), np.zeros(8), np.array([5, 6, 7]), 4, PretrainRecipe(), np.random.default_rng(0))
    assert len(chosen) == 0
    assert seen.tolist() == [2, 1, 3]


def test_impossible_masks_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"--mask-token \(0\.9\) and --random-token \(0\.2\)"):
        resolve(PretrainRecipe, None, {"mask_token": 0.9, "random_token": 0.2})
    with pytest.raises(TrainingError, match="--masked must be above 0"):
        resolve(PretrainRecipe, None, {"masked": 0.0})


def test_the_recipe_file_of_bert_reads() -> None:
    recipe = resolve(PretrainRecipe, "pretrain_bert", {})
    assert recipe.batch_tokens * recipe.accumulation == 256 * 512
    assert (recipe.learning_rate, recipe.masked, recipe.beta2) == (1e-4, 0.15, 0.999)

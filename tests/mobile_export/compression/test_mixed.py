"""The search for a scheme for each weight: its parts by hand, and the whole on a model whose best combination is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mobile_export.bundle import Bundle, open_bundle
from mobile_export.compression import mixed
from mobile_export.compression.compression import compress_bundle, compressible
from mobile_export.compression.mixed import Outcome, SearchOptions, Trials, candidates, divergence, search
from mobile_export.interpreter.interpreter import Interpreter
from mobile_export.interpreter.mlprogram import open_program
from mobile_export.targets import find_target
from mobile_export.verification import verification
from pocketqa import squad, statistics
from pocketqa.types import QAExample, SpanLogits
from tests.mobile_export.bundles import InProcess, answer_itself, bundle_of, copy_of_bundle, edit_weight, package_of
from tests.packaged import random_batch
from tests.tiny import tiny_squad

SENSITIVE = "layers_0_feed_out_weight_to_fp16"


def test_candidates_are_those_that_the_target_loads() -> None:
    assert candidates(find_target("ios16")) == ("int8", "palette6", "palette4")
    assert candidates(find_target("ios18")) == ("int8", "palette6", "int4", "palette4")


def test_the_divergence_is_that_of_pytorch() -> None:
    random = np.random.default_rng(0)
    on_passage = random.random((4, 9)) < 0.6
    on_passage[2] = False  # a window without passage tokens does not count
    logits = [SpanLogits(*random.normal(0, 2, (2, 4, 9)).astype(np.float32)) for _ in range(2)]
    expected = []
    for row in (0, 1, 3):
        for name in ("start", "end"):
            p, q = (torch.from_numpy(getattr(one, name)[row][on_passage[row]]).double().log_softmax(0) for one in logits)
            expected.append(torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum").item())
    assert divergence(logits[0], logits[1], on_passage) == pytest.approx(np.mean(expected), rel=1e-6)
    assert divergence(logits[0], logits[0], on_passage) == 0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle whose large weights have 16 values each, so that 4 bits lose nothing; all but one, whose values are many."""
    path = copy_of_bundle("distilbert", tmp_path_factory.mktemp("mixed") / "parent")
    for name in compressible(open_program(package_of(path))):
        if name != SENSITIVE:
            edit_weight(path, name, lambda values: np.copyto(values, np.round(np.clip(values, -0.9, 0.9) * 8) / 8))
    return open_bundle(path)


@pytest.fixture(scope="module")
def examples(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[QAExample]:
    file = tiny_squad(tmp_path_factory.mktemp("data") / "own.json", paragraphs=10, questions=3)
    return squad.load(answer_itself(bundle.path, file))


@pytest.fixture
def looked_for(bundle: Bundle, examples: list[QAExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    monkeypatch.setattr(mixed, "IsolatedRuntime", InProcess)
    monkeypatch.setattr(verification, "IsolatedRuntime", InProcess)
    monkeypatch.setattr(statistics, "RULE_OF_THREE", 0.0)  # few questions will do

    def run(budget: float, say: Callable[[str], None] = lambda text: None, points: int = 8) -> Outcome:
        return search(bundle, examples, SearchOptions(budget, sample=6, points=points, cache=tmp_path / "cache"), say)

    return run


def test_the_search_finds_the_known_best(bundle: Bundle, looked_for: Callable[..., Outcome], tmp_path: Path) -> None:
    outcome = looked_for(0.5)
    assert outcome.reference.scores.f1 == 100
    tame = {name: costs for name, costs in outcome.sensitivity.items() if name != SENSITIVE}
    assert all(costs["palette4"] < 1e-9 for costs in tame.values())  # 16 values in a table of 16: nothing is lost
    assert outcome.sensitivity[SENSITIVE]["palette4"] > 100 * outcome.sensitivity[SENSITIVE]["int8"] > 0
    assert outcome.selected is not None
    assert {name for name, scheme in outcome.selected.schemes.items() if scheme == "palette4"} == set(tame)
    assert outcome.selected.schemes.get(SENSITIVE, "fp16") != "palette4"
    smallest = outcome.points[-1]
    assert smallest.schemes[SENSITIVE] == "palette4" and smallest.loss.high > 0.5  # why it was not taken
    assert outcome.selected.bytes == min(point.bytes for point in outcome.points if point.loss.high < 0.5)


def test_of_few_questions_nothing_is_selected(looked_for: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RULE_OF_THREE", 300.0)
    outcome = looked_for(9.0, points=2)
    assert any(point.loss.high < 9.0 for point in outcome.points) and outcome.selected is None  # 30 of the 34 that 9 points need


def test_a_wide_budget_takes_the_smallest_of_all(looked_for: Callable[..., Outcome]) -> None:
    outcome = looked_for(101.0, points=2)
    assert outcome.selected is not None and set(outcome.selected.schemes.values()) == {"palette4"}


def test_a_trial_computes_what_the_written_package_computes(bundle: Bundle, tmp_path: Path) -> None:
    trials = Trials(bundle, SearchOptions(1.0, 1, 1, tmp_path / "cache"))
    schemes = {"words_to_fp16": "int8", SENSITIVE: "palette6"}
    made = compress_bundle(bundle, tmp_path / "made", "mixed", schemes)
    ids = random_batch(2, bundle.lengths[0]).ids
    for trial, written in zip(trials.interpreter(schemes).run(ids), Interpreter(open_program(made.package)).run(ids), strict=True):
        assert np.array_equal(trial, written)


def test_an_interrupted_search_goes_on(looked_for: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, str]] = []
    original = Trials.interpreter
    most = 7

    def counted(self: Trials, schemes: dict[str, str]) -> Interpreter:
        if len(made) == most:
            raise KeyboardInterrupt
        made.append(dict(schemes))
        return original(self, schemes)

    monkeypatch.setattr(Trials, "interpreter", counted)
    with pytest.raises(KeyboardInterrupt):
        looked_for(0.5, points=3)
    most = 1000
    first = looked_for(0.5, points=3)
    assert len({json.dumps(schemes, sort_keys=True) for schemes in made}) == len(made)  # nothing was computed twice
    made.clear()
    again = looked_for(0.5, points=3)
    assert not made and (again.points, again.selected, again.sensitivity) == (first.points, first.selected, first.sensitivity)


def test_progress_says_how_long_it_takes(looked_for: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixed, "PROGRESS_SECONDS", 0.0)
    said: list[str] = []
    looked_for(0.5, said.append, points=2)
    weights = len(compressible(open_program(package_of(bundle_of("distilbert")))))
    assert said[0].startswith(f"{weights} weights x int8, palette6, palette4: sensitivity on ")
    assert any(f"{weights * 3}/{weights * 3} " in line and "0.0 min left" in line for line in said)
    assert sum(" MB of weights: F1 " in line for line in said) == 2

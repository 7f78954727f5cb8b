"""Readers on data files: what is measured of each question, and logits kept on disk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketqa import evaluation, metrics, squad
from pocketqa.errors import DataError, EngineError, FolderError
from pocketqa.evaluation import Measured, evaluation_windows, measure, predict, read_predictions
from pocketqa.reader import Reader
from pocketqa.runtimes.cached import CachedRuntime, default_folder
from pocketqa.types import Batch, NoAnswer, QAExample, Request, RuntimeInfo, SpanLogits, SpanOptions, WindowOptions
from tests.pocketqa.little import ChosenRuntime, HashRuntime, pointing_at, reader
from tests.tiny import tiny_squad

SMALL = WindowOptions(max_tokens=96, doc_stride=64, max_question_tokens=1)


@pytest.fixture
def examples(tmp_path: Path) -> list[QAExample]:
    return squad.load(tiny_squad(tmp_path / "tiny.json", paragraphs=4, questions=3))


def equal(first: Measured, second: Measured) -> bool:
    arrays = ("gaps", "exact", "f1", "start", "end")
    return (first.texts, first.spans, first.scores) == (second.texts, second.spans, second.scores) and all(
        np.array_equal(getattr(first, name), getattr(second, name)) for name in arrays
    )


def test_measuring_gives_the_answers_of_evaluation(tmp_path: Path, examples: list[QAExample], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = reader(tmp_path)
    monkeypatch.setattr(evaluation, "CHUNK", 5)
    measured = measure(asked, examples, window_options=SMALL)
    predicted = predict(asked, examples, evaluation_windows(SMALL))
    assert measured.texts == predicted.texts
    assert measured.scores == metrics.score(predicted.texts, examples)
    for example, (source, start, end) in zip(examples, measured.spans, strict=True):
        assert (source, example.context[start:end]) == (0, measured.texts[example.id])


def test_logits_are_those_of_passage_tokens(tmp_path: Path, examples: list[QAExample]) -> None:
    asked = reader(tmp_path)
    measured = measure(asked, examples[:1], window_options=SMALL)
    encoded = asked.encode([Request(examples[0].question, (examples[0].context,))], evaluation_windows(SMALL))
    assert len(encoded.windows) > 1
    logits = asked.forward(encoded)
    expected = np.concatenate([logits.start[w, : len(window)][window.context_mask] for w, window in enumerate(encoded.windows)])
    np.testing.assert_array_equal(measured.start, expected)


def test_the_gap_is_between_the_two_best_spans(tmp_path: Path) -> None:
    """Passage a b c d with starts 5 1 0 0 and ends 0 3 2.5 0: best a..b = 8, then a..c = 7.5."""

    def logits(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        start, end = np.full(batch.shape, -9, np.float32), np.full(batch.shape, -9, np.float32)
        passage = min(4, batch.shape[1] - 4)  # [CLS] who [SEP] a b c d [SEP]
        start[:, 3 : 3 + passage], end[:, 3 : 3 + passage] = (5, 1, 0, 0)[:passage], (0, 3, 2.5, 0)[:passage]
        return start, end

    example = QAExample("1", "who", "a b c d", ())
    asked = reader(tmp_path, ChosenRuntime(logits))
    measured = measure(asked, [example])
    assert (measured.texts, measured.spans) == ({"1": "a b"}, ((0, 0, 3),))
    assert measured.gaps[0] == pytest.approx(0.5)
    alone = measure(asked, [QAExample("2", "who", "a", ())])
    assert np.isinf(alone.gaps[0])  # there is no second span


def test_no_answer_is_a_span_of_its_own(tmp_path: Path) -> None:
    def logits(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        start = np.zeros(batch.shape, np.float32)
        start[:, 0] = 9
        return start, start.copy()

    asked = reader(tmp_path, ChosenRuntime(logits), NoAnswer(trained=True))
    measured = measure(asked, [QAExample("1", "who", "a b", (), is_impossible=True)], span_options=SpanOptions(no_answer=True))
    assert measured.spans == ((-1, 0, 0),)
    assert measured.exact[0] == 1


def test_long_questions_are_let_in_whatever_the_options_say(tmp_path: Path) -> None:
    asked = reader(tmp_path)
    question = " ".join(["who"] * 80)
    measured = measure(asked, [QAExample("1", question, "the mill", ())])
    assert measured.texts["1"]
    with pytest.raises(DataError, match="The question '1' cannot be asked"):
        measure(asked, [QAExample("1", " ".join(["who"] * 257), "the mill", ())])


def test_progress_tells_rate_and_time_left(
    tmp_path: Path, examples: list[QAExample], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluation, "CHUNK", 4)
    monkeypatch.setattr(evaluation, "PROGRESS_SECONDS", -1.0)
    predict(reader(tmp_path), examples, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" questions")[0] for line in lines] == [f"little (hash fp32): {done}/12" for done in (4, 8, 12)]
    assert "a second, 0.0 min left" in lines[-1]


def test_predictions_as_other_programs_write_them(tmp_path: Path) -> None:
    path = tmp_path / "predictions.json"
    path.write_bytes(b'\xef\xbb\xbf{"1": "Ada"}')
    assert read_predictions(str(path)) == {"1": "Ada"}
    path.write_text("[" * 200_000)
    with pytest.raises(DataError, match="expected a JSON object of question id -> answer text"):
        read_predictions(str(path))


# ---- kept logits


class Failing(HashRuntime):
    """May fail after some batches."""

    def __init__(self, fail_after: int | None = None) -> None:
        super().__init__()
        self.left = fail_after

    def forward(self, batch: Batch) -> SpanLogits:
        if self.left is not None:
            if not self.left:
                raise EngineError("interrupted")
            self.left -= 1
        return super().forward(batch)


def kept(folder: Path, runtime: HashRuntime, cache: Path, identity: str = "model") -> tuple[Reader, CachedRuntime]:
    cached = CachedRuntime(runtime, cache, (identity,))
    return reader(folder, cached), cached


def test_an_interrupted_run_goes_on_and_gives_the_same_result(tmp_path: Path, examples: list[QAExample], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "CHUNK", 3)
    straight, whole = kept(tmp_path, Failing(), tmp_path / "straight")
    expected = measure(straight, examples, window_options=SMALL)
    assert equal(expected, measure(reader(tmp_path), examples, window_options=SMALL))  # as without a cache
    first, _ = kept(tmp_path, Failing(fail_after=2), tmp_path / "cache")
    with pytest.raises(EngineError, match="interrupted"):
        measure(first, examples, window_options=SMALL)
    second, cached = kept(tmp_path, Failing(), tmp_path / "cache")
    assert equal(measure(second, examples, window_options=SMALL), expected)
    assert (cached.found, cached.computed) == (2, whole.computed - 2)
    third, found = kept(tmp_path, Failing(fail_after=0), tmp_path / "cache")
    assert equal(measure(third, examples, window_options=SMALL), expected)
    assert found.seconds == cached.seconds > 0  # of what was computed before


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-9]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:40] + bytes([file.read_bytes()[40] ^ 1]) + file.read_bytes()[41:]),
        lambda file: file.write_bytes(sorted(file.parent.iterdir())[-1].read_bytes()),  # whole, but another batch's
    ],
)
def test_a_damaged_file_is_computed_again_and_said(
    tmp_path: Path, examples: list[QAExample], damage: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(evaluation, "CHUNK", 3)
    cache = tmp_path / "cache"
    expected = measure(kept(tmp_path, Failing(), cache)[0], examples, window_options=SMALL)
    victim = sorted(next(cache.iterdir()).iterdir())[0]
    damage(victim)
    with caplog.at_level(logging.WARNING, logger="pocketqa"):
        again, cached = kept(tmp_path, Failing(), cache)
        assert equal(measure(again, examples, window_options=SMALL), expected)
    assert cached.computed == 1
    assert f"{victim} is damaged" in caplog.text
    again, cached = kept(tmp_path, Failing(), cache)
    measure(again, examples, window_options=SMALL)
    assert cached.computed == 0  # it was written again


def test_logits_of_another_model_engine_or_batch_are_not_taken(tmp_path: Path, examples: list[QAExample]) -> None:
    cache = tmp_path / "cache"
    measure(kept(tmp_path, Failing(), cache)[0], examples)
    for runtime, identity, options in ((Failing(), "other", None), (Other(), "model", None), (Failing(), "model", SMALL)):
        again, cached = kept(tmp_path, runtime, cache, identity)
        measure(again, examples, window_options=options)
        assert cached.found == 0


class Other(Failing):
    """Of another precision."""

    @property
    def info(self) -> RuntimeInfo:
        return RuntimeInfo("hash", "1", "bf16", 1)


def test_the_runtime_inside_shows(tmp_path: Path) -> None:
    inside = HashRuntime((64, 96), max_batch=3)
    cached = CachedRuntime(inside, tmp_path, ())
    assert (cached.info, cached.lengths, cached.max_batch) == (inside.info, (64, 96), 3)
    found = measure(reader(tmp_path, cached), [QAExample("1", "who", "the mill was built", ())], window_options=SMALL)
    assert inside.batches == [(1, 64)]
    assert len(found.start) == 4


def test_the_default_folder_follows_the_specification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "pocketqa" / "logits"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert default_folder() == Path.home() / ".cache" / "pocketqa" / "logits"


def test_a_user_without_a_home_is_told_to_name_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(path: str) -> str:
        return path  # as for a number of user that no account has

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", homeless)
    with pytest.raises(FolderError, match="--cache DIR, or set HOME"):
        default_folder()


def test_a_pointing_runtime_scores_what_it_points_at(tmp_path: Path) -> None:
    asked = reader(tmp_path)
    asked = Reader(asked.tokenizer, pointing_at(asked.tokenizer, "ada"))
    example = squad.parse(
        {
            "data": [
                {
                    "paragraphs": [
                        {
                            "context": "The mill was built by Ada.",
                            "qas": [{"id": "q", "question": "Who built it?", "answers": [{"text": "Ada", "answer_start": 22}]}],
                        }
                    ]
                }
            ]
        }
    )
    measured = measure(asked, example)
    assert (measured.exact[0], measured.f1[0], measured.spans) == (1, 1, ((0, 22, 25),))

"""Real data, where POCKETQA_DATA names its folder: SQuAD files read whole, the bundled pair on real questions, engines against each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from pocketqa import Reader, metrics, squad
from pocketqa.evaluation import predict
from pocketqa.features import Tokenizer, gold_spans
from pocketqa.runtimes import available_engines
from pocketqa.types import Request, WindowOptions

pytestmark = pytest.mark.full

MODELS = Path(__file__).parent.parent / "models"
LIMIT = 200


def test_squad_dev_is_read_whole_and_no_answer_is_lost(data_folder: Path) -> None:
    examples = squad.load(data_folder / "squad" / "dev-v1.1.json")
    assert (len(examples), len({example.title for example in examples})) == (10_570, 48)
    tokenizer = Tokenizer(MODELS / "student" / "tokenizer.json")
    for at in range(0, len(examples), 1000):
        chunk = examples[at : at + 1000]
        encoded = tokenizer.encode([Request(e.question, (e.context,)) for e in chunk], WindowOptions(max_tokens=128, doc_stride=64))
        for example, (first, last) in zip(chunk, encoded.ranges, strict=True):
            for answer in example.answers:
                found = [span for span in gold_spans(encoded.windows[first:last], answer) if span is not None]
                assert found or tokenizer.count_tokens(answer.text) > 32, (example.id, answer)


def test_gold_answers_score_full_marks(data_folder: Path) -> None:
    examples = squad.load(data_folder / "squad" / "dev-v1.1.json")
    # The first answers: one question has "." as its last, which normalises to nothing and so scores F1 0 by the rules of version 1.1.
    scores = metrics.score({example.id: example.answers[0].text for example in examples}, examples)
    assert scores.exact_match == scores.f1 == 100.0


@pytest.mark.parametrize("name", ["teacher", "student"])
def test_engines_agree_on_real_questions(data_folder: Path, name: str) -> None:
    examples = squad.load(data_folder / "qa_dev" / "squad_development_split.json.gz", limit=LIMIT)
    answers = {}
    for engine in available_engines():
        precision = "fp32" if engine == "pytorch" else None
        answers[engine] = predict(Reader.open(MODELS / name, engine=engine, precision=precision), examples).texts
    reference = answers["onnxruntime"]
    for engine, texts in answers.items():
        same = sum(texts[e.id] == reference[e.id] for e in examples)
        assert same >= (LIMIT if engine == "pytorch" else 0.97 * LIMIT), f"{engine}: {same} of {LIMIT}"
    assert metrics.score(reference, examples).f1 > 65

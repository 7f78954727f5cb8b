"""Exact match and F1 of a reader, or of a predictions file, as the official SQuAD scripts compute them.

    pocketqa evaluate models/student --data dev-v1.1.json
    pocketqa evaluate models/student --data dev-v1.1.json --engine onnxruntime --run-file runs
    pocketqa evaluate --predictions predictions.json --data dev-v1.1.json --json
    pocketqa evaluate models/student --data dev-v1.1.json --wrong-paragraphs              also how well it tells that a paragraph has no answer
    pocketqa evaluate models/student --data dev-v1.1.json --whole-articles --limit 1000   each question of its whole article
    pocketqa evaluate CHECKPOINT --task sst2 --data DIR          classification, with its own metrics: see `pocketqa evaluate --task sst2 --help`

MODEL is a folder made by `pocketqa package` (any engine) or a trained checkpoint (PyTorch).  A predictions file maps question ids to texts; it leaves
no run file, which names the weights that were measured.
--limit N takes a seeded sample over all articles and says so in the output.
--wrong-paragraphs puts the questions to another paragraph of their article too: AUROC, and at the model's own threshold, which was chosen on a
development split, the shares refused and what refusing costs in F1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distillation.questions.harder import auroc, refusals, whole_articles, wrong_paragraphs
from pocketqa import metrics, squad
from pocketqa.answer import show
from pocketqa.arguments import verb_parser
from pocketqa.errors import DataError, OptionsError
from pocketqa.evaluation import Predictions, check_askable, evaluation_windows, open_reader, predict, read_predictions
from pocketqa.reader import Reader
from pocketqa.runs import SPLITS, DataFile, Subject, check_target, evaluation_results, mean_interval, new_run, write
from pocketqa.types import JSON, QAExample, Scores, SpanOptions, WindowOptions


def main(argv: list[str]) -> int:
    """The verb `pocketqa evaluate`."""
    if any(word == "--task" or word.startswith("--task=") for word in argv):
        from distillation.glue import task_evaluate

        return task_evaluate.main(argv)
    given = _parser().parse_args(argv)
    if given.wrong_paragraphs and (given.whole_articles or given.predictions):
        raise OptionsError("--wrong-paragraphs goes neither with --whole-articles, which leaves no other paragraph, nor with --predictions.")
    if (given.model is None) == (given.predictions is None):
        raise OptionsError("Expected either a MODEL or --predictions FILE, found " + ("both." if given.model else "neither."))
    if given.predictions:
        _refuse_of_a_model(given)
    if given.out and not Path(given.out).absolute().parent.is_dir():
        raise OptionsError(f"Expected a folder for --out at {Path(given.out).parent}, found none. Make it first.")
    if given.out and Path(given.out).is_dir():
        raise OptionsError(f"Expected to write a file at {given.out}, found a folder. Name a file with --out.")
    if given.out and Path(given.out).exists() and Path(given.data).exists() and Path(given.out).samefile(given.data):
        raise OptionsError(f"--out would overwrite the questions in {given.data}. Name another file.")
    check_target(given.run_file)
    examples = squad.load(given.data, given.limit, given.seed)
    if given.whole_articles:
        examples = whole_articles(examples, squad.load(given.data), Path(given.data).name)
    wrong = _of_wrong_paragraphs(examples, given.seed) if given.wrong_paragraphs else []
    if given.predictions:
        exact, overlap = metrics.per_question(read_predictions(given.predictions), examples)
        extra: JSON = {"data": Path(given.data).name, **_intervals(exact, overlap, examples)}
        _print(metrics.summarise(exact, overlap, examples), _by_answerability(exact, overlap, examples), extra, given.json)
        return 0
    reader = open_reader(given.model, given.engine, given.precision, given.threads)
    has_unanswerable = any(example.is_impossible for example in examples)
    span_options = SpanOptions(max_answer_tokens=given.max_answer_tokens, no_answer=has_unanswerable and reader.no_answer.trained)
    window_options = evaluation_windows(WindowOptions(given.max_tokens, given.doc_stride, 1))
    check_askable(reader.tokenizer, [*examples, *wrong], window_options, span_options)  # before hours of work, not in their midst
    predicted = predict(reader, examples, window_options, span_options, progress=not given.json)
    exact, overlap = metrics.per_question(predicted.texts, examples)
    scores = metrics.summarise(exact, overlap, examples)
    extra = {
        "data": Path(given.data).name,
        "model": reader.name,
        "engine": f"{reader.info.engine} {reader.info.version}",
        "precision": reader.info.precision,
        "threads": reader.info.threads,
        "seconds": round(predicted.seconds, 1),
        **_intervals(exact, overlap, examples),
    }
    if given.wrong_paragraphs:
        margins = predict(reader, wrong, window_options, span_options, progress=not given.json).margins
        threshold = reader.no_answer.threshold if reader.no_answer.trained else None
        extra["no_answer"] = refusals(predicted.margins, overlap, squad.groups_of(examples), margins, threshold)
    try:
        if given.out:
            _write_predictions(Path(given.out), predicted)
        if given.run_file:
            extra["run_file"] = _write_run(given, argv, reader, examples, (exact, overlap, scores), predicted, extra.get("no_answer"))
    finally:  # scores that took an hour are told in any case
        _print(scores, _by_answerability(exact, overlap, examples), extra, given.json)
    return 0


def _refuse_of_a_model(given: argparse.Namespace) -> None:
    """Predictions are scored as they are.  Raises OptionsError for what speaks of a model or of a run file, which names weights."""
    free, parser = {"model", "data", "predictions", "limit", "seed", "json"}, _parser()
    if asked := [f"--{name.replace('_', '-')}" for name, value in vars(given).items() if name not in free and value != parser.get_default(name)]:
        raise OptionsError(f"--predictions scores texts that are written already, without {', '.join(asked)}. Name a MODEL for those.")


def _of_wrong_paragraphs(examples: Sequence[QAExample], seed: int) -> list[QAExample]:
    """The same questions put to wrong paragraphs.  Raises OptionsError where there are none to put them to."""
    if not all(example.answers for example in examples):
        raise OptionsError("Expected only answerable questions with --wrong-paragraphs, found some that the file itself says have no answer.")
    if not (wrong := wrong_paragraphs(examples, len(examples), seed)):
        raise OptionsError(
            "Expected articles of several paragraphs with --wrong-paragraphs, found none among the questions asked: there is no wrong one to ask."
        )
    return wrong


def development_report(reader: Reader, dev: str, limit: int | None, seed: int) -> JSON:
    """Scores on a development split, and the no-answer threshold chosen on it.

    The threshold maximises the mean F1 over answerable and unanswerable questions (the "best F1 threshold" of evaluate-v2.0).  Unanswerable are the
    file's own (SQuAD 2.0), alone: they were written to look answerable, and are what the reader is then scored on, which made-up ones are not.
    A file without any has each question asked of another paragraph of its article, too, and both kinds weigh the same.
    AUROC: how often an unanswerable one has the larger margin.
    """
    loaded = squad.load(dev, limit, seed)
    examples, own = [example for example in loaded if example.answers], [example for example in loaded if not example.answers]
    window_options = evaluation_windows()
    right = predict(reader, examples, window_options, progress=True)
    exact, overlap = metrics.per_question(right.texts, examples)
    report: JSON = {"exact_match": 100 * float(exact.mean()), "f1": 100 * float(overlap.mean()), "count": len(examples)}
    kind, asked = ("unanswerable", own) if own else ("wrong_paragraphs", wrong_paragraphs(examples, len(examples), seed))
    if asked:
        margins = predict(reader, asked, window_options, progress=True).margins
        threshold, f1 = best_threshold(right.margins, overlap, margins, share=len(own) / len(loaded) if own else 0.5)
        kept = right.margins <= threshold
        report |= {
            "no_answer_threshold": round(threshold, 4),
            "no_answer_f1": 100 * f1,
            "no_answer_auroc": auroc(right.margins, margins),
            "f1_with_no_answer": 100 * float((overlap * kept).mean()),
            kind: len(asked),
            f"{kind}_refused": float((margins > threshold).mean()),
        }
    return report


def best_threshold(answerable: NDArray[np.float32], f1: NDArray[np.float64], unanswerable: NDArray[np.float32], share: float) -> tuple[float, float]:
    """The margin threshold with the highest mean F1, and that F1 (0 to 1).

    A question is answered when its margin is at most the threshold: an answerable one then scores its F1 (N,), an unanswerable one 0; refused,
    0 and 1.  share: weight of all the unanswerable ones together, of 1.
    """
    margins = np.concatenate((answerable, unanswerable)).astype(np.float64)
    gains = np.concatenate(((1 - share) * f1 / len(f1), np.full(len(unanswerable), -share / len(unanswerable))))  # of answering one question more
    order = np.argsort(margins, kind="stable")
    totals = share + np.concatenate(([0.0], np.cumsum(gains[order])))  # answering none: all unanswerable ones are right
    last = np.append(margins[order][1:] > margins[order][:-1], True)  # equal margins are answered together
    allowed = np.flatnonzero(np.concatenate(([True], last)))
    best = int(allowed[totals[allowed].argmax()])
    ordered = np.concatenate(([margins.min() - 1], margins[order], [margins.max() + 1]))
    return float((ordered[best] + ordered[best + 1]) / 2), float(totals[best])


def _write_predictions(path: Path, predicted: Predictions) -> None:
    try:
        path.write_text(json.dumps(predicted.texts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"Expected to write the predictions to {path}, but it cannot be written: {error.strerror}. Name another --out.") from None


def _write_run(
    given: argparse.Namespace,
    argv: list[str],
    reader: Reader,
    examples: Sequence[QAExample],
    scored: tuple[NDArray[np.float64], NDArray[np.float64], Scores],
    predicted: Predictions,
    no_answer: JSON | None,
) -> str:
    exact, overlap, scores = scored
    results = evaluation_results(scores, exact, overlap, [e.id for e in examples], groups=squad.groups_of(examples))
    results |= {
        "contexts": "articles" if given.whole_articles else "paragraphs",
        "no_answer": no_answer,
        "seconds": round(predicted.seconds, 1),
        "limit": given.limit,
        "window": {"max_tokens": given.max_tokens, "doc_stride": given.doc_stride},
    }
    if parts := _by_answerability(exact, overlap, examples):
        results["by_answerability"] = {name: _numbers(part) for name, part in parts.items()}
    data = DataFile(Path(given.data).name, squad.source_hash(given.data), len(examples), given.split)
    subject = Subject.of(reader.name, given.role or reader.name, reader.model_hash, reader.info)
    name = f"{given.split} {reader.name} {reader.info.engine} {reader.info.precision}{' whole articles' if given.whole_articles else ''}"
    run = new_run("evaluation", name, [subject], [data], ["pocketqa", "evaluate", *argv], results)
    return str(write(run, given.run_file))


def _intervals(exact: NDArray[np.float64], f1: NDArray[np.float64], examples: Sequence[QAExample]) -> JSON:
    found = {name: mean_interval(values, squad.groups_of(examples)).scaled(100) for name, values in (("f1", f1), ("exact_match", exact))}
    return {f"{name}_interval": None if one.alone else [round(one.low, 2), round(one.high, 2)] for name, one in found.items()}


def _by_answerability(exact: NDArray[np.float64], f1: NDArray[np.float64], examples: Sequence[QAExample]) -> dict[str, Scores]:
    """Scores of the questions with an answer and of those without (HasAns and NoAns of evaluate-v2.0); empty where every question has one."""
    none = np.array([example.is_impossible for example in examples])  # (N,)
    kinds = {"has answer": ~none, "no answer": none} if none.any() else {}
    return {name: Scores(100 * float(exact[of].mean()), 100 * float(f1[of].mean()), int(of.sum())) for name, of in kinds.items() if of.any()}


def _numbers(part: Scores) -> JSON:
    return {"exact_match": part.exact_match, "f1": part.f1, "count": part.count}


def _print(scores: Scores, by_answerability: Mapping[str, Scores], extra: Mapping[str, object], as_json: bool) -> None:
    if as_json:
        tables = {"by_answerability": by_answerability, "by_question_word": scores.by_question_word, "by_answer_words": scores.by_answer_words}
        groups = {key: {name: _numbers(part) for name, part in parts.items()} for key, parts in tables.items() if parts}
        show(json.dumps({**_numbers(scores), **extra, **groups}))
        return
    show(", ".join(f"{key} {value}" for key, value in extra.items() if value is not None))
    show(f"{'':18}{'EM':>8}{'F1':>8}{'count':>8}")
    rows = {"all": scores, **by_answerability, **scores.by_question_word, **scores.by_answer_words}
    for name, part in rows.items():
        show(f"{name:18}{part.exact_match:8.2f}{part.f1:8.2f}{part.count:8d}")


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("pocketqa evaluate", __doc__)
    parser.add_argument("model", nargs="?", metavar="MODEL", help="packaged folder or trained checkpoint")
    parser.add_argument("--data", required=True, metavar="FILE", help="SQuAD-format file (.json, .gz, .bz2, .xz) or Hub NAME[:SPLIT]")
    parser.add_argument("--predictions", metavar="FILE", help="score this JSON file of id -> text in place of a model")
    parser.add_argument("--limit", type=int, metavar="N", help="a seeded sample of N questions over the whole file")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (default 0)")
    parser.add_argument("--whole-articles", action="store_true", help="ask each question of all paragraphs of its article, joined")
    parser.add_argument("--wrong-paragraphs", action="store_true", help="also put the questions to paragraphs that do not answer them")
    parser.add_argument("--engine", default="auto", help="auto, onnxruntime, openvino or pytorch (default auto)")
    parser.add_argument("--precision", help="fp32, bf16 or int8 where the engine offers a choice; int8 needs a form of the folder")
    parser.add_argument("--threads", type=int, metavar="N", help="default: all usable cores")
    parser.add_argument("--max-tokens", type=int, default=384, metavar="N", help="tokens of a window (default 384)")
    parser.add_argument("--doc-stride", type=int, default=128, metavar="N", help="overlap of windows (default 128)")
    parser.add_argument("--max-answer-tokens", type=int, default=30, metavar="N", help="longest answer (default 30)")
    parser.add_argument("--out", metavar="FILE", help="write the predictions (id -> text) here")
    parser.add_argument("--run-file", metavar="PATH", help="write a run file to this folder or .json path")
    parser.add_argument("--split", choices=SPLITS, default="other", help="what the data are, for the run file (default other)")
    parser.add_argument("--role", help="teacher, student, control, ..., for the run file (default: the model's name)")
    parser.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return parser

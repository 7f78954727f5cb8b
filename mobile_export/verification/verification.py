"""Is a bundle's model still the checkpoint's?  Asked of the saved bytes, in a process that sees nothing else, on any machine.

    bundle = open_bundle("bundles/student-ios16")
    verify_bundle(bundle)["problems"]                                             # seconds: golden vectors, trace, hazards, values not finite
    verify_bundle(bundle, examples=examples, reference=reference)["results"]      # up to an hour: every answer beside the checkpoint's

Three bases of comparison: the golden vectors say what the checkpoint computed in PyTorch; the trace says what each operation computed when the
program was exported, and so names one that changed; the checkpoint itself answers the same questions.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from mobile_export.bundle import Bundle, sizes
from mobile_export.formats.vectors import read_vectors
from mobile_export.verification.artefact import reader_of, reader_over
from mobile_export.verification.comparison import compare_measured, gate
from mobile_export.verification.golden import replay_vectors
from mobile_export.verification.isolated import IsolatedRuntime
from pocketqa import squad
from pocketqa.errors import DataError, EngineError
from pocketqa.evaluation import Measured, evaluation_windows, measure
from pocketqa.features import Tokenizer
from pocketqa.reader import Reader
from pocketqa.results import evaluation_results, verification_results
from pocketqa.runtimes.cached import CachedRuntime
from pocketqa.spans import longest_safe_answer
from pocketqa.types import JSON, Batch, NoAnswer, QAExample, Request, SpanOptions, WindowOptions

__all__ = ["check_bundle", "compare_measured", "gate", "measure", "measure_bundle", "measure_with", "reader_of", "span_options", "verify_bundle"]

ASIDE = ("vocab.txt", "tokenizer.json", "golden.json", "trace.json", "HOWTO.md", "QuestionAnswering.swift", "Timing.swift")
"""Files that do not decide the logits."""
WATCHED, WATCHED_GOLDEN = 8, 1  # windows of the data, and golden ones a length, whose operations are looked at one by one


def verify_bundle(
    bundle: Bundle,
    *,
    examples: Sequence[QAExample] = (),
    reference: Callable[[WindowOptions], Measured] | None = None,
    max_f1_loss: float | None = None,
    engine: str | None = None,
    threads: int | None = None,
    unit: str = "all",
    cache: Path | None = None,
    progress: bool = False,
) -> JSON:
    """What `check_bundle` finds, and "results", those of a run of kind "verification" (None without examples, and for a broken bundle, which is not
    worth the time); "passed": nothing is wrong and the gate, where there is one, is passed.

    reference: gives the checkpoint's answers to the examples with the bundle's windows (`measure_with`).  max_f1_loss: limit of the gate in percent
    points; None takes the scheme's.  engine, threads, unit: see `runtime_of`.  cache: folder that keeps the artefact's logits.
    Raises EngineError where the artefact cannot be run at all, VocabularyMismatch where the reference has another vocabulary.
    """
    with IsolatedRuntime(bundle.path, engine, threads, unit) as runtime:
        checks = check_bundle(bundle, runtime, examples)
        results = None
        if examples and not checks["problems"]:
            expected = reference(bundle.window) if reference else None
            try:
                measured = measure_bundle(bundle, runtime, examples, cache, progress)
            except EngineError as error:  # logits that are not finite, among others: found out on the way, and no error of the command
                checks["problems"].append(str(error))
            else:
                agreement = compare_measured(measured, expected, examples) if expected else None
                gated = gate(bundle.scheme, agreement, max_f1_loss) if agreement else None
                results = results_of(checks, measured, examples, agreement, gated)
    sound = not checks["problems"] and (results is None or results["gate"] is None or results["gate"]["passed"])
    return checks | {"results": results, "passed": sound}


def check_bundle(bundle: Bundle, runtime: IsolatedRuntime, examples: Sequence[QAExample] = ()) -> JSON:
    """What can be said without answering the data's questions (some of their windows are watched).

    "problems" holds what is wrong, in sentences, and is empty for a sound bundle.
    Beside it: what the bundle is (target, scheme, layout, format, lengths, bytes); "golden" (see `replay_vectors`); "trace", findings or None where
    there is none; "hazards" and "warnings"; "non_finite" and "overflow", operation -> values in the windows of `_watched`; "operations" by type; and
    "not_checked", what this machine cannot know.  Raises EngineError where the artefact cannot be run, CorruptFolder for unreadable vectors.
    """
    facts = runtime.facts
    vectors = read_vectors(bundle.golden)
    found: JSON = {
        "name": bundle.name,
        "target": bundle.target.name,
        "scheme": bundle.scheme,
        "layout": bundle.layout,
        "format": bundle.format,
        "lengths": list(bundle.lengths),
        "bytes": sizes(bundle),
        "engine": facts["info"],
        "golden": replay_vectors(reader_over(bundle, runtime), vectors, bundle.scheme),
        "trace": runtime.trace()["findings"],
        **{name: facts[name] for name in ("hazards", "warnings", "operations")},
        "not_checked": [*facts["not_checked"]],
    }
    found |= _watch(bundle, runtime, vectors, examples)
    if found["trace"] is None:
        found["not_checked"].append("single operations: the bundle holds no trace of the program as it was exported")
    return found | {"problems": _problems(found)}


def asked_in_app(examples: Sequence[QAExample], bundle: Bundle, say: Callable[[str], None]) -> list[QAExample]:
    """The examples whose question the bundle's Swift takes; it refuses the others (`questionTooLong`), so that they have no part in its scores.

    Raises DataError where none is left.
    """
    tokenizer, most = Tokenizer(bundle.tokenizer), bundle.window.max_question_tokens
    kept = [example for example in examples if tokenizer.count_tokens(example.question) <= most]
    if not kept:
        raise DataError(f"Expected questions of at most {most} tokens, which {bundle.path} takes, found none. Export it with a greater --length.")
    if left := len(examples) - len(kept):
        say(f"{left:,} questions of more than {most} tokens are left out: an app with {bundle.path} refuses them")
    return kept


def measure_bundle(
    bundle: Bundle, runtime: IsolatedRuntime, examples: Sequence[QAExample], cache: Path | None = None, progress: bool = False
) -> Measured:
    """The artefact's answers to the examples.  Logits are kept in `cache` as they come, and found there when the work is taken up again.

    Raises EngineError, among others for logits that are not finite.
    """
    files = {name: sha256 for name, sha256 in bundle.manifest.files.items() if name not in ASIDE}
    identity = (hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(), runtime.facts["code"])
    return measure_with(reader_over(bundle, runtime), bundle.window, examples, identity, cache, progress)


def measure_with(
    reader: Reader, window: WindowOptions, examples: Sequence[QAExample], identity: Sequence[str], cache: Path | None = None, progress: bool = False
) -> Measured:
    """A reader's answers with a bundle's windows, its logits kept; `identity` is what decides them besides the engine.

    Where they are kept, `seconds` are those of the forward passes, whenever they were made.
    """
    spans = span_options(examples, window, reader.no_answer)
    if cache is None:
        return measure(reader, examples, window_options=window, span_options=spans, progress=progress)
    runtime = CachedRuntime(reader.runtime, cache, identity)
    cached = Reader(reader.tokenizer, runtime, reader.name, reader.model_hash, reader.no_answer)
    measured = measure(cached, examples, window_options=window, span_options=spans, progress=progress)
    return replace(measured, seconds=runtime.seconds)


def results_of(checks: JSON, measured: Measured, examples: Sequence[QAExample], agreement: JSON | None, gated: JSON | None) -> JSON:
    """The results of a run of kind "verification"."""
    evaluation = evaluation_results(measured.scores, measured.exact, measured.f1, [e.id for e in examples], squad.groups_of(examples))
    described = ("target", "scheme", "layout", "format", "bytes", "hazards", "non_finite", "overflow", "operations")
    extra = {name: checks[name] for name in ("lengths", "warnings", "golden", "trace")} | {"seconds": round(measured.seconds, 1)}
    return verification_results(evaluation, **{name: checks[name] for name in described}, agreement=agreement, gate=gated, extra=extra)


def span_options(examples: Sequence[QAExample], window: WindowOptions, no_answer: NoAnswer) -> SpanOptions:
    """As evaluation has them: unanswerable questions only of a model trained for them, and no span that a border of windows can cut."""
    longest = min(SpanOptions().max_answer_tokens, longest_safe_answer(window.doc_stride))
    return SpanOptions(max_answer_tokens=longest, no_answer=no_answer.trained and any(example.is_impossible for example in examples))


def _watch(bundle: Bundle, runtime: IsolatedRuntime, vectors: JSON, examples: Sequence[QAExample]) -> JSON:
    """ "non_finite" and "overflow": "type name" of an operation -> how many values; "watched": how many windows; "largest": what came nearest to the
    end of float16.
    """
    counts: dict[str, Counter[str]] = {"non_finite": Counter(), "overflow": Counter()}
    largest: Counter[str] = Counter()
    batches = _watched(bundle, vectors, examples) if runtime.facts["operations"] else []  # ExecuTorch shows nothing of its operations
    for batch in batches:
        for name, seen in runtime.watch(batch).items():
            operation = f"{seen['type']} {name}"
            counts["non_finite"][operation] += seen["non_finite"]
            counts["overflow"][operation] += seen["overflows"]
            largest[operation] = max(largest[operation], seen["largest"])
    found: JSON = {name: {operation: count for operation, count in counter.items() if count} for name, counter in counts.items()}
    return found | {"watched": sum(batch.shape[0] for batch in batches), "largest": dict(largest.most_common(1))}


def _watched(bundle: Bundle, vectors: JSON, examples: Sequence[QAExample]) -> list[Batch]:
    """Windows whose operations are looked at one by one: for each length of the bundle padding alone, the shortest window, the golden windows that
    fill it most; and some of the data's.
    """
    tokenizer = Tokenizer(bundle.tokenizer)
    shortest = np.array([tokenizer.cls_id, tokenizer.sep_id, tokenizer.sep_id], dtype=np.int32)  # (3,)
    windows = [np.array(window["ids"], dtype=np.int32) for question in vectors["questions"] for window in question["windows"]]
    chosen = np.unique(np.linspace(0, len(examples) - 1, WATCHED).astype(int)).tolist() if examples else []
    requests = [Request(examples[i].question, (examples[i].context,)) for i in chosen]
    asked = [window.ids for window in tokenizer.encode(requests, evaluation_windows(bundle.window)).windows] if requests else []
    batches = []
    for below, length in zip((0, *bundle.lengths), bundle.lengths, strict=False):
        fullest = sorted((ids for ids in windows if len(ids) <= length), key=len)[-WATCHED_GOLDEN:]
        rows = [shortest[:0], shortest, *fullest, *(ids for ids in asked if below < len(ids) <= length)]
        padded = np.full((len(rows), length), tokenizer.pad_id, dtype=np.int32)  # (B, T)
        for row, ids in zip(padded, rows, strict=True):
            row[: len(ids)] = ids
        batches.append(Batch(padded, np.zeros_like(padded), (padded != tokenizer.pad_id).astype(np.int32)))
    return batches


def _problems(found: JSON) -> list[str]:
    """What makes a bundle unfit, in sentences."""
    problems = [*found["hazards"], *found["golden"]["problems"]]
    problems += ["{type} {operation!r}: {what}: expected {expected}, found {found}".format(**finding) for finding in found["trace"] or []]
    for key, what in (("non_finite", "values that are not finite"), ("overflow", "values beyond float16")):
        problems += [f"{operation} leaves {count} {what} on {found['watched']} windows." for operation, count in found[key].items()]
    return problems

"""What stands under `results` in each kind of run file: one builder a kind, and the comparison of two evaluations question by question.

A verification is an evaluation of an exported artefact, with what was found on the way there.  Both carry the value of every question, so that
any two on the same data can be compared in pairs later: exact match as one bit, F1 in 250 steps (so a stored F1 is within 1/500 of the measured one,
and a mean of them too), the group of each question as a number; in the order of the data file, whose list of ids is kept as a hash.  The exact means
stand beside them.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketqa.errors import DataError, OptionsError
from pocketqa.statistics import (
    LEVEL,
    RESAMPLES,
    Groups,
    Interval,
    TimingSummary,
    count_groups,
    mean_interval,
    percentile_interval,
    resampled_means,
)
from pocketqa.types import JSON, RuntimeInfo, Scores

F1_STEPS = 250  # an F1 of 0, 1, 1/2 or 2/5 stays exact
ENCODING = "zlib, base64; exact match 1 bit, F1 1 byte of 0..250, group 4 bytes little-endian a question"

_EVALUATION = ("exact_match", "f1", "count", "intervals", "per_question")
_VERIFICATION = ("target", "scheme", "layout", "format", "bytes", "agreement", "gate", "hazards", "non_finite", "overflow", "operations")
QUESTION_BY_QUESTION = ("evaluation", "verification")  # kinds of one model that keep the values of every question
REQUIRED = {  # what the report reads of each kind
    "evaluation": _EVALUATION,
    "verification": (*_EVALUATION, *_VERIFICATION),
    "compression": ("points", "sensitivity", "max_f1_drop", "selected", "workload"),
    "training": ("questions", "steps", "tokens", "seconds"),
    "classification": ("task", "metrics", "score", "count", "intervals", "per_example"),
    "ablation": ("measure", "reference", "rows"),
    "training-speed": ("workload", "tokens_per_second", "ratio", "waterfall"),
    "latency": ("workload", "timings"),
    "load": ("workload", "timings"),
    "service": ("workload", "contestants", "points", "ratios"),
    "replicas": ("workload", "points", "ratios", "events", "void", "pinned"),
    "export": ("target", "precision", "package_bytes", "weight_bytes", "specification_version", "inputs", "outputs"),
}

DEVICE = ("name", "os", "compute_unit", "thermal_state", "kind")
DEVICE_KINDS = ("server", "phone")
STAGES = ("pretrain", "distill", "finetune")  # of a training

Values = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class PerQuestion:
    """The stored values of one evaluation, in the order of its data file."""

    exact_match: Values  # (N,) 0 or 1
    f1: Values  # (N,) 0 to 1, within 1/500
    groups: NDArray[np.int64] | None  # (N,) number of the article or passage
    ids_sha256: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """First minus second in percent points with paired intervals, and the F1 of the first in percent of the second's (retention)."""

    exact_match: Interval
    f1: Interval
    retention: Interval | None  # None where the second has no F1 to retain
    count: int


def evaluation_results(scores: Scores, exact: Values, f1: Values, ids: Sequence[str], groups: Groups | None = None) -> JSON:
    """Results of kind "evaluation" from the scores (percent) and the values of each question (N,), 0 to 1, in the order of the data file.

    groups: what intervals resample (the article or passage of each question); None, or one group alone, takes the questions themselves.
    Raises OptionsError when the parts contradict each other.
    """
    if not len(exact) == len(f1) == len(ids) == scores.count:
        raise OptionsError(f"Expected one value a question: {scores.count} scored, {len(exact)} exact matches, {len(f1)} F1, {len(ids)} ids.")
    for name, values, mean in (("exact match", exact, scores.exact_match), ("F1", f1, scores.f1)):
        if abs(100 * float(np.mean(values)) - mean) > 1e-6:
            raise OptionsError(f"The mean {name} of the questions is {100 * np.mean(values):.4f}, but the scores say {mean:.4f}.")
    return {
        **_scores_json(scores),
        "intervals": {
            "exact_match": mean_interval(exact, groups).scaled(100).to_json(),
            "f1": mean_interval(f1, groups).scaled(100).to_json(),
            "level": LEVEL,
            "resamples": RESAMPLES,
            "resampled": "questions" if groups is None or count_groups(groups) < 2 else f"{count_groups(groups)} groups of questions",
        },
        "by_question_word": {name: _scores_json(part) for name, part in scores.by_question_word.items()},
        "by_answer_words": {name: _scores_json(part) for name, part in scores.by_answer_words.items()},
        "per_question": _pack_questions(exact, f1, ids, groups),
    }


def verification_results(
    evaluation: JSON,
    *,
    target: str,
    scheme: str,
    layout: str,
    format: str,
    bytes: JSON,
    agreement: JSON | None,
    gate: JSON | None,
    hazards: Sequence[str],
    non_finite: JSON,
    overflow: JSON,
    operations: JSON,
    extra: JSON | None = None,
) -> JSON:
    """Results of kind "verification": those of an evaluation, made by `evaluation_results`, with what was found out about the artefact.

    bytes: "package", "weights" and "zipped"; agreement: with the reference, None without one; gate: "limit", "f1_loss" (an interval in percent
    points) and "passed", None where there was none; hazards: sentences; non_finite, overflow: operation -> how many values; operations: type -> how
    many operations; extra: whatever else was found.
    """
    found = {"target": target, "scheme": scheme, "layout": layout, "format": format, "bytes": bytes, "agreement": agreement, "gate": gate}
    return {
        **evaluation,
        **found,
        "hazards": list(hazards),
        "non_finite": non_finite,
        "overflow": overflow,
        "operations": operations,
        **(extra or {}),
    }


def compression_results(
    workload: str, points: Sequence[JSON], *, sensitivity: JSON, max_f1_drop: float | None, selected: Any, extra: JSON | None = None
) -> JSON:
    """Results of kind "compression": a search for the smallest package within a budget.

    workload: what it was measured on, in words; points: one a combination that was tried, each with "bytes", "f1", "f1_loss" (an interval in
    percent points) and "chosen" (group of weights -> scheme); sensitivity: group -> what each scheme alone costs; max_f1_drop: the budget, percent
    points; selected: which point was kept, None where none was within the budget.  Raises OptionsError for points without these entries.
    """
    check_rows("A point of a compression needs", points, ("bytes", "f1", "f1_loss", "chosen"))
    tried = {"points": list(points), "sensitivity": sensitivity, "max_f1_drop": max_f1_drop, "selected": selected}
    return {"workload": workload, **tried, **(extra or {})}


def training_results(
    *,
    questions: int,
    steps: int,
    tokens: int,
    seconds: float,
    loss: float | None,
    best: Scores | None = None,
    recipe: JSON | None = None,
    stage: str = "finetune",
    losses: Mapping[str, float] | None = None,
    development: JSON | None = None,
) -> JSON:
    """Results of kind "training".

    questions, tokens: seen in all (epochs included; rows of text in place of questions before fine-tuning); seconds: of training; loss: of the last
    logging interval; best: highest scores on the development split; recipe: the settings that matter; stage: one of STAGES; losses: the
    named parts of the loss; development: what was measured on data kept apart, of which a report shows "loss" and "perplexity".  Raises OptionsError
    for another stage.
    """
    if stage not in STAGES:
        raise OptionsError(f"The stage of a training must be one of {', '.join(STAGES)}, found {stage!r}.")
    return {
        "stage": stage,
        "losses": {name: round(float(value), 5) for name, value in (losses or {}).items()},
        "development": development,
        "questions": questions,
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "loss": None if loss is None else round(loss, 4),
        "best": None if best is None else _scores_json(best),
        "recipe": recipe or {},
    }


def check_device(device: object) -> list[str]:
    """What is wrong with the block "device" of a latency: the machine or phone, what computed, and how warm it was.

    {"name", "os", "compute_unit" ("cpu", "gpu", "ne", "all"), "thermal_state" (as the system names it; None where it does not), "kind": "server"
    or "phone"}.
    """
    if not isinstance(device, dict):
        return ["device must be an object"]
    problems = [f"device needs {key!r}" for key in DEVICE if key not in device]
    if device.get("kind") not in DEVICE_KINDS:
        problems.append(f"the kind of a device must be {' or '.join(DEVICE_KINDS)}, found {device.get('kind')!r}")
    return problems


def check_rows(needs: str, rows: Sequence[JSON], keys: Sequence[str]) -> None:
    """Raise OptionsError where a row lacks one of the keys.  needs: the beginning of the message, such as "A point of a service run needs"."""
    if missing := sorted({key for row in rows for key in keys if key not in row}):
        raise OptionsError(f"{needs} {', '.join(keys)}; {', '.join(missing)} missing.")


def timing_results(
    workload: str,
    timings: Mapping[str, TimingSummary],
    ratios: Mapping[str, Interval] | None = None,
    runtimes: Mapping[str, RuntimeInfo] | None = None,
    extra: JSON | None = None,
) -> JSON:
    """Results of kinds "latency" and "load".

    workload: what was timed, in words ("closed loop, 4 users"); timings: one summary a row ("teacher", "student", "student forward");
    ratios: named ratios of medians ("teacher / student") with paired intervals; extra: whatever else was counted; a report shows
    "requests", "failures" and "requests_per_second" of a load.

    A latency also has, in `extra`: "mode"; "rules" ("queries", "seconds", "valid"); "stages" (summaries of tokenise, forward, decode);
    "load_seconds" ("cold", "warm"), "first_run_seconds", "peak_memory_mib", "bytes", "lengths"; "busy", whether others used the machine; and "device"
    (see `check_device`), which is what a phone's run file and a server's differ in.
    """
    engines = {name: f"{info.engine} {info.version}, {info.precision}, {info.threads} threads" for name, info in (runtimes or {}).items()}
    return {
        "workload": workload,
        "timings": {name: summary.to_json() for name, summary in timings.items()},
        "ratios": {name: interval.to_json() for name, interval in (ratios or {}).items()},
        "engines": engines,
        **(extra or {}),
    }


def export_results(
    *, target: str, precision: str, package_bytes: int, weight_bytes: int, specification_version: int, inputs: JSON, outputs: JSON
) -> JSON:
    """Results of kind "export": sizes in bytes of the package and of the weights in it; inputs, outputs: name -> type and shape in words."""
    return {
        "target": target,
        "precision": precision,
        "package_bytes": package_bytes,
        "weight_bytes": weight_bytes,
        "specification_version": specification_version,
        "inputs": inputs,
        "outputs": outputs,
    }


def per_question(results: JSON, name: str = "run file") -> PerQuestion:
    """The values of each question.  Raises DataError when they are missing, damaged or contradict the means beside them."""
    try:
        packed = results["per_question"]
        count = int(packed["count"])
        exact = np.unpackbits(np.frombuffer(_unpack(packed["exact_match"]), dtype=np.uint8), count=count).astype(np.float64)  # (N,)
        f1 = np.frombuffer(_unpack(packed["f1"]), dtype=np.uint8).astype(np.float64) / F1_STEPS  # (N,)
        groups = np.frombuffer(_unpack(packed["groups"]), dtype="<u4").astype(np.int64) if packed.get("groups") else None  # (N,)
        ids, totals = str(packed["ids_sha256"]), (float(results["exact_match"]), float(results["f1"]), int(results["count"]))
    except (KeyError, TypeError, ValueError, zlib.error) as error:
        found = f"{type(error).__name__}: {error}"
        raise DataError(f"{name}: expected the values of each question, found {found}. Measure again with: pocketqa evaluate") from None
    if not count == len(exact) == len(f1) == totals[2] or (groups is not None and len(groups) != count) or count == 0:
        raise DataError(f"{name}: expected the values of {totals[2]} questions, found {len(exact)} exact matches and {len(f1)} F1.")
    for label, mean, values, slack in (("exact match", totals[0], exact, 1e-3), ("F1", totals[1], f1, 100 / (2 * F1_STEPS) + 1e-3)):
        if abs(100 * values.mean() - mean) > slack:
            raise DataError(f"{name}: the {label} is given as {mean:.3f}, but its questions have a mean of {100 * values.mean():.3f}: it was edited.")
    return PerQuestion(exact, f1, groups, ids)


def compare_results(first: JSON, second: JSON, names: tuple[str, str] = ("first", "second")) -> Comparison:
    """Paired comparison of two evaluations of the same questions; resamples the groups where both have the same two or more, else the questions.

    Raises DataError when the questions differ.
    """
    a, b = per_question(first, names[0]), per_question(second, names[1])
    if a.ids_sha256 != b.ids_sha256:
        raise DataError(
            f"{names[0]} and {names[1]} hold different questions ({a.ids_sha256[:12]}, {b.ids_sha256[:12]}), so they cannot be compared in pairs. "
            "Evaluate both on the same file with the same --limit and --seed."
        )
    groups = a.groups if a.groups is not None and b.groups is not None and np.array_equal(a.groups, b.groups) else None
    columns = np.stack((a.exact_match, b.exact_match, a.f1, b.f1), axis=1)  # (N, 4)
    exact, f1, retention = _paired_intervals(columns.tobytes(), None if groups is None else groups.tobytes())
    return Comparison(exact, f1, retention, len(a.f1))


@functools.lru_cache(maxsize=64)
def _paired_intervals(columns: bytes, groups: bytes | None) -> tuple[Interval, Interval, Interval | None]:
    """Intervals of both differences and of the retention; kept, since a report compares the same two models for several tables."""
    values = np.frombuffer(columns).reshape(-1, 4)  # (N, 4)
    mean = values.mean(axis=0)  # (4,)
    means = resampled_means(values, None if groups is None else np.frombuffer(groups, dtype=np.int64))  # (R, 4)
    exact, f1 = (percentile_interval(float(mean[i] - mean[i + 1]), means[:, i] - means[:, i + 1]).scaled(100) for i in (0, 2))
    if means[:, 3].min() <= 0:  # a second model without a right answer: there is nothing to retain
        return exact, f1, None
    return exact, f1, percentile_interval(float(mean[2] / mean[3]), means[:, 2] / means[:, 3]).scaled(100)


def ids_hash(ids: Sequence[str]) -> str:
    """sha256 of the ids in order: equal exactly when the same questions were asked in the same order."""
    return hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()


def _pack_questions(exact: Values, f1: Values, ids: Sequence[str], groups: Groups | None) -> JSON:
    packed: JSON = {
        "encoding": ENCODING,
        "count": len(ids),
        "ids_sha256": ids_hash(ids),
        "exact_match": _pack(np.packbits(np.asarray(exact) > 0.5)),
        "f1": _pack(np.rint(np.asarray(f1) * F1_STEPS).astype(np.uint8)),
    }
    if groups is not None:
        packed["groups"] = _pack(_first_seen(groups))
    return packed


def _first_seen(groups: Groups) -> NDArray[np.uint32]:
    """Groups numbered in the order in which they appear, so that the names of articles need not be stored."""
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups], dtype="<u4")


def _pack(values: NDArray[Any]) -> str:
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode("ascii")


def _unpack(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text, validate=True))


def _scores_json(scores: Scores) -> JSON:
    return {"exact_match": round(scores.exact_match, 6), "f1": round(scores.f1, 6), "count": scores.count}

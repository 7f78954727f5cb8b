"""The run file of a load test: the table's numbers with the models' hashes, for `pocketqa report`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.checks import STAGES
from loadtest.fetch import fetch
from loadtest.pairs import RESAMPLES, STUDENT, Log, ModelLog, ratios, where
from loadtest.questions import SAMPLES
from loadtest.rate_search import Found
from pocketqa import runs

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Loop:
    """How it was asked: `users` at once, for so many seconds; in an open loop at `rate` requests a second, else 0; `objective`: of a search."""

    users: int
    rate: float
    seconds: float
    seed: int
    objective: str = ""

    @property
    def name(self) -> str:
        """Of the run file."""
        return "locust-highest-rate" if self.objective else "locust-open-loop" if self.rate else "locust-closed-loop"

    @property
    def words(self) -> str:
        """What was asked."""
        if self.objective:
            return f"open loop, the highest rate within {self.objective}, each model alone"
        pairs = "pairs of one question to both models in random order"
        users = f"{self.users} user{'' if self.users == 1 else 's'}"
        return f"open loop, {self.rate:g} requests a second, {pairs}" if self.rate else f"closed loop, {users}, {pairs}"


def served_models(host: str) -> tuple[runs.Subject, ...]:
    """Teacher and student as GET /v1/models names them.  Raises OSError or ValueError when that is not the service's answer."""
    with fetch(f"{host.rstrip('/')}/v1/models", 10) as response:
        document = json.load(response)
    try:
        return tuple(
            runs.Subject(
                name=model["name"],
                role=model["role"],
                sha256=model["weights_sha256"],
                engine=model["engine"],
                version=model["engine_version"],
                precision=model["precision"],
                threads=model["threads"],
            )
            for model in document["models"]
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"expected GET /v1/models to list models with names and hashes, found no {error}") from None


def write_run(
    path: str,
    log: Log,
    found: Mapping[str, Found],
    subjects: Sequence[runs.Subject],
    source: str,
    questions: int,
    command: Sequence[str],
    loop: Loop,
) -> Path:
    """Write the run file.  found: of a search, by model.  Raises pocketqa's DataError and OptionsError."""
    models = {} if loop.objective else {model: one for model, one in log.models.items() if one.rows}
    timings = {model: runs.summarise_times(one.column("latency") / 1000) for model, one in models.items()}
    timings |= {f"{model} forward": runs.summarise_times(one.column("forward") / 1000) for model, one in models.items()}
    paired = None if loop.objective else ratios(log, loop.seed)
    named = {} if paired is None else {"teacher / student": paired.client}
    if paired is not None and paired.forward is not None:
        named["teacher / student, forward"] = paired.forward
    results = runs.load_results(
        loop.words,
        timings,
        named,
        stages={model: _stages(one) for model, one in models.items()},
        where={model: _rounded(where(one)) for model, one in models.items()},
        quantiles={model: percentiles_of(one.column("latency")) for model, one in models.items()},
        intervals={model: intervals_of(one.column("latency"), one.column("number").astype(int)) for model, one in models.items()},
        search=search_of(found, loop.objective, STUDENT) if loop.objective else None,
        extra={"users": loop.users, "seconds": round(loop.seconds, 1), "seed": loop.seed} if loop.objective else _counts(log, loop),
    )
    return runs.write(runs.new_run("load", loop.name, subjects, [data_file(source, questions)], command, results), path)


def search_of(found: Mapping[str, Found], objective: str, ours: str) -> Row:
    """What searches for the highest rate found, as a run file keeps it, with how many times the rates of the others `ours` has.

    A round in which the objective held at no rate counts as a rate of 0; where all do, there is no interval.
    """
    best = {name: [rate or 0.0 for rate in one.rates] for name, one in found.items()}
    rates = {name: runs.mean_interval(values, resamples=RESAMPLES).to_json(3) if any(values) else None for name, values in best.items()}
    compared = {
        name: runs.mean_ratio(best[ours], values, resamples=RESAMPLES).to_json(4)
        for name, values in best.items()
        if ours in best and name != ours and all(values)
    }
    rounds = max((len(values) for values in best.values()), default=0)
    points = [point for one in found.values() for point in one.points]
    return {"objective": objective, "rounds": rounds, "rates": rates, "ratios": compared, "points": points}


def _counts(log: Log, loop: Loop) -> Row:
    counts: Row = {
        "users": loop.users,
        "seconds": round(loop.seconds, 1),
        "requests": log.requests,
        "failures": sum(one.failures for one in log.models.values()),
        "requests_per_second": round(log.requests / loop.seconds, 2) if loop.seconds > 0 else None,
        "pairs": len(log.pairs),
        "seed": loop.seed,
        "scores": {
            model: {name: round(100 * float(one.column(column).mean()), 2) for name, column in (("exact_match", "exact"), ("f1", "f1"))}
            for model, one in log.models.items()
            if one.rows
        },
    }
    if loop.rate and log.requests:
        counts |= {"rate": loop.rate, "lag_ms": {f"p{q}": round(float(np.percentile(log.lags(), q)), 3) for q in (50, 99)}}
    return counts


def _stages(log: ModelLog) -> Row:
    return {stage: runs.summarise_times(log.column(stage) / 1000).to_json() for stage in STAGES if stage != "total"}


def percentiles_of(milliseconds: NDArray[np.float64]) -> list[float]:
    """Minimum, percentiles and maximum (101 values)."""
    return [round(float(value), 3) for value in np.percentile(milliseconds, range(101))]


def intervals_of(milliseconds: NDArray[np.float64], numbers: NDArray[np.int64]) -> Row:
    """Of the percentiles; questions, by their numbers, are drawn, since the same one asked again tells little that is new."""
    return {f"p{q}": runs.quantile_interval(milliseconds, q / 100, numbers, resamples=RESAMPLES).to_json(3) for q in (50, 90, 99)}


def _rounded(parts: Mapping[str, float] | None) -> Row:
    return {name: round(value, 3) for name, value in (parts or {}).items()}


def data_file(source: str, questions: int) -> runs.DataFile:
    """The questions, by name and hash."""
    path = Path(source)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""  # "": a set named on the Hub
    return runs.DataFile(path.name, sha256, questions, "samples" if path.resolve() == SAMPLES.resolve() else "other")

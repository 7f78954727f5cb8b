"""The run file of a load test: the table's numbers with the models' hashes, for `pocketqa report`."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from loadtest.pairs import Log, ratios
from loadtest.questions import SAMPLES
from pocketqa import runs

NAME = "locust-closed-loop"


def served_models(host: str) -> tuple[runs.Subject, ...]:
    """Teacher and student as GET /v1/models names them.  Raises OSError or ValueError when that is not the service's answer."""
    with urllib.request.urlopen(f"{host.rstrip('/')}/v1/models", timeout=10) as response:
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
    path: str, log: Log, subjects: Sequence[runs.Subject], source: str, questions: int, command: Sequence[str], users: int, seconds: float, seed: int
) -> Path:
    """Write the run file; `users` asked for `seconds`.  Raises pocketqa's DataError and OptionsError."""
    timings, scores = {}, {}
    for model, model_log in log.models.items():
        if model_log.rows:
            rows = np.asarray(model_log.rows, dtype=np.float64)  # (exchanges, 4)
            timings[model] = runs.summarise_times(rows[:, 0] / 1000)
            timings[f"{model} forward"] = runs.summarise_times(rows[:, 1] / 1000)
            scores[model] = {"exact_match": round(100 * float(rows[:, 2].mean()), 2), "f1": round(100 * float(rows[:, 3].mean()), 2)}
    found = ratios(log, seed)
    named = {} if found is None else {"teacher / student": found.client}
    if found is not None and found.forward is not None:
        named["teacher / student, forward"] = found.forward
    extra = {
        "users": users,
        "seconds": round(seconds, 1),
        "requests": log.requests,
        "failures": sum(model_log.failures for model_log in log.models.values()),
        "requests_per_second": round(log.requests / seconds, 2) if seconds > 0 else None,
        "pairs": len(log.pairs),
        "seed": seed,
        "scores": scores,
    }
    workload = f"closed loop, {users} users, pairs of one question to both models in random order"
    results = runs.timing_results(workload, timings, named, extra=extra)
    return runs.write(runs.new_run("load", NAME, subjects, [_data_file(source, questions)], command, results), path)


def _data_file(source: str, questions: int) -> runs.DataFile:
    path = Path(source)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""  # "": a set named on the Hub
    return runs.DataFile(path.name, sha256, questions, "samples" if path.resolve() == SAMPLES.resolve() else "other")

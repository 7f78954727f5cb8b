"""Run files about phones, made here: verifications, a compression, races, the audit, the zoo.  Invented numbers through the real builders."""

from __future__ import annotations

from typing import Any

import numpy as np

from pocketqa import runs
from pocketqa.statistics import Interval
from pocketqa.types import JSON, Scores

COUNT = 40
IDS = [f"q{i}" for i in range(COUNT)]
SHA = {"teacher": "a" * 64, "student": "b" * 64}
SERVER: JSON = {"name": "a processor", "os": "an OS", "compute_unit": "cpu", "thermal_state": None, "kind": "server"}
PHONE: JSON = {"name": "a phone", "os": "iOS 17", "compute_unit": "ne", "thermal_state": "nominal", "kind": "phone"}
LONG = "a model whose name is long and goes on for a while, as names of folders do (the-bundle-of-the-other-day)"


def made(
    kind: str, name: str, results: JSON, subjects: tuple[runs.Subject, ...], split: str = "squad-dev", not_checked: tuple[str, ...] = ()
) -> runs.RunFile:
    data = (runs.DataFile("dev.json", "d" * 64, COUNT, split),)
    environment = {"cpu": "a processor", "cores": 2}
    return runs.RunFile(kind, name, subjects, data, f"pocketqa {name}", "2026-03-01T00:00:00Z", environment, results, not_checked)


def lost(value: float) -> JSON:
    return Interval(value, value - 0.1, value + 0.2).to_json()


def verification(
    model: str = "student", target: str = "ios16", scheme: str = "fp16", megabytes: float = 45.3, right: int = 30, **changes: Any
) -> runs.RunFile:
    exact = (np.arange(COUNT) < right).astype(float)
    evaluation = runs.evaluation_results(Scores(100 * exact.mean(), 100 * exact.mean(), COUNT), exact, exact, IDS)
    agreement: JSON = {
        "count": COUNT,
        "f1_loss": lost(0.05),
        "exact_match_loss": lost(0.05),
        "same_spans": 97.5,
        "differing_count": 1,
        "differing": [],
        "close_calls": {"limit": 0.05, "all": True},
        "max_difference": 0.01,
        "mean_difference": 0.001,
        "psnr": 66.04,
    }
    fields: JSON = {
        "target": target,
        "scheme": scheme,
        "layout": "standard",
        "format": "mlprogram",
        "bytes": {"package": int(megabytes * 1e6), "weights": int(megabytes * 1e6) - 1000, "zipped": int(megabytes * 9e5)},
        "agreement": agreement,
        "gate": {"limit": 0.3, "f1_loss": lost(0.05), "passed": True},
        "hazards": [],
        "non_finite": {},
        "overflow": {},
        "operations": {"linear": 72},
    }
    results = runs.verification_results(evaluation, **(fields | changes))
    engine = "executorch" if target == "executorch" else "interpreter"
    subject = runs.Subject(model, model, SHA[model], engine, "1.0", scheme, 2)
    return made("verification", f"squad-dev {model} {target} {scheme} {results['layout']}", results, (subject,))


def point(megabytes: float, f1: float, **chosen: str) -> JSON:
    return {"bytes": int(megabytes * 1e6), "f1": f1, "f1_loss": lost(76.0 - f1), "chosen": chosen}


POINTS = (
    point(10.0, 73.0, embeddings="palette4", layers="palette4"),
    point(12.0, 75.4, embeddings="int8", layers="palette4"),
    point(15.0, 75.0, embeddings="palette4", layers="palette6"),
    point(45.0, 76.0, embeddings="fp16", layers="fp16"),
)


def compression(selected: Any = 1, points: tuple[JSON, ...] = POINTS, **changes: Any) -> runs.RunFile:
    results = runs.compression_results("40 questions", points, sensitivity={}, max_f1_drop=1.0, selected=selected) | changes
    return made("compression", "mixed student", results, (runs.Subject("student", "student", SHA["student"], "interpreter", "1.0", "mixed", 2),))


def race(
    name: str = "squad 1 thread",
    contestants: tuple[tuple[str, str, float], ...] = (("teacher", "onnxruntime fp32", 40.0), ("student", "onnxruntime fp32", 20.0)),
    *,
    device: JSON = SERVER,
    busy: bool = False,
    quantiles: bool = True,
    workload: str = "squad: questions of dev.json",
    **changes: Any,
) -> runs.RunFile:
    seconds = {f"{model}, {form}": np.linspace(0.5, 1.5, 101) * ms / 1e3 for model, form, ms in contestants}
    labels = list(seconds)
    summaries = {label: runs.summarise_times(values) for label, values in seconds.items()}
    stages = {
        label: {s: runs.summarise_times(v * share).to_json() for s, share in (("tokenise", 0.1), ("forward", 0.8), ("decode", 0.1))}
        for label, v in seconds.items()
    }
    ratios = {f"{labels[0]} / {labels[1]}": Interval(2.0, 1.9, 2.1)} if len(labels) > 1 else {}
    extra: JSON = {
        "mode": "full",
        "rules": {"queries": 64, "seconds": 6.0, "valid": not busy},
        "threads": 1,
        "stages": stages,
        "busy": busy,
        "device": device,
        "load": {"busy": busy, "reasons": ["other processes used 40% of the machine"] if busy else []},
        "lengths": [384],
        "quantiles": {label: [round(1e3 * float(v), 3) for v in values] for label, values in seconds.items()} if quantiles else {},
        "load_seconds": {label: {"cold": 0.81, "warm": 0.32} for label in labels},
        "first_run_seconds": {label: {"cold": 0.2, "warm": 0.1} for label in labels},
        "peak_memory_mib": {label: {"peak": 1310.4} for label in labels},
        "bytes": {label: {"package": 90_000_000, "weights": 89_000_000, "zipped": 80_000_000} for label in labels},
        "p90_ratios": {key: Interval(2.2, 2.1, 2.3).to_json() for key in ratios},
        "forward_ratios": {key: Interval(1.8, 1.7, 1.9).to_json() for key in ratios},
        "verdicts": dict.fromkeys(ratios, "the student is faster"),
        "origin": {},
    }
    subjects = tuple(
        runs.Subject(model, model, SHA.get(model, "e" * 64), form.split()[0], "1.0", form.split()[1], 1) for model, form, _ in contestants
    )
    return made("latency", name, runs.timing_results(workload, summaries, ratios, None, extra | changes), subjects)


AUDIT: JSON = {
    "claim": "the whole model weighs 207 MB",
    "source": "a paper",
    "published": "207,185,526 bytes",
    "ours": "66,364,418 parameters",
    "conditions": "recomputed",
    "like_for_like": False,
    "why_not": "there is no attention in it",
}


def zoo_row(name: str, times: float | None, published: list[JSON] | None = None, **changes: Any) -> JSON:
    row: JSON = {
        "name": name,
        "note": "",
        "layers": 6,
        "hidden": 768,
        "parameters": 66_362_880,
        "network_parameters": 66_364_418,
        "flops": 11_174_019_072,
        "bytes": {"fp32": 265_457_672, "fp16": 132_728_836, "int8": 66_364_418, "6 bits": 49_773_313, "4 bits": 33_182_209},
        "published": published or [],
    }
    if times is not None:
        summary = runs.summarise_times([0.05]).to_json()
        row |= {
            "latency": summary,
            "baseline_latency": summary,
            "speed_up": Interval(times, 0.9 * times, 1.1 * times).to_json(),
            "same_network_as": "",
        }
    return row | changes


SAID: JSON = {
    "source": "A 2019",
    "place": "table 1",
    "confirmed": True,
    "timed_on": "a GPU",
    "time": {"text": "410 s"},
    "speed_up": {"value": 1.63, "derived": True},
    "parameters": {"text": "66 M", "difference_percent": 0.64, "explanation": ""},
    "flops": {"text": "11.9 B", "difference_percent": -6.1, "explanation": "with a half more, it would be 11.9 B"},
}
DOUBTED: JSON = {
    "source": "B 2020",
    "place": "table 2",
    "confirmed": False,
    "timed_on": "a phone",
    "speed_up": {"value": 2.0, "derived": False},
    "parameters": {"text": "66.4 M", "difference_percent": -0.04, "explanation": ""},
}
REPORTED: JSON = {
    "name": "ELMo",
    "note": "LSTMs",
    "reported": [{"source": "A 2019", "place": "table 1", "confirmed": True, "parameters": {"text": "180 M"}}],
}


def zoo(*rows: JSON, **changes: Any) -> runs.RunFile:
    every = rows or (
        zoo_row("DistilBERT 6", 1.9, [SAID, DOUBTED]),
        zoo_row("its twin", 1.9, same_network_as="DistilBERT 6"),
        zoo_row("not timed", None),
        REPORTED,
    )
    timed = {row["name"]: runs.summarise_times([0.05]) for row in every if "latency" in row}
    extra: JSON = {
        "mode": "quick",
        "rules": {"valid": False},
        "stages": {},
        "busy": False,
        "device": SERVER,
        "convention": "parameters",
        "tokens": 128,
    }
    return made("latency", "zoo", runs.timing_results("zoo: 128 tokens", timed, None, None, extra | {"zoo": list(every)} | changes), ())

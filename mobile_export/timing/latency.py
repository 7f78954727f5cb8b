"""What a race says: summaries, ratios with their intervals, verdicts, and the results of a run file of kind "latency".

A ratio is how many times longer the first contestant takes than the second.  Samples are pairs (the same query, moments apart), so both ratios, of
medians and of 90th percentiles, resample pairs.  Where the interval holds 1 there is no verdict.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TypeGuard

import numpy as np

from mobile_export.formats.coreml_runtime import UNITS
from mobile_export.timing.machine_load import machine_cores
from mobile_export.timing.single_stream import (
    MODES,
    OWN_MINIMUMS,
    PERCENTILE,
    WARM_TOLERANCE,
    WARM_WINDOW,
    WHOLE_PASS,
    Entry,
    Race,
    Rules,
    missed_minimums,
)
from mobile_export.timing.workloads import STSB_PAIRS
from pocketqa.environment import describe_environment
from pocketqa.errors import DataError, OptionsError
from pocketqa.reporting.mobile_tables import BUSY, UNLIKE
from pocketqa.results import DEVICE, check_device
from pocketqa.runs import RunFile, TimingSummary, mean_ratio, median_ratio, quantile_ratio, read, summarise_times, timing_results
from pocketqa.statistics import RESAMPLES, TIME_UNITS, Interval
from pocketqa.types import JSON

STAGES = ("tokenise", "forward", "decode")
SUMMARY = ("count", "mean", "p50", "p90", "p99")  # numbers of a TimingSummary
BY_LABEL = {"load_seconds": ("cold", "warm"), "first_run_seconds": ("cold", "warm"), "stages": ("forward",), "bytes": ("package",)}
UNKNOWN = ("load_seconds", "first_run_seconds")  # may be null: not every system lets a cold start be made
THERMAL_STATES = ("nominal", "fair", "serious", "critical")  # ProcessInfo.ThermalState
DRAWN = 20_000_000  # values drawn for one interval at most: long runs need fewer resamples than short ones
FEWEST_RESAMPLES = 1000
SAME_TOTAL = 0.05  # share, or seconds, by which mean x count may miss the total: both are rounded
PAPER_SECONDS = {"BERT-base": 668.0, "DistilBERT": 410.0}  # DistilBERT paper (arXiv 1910.01108), table 3
SOURCE = "MLPerf Mobile, single stream (mlcommons/mobile_app_open: flutter/assets/tasks.pbtxt)"


def server_device() -> JSON:
    """The device block of this machine."""
    environment = describe_environment(())
    return dict(zip(DEVICE, (environment["cpu"], environment["os"], "cpu", None, "server"), strict=True))


def race_results(race: Race, sizes: Mapping[str, JSON], device: JSON | None = None) -> JSON:
    """Results of kind "latency" for a race; sizes: label -> bytes (see mobile_export.timing.sizes)."""
    entries = {entry.contestant.label: entry for entry in race.entries}
    pairs = compared(race.entries)
    ratios = {name: _ratios(a, b) for name, (a, b) in pairs.items()}
    unit = race.entries[0].contestant.unit
    problems = race.problems()
    rules = {"queries": race.rules.queries, "seconds": race.rules.seconds, "max_seconds": race.rules.max_seconds, "percentile": PERCENTILE}
    extra: JSON = {
        "mode": WHOLE_PASS if race.workload.whole else race.rules.mode,
        "rules": {**rules, "source": SOURCE, "valid": not problems, "problems": problems},
        "threads": None if unit else race.entries[0].contestant.threads,
        "cores": {"pinned": len(race.cores), "machine": machine_cores()},
        "seed": race.seed,
        "interrupted": race.interrupted,
        "queries": {label: len(entry.samples) for label, entry in entries.items()},
        "seconds": {label: round(float(entry.seconds().sum()), 3) for label, entry in entries.items()},
        "stages": {label: {stage: summarise_times(entry.seconds(stage)).to_json() for stage in STAGES} for label, entry in entries.items()},
        "quantiles": {label: [round(float(q) * 1e3, 3) for q in np.percentile(entry.seconds(), range(101))] for label, entry in entries.items()},
        "tokens": {label: _tokens(entry) for label, entry in entries.items()},
        "lengths": [race.workload.windows.max_tokens],  # of every window, or the longest where they vary
        "load_seconds": {label: _loads(entry) for label, entry in entries.items()},
        "first_run_seconds": {label: {"cold": _rounded(entry.first_cold), "warm": _rounded(entry.first_warm)} for label, entry in entries.items()},
        "warm_up": {"window": WARM_WINDOW, "tolerance": WARM_TOLERANCE, **{label: _warm_up(entry) for label, entry in entries.items()}},
        "peak_memory_mib": {label: _memory(entry) for label, entry in entries.items()},
        "bytes": dict(sizes),
        "origin": {label: entry.contestant.origin for label, entry in entries.items()},
        "p90_ratios": {name: found["p90"].to_json() for name, found in ratios.items()},
        "forward_ratios": {name: found["forward"].to_json() for name, found in ratios.items()},
        "verdicts": {name: _verdict(ratios[name]["p50"], a, b, race) for name, (a, b) in pairs.items()},
        "busy": race.load.reasons() != [],
        "load": race.load.to_json(),
        "restless": {label: entry.restless for label, entry in entries.items()},
        "device": device or server_device() | ({"compute_unit": unit} if unit else {}),
    }
    if race.workload.whole:
        extra |= _whole_pass(race)
    timings: dict[str, TimingSummary] = {label: summarise_times(entry.seconds()) for label, entry in entries.items()}
    runtimes = {label: entry.warm.info for label, entry in entries.items()}
    return timing_results(f"{race.workload.name}: {race.workload.description}", timings, {n: f["p50"] for n, f in ratios.items()}, runtimes, extra)


def compared(entries: Sequence[Entry]) -> dict[str, tuple[Entry, Entry]]:
    """Pairs worth a ratio, each earlier contestant over each later: two models in one engine, or one model in two engines."""
    pairs = {}
    for i, first in enumerate(entries):
        for second in entries[i + 1 :]:
            a, b = first.contestant, second.contestant
            same_form = (a.engine, a.precision) == (b.engine, b.precision)
            if same_form != ((a.name, a.sha256) == (b.name, b.sha256)):
                pairs[f"{a.label} / {b.label}"] = (first, second)
    return pairs


def verdict(ratio: Interval, first: str, second: str) -> str:
    """Which of two is faster, or that the interval does not say."""
    if ratio.low <= 1 <= ratio.high:
        return "no verdict: the interval of the ratio includes 1"
    return f"{second} is faster" if ratio.low > 1 else f"{first} is faster"


def _verdict(ratio: Interval, first: Entry, second: Entry, race: Race) -> str:
    """None either on a busy machine, or where windows are said to have one length and one contestant computes another: padding, or zeros."""
    a, b = first.contestant.label, second.contestant.label
    unlike = race.workload.fixed_length and [sample.positions for sample in first.samples] != [sample.positions for sample in second.samples]
    return UNLIKE if unlike else BUSY if race.load.reasons() else verdict(ratio, a, b)


def read_latency(path: str | os.PathLike[str]) -> RunFile:
    """A run file of kind "latency", from a phone or a server, whose fields are all there.  Raises DataError that lists what is not."""
    run = read(os.fspath(path))
    problems = latency_problems(run)
    if problems:
        raise DataError(f"{path}: not a latency that can be used: {'; '.join(problems)}. `pocketqa benchmark --help` describes the fields.")
    return run


def latency_problems(run: RunFile) -> list[str]:
    """What is missing or wrong in a run file of a latency, in words: whoever reads one without problems finds what it needs, of the right types."""
    if run.kind != "latency":
        return [f"expected kind latency, found {run.kind}"]
    r = run.results
    device = r.get("device")
    problems = check_device(device)
    if isinstance(device, dict):
        if device.get("compute_unit") not in list(UNITS):
            problems.append(f"compute_unit must be one of {', '.join(UNITS)}, found {device.get('compute_unit')!r}")
        if device.get("kind") == "phone" and device.get("thermal_state") not in THERMAL_STATES:
            problems.append(f"the thermal_state of a phone must be one of {', '.join(THERMAL_STATES)}, found {device.get('thermal_state')!r}")
    labels = sorted(r["timings"]) if isinstance(r.get("timings"), dict) else []
    if not labels:
        problems.append("timings must hold at least one summary")
    for label in labels:
        problems += _summary_problems(f"timings of {label!r}", r["timings"][label]) or _contradictions(r, label)
    for key, fields in BY_LABEL.items():
        for label in labels:
            problems += _fields_problems(key, fields, label, _entry(r, key, label))
    for key in ("queries", "seconds"):
        measured = [(label, _entry(r, key, label)) for label in labels]
        problems += [f"{key} needs a number for {label!r}, found {value!r}" for label, value in measured if not _is_number(value)]
    problems += _further_problems(r)
    rules = r.get("rules")
    if not isinstance(rules, dict) or not isinstance(rules.get("valid"), bool) or not all(_is_number(rules.get(n)) for n in ("queries", "seconds")):
        problems.append("rules needs queries and seconds, which are numbers, and valid, which is true or false")
    try:
        mode_rules(r.get("mode"))
    except OptionsError as error:
        problems.append(str(error))
    return problems


def _further_problems(r: JSON) -> list[str]:
    """Of what a file may leave out."""
    ratios, tokens = r.get("forward_ratios", {}), r.get("tokens", {})
    problems = []
    if not isinstance(ratios, dict) or not all(
        isinstance(one, dict) and all(_is_number(one.get(end)) and one[end] > 0 for end in ("value", "low", "high")) for one in ratios.values()
    ):
        problems.append("forward_ratios, where there are any, must hold value, low and high above 0 for each pair")
    if not isinstance(tokens, dict) or not all(
        isinstance(one, dict) and all(_is_number(one.get(kind)) for kind in ("mean", "positions")) for one in tokens.values()
    ):
        problems.append("tokens, where there are any, must hold the numbers mean and positions for each label")
    return problems


def mode_rules(mode: object) -> Rules:
    """What a mode asks for, also of a file that took minimums of its own in their place.  Raises OptionsError for a mode that is none."""
    modes = {WHOLE_PASS: Rules(WHOLE_PASS, STSB_PAIRS, 0.0), **MODES, **{f"{name} {OWN_MINIMUMS}": rules for name, rules in MODES.items()}}
    if not isinstance(mode, str) or mode not in modes:
        raise OptionsError(f"mode must be one of {', '.join(modes)}, found {mode!r}")
    return modes[mode]


def why_not_valid(results: JSON) -> list[str]:
    """Why a latency without `latency_problems` is not valid under its mode, whatever it says of itself; empty for a valid one."""
    rules, queries, seconds = mode_rules(results["mode"]), results["queries"], results["seconds"]
    problems = [problem for label in results["timings"] for problem in missed_minimums(rules, queries[label], seconds[label], label)]
    return problems or ([] if results["rules"]["valid"] else ["the file itself says so"])


def _entry(results: JSON, key: str, label: str) -> object:
    group = results.get(key)
    return group.get(label) if isinstance(group, dict) else None


def _fields_problems(key: str, fields: Sequence[str], label: str, found: object) -> list[str]:
    if not isinstance(found, dict) or any(name not in found for name in fields):
        return [f"{key} needs {' and '.join(fields)} for {label!r}"]
    if key == "stages":
        return [problem for name in fields for problem in _summary_problems(f"{key}.{name} of {label!r}", found[name])]
    wrong = [name for name in fields if not _is_number(found[name]) and not (found[name] is None and key in UNKNOWN)]
    return [f"{key}.{name} of {label!r} must be a number{' or null' if key in UNKNOWN else ''}, found {found[name]!r}" for name in wrong]


def _summary_problems(where: str, summary: object) -> list[str]:
    if not isinstance(summary, dict):
        return [f"{where} must be a summary ({', '.join(SUMMARY)}, unit), found {summary!r}"]
    problems = [f"{where}: {name} must be a number, found {summary.get(name)!r}" for name in SUMMARY if not _is_number(summary.get(name))]
    if summary.get("unit") not in list(TIME_UNITS):
        problems.append(f"{where}: unit must be one of {', '.join(TIME_UNITS)}, found {summary.get('unit')!r}")
    if not problems and not summary["p50"] <= summary["p90"] <= summary["p99"]:
        problems.append(f"{where}: expected p50 <= p90 <= p99, found {summary['p50']}, {summary['p90']}, {summary['p99']}")
    return problems


def _contradictions(results: JSON, label: str) -> list[str]:
    """Where a summary without `_summary_problems` is not of the queries and seconds that the file gives; both are looked for elsewhere."""
    timing, queries, seconds = results["timings"][label], _entry(results, "queries", label), _entry(results, "seconds", label)
    problems = []
    if _is_number(queries) and queries != timing["count"]:
        problems.append(f"queries of {label!r} must be the count of its timings, {timing['count']}, found {queries}")
    total = float(timing["mean"]) * timing["count"] / TIME_UNITS[timing["unit"]]
    if _is_number(seconds) and not math.isclose(total, seconds, rel_tol=SAME_TOTAL, abs_tol=SAME_TOTAL):
        problems.append(f"seconds of {label!r} must be mean x count of its timings, {total:.3f}, found {seconds}")
    return problems


def _is_number(value: object) -> TypeGuard[float]:
    """Of 0 or more, and no greater than can be computed with."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _ratios(first: Entry, second: Entry) -> dict[str, Interval]:
    a, b = first.seconds(), second.seconds()
    resamples = int(np.clip(DRAWN // max(len(a), 1), FEWEST_RESAMPLES, RESAMPLES))
    return {
        "p50": median_ratio(a, b, resamples=resamples),
        "p90": quantile_ratio(a, b, PERCENTILE / 100, resamples=resamples),
        "forward": median_ratio(first.seconds("forward"), second.seconds("forward"), resamples=resamples),
    }


def _whole_pass(race: Race) -> JSON:
    """Seconds of one pass over STS-B and their ratios (sums over the same queries: pairs are resampled), beside the paper's."""
    seconds = {e.contestant.label: {s: round(float(e.seconds(s).sum()), 3) for s in ("forward", "total")} for e in race.entries}
    ratios = {
        name: {stage: mean_ratio(a.seconds(stage), b.seconds(stage)).to_json() for stage in ("forward", "total")}
        for name, (a, b) in compared(race.entries).items()
    }
    remarks = [f"{label}: {found['total']:.1f} s a pass, of which forward {found['forward']:.1f} s" for label, found in seconds.items()]
    for name, found in ratios.items():
        total = found["total"]
        remarks.append(f"{name}: a pass takes {total['value']:.3f} [{total['low']:.3f}, {total['high']:.3f}] times as long")
    teacher, student = PAPER_SECONDS.values()
    remarks += [
        f"DistilBERT paper, table 3: {teacher:.0f} s with BERT-base, {student:.0f} s with DistilBERT (Intel Xeon E5-2690 v3, batch 1): "
        f'{teacher / student:.2f} times. Its "60 % faster" is that ratio of throughputs less one; in time it is {1 - student / teacher:.0%} less.',
        "The paper states neither threads nor padding. Here pairs are unpadded, and the head is that of question answering in place of a regression "
        "head, whose cost is negligible beside the encoder's.",
    ]
    paper = {"seconds": PAPER_SECONDS, "ratio": round(teacher / student, 4)}
    return {"whole_pass": {"seconds": seconds, "ratios": ratios, "paper": paper}, "remarks": remarks}


def _tokens(entry: Entry) -> JSON:
    tokens = np.array([sample.tokens for sample in entry.samples])
    return {
        "mean": round(float(tokens.mean()), 1),
        "longest": int(tokens.max()),
        "positions": round(float(np.mean([sample.positions for sample in entry.samples])), 1),
        "windows": round(float(np.mean([sample.windows for sample in entry.samples])), 3),
        "first_of_a_length": sum(sample.new_length for sample in entry.samples),
    }


def _loads(entry: Entry) -> JSON:
    """cold: a fresh process whose files were dropped from the page cache; warm: the next one; start: until its libraries were imported."""
    cold = entry.cold
    return {
        "cold": _rounded(cold.load if cold else None),
        "warm": _rounded(entry.warm.load),
        "start": _rounded(entry.warm.start),
        "cold_fetched_mib": _rounded(cold.fetched if cold else None, 1),
        "warm_fetched_mib": _rounded(entry.warm.fetched, 1),
    }


def _memory(entry: Entry) -> JSON:
    found = {"before_load": entry.warm.memory_before, "after_load": entry.warm.memory_after, "peak": entry.closed.peak}
    return {name: _rounded(value, 1) for name, value in found.items()}


def _warm_up(entry: Entry) -> JSON:
    return {"queries": len(entry.warm_up), "steady": entry.settled}


def _rounded(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)

"""pocketqa benchmark MODEL_OR_BUNDLE...: bytes and latency, measured as a phone would be: one question at a time.

pocketqa benchmark models/teacher models/student
pocketqa benchmark models/teacher models/student --mode full --engines onnxruntime,openvino --threads 1,2 --run-file runs
pocketqa benchmark models/teacher models/student --workload stsb glue/STS-B
pocketqa benchmark --preset paper --run-file runs
pocketqa benchmark --check phone.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mobile_export.bundle import holds_bundle
from mobile_export.timing.benchmark_options import DEFAULT_ENGINE, check_run_file, numbers, parse, rules_of, thread_counts
from mobile_export.timing.contestants import Contestant, bundle_contestant, model_contestant, parse_engine, runs_here, told_apart
from mobile_export.timing.latency import mode_rules, race_results, read_latency, why_not_valid
from mobile_export.timing.latency_text import race_lines, size_lines, threads_or_unit
from mobile_export.timing.machine_load import load_average
from mobile_export.timing.single_stream import race
from mobile_export.timing.sizes import sizes_of
from mobile_export.timing.workloads import LONGEST_WINDOW, Workload, fixed_workload, squad_workload, stsb_workload
from pocketqa import runs
from pocketqa.errors import OptionsError
from pocketqa.features import Tokenizer
from pocketqa.runtimes import ENGINES
from pocketqa.types import JSON

if TYPE_CHECKING:
    from mobile_export.timing.single_stream import Race

NO_PHONE = "phones: this is the CPU of a server or desktop machine"


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit status: 1 where a race was interrupted, or a checked file is not valid under its mode.  Raises PocketQAError."""
    arguments = parse(argv)
    runs.check_target(arguments.run_file)
    if arguments.check:
        return _check_file(arguments.check, arguments.json)
    if arguments.preset == "paper":
        from mobile_export.timing.paper import run

        return run(arguments, argv)
    if arguments.preset == "zoo":
        return _zoo(arguments, argv)
    return _race(arguments, argv)


def _race(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    average, rules = load_average(), rules_of(arguments)
    contestants = _contestants(arguments)
    heats = _heats(arguments, contestants)
    check_run_file(arguments.run_file, len(heats))
    sizes = {contestant.label: sizes_of(contestant) for contestant in contestants}
    if not arguments.json:
        print("\n".join(size_lines(sizes)), flush=True)
    for contestant in contestants:
        if not runs_here(contestant):
            progress(f"{contestant.label}: Core ML computes on a Mac only, so this machine gives its sizes and no times")
    documents: list[JSON] = []
    for number, (racing, workload) in enumerate(heats, 1):
        progress(f"race {number} of {len(heats)}: {workload.description}, {threads_or_unit(racing[0].threads, racing[0].unit)}")
        done = race(racing, workload, rules, seed=arguments.seed, load_average=average, say=progress)
        documents.append(race_results(done, {contestant.label: sizes[contestant.label] for contestant in racing}))
        if not arguments.json:
            print("\n".join(race_lines(documents[-1])), flush=True)
        if arguments.run_file:
            progress(f"run file: {runs.write(run_of(done, documents[-1], argv), arguments.run_file)}")
        if done.interrupted:
            break
    if arguments.json:
        print(json.dumps({"sizes": sizes, "races": documents}))
    return int(any(done["interrupted"] for done in documents))


def _zoo(arguments: argparse.Namespace, argv: Sequence[str]) -> int:
    from mobile_export.timing import zoo

    visit = zoo.run(
        rules_of(arguments),
        engine=arguments.engines or DEFAULT_ENGINE,
        threads=thread_counts(arguments)[0],
        names=arguments.models,
        seed=arguments.seed,
        load_average=load_average(),
        say=progress,
    )
    if arguments.run_file:
        run = runs.new_run("latency", "zoo", visit.subjects, visit.data, ["pocketqa", "benchmark", *argv], visit.results, [NO_PHONE])
        progress(f"run file: {runs.write(run, arguments.run_file)}")
    print(json.dumps(visit.results) if arguments.json else "\n".join(zoo.lines(visit.results)))
    return int("the run was interrupted" in visit.results["rules"]["problems"])


def progress(line: str) -> None:
    """One line to standard error."""
    print(line, file=sys.stderr, flush=True)


def run_of(done: Race, results: JSON, argv: Sequence[str], name: str = "") -> runs.RunFile:
    """The run file of a race."""
    subjects = [entry.contestant.subject(entry.warm.info) for entry in done.entries]
    models = " ".join(dict.fromkeys(entry.contestant.name for entry in done.entries))
    first = done.entries[0].contestant
    title = name or f"{models} {done.workload.name} {threads_or_unit(first.threads, first.unit)} {done.rules.mode}"
    return runs.new_run("latency", title, subjects, done.workload.data, ["pocketqa", "benchmark", *argv], results, not_checked(done))


def not_checked(done: Race) -> list[str]:
    """What a race on this machine could not check."""
    lines = [NO_PHONE]
    if done.load.others is None:
        lines.append("other processes: this system does not say how much they used")
    if not done.cores:
        lines.append("cores: this system does not pin processes")
    return lines


def _contestants(arguments: argparse.Namespace) -> list[Contestant]:
    """Every model folder in every engine, and every bundle in its own, with one thread.  Names are made unique."""
    engines = (arguments.engines or DEFAULT_ENGINE).split(",")
    named = {engine: parse_engine(engine)[0] for engine in engines}
    made = []
    for model in arguments.models:
        if holds_bundle(Path(model)):
            made.append(bundle_contestant(model, 1, unit=arguments.compute_unit))
        elif fitting := [engine for engine in engines if named[engine] in ENGINES]:
            made += [model_contestant(model, engine, 1) for engine in fitting]
        else:
            raise OptionsError(
                f"{model} is a model folder, which runs in {', '.join(ENGINES)}; found {','.join(engines)}, of bundles: `pocketqa export`."
            )
    return told_apart(made)


def _heats(arguments: argparse.Namespace, contestants: Sequence[Contestant]) -> list[tuple[list[Contestant], Workload]]:
    able = [contestant for contestant in contestants if runs_here(contestant)]
    workloads = [made for name in arguments.workload for made in _workloads(name, arguments, able)] if able else []
    return heats_of(able, workloads, thread_counts(arguments))


def heats_of(able: Sequence[Contestant], workloads: Sequence[Workload], threads: Sequence[int]) -> list[tuple[list[Contestant], Workload]]:
    """Who races on what: each workload with each number of threads; Core ML once and by itself, since it decides on its threads.

    A bundle whose lengths are too short for a workload, or other than its one length, sits it out.
    """
    heats = []
    for workload in workloads:
        fitting = [c for c in able if _fits(c, workload)]
        for c in able:
            if c not in fitting:
                progress(f"{c.label}: takes windows of {' or '.join(map(str, c.lengths or ()))} tokens, so it is left out of {workload.name}")
        pinned, others = [c for c in fitting if not c.unit], [c for c in fitting if c.unit]
        heats += [([replace(c, threads=count) for c in pinned], workload) for count in threads if pinned]
        heats += [(others, workload)] if others else []
    return heats


def _fits(contestant: Contestant, workload: Workload) -> bool:
    """Padding would make windows of one length other work than they are for the others."""
    if contestant.lengths is None:
        return True
    return max(contestant.lengths) >= workload.windows.max_tokens and workload.fixed_length in (None, *contestant.lengths)


def _workloads(name: str, arguments: argparse.Namespace, contestants: Sequence[Contestant]) -> list[Workload]:
    if name == "stsb":
        return [stsb_workload(arguments.stsb)]
    tokenizer = Tokenizer(contestants[0].tokenizer)
    if name == "squad":
        longest = min([LONGEST_WINDOW, *(max(c.lengths) for c in contestants if c.lengths)])
        return [squad_workload(arguments.data, seed=arguments.seed, max_tokens=longest, tokenizer=tokenizer)]
    return [fixed_workload(length, tokenizer, arguments.data, seed=arguments.seed) for length in numbers("--lengths", arguments.lengths)]


def _check_file(path: str, as_json: bool) -> int:
    run = read_latency(path)
    device, mode, problems = run.results["device"], run.results["mode"], why_not_valid(run.results)
    if as_json:
        rules = run.results["rules"] | {"valid": not problems, "problems": problems}
        print(json.dumps({"name": run.name, "device": device, "timings": run.results["timings"], "rules": rules}))
        return int(bool(problems))
    print(f"{path}: a latency of kind {device['kind']}, {device['name']}, {device['os']}, compute unit {device['compute_unit']}")
    asked = mode_rules(mode)
    state = f"NOT VALID: {'; '.join(problems)}" if problems else "valid"
    print(f"{mode}, at least {asked.queries:,} queries and {asked.seconds:.0f} s: {state}")
    for label, timing in run.results["timings"].items():
        print(f"  {label}: p90 {timing['p90']:.2f} {timing['unit']}, p50 {timing['p50']:.2f}")
    return int(bool(problems))

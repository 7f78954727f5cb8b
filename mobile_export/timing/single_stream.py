"""The race: contestants answer the same queries one at a time, under the single-stream rules of MLPerf Mobile.

The rules (mlcommons/mobile_app_open: flutter/assets/tasks.pbtxt, natural_language_processing): queries of a data set are drawn with replacement
and answered one after the other; a result needs at least so many queries and so many seconds, and its figure is the 90th percentile of latency.
The app stops its quick and rapid runs after 60 s; here every mode may take as long as the full one, since a CPU with one thread is slow.

What is added to them: every query is put to all contestants, in an order drawn anew each time, so that a change of the machine's pace hits all
alike and their times are pairs; each contestant first answers its longest query until its median is steady; loads are timed from storage and from
memory; and ratios carry bootstrap intervals.
"""

from __future__ import annotations

import contextlib
import signal
import statistics as stdlib_statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mobile_export.timing import machine_load
from mobile_export.timing.contestants import Contestant
from mobile_export.timing.machine_load import Load, Snapshot
from mobile_export.timing.processes import Closed, Opened, Process, Sample, drop_from_cache
from mobile_export.timing.workloads import Workload
from pocketqa.errors import OptionsError, VocabularyMismatch

PERCENTILE = 90  # MLPerf's figure for single-stream latency
WARM_WINDOW = 8  # queries whose median is compared with that of the same number before them
WARM_TOLERANCE = 0.05
WARM_QUERIES, WARM_SECONDS = 64, 60.0  # where no median settles
PROGRESS_SECONDS = 10.0

Say = Callable[[str], None]
Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rules:
    """What a result needs to be valid: queries and seconds of each contestant; no contestant is timed for longer than max_seconds."""

    mode: str
    queries: int
    seconds: float
    max_seconds: float = 600.0


OWN_MINIMUMS = "with minimums of its own"  # behind a mode
WHOLE_PASS = "whole pass"  # in place of a mode
MODES = {"full": Rules("full", 1024, 60.0), "quick": Rules("quick", 128, 10.0), "rapid": Rules("rapid", 64, 6.0)}


@dataclass(frozen=True, slots=True)
class Entry:
    """What was measured of one contestant.

    cold: a fresh process after its files were dropped from the page cache (None where that was left out); warm: the next fresh process, which
    then ran the race; first_*: seconds of its first query; warm_up: seconds of the queries before the race; settled: whether their median did;
    restless: queries after which its threads would not stop before the next contestant was asked.
    """

    contestant: Contestant
    cold: Opened | None
    first_cold: float | None
    warm: Opened
    first_warm: float
    warm_up: tuple[float, ...]
    settled: bool
    samples: tuple[Sample, ...]
    restless: int
    closed: Closed

    def seconds(self, stage: str = "total") -> Seconds:
        """(N,) seconds of a stage ("tokenise", "forward", "decode" or "total"), in the order of the race."""
        return np.array([getattr(sample, stage) for sample in self.samples])


@dataclass(frozen=True, slots=True)
class Race:
    """Contestants timed together: sample i of each is of the same query."""

    entries: tuple[Entry, ...]
    workload: Workload
    rules: Rules
    load: Load
    cores: tuple[int, ...]
    seed: int
    interrupted: bool

    def problems(self) -> list[str]:
        """Why the result is not valid under the rules; empty for a valid one."""
        return [problem for entry in self.entries for problem in broken_rules(self.rules, self.workload, entry.seconds(), entry.contestant.label)] + (
            ["the run was interrupted"] if self.interrupted else []
        )


@dataclass(slots=True)
class _Runner:
    """A contestant while the race goes on."""

    contestant: Contestant
    process: Process
    warm: Opened
    first: float
    cold: Opened | None = None
    first_cold: float | None = None
    warm_up: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    total: float = 0.0
    restless: int = 0

    def ask(self, number: int) -> None:
        sample = self.process.ask(number)
        self.samples.append(sample)
        self.total += sample.total
        self.restless += not self.process.settle()

    def entry(self) -> Entry:
        return Entry(
            contestant=self.contestant,
            cold=self.cold,
            first_cold=self.first_cold,
            warm=self.warm,
            first_warm=self.first,
            warm_up=tuple(self.warm_up),
            settled=is_warm(self.warm_up),
            samples=tuple(self.samples),
            restless=self.restless,
            closed=self.process.close(),
        )


def race(
    contestants: Sequence[Contestant],
    workload: Workload,
    rules: Rules,
    *,
    seed: int = 0,
    cold: bool = True,
    load_average: float | None = None,
    say: Say = lambda line: None,
) -> Race:
    """Time contestants on a workload.  Ctrl-C ends the race and keeps what was measured, as a result that is not valid.

    cold: time a load from storage first; load_average: of the machine before anything of ours ran (machine_load.load_average).
    Raises OptionsError for contestants that cannot be compared, VocabularyMismatch, EngineError.
    """
    threads = _check(contestants, workload)
    cores = machine_load.pick_cores(threads)
    longest = max(range(len(workload.queries)), key=lambda i: len(workload.queries[i].context) + len(workload.queries[i].ids))
    colds = [_cold(contestant, workload, cores, longest, say) if cold else (None, None) for contestant in contestants]
    before = Snapshot.take()
    with contextlib.ExitStack() as stack, interruption() as interrupted:
        runners = []
        for contestant, (opened, first) in zip(contestants, colds, strict=True):
            process = stack.enter_context(Process(contestant, cores))
            say(f"warming up {contestant.label}, {threads} {'thread' if threads == 1 else 'threads'}")
            runners.append(_warm_up(contestant, process, workload, longest, interrupted))
            runners[-1].cold, runners[-1].first_cold = opened, first
        _check_vocabularies(runners)
        _run(runners, workload, rules, seed, interrupted, say)
        entries = tuple(runner.entry() for runner in runners)
    load = _load(before, entries, workload, load_average)
    return Race(entries, workload, rules, load, cores, seed, interrupted.is_set())


def is_warm(seconds: Sequence[float], window: int = WARM_WINDOW, tolerance: float = WARM_TOLERANCE) -> bool:
    """Whether the median of the last `window` equal queries is within `tolerance` of that of the `window` queries before them."""
    if len(seconds) < 2 * window:
        return False
    earlier, later = (stdlib_statistics.median(part) for part in (seconds[-2 * window : -window], seconds[-window:]))
    return abs(later - earlier) <= tolerance * earlier


def broken_rules(rules: Rules, workload: Workload, seconds: Seconds, label: str) -> list[str]:
    """The rules that the times (N,) of one contestant break, in words."""
    if workload.whole:
        asked = workload.expected or len(workload.queries)
        return [] if len(seconds) == asked else [f"{label}: a whole pass is {asked:,} queries, found {len(seconds):,}"]
    return missed_minimums(rules, len(seconds), float(seconds.sum()), label)


def missed_minimums(rules: Rules, queries: int, seconds: float, label: str) -> list[str]:
    """The minimums of the rules that the queries and seconds of one contestant do not reach, in words."""
    problems = []
    if queries < rules.queries:
        problems.append(f"{label}: {queries:,} queries, at least {rules.queries:,} are needed")
    if seconds < rules.seconds:
        problems.append(f"{label}: {seconds:.1f} s, at least {rules.seconds:.0f} s are needed")
    return problems


def query_order(workload: Workload, seed: int) -> Iterator[int]:
    """Numbers of the queries to ask: drawn with replacement without end, or each once in a random order."""
    random = np.random.default_rng(seed)
    if workload.whole:
        yield from map(int, random.permutation(len(workload.queries)))
        return
    while True:
        yield from map(int, random.integers(0, len(workload.queries), 1024))


def seconds_left(rules: Rules, asked: int, totals: Sequence[float], elapsed: float, whole: int | None = None) -> float:
    """Estimate of the time until every contestant satisfies the rules, from `asked` rounds that took `elapsed` seconds."""
    if asked == 0:
        return float("inf")
    if whole is not None:
        return (whole - asked) * elapsed / asked
    rounds = max(rules.queries - asked, (rules.seconds - min(totals)) * asked / max(min(totals), 1e-9), 0)
    allowed = (rules.max_seconds - max(totals)) * asked / max(max(totals), 1e-9)
    return max(0.0, min(rounds, allowed)) * elapsed / asked


def foreseen(rules: Rules, asked: int, totals: Sequence[float]) -> str | None:
    """That the time which a contestant may take will not do for a valid result, judged by `asked` queries that took each `totals` seconds."""
    pace = rules.max_seconds / max(totals)  # how many times what was asked so far may be asked
    queries = int(asked * pace)
    if not missed_minimums(rules, queries, min(totals) * pace, ""):
        return None
    return (
        f"at this pace {queries:,} queries fit into the {rules.max_seconds:.0f} s that a contestant may take, too few for a valid result "
        f"({rules.queries:,} queries and {rules.seconds:.0f} s of each); stop with Ctrl-C and give minimums of your own: --queries, --seconds"
    )


@contextlib.contextmanager
def interruption() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one ends the program as usual.  Outside the main thread Ctrl-C is left alone."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return

    def note(number: int, frame: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, previous)


def _check(contestants: Sequence[Contestant], workload: Workload) -> int:
    """The number of threads of all.  Raises OptionsError."""
    problems = []
    if not contestants:
        problems.append("expected at least one contestant, found none")
    labels = [contestant.label for contestant in contestants]
    if twice := sorted({label for label in labels if labels.count(label) > 1}):
        problems.append(f"{', '.join(twice)}: given twice; name each model once")
    if len({contestant.threads for contestant in contestants}) > 1:
        problems.append("contestants of one race must have the same number of threads")
    longest = workload.windows.max_tokens
    short = {c.label: max(c.lengths) for c in contestants if c.lengths and max(c.lengths) < longest}
    problems += [f"{label} takes windows of at most {length} tokens, not {longest}" for label, length in short.items()]
    if problems:
        raise OptionsError("; ".join(problems))
    return contestants[0].threads


def _check_vocabularies(runners: Sequence[_Runner]) -> None:
    first = runners[0]
    for other in runners[1:]:
        if other.warm.vocabulary != first.warm.vocabulary:
            raise VocabularyMismatch(
                f"{first.contestant.label} and {other.contestant.label} split text differently, so one query is not the same work for both. "
                "Compare models of one vocabulary."
            )


def _cold(contestant: Contestant, workload: Workload, cores: Sequence[int], query: int, say: Say) -> tuple[Opened, float]:
    say(f"loading {contestant.label} cold")
    drop_from_cache(contestant.files())
    with Process(contestant, cores) as process:
        opened = process.open()
        process.give(workload)
        return opened, process.ask(query).total


def _warm_up(contestant: Contestant, process: Process, workload: Workload, query: int, interrupted: threading.Event) -> _Runner:
    opened = process.open()
    process.give(workload)
    runner = _Runner(contestant, process, opened, process.ask(query).total)
    while len(runner.warm_up) < WARM_QUERIES and sum(runner.warm_up) < WARM_SECONDS and not is_warm(runner.warm_up) and not interrupted.is_set():
        runner.warm_up.append(process.ask(query).total)
    return runner


def _run(runners: Sequence[_Runner], workload: Workload, rules: Rules, seed: int, interrupted: threading.Event, say: Say) -> None:
    random = np.random.default_rng((seed, 1))
    began = reported = time.monotonic()
    whole = len(workload.queries) if workload.whole else None
    warned = False
    for asked, number in enumerate(query_order(workload, seed), 1):
        for position in random.permutation(len(runners)):
            runners[position].ask(number)
        totals = [runner.total for runner in runners]
        now = time.monotonic()
        if now - reported >= PROGRESS_SECONDS:
            reported = now
            left = seconds_left(rules, asked, totals, now - began, whole)
            say(f"{workload.name}: {asked:,} queries, {min(totals):.0f} to {max(totals):.0f} s of each; about {left / 60:.1f} min left")
            if whole is None and not warned and (warning := foreseen(rules, asked, totals)):
                say(f"{workload.name}: {warning}")
                warned = True
        enough = whole is None and asked >= rules.queries and min(totals) >= rules.seconds
        if interrupted.is_set() or enough or (whole is None and max(totals) >= rules.max_seconds):
            return


def _load(before: Snapshot, entries: Sequence[Entry], workload: Workload, average: float | None) -> Load:
    """The load of the machine over the race, and what it did to the contestants."""
    waits = [entry.closed.waited for entry in entries]
    waited = None if None in waits else sum(w for w in waits if w is not None) / max(sum(entry.closed.cpu for entry in entries), 1e-9)
    costs = [np.array([sample.total / sample.positions for sample in entry.samples]) for entry in entries]  # (N,) each
    equal = workload.fixed_length is not None
    return before.until(
        Snapshot.take(),
        cores=machine_load.machine_cores(),
        average=average,
        waited=waited,
        drift=max((d for c in costs if (d := machine_load.drift(c)) is not None), default=None),
        spread=max((s for c in costs if (s := machine_load.spread(c)) is not None), default=None) if equal else None,
    )

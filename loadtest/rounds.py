"""Rounds of an open loop: several contestants in turn, in an order drawn anew for each round, with the same questions at the same Poisson times."""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from loadtest.open_loop import Sent, arrivals, run_open_loop, why_void
from loadtest.processes import Cores
from loadtest.questions import SAMPLES, Question
from loadtest.race import RESAMPLES, request_of
from loadtest.service_benchmark import say
from pocketqa import runs

OK = 200
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

Seconds = Sequence[NDArray[np.float64]]  # latencies (N,) of each round


def split_cores() -> Cores:
    """Two cores for the servers and one of the others for the client; none in particular where there are fewer than three."""
    allowed = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    return Cores(allowed[:2], allowed[2:]) if len(allowed) > 2 else Cores((), ())


def not_checked(cores: Cores) -> list[str]:
    """What a run file says was not done where `split_cores` found too few."""
    return [] if cores.client else ["client and servers on different cores: that takes three, or a system that pins processes"]


def run_rounds(
    ports: Mapping[str, int], questions: Sequence[Question], rate: float, given: argparse.Namespace, note: Callable[[str, list[Sent]], None]
) -> list[str]:
    """All rounds; returns why some of them say more about the client than about a contestant, or of refusals than of answers.

    ports: by name.  note: told of a contestant's requests in one round before the next one is asked.
    """
    choice = random.Random(given.seed)
    void = []
    for number in range(given.rounds):
        times = arrivals(rate, given.seconds, choice.randrange(1 << 32))
        plan = [request_of(question) for question in choice.choices(questions, k=len(times))]
        for name in choice.sample(sorted(ports), len(ports)):
            sent = run_open_loop(ports[name], plan, times)
            note(name, sent)
            latencies = [one.latency for one in sent]
            if reason := why_void([one.lag for one in sent], latencies):
                void.append(f"round {number + 1}, {name}: {reason}")
            if failed := sum(one.status != OK for one in sent):
                void.append(f"round {number + 1}, {name}: {failed} of {len(sent)} questions were not answered, and refusals are quick; lower --rate")
            p50, p99 = 1000 * np.quantile(latencies, (0.5, 0.99))
            say(f"round {number + 1} of {given.rounds}, {name}: {len(sent)} questions, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    return void


def ratios_of(first: Seconds, second: Seconds) -> dict[str, runs.Interval]:
    """How many times the percentiles of the second those of the first are; rounds are drawn, since the questions of one wait for each other."""
    rounds = np.repeat(np.arange(len(first)), [len(times) for times in first])  # (R * N,)
    above, below = np.concatenate(first), np.concatenate(second)
    return {of: runs.quantile_ratio(above, below, quantile, rounds, resamples=RESAMPLES) for of, quantile in QUANTILES.items()}


def add_options(parser: argparse.ArgumentParser, rate: str) -> None:
    """What the commands that run rounds have in common.  rate: the default of --rate, in words."""
    parser.add_argument("--student", metavar="DIR", help="the student, which is asked (default: that of pocketqa serve)")
    parser.add_argument("--teacher", metavar="DIR", help="the teacher beside it")
    parser.add_argument("--data", default=str(SAMPLES), metavar="FILE", help="questions in SQuAD format (default: the project's own samples)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="a random sample of N questions; 0, the default, takes all")
    parser.add_argument("--rate", type=float, metavar="N", help=f"questions a second (default: {rate})")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="of each run (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=10, metavar="N", help="runs of each contestant (default: %(default)s)")
    parser.add_argument("--serve-options", type=str.split, default=[], metavar="TEXT", help='more options of `pocketqa serve`, as "--batching off"')
    parser.add_argument("--seed", type=int, default=0, help="of questions, orders, times and draws (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--run-file", metavar="PATH", help="write the numbers to a run file, or into a folder")

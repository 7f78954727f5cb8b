"""The options of loadtest/qa.py, beside Locust's own."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from loadtest.objectives import Objective
from loadtest.open_loop import MAX_LAG
from loadtest.questions import SAMPLES

if TYPE_CHECKING:
    from locust.argument_parser import LocustArgumentParser


def add_options(parser: LocustArgumentParser) -> None:
    """Those that a person may change between two runs are on the web page too."""
    parser.add_argument("--squad", default=str(SAMPLES), metavar="FILE", help="PocketQA: questions in SQuAD format (default: its own samples)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="PocketQA: ask a random sample of N questions; 0, the default, asks all")
    parser.add_argument("--seed", type=int, default=0, help="PocketQA: seed of the order of questions and models, and of arrivals (default: 0)")
    parser.add_argument("--top-k", type=int, default=1, help="PocketQA: answers wanted per question (default: 1)")
    parser.add_argument("--no-answer", action="store_true", help="PocketQA: allow `no answer`, and ask the unanswerable questions too")
    parser.add_argument(
        "--open-loop",
        type=float,
        default=0.0,
        metavar="RATE",
        help="PocketQA: requests a second at random times, whether or not those before were answered; users are connections. "
        "0, the default: each user asks again as soon as it has its answer",
    )
    parser.add_argument(
        "--max-lag",
        type=float,
        default=1000 * MAX_LAG,
        metavar="MS",
        help="PocketQA: an open loop is void when the client sends later than this at p99, unless answers take much longer (default: %(default)g)",
    )
    _add_headless_options(parser)


def _add_headless_options(parser: LocustArgumentParser) -> None:
    headless = {"include_in_web_ui": False}
    parser.add_argument(
        "--slo",
        action="append",
        default=[],
        metavar="OBJECTIVE",
        help='PocketQA: with --headless, exit status 1 unless it is met: "p99<250ms", "errors<0.1%%", "student p50<40ms"; may be given again',
        **headless,
    )
    parser.add_argument(
        "--find-rate",
        default="",
        metavar="OBJECTIVE",
        help='PocketQA: with --headless, find the highest rate of requests at which each model keeps it, such as "p99<250ms"',
        **headless,
    )
    parser.add_argument(
        "--step-time",
        type=float,
        default=20.0,
        metavar="SECONDS",
        help="PocketQA: with --find-rate, how long each rate is tried; longer at low rates (default: 20)",
        **headless,
    )
    parser.add_argument(
        "--run-file", default=None, metavar="PATH", help="PocketQA: with --headless, write the numbers to a run file (or into a folder)", **headless
    )
    parser.add_argument(
        "--ready-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="PocketQA: with --headless, wait for the server (default: 60)",
        **headless,
    )


def is_open(options: Namespace) -> bool:
    """Whether requests are sent when they are due."""
    return bool(options.find_rate) or options.open_loop > 0


def objectives(options: Namespace) -> list[Objective]:
    """What --slo wants.  Raises ValueError."""
    return [Objective.parse(text) for text in options.slo]


def check(options: Namespace) -> None:
    """Raises ValueError for options that are wrong or contradict each other, all at once."""
    problems = []
    for text in (*options.slo, *([options.find_rate] if options.find_rate else [])):
        try:
            Objective.parse(text)
        except ValueError as error:
            problems.append(str(error))
    if options.find_rate and (options.open_loop or options.slo or options.run_time):
        problems.append("Expected --find-rate without --open-loop, --slo and --run-time: it chooses the rates, judges them, and ends by itself.")
    if (options.find_rate or options.slo) and not options.headless:
        problems.append("Expected --headless beside --find-rate and --slo: they end with an exit status.")
    if not options.open_loop >= 0 or not options.step_time > 0:
        problems.append(f"Expected --open-loop of 0 or more and --step-time above 0; found {options.open_loop:g} and {options.step_time:g}.")
    if problems:
        raise ValueError(" ".join(problems))

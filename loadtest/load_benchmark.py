"""Teacher and student beside baselines A and B in an open loop: times at one rate, and the highest rate at which an objective holds.

    pocketqa benchmark --workload load
    pocketqa benchmark --workload load --data dev-v1.1.json --limit 200 --run-file runs
    pocketqa benchmark --workload load --rounds 3 --seconds 30 --objective "p99<250ms"

The client has one core, the servers share the others; all are up at once and one is asked at a time.  In the first round each contestant's highest
rate is searched for.  In each round, in an order drawn anew, all get the same questions at the same random times at one rate, which all can bear, and
from the second on the search goes on from where it was.  A is the question-answering pipeline of transformers, B the service's own reader, one
request at a time; both serve the student.  A latency counts from the time at which its question was due.  With the defaults it takes about three
quarters of an hour, and longer where few questions are answered a second.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from loadtest import service_benchmark
from loadtest.closed_loop import run_block
from loadtest.objectives import Objective
from loadtest.open_loop import MAX_LAG, Sent, arrivals, run_open_loop
from loadtest.processes import Cores, Server, machine_cpu, pinned
from loadtest.questions import MODELS as ROLES
from loadtest.questions import SAMPLES, Question, load_questions
from loadtest.race import OK, RESAMPLES, answer_of, request_of, scores_of
from loadtest.rate_search import LOWEST, START_RATE, Found, RateSearch, Seen, Terms, find_rate, in_time, step_seconds
from loadtest.record import data_file, intervals_of, percentiles_of, search_of
from loadtest.service_benchmark import BASELINES, MODELS, OURS, commands, load_of, own_cpu, running, say, subjects_of
from pocketqa import runs
from pocketqa.errors import MissingExtra, OptionsError

STUDENT = "student"  # of the contestants, the one to which the others are compared
AGAINST = ("A fp32", "A bf16", "B")
SHARE = 0.5  # of the lowest of the highest rates: at which all are compared

Row = dict[str, Any]


@dataclass(slots=True)
class Contestant:
    """A model behind a server, and what was seen of it.  sent: what came of the requests of each round at the common rate."""

    name: str
    server: Server
    requests: dict[int, bytes]  # by number of the question
    found: Found = field(default_factory=Found)
    sent: list[list[Sent]] = field(default_factory=list)

    def ask(self, questions: Sequence[Question], times: Sequence[float]) -> list[Sent]:
        """These questions at these times; then until the server has nothing left to do."""
        sent = run_open_loop(self.server.port, [self.requests[question.number] for question in questions], times)
        # Plain servers go on with what nobody waits for any more; who asks last is answered last.
        run_block(self.server.port, [self.requests[questions[0].number]] * 3, 1)
        return sent


def main(argv: list[str]) -> int:
    """The verb `pocketqa benchmark --workload load`.  Raises PocketQAError."""
    given = _parse(argv)
    runs.check_target(given.run_file)
    questions = load_questions(given.data, given.limit, given.seed)
    try:
        terms = Terms(Objective.parse(given.objective), given.seconds, given.max_lag / 1000)
    except ValueError as error:
        raise OptionsError(str(error)) from None
    for package in ("torch", "transformers"):
        if find_spec(package) is None and any(name.startswith("A ") for name in given.baselines):
            raise MissingExtra(package, "train", "baseline A of `pocketqa benchmark --workload load`")
    cores = Cores.split()
    with running(commands(given.model, given), cores) as servers, pinned(cores.client):
        subjects = subjects_of(servers[0], given.model, both=True)
        began, own, clock = machine_cpu(), own_cpu(servers), time.monotonic()
        contestants = contestants_of(servers, questions)
        rate, drawn = measure(contestants, questions, terms, given)
        load = load_of(began, own, servers, time.monotonic() - clock)
    results = results_of(contestants, drawn, rate, subjects, given, cores) | {"load": load, "busy": load["busy"]}
    print("\n".join(lines(results)))
    if given.run_file:
        missing = [] if cores.client else ["client and servers on different cores: this system does not pin processes, or has one core"]
        command = ["pocketqa", "benchmark", *argv]
        run = runs.new_run("load", "teacher, student and baselines", subjects, [data_file(given.data, len(questions))], command, results, missing)
        say(f"run file: {runs.write(run, given.run_file)}")
    return 0


def contestants_of(servers: Sequence[Server], questions: Sequence[Question]) -> list[Contestant]:
    """Teacher and student of the service, which comes first, and each other server; each has had every question once."""
    made = []
    for server in servers:
        for name, path in [(role, f"/models/{role}") for role in ROLES] if server.name == OURS else [(server.name, "/")]:
            made.append(Contestant(name, server, {question.number: request_of(question, path) for question in questions}))
            run_block(server.port, [made[-1].requests[question.number] for question in (questions[0], *questions, questions[0])], 1)
    return made


def measure(
    contestants: Sequence[Contestant], questions: Sequence[Question], terms: Terms, given: argparse.Namespace
) -> tuple[float, list[list[Question]]]:
    """All rounds; returns the common rate, and the questions of each round at it.  Raises VoidRun and ExchangeError."""
    choice = random.Random(given.seed)
    for contestant in choice.sample(contestants, len(contestants)):
        _search(contestant, RateSearch(START_RATE), questions, terms, given)
    rate = given.rate or common_rate(contestants)
    say(f"common rate: {rate:g} requests a second")
    drawn: list[list[Question]] = []
    for number in range(given.rounds):
        times = arrivals(rate, step_seconds(rate, terms.seconds), choice.getrandbits(32))
        drawn.append([question for question, _ in zip(_rounds(questions, choice), times, strict=False)])
        for contestant in choice.sample(contestants, len(contestants)):
            _at_common_rate(contestant, drawn[-1], times, terms)
            if number:  # the first search was before the first round
                _search(contestant, RateSearch(contestant.found.rates[-1] or LOWEST, stride=1), questions, terms, given)
        say(f"round {number + 1} of {given.rounds}")
    return rate, drawn


def common_rate(contestants: Sequence[Contestant]) -> float:
    """A rate that all can bear: a share of the lowest of the highest rates, of those contestants that have one."""
    rates = [rate for contestant in contestants for rate in contestant.found.rates if rate is not None]
    return max(LOWEST, float(f"{SHARE * min(rates):.2g}")) if rates else LOWEST


def _search(contestant: Contestant, search: RateSearch, questions: Sequence[Question], terms: Terms, given: argparse.Namespace) -> None:
    def seen(rate: float, seconds: float) -> Seen:
        choice = random.Random(f"{given.seed}-{len(contestant.found.rates)}-{rate}")
        times = arrivals(rate, seconds, choice.getrandbits(32))
        return seen_of(contestant.ask([question for question, _ in zip(_rounds(questions, choice), times, strict=False)], times))

    find_rate(contestant.found, contestant.name, search, terms, seen, say)


def _at_common_rate(contestant: Contestant, questions: Sequence[Question], times: Sequence[float], terms: Terms) -> None:
    tried: list[list[Sent]] = []

    def seen(_rate: float, _seconds: float) -> Seen:
        tried.append(contestant.ask(questions, times))
        return seen_of(tried[-1])

    in_time(len(times) / times[-1], times[-1], seen, terms.max_lag, say)
    contestant.sent.append(tried[-1])


def seen_of(sent: Sequence[Sent]) -> Seen:
    """What counts of a step; an answer without a text is a failure."""
    right = [one for one in sent if _text(one) is not None]
    times, answering = [1000 * one.latency for one in right], [1000 * (one.latency - one.lag) for one in right]
    return Seen(times, len(sent) - len(right), [one.lag for one in sent], answering)


def results_of(
    contestants: Sequence[Contestant], drawn: Sequence[Sequence[Question]], rate: float, subjects: Sequence[runs.Subject], given: argparse.Namespace,
    cores: Cores,
) -> Row:  # fmt: skip
    """Results of kind "load"."""
    asked = [question for questions in drawn for question in questions]
    numbers = np.array([question.number for question in asked])
    sent = {one.name: [each for block in one.sent for each in block] for one in contestants}
    right = {name: np.array([_text(one) is not None for one in each]) for name, each in sent.items()}
    seconds = {name: np.array([one.latency for one in each]) for name, each in sent.items()}
    both = {name: right[name] & right[STUDENT] for name in sent if name != STUDENT}
    compared = {
        f"p{q}": {
            name: runs.quantile_ratio(seconds[name][kept], seconds[STUDENT][kept], q / 100, numbers[kept], resamples=RESAMPLES)
            for name, kept in both.items()
            if kept.any()
        }
        for q in (50, 99)
    }
    answered = {name: seconds[name][kept] for name, kept in right.items() if kept.any()}
    workload = (
        f"open loop, {rate:g} requests a second and more, {given.rounds} rounds of questions of {Path(given.data).name} in Hugging Face's protocol"
    )
    return runs.load_results(
        workload,
        {name: runs.summarise_times(times) for name, times in answered.items()},
        {f"{name} / {STUDENT}": ratio for name, ratio in compared["p50"].items()},
        quantiles={name: percentiles_of(1000 * times) for name, times in answered.items()},
        intervals={name: intervals_of(1000 * times, numbers[right[name]]) for name, times in answered.items()},
        search=search_of({one.name: one.found for one in contestants}, given.objective, STUDENT),
        extra={
            "contestants": {one.name: _words(one.name, subjects) for one in contestants},
            "ratios_p99": {name: ratio.to_json(4) for name, ratio in compared["p99"].items()},
            "scores": {name: _scores(each, asked) for name, each in sent.items()},
            "failed": {name: int((~kept).sum()) for name, kept in right.items()},
            "lag_ms": {f"p{q}": round(1000 * float(np.percentile([one.lag for each in sent.values() for one in each], q)), 3) for q in (50, 99)},
            "rate": rate,
            "rounds": given.rounds,
            "step_seconds": given.seconds,
            "seed": given.seed,
            "cores": {"servers": len(cores.servers), "client": len(cores.client)},
        },
    )


def lines(results: Row) -> list[str]:
    """What was found, for the terminal."""
    search = results["search"]
    said = [results["workload"]]
    for name, words in results["contestants"].items():
        timed, rate = results["timings"].get(name), search["rates"][name]
        times = "  ".join(f"{q} {timed[q]:8.1f} ms" for q in ("p50", "p90", "p99")) if timed else "no answer"
        held = f"{rate['value']:8.2f} [{rate['low']:.2f}, {rate['high']:.2f}]" if rate else "none"
        said.append(f"{name:<8} {times}  failures {results['failed'][name]}  highest rate within {search['objective']}: {held}  ({words})")
    for name, ratio in results["ratios"].items():
        said.append(f"{ratio['value']:6.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] {name}, p50")
    for name, ratio in results["ratios_p99"].items():
        said.append(f"{ratio['value']:6.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] {name} / {STUDENT}, p99")
    for name, ratio in search["ratios"].items():
        said.append(f"{ratio['value']:6.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] times the highest rate of {name} has the {STUDENT}")
    return said + [f"busy machine: {reason}" for reason in results["load"].get("reasons", ())]


def _rounds(questions: Sequence[Question], choice: random.Random) -> Iterator[Question]:
    """For ever, every question once in each round."""
    while True:
        yield from choice.sample(questions, len(questions))


def _text(one: Sent) -> str | None:
    answer = answer_of(one.body) if one.status == OK else None
    return None if answer is None else answer[0]


def _scores(sent: Sequence[Sent], asked: Sequence[Question]) -> Row:
    """Exact match and F1 in percent; a failure scores nothing."""
    exact, overlap = scores_of(map(_text, sent), asked)
    return {"exact_match": round(exact, 2), "f1": round(overlap, 2)}


def _words(name: str, subjects: Sequence[runs.Subject]) -> str:
    if name in BASELINES:
        return f"the student in {BASELINES[name][2]}"
    subject = next(subject for subject in subjects if subject.role == name)
    return f"the service's {name}, {subject.engine} {subject.version} {subject.precision}"


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="pocketqa benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workload", choices=("load",), required=True, help="this benchmark")
    parser.add_argument("--model", type=Path, default=MODELS / "student", metavar="DIR", help="the student that all serve (default: %(default)s)")
    parser.add_argument("--teacher", type=Path, metavar="DIR", help="the teacher beside it (default: models/teacher)")
    parser.add_argument("--data", default=str(SAMPLES), metavar="FILE", help="questions in SQuAD format (default: the project's own samples)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="a random sample of N questions; 0, the default, takes all")
    parser.add_argument("--objective", default="p99<250ms", help='what has to hold at the highest rate (default: "%(default)s")')
    parser.add_argument("--rate", type=float, default=0.0, metavar="N", help="the common rate, a second (default: half the lowest highest rate)")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="N", help="how long each rate is tried; longer at low rates (default: 20)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often all of it is done (default: %(default)s)")
    parser.add_argument(
        "--baselines",
        type=service_benchmark.names,
        default=list(AGAINST),
        metavar="NAME,...",
        help=f"out of {', '.join(BASELINES)} (default: {', '.join(AGAINST)})",
    )
    parser.add_argument("--serve-options", type=str.split, default=[], metavar="TEXT", help='more options of `pocketqa serve`, as "--batching off"')
    parser.add_argument(
        "--max-lag",
        type=float,
        default=1000 * MAX_LAG,
        metavar="MS",
        help="a step in which the client sends later at p99 is void (default: %(default)g)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of questions, orders, arrivals and draws (default: %(default)s)")
    parser.add_argument("--run-file", metavar="PATH", help="write the numbers to a run file, or into a folder")
    given = parser.parse_args(argv)
    wrong = [name for name in ("rounds", "seconds") if not getattr(given, name) > 0]
    if wrong or not given.rate >= 0:
        raise OptionsError(
            f"Expected --rounds and --seconds above 0 and --rate of 0 or more; found {given.rounds}, {given.seconds:g}, {given.rate:g}."
        )
    return given

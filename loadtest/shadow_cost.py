"""What the shadow costs those who ask the student: the service with `--shadow` against the service without, in turn, at the same times.

    python -m loadtest.shadow_cost
    python -m loadtest.shadow_cost --shadow 0.2 --rate 10 --seconds 30 --rounds 10 --run-file runs

Both are up at once and one is asked at a time, in an order drawn anew for each round, with the same questions at the same Poisson times.  Latency
counts from the time at which a question was due.  Before the other one is asked, the shadow may finish what waits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest.closed_loop import run_block
from loadtest.fetch import fetch
from loadtest.open_loop import Sent
from loadtest.processes import Cores, Server, ServerFailed, machine_cpu, pinned, python
from loadtest.questions import Question, load_questions
from loadtest.race import request_of
from loadtest.record import data_file, served_models
from loadtest.rounds import OK, add_options, not_checked, ratios_of, run_rounds, split_cores
from loadtest.service_benchmark import load_of, own_cpu, say
from pocketqa import runs
from pocketqa.errors import OptionsError, PocketQAError

WITHOUT, WITH = "without", "with the shadow"
SHARE = 0.4  # of the answers a second that one user gets from the service without a shadow
SETTLED_SECONDS, LONGEST_SECONDS = 1.0, 60.0  # without a change of the shadow's counts; of waiting for that
OPENED_SECONDS = 300.0
_OUTCOME = re.compile(r'^pocketqa_shadow_requests_total\{outcome="(\w+)"\} (\S+)$', re.MULTILINE)

Row = dict[str, Any]


@dataclass(slots=True)
class Tally:
    """One of the two services, with the latencies (N,) of each round."""

    server: Server
    seconds: list[NDArray[np.float64]] = field(default_factory=list)
    failures: int = 0


def main(argv: Sequence[str]) -> int:
    """The command `python -m loadtest.shadow_cost`.  Raises PocketQAError."""
    given = _parse(argv)
    runs.check_target(given.run_file)
    questions = load_questions(given.data, given.limit, given.seed)
    cores = split_cores()
    with running(given, cores) as tallies, pinned(cores.client):
        subjects = served_models(tallies[WITHOUT].server.url)
        rate = given.rate or SHARE * capacity(tallies.values(), questions)
        servers = [tally.server for tally in tallies.values()]
        before, began, own, clock = outcomes(tallies[WITH].server), machine_cpu(), own_cpu(servers), time.monotonic()
        void = race(tallies, questions, rate, given)
        load, after = load_of(began, own, servers, time.monotonic() - clock), outcomes(tallies[WITH].server)
    counts = {outcome: after[outcome] - before[outcome] for outcome in after}
    results = results_of(tallies, rate, given, counts, void, load)
    print(json.dumps(results) if given.json else "\n".join(lines(results)))
    if given.run_file:
        command = ["python", "-m", "loadtest.shadow_cost", *argv]
        run = runs.new_run("load", "shadow", subjects, [data_file(given.data, len(questions))], command, results, not_checked(cores))
        say(f"run file: {runs.write(run, given.run_file)}")
    return 1 if void else 0


@contextlib.contextmanager
def running(given: argparse.Namespace, cores: Cores) -> Iterator[dict[str, Tally]]:
    """Both services, ready, and the process of the shadow too."""
    tallies: dict[str, Tally] = {}
    try:
        for name, share in ((WITHOUT, 0), (WITH, given.shadow)):
            say(f"starting the service {name}")
            models = [word for role in ("student", "teacher") if (path := vars(given)[role]) for word in (f"--{role}", str(path))]
            command = python("pocketqa", "serve", "--port", "0", "--access-log", "no", "--shadow", str(share), *models, *given.serve_options)
            tallies[name] = Tally(Server(name, command, cores.servers))
            tallies[name].server.wait()
        end = time.monotonic() + OPENED_SECONDS
        while not any(process["kind"] == "shadow" for process in tallies[WITH].server.get("/info")["processes"]):
            if time.monotonic() > end:
                raise ServerFailed(
                    "Expected the service to start a process for the shadow, found none. Its log says why: pocketqa serve --shadow 0.05"
                )
            time.sleep(0.5)
        yield tallies
    finally:
        for tally in tallies.values():
            tally.server.stop()


def capacity(tallies: Iterable[Tally], questions: Sequence[Question]) -> float:
    """Answers a second to one user of the first service, after each service was asked every question once."""
    plan = [request_of(question) for question in questions]
    plan = [plan[0], *plan, plan[0]]
    rates = []
    for tally in tallies:
        run_block(tally.server.port, plan, 1)
        settle(tally.server)
        rates.append(run_block(tally.server.port, plan, 1).rate)
        settle(tally.server)
    return rates[0]


def race(tallies: dict[str, Tally], questions: Sequence[Question], rate: float, given: argparse.Namespace) -> list[str]:
    """All rounds; returns why some of them say more about the client than about a service."""

    def note(name: str, sent: Sequence[Sent]) -> None:
        tally = tallies[name]
        settle(tally.server)
        tally.seconds.append(np.array([one.latency for one in sent]))
        tally.failures += sum(one.status != OK for one in sent)

    return run_rounds({name: tally.server.port for name, tally in tallies.items()}, questions, rate, given, note)


def outcomes(server: Server) -> dict[str, int]:
    """What became of the requests in the shadow so far."""
    with fetch(f"{server.url}/metrics", 30) as response:
        return {outcome: int(float(count)) for outcome, count in _OUTCOME.findall(response.read().decode())}


def settle(server: Server) -> None:
    """Wait until the shadow has nothing left to compute, which would take the other service's time."""
    end = time.monotonic() + LONGEST_SECONDS
    before = outcomes(server)
    while time.monotonic() < end:
        time.sleep(SETTLED_SECONDS)
        now = outcomes(server)
        if now == before:
            return
        before = now


def results_of(tallies: dict[str, Tally], rate: float, given: argparse.Namespace, counts: dict[str, int], void: Sequence[str], load: Row) -> Row:
    """The run file's: times of both, how many times those with the shadow are those without (rounds are drawn), what the shadow did."""
    share = f"{100 * given.shadow:g} % in the shadow"
    return runs.timing_results(
        f"open loop, {rate:.2f} questions a second at Poisson times, {given.rounds} rounds of {given.seconds:g} s, {share}",
        {name: runs.summarise_times(np.concatenate(tally.seconds)) for name, tally in tallies.items()},
        {f"{of}, {WITH} / {WITHOUT}": ratio for of, ratio in ratios_of(tallies[WITH].seconds, tallies[WITHOUT].seconds).items()},
        extra={
            "requests": sum(len(seconds) for tally in tallies.values() for seconds in tally.seconds),
            "failures": sum(tally.failures for tally in tallies.values()),
            "shadow": {"share": given.shadow, **counts},
            "void": list(void),
            "busy": load["busy"],
            "load": load,
            "seed": given.seed,
        },
    )


def lines(results: Row) -> list[str]:
    """What was found, for the terminal."""
    said = [results["workload"]]
    for name, times in results["timings"].items():
        said.append(
            f"{name:<16} " + "  ".join(f"{of} {times[of]:8.1f} {times['unit']}" for of in ("p50", "p90", "p99")) + f"  {times['count']:,} questions"
        )
    said += [f"{name}: {ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}] times" for name, ratio in results["ratios"].items()]
    shadow = results["shadow"]
    said.append(
        f"in the shadow: {shadow['compared']} compared, {shadow['dropped']} dropped, {shadow['failed']} failed; {results['failures']} failures"
    )
    return said + [f"void: {reason}" for reason in results["void"]] + [f"busy machine: {reason}" for reason in results["load"]["reasons"]]


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.shadow_cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--shadow", type=float, default=0.05, metavar="SHARE", help="of the student's requests (default: %(default)g)")
    add_options(parser, f"{SHARE:g} of what one user gets")
    given = parser.parse_args(argv)
    if given.rounds < 2 or given.seconds <= 0 or not 0 < given.shadow <= 1 or (given.rate is not None and given.rate <= 0):
        raise OptionsError(
            "Expected --rounds of at least 2, since intervals draw rounds, --seconds and --rate above 0, and --shadow above 0 and at most 1, found "
            f"{given.rounds}, {given.seconds:g}, {given.rate} and {given.shadow:g}."
        )
    return given


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except PocketQAError as error:
        sys.exit(f"python -m loadtest.shadow_cost: error: {error}")

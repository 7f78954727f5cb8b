"""Two replicas of one thread against one of two threads, and what is lost when one of the two ends under load.

    python -m loadtest.replicas
    python -m loadtest.replicas --rate 20 --seconds 60 --rounds 10 --run-file runs

Both stand behind HAProxy with docker/haproxy/haproxy.cfg (Debian's package haproxy will do), are up at once and are asked in turn, in an order drawn
anew for each round, with the same questions at the same Poisson times.  Latency counts from the time at which a question was due.  Then one of the
two replicas is killed (SIGKILL) in the middle of a run, and in another asked to end (SIGTERM), and started again after each: every question has to
be answered, or refused in so many words (429, 502, 503).  Exit status 1 when something else came back, or when a run was void.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtest import rounds
from loadtest.balancer import Balancer, free_port
from loadtest.closed_loop import run_block
from loadtest.open_loop import Sent, arrivals, run_open_loop
from loadtest.processes import Cores, Server, machine_cpu, pinned, python
from loadtest.questions import Question, load_questions
from loadtest.race import request_of
from loadtest.record import data_file, served_models
from loadtest.rounds import OK, add_options, not_checked, run_rounds, split_cores
from loadtest.service_benchmark import load_of, own_cpu, say
from pocketqa import runs
from pocketqa.errors import OptionsError

ONE, TWO = "one replica of two threads", "two replicas of one thread"
THREADS = {ONE: (2,), TWO: (1, 1)}  # of each replica
DRAIN_SECONDS = 3  # as in compose.yaml: longer than the balancer's check interval
EVENTS = {"killed": signal.SIGKILL, "asked to end": signal.SIGTERM}
REFUSALS = (429, 502, 503)  # the service's own when it is full, and the balancer's
SHARE = 0.5  # of the answers a second that ONE gives to four users
USERS = 4

Row = dict[str, Any]


@dataclass(slots=True)
class Setup:
    """One contestant: replicas and the balancer in front of them, with the latencies (N,) and statuses of each round."""

    name: str
    commands: list[list[str]]
    servers: list[Server]
    balancer: Balancer
    seconds: list[NDArray[np.float64]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    def restart(self, number: int, cores: Sequence[int]) -> None:
        """Start a replica that ended again, on its port, and wait until the balancer asks it."""
        self.servers[number].stop()
        self.servers[number] = Server(self.servers[number].name, self.commands[number], cores)
        self.servers[number].wait()
        self.balancer.wait()


def main(argv: Sequence[str]) -> int:
    """The command `python -m loadtest.replicas`.  Raises PocketQAError."""
    given = _parse(argv)
    runs.check_target(given.run_file)
    questions = load_questions(given.data, given.limit, given.seed)
    cores = split_cores()
    with running(given, cores) as (one, two), pinned(cores.client):
        subjects = served_models(one.servers[0].url)
        rate = given.rate or SHARE * capacity(one, questions, given.seed)
        say(f"{rate:.2f} questions a second")
        all_of_them = [*one.servers, one.balancer, *two.servers, two.balancer]
        began, own, clock = machine_cpu(), own_cpu(all_of_them), time.monotonic()
        void = compare((one, two), questions, rate, given)
        load = load_of(began, own, all_of_them, time.monotonic() - clock)
        events = [end_one(two, event, questions, rate, given, cores) for event in EVENTS]
    workload = f"open loop, {rate:.2f} questions a second at Poisson times, {given.rounds} rounds of {given.seconds:g} s, behind HAProxy"
    extra = {"rate": round(rate, 3), "rounds": given.rounds, "seed": given.seed, "pinned": bool(cores.client)}
    results = runs.replica_results(workload, points_of((one, two)), ratios_of(one, two), events, void=void, load=load, extra=extra)
    print(json.dumps(results) if given.json else "\n".join(lines(results)))
    if given.run_file:
        say(f"run file: {runs.write(_run(given, argv, subjects, questions, results, cores), given.run_file)}")
    return 0 if not void and all(row["clean"] for row in events) else 1


@contextlib.contextmanager
def running(given: argparse.Namespace, cores: Cores) -> Iterator[tuple[Setup, Setup]]:
    """Both set-ups, ready."""
    started: list[Server] = []

    def start(server: Server) -> Server:
        started.append(server)
        server.wait()
        return server

    setups = []
    try:
        for name, threads in THREADS.items():
            commands = [serve_command(given, free_port(), count) for count in threads]
            say(f"starting {name}")
            servers = [start(Server(f"{name}, {at}", command, cores.servers)) for at, command in enumerate(commands, 1)]
            balancer = Balancer([server.port for server in servers], cores.client)
            start(balancer)
            setups.append(Setup(name, commands, servers, balancer))
        yield setups[0], setups[1]
    finally:
        for server in {*started, *(server for setup in setups for server in setup.servers)}:
            server.stop()


def serve_command(given: argparse.Namespace, port: int, threads: int) -> list[str]:
    """What starts one replica."""
    said = {"host": "127.0.0.1", "port": port, "threads": threads, "workers": 1, "drain-seconds": DRAIN_SECONDS, "access-log": "no"}
    models = {"student": given.student, "teacher": given.teacher}
    flags = (word for name, value in (said | models).items() if value is not None for word in (f"--{name}", str(value)))
    return [*python("pocketqa", "serve", *flags), *given.serve_options]


def capacity(setup: Setup, questions: Sequence[Question], seed: int) -> float:
    """Answers a second to a few users in a closed loop, after every question was asked once."""
    around = [request_of(question) for question in questions]
    run_block(setup.balancer.port, [around[0], *around, around[0]], 1)
    plan = random.Random(seed).choices(around, k=max(10 * USERS, len(around)))
    return run_block(setup.balancer.port, plan, USERS).rate


def compare(setups: Sequence[Setup], questions: Sequence[Question], rate: float, given: argparse.Namespace) -> list[str]:
    """All rounds; returns why some of them say more about the client than about a set-up."""
    named = {setup.name: setup for setup in setups}

    def note(name: str, sent: Sequence[Sent]) -> None:
        named[name].seconds.append(np.array([one.latency for one in sent]))
        named[name].statuses.update(one.status for one in sent)

    return run_rounds({name: setup.balancer.port for name, setup in named.items()}, questions, rate, given, note)


def end_one(setup: Setup, event: str, questions: Sequence[Question], rate: float, given: argparse.Namespace, cores: Cores) -> Row:
    """One run in whose middle the first replica ends; what came back.  The replica is started again afterwards."""
    choice = random.Random(f"{given.seed}-{event}")
    times = arrivals(rate, given.seconds, choice.randrange(1 << 32))
    asked = choice.choices(questions, k=len(times))
    victim = setup.servers[0].process
    middle = threading.Timer(given.seconds / 2, os.kill, (victim.pid, EVENTS[event]))
    middle.start()
    sent = run_open_loop(setup.balancer.port, [request_of(question) for question in asked], times)
    middle.join()
    status = victim.wait(60)
    row = outcome_row(event, sent, asked) | {"exit_status": status}
    say(f"one of two replicas {event} in the middle: {said_of(row)}")
    setup.restart(0, cores.servers)
    return row


def outcome_row(event: str, sent: Sequence[Sent], asked: Sequence[Question]) -> Row:
    """How many of the questions were answered, refused, cut off, or answered with something that is no span of their passage."""
    statuses = Counter(one.status for one in sent if one.status)
    wrong = sum(one.status == OK and not is_span(one.body, question.context) for one, question in zip(sent, asked, strict=True))
    cut = sum(not one.status for one in sent)
    return {
        "event": event,
        "sent": len(sent),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "cut": cut,
        "wrong": wrong,
        "longest": round(1000 * max((one.latency for one in sent), default=0.0), 1),
        "clean": not cut and not wrong and set(statuses) <= {OK, *REFUSALS},
    }


def is_span(body: bytes, context: str) -> bool:
    """Whether an answer in Hugging Face's protocol is the passage's own words at the place that it names."""
    try:
        found = json.loads(body)
        return bool(found["answer"] == context[found["start"] : found["end"]] != "")
    except (ValueError, KeyError, TypeError):
        return False


def points_of(setups: Sequence[Setup]) -> list[Row]:
    """One row a set-up: milliseconds from the time at which a question was due."""
    rows: list[Row] = []
    for setup in setups:
        times = 1000 * np.concatenate(setup.seconds)  # (R * N,)
        p50, p90, p99 = (round(float(value), 3) for value in np.quantile(times, (0.5, 0.9, 0.99)))
        failures = setup.statuses.total() - setup.statuses[OK]
        rows.append({"setup": setup.name, "count": len(times), "p50": p50, "p90": p90, "p99": p99, "failures": failures})
    return rows


def ratios_of(one: Setup, two: Setup) -> list[Row]:
    """How many times faster two replicas are than one, at percentiles."""
    return [{"of": of, **ratio.to_json(4)} for of, ratio in rounds.ratios_of(one.seconds, two.seconds).items()]


def lines(results: Row) -> list[str]:
    """What was found, for the terminal."""
    said = [results["workload"]]
    for row in results["points"]:
        times = "  ".join(f"{of} {row[of]:8.1f} ms" for of in ("p50", "p90", "p99"))
        said.append(f"{row['setup']:<27} {times}  {row['count']:,} questions, {row['failures']:,} failures")
    said += [f"{row['of']}: two replicas are {row['value']:.2f} [{row['low']:.2f}, {row['high']:.2f}] times faster" for row in results["ratios"]]
    said += [f"one of two replicas {row['event']}: {said_of(row)}" for row in results["events"]]
    return said + [f"void: {reason}" for reason in results["void"]] + [f"busy machine: {reason}" for reason in results["load"]["reasons"]]


def said_of(row: Row) -> str:
    """What came back around the end of a replica."""
    statuses = ", ".join(f"{count:,} with {status}" for status, count in row["statuses"].items())
    verdict = "clean" if row["clean"] else "NOT clean"
    return f"{row['sent']:,} questions: {statuses}, {row['cut']:,} cut off, {row['wrong']:,} wrong, the longest {row['longest']:.0f} ms: {verdict}"


def _run(
    given: argparse.Namespace, argv: Sequence[str], subjects: Sequence[runs.Subject], questions: Sequence[Question], results: Row, cores: Cores
) -> runs.RunFile:
    student = [subject for subject in subjects if subject.role == "student"]
    return runs.new_run(
        "replicas",
        "scale-out",
        student,
        [data_file(given.data, len(questions))],
        ["python", "-m", "loadtest.replicas", *argv],
        results,
        not_checked(cores),
    )


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.replicas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add_options(parser, f"{SHARE:g} of what one replica answers {USERS} users")
    given = parser.parse_args(argv)
    if given.rounds < 2:
        raise OptionsError(f"Expected --rounds to be at least 2, since intervals draw rounds; found {given.rounds}.")
    if given.seconds <= 0 or (given.rate is not None and given.rate <= 0):
        raise OptionsError(f"Expected --seconds and --rate above 0, found {given.seconds:g} and {given.rate}.")
    return given


if __name__ == "__main__":
    from pocketqa.errors import PocketQAError

    try:
        sys.exit(main(sys.argv[1:]))
    except PocketQAError as error:
        sys.exit(f"python -m loadtest.replicas: error: {error}")

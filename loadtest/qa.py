"""A load test for locust: the same question to teacher and student, in random order, every answer checked.

    pocketqa serve                                                        # in another terminal
    locust -f loadtest/qa.py                                              # then open http://localhost:8089
    locust -f loadtest/qa.py --headless -u 4 -t 30s                       # prints the table; exit status 1 after any wrong answer
    locust -f loadtest/qa.py --headless -u 4 -t 60s --squad dev-v1.1.json --host http://127.0.0.1:9000

To be run from the folder that holds loadtest/.  The host is http://127.0.0.1:8000 unless --host names another.  A closed loop: each user asks again
as soon as it has its answer, so a server that stalls is asked less meanwhile, and the percentiles are those of the requests that were sent.
--processes, --master and --worker work: the exchanges of all workers are put together before anything is computed from them.
"""

from __future__ import annotations

import logging
import sys
import time
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import locust.stats
from locust import FastHttpUser, constant, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

from loadtest.checks import Checked, WrongAnswer, check_response, request_body
from loadtest.pairs import Log, table
from loadtest.questions import SAMPLES, Question, draws, load_questions
from loadtest.record import served_models, write_run
from loadtest.workers import connect
from pocketqa.errors import PocketQAError
from pocketqa.runs import Subject

UI_READY_SECONDS = 5.0  # a person waits at the web page and sees the failures

logger = logging.getLogger("loadtest.qa")
log = Log()


def three_digits(response_time: float) -> float:
    """Locust's histogram keys with three significant digits; its own have two, in which a difference of 3 % between two models is lost."""
    return round(response_time, 2 if response_time < 10 else 1 if response_time < 100 else 0 if response_time < 1000 else -1)


locust.stats.bucket_response_time = three_digits  # type: ignore[assignment]  # the keys are printed by %d and sent as numbers, whole or not


class Asker(FastHttpUser):
    """Asks both models one question after another, without a pause."""

    host = "http://127.0.0.1:8000"
    wait_time = constant(0)
    plan: Iterator[tuple[Question, tuple[str, str]]]  # one for all users of a process: all questions are asked equally often

    @task
    def ask_both(self) -> None:
        """One question to teacher and student."""
        question, order = next(self.plan)
        log.add(question, {model: self._ask(question, model) for model in order})

    def _ask(self, question: Question, model: str) -> tuple[float, Checked] | None:
        options = self.environment.parsed_options
        assert options is not None
        asked = request_body(question, model, options.top_k, options.no_answer)
        with self.client.post("/v1/answer", json=asked, name=f"/v1/answer {model}", catch_response=True) as response:
            try:
                checked = check_response(response.status_code, response.content, question, asked)
            except WrongAnswer as error:
                response.failure(f"{error} (question {question.id})")
                return None
            milliseconds: float = response.request_meta["response_time"]
            return milliseconds, checked


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """The options of this file, beside Locust's own; those that a person may change between two runs are on the web page too."""
    parser.add_argument("--squad", default=str(SAMPLES), metavar="FILE", help="PocketQA: questions in SQuAD format (default: its own samples)")
    parser.add_argument("--limit", type=int, default=0, metavar="N", help="PocketQA: ask a random sample of N questions; 0, the default, asks all")
    parser.add_argument("--seed", type=int, default=0, help="PocketQA: seed of the order of questions and models (default: 0)")
    parser.add_argument("--top-k", type=int, default=1, help="PocketQA: answers wanted per question (default: 1)")
    parser.add_argument("--no-answer", action="store_true", help="PocketQA: allow `no answer`, and ask the unanswerable questions too")
    headless = {"include_in_web_ui": False}
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


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Read the questions and, where the run starts by itself, wait for the server; end here, with one sentence, when that is in vain."""
    options = environment.parsed_options
    assert options is not None
    try:
        questions = _questions(options)
        Asker.plan = draws(questions, options.seed)
        if options.headless and not isinstance(environment.runner, WorkerRunner):
            _prepare_headless(environment, len(questions))
    except (PocketQAError, ValueError, OSError) as error:
        sys.exit(f"loadtest: {error}")
    connect(environment, log)
    if environment.reset_stats:
        events.spawning_complete.add_listener(forget)


@events.test_start.add_listener
def start(environment: Environment, **_: Any) -> None:
    """Begin a run: empty the log, and give each worker an order of its own.  Started from the web page, the options may have changed."""
    log.clear()
    options, runner = environment.parsed_options, environment.runner
    assert options is not None
    if isinstance(runner, MasterRunner):
        return
    try:
        Asker.plan = draws(_questions(options), options.seed, runner.worker_index if isinstance(runner, WorkerRunner) else 0)
    except (PocketQAError, ValueError) as error:
        logger.error("%s The questions of before are asked.", error)
    problem = None if options.headless else wait_until_ready(environment.host or Asker.host, timeout=UI_READY_SECONDS)
    if problem:
        logger.error(problem)


@events.reset_stats.add_listener
def forget(**_: Any) -> None:
    """What Locust forgets (--reset-stats after ramp-up, or the button of the web page) is forgotten here too."""
    log.clear()


@events.test_stop.add_listener
def stop(environment: Environment, **_: Any) -> None:
    """The end of a run started from the web page."""
    options = environment.parsed_options
    if options is not None and not options.headless and not isinstance(environment.runner, WorkerRunner):
        print(f"\n{table(log, options.seed)}\n", flush=True)


@events.quitting.add_listener
def judge(environment: Environment, **_: Any) -> None:
    """A run without a single request proves nothing and must not end with status 0."""
    options, runner = environment.parsed_options, environment.runner
    if options is not None and options.headless and not isinstance(runner, WorkerRunner) and runner is not None and runner.stats.num_requests == 0:
        logger.error("Not one request was made.")
        environment.process_exit_code = 1


def _prepare_headless(environment: Environment, questions: int) -> None:
    options = environment.parsed_options
    assert options is not None
    host = environment.host or Asker.host
    problem = wait_until_ready(host, options.ready_timeout)
    if problem:
        raise ValueError(problem)
    subjects = served_models(host) if options.run_file else ()  # now: after the run the server may be gone
    events.quit.add_listener(partial(finish, environment, questions, subjects))


def finish(environment: Environment, questions: int, subjects: Sequence[Subject], exit_code: int, **_: Any) -> None:
    """The table, below Locust's own, at the end of a run without the web page; the run file where one is wanted."""
    options, runner = environment.parsed_options, environment.runner
    assert options is not None
    assert runner is not None
    print(f"\n{table(log, options.seed)}", flush=True)
    if options.run_file and log.requests:
        total = runner.stats.total
        seconds = (total.last_request_timestamp or 0) - total.start_time
        command = ["locust", *sys.argv[1:]]
        path = write_run(options.run_file, log, subjects, options.squad, questions, command, runner.target_user_count, seconds, options.seed)
        print(f"Written: {path}", flush=True)


def _questions(options: Namespace) -> list[Question]:
    return load_questions(options.squad, options.limit, options.seed, options.no_answer)


def wait_until_ready(host: str, timeout: float) -> str | None:
    """Ask /readyz until it says 200.  Returns what was wrong, in a sentence, when that does not happen within `timeout` seconds."""
    address = f"{host.rstrip('/')}/readyz"
    deadline = time.monotonic() + timeout
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return None
        except (OSError, ValueError) as error:
            found = error.reason if isinstance(error, urllib.error.URLError) else error
        if time.monotonic() >= deadline:
            return f"Expected a ready server at {address} within {timeout:g} s, found: {found}. Start one with: pocketqa serve"
        time.sleep(0.25)

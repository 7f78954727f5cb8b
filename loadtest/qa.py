"""A load test for locust: the same question to teacher and student, in random order, every answer checked.

    pocketqa serve                                                        # in another terminal
    locust -f loadtest/qa.py                                              # then open http://localhost:8089
    locust -f loadtest/qa.py --headless -u 4 -t 30s                       # prints the table; exit status 1 after any wrong answer
    locust -f loadtest/qa.py --headless -u 4 -t 60s --squad dev-v1.1.json --host http://127.0.0.1:9000
    locust -f loadtest/qa.py --headless --open-loop 20 -t 60s --slo "p99<250ms" --slo "errors<0.1%"
    locust -f loadtest/qa.py --headless --find-rate "p99<250ms"           # the highest rate of each model

To be run from the folder that holds loadtest/.  The host is http://127.0.0.1:8000 unless --host names another.  A closed loop unless a rate is named:
each user asks again as soon as it has its answer, so a server that stalls is asked less meanwhile, and the percentiles are those of the requests that
were sent.  --open-loop sends requests at random times of that rate; then users are connections, each answer's time counts from when its request was
due, and the run is void when the client itself was late.  --processes, --master and --worker work: the exchanges of all workers are put together
before anything is computed from them.
"""

from __future__ import annotations

import logging
import sys
import time
import urllib.error
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import gevent
import locust.stats
from locust import FastHttpUser, events, task
from locust.env import Environment
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest import options as given
from loadtest.arriving import CONNECTIONS, Conductor, Due, Schedule, follow
from loadtest.checks import Checked, WrongAnswer, check_response, request_body
from loadtest.ending import Ending
from loadtest.fetch import fetch, key_headers
from loadtest.pairs import Half, Log
from loadtest.questions import MODELS, Question, draws, load_questions
from loadtest.record import served_models
from loadtest.workers import connect
from pocketqa.errors import PocketQAError
from pocketqa.runs import Subject

UI_READY_SECONDS = 5.0  # a person waits at the web page and sees the failures

logger = logging.getLogger("loadtest.qa")
log = Log()
schedule = Schedule(log)


def three_digits(response_time: float) -> float:
    """Locust's histogram keys with three significant digits; its own have two, in which a difference of 3 % between two models is lost."""
    return round(response_time, 2 if response_time < 10 else 1 if response_time < 100 else 0 if response_time < 1000 else -1)


locust.stats.bucket_response_time = three_digits  # type: ignore[assignment]  # the keys are printed by %d and sent as numbers, whole or not


class Asker(FastHttpUser):
    """Asks both models one question after another, without a pause; in an open loop, what is due."""

    host = "http://127.0.0.1:8000"
    plan: Iterator[tuple[Question, tuple[str, str]]]  # one for all users of a process: all questions are asked equally often
    due: Due | None = None

    def wait_time(self) -> float:
        """Locust ends a user that waits at once, and one that asks when it has its answer."""
        if given.is_open(self._options):
            self.due = schedule.next()
        return 0.0

    @task
    def ask(self) -> None:
        """One question to teacher and student, or to one of them what is due; nothing before the first wait of an open loop."""
        if not given.is_open(self._options):
            question, order = next(self.plan)
            log.add(question, {model: self._ask(question, model) for model in order})
        elif self.due is not None:
            due, self.due = self.due, None
            schedule.answered(due, self._ask(due.question, due.model, due.at))

    def _ask(self, question: Question, model: str, due: float | None = None) -> Half:
        options = self._options
        asked = request_body(question, model, options.top_k, options.no_answer)
        lag = 0.0 if due is None else 1000 * (time.perf_counter() - due)
        with self.client.post("/v1/answer", json=asked, headers=key_headers(), name=f"/v1/answer {model}", catch_response=True) as response:
            response.request_meta["response_time"] += lag  # Locust's own tables count from the same moment
            latency: float = response.request_meta["response_time"]
            headers = {name.lower(): value for name, value in (response.headers or {}).items()}
            checked: Checked | None = None
            try:
                checked = check_response(response.status_code, headers, response.content, question, asked)
            except WrongAnswer as error:
                response.failure(f"{error} (question {question.id})")
        return Half(latency, lag, checked)

    @property
    def _options(self) -> Namespace:
        options: Namespace | None = self.environment.parsed_options
        assert options is not None
        return options


events.init_command_line_parser.add_listener(given.add_options)


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Read the questions and, where the run starts by itself, wait for the server; end here, with one sentence, when that is in vain."""
    options, runner = environment.parsed_options, environment.runner
    assert options is not None
    try:
        questions = _questions(options)
        Asker.plan = draws(questions, options.seed)
        if not isinstance(runner, WorkerRunner):
            given.check(options)
            _prepare_run(environment, len(questions))
    except (PocketQAError, ValueError, OSError) as error:
        sys.exit(f"loadtest: {error}")
    connect(environment, log)
    follow(environment, schedule, log, lambda: Asker.plan)
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


@events.test_stopping.add_listener
def end_arrivals(**_: Any) -> None:
    """Nothing more is due; users end when what is under way was answered."""
    schedule.end()


def _prepare_run(environment: Environment, questions: int) -> None:
    """What the process that conducts the run does when all users are there, and at the end."""
    options, runner = environment.parsed_options, environment.runner
    assert options is not None
    assert isinstance(runner, LocalRunner | MasterRunner)
    subjects = _wait_for_subjects(environment) if options.headless else ()
    if given.is_open(options):  # whose users are connections: nothing is due before all are there
        options.num_users = options.num_users or CONNECTIONS
        options.spawn_rate = options.spawn_rate or options.num_users
    conductor, ending = Conductor(runner, log, options.seed), Ending(environment, log, questions, subjects)

    def begin(**_: Any) -> None:
        if options.find_rate:
            gevent.spawn(ending.search, conductor)
        elif options.open_loop > 0:
            conductor.send(options.open_loop, MODELS)

    events.spawning_complete.add_listener(begin)
    if options.headless:
        events.quitting.add_listener(ending.judge)
        events.quit.add_listener(ending.finish)
    else:
        events.test_stop.add_listener(ending.show)


def _wait_for_subjects(environment: Environment) -> tuple[Subject, ...]:
    """The models of the server, once it is ready, where the run file is to name them: after the run the server may be gone."""
    options, host = environment.parsed_options, environment.host or Asker.host
    assert options is not None
    if problem := wait_until_ready(host, options.ready_timeout):
        raise ValueError(problem)
    return served_models(host) if options.run_file else ()


def _questions(options: Namespace) -> list[Question]:
    return load_questions(options.squad, options.limit, options.seed, options.no_answer)


def wait_until_ready(host: str, timeout: float) -> str | None:
    """Ask /readyz until it says 200.  Returns what was wrong, in a sentence, when that does not happen within `timeout` seconds."""
    address = f"{host.rstrip('/')}/readyz"
    deadline = time.monotonic() + timeout
    while True:
        try:
            with fetch(address, 5):
                return None
        except (OSError, ValueError) as error:
            found = error.reason if isinstance(error, urllib.error.URLError) else error
        if time.monotonic() >= deadline:
            return f"Expected a ready server at {address} within {timeout:g} s, found: {found}. Start one with: pocketqa serve"
        time.sleep(0.25)

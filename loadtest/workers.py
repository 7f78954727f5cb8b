"""One log for a run of several processes: workers report their exchanges with Locust's own statistics, and once more, for certain, at the end.

Locust's master waits half a second for the last reports, and a worker that is late on a busy machine loses what it did since the report before (up to
three seconds).  So before the run ends the master asks every worker to stop, and goes on when each has sent what it had.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import gevent
from locust import events
from locust.env import Environment
from locust.rpc import Message
from locust.runners import MasterRunner, WorkerRunner

from loadtest.pairs import Log

STOP, STOPPED = "pocketqa_stop", "pocketqa_stopped"
LONGEST_WAIT = 15.0  # seconds; a request in flight may take its time, a worker that has died never answers

logger = logging.getLogger("loadtest.workers")


def connect(environment: Environment, log: Log) -> None:
    """Make `log` at the master the log of all workers.  Does nothing in a run of one process."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        _connect_worker(runner, log)
    elif isinstance(runner, MasterRunner):
        _connect_master(runner, log)


def _connect_worker(runner: WorkerRunner, log: Log) -> None:
    def report(client_id: str, data: dict[str, Any]) -> None:
        data["pocketqa"] = log.take()

    def stop(environment: Environment, msg: Message) -> None:
        runner.stop()
        runner.send_message(STOPPED, log.take())

    events.report_to_master.add_listener(report)
    runner.register_message(STOP, stop)


def _connect_master(runner: MasterRunner, log: Log) -> None:
    stopped: set[str] = set()

    def receive(client_id: str, data: dict[str, Any]) -> None:
        if "pocketqa" in data:
            log.merge(data["pocketqa"])

    def receive_last(environment: Environment, msg: Message) -> None:
        log.merge(msg.data)
        stopped.add(msg.node_id)

    def gather(environment: Environment, **_: Any) -> None:
        stopped.clear()
        runner.send_message(STOP)
        deadline = time.monotonic() + LONGEST_WAIT
        while waiting := {client.id for client in runner.clients.running} - stopped:
            if time.monotonic() > deadline:
                logger.warning("The last exchanges of %d of %d workers are missing from the table.", len(waiting), len(runner.clients))
                return
            gevent.sleep(0.05)

    events.worker_report.add_listener(receive)
    events.test_stopping.add_listener(gather)
    runner.register_message(STOPPED, receive_last)

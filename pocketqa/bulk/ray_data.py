"""The same blocks over a Ray cluster with Ray Data: actors that each hold the model, results in the order of the file.

Every machine of the cluster needs this version of PocketQA, and the input and the model at the same paths (a shared file system).  Nothing is sent
but the places of blocks and their finished output.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pocketqa.bulk.blocks import Block, read_lines
from pocketqa.bulk.lines import Answered, Problem, answer_lines
from pocketqa.bulk.run import Answering, Job
from pocketqa.errors import EngineError, MissingExtra, OptionsError

LOCAL = "local"
CONNECT_SECONDS = 10.0
STORE_BYTES = 256 << 20  # of shared memory, for a cluster of our own: only places and outputs pass through it


def over_ray(address: str) -> Answering:
    """Who computes: the cluster at this address ("auto", "host:6379", "ray://..."), or for "local" one that lives as long as the run.

    Raises MissingExtra, and EngineError where nothing listens at the address.
    """
    _check_reachable(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # of what is an error to us, Python hears too
    try:
        import ray
        import ray.data
    except ImportError:
        raise MissingExtra("ray", "ray", "`pocketqa answer --ray`") from None

    def answering(job: Job, blocks: Sequence[Block]) -> Iterator[Answered]:
        if not blocks:
            return
        # Ray asks nobody for a key: a cluster of our own stays on the loopback address, without the dashboard that takes jobs.
        own: dict[str, Any] = {"include_dashboard": False, "_node_ip_address": "127.0.0.1", "object_store_memory": STORE_BYTES}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **(own if address == LOCAL else {}))
        except (ConnectionError, OSError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, error) from None
        try:
            yield from _stream(job, blocks)
        except ray.exceptions.RayError as error:
            kept = "What is finished is kept; the same command without --force goes on."
            raise EngineError(f"A worker of the Ray cluster failed: {what_failed(str(error))} {kept}") from error
        finally:
            ray.shutdown()

    return answering


def what_failed(trace: str) -> str:
    """The message of our own exception out of the text of one of Ray's, behind which Ray's advice may stand; else its last line."""
    lines = trace.strip().splitlines()
    ours = [line.partition(": ")[2] for line in lines if line.startswith("pocketqa.errors.")]
    return (ours or lines or [""])[-1]


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> EngineError:
    return EngineError(f"Expected a Ray cluster at {address}, found none: {error}. Start one with: ray start --head")


class Answerer:
    """An actor: a reader, to which places of blocks are given."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._reader = job.open_reader()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """A block's place to its output."""
        block = Block(**{name: int(value) for name, value in row.items()})
        made = answer_lines(self._reader, read_lines(Path(self._job.source), block), self._job.asked)
        return {"number": block.number, "output": made.output.decode(), "problems": json.dumps([asdict(problem) for problem in made.problems])}


def _stream(job: Job, blocks: Sequence[Block]) -> Iterator[Answered]:
    import ray

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    threads = job.asked.threads or 1
    cores = [cores for node in ray.nodes() if node["Alive"] and (cores := int(node["Resources"].get("CPU", 0)))]
    if cores and threads > max(cores):  # Ray would wait for a larger machine for ever
        raise OptionsError(f"Expected --threads of at most {max(cores)}, the cores of the cluster's largest machine that is up, found {threads}.")
    actors = max(1, sum(one // threads for one in cores))
    places = ray.data.from_items([asdict(block) for block in blocks], override_num_blocks=len(blocks))
    answerer: Any = Answerer  # Ray's annotations know functions only
    pool = ray.data.ActorPoolStrategy(size=min(actors, len(blocks)))
    done = places.map(answerer, fn_constructor_args=(replace(job, asked=replace(job.asked, threads=threads)),), num_cpus=threads, compute=pool)
    for block, row in zip(blocks, done.iter_rows(), strict=True):
        if row["number"] != block.number:
            raise EngineError(f"Expected block {block.number} from the Ray cluster, found block {row['number']}.")
        yield Answered(row["output"].encode(), tuple(Problem(**problem) for problem in json.loads(row["problems"])))

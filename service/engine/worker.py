"""The process that computes: it opens both models, warms them up, and answers batches until its socket closes.

python -m service.engine.worker FD     FD: the inherited end of a socket; started by service.engine.process, not by people
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pocketqa.errors import EngineError, PocketQAError
from pocketqa.types import Batch
from service.engine.frames import HEADER_BYTES, ROLES, Computed, Frame, FrameError, Job, Kind, Text, decode, encode, read_header
from service.models import Pair, Served, open_pair
from service.settings import Settings

_MOST_NICE = 19
_PR_SET_THP_DISABLE = 41  # of Linux' <sys/prctl.h>
LOST = 3  # exit status of a worker whose socket closed, or brought what is no frame
# Row counts and lengths to warm, in the order of their worth: short single windows first, then what crowds of requests make of them.
WARM_SHAPES = (
    (1, 128), (1, 384), (1, 256), (4, 128), (1, 64), (8, 128), (4, 384), (1, 192), (1, 320), (4, 256), (8, 256), (16, 128), (8, 384), (8, 64),
    (1, 32), (1, 96), (1, 160), (1, 224), (1, 288), (1, 352), (2, 128), (2, 384), (2, 256),
)  # fmt: skip

log = logging.getLogger("pocketqa.service")


def main(argv: Sequence[str]) -> int:
    """Serve the socket with this number until it closes."""
    # Whoever stops the service stops this process by closing the socket, when the last request is answered: not the terminal or the
    # service manager, which send their signals to every process of the group.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    return serve(socket.socket(fileno=int(argv[0])), open_pair)


def serve(connection: socket.socket, opener: Callable[[Settings], Pair]) -> int:
    """The worker's life: it ends when the socket closes, or with the batch that it is at."""
    try:
        opening = receive(connection)
        if not isinstance(opening, Text) or opening.kind != Kind.OPEN:
            raise FrameError("Expected an OPEN frame first, found another.")
        try:
            if opening.document["background"]:
                step_back()
            pair = opener(_settings(opening.document))
        except Exception as error:
            if not isinstance(error, PocketQAError):  # a fault of ours, or of a library, whose place matters
                log.exception("A worker could not open the models")
            connection.sendall(encode(_failure(0, error)))
            return 1
        costs = warm(pair, opening.document["warm_seconds"])
        keep_pages_apart()
        connection.sendall(encode(Text(Kind.READY, describe(pair, costs))))
        while True:
            job = receive(connection)
            if not isinstance(job, Job):
                raise FrameError("Expected a JOB frame, found another.")
            connection.sendall(encode(compute(pair, job)))
    except OSError:  # the service is gone
        return LOST
    except FrameError as error:
        log.error("A worker ends: %s", error)
        return LOST


def receive(connection: socket.socket) -> Frame:
    """The next frame.  Raises OSError where the socket is closed, FrameError."""
    header = read_header(_exactly(connection, HEADER_BYTES))
    return decode(header, _exactly(connection, header.size))


def compute(pair: Pair, job: Job) -> Frame:
    """The logits of a batch, or what went wrong with it."""
    began = time.perf_counter()
    try:
        logits = pair[job.role].reader.runtime.forward(job.batch)
    except Exception as error:
        log.exception("The %s cannot compute a batch of %d x %d", job.role, *job.batch.shape)
        return _failure(job.number, error)
    except BaseException as panic:  # of a library written in Rust: no Exception
        log.exception("The %s cannot compute a batch of %d x %d", job.role, *job.batch.shape)
        return _failure(job.number, EngineError(f"A library panicked: {type(panic).__name__}"))
    return Computed(job.number, job.role, logits, time.perf_counter() - began)


def step_back() -> None:
    """Take only processor time that nobody else wants, this thread and those that it starts."""
    if hasattr(os, "SCHED_IDLE"):  # Linux: gives way at once, and so also to what wakes for a few milliseconds
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    os.nice(_MOST_NICE)


def keep_pages_apart() -> None:
    """Have the system leave the pages of this process as they are; those that it has joined into huge ones so far, such as the weights', stay so.

    OpenVINO compiles some twenty kernels for each new shape and sets 256 KiB of addresses aside for each, of which it fills a few pages.  Where Linux
    joins pages by itself (transparent_hugepage=always), the rest becomes memory too: some MiB for each shape, as long as new ones come.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)  # where it is forbidden, memory grows as it would have


def warm(pair: Pair, seconds: float) -> dict[str, list[list[float]]]:
    """Meet the shapes worth meeting, within a time, the models in turn.  Returns [rows, length, seconds] of each, measured when it was warm."""
    end = time.perf_counter() + seconds
    costs: dict[str, list[list[float]]] = {role: [] for role in ROLES}
    for rows, length in WARM_SHAPES:
        for role in ROLES:
            runtime = pair[role].reader.runtime
            fits = (runtime.max_batch is None or rows <= runtime.max_batch) and (runtime.lengths is None or length in runtime.lengths)
            if not fits or (costs[role] and time.perf_counter() >= end):
                continue
            batch = filler(rows, length)
            measured = []
            for _ in range(3):  # the first pays for being the first
                began = time.perf_counter()
                runtime.forward(batch)
                measured.append(time.perf_counter() - began)
            costs[role].append([rows, length, min(measured[1:])])
    return costs


def filler(rows: int, length: int) -> Batch:
    """A batch of the shape, full of token 0: what a dense model costs does not depend on what it reads."""
    ids = np.zeros((rows, length), dtype=np.int32)  # (B, T)
    return Batch(ids, ids, np.ones_like(ids))


def describe(pair: Pair, costs: dict[str, list[list[float]]]) -> dict[str, Any]:
    """What the service needs to know of the models, since it does not open them itself."""
    return {"models": {role: _describe(pair[role]) | {"costs": costs[role]} for role in ROLES}, "peak_rss_bytes": peak_rss()}


def _describe(served: Served) -> dict[str, Any]:
    reader = served.reader
    return {
        "name": reader.name,
        "model_hash": reader.model_hash,
        "vocabulary": reader.tokenizer.vocabulary_hash,
        "no_answer": asdict(reader.no_answer),
        "info": asdict(reader.info),
        "lengths": reader.runtime.lengths,
        "max_batch": reader.runtime.max_batch,
        "facts": asdict(served.facts),
    }


def peak_rss() -> int:
    """Bytes of memory that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def opening_document(settings: Settings, threads: int, warm_seconds: float, background: bool = False) -> dict[str, Any]:
    """The OPEN frame's: what a worker needs of the settings, for how long it may warm up both models together, and whether it is to step back."""
    document = {"teacher": str(settings.teacher), "student": str(settings.student), "engine": settings.engine, "precision": settings.precision}
    return document | {"threads": threads, "warm_seconds": warm_seconds, "background": background}


def _settings(document: dict[str, Any]) -> Settings:
    engine, precision, threads = (document[name] for name in ("engine", "precision", "threads"))
    return Settings(teacher=Path(document["teacher"]), student=Path(document["student"]), engine=engine, precision=precision, threads=threads)


def _failure(number: int, error: Exception) -> Text:
    return Text(Kind.FAILED, {"error": type(error).__name__, "message": str(error)[:4000]}, number)


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        received = connection.recv_into(view)
        if received == 0:
            raise ConnectionResetError("The service closed the socket.")
        view = view[received:]
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

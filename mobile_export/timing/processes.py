"""The process of a contestant, as the benchmark holds it.

    with Process(contestant, cores=(1,)) as process:
        opened = process.open()
        process.give(workload)
        sample = process.ask(0)

The process is pinned to its cores before it imports anything, and it sleeps while others are asked.  Times are taken inside it, so that what it
costs to send a question and fetch an answer is no part of them.  It speaks JSON lines over pipes (contestant_process.py is its side of them).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO

from mobile_export.timing.contestants import Contestant
from mobile_export.timing.workloads import Query, Workload
from pocketqa.errors import EngineError
from pocketqa.types import JSON, RuntimeInfo

SETTLE_SECONDS = 0.2  # longest wait for a contestant's threads to stop
SETTLE_BLIND = 0.03
SETTLE_STEP = 0.002
SETTLE_SHARE = 0.1  # of one core: a process that computes less than this is asleep


@dataclass(frozen=True, slots=True)
class Opened:
    """A process that has loaded its model.  Times in seconds, memory in MiB.

    start: from the start of the process until the engine's libraries are imported; load: tokenizer and engine, from the files to a model that
    can be asked; fetched: MiB that the load read from storage (0 where all lay in the page cache), None where the system does not say.
    """

    info: RuntimeInfo
    start: float
    load: float
    fetched: float | None
    memory_before: float | None
    memory_after: float | None
    lengths: tuple[int, ...] | None
    vocabulary: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One query answered.  Times in seconds.

    tokens: of its windows; positions: computed, padding included; new_length: a window of a length that this process met for the first time.
    """

    tokenise: float
    forward: float
    decode: float
    tokens: int
    positions: int
    windows: int
    new_length: bool

    @property
    def total(self) -> float:
        """All three stages."""
        return self.tokenise + self.forward + self.decode


@dataclass(frozen=True, slots=True)
class Closed:
    """What a process says at its end: peak of its resident memory (MiB); since it got its workload, CPU seconds, and seconds its threads waited for a
    core while ready to run."""

    peak: float | None
    cpu: float
    waited: float | None


def drop_from_cache(files: Sequence[Path]) -> bool:
    """Ask the system to forget the contents of files, so that the next reader fetches them from storage; whether it can be asked.

    Pages that another process has mapped stay.  (posix_fadvise, POSIX_FADV_DONTNEED; macOS has no such call.)
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # a read-only file system has nothing to write back
                os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


def computed_seconds(tasks: Path) -> float | None:
    """CPU seconds of the threads in a folder /proc/PID/task, to the nanosecond; None where the kernel keeps no account."""
    try:
        return sum(int((task / "schedstat").read_text(encoding="ascii").split()[0]) for task in tasks.iterdir()) / 1e9
    except (OSError, IndexError):
        return None


class Process:
    """The process of a contestant.  Use it as a context manager: it never outlives the block."""

    def __init__(self, contestant: Contestant, cores: Sequence[int]) -> None:
        self.contestant = contestant
        self._cores = tuple(cores)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (closed by __exit__; a pipe that nobody reads would fill up)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Process:
        threads = str(self.contestant.threads)
        here = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH", ""))))
        limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads)
        quiet = {"TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore", "TRANSFORMERS_VERBOSITY": "error"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mobile_export.timing.contestant_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **limits, **quiet, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C is for the parent, which then ends its children itself
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        process = self._process
        if process is not None and process.stdin is not None and process.stdout is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()  # the end of its input ends it
            try:
                process.wait(timeout=5 if kind is None else 0.1)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()
        self._errors.close()

    def open(self) -> Opened:
        """Load the model.  Raises EngineError with what the process said."""
        contestant = self.contestant
        reply = self._say(
            {
                "open": {
                    "path": str(contestant.path.resolve()),
                    "form": contestant.form,
                    "engine": contestant.engine,
                    "precision": contestant.precision,
                    "threads": contestant.threads,
                    "unit": contestant.unit,
                    "cores": self._cores,
                }
            }
        )
        lengths = reply.pop("lengths")
        return Opened(RuntimeInfo(**reply.pop("info")), lengths=None if lengths is None else tuple(lengths), **reply)

    def give(self, workload: Workload) -> None:
        """Hand over the queries, which are then asked by number."""
        if zeros := self.contestant.zeros:
            workload = replace(workload, queries=(Query(ids=(0,) * zeros),) * len(workload.queries))
        self._say({"workload": workload.to_json()})

    def ask(self, number: int) -> Sample:
        """Answer one query of the workload."""
        return Sample(**self._say({"ask": number}))

    def settle(self) -> bool:
        """Wait until the process sleeps: the threads of some engines go on spinning after an answer and would disturb the next contestant.

        False where they still spin after SETTLE_SECONDS.  Where the system does not say how much a process computes, the wait is SETTLE_BLIND.
        """
        assert self._process is not None, "use Process as a context manager"
        tasks = Path(f"/proc/{self._process.pid}/task")
        before, ends = computed_seconds(tasks), time.monotonic() + SETTLE_SECONDS
        while before is not None and time.monotonic() < ends:
            began = time.monotonic()
            time.sleep(SETTLE_STEP)
            after = computed_seconds(tasks)
            if after is None or after - before < SETTLE_SHARE * (time.monotonic() - began):
                return True
            before = after
        if before is None:
            time.sleep(SETTLE_BLIND)
        return before is None

    def close(self) -> Closed:
        """Ask for the closing account; the process ends."""
        return Closed(**self._say({"close": True}))

    def _say(self, message: JSON) -> JSON:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None, "use Process as a context manager"
        try:
            process.stdin.write(json.dumps(message).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            process.wait()
            raise EngineError(f"The process of {self.contestant.label} ended with status {process.returncode}: {self._last_words()}")
        reply: JSON = json.loads(line)
        if "error" in reply:
            raise EngineError(f"{self.contestant.label}: {reply['error']}")
        return reply

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1][:400] if lines else "it said nothing"

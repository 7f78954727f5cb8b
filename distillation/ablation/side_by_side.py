"""How the works of an ablation are run: one after the other in this process, or several at once, each in a process with its share of the cores.

Small models do not fill many cores, since every product waits for its slowest thread: several trainings of a few threads each do more in an hour.
A work starts once all that it starts from is there.  What a process says stands in a file beside what it leaves, which is locked while it runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO

from distillation.ablation.ablation_work import Work
from distillation.training import STOPPED
from pocketqa.errors import TrainingError
from pocketqa.locks import try_lock
from pocketqa.reporting.tables import duration
from pocketqa.runtimes.cores import usable_cores

SAY_SECONDS = 60.0  # between two looks at what runs
LAST_LINES = 15

Run = Callable[[Work], int]  # runs the verb of a work and returns its exit status
Do = Callable[[Work, str, Run], int]  # the same with all that belongs to it, named by its place among the others
Say = Callable[[str], None]


def run_all(works: Sequence[Work], jobs: int, do: Do, verbs: Mapping[str, Callable[[list[str]], int]], say: Say) -> int:
    """Do every work, `jobs` of them at once; the exit status of the first that failed or was stopped, which stops the others too.

    verbs: what runs in this process where jobs is 1.  Raises TrainingError where the process of an earlier call still runs a work.
    """
    places = {work: f"{number}/{len(works)}" for number, work in enumerate(works, 1)}
    if jobs == 1:
        return next((status for work in works if (status := _alone(work, places[work], do, verbs))), 0)
    waiting, running, statuses, failures = list(works), dict[Future[int], Work](), list[int](), list[BaseException]()
    with _terminated(), ThreadPoolExecutor(jobs) as pool, _Processes(jobs, say) as processes:
        while running or (waiting and not (statuses or failures)):
            for work in () if statuses or failures else _ready(waiting, list(running.values()))[: jobs - len(running)]:
                waiting.remove(work)
                running[pool.submit(processes.do, work, places[work], do)] = work
            finished, _ = wait(running, timeout=SAY_SECONDS, return_when=FIRST_COMPLETED)
            for one in finished:
                work = running.pop(one)
                if (failure := one.exception()) is not None:
                    say(f"[{places[work]}] {failure}")
                    failures.append(failure)
                elif one.result():
                    statuses.append(one.result())
            if statuses or failures:
                processes.stop()
            elif not finished:
                for work in running.values():
                    say(f"[{places[work]}] {_last_lines(work.log, 1)}")
    if failures:
        raise failures[0]
    return next(iter(statuses), 0)


def say_overlap(jobs: int, say: Say) -> None:
    """What an expected time does not count."""
    if jobs > 1:
        say(f"these times are of works one after the other: {jobs} at once overlap, and one that was measured beside others took longer for it")


def _alone(work: Work, place: str, do: Do, verbs: Mapping[str, Callable[[list[str]], int]]) -> int:
    def here(work: Work) -> int:
        with contextlib.redirect_stdout(sys.stderr):  # what a verb prints for programs is not what this one prints for them
            return verbs[work.verb](list(work.words))

    with _held(work) if work.log.exists() else contextlib.nullcontext():
        return do(work, place, here)


def _ready(waiting: Sequence[Work], running: Sequence[Work]) -> list[Work]:
    """The works that need nothing which is not finished.  Those on the final data come after all others, so that nothing is chosen by it."""
    unfinished = [*waiting, *running]
    made = {str(work.leaves) for work in unfinished}
    last = all(work.verb == "final" for work in unfinished)
    return [work for work in waiting if not made.intersection(work.words) - {str(work.leaves)} and (last or work.verb != "final")]


class _Processes:
    """Verbs as processes.  Left by an exception, it asks them all to save and end."""

    def __init__(self, jobs: int, say: Say) -> None:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        self._threads = max(1, (int(asked) if asked.isdigit() else usable_cores()) // jobs)
        self._jobs, self._say = jobs, say
        self._running: set[subprocess.Popen[bytes]] = set()
        self._asked: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind:
            self.stop()

    def stop(self) -> None:
        """Ask all that runs to save and end, each once; start nothing more."""
        with self._lock:
            self._stopped = True
            if self._running - self._asked:
                self._say("stopping: trainings that run are saved first")
            for process in self._running - self._asked:
                self._asked.add(process)
                process.terminate()

    def do(self, work: Work, place: str, do: Do) -> int:
        """Do a work whose verb runs in a process of its own."""
        with contextlib.nullcontext() if work.done else _held(work) as log:
            return do(work, place, functools.partial(self._run, place=place, log=log))

    def _run(self, work: Work, *, place: str, log: IO[bytes] | None) -> int:
        command = [sys.executable, "-m", "pocketqa", work.typed, *work.words]
        environment, began = os.environ | {"OMP_NUM_THREADS": str(self._threads)}, time.monotonic()
        with self._lock:
            if self._stopped:
                return STOPPED
            # of a session of its own, so that Ctrl-C reaches it once, through `stop`
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True)
            self._running.add(process)
        status = process.wait()
        with self._lock:
            self._running.remove(process)
            asked = process in self._asked
        if status == 0:
            self._say(f"[{place}] finished in {duration(time.monotonic() - began)}")
        elif not (asked and status in (STOPPED, -signal.SIGTERM)):
            how = f"ended with status {status}" if status > 0 else f"was killed by {signal.Signals(-status).name}"
            room = f" (is there enough memory for --jobs {self._jobs}?)" if status == -signal.SIGKILL else ""
            self._say(f"[{place}] {how}{room}; {work.log} ends so:\n{_last_lines(work.log, LAST_LINES)}")
        return status if status >= 0 else 128 - status


@contextlib.contextmanager
def _held(work: Work) -> Iterator[IO[bytes]]:
    """A work's log, locked for this call and for the process that gets it, which may outlive a call that is killed.

    Raises TrainingError where another process holds it.
    """
    work.log.parent.mkdir(parents=True, exist_ok=True)
    with work.log.open("ab") as log:
        free = True
        with contextlib.suppress(OSError):  # a file system without locks
            free = try_lock(log)
        if not free:
            raise TrainingError(f"Another process still runs what {work.log} tells of. Wait until it ends, or end it, and call again.")
        yield log


def _last_lines(log: Path, count: int) -> str:
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
    return ""


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM, and a terminal that closes, end what is inside as an exception does; once, so that what is being saved then is not cut short."""
    numbers = {number for number in (signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)) if signal.getsignal(number) != signal.SIG_IGN}

    def leave(*_: object) -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise SystemExit(STOPPED)

    before = {}
    try:
        for number in numbers:
            before[number] = signal.signal(number, leave)
    except ValueError:  # not the main thread: the caller owns the signals
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

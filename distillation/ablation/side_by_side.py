"""How the works of an ablation are run: one after the other in this process, or several at once, each in a process with its share of the cores.

Small models do not fill many cores, since every product waits for its slowest thread: several trainings of a few threads each do more in an hour.
A work starts once all that it starts from is there.  What a process says stands in a file beside what it leaves.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from distillation.ablation.ablation_work import Work
from pocketqa.errors import TrainingError
from pocketqa.locks import try_lock
from pocketqa.reporting.tables import duration
from pocketqa.runtimes.cores import usable_cores

STOPPED = 128 + signal.SIGTERM
SAY_SECONDS = 60.0  # between two looks at what runs
LAST_LINES = 15

Run = Callable[[Work], int]  # runs the verb of a work and returns its exit status
Do = Callable[[Work, str, Run], int]  # the same with all that belongs to it, named by its place among the others


def run_all(works: Sequence[Work], jobs: int, do: Do, verbs: Mapping[str, Callable[[list[str]], int]], say: Callable[[str], None]) -> int:
    """Do every work, `jobs` of them at once; the exit status of the first that failed or was stopped, which stops the others too.

    verbs: what runs in this process where jobs is 1.
    """
    places = {work: f"{number}/{len(works)}" for number, work in enumerate(works, 1)}

    def here(work: Work) -> int:
        with contextlib.redirect_stdout(sys.stderr):  # what a verb prints for programs is not what this one prints for them
            return verbs[work.verb](list(work.words))

    if jobs == 1:
        return next((status for work in works if (status := do(work, places[work], here))), 0)
    processes, waiting, running, status = _Processes(jobs, say), list(works), dict[Future[int], Work](), 0
    with ThreadPoolExecutor(jobs) as pool, _terminated(), processes:
        while running or (waiting and not status):
            for work in () if status else _ready(waiting, list(running.values()))[: jobs - len(running)]:
                waiting.remove(work)
                running[pool.submit(do, work, places[work], processes.run)] = work
            finished, _ = wait(running, timeout=SAY_SECONDS, return_when=FIRST_COMPLETED)
            for one in finished:
                status = status or one.result()
                del running[one]
            if status:
                processes.stop()
            elif not finished:
                for work in running.values():
                    say(f"[{places[work]}] {''.join(_last_lines(work.log, 1)).strip()}")
    return status


def _ready(waiting: Sequence[Work], running: Sequence[Work]) -> list[Work]:
    """The works that need nothing which is not finished.  Those on the final data come after all others, so that nothing is chosen by it."""
    unfinished = [*waiting, *running]
    made = {str(work.leaves) for work in unfinished}
    last = all(work.verb == "final" for work in unfinished)
    return [work for work in waiting if not made.intersection(work.words) - {str(work.leaves)} and (last or work.verb != "final")]


class _Processes:
    """Verbs as processes.  Left by an exception, it asks them all to save and end."""

    def __init__(self, jobs: int, say: Callable[[str], None]) -> None:
        asked = os.environ.get("OMP_NUM_THREADS", "")
        self._threads = max(1, (int(asked) if asked.isdigit() else usable_cores()) // jobs)
        self._say = say
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> _Processes:
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind:
            self.stop()

    def stop(self) -> None:
        """Ask all that runs to save and end; start nothing more."""
        with self._lock:
            if self._running and not self._stopped:
                self._say("stopping: trainings that run are saved first")
            self._stopped = True
            for process in self._running:
                process.terminate()

    def run(self, work: Work) -> int:
        """Run a work's verb and wait for it.  Raises TrainingError where the process of an earlier call still runs it."""
        command = [sys.executable, "-m", "pocketqa", work.verb.replace("final", "evaluate"), *work.words]
        environment, began = os.environ | {"OMP_NUM_THREADS": str(self._threads)}, time.monotonic()
        with work.log.open("ab") as said:
            if not try_lock(said):  # which the process holds by its own handle: a call that was killed may have left it running
                raise TrainingError(f"Another process still runs what {work.log} tells of. Wait until it ends, or end it, and call again.")
            with self._lock:
                if self._stopped:
                    return STOPPED
                # of a session of its own, so that Ctrl-C reaches it once, through `stop`
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment, start_new_session=True)
                self._running.add(process)
            status = process.wait()
        with self._lock:
            self._running.remove(process)
        if status and not self._stopped:
            self._say(f"{work.verb} {work.row.name}, seed {work.seed}: failed; {work.log} ends so:\n{''.join(_last_lines(work.log, LAST_LINES))}")
        elif not status:
            self._say(f"{work.verb} {work.row.name}, seed {work.seed}: finished in {duration(time.monotonic() - began)}")
        return status if status >= 0 else 128 - status


def _last_lines(log: Path, count: int) -> list[str]:
    with contextlib.suppress(OSError):
        return [f"{line}\n" for line in log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]]
    return []


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM ends what is inside as an exception does."""

    def leave(*_: object) -> None:
        raise SystemExit(STOPPED)

    try:
        before = signal.signal(signal.SIGTERM, leave)
    except ValueError:  # not the main thread: the caller owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

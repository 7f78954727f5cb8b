"""Server processes of a benchmark: started on cores of their own, waited for, watched in /proc, ended.

The client takes one core and the servers the others, so that neither takes the other's time; where the system cannot pin (macOS), nothing is pinned
and the run file says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.fetch import fetch
from pocketqa.errors import PocketQAError

READY = re.compile(r"Ready on http://[^:\s]+:(\d+)")
READY_SECONDS = 600.0
POLL_SECONDS = 0.05
SHOWN = 500  # characters of its last line
STOP_SECONDS = 30.0
PROC = Path("/proc")


class ServerFailed(PocketQAError):
    """A server of the benchmark ended, or did not become ready."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores the servers and the client have; empty where the system cannot pin."""

    servers: tuple[int, ...]
    client: tuple[int, ...]

    @classmethod
    def split(cls) -> Cores:
        """The last core for the client, the others for the servers."""
        allowed = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
        return cls(allowed[:-1], allowed[-1:]) if len(allowed) > 1 else cls((), ())


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keep this process, and what it starts, to these cores for as long as the context lasts; to no cores in particular where there are none."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Server:
    """One server process on its cores.  What it says goes to a file: a pipe that nobody reads would stop it once it is full."""

    def __init__(self, name: str, command: Sequence[str], cores: Sequence[int]) -> None:
        self.name = name
        self.port = 0
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (closed by stop)
        with pinned(cores):
            self.process = subprocess.Popen(command, stdout=self._said, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def wait(self, seconds: float = READY_SECONDS) -> None:
        """Until it says where it is ready.  Raises ServerFailed with its last words."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            ended = self.process.poll() is not None
            if found := READY.search(self._words()):
                self.port = int(found[1])
                return
            if ended:
                raise ServerFailed(f"Expected the server {self.name} to become ready, found that it ended. {self._last_words()}")
            time.sleep(POLL_SECONDS)
        raise ServerFailed(f"Expected the server {self.name} to be ready within {seconds:g} s, found that it is not. {self._last_words()}")

    def _words(self) -> str:
        # By position: the process writes through the same open file, and moving its position would make it write over its own words.
        return os.pread(self._said.fileno(), os.fstat(self._said.fileno()).st_size, 0).decode("utf-8", "replace")

    def _last_words(self) -> str:
        lines = self._words().strip().splitlines()
        return f"It said: {lines[-1][-SHOWN:]}" if lines else "It said nothing."

    def get(self, path: str) -> Any:
        """A JSON document of its own."""
        with fetch(f"{self.url}{path}", 30) as response:
            return json.load(response)

    def usage(self) -> Usage:
        """What it and its children have used so far."""
        return Usage.of(self.process.pid)

    def stop(self) -> None:
        """Ask it to end; make it, where it does not."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._said.close()


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a process and all below it: CPU seconds, resident memory in bytes, open files, threads.  Zeros where there is no /proc."""

    cpu: float
    memory: int
    files: int
    threads: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Now."""
        cpu, memory, files, threads = 0.0, 0, 0, 0
        for one in _tree(pid):
            try:
                fields = _after_name(one)
                cpu += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")  # utime, stime: fields 14 and 15 of proc(5)
                threads += int(fields[17])
                memory += int((PROC / str(one) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
                files += len(os.listdir(PROC / str(one) / "fd"))
            except (OSError, IndexError):  # it has just ended
                continue
        return cls(cpu, memory, files, threads)


def machine_cpu() -> float | None:
    """CPU seconds that everybody has used on all cores since the machine started; None where there is no /proc."""
    try:
        fields = (PROC / "stat").read_text().partition("\n")[0].split()
    except OSError:
        return None
    user, nice, system, _idle, _wait, interrupts, soft = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[1:8])
    return user + nice + system + interrupts + soft


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this Python."""
    return [sys.executable, "-m", module, *arguments]


def _tree(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdigit():
            try:
                children.setdefault(int(_after_name(int(entry.name))[1]), []).append(int(entry.name))
            except (OSError, IndexError):
                continue
    found, waiting = [], [root]
    while waiting:
        one = waiting.pop()
        found.append(one)
        waiting += children.get(one, [])
    return found


def _after_name(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; the name before them may hold spaces and brackets."""
    return (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()

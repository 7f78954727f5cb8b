"""Server processes: started on their cores, waited for, watched, ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.processes import Cores, Server, ServerFailed, Usage, machine_cpu, pinned

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")
PINS = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system cannot pin processes")


def started(code: str, cores: tuple[int, ...] = ()) -> Server:
    return Server("test", [sys.executable, "-c", code], cores)


def test_it_waits_for_the_word_and_ends_the_process() -> None:
    server = started("import time; print('Opening'); print('Ready on http://127.0.0.1:4321 with x.', flush=True); time.sleep(60)")
    try:
        server.wait(60)
        assert (server.port, server.url) == (4321, "http://127.0.0.1:4321")
        assert server.process.poll() is None
    finally:
        server.stop()
    assert server.process.poll() is not None


def test_a_talkative_server_is_not_stopped_by_a_full_pipe() -> None:
    server = started("print('x' * 300_000); print('Ready on http://127.0.0.1:80', flush=True); print('y' * 300_000)")
    try:
        server.wait(60)
        assert server.process.wait(60) == 0
    finally:
        server.stop()


def test_a_server_that_ends_is_quoted() -> None:
    server = started("import sys; sys.exit('Expected a folder, found none.')")
    try:
        with pytest.raises(ServerFailed, match=r"the server test to become ready, found that it ended\. It said: Expected a folder, found none\."):
            server.wait(60)
    finally:
        server.stop()


def test_a_silent_server_is_not_waited_for_for_ever() -> None:
    server = started("import time; time.sleep(60)")
    try:
        with pytest.raises(ServerFailed, match=r"ready within 0\.2 s, found that it is not\. It said nothing\."):
            server.wait(0.2)
    finally:
        server.stop()


@PINS
def test_processes_stay_on_their_cores() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    asked = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    with pinned((core,)):
        assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == f"[{core}]"
    assert os.sched_getaffinity(0) == before
    with pinned(()):
        assert os.sched_getaffinity(0) == before


@PINS
def test_client_and_servers_share_no_core() -> None:
    cores = Cores.split()
    allowed = os.sched_getaffinity(0)
    if len(allowed) == 1:
        assert cores == Cores((), ())
    else:
        assert len(cores.client) == 1
        assert set(cores.client) | set(cores.servers) == allowed
        assert not set(cores.client) & set(cores.servers)


@LINUX
def test_usage_counts_children_too() -> None:
    alone = Usage.of(os.getpid())
    code = "import time; data = bytearray(60 << 20); data[:: 4096] = b'x' * len(data[:: 4096]); print('here', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "here\n"
        both = Usage.of(os.getpid())
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
    assert both.memory - alone.memory > 60 << 20
    assert both.threads > alone.threads
    assert both.files > alone.files
    assert both.cpu >= alone.cpu > 0


@LINUX
def test_the_machine_has_used_more_than_we_have() -> None:
    used = machine_cpu()
    assert used is not None
    assert used > Usage.of(os.getpid()).cpu

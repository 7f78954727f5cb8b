"""HAProxy in front of server processes: docker/haproxy/haproxy.cfg, the one that compose.yaml uses, with replicas on loopback."""

from __future__ import annotations

import shutil
import socket
import tempfile
import time
import urllib.error
from collections.abc import Sequence
from pathlib import Path

from loadtest.fetch import fetch
from loadtest.processes import POLL_SECONDS, READY_SECONDS, Server, ServerFailed
from pocketqa.errors import PocketQAError

CONFIG = Path(__file__).resolve().parent.parent / "docker" / "haproxy" / "haproxy.cfg"
REPLICA_HEADER = "x-replica"  # which replica answered, as haproxy.cfg says it
SBIN = "/usr/sbin"  # where Debian puts it, which is on the path of root alone


class NoBalancer(PocketQAError):
    """HAProxy is not installed, or its configuration is not where it should be."""


class Balancer(Server):
    """An HAProxy on a free port of 127.0.0.1, its replicas named replica1, replica2, ... in the order of their ports."""

    def __init__(self, ports: Sequence[int], cores: Sequence[int] = (), config: Path = CONFIG) -> None:
        """Raises NoBalancer."""
        program = shutil.which("haproxy") or shutil.which("haproxy", path=SBIN)
        if program is None:
            raise NoBalancer("Expected HAProxy, found none. Install it: apt-get install haproxy, or brew install haproxy.")
        if not config.is_file():
            raise NoBalancer(f"Expected HAProxy's configuration at {config}, found none: run this from a checkout.")
        self.names = tuple(f"replica{number}" for number in range(1, len(ports) + 1))
        self._folder = tempfile.TemporaryDirectory(prefix="pocketqa-haproxy-")
        replicas = Path(self._folder.name, "replicas.cfg")
        servers = (f"    server {name} 127.0.0.1:{port}\n" for name, port in zip(self.names, ports, strict=True))
        replicas.write_text("backend replicas\n" + "".join(servers), encoding="utf-8")
        port = free_port()
        command = ["env", f"POCKETQA_BIND=127.0.0.1:{port}", program, "-db", "-f", str(config), "-f", str(replicas)]
        super().__init__("haproxy", command, cores)
        self.port = port

    def wait(self, seconds: float = READY_SECONDS) -> None:
        """Until every replica answers through it.  Raises ServerFailed."""
        waiting = set(self.names)
        ends = time.monotonic() + seconds
        while waiting:
            if self.process.poll() is not None:
                raise ServerFailed(f"Expected HAProxy to run, found that it ended. {self._last_words()}")
            if time.monotonic() > ends:
                raise ServerFailed(f"Expected HAProxy to reach {', '.join(sorted(waiting))} within {seconds:g} s, found that it does not.")
            if (name := self.ready()) in waiting:
                waiting.remove(name)
            else:
                time.sleep(POLL_SECONDS)

    def ready(self) -> str:
        """The name of the replica that just said it is ready; empty where none did."""
        try:
            with fetch(f"{self.url}/readyz", 10) as response:
                return str(response.headers[REPLICA_HEADER])
        except (urllib.error.URLError, OSError):
            return ""

    def stop(self) -> None:
        """End it and remove its files."""
        super().stop()
        self._folder.cleanup()


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port

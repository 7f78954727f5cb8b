"""`pocketqa serve`: the service with its page, until interrupted.

pocketqa serve
pocketqa serve --teacher DIR --student DIR --port 8080
POCKETQA_THREADS=2 pocketqa serve --engine onnxruntime
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress

from pocketqa.errors import OptionsError
from service.settings import Settings

_BACKLOG = 2048
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


def main(argv: Sequence[str]) -> int:
    """Run until interrupted.  Raises PocketQAError for settings, folders or an address that cannot be used."""
    # The first process of a container is deaf to a signal without a handler, and what is imported below takes its time.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    settings = Settings.read(argv)

    from service.app import create_app  # after --help, which needs none of it
    from service.draining import DrainingServer
    from service.edge.access_log import LogHandler
    from service.edge.gates import check_exposure
    from service.edge.server import allow_connections, config
    from service.edge.tracing import LogFilter

    check_exposure(settings)
    allow_connections(settings.max_connections)
    listener = listen(settings.host, settings.port)
    to_standard_error = LogHandler()
    to_standard_error.addFilter(LogFilter())
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s%(trace)s", handlers=[to_standard_error])

    def opened(failure: Exception | None) -> None:
        if failure is not None:
            server.should_exit = True
            return
        pair = app.state.service.pair
        models = " and ".join(
            f"{served.title} ({served.reader.info.engine} {served.reader.info.precision})" for served in (pair.teacher, pair.student)
        )
        tell(f"Ready on {url(listener)} with {models}. Ctrl+C stops.")

    app = create_app(settings, opened=opened)
    server = DrainingServer(config(app, settings), app.state.service.drain, settings.drain_seconds)
    tell(f"Opening the models; {url(listener)} answers once they are warm.")
    server.run(sockets=[listener])
    if failure := app.state.service.failure:
        raise failure
    return 0


def tell(line: str) -> None:
    """One line to standard output, which may have gone away meanwhile (`pocketqa serve | head -1`): the service goes on."""
    with suppress(OSError):
        print(line, flush=True)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.  Raises OptionsError naming the address and what to change."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server(address, family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise OptionsError(
            f"Expected an address to listen on, found that {host} port {port} cannot be used: {getattr(error, 'strerror', None) or error}. "
            "Name another with --host and --port (or POCKETQA_HOST and POCKETQA_PORT); port 0 takes a free one."
        ) from None
    # Connections inherit this.  Header and body of an answer leave in two writes: on a kept connection the second would otherwise wait some
    # 40 ms for the client's delayed acknowledgement.  (asyncio sees to it only for sockets whose protocol is named, and this one's is not.)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url(listener: socket.socket) -> str:
    """The address to type into a browser on this machine."""
    host, port = listener.getsockname()[:2]
    shown = _WILDCARDS.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}"

"""uvicorn, put together for this service."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import uvicorn

from pocketqa.errors import PocketQAError
from service.edge.layers import GatedApp
from service.edge.protocol import EdgeProtocol
from service.errors import kind_of
from service.settings import Settings
from service.state import Service

# Libraries, models, workers, logs.
_OTHER_FILES = 256


def allow_connections(count: int) -> None:
    """Raise this process's limit of open files to what that many connections need, as far as the system lets it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _OTHER_FILES if hard == resource.RLIM_INFINITY else min(count + _OTHER_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def config(app: GatedApp, settings: Settings, **options: Any) -> uvicorn.Config:
    """How the app is served.  options: passed on to uvicorn."""
    service: Service = app.state.service

    def refused(client: str, error: PocketQAError) -> None:
        kind = kind_of(type(error))
        service.metrics.rejected(kind.code)
        if app.access_log is not None:
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            app.access_log.write({"time": time, "method": None, "route": None, "status": int(kind.status), "client": client, "error": kind.code})

    protocol = partial(EdgeProtocol, settings=settings, refused=refused)
    return uvicorn.Config(
        app,
        http=cast(type[EdgeProtocol], protocol),
        ws="none",
        lifespan="on",
        log_level="warning",
        log_config=None,  # written as our own messages are
        access_log=False,  # ours is structured
        server_header=False,  # it tells callers nothing that they need
        proxy_headers=False,  # who calls is who connects; a header can say anything
        **options,
    )

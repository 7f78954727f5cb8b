"""The application: `create_app` puts settings, models, API and page together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

import pocketqa
from service import api, assets, errors
from service.edge.layers import GatedApp
from service.models import Pair
from service.protocols import huggingface, info, lists, openinference
from service.settings import Settings
from service.state import Service

_DESCRIPTION = """Extractive question answering by a teacher and its smaller student, side by side.

Offsets are Unicode code points of the passage. Scores of one request are on one scale: shares of all admissible spans. Bodies are strict JSON;
every error has the same shape and says what to do next; under the paths of Hugging Face and of the Open Inference Protocol it is theirs,
{"error": text}."""


def create_app(
    settings: Settings | None = None,
    readers: Pair | None = None,
    opener: Callable[[Settings], Pair] | None = None,
    opened: Callable[[Exception | None], None] | None = None,
) -> GatedApp:
    """An app that opens its models in the background as it starts, or serves `readers` at once.

    settings: None reads the environment.  opener: opens models in this process; None has worker processes open those of the settings.
    opened: told when the models are warm, or why they could not be opened.
    """
    service = Service(settings or Settings.read(), opener, opened)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        opening = None
        if readers is not None:
            service.take(readers)
        else:
            opening = asyncio.create_task(service.open())
        yield
        try:
            if opening is not None:
                opening.cancel()
                with suppress(asyncio.CancelledError):
                    await opening
        finally:
            await service.close()
            if app.access_log is not None:
                app.access_log.close()

    # FastAPI's own pages of documentation load their scripts from another host; /docs is ours.
    app = GatedApp(
        service, title="PocketQA", version=pocketqa.__version__, summary="Teacher and student, side by side.", description=_DESCRIPTION,
        docs_url=None, redoc_url=None, lifespan=lifespan,
    )  # fmt: skip
    errors.install(app)
    for module in (api, lists, info, huggingface, openinference):
        app.include_router(module.router)
    app.include_router(assets.page_router())
    return app

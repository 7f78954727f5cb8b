"""The app with its gates around it."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.edge.access_log import AccessLog
from service.edge.exchange import Exchange
from service.edge.gates import OPEN_PATHS, HostGate, KeyGate, OriginGate
from service.edge.keys import KeyRing
from service.settings import Settings
from service.state import Service


class _WithoutSlash:
    """Takes a path with a slash behind it for the path: `huggingface_hub` asks at an address as it was typed.

    Starlette would send the client elsewhere, and to http:// too where it came by https:// to whoever ends TLS in front of the service.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != "/":
            scope["path"] = scope["path"].removesuffix("/")
        await self._app(scope, receive, send)


class GatedApp(FastAPI):
    """FastAPI, reached through the gates of the settings.  Raises OptionsError for a file of keys that cannot be used.

    The gates stand around everything, FastAPI's own answer to an unforeseen exception included: that too is counted, logged and given our headers.
    """

    def __init__(self, service: Service, **options: Any) -> None:
        settings = service.settings
        self._settings: Settings = settings
        self._service = service
        self._keys = KeyRing(settings.api_keys_file) if settings.api_keys_file is not None else None
        self.access_log = AccessLog() if settings.access_log else None
        super().__init__(openapi_url=None, redirect_slashes=False, **options)
        self.state.service = service
        self._description: bytes | None = None
        self.add_api_route("/openapi.json", self._describe, include_in_schema=False)

    def build_middleware_stack(self) -> ASGIApp:
        """From the inside out: keys, other sites' pages (whose preflights carry no key), hosts, and what is done for every request."""
        app: ASGIApp = super().build_middleware_stack()
        if self._keys is not None:
            app = KeyGate(app, self._keys)
        if self._settings.cors_origins:
            app = OriginGate(app, self._settings.cors_origins)
        app = _WithoutSlash(HostGate(app, self._settings.trusted_hosts))  # so that the gates judge by the path that is answered
        return Exchange(app, self._service.metrics, self.access_log)

    def _describe(self) -> Response:
        # No coroutine, so that a thread makes it: the first time takes far longer than the event loop may be held.
        if self._description is None:
            self._description = json.dumps(self.openapi()).encode()
        return Response(self._description, media_type="application/json")

    def openapi(self) -> dict[str, Any]:
        """The description, with the key where one is needed."""
        fresh = self.openapi_schema is None
        document = super().openapi()
        if fresh and self._keys is not None:
            document.setdefault("components", {})["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    if not (path in OPEN_PATHS and method in ("get", "head")):
                        operation["security"] = [{"key": []}]
        return document

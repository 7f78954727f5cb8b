"""Who may ask: by the Host it asks for, by its key, by the site whose page it is; and which address the service may listen on."""

from __future__ import annotations

import functools
import ipaddress
import re
import socket
from collections.abc import Collection, Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pocketqa.errors import OptionsError
from service.assets import PAGE
from service.edge.keys import KeyRing
from service.errors import Unauthorized, UnknownHost, error_response
from service.settings import Settings

# Probes carry no keys, the page and the description hold nothing that is not public.
PROBES = frozenset({"/livez", "/readyz", "/health", "/v2/health/live", "/v2/health/ready"})
OPEN_PATHS = frozenset({*PROBES, "/openapi.json", *PAGE})

# A name may end with the dot of the root.
_HOST = re.compile(rb"(?:\[(?P<six>[0-9A-Fa-f:.]{2,45})\]|(?P<name>[A-Za-z0-9._-]{0,252}[A-Za-z0-9_-])\.?)(?::[0-9]{1,5})?")
_STAGES = ("tokenise", "queue", "forward", "decode", "total")
_READABLE_HEADERS = (
    "retry-after", "traceparent", "x-request-id", "x-compute-time",
    *(f"x-{whose}{stage}-ms" for whose in ("", "teacher-", "student-") for stage in _STAGES),
)  # fmt: skip
_TAKEN_HEADERS = ("authorization", "content-type", "traceparent", "user-agent")  # the last: Hugging Face's JavaScript client sets it


class HostGate:
    """Lets through what is addressed to this service, so that a page whose name was made to point here (DNS rebinding) reaches nothing.

    Addresses and names without a dot pass always: no name of a web page is one of them, and localhost, probes and the services of a compose
    file are.  Other names pass where they are trusted; "*.example.org" is any name below it.
    """

    def __init__(self, app: ASGIApp, trusted: Sequence[str]) -> None:
        self._app = app
        self._names = frozenset(name for name in trusted if not name.startswith("*."))
        self._endings = (".localhost", *(name[1:] for name in trusted if name.startswith("*.")))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 400."""
        if scope["type"] == "http":
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            if not hosts and scope["http_version"] == "1.0":  # which knows none: HAProxy's plain checks; no browser speaks it
                return await self._app(scope, receive, send)
            if len(hosts) != 1:
                refusal = UnknownHost(f"Expected one Host header, found {len(hosts)}.")
                return await error_response(refusal, scope)(scope, receive, send)
            if not self._knows(hosts[0]):
                return await error_response(UnknownHost("The Host header names no address of this service."), scope)(scope, receive, send)
        await self._app(scope, receive, send)

    def _knows(self, host: bytes) -> bool:
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        if found["six"]:
            return _is_address(found["six"].decode())
        name = found["name"].decode().lower()
        return "." not in name or _is_address(name) or name in self._names or name.endswith(self._endings)


@functools.lru_cache(maxsize=256)  # the same few come with every request
def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class KeyGate:
    """Lets through who presents a known key: `Authorization: Bearer KEY`."""

    def __init__(self, app: ASGIApp, ring: KeyRing, open_paths: Collection[str] = OPEN_PATHS) -> None:
        self._app = app
        self._ring = ring
        self._open = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401."""
        if scope["type"] == "http" and not (scope["path"] in self._open and scope["method"] in ("GET", "HEAD")):
            owner = self._owner(scope)
            if owner is None:
                refusal = error_response(Unauthorized("Expected a key that this service knows."), scope)
                refusal.headers["www-authenticate"] = "Bearer"
                return await refusal(scope, receive, send)
            scope["pocketqa.key"] = owner
        await self._app(scope, receive, send)

    def _owner(self, scope: Scope) -> str | None:
        credentials = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(credentials) != 1:
            return None
        scheme, _, key = credentials[0].partition(b" ")
        return self._ring.owner(key.strip()) if scheme.lower() == b"bearer" else None


class OriginGate(CORSMiddleware):
    """Lets the pages of these sites call the service from a browser; a refused preflight is a bare 403, which no page gets to read."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=_TAKEN_HEADERS, expose_headers=_READABLE_HEADERS,
        )  # fmt: skip

    def preflight_response(self, request_headers: Headers) -> Response:
        """200, or 403 without the other library's text."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        return Response(status_code=403, headers={"vary": response.headers["vary"]})


def check_exposure(settings: Settings) -> None:
    """Raises OptionsError where other machines would reach the service and nobody needs a key, unless that is wanted."""
    if settings.api_keys_file is not None or settings.allow_public:
        return
    try:
        found = socket.getaddrinfo(settings.host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return  # listening fails on it, and says why
    if not all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found):
        raise OptionsError(
            f"Expected an address that only this machine reaches, found {settings.host}: whoever reaches it could use the service. "
            "Make a key with `pocketqa serve --new-key NAME` and name its file with --api-keys-file, "
            "or say that everybody may with --allow-public (POCKETQA_ALLOW_PUBLIC=1)."
        )

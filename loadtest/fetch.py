"""Documents of a server under test."""

from __future__ import annotations

import os
import urllib.request
from http.client import HTTPResponse
from ipaddress import ip_address
from typing import cast
from urllib.parse import urlsplit

KEY = "POCKETQA_KEY"  # an environment variable and no flag, since command lines stand in run files


def key_headers() -> dict[str, str]:
    """What a service with keys wants to see; nothing where no key is given."""
    key = os.environ.get(KEY)
    return {"authorization": f"Bearer {key}"} if key else {}


def fetch(url: str, timeout: float) -> HTTPResponse:
    """GET; a server on this machine is asked without the proxy that others are reached by.  Raises OSError."""
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if _is_here(url) else []))
    return cast(HTTPResponse, opener.open(urllib.request.Request(url, headers=key_headers()), timeout=timeout))


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""GET /info: what runs, and in which processes."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata

import pytest
from starlette.testclient import TestClient

import pocketqa
from service.app import create_app
from service.models import Pair
from service.settings import Settings


def test_it_tells_versions_models_and_limits(client: TestClient) -> None:
    document = client.get("/info").json()
    assert (document["name"], document["version"], document["python"]) == ("pocketqa", pocketqa.__version__, platform.python_version())
    assert document["platform"].startswith(platform.system())
    assert document["libraries"].items() >= {name: metadata.version(name) for name in ("fastapi", "numpy", "tokenizers", "uvicorn")}.items()
    of_models = client.get("/v1/models").json()
    assert (document["models"], document["limits"]) == (of_models["models"], of_models["limits"])
    assert document["deadline_seconds"] == Settings().deadline_seconds


def test_it_tells_of_this_process_where_models_are_in_it(client: TestClient) -> None:
    (process,) = client.get("/info").json()["processes"]
    assert (process["kind"], process["pid"], process["restarts"]) == ("server", os.getpid(), 0)
    assert process["threads"] >= 2
    assert process["alive_seconds"] > 0
    # An interpreter with numpy holds more than 20 MB, and the most that it held is at least what it holds.
    assert process["peak_rss_bytes"] > 20_000_000
    if sys.platform == "linux":
        assert 20_000_000 < process["rss_bytes"] <= 1.01 * process["peak_rss_bytes"]


def test_it_waits_for_the_models(model_folder_free_settings: Settings) -> None:
    def never(settings: Settings) -> Pair:
        raise FileNotFoundError("no models here")

    with TestClient(create_app(model_folder_free_settings, opener=never)) as cold:
        response = cold.get("/info")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "not_ready")


@pytest.mark.parametrize("method", ["post", "delete", "put"])
def test_it_takes_nothing(client: TestClient, method: str) -> None:
    assert getattr(client, method)("/info").status_code == 405

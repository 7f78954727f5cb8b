"""A client on an app with the tiny pair."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.models import Pair
from service.settings import Settings
from tests.service.tiny_pair import make_pair


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The teacher answers "ada", the student "bell"."""
    return make_pair(tmp_path_factory.mktemp("tokenizer"), teacher="ada", student="bell")


@pytest.fixture(scope="session")
def model_folder_free_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Small limits, so that tests can exceed them."""
    nowhere = tmp_path_factory.mktemp("none") / "none"
    return Settings(
        student=nowhere,
        teacher=nowhere,
        max_body_bytes=20_000,
        max_question_chars=100,
        max_context_chars=5_000,
        max_contexts=3,
        max_windows=8,
        max_top_k=5,
        access_log=False,  # of the tests' requests
    )


@pytest.fixture(scope="session")
def client(pair: Pair, model_folder_free_settings: Settings) -> Iterator[TestClient]:
    """A client that sees a 500 as a client does, instead of the exception."""
    with TestClient(create_app(model_folder_free_settings, pair), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def make_client(pair: Pair, model_folder_free_settings: Settings) -> Iterator[object]:
    clients = []

    def make(**changes: object) -> TestClient:
        client = TestClient(create_app(replace(model_folder_free_settings, access_log=False, **changes), pair))  # type: ignore[arg-type]
        clients.append(client)
        return client.__enter__()

    yield make
    for client in clients:
        client.__exit__(None, None, None)

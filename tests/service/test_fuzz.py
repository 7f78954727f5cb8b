"""Requests made at random from the OpenAPI document, ten thousand of them, over real sockets: what it says is what happens, and never a 5xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from service.app import create_app
from service.models import Pair
from service.settings import Settings
from tests.service.edge.conftest import Running, running

pytestmark = pytest.mark.full

CASES = 10_000
HEALTH = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large, HealthCheck.large_base_example]

TEXTS = st.text(max_size=60) | st.text(alphabet="Bell who? 👩‍🚀שלום\u0301\u200d\n", max_size=60)
OPTIONS = {"top_k": st.integers(1, 5), "max_answer_tokens": st.integers(1, 64), "max_tokens": st.integers(32, 512), "doc_stride": st.integers(0, 300)}


@pytest.fixture(scope="module")
def served(pair: Pair, model_folder_free_settings: Settings) -> Iterator[Running]:
    with running(create_app(chosen := replace(model_folder_free_settings, access_log=False, max_body_bytes=1 << 20), pair), chosen) as server:
        yield server


@pytest.mark.timeout(3600)
def test_the_service_is_as_its_description_says(served: Running) -> None:
    load_all_checks()
    schema = schemathesis.openapi.from_dict(served.app.openapi())
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    assert len(operations) == sum(len(methods) for methods in served.app.openapi()["paths"].values())
    # Endpoints with a body share what is wanted, valid and invalid halves each; the others get some more, and most of them run out of cases.
    share = -(-CASES // (2 * sum(operation.method == "post" for operation in operations)))
    count = 0
    for operation in operations:
        for mode in GenerationMode:
            if mode is GenerationMode.NEGATIVE and not (operation.body or operation.path_parameters):
                continue
            examples = share if operation.method == "post" else share // 10
            count += run(operation, mode, examples, f"http://127.0.0.1:{served.port}")
    print(f"\n{count:,} cases over {len(operations)} operations")
    assert count >= CASES


def run(operation: Any, mode: GenerationMode, examples: int, address: str) -> int:
    """Try so many cases of one operation; the number that there were."""
    count = 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=HEALTH, database=None)
    @given(operation.as_strategy(generation_mode=mode))
    def one(case: Any) -> None:
        nonlocal count
        count += 1
        # A schema cannot say that 1.0 is no integer here, what the limits of one server are, nor which options contradict each other: valid
        # by the schema may still be a 422, which has to be as documented.
        case.call_and_validate(base_url=address, excluded_checks=[positive_data_acceptance])

    one()
    return count


@settings(max_examples=2000)
@given(
    st.sampled_from(["/v1/answer", "/v1/compare"]),
    st.fixed_dictionaries({"question": TEXTS, "context": TEXTS | st.lists(TEXTS, min_size=1, max_size=3)}, optional=OPTIONS),
)
def test_an_answer_is_a_span_of_its_passage(client: TestClient, path: str, body: dict[str, Any]) -> None:
    response = client.post(path, content=json.dumps(body).encode(), headers={"content-type": "application/json"})
    assert response.status_code in (200, 422), response.text
    if response.status_code == 200:
        contexts = [body["context"]] if isinstance(body["context"], str) else body["context"]
        document = response.json()
        for side in [document] if path == "/v1/answer" else [document["teacher"], document["student"]]:
            for answer in side["answers"]:
                assert answer["is_no_answer"] or contexts[answer["source"]][answer["start"] : answer["end"]] == answer["text"]
                assert 0 <= answer["score"] <= 1


@settings(max_examples=2000)
@given(
    st.sampled_from(["/v1/answer", "/v1/compare"]),
    st.binary(max_size=200),
    st.sampled_from(["application/json", "text/plain", "application/json; charset=utf-16", ""]),
)
def test_no_bytes_break_the_service(client: TestClient, path: str, body: bytes, kind: str) -> None:
    response = client.post(path, content=body, headers={"content-type": kind} if kind else {})
    assert response.status_code in (400, 415, 422), response.text
    assert set(response.json()) == {"error"}

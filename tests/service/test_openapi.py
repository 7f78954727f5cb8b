"""The API's description: generated from the error table, with examples that work."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from pocketqa import errors as library
from service.errors import TABLE, kind_of


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


def operations(document: dict) -> list[tuple[str, str, dict]]:
    return [(path, method, spec) for path, methods in document["paths"].items() for method, spec in methods.items()]


def test_every_row_of_the_table_is_documented_on_both_questions(document: dict) -> None:
    for path in ("/v1/answer", "/v1/compare"):
        responses = document["paths"][path]["post"]["responses"]
        assert set(responses) == {"200"} | {str(int(kind.status)) for kind in TABLE.values()}
        for kind in TABLE.values():
            content = responses[str(int(kind.status))]["content"]["application/json"]
            assert content["schema"] == {"$ref": "#/components/schemas/ErrorBody"}
            error = content["examples"][kind.code]["value"]["error"]
            assert error["code"] == kind.code
            assert error["message"]


def test_codes_are_told_apart() -> None:
    assert len({kind.code for kind in TABLE.values()}) == len(TABLE)


def test_every_error_of_the_library_has_a_row() -> None:
    tree = [value for value in vars(library).values() if isinstance(value, type) and issubclass(value, library.PocketQAError)]
    assert len(tree) > 10
    assert {kind_of(error).code for error in tree} >= {"invalid_text", "invalid_options", "engine_failed", "internal"}
    # What goes wrong inside is not told outside.
    assert all(kind_of(error).message for error in tree if kind_of(error).status >= 500)


def test_the_endpoints_are_these(document: dict) -> None:
    assert {(method, path) for path, method, _ in operations(document)} == {
        ("post", "/v1/answer"), ("post", "/v1/compare"), ("get", "/v1/models"), ("get", "/v1/samples"), ("get", "/livez"), ("get", "/readyz"),
    }  # fmt: skip


def test_everything_is_described(document: dict) -> None:
    assert all(spec["summary"] and spec["description"] for _, _, spec in operations(document))
    for name in ("AnswerRequest", "CompareRequest", "AnswerItem", "Timings"):
        schema = document["components"]["schemas"][name]
        assert schema["examples"]
        undescribed = [field for field, spec in schema["properties"].items() if "description" not in spec and field != "is_no_answer"]
        assert undescribed == []
    assert document["components"]["schemas"]["AnswerRequest"]["additionalProperties"] is False


@pytest.mark.parametrize(("path", "schema"), [("/v1/answer", "AnswerRequest"), ("/v1/compare", "CompareRequest")])
def test_the_examples_are_answered(client: TestClient, document: dict, path: str, schema: str) -> None:
    for example in document["components"]["schemas"][schema]["examples"]:
        response = client.post(path, json=example)
        assert response.status_code == 200
        documented = document["components"]["schemas"][f"{schema.removesuffix('Request')}Response"]
        assert set(response.json()) == set(documented["required"])


def test_the_stage_headers_are_documented(client: TestClient, document: dict) -> None:
    documented = set(document["paths"]["/v1/answer"]["post"]["responses"]["200"]["headers"])
    sent = client.post("/v1/answer", json={"question": "who?", "context": "Bell"}).headers
    assert documented == {name for name in sent if name.startswith("x-")}


def test_no_page_of_ours_comes_from_another_host(client: TestClient) -> None:
    assert client.get("/redoc").status_code == 404
    assert "cdn" not in client.get("/docs").text

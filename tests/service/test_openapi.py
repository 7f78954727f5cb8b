"""The API's description: generated from the error table, with examples that work."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from pocketqa import errors as library
from service.errors import QUESTION_ERRORS, TABLE, UnknownModel, is_plain, kind_of

QUESTIONS = {
    "/v1/answer": "AnswerRequest", "/v1/answers": "AnswersRequest", "/v1/compare": "CompareRequest",
    "/": "QuestionAnsweringRequest", "/predict": "QuestionAnsweringRequest", "/models/{model}": "QuestionAnsweringRequest",
    "/v2/models/{model}/infer": "InferRequest", "/v2/models/{model}/versions/{version}/infer": "InferRequest",
}  # fmt: skip


@pytest.fixture(scope="module")
def document(client: TestClient) -> Any:
    return client.get("/openapi.json").json()


def operations(document: dict) -> list[tuple[str, str, dict]]:
    return [(path, method, spec) for path, methods in document["paths"].items() for method, spec in methods.items()]


@pytest.mark.parametrize("path", QUESTIONS)
def test_every_error_that_a_question_can_meet_is_documented_in_its_shape(document: dict, path: str) -> None:
    responses = document["paths"][path]["post"]["responses"]
    kinds = [kind_of(error) for error in (*QUESTION_ERRORS, *((UnknownModel,) if "{model}" in path else ()))]
    assert set(responses) == {"200"} | {str(int(kind.status)) for kind in kinds}
    for kind in kinds:
        content = responses[str(int(kind.status))]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{'PlainError' if is_plain(path) else 'ErrorBody'}"}
        error = content["examples"][kind.code]["value"]["error"]
        assert isinstance(error, str) if is_plain(path) else (error["code"] == kind.code and error["message"])


def test_a_question_of_our_own_protocol_can_meet_all_but_unknown_models() -> None:
    assert set(TABLE) - set(QUESTION_ERRORS) == {UnknownModel}


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
        *(("post", path) for path in QUESTIONS),
        ("get", "/v1/models"), ("get", "/v1/samples"), ("get", "/livez"), ("get", "/readyz"), ("get", "/info"), ("get", "/metrics"),
        ("get", "/health"), ("get", "/models/{model}/health"),
        ("get", "/v2"), ("get", "/v2/health/live"), ("get", "/v2/health/ready"), ("get", "/v2/models"), ("get", "/v2/models/{model}"),
        ("get", "/v2/models/{model}/ready"), ("get", "/v2/models/{model}/versions/{version}"), ("get", "/v2/models/{model}/versions/{version}/ready"),
    }  # fmt: skip


def test_no_shape_of_an_error_is_documented_that_never_occurs(document: dict) -> None:
    assert not {"HTTPValidationError", "ValidationError"} & set(document["components"]["schemas"])


def test_everything_is_described(document: dict) -> None:
    assert all(spec["summary"] and spec["description"] for _, _, spec in operations(document))
    for name in ("AnswerRequest", "AnswersRequest", "CompareRequest", "AnswerItem", "Timings"):
        schema = document["components"]["schemas"][name]
        assert schema["examples"]
        undescribed = [field for field, spec in schema["properties"].items() if "description" not in spec and field != "is_no_answer"]
        assert undescribed == []
    assert document["components"]["schemas"]["AnswerRequest"]["additionalProperties"] is False


@pytest.mark.parametrize(("path", "schema"), QUESTIONS.items())
def test_the_examples_are_answered(client: TestClient, document: dict, path: str, schema: str) -> None:
    operation = document["paths"][path]["post"]
    assert operation["requestBody"]["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{schema}"}
    answered = operation["responses"]["200"]["content"]["application/json"]["schema"]
    name = answered.get("$ref", "#/components/schemas/QuestionAnsweringAnswer").removeprefix("#/components/schemas/")
    for example in document["components"]["schemas"][schema]["examples"]:
        assert set(example) <= set(document["components"]["schemas"][schema]["properties"])
        response = client.post(path.format(model="student", version="student00000"), json=example)
        assert response.status_code == 200, response.text
        assert set(response.json()) >= set(document["components"]["schemas"][name]["required"])


def test_the_stage_headers_are_documented(client: TestClient, document: dict) -> None:
    documented = set(document["paths"]["/v1/answer"]["post"]["responses"]["200"]["headers"])
    sent = client.post("/v1/answer", json={"question": "who?", "context": "Bell"}).headers
    assert documented == {name for name in sent if name.endswith("-ms")}


def test_no_page_of_ours_comes_from_another_host(client: TestClient) -> None:
    assert client.get("/redoc").status_code == 404
    assert "cdn" not in client.get("/docs").text

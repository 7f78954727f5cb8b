"""The Open Inference Protocol against its specification, on models whose answers are known beforehand."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

import pocketqa
from service.app import create_app
from service.models import Pair
from service.settings import Settings
from tests.service.protocols import oip
from tests.service.tiny_pair import WordRuntime

MILL = "The mill was built by Ada Bell in Rome."
WHO = "who built it?"
STUDENT = "/v2/models/student"
VERSION = "student00000"  # the first of "student" and zeros, which stand for a hash here
OUTPUTS = {"answer": "BYTES", "score": "FP32", "start": "INT64", "end": "INT64", "source": "INT64"}


def texts(name: str, *data: str) -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": "BYTES", "data": list(data)}


def body(questions: list[str], contexts: list[str], **more: object) -> dict[str, Any]:
    return {"inputs": [texts("question", *questions), texts("context", *contexts)]} | more


def infer(client: TestClient, request: dict[str, Any], path: str = f"{STUDENT}/infer") -> dict[str, Any]:
    oip.check("inference_request", request)
    response = client.post(path, json=request)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    oip.check("inference_response", document)
    return document


def tensors(client: TestClient, request: dict[str, Any], path: str = f"{STUDENT}/infer") -> dict[str, list[Any]]:
    return {tensor["name"]: tensor["data"] for tensor in infer(client, request, path)["outputs"]}


def refused(client: TestClient, request: object, status: int = 422, path: str = f"{STUDENT}/infer") -> str:
    response = client.post(path, json=request)
    assert response.status_code == status, response.text
    oip.check("error_response", response.json())
    return str(response.json()["error"])


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
def test_the_server_tells_its_name_and_version(client: TestClient, path: str) -> None:
    document = client.get(path).json()
    oip.check("metadata_server_response", document)
    assert document == {"name": "pocketqa", "version": pocketqa.__version__, "extensions": []}


def test_the_models_tell_their_tensors(client: TestClient) -> None:
    assert client.get("/v2/models").json() == {"models": ["teacher", "student"]}
    for model, version in (("teacher", "teacher00000"), ("student", VERSION)):
        document = client.get(f"/v2/models/{model}").json()
        oip.check("metadata_model_response", document)
        assert (document["name"], document["versions"], document["platform"]) == (model, [version], "tiny_fp32")
        assert document["inputs"] == [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in ("question", "context")]
        assert document["outputs"] == [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in OUTPUTS.items()]
        assert client.get(f"/v2/models/{model}/versions/{version}").json() == document


def test_probes(client: TestClient) -> None:
    for path in ("/v2/health/live", "/v2/health/ready"):
        oip.check("live_server_response", client.get(path).json())
    for path in (f"{STUDENT}/ready", f"{STUDENT}/versions/{VERSION}/ready"):
        document = client.get(path).json()
        oip.check("ready_model_response", document)
        assert document == {"name": "student", "ready": True}


def test_probes_before_the_models_are_warm(model_folder_free_settings: Settings) -> None:
    def never(settings: Settings) -> Pair:
        raise FileNotFoundError("no models here")

    with TestClient(create_app(model_folder_free_settings, opener=never)) as cold:
        assert cold.get("/v2/health/live").status_code == 200
        assert cold.get("/v2").status_code == cold.get("/v2/models").status_code == 200
        for path in ("/v2/health/ready", STUDENT, f"{STUDENT}/ready", f"{STUDENT}/versions/{VERSION}"):
            response = cold.get(path)
            assert response.status_code == 503
            oip.check("error_response", response.json())
        assert "opened" in refused(cold, body([WHO], [MILL]), 503)


def test_one_question_on_one_passage(client: TestClient) -> None:
    document = infer(client, body([WHO], [MILL], id="42"))
    assert (document["model_name"], document["model_version"], document["id"]) == ("student", VERSION, "42")
    assert [(tensor["name"], tensor["datatype"], tensor["shape"]) for tensor in document["outputs"]] == [(n, d, [1]) for n, d in OUTPUTS.items()]
    found = {tensor["name"]: tensor["data"][0] for tensor in document["outputs"]}
    assert 0.99 < found.pop("score") <= 1
    assert found == {"answer": "Bell", "start": 26, "end": 30, "source": 0}
    # The same as everywhere else.
    ours = client.post("/v1/answer", json={"question": WHO, "context": MILL}).json()["answers"][0]
    assert tensors(client, body([WHO], [MILL]))["score"] == [ours["score"]]


def test_the_id_comes_back_only_where_one_was_sent(client: TestClient) -> None:
    assert "id" not in infer(client, body([WHO], [MILL]))
    assert infer(client, body([WHO], [MILL], id=""))["id"] == ""


def test_the_version_may_be_named(client: TestClient) -> None:
    found = tensors(client, body([WHO], [MILL]), "/v2/models/teacher/versions/teacher00000/infer")
    assert found["answer"] == ["Ada"]


def test_each_question_on_its_own_passage(client: TestClient) -> None:
    found = tensors(client, body([WHO, "who?", WHO], [MILL, "The mill.", "😀 by Bell."]))
    assert found["answer"] == ["Bell", "", "Bell"]
    assert (found["start"], found["end"], found["source"]) == ([26, 0, 5], [30, 0, 9], [0, 1, 2])


def test_all_questions_on_one_passage(client: TestClient) -> None:
    found = tensors(client, body([WHO, "who?"], [MILL]))
    assert (found["answer"], found["source"]) == (["Bell", "Bell"], [0, 0])


def test_one_question_searches_through_all_passages(client: TestClient) -> None:
    found = tensors(client, body([WHO], ["The mill was built in Rome.", "x x x", "😀 by Bell."]))
    assert (found["answer"], found["start"], found["source"]) == (["Bell"], [5], [2])


def test_more_answers_stand_row_by_row(client: TestClient) -> None:
    found = tensors(client, body([WHO, WHO], ["Bell and Bell", "Bell"], parameters={"top_k": 3, "no_answer": False}))
    # The second passage has one word, so its row is filled up.
    assert found["answer"] == ["Bell", "Bell", "and", "Bell", "", ""]
    assert found["source"] == [0, 0, 0, 1, -1, -1]
    assert found["score"][4:] == [0, 0]
    assert found["start"][:4] == [0, 9, 5, 0]


def test_only_the_tensors_that_are_asked_for_in_their_order(client: TestClient) -> None:
    document = infer(client, body([WHO], [MILL], outputs=[{"name": "end", "parameters": {"binary_data": False}}, {"name": "answer"}]))
    assert [tensor["name"] for tensor in document["outputs"]] == ["end", "answer"]
    assert len(infer(client, body([WHO], [MILL], outputs=[]))["outputs"]) == len(OUTPUTS)


def test_parameters_are_those_of_our_own_protocol(client: TestClient) -> None:
    context = "x " * 400 + "Bell" + " x" * 400
    found = tensors(
        client, body([WHO], [context], parameters={"max_tokens": 256, "doc_stride": 64, "max_answer_tokens": 4, "binary_data_output": False})
    )
    assert found["start"] == [800]
    codecs = body([WHO], [MILL])
    codecs["inputs"][0]["parameters"] = {"content_type": "str"}  # as MLServer's clients send it
    assert tensors(client, codecs)["answer"] == ["Bell"]
    assert tensors(client, body([WHO], [MILL], model_name="student"))["answer"] == ["Bell"]  # as KServe's client sends it


def test_the_order_of_inputs_does_not_matter(client: TestClient) -> None:
    request = body([WHO], [MILL])
    request["inputs"].reverse()
    assert tensors(client, request)["answer"] == ["Bell"]


def test_the_questions_of_a_tensor_share_batches(client: TestClient, pair: Pair) -> None:
    runtime = pair.student.reader.runtime
    assert isinstance(runtime, WordRuntime)
    before = runtime.calls
    assert tensors(client, body([WHO] * 16, [MILL]))["answer"] == ["Bell"] * 16
    assert runtime.calls - before < 16


def test_what_mlservers_client_writes_is_taken(client: TestClient) -> None:
    """Its StringCodec and its codec of requests, from its source: a column of texts, and their content type twice."""
    content: dict[str, Any] = {"parameters": {"content_type": "str"}}
    questions, contexts = (texts("question", WHO, WHO) | content, texts("context", MILL) | content)
    columns = [questions | {"shape": [2, 1]}, contexts | {"shape": [1, 1]}]
    assert tensors(client, {"inputs": columns} | content)["answer"] == ["Bell"] * 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": []}, "inputs: expected the tensors question and context, found none."),
        ({"inputs": [texts("question", WHO)]}, "inputs: expected the tensors question and context, found question."),
        ({"inputs": [texts("question", WHO)] * 2}, "inputs: expected the tensors question and context, found question and question."),
        ({"inputs": [*[texts("question", WHO)] * 2, texts("context", MILL)]}, "found question and question and context."),
        ({"inputs": [texts("question", WHO), texts("passage", MILL)]}, "inputs[1].name: expected 'question' or 'context'"),
        ({"inputs": [texts("question", WHO), texts("context", MILL) | {"datatype": "FP32"}]}, "inputs[1].datatype: expected 'BYTES'"),
        ({"inputs": [texts("question", WHO), texts("context", MILL) | {"shape": [2]}]}, "expected the shape [n] of n texts, found [2] and 1 texts."),
        (
            {"inputs": [texts("question", WHO), texts("context", MILL) | {"shape": [1, 1, 1]}]},
            "context: expected the shape [n] of n texts, found [1, 1, 1]",
        ),
        ({"inputs": [texts("question", WHO), texts("context", MILL) | {"shape": [-1]}]}, "inputs[1].shape[0]: expected greater than or equal to 0"),
        ({"inputs": [texts("question", WHO), texts("context", MILL) | {"data": [1]}]}, "inputs[1].data[0]: expected a valid string"),
        ({"inputs": [texts("question", WHO), texts("context", " ")]}, "inputs[1].data[0]: text should match pattern"),
        ({"inputs": [texts("question", WHO), {"name": "context", "shape": [1], "datatype": "BYTES"}]}, "inputs[1].data is missing"),
        ({"inputs": [texts("question", WHO, WHO), texts("context", *[MILL] * 3)]}, "found 2 questions and 3 contexts."),
        ({"outputs": [{"name": "answer"}, {"name": "answer"}]}, "outputs: a tensor is asked for twice."),
        ({"outputs": [{"name": "logits"}]}, "outputs[0].name: expected 'answer', 'score', 'start', 'end' or 'source'"),
        ({"outputs": [{"name": "answer", "parameters": {"binary_data": True}}]}, "answer: binary data and shared memory are not offered"),
        ({"parameters": {"temperature": 1}}, "unknown key 'temperature' in parameters."),
        ({"parameters": {"top_k": 6}}, "At most 5 answers (top_k) are taken, found 6."),
        ({"parameters": {"binary_data_output": True}}, "parameters.binary_data_output: binary data and shared memory are not offered"),
        ({"parameters": {"binary_data_output": 0}}, "parameters.binary_data_output: expected a valid boolean"),
        ({"id": 42}, "id: expected a valid string"),
        ({"model_name": "teacher"}, "model_name: expected the model of the path, found another."),
        ({"model": "student"}, "unknown key 'model'."),
    ],
)
def test_what_does_not_fit_is_refused_in_words(client: TestClient, change: dict[str, Any], said: str) -> None:
    assert said in refused(client, body([WHO], [MILL]) | change)


def test_limits_hold_for_each_and_for_all(client: TestClient) -> None:
    assert "At most 64 questions are taken in one body, found 65." in refused(client, body(["who?"] * 65, [MILL]))
    assert "At most 3 passages in context are taken, found 4." in refused(client, body([WHO], ["x"] * 4))
    assert "found 20,005: a passage counts for each of its questions." in refused(client, body(["who?"] * 5, ["x" * 4_001]))
    said = refused(client, body([WHO, WHO], [MILL, "\u200b"]))
    assert said == "Question 2 of 2: The passage holds no word or sign that the vocabulary can represent."


def test_models_and_versions_that_are_none(client: TestClient) -> None:
    assert refused(client, body([WHO], [MILL]), 404, "/v2/models/nobody/infer").startswith("The path names a model that is not served here.")
    assert "version" in refused(client, body([WHO], [MILL]), 404, f"{STUDENT}/versions/1/infer")
    for path in ("/v2/models/nobody", f"{STUDENT}/versions/1", "/v2/models/nobody/ready", "/v2/elsewhere", "/v2/repository/index"):
        response = client.get(path)
        assert response.status_code == 404
        oip.check("error_response", response.json())


def test_bodies_that_are_no_json_are_refused_in_the_protocols_shape(client: TestClient) -> None:
    for content, kind, status in (
        (b"{", "application/json", 400),
        (b"\x00", "application/octet-stream", 415),
        (b" " * 20_001, "application/json", 413),
    ):
        response = client.post(f"{STUDENT}/infer", content=content, headers={"content-type": kind})
        assert response.status_code == status
        oip.check("error_response", response.json())


def test_json_need_not_be_declared_unless_a_page_sends_it(client: TestClient) -> None:
    content = json.dumps(body([WHO], [MILL])).encode()  # without a content type, as Triton's client sends it
    assert client.post(f"{STUDENT}/infer", content=content).json()["outputs"][0]["data"] == ["Bell"]
    assert client.post(f"{STUDENT}/infer", content=content, headers={"origin": "https://example.org"}).status_code == 415
    assert client.post("/v1/answer", content=content).status_code == 415


def test_tensors_behind_the_json_are_refused_with_what_helps(client: TestClient) -> None:
    content = json.dumps(body([WHO], [MILL])).encode()  # Triton's client sends texts behind it unless told otherwise

    def send(length: int) -> Any:
        return client.post(f"{STUDENT}/infer", content=content, headers={"inference-header-content-length": str(length)})

    response = send(len(content) - 10)
    assert response.status_code == 422
    oip.check("error_response", response.json())
    assert response.json()["error"].startswith("inputs: binary data and shared memory are not offered; send and take JSON")
    assert "set binary_data=False" in response.json()["error"]
    assert send(len(content)).status_code == 200  # nothing is behind it


def test_times_are_in_headers(client: TestClient) -> None:
    headers = client.post(f"{STUDENT}/infer", json=body([WHO, WHO], [MILL])).headers
    assert all(float(headers[f"x-{stage}-ms"]) >= 0 for stage in ("tokenise", "queue", "forward", "decode", "total"))


def test_every_path_of_the_specification_is_described_with_examples_that_conform(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for schema, name in (
        ("InferRequest", "inference_request"),
        ("InferResponse", "inference_response"),
        ("ModelMetadata", "metadata_model_response"),
    ):
        for example in document["components"]["schemas"][schema]["examples"]:
            oip.check(name, example)
    paths = document["paths"]
    model = "/v2/models/{model}"
    for path in (
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        model,
        f"{model}/ready",
        f"{model}/versions/{{version}}",
        f"{model}/versions/{{version}}/ready",
    ):
        assert "get" in paths[path]
    assert "post" in paths[f"{model}/infer"]
    assert "post" in paths[f"{model}/versions/{{version}}/infer"]

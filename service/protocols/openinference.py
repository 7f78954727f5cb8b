"""The Open Inference Protocol, version 2: two tensors of texts in, tensors of answers out.  Models are loaded at start and by nobody's request."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response

import pocketqa
from pocketqa.types import Answer
from service.api import PROBE_METHODS, STAGE_HEADERS, NamedModel, RunningService, stage_headers
from service.body import UntypedRoute
from service.errors import GATE_ERRORS, MODEL_ERRORS, QUESTION_ERRORS, InvalidRequest, UnknownModel, documented
from service.protocols.lists import ask_all, check_size, longest
from service.protocols.openinference_schemas import (
    OUTPUTS,
    InferInput,
    InferParameters,
    InferRequest,
    InferResponse,
    ModelList,
    ModelMetadata,
    ModelReady,
    OutputName,
    OutputTensor,
    ServerHealth,
    ServerMetadata,
    TensorMetadata,
)
from service.questions import Question, read_question
from service.schemas import CompareRequest, PlainError, Role
from service.state import Service

_ONLY_JSON = "binary data and shared memory are not offered; send and take JSON (Triton's client: set binary_data=False)"
# The bytes of the JSON document, where tensors stand behind it.
_JSON_LENGTH = "inference-header-content-length"


class _WholeRoute(UntypedRoute):
    """A route that refuses a body with tensors behind its JSON document."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, with this refusal in front."""
        handler = super().get_route_handler()

        async def whole(request: Request) -> Response:
            length = request.headers.get("content-length")
            if request.headers.get(_JSON_LENGTH, length) != length:
                raise InvalidRequest(f"inputs: {_ONLY_JSON}")
            return await handler(request)

        return whole


# Triton's client declares no content type.
router = APIRouter(prefix="/v2", route_class=_WholeRoute, strict_content_type=False, tags=["Open Inference Protocol"])

VERSION_DIGITS = 12

_MODEL, _VERSION = "/models/{model}", "/models/{model}/versions/{version}"
_HEALTH_RESPONSES = documented(MODEL_ERRORS, "/v2")
# Without the last, FastAPI documents a validation error of its own wherever a path has a parameter.
_MODEL_RESPONSES = documented((*MODEL_ERRORS, UnknownModel), "/v2") | {"4XX": {"model": PlainError, "description": "Any other refusal"}}
_PLAIN_RESPONSES = documented(GATE_ERRORS, "/v2")
_INFER_RESPONSES = documented((*QUESTION_ERRORS, UnknownModel), "/v2") | {200: {"headers": STAGE_HEADERS}}
# What fills up the row of a question with fewer answers than were asked for.
_NOTHING = Answer("", 0, 0, 0.0, source=-1)


def _version(service: Service, role: Role) -> str:
    return service.pair[role].info.weights_sha256[:VERSION_DIGITS]


async def _checked(
    model: NamedModel, version: Annotated[str, Path(description="As the model's metadata tells it.")], service: RunningService
) -> Role:
    if version != _version(service, model):
        raise UnknownModel("The path names a version of the model that is not served here.")
    return model


VersionedModel = Annotated[Role, Depends(_checked)]


@router.get("", summary="Name and version of the server", responses=_PLAIN_RESPONSES)
async def server_metadata() -> ServerMetadata:
    """Server metadata."""
    return ServerMetadata(name="pocketqa", version=pocketqa.__version__, extensions=[])


@router.get("/health/live", summary="Is the process answering?", responses=_PLAIN_RESPONSES, response_model_exclude_none=True)
@router.api_route("/health/live", methods=PROBE_METHODS, include_in_schema=False, response_model_exclude_none=True)
async def live() -> ServerHealth:
    """200 as long as the event loop turns."""
    return ServerHealth()


@router.get("/health/ready", summary="Are the models warm?", responses=_HEALTH_RESPONSES)
@router.api_route("/health/ready", methods=PROBE_METHODS, include_in_schema=False)
async def ready(service: RunningService) -> ServerHealth:
    """200 once the models are warm, 503 before."""
    service.check_ready()
    return ServerHealth(ready=True)


@router.get("/models", summary="Names of the models", responses=_PLAIN_RESPONSES)
async def models() -> ModelList:
    """What may stand in the paths below."""
    return ModelList(models=["teacher", "student"])


@router.get(_MODEL, summary="A model's tensors", responses=_MODEL_RESPONSES)
async def model_metadata(model: NamedModel, service: RunningService) -> ModelMetadata:
    """Inputs, outputs and the version, which is that of the weights."""
    info = service.pair[model].info
    texts = [TensorMetadata(name=name, datatype="BYTES", shape=[-1]) for name in ("question", "context")]
    outputs = [TensorMetadata(name=name, datatype=datatype, shape=[-1]) for name, datatype in OUTPUTS.items()]
    return ModelMetadata(name=model, versions=[_version(service, model)], platform=f"{info.engine}_{info.precision}", inputs=texts, outputs=outputs)


@router.get(_VERSION, summary="The tensors of a version of a model", responses=_MODEL_RESPONSES)
async def version_metadata(model: VersionedModel, service: RunningService) -> ModelMetadata:
    """As without a version; 404 for another than the one that is served."""
    return await model_metadata(model, service)


@router.get(f"{_MODEL}/ready", summary="Is a model warm?", responses=_MODEL_RESPONSES)
async def model_ready(model: NamedModel, service: RunningService) -> ModelReady:
    """200 once the model is warm, 503 before."""
    service.check_ready()
    return ModelReady(name=model)


@router.get(f"{_VERSION}/ready", summary="Is a version of a model warm?", responses=_MODEL_RESPONSES)
async def version_ready(model: VersionedModel, service: RunningService) -> ModelReady:
    """As without a version; 404 for another than the one that is served."""
    return await model_ready(model, service)


@router.post(f"{_MODEL}/infer", summary="Answer the questions of a tensor", responses=_INFER_RESPONSES, response_model_exclude_none=True)
async def infer(model: NamedModel, body: InferRequest, response: Response, service: RunningService) -> InferResponse:
    """Answers as tensors of one element a question (or top_k). All questions are answered, or the first error is that of the whole."""
    options = body.parameters or InferParameters()
    if body.model_name not in (None, model):
        raise InvalidRequest("model_name: expected the model of the path, found another")
    _check_extensions(body)
    pairs = _pairs(body.inputs)
    check_size(len(pairs), sum(len(context) for _, contexts, _ in pairs for context in contexts), service.settings)
    answered = await ask_all(service, model, [_question(question, contexts, options, service) for question, contexts, _ in pairs])
    response.headers.update(stage_headers(longest(answered)))
    rows = [_row(each.result.answers, first, options.top_k) for each, (_, _, first) in zip(answered, pairs, strict=True)]
    answers = [answer for row in rows for answer in row]
    names = [output.name for output in body.outputs or ()] or list(OUTPUTS)
    return InferResponse(model_name=model, model_version=_version(service, model), id=body.id, outputs=[_tensor(name, answers) for name in names])


@router.post(
    f"{_VERSION}/infer", summary="Answer the questions of a tensor by a version of a model", responses=_INFER_RESPONSES,
    response_model_exclude_none=True,
)  # fmt: skip
async def version_infer(model: VersionedModel, body: InferRequest, response: Response, service: RunningService) -> InferResponse:
    """As without a version; 404 for another than the one that is served."""
    return await infer(model, body, response, service)


def _check_extensions(body: InferRequest) -> None:
    """Raises InvalidRequest for tensors that would stand outside of the JSON document, and for an output that is asked for twice."""
    if body.parameters and body.parameters.binary_data_output:
        raise InvalidRequest(f"parameters.binary_data_output: {_ONLY_JSON}")
    for tensor in (*body.inputs, *(body.outputs or ())):
        if any(value is not False for key, value in (tensor.parameters or {}).items() if key.startswith(("binary_data", "shared_memory"))):
            raise InvalidRequest(f"{tensor.name}: {_ONLY_JSON}")
    names = [output.name for output in body.outputs or ()]
    if len(set(names)) != len(names):
        raise InvalidRequest("outputs: a tensor is asked for twice")


def _pairs(inputs: Sequence[InferInput]) -> list[tuple[str, list[str], int]]:
    """Each question, its passages, and the place of the first of them in the tensor.  Raises InvalidRequest for tensors that do not match."""
    for tensor in inputs:
        if tensor.shape not in ([len(tensor.data)], [len(tensor.data), 1]):
            raise InvalidRequest(f"{tensor.name}: expected the shape [n] of n texts, found {tensor.shape} and {len(tensor.data)} texts")
    tensors = {tensor.name: tensor.data for tensor in inputs}
    if len(tensors) != 2 or len(inputs) != 2:
        found = " and ".join(tensor.name for tensor in inputs) or "none"
        raise InvalidRequest(f"inputs: expected the tensors question and context, found {found}")
    questions, contexts = tensors["question"], tensors["context"]
    if len(questions) == 1:
        return [(questions[0], contexts, 0)]
    if len(contexts) == 1:
        return [(question, contexts, 0) for question in questions]
    if len(contexts) != len(questions):
        raise InvalidRequest(f"inputs: expected one context or one for each question, found {len(questions)} questions and {len(contexts)} contexts")
    return [(question, [context], place) for place, (question, context) in enumerate(zip(questions, contexts, strict=True))]


def _question(question: str, contexts: list[str], options: InferParameters, service: Service) -> Question:
    body = CompareRequest(
        question=question,
        context=contexts,
        top_k=options.top_k,
        max_answer_tokens=options.max_answer_tokens,
        no_answer=options.no_answer,
        max_tokens=options.max_tokens,
        doc_stride=options.doc_stride,
    )
    return read_question(body, service.settings)


def _row(answers: Sequence[Answer], first: int, wanted: int) -> list[tuple[Answer, int]]:
    """As many answers as are wanted, each with its context's place in the tensor."""
    return [(answer, first + answer.source) for answer in answers] + [(_NOTHING, _NOTHING.source)] * (wanted - len(answers))


def _tensor(name: OutputName, answers: Sequence[tuple[Answer, int]]) -> OutputTensor:
    data: list[str | int | float]
    match name:
        case "answer":
            data = [answer.text for answer, _ in answers]
        case "score":
            data = [answer.score for answer, _ in answers]
        case "start":
            data = [answer.start for answer, _ in answers]
        case "end":
            data = [answer.end for answer, _ in answers]
        case "source":
            data = [source for _, source in answers]
    return OutputTensor(name=name, datatype=OUTPUTS[name], shape=[len(data)], data=data)

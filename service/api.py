"""The endpoints under /v1 and the probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import PlainTextResponse

import pocketqa
from pocketqa.types import Result
from service.agreement import agreement
from service.body import StrictRoute
from service.errors import MODEL_ERRORS, QUESTION_ERRORS, UnknownModel, documented
from service.inference import Answered
from service.models import Served
from service.questions import read_question
from service.samples import load_samples
from service.schemas import (
    AnswerItem,
    AnswerRequest,
    AnswerResponse,
    CompareRequest,
    CompareResponse,
    Health,
    Limits,
    ModelAnswers,
    ModelsResponse,
    Role,
    SamplesResponse,
    Timings,
)
from service.settings import Settings
from service.state import Service

router = APIRouter(route_class=StrictRoute)

# Most JSON of a response is its numbers: microseconds are as fine as a clock on a busy machine can tell.
_MILLISECOND_DIGITS = 3

# Of the route that answers a probe; the one above it stands in the description, which has GET alone.
PROBE_METHODS = ["GET", "HEAD"]

# What the responses with one answer, or with several, carry.
STAGE_HEADERS = {
    f"x-{stage}-ms": {"description": f"Milliseconds: {field.description}", "schema": {"type": "number"}}
    for stage, field in Timings.model_fields.items()
}


# Dependencies are coroutines: FastAPI would run plain functions in a thread, two switches each.
async def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


_ROLES: Mapping[str, Role] = {"teacher": "teacher", "student": "student"}


async def _role(model: Annotated[str, Path(description="Which model.", json_schema_extra={"enum": ["teacher", "student"]})]) -> Role:
    role = _ROLES.get(model)
    if role is None:
        raise UnknownModel("The path names a model that is not served here.")
    return role


RunningService = Annotated[Service, Depends(_service)]
NamedModel = Annotated[Role, Depends(_role)]


@router.post(
    "/v1/answer",
    tags=["questions"],
    summary="Answer a question from a passage",
    responses=documented(QUESTION_ERRORS) | {200: {"headers": STAGE_HEADERS}},
)
async def answer(body: AnswerRequest, response: Response, service: RunningService) -> AnswerResponse:
    """The best spans of one model, with the time of each stage in the body and in headers."""
    answered = await service.inference.answer(body.model, read_question(body, service.settings))
    made = answer_response(body.model, answered)
    response.headers.update(stage_headers(made.timings))
    return made


@router.post("/v1/compare", tags=["questions"], summary="Put a question to teacher and student", responses=documented(QUESTION_ERRORS))
async def compare(body: CompareRequest, response: Response, service: RunningService) -> CompareResponse:
    """Both models' answers on the same windows, in random order, with their agreement and how many times faster the student was."""
    compared = await service.inference.compare(read_question(body, service.settings))
    sides = {}
    for served, answered in ((service.pair.teacher, compared.teacher), (service.pair.student, compared.student)):
        side = sides[served.role] = _side(served, answered)
        response.headers.update(stage_headers(side.timings, f"{served.role}-"))
    teacher, student = compared.teacher.result, compared.student.result
    agreed = agreement(teacher.answers[:1], student.answers[:1])
    service.metrics.compared(agreed.same_span, agreed.f1)
    return CompareResponse(
        teacher=sides["teacher"],
        student=sides["student"],
        agreement=agreed,
        speed_ratio=teacher.timings.forward / student.timings.forward if student.timings.forward > 0 else None,
        first=compared.first,
        windows=student.windows,
        tokens=student.tokens,
    )


@router.get("/v1/models", tags=["service"], summary="Which models, on which engine, within which limits", responses=documented(MODEL_ERRORS))
async def models(service: RunningService) -> ModelsResponse:
    """Names, sizes and hashes of the weights, what computes them, and the most that one request may ask for."""
    models, settings = [service.pair.teacher.info, service.pair.student.info], service.settings
    return ModelsResponse(models=models, limits=limits(settings), shadow=settings.shadow, version=pocketqa.__version__)


@router.get("/v1/samples", tags=["service"], summary="Sample passages and questions")
async def samples() -> SamplesResponse:
    """Passages and questions of our own writing."""
    return load_samples()


@router.get("/livez", tags=["service"], summary="Is the process answering?")
@router.api_route("/livez", methods=PROBE_METHODS, include_in_schema=False)
async def livez() -> Health:
    """200 as long as the event loop turns."""
    return Health(status="alive")


@router.get(
    "/metrics",
    tags=["service"],
    summary="Counters and histograms for Prometheus",
    response_class=PlainTextResponse,
    responses={200: {"description": "Prometheus' text format", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(service: RunningService) -> Response:
    """What was answered, rejected, batched and padded, by model and stage.  Written in a thread, so that a scrape holds nobody up."""
    body, content_type = service.metrics.exposition()
    return Response(body, headers={"content-type": content_type})


@router.get("/readyz", tags=["service"], summary="Are the models warm?", responses=documented(MODEL_ERRORS))
@router.api_route("/readyz", methods=PROBE_METHODS, include_in_schema=False)
async def readyz(service: RunningService) -> Health:
    """200 once both models were verified and replayed, 503 before."""
    service.check_ready()
    return Health(status="ready")


def stage_headers(timings: Timings, prefix: str = "") -> Mapping[str, str]:
    """x-tokenise-ms and its siblings, so that a load test need not parse the body."""
    return {f"x-{prefix}{stage}-ms": str(value) for stage, value in timings.model_dump().items()}


def answer_response(model: Role, answered: Answered) -> AnswerResponse:
    """One model's answers as they leave."""
    result = answered.result
    return AnswerResponse(model=model, answers=_items(result), windows=result.windows, tokens=result.tokens, timings=milliseconds(answered))


def _side(served: Served, answered: Answered) -> ModelAnswers:
    info = served.reader.info
    return ModelAnswers(
        name=served.reader.name, engine=info.engine, precision=info.precision, answers=_items(answered.result), timings=milliseconds(answered)
    )


def _items(result: Result) -> list[AnswerItem]:
    return [AnswerItem(text=a.text, start=a.start, end=a.end, score=a.score, source=a.source, is_no_answer=a.is_no_answer) for a in result.answers]


def milliseconds(answered: Answered) -> Timings:
    """The times of one answer as they leave."""
    stages = answered.result.timings
    seconds = {"tokenise": stages.tokenise, "queue": stages.queue, "forward": stages.forward, "decode": stages.decode, "total": answered.total}
    return Timings(**{stage: round(1000 * value, _MILLISECOND_DIGITS) for stage, value in seconds.items()})


def limits(settings: Settings) -> Limits:
    """The most that one request may ask for."""
    return Limits(
        body_bytes=settings.max_body_bytes,
        question_chars=settings.max_question_chars,
        context_chars=settings.max_context_chars,
        contexts=settings.max_contexts,
        windows=settings.max_windows,
        top_k=settings.max_top_k,
        requests=settings.max_requests,
    )

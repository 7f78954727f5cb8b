"""Several questions in one body: the limits that hold for all of them together, and POST /v1/answers, whose items fail one by one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from http import HTTPStatus

from fastapi import APIRouter, Response

from pocketqa.errors import InputError, PocketQAError
from service.api import STAGE_HEADERS, RunningService, answer_response, milliseconds, stage_headers
from service.body import StrictRoute
from service.errors import QUESTION_ERRORS, LimitExceeded, Waitable, documented, error_headers, item_document, kind_of
from service.inference import Answered
from service.questions import Question, read_question
from service.schemas import AnswerResponse, AnswersRequest, AnswersResponse, ErrorBody, Role, Timings
from service.settings import Settings
from service.state import Service

router = APIRouter(route_class=StrictRoute)

log = logging.getLogger("pocketqa.service")

Outcome = Answered | PocketQAError


@router.post(
    "/v1/answers",
    tags=["questions"],
    summary="Answer several questions at once",
    responses=documented(QUESTION_ERRORS) | {200: {"headers": STAGE_HEADERS}},
    response_model_exclude_none=True,  # an error's hint is absent where there is none
)
async def answers(body: AnswersRequest, response: Response, service: RunningService) -> AnswersResponse:
    """Each item is answered, or refused, as /v1/answer would alone; one that fails hurts no other. Items of like length share batches.

    The status is 200 once the list itself can be read, unless every item was refused for want of capacity. Stage headers hold the longest time
    of any item; Retry-After is there where an item was refused for want of capacity.
    """
    inference = service.inference
    check_size(len(body.requests), 0, service.settings)
    questions: dict[int, Question] = {}
    outcomes: dict[int, Outcome] = {}
    for place, item in enumerate(body.requests):
        try:
            questions[place] = read_question(item, service.settings)
        except InputError as error:
            outcomes[place] = error

    clock = inference.clock()

    async def ask(role: Role) -> None:
        places = [place for place in questions if body.requests[place].model == role]
        if places:
            found = await inference.answer_many(role, [questions[place] for place in places], clock)
            outcomes.update(zip(places, found, strict=True))

    await asyncio.gather(ask("teacher"), ask("student"))
    waits = [outcome for outcome in outcomes.values() if isinstance(outcome, Waitable)]
    if len(waits) == len(outcomes):
        raise max(waits, key=lambda error: error.retry_after)
    results = [_result(service, item.model, outcomes[place]) for place, item in enumerate(body.requests)]
    response.headers.update(_headers(outcomes.values()))
    return AnswersResponse(results=results)


def check_size(questions: int, characters: int, settings: Settings) -> None:
    """Raises LimitExceeded for more questions than one body may ask, and for more work than any body could ask for that repeats its passages.

    characters: of the passages, each counted for every question that is put to it.
    """
    if questions > settings.max_requests:
        raise LimitExceeded(f"At most {settings.max_requests:,} questions are taken in one body, found {questions:,}.")
    if characters > settings.max_body_bytes:
        raise LimitExceeded(
            f"At most {settings.max_body_bytes:,} characters are read for one body, found {characters:,}: a passage counts for each of its questions."
        )


async def ask_all(service: Service, role: Role, questions: Sequence[Question]) -> list[Answered]:
    """Every answer, for protocols that know no error of a single item: the first one that there is becomes that of the whole."""
    answered = []
    for place, outcome in enumerate(await service.inference.answer_many(role, questions)):
        if isinstance(outcome, Answered):
            answered.append(outcome)
        elif isinstance(outcome, InputError) and len(questions) > 1:
            raise type(outcome)(f"Question {place + 1} of {len(questions)}: {outcome}") from None
        else:
            raise outcome
    return answered


def longest(answered: Sequence[Answered]) -> Timings:
    """The longest time of each stage: items that share a batch share its time, so that a sum would count it several times."""
    items = [milliseconds(each).model_dump() for each in answered]
    return Timings(**{stage: max(item[stage] for item in items) for stage in items[0]})


def _result(service: Service, role: Role, outcome: Outcome) -> AnswerResponse | ErrorBody:
    if isinstance(outcome, Answered):
        return answer_response(role, outcome)
    kind = kind_of(type(outcome))
    service.metrics.rejected(kind.code)
    if kind.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("An item of /v1/answers failed", exc_info=outcome)
    return ErrorBody.model_validate(item_document(outcome))


def _headers(outcomes: Collection[Outcome]) -> dict[str, str]:
    answered = [outcome for outcome in outcomes if isinstance(outcome, Answered)]
    headers = dict(stage_headers(longest(answered))) if answered else {}
    waits = [int(wait) for error in outcomes if isinstance(error, PocketQAError) and (wait := error_headers(error).get("retry-after"))]
    return headers | ({"retry-after": str(max(waits))} if waits else {})

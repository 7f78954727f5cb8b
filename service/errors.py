"""How errors leave the service: one table from exception to status, one shape of body, one place that writes both.

The API's documentation is generated from the same table.  A body never repeats what the caller sent, nor anything from inside the process.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from pocketqa.errors import EngineError, InputError, OptionsError, PocketQAError, TextError
from service.schemas import ErrorBody

log = logging.getLogger("pocketqa.service")


class MalformedBody(InputError):
    """The body is not one JSON document in UTF-8."""


class BodyTooLarge(InputError):
    """The body has more bytes than the service takes."""


class UnsupportedMediaType(InputError):
    """The body is declared as something other than plain JSON."""


class InvalidRequest(InputError):
    """The JSON document does not have the documented fields and types."""


class LimitExceeded(InputError):
    """A question, a context or a wish exceeds a limit of this service."""


class NotReady(PocketQAError):
    """The models are still being opened and warmed, or could not be."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How one kind of error looks from outside; a fixed `message` replaces the exception's own where that could tell of the inside."""

    status: HTTPStatus
    code: str
    hint: str | None = None
    message: str | None = None


_INTERNAL = "The service failed to work out this request; the fault is not yours. Its log says more."

TABLE: Mapping[type[PocketQAError], ErrorKind] = {
    MalformedBody: ErrorKind(
        HTTPStatus.BAD_REQUEST, "malformed_body", 'Send one JSON object in UTF-8, such as {"question": "...", "context": "..."}.'
    ),
    BodyTooLarge: ErrorKind(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", "Send less text at once. GET /v1/models tells the limits."),
    UnsupportedMediaType: ErrorKind(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", "Send the header: content-type: application/json"),
    InvalidRequest: ErrorKind(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_request", "The fields and their types are described at /docs."),
    LimitExceeded: ErrorKind(HTTPStatus.UNPROCESSABLE_ENTITY, "limit_exceeded", "GET /v1/models tells the limits."),
    TextError: ErrorKind(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_text"),
    OptionsError: ErrorKind(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_options"),
    NotReady: ErrorKind(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", "Try again in a moment; GET /readyz answers 200 once the models are warm."),
    EngineError: ErrorKind(HTTPStatus.INTERNAL_SERVER_ERROR, "engine_failed", message=_INTERNAL),
    PocketQAError: ErrorKind(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", message=_INTERNAL),
}

# What a POST under /v1 may answer besides 200, and what any other endpoint may that needs the models.
QUESTION_ERRORS = tuple(TABLE)
MODEL_ERRORS = (NotReady,)

_RETRY_SECONDS = "1"
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,40}")


def kind_of(error: type[PocketQAError]) -> ErrorKind:
    """The row of the nearest ancestor in the table."""
    return next(TABLE[ancestor] for ancestor in error.__mro__ if ancestor in TABLE)


def documented(errors: tuple[type[PocketQAError], ...]) -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for these errors, one per status with an example per code."""
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        kind = kind_of(error)
        meaning = (error.__doc__ or "").strip()
        entry = responses.setdefault(
            int(kind.status), {"model": ErrorBody, "description": kind.status.phrase, "content": {"application/json": {"examples": {}}}}
        )
        value = error_document(kind.code, kind.message or meaning, kind.hint)
        entry["content"]["application/json"]["examples"][kind.code] = {"summary": meaning, "value": value}
    return responses


def error_document(code: str, message: str, hint: str | None = None) -> dict[str, dict[str, str]]:
    """The one shape of an error body."""
    return {"error": {"code": code, "message": message} | ({"hint": hint} if hint else {})}


def install(app: FastAPI) -> None:
    """Make the app answer every error in the one shape."""
    app.add_exception_handler(PocketQAError, _deliberate)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)


async def _deliberate(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PocketQAError)
    kind = kind_of(type(error))
    if kind.status >= HTTPStatus.INTERNAL_SERVER_ERROR and kind.message:
        log.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    headers = {"retry-after": _RETRY_SECONDS} if kind.status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    if isinstance(error, BodyTooLarge):
        headers["connection"] = "close"  # the rest of the body stays unread
    return JSONResponse(error_document(kind.code, kind.message or str(error), kind.hint), int(kind.status), headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return await _deliberate(request, InvalidRequest(describe_validation(error)))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    message = {404: "There is nothing at this path.", 405: "This path does not take this method."}.get(error.status_code, phrase + ".")
    hint = "The endpoints are listed at /docs." if error.status_code in (404, 405) else None
    return JSONResponse(error_document(phrase.lower().replace(" ", "_"), message, hint), error.status_code, error.headers)


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises the error again once this is sent, so the server logs it with its traceback.
    kind = TABLE[PocketQAError]
    return JSONResponse(error_document(kind.code, kind.message or "", kind.hint), int(kind.status))


def describe_validation(error: RequestValidationError) -> str:
    """Every problem of a body in one sentence each, without what was sent."""
    problems: dict[str, str] = {}
    for item in error.errors():
        place = [part for part in item["loc"][1:] if not (isinstance(part, str) and "[" in part)]
        name = str(place[0]) if place else "body"
        if item["type"] == "extra_forbidden":
            # A key is the caller's text: it is named only where it looks like a name.
            known = f" {name!r}" if _PLAIN_KEY.fullmatch(name) else ""
            problems[name] = f"unknown key{known}"
        elif item["type"] == "missing":
            problems[name] = f"{name} is missing"
        elif name == "context":  # either of two types, so that pydantic tells of both and of each item
            problems[name] = "context: expected a string or a list of one or more strings, each valid Unicode and not only white space"
        elif item["type"] == "string_unicode":
            problems[name] = f"{name}: expected valid Unicode, found a lone surrogate (half of a UTF-16 pair)"
        else:
            text = str(item["msg"]).removeprefix("Value error, ").replace("Input should be", "expected").replace("String should", "text should")
            problems[name] = f"{name}: {text[:200]}"
    return "; ".join(list(problems.values())[:20])

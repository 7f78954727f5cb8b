"""How errors leave the service: one table from exception to status, one shape of body, one place that writes both.

The API's documentation is generated from the same table.  A body never repeats what the caller sent, nor anything from inside the process.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from pocketqa.errors import EngineError, InputError, OptionsError, PocketQAError, TextError
from service.schemas import ErrorBody, PlainError
from service.validation import describe_validation

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


class MalformedHttp(InputError):
    """What arrived is not a request in HTTP/1.1, or a contradictory one."""


class HeadersTooLarge(InputError):
    """The headers of the request have more bytes than the service takes."""


class RequestTimeout(InputError):
    """The request did not arrive whole in time."""


class UnknownHost(InputError):
    """The request is addressed to a host that this service does not know itself as."""


class Unauthorized(InputError):
    """The request carries no key, or one that is not known here."""


class TooManyConnections(PocketQAError):
    """The service has as many connections open as it takes."""


class UnknownModel(InputError):
    """The path names a model, or a version of it, that is not served here."""


class Waitable(PocketQAError):
    """An error that time mends: the same request may succeed after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(Waitable):
    """More work is waiting than the service can do in time."""


class DeadlineExceeded(Waitable):
    """The request was not answered within the time that the service allows itself."""


class WorkerLost(Waitable):
    """The process that was computing the answer ended; another one takes its place."""


class Draining(Waitable):
    """The service is about to stop; what it has accepted is still answered."""


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
    MalformedHttp: ErrorKind(HTTPStatus.BAD_REQUEST, "malformed_http", "Send one request in HTTP/1.1, with a body of one declared length."),
    HeadersTooLarge: ErrorKind(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "headers_too_large", "Send shorter or fewer headers."),
    RequestTimeout: ErrorKind(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", "Send headers and body without a pause."),
    UnknownHost: ErrorKind(HTTPStatus.BAD_REQUEST, "unknown_host", "Who runs the service adds a name with --trusted-hosts (POCKETQA_TRUSTED_HOSTS)."),
    Unauthorized: ErrorKind(HTTPStatus.UNAUTHORIZED, "unauthorized", "Send the header: Authorization: Bearer KEY"),
    TooManyConnections: ErrorKind(HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections", "Try again in a moment, on a connection that is kept."),
    UnknownModel: ErrorKind(HTTPStatus.NOT_FOUND, "unknown_model", "GET /v1/models lists the models."),
    TextError: ErrorKind(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_text"),
    OptionsError: ErrorKind(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid_options"),
    Overloaded: ErrorKind(HTTPStatus.TOO_MANY_REQUESTS, "overloaded", "Send the request again after the seconds that the header Retry-After tells."),
    DeadlineExceeded: ErrorKind(HTTPStatus.SERVICE_UNAVAILABLE, "deadline_exceeded", "Try again in a moment, or send less text at once."),
    WorkerLost: ErrorKind(HTTPStatus.SERVICE_UNAVAILABLE, "worker_lost", "Try again in a moment; a new process is being started."),
    Draining: ErrorKind(HTTPStatus.SERVICE_UNAVAILABLE, "draining", "Send the request to another instance of the service."),
    NotReady: ErrorKind(HTTPStatus.SERVICE_UNAVAILABLE, "not_ready", "Try again in a moment; GET /readyz answers 200 once the models are warm."),
    EngineError: ErrorKind(HTTPStatus.INTERNAL_SERVER_ERROR, "engine_failed", message=_INTERNAL),
    PocketQAError: ErrorKind(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", message=_INTERNAL),
}

# What a POST under /v1 may answer besides 200, and what any other endpoint may that needs the models.
QUESTION_ERRORS = tuple(error for error in TABLE if error is not UnknownModel)
GATE_ERRORS = (UnknownHost, Unauthorized)
MODEL_ERRORS = (NotReady, *GATE_ERRORS)

_RETRY_SECONDS = "1"
_PLAIN_PATHS = ("/", "/predict", "/health", "/v2")
_PLAIN_FOLDERS = ("/models/", "/v2/")


def kind_of(error: type[PocketQAError]) -> ErrorKind:
    """The row of the nearest ancestor in the table."""
    return next(TABLE[ancestor] for ancestor in error.__mro__ if ancestor in TABLE)


def documented(errors: tuple[type[PocketQAError], ...], path: str = "") -> dict[int | str, dict[str, Any]]:
    """OpenAPI responses for these errors, one per status with an example per code, in the shape that belongs to the path."""
    model = PlainError if is_plain(path) else ErrorBody
    responses: dict[int | str, dict[str, Any]] = {}
    for error in errors:
        kind = kind_of(error)
        meaning = (error.__doc__ or "").strip()
        entry = responses.setdefault(
            int(kind.status), {"model": model, "description": kind.status.phrase, "content": {"application/json": {"examples": {}}}}
        )
        value = error_document(kind.code, kind.message or meaning, kind.hint, path)
        entry["content"]["application/json"]["examples"][kind.code] = {"summary": meaning, "value": value}
    return responses


def is_plain(path: str) -> bool:
    """Whether the path belongs to a protocol whose errors are one text: Hugging Face's or the Open Inference Protocol."""
    return path in _PLAIN_PATHS or path.startswith(_PLAIN_FOLDERS)


def error_document(code: str, message: str, hint: str | None = None, path: str = "") -> dict[str, Any]:
    """The one shape of an error body; where the path belongs to another protocol, that one's."""
    if is_plain(path):
        sentence = message if message.endswith(".") else f"{message}."
        return {"error": f"{sentence} {hint}" if hint else sentence}
    return {"error": {"code": code, "message": message} | ({"hint": hint} if hint else {})}


def item_document(error: PocketQAError) -> dict[str, Any]:
    """The body that an error would have had on its own, for an item of a list."""
    kind = kind_of(type(error))
    return error_document(kind.code, kind.message or str(error), kind.hint)


def install(app: FastAPI) -> None:
    """Make the app answer every error in the one shape."""
    app.add_exception_handler(PocketQAError, _deliberate)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)


def error_response(error: PocketQAError, scope: Scope | None = None) -> JSONResponse:
    """The answer to a deliberate error; its code is noted in the scope, where counting and log find it."""
    kind = kind_of(type(error))
    _note(scope, kind.code)
    document = error_document(kind.code, kind.message or str(error), kind.hint, scope["path"] if scope else "")
    return JSONResponse(document, int(kind.status), error_headers(error))


def error_headers(error: PocketQAError) -> dict[str, str]:
    """When to come back (an error's own `retry_after` in seconds, or in a moment), and whether the connection ends."""
    headers = {}
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        headers["retry-after"] = str(math.ceil(retry_after))
    elif kind_of(type(error)).status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["retry-after"] = _RETRY_SECONDS
    if isinstance(error, BodyTooLarge):
        headers["connection"] = "close"  # the rest of the body stays unread
    return headers


def _note(scope: Scope | None, code: str) -> None:
    if scope is not None:
        scope["pocketqa.error"] = code


async def _deliberate(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, PocketQAError)
    kind = kind_of(type(error))
    if kind.status >= HTTPStatus.INTERNAL_SERVER_ERROR and kind.message:
        log.error("%s %s failed", request.method, request.scope["path"], exc_info=error)
    return error_response(error, request.scope)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return await _deliberate(request, InvalidRequest(describe_validation(error)))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    phrase = HTTPStatus(error.status_code).phrase
    message = {404: "There is nothing at this path.", 405: "This path does not take this method."}.get(error.status_code, phrase + ".")
    hint = "The endpoints are listed at /docs." if error.status_code in (404, 405) else None
    code = phrase.lower().replace(" ", "_")
    _note(request.scope, code)
    headers = dict(error.headers or {})
    if "Allow" in headers and request.scope["path"] == "/":
        headers["Allow"] = "GET, HEAD, POST"  # the page and Hugging Face's POST stand in two routers, and each tells of its own methods only
    return JSONResponse(error_document(code, message, hint, request.scope["path"]), error.status_code, headers)


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    # Starlette raises the error again once this is sent, so the server logs it with its traceback.
    kind = TABLE[PocketQAError]
    _note(request.scope, kind.code)
    return JSONResponse(error_document(kind.code, kind.message or "", kind.hint, request.scope["path"]), int(kind.status))

"""Errors as HTTP answers, in OpenAI's shape or, on Perspective's paths, in Google's.

status  type                   when
400     invalid_request_error  the request can't be served as it is; `param` names the field
401     authentication_error   no key, or a wrong one
404     not_found_error        no such path, model or scorer
405     invalid_request_error  the path exists, but not with this method
408     timeout_error          the request took longer than allowed
413     invalid_request_error  too large, or too many texts
415     invalid_request_error  the body is compressed
429     rate_limit_error       a queue is full; with Retry-After
500     server_error           anything else; the answer holds no traceback and no file path
502     server_error           a model's upstream server gave an unusable answer
503     unavailable_error      not ready, a lost replica, or an unreachable upstream server; with Retry-After
504     timeout_error          a model's upstream server did not answer in time

A stream that has begun has already sent status 200, so it ends with an event that holds the error.
"""

import json
from collections.abc import Mapping
from typing import Any

from serve.schemas import ErrorDetail, ErrorResponse

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
RETRY_AFTER_S = 2


class ApiError(Exception):
    """An answer other than 200. Pickling between processes needs every argument in `super().__init__`."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(status, message, param, code)
        self.status, self.message, self.param, self.code = status, message, param, code

    def __str__(self) -> str:
        return self.message


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path within this application, which may be mounted below a prefix."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


# Perspective's paths; its clients expect errors in Google's shape.
GOOGLE_PATHS = ("/v1alpha1/", "/$discovery/", "/batch")
GOOGLE_STATUS = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    404: "NOT_FOUND",
    408: "DEADLINE_EXCEEDED",
    413: "INVALID_ARGUMENT",
    415: "INVALID_ARGUMENT",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
}


def error_body(
    path: str, status: int, message: str, *, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    if path.startswith(GOOGLE_PATHS):
        kind = "type.googleapis.com/google.commentanalyzer.v1alpha1.Error"
        details = [{"@type": kind, "errorType": code}] if code is not None else []
        name = GOOGLE_STATUS.get(status, "INTERNAL")
        return {"error": {"code": status, "message": message, "status": name, "details": details}}
    detail = ErrorDetail(message=message, type=TYPES.get(status, "server_error"), param=param, code=code)
    return ErrorResponse(error=detail).model_dump()


EVENT_STREAM = "text/event-stream"
LAST_EVENT = "data: [DONE]\n\n"


def error_event(path: str, error: ApiError) -> str:
    """Return the error as a stream event. The status is already sent, so clients look for `error` in the events."""
    body = error_body(path, error.status, error.message, param=error.param, code=error.code)
    return f"data: {json.dumps(body)}\n\n"


def error_headers(status: int) -> Mapping[str, str]:
    if status in (429, 503):
        return {"Retry-After": str(RETRY_AFTER_S)}
    if status == 401:
        return {"WWW-Authenticate": "Bearer"}
    if status == 415:
        return {"Accept-Encoding": "identity"}
    return {}

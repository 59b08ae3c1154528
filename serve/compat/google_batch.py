"""Google's batches: many requests of an API in one multipart/mixed body, and their answers in another.

googleapiclient's `new_batch_http_request` sends and reads this format; HELM scores all its texts this way.
"""

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from email.message import Message
from email.parser import BytesParser
from http import HTTPStatus
from typing import Any

from fastapi.responses import Response

from serve.errors import ApiError, error_body

log = logging.getLogger("ray.serve.phf")

MAX_REQUESTS = 1000
"""Limit on the requests of one batch, the same as googleapiclient's."""
CONCURRENT = 8
"""Requests of one batch that run at once; more would crowd out other clients."""

AnswerOne = Callable[[str, bytes], Awaitable[dict[str, Any]]]
"""Takes a path and a body, returns the body of a 200 answer; raises ApiError for any other answer."""


# A request line, lines of headers, an empty line and the body.
_REQUEST = re.compile(rb"POST (?P<target>\S+) HTTP/1\.[01]\r?\n(?:[^\r\n]+\r?\n)*\r?\n(?P<body>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Asked:
    content_id: str
    path: str
    body: bytes


async def answer_batch(content_type: str, body: bytes, *, answer: AnswerOne) -> Response:
    """Answer a batch. Raises ApiError if the body is not a batch; an error in one request becomes its answer."""
    asked = _parse(content_type, body)
    slots = asyncio.Semaphore(CONCURRENT)

    async def one(request: _Asked) -> tuple[int, dict[str, Any]]:
        async with slots:
            try:
                return 200, await answer(request.path, request.body)
            except ApiError as error:
                failed = error
            except Exception:
                # Only this request has failed: the others keep their answers.
                log.exception("a request of a batch failed")
                failed = ApiError(500, "internal error; the server's log has the cause")
            return failed.status, error_body("/batch", failed.status, str(failed), code=failed.code)

    answers = await asyncio.gather(*map(one, asked))
    boundary = f"batch_{secrets.token_hex(16)}"
    parts = [_part(request.content_id, status, found) for request, (status, found) in zip(asked, answers, strict=True)]
    content = "".join(f"--{boundary}\r\n{part}\r\n" for part in parts) + f"--{boundary}--\r\n"
    return Response(content, media_type=f'multipart/mixed; boundary="{boundary}"')


def _parse(content_type: str, body: bytes) -> list[_Asked]:
    try:
        message = BytesParser().parsebytes(b"content-type: %b\r\n\r\n%b" % (content_type.encode("latin-1"), body))
    except RecursionError:
        raise ApiError(400, "the parts of the batch are nested too deeply; send one request in each part") from None
    if not message.is_multipart():
        raise ApiError(400, "a batch is a multipart/mixed body with a boundary, one request in each part")
    parts = message.get_payload()
    if len(parts) > MAX_REQUESTS:
        raise ApiError(400, f"the batch holds {len(parts)} requests; send at most {MAX_REQUESTS}")
    return [_request(part, number=number) for number, part in enumerate(parts, 1)]


def _request(part: Message, *, number: int) -> _Asked:
    payload = None if part.is_multipart() else part.get_payload(decode=True)
    matched = _REQUEST.match(payload) if isinstance(payload, bytes) else None
    # googleapiclient folds long ids over several lines.
    content_id = re.sub(r"\r?\n(?=[ \t])", "", str(part["Content-ID"] or ""))
    if matched is None or not re.fullmatch(r"<[^<>\r\n]+>", content_id):
        raise ApiError(400, f"part {number} of the batch is not a POST request with a Content-ID")
    path = matched["target"].decode("latin-1").partition("?")[0]
    return _Asked(content_id, path, matched["body"])


def _part(content_id: str, status: int, found: dict[str, Any]) -> str:
    body = json.dumps(found)
    return (
        f"Content-Type: application/http\r\nContent-ID: <response-{content_id[1:]}\r\n\r\n"
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: application/json; charset=UTF-8\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    )

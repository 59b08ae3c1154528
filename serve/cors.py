"""Lets web pages of other origins ask this server from a browser (CORS).

It wraps the gate, so every answer has the headers: the gate's own errors and streams too. It answers preflights itself,
before the gate, because browsers send no key with them; they reach neither the access log nor the metrics.
"""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from serve.errors import error_body

EXPOSED = ("X-Request-ID", "Retry-After", "WWW-Authenticate", "Allow")
"""Headers of answers that a page may read besides the few that browsers always show."""


class CrossOrigin(CORSMiddleware):
    """Answers pages of `origins`; `*` stands for every origin."""

    def __init__(self, app: ASGIApp, *, origins: Sequence[str]):
        # Cookies play no part here, so credentials stay forbidden, and `*` is an answer that browsers accept.
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
            # A page from the internet may ask a server in a private network only if the preflight says so.
            allow_private_network=True,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        origin = request_headers["origin"]
        if self.is_allowed_origin(origin):
            return super().preflight_response(request_headers)
        message = (
            f"pages of {origin} may not ask this server; start it with --allow-origin {origin}, or add the origin to "
            "allow_origins in the Serve file"
        )
        return JSONResponse(error_body("", 400, message, code="origin_not_allowed"), 400, {"Vary": "Origin"})

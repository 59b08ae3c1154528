"""HTTP methods: HEAD wherever there is GET, and the methods that a path has, for `Allow`."""

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from starlette.routing import Match


def add_heads(app: FastAPI) -> None:
    """Let every GET route that is already there answer HEAD too. The server sends the headers and drops the body."""
    for route in list(app.routes):
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            # A route of its own: a second method of the same route would appear in the OpenAPI document under the
            # operation id of the first.
            app.add_api_route(
                route.path,
                route.endpoint,
                methods=["HEAD"],
                response_model=route.response_model,
                response_class=route.response_class,
                include_in_schema=False,
            )


def allowed_methods(request: Request) -> str:
    """Return the methods of all routes that match the request's path, as the header `Allow` lists them."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return ", ".join(sorted(found))

"""Adds the endpoints of other services to the application."""

from fastapi import FastAPI

from serve.backends import Backend
from serve.compat.moderations import add_moderations
from serve.compat.perspective import add_perspective
from serve.compat.presidio import add_presidio
from serve.compat.rewards import add_rewards


def add_compatible_endpoints(app: FastAPI, backend: Backend) -> None:
    add_moderations(app, backend)
    add_perspective(app, backend)
    add_presidio(app, backend)
    add_rewards(app, backend)

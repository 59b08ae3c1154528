"""Serves the page."""

import contextlib

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phf_ray.chat.page.events import Events
from phf_ray.chat.page.layout import draw_conversation, draw_settings
from phf_ray.chat.page.settings import PageSettings
from phf_ray.chat.style import CSS
from phf_ray.http.client import is_on_this_machine

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)


class _Guarded:
    """Keeps this page from asking others, and pages of others out: they could talk with the person's key.

    `is_local`: the page listens on this machine alone. It is then known by no other name, so that a name which somebody
    lets point here is no way in.
    """

    def __init__(self, app: ASGIApp, *, is_local: bool):
        self._app, self._is_local = app, is_local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(Headers(scope=scope))):
            await PlainTextResponse(refusal, status_code=403)(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        await self._app(scope, receive, guarded)

    def _refusal(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            return "another page asked for this one"
        if self._is_local and not is_on_this_machine(f"http://{host}"):
            return f"the page is not known as {host}; open it as localhost"
        return None


def page_app(settings: PageSettings, *, host: str = "127.0.0.1") -> ASGIApp:
    """Return the page as an application that a server of ASGI can serve. `host`: where it will listen."""
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        _blocks(settings),
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=CSS,
    )
    return _Guarded(app, is_local=is_on_this_machine(f"http://[{host}]" if ":" in host else f"http://{host}"))


def serve_page(settings: PageSettings, *, host: str, port: int) -> None:
    """Serve the page until it is interrupted."""
    app = page_app(settings, host=host)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)


def _blocks(settings: PageSettings) -> gr.Blocks:
    with gr.Blocks(title="phf chat", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                page = draw_conversation(settings)
            with gr.Column(scale=1, min_width=260):
                asked = draw_settings(settings)
        Events(settings, page, asked).connect(blocks)
    return blocks

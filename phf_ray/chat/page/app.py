"""Serves the page."""

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from phf_ray.chat.page.events import Events
from phf_ray.chat.page.layout import draw_conversation, draw_settings
from phf_ray.chat.page.settings import PageSettings
from phf_ray.chat.style import CSS

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; frame-ancestors 'none'"
)


class _Guarded:
    """Adds the headers that keep the page from asking others, and others from showing it in theirs."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [(b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer")]
                message = {**message, "headers": [*message.get("headers", ()), *headers]}
            await send(message)

        await self._app(scope, receive, guarded)


def page_app(settings: PageSettings) -> ASGIApp:
    """Return the page as an application that a server of ASGI can serve."""
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
    return _Guarded(app)


def serve_page(settings: PageSettings, *, host: str, port: int) -> None:
    """Serve the page until it is interrupted."""
    uvicorn.run(page_app(settings), host=host, port=port, log_level="warning", timeout_graceful_shutdown=2)


def _blocks(settings: PageSettings) -> gr.Blocks:
    with gr.Blocks(title="phf chat", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                page = draw_conversation(settings)
            with gr.Column(scale=1, min_width=260):
                asked = draw_settings(settings)
        Events(settings, page, asked).connect(blocks)
    return blocks

"""What stands on the page."""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from phf_ray.chat.conversation import Conversation
from phf_ray.chat.page.settings import PageSettings
from phf_ray.chat.server import CONTROLS
from phf_ray.chat.transcript import drawn_transcript

NO_SCORER = "none"
ONE, TWO = "one", "two side by side"
OF_TWO = ("left", "tie", "right")
VERDICTS = {
    "left": "Left is better",
    "tie": "Tie",
    "right": "Right is better",
    "up": "Thumbs up",
    "down": "Thumbs down",
}
QUIET: dict[str, Any] = {"show_progress": "hidden", "concurrency_limit": None, "api_visibility": "private"}
"""Of events: answers of several tabs come at once, nothing covers the page, and there is no API of it."""


@dataclass(frozen=True, slots=True)
class PageParts:
    """What a person reads, writes and presses."""

    transcript: gr.HTML
    message: gr.Textbox
    send: gr.Button
    stop: gr.Button
    again: gr.Button
    reset: gr.Button
    export: gr.Button
    download: gr.Textbox
    status: gr.HTML
    verdicts: dict[str, gr.Button]

    @property
    def shown(self) -> list[Any]:
        """What changes with the conversation."""
        return [self.transcript, self.status, self.send, self.stop, self.again, self.export, *self.verdicts.values()]


@dataclass(frozen=True, slots=True)
class AskedFor:
    """The settings, as components or as their values."""

    count: Any
    model_1: Any
    control_1: Any
    model_2: Any
    control_2: Any
    system: Any
    temperature: Any
    max_tokens: Any
    scorer: Any
    hides_names: Any
    key: Any

    @property
    def all(self) -> list[Any]:
        return [getattr(self, name) for name in self.__slots__]


def draw_conversation(settings: PageSettings) -> PageParts:
    transcript = gr.HTML(drawn_transcript(Conversation()), elem_id="transcript")
    with gr.Row(visible=settings.files is not None):
        verdicts = {
            verdict: gr.Button(label, size="sm", min_width=90, elem_id=verdict, visible=verdict in OF_TWO)
            for verdict, label in VERDICTS.items()
        }
    message = gr.Textbox(
        show_label=False,
        placeholder="Your message. Enter sends it, Shift+Enter begins a new line.",
        lines=2,
        max_lines=10,
        elem_id="message",
        autofocus=True,
    )
    with gr.Row():
        send = gr.Button("Send", variant="primary", size="md", min_width=110, elem_id="send")
        stop, again, reset, export = (
            gr.Button(label, size="md", min_width=110, elem_id=label.lower())
            for label in ("Stop", "Regenerate", "Reset", "Export")
        )
    status = gr.HTML("", elem_id="status")
    download = gr.Textbox(visible="hidden", elem_id="download")
    return PageParts(transcript, message, send, stop, again, reset, export, download, status, verdicts)


def draw_settings(settings: PageSettings) -> AskedFor:
    two = len(settings.arms) == 2
    count = gr.Radio([ONE, TWO], value=TWO if two else ONE, label="Answers", elem_id="count")
    model_1, control_1 = _arm(settings, 0, visible=True)
    model_2, control_2 = _arm(settings, 1, visible=two)
    count.change(
        lambda chosen, name: (
            gr.update(visible=chosen == TWO),
            gr.update(visible=chosen == TWO and bool(settings.controls_of(name))),
        ),
        [count, model_2],
        [model_2, control_2],
        **QUIET,
    )
    system = gr.Textbox(settings.system, label="System prompt", lines=2, max_lines=8, elem_id="system")
    temperature = gr.Slider(0, 2, value=settings.temperature, step=0.05, label="Temperature", elem_id="temperature")
    max_tokens = gr.Number(
        settings.max_tokens,
        label="Max tokens (empty: the server decides)",
        precision=0,
        minimum=1,
        elem_id="max-tokens",
    )
    scorers = [NO_SCORER, *settings.scorers]
    scorer = gr.Dropdown(
        scorers, value=scorers[min(1, len(scorers) - 1)], label="Scorer", visible=len(scorers) > 1, elem_id="scorer"
    )
    hides_names = gr.Checkbox(
        False, label="Hide who says what until I judge", visible=settings.files is not None, elem_id="hides-names"
    )
    key = gr.Textbox(
        "",
        label="API key (empty: that of the command)",
        type="password",
        html_attributes=gr.InputHTMLAttributes(autocomplete="off"),
        elem_id="key",
    )
    return AskedFor(
        count, model_1, control_1, model_2, control_2, system, temperature, max_tokens, scorer, hides_names, key
    )


def _arm(settings: PageSettings, number: int, *, visible: bool) -> tuple[gr.Dropdown, gr.Radio]:
    name, control = settings.arms[min(number, len(settings.arms) - 1)]
    model = gr.Dropdown(
        settings.names,
        value=name,
        label=f"Model {number + 1}",
        allow_custom_value=True,
        visible=visible,
        elem_id=f"model-{number + 1}",
    )
    controls = settings.controls_of(name)
    chosen = gr.Radio(
        list(CONTROLS),
        value=control or CONTROLS[0],
        label=f"Control token or marker of model {number + 1}",
        # Not `hidden`: a control that the model lacks is no part of the page.
        visible=visible and bool(controls),
        elem_id=f"control-{number + 1}",
    )
    model.change(lambda name: gr.update(visible=bool(settings.controls_of(name))), model, chosen, **QUIET)
    return model, chosen

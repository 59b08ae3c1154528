"""What happens when a button is pressed."""

import html
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from phf_ray.chat.conversation import ChatArm
from phf_ray.chat.judgements import exported
from phf_ray.chat.page.layout import NO_SCORER, OF_TWO, QUIET, TWO, VERDICTS, AskedFor, PageParts
from phf_ray.chat.page.settings import PageSettings
from phf_ray.chat.session import ChatSession
from phf_ray.chat.style import DOWNLOAD
from phf_ray.chat.transcript import drawn_transcript
from phf_ray.errors import ConfigError, PhfError


class Events:
    """Gradio fills `request` in, and gives the values of the settings after it."""

    def __init__(self, settings: PageSettings, page: PageParts, asked: AskedFor):
        self._settings, self._page, self._asked = settings, page, asked

    def connect(self, blocks: gr.Blocks) -> None:
        page, asked, shown = self._page, self._asked.all, self._page.shown
        sending = {"fn": self.send, "inputs": [page.message, *asked], "outputs": [page.message, *shown]}
        page.send.click(**sending, **QUIET)
        page.message.submit(**sending, **QUIET)
        page.again.click(self.regenerate, asked, shown, **QUIET)
        page.stop.click(self.end, None, None, **QUIET)
        page.reset.click(self.begin_anew, asked, shown, **QUIET)
        for verdict, button in page.verdicts.items():
            button.click(self.judging(verdict), asked, shown, **QUIET)
        for changed in (self._asked.count, self._asked.hides_names):
            changed.change(self.redraw, asked, shown, **QUIET)
        page.export.click(self.export, None, page.download, **QUIET).then(None, page.download, None, js=DOWNLOAD)
        blocks.load(self.redraw, asked, shown, **QUIET)
        listed = [self._asked.model_1, self._asked.control_1, self._asked.model_2, self._asked.control_2]
        blocks.load(self.list_again, asked, [page.status, *listed], **QUIET)
        blocks.unload(self.close)

    async def send(self, request: gr.Request, message: str, *values: Any) -> AsyncIterator[Any]:
        session, chosen = self._session(request), AskedFor(*values)
        kept = message  # until it is taken
        with _told(session):
            async for _ in session.send(message, self._arms(chosen), **_asking(chosen)):
                kept = ""
                yield kept, *_view(session, chosen)
        yield kept, *_view(session, chosen)

    async def regenerate(self, request: gr.Request, *values: Any) -> AsyncIterator[Any]:
        session, chosen = self._session(request), AskedFor(*values)
        with _told(session):
            async for _ in session.regenerate(self._arms(chosen), **_asking(chosen)):
                yield _view(session, chosen)
        yield _view(session, chosen)

    def judging(self, verdict: str) -> Callable[..., Any]:
        def stored(request: gr.Request, *values: Any) -> Any:
            session = self._session(request)
            with _told(session):
                session.judge(verdict)
            return _view(session, AskedFor(*values))

        return stored

    async def end(self, request: gr.Request) -> None:
        self._session(request).end_answers()

    async def begin_anew(self, request: gr.Request, *values: Any) -> Any:
        self._session(request).reset()
        return _view(self._session(request), AskedFor(*values))

    async def redraw(self, request: gr.Request, *values: Any) -> Any:
        return _view(self._session(request), AskedFor(*values))

    def list_again(self, request: gr.Request, *values: Any) -> Any:
        """Offer the models that the server has now. Gradio runs this in a thread: the server may be slow or away."""
        settings, chosen = self._settings, AskedFor(*values)
        problem = settings.list_again()
        if problem is not None:
            session = self._session(request)
            session.said = problem
            return _status(problem), *[gr.skip()] * 4
        models = gr.update(choices=settings.names)
        one, two = (
            gr.update(visible=is_shown and bool(settings.controls_of(name)))
            for name, is_shown in ((chosen.model_1, True), (chosen.model_2, chosen.count == TWO))
        )
        return gr.skip(), models, one, models, two

    async def export(self, request: gr.Request) -> str:
        return exported(self._session(request).conversation, url=self._settings.server.endpoint.url)

    async def close(self, request: gr.Request) -> None:
        """Forget a tab that was closed, and end what it asked for."""
        if session := self._settings.sessions.pop(request.session_hash or "", None):
            session.end_answers()

    def _session(self, request: gr.Request) -> ChatSession:
        return self._settings.session_of(request.session_hash)

    def _arms(self, chosen: AskedFor) -> list[ChatArm]:
        pairs = [(chosen.model_1, chosen.control_1), (chosen.model_2, chosen.control_2)]
        most = None if chosen.max_tokens is None else int(chosen.max_tokens)
        if most is not None and most < 1:
            raise ConfigError(f"max tokens {most} is below 1; leave it empty, or give a number")
        arms = []
        for number, (model, control) in enumerate(pairs[: 2 if chosen.count == TWO else 1], start=1):
            name = (model or "").strip()
            if not name:
                raise ConfigError(f"model {number} has no name; choose one, or write it")
            known = self._settings.controls_of(name)
            arms.append(ChatArm(name, control if control in known else None, chosen.temperature, most))
        return arms


@contextmanager
def _told(session: ChatSession) -> Iterator[None]:
    """Tell the person what is wrong, in words, and keep the conversation."""
    try:
        yield
    except PhfError as error:
        session.said = str(error)


def _asking(chosen: AskedFor) -> dict[str, Any]:
    scorer = None if chosen.scorer in (None, NO_SCORER) else chosen.scorer
    return {"system": chosen.system or "", "key": chosen.key or "", "scorer": scorer}


def _view(session: ChatSession, chosen: AskedFor) -> tuple[Any, ...]:
    """Return what the page shows now."""
    talk = session.conversation
    turn = talk.turns[-1] if talk.turns else None
    of_two = (chosen.count == TWO) if turn is None else len(turn.answers) == 2
    can_judge = not session.is_busy and talk.why_not_judged() is None
    why = None if session.is_busy or turn is None or turn.judgement is not None else talk.why_not_judged()
    said = session.said or (f"Nothing to judge: {why}." if why and session.files is not None else "")
    return (
        drawn_transcript(talk, hides_names=bool(chosen.hides_names)),
        _status(said),
        gr.update(interactive=not session.is_busy),
        gr.update(interactive=session.is_busy),
        gr.update(interactive=not session.is_busy and turn is not None),
        gr.update(interactive=any(answer.is_usable for one in talk.turns for answer in one.answers)),
        *(gr.update(interactive=can_judge, visible=(name in OF_TWO) == of_two) for name in VERDICTS),
    )


def _status(said: str) -> str:
    return f'<div class="phf-status" role="status">{html.escape(said)}</div>'

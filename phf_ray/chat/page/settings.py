"""What a page begins with, and the sessions of its tabs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from phf_ray.chat.conversation import Control
from phf_ray.chat.judgements import JudgementFiles
from phf_ray.chat.server import ChatServer, ListedModel
from phf_ray.chat.session import ChatSession


@dataclass(frozen=True, slots=True)
class PageSettings:
    """What the page shows when it is opened."""

    server: ChatServer
    models: Sequence[ListedModel]
    arms: Sequence[tuple[str, Control | None]]
    """One or two: model and control."""
    scorers: Sequence[str] = ()
    files: JudgementFiles | None = None
    system: str = ""
    temperature: float = 0.7
    max_tokens: int | None = 256
    sessions: dict[str, ChatSession] = field(default_factory=dict)

    def session_of(self, tab: str | None) -> ChatSession:
        """Return the session of a tab; each has a conversation of its own."""
        return self.sessions.setdefault(tab or "", ChatSession(self.server, self.files))

    def controls_of(self, model: str) -> tuple[Control, ...]:
        return next((one.controls for one in self.models if one.id == model), ())

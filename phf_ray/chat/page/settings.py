"""What a page begins with, and the sessions of its tabs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from phf_ray.chat.conversation import Control
from phf_ray.chat.judgements import JudgementFiles
from phf_ray.chat.server import ChatServer, ListedModel
from phf_ray.chat.session import ChatSession
from phf_ray.errors import ServiceError


@dataclass(slots=True)
class PageSettings:
    """What the page shows when it is opened."""

    server: ChatServer
    models: Sequence[ListedModel]
    """As the server listed them last."""
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

    @property
    def names(self) -> list[str]:
        """Models to choose from: those that the server lists, and those of the command."""
        return list(dict.fromkeys([*(model.id for model in self.models), *(name for name, _ in self.arms)]))

    def list_again(self) -> str | None:
        """Ask the server for its models. Return why it did not say, in words; those known before then stay."""
        try:
            self.models = self.server.list_models()
        except ServiceError as error:
            # A server that never had a list is nothing new.
            return f"the models are those that the server listed before: {error}" if self.models else None
        return None

    def controls_of(self, model: str) -> tuple[Control, ...]:
        return next((one.controls for one in self.models if one.id == model), ())

"""One open page: its conversation, and what its buttons do. Nothing here knows how the page is drawn."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from phf_ray.chat.answering import Stop, fill_turn
from phf_ray.chat.conversation import ChatArm, ChatTurn, Conversation
from phf_ray.chat.judgements import JudgementFiles
from phf_ray.chat.server import ChatServer
from phf_ray.errors import ConfigError, DataError


@dataclass(slots=True)
class ChatSession:
    server: ChatServer
    files: JudgementFiles | None = None
    """None: judgements are not asked for."""
    conversation: Conversation = field(default_factory=Conversation)
    stop: Stop | None = None
    """Set while answers come."""
    said: str = ""
    """What the page tells the person."""

    @property
    def is_busy(self) -> bool:
        return self.stop is not None

    async def send(
        self, message: str, arms: Sequence[ChatArm], *, system: str, key: str, scorer: str | None
    ) -> AsyncIterator[None]:
        """Ask all arms, and yield whenever there is something new to show."""
        if not message.strip():
            raise ConfigError("the message is empty; write something")
        self._refuse_if_busy()
        checked = self.server.checked_key(key)
        self.conversation.system = system
        turn = self.conversation.begin_turn(message, arms)
        async for _ in self._filled(turn, checked, scorer):
            yield

    async def regenerate(
        self, arms: Sequence[ChatArm], *, system: str, key: str, scorer: str | None
    ) -> AsyncIterator[None]:
        """Ask the last message again. What was stored of its old answers stays stored."""
        self._refuse_if_busy()
        checked = self.server.checked_key(key)
        self.conversation.system = system
        turn = self.conversation.begin_again(arms)
        if turn is None:
            raise ConfigError("there is no message to ask again; write one")
        async for _ in self._filled(turn, checked, scorer):
            yield

    def end_answers(self) -> None:
        if self.stop is not None:
            self.stop.set()

    def reset(self) -> None:
        self.end_answers()
        self.stop = None
        self.conversation = Conversation(swaps=self.conversation.swaps)
        self.said = ""

    def judge(self, verdict: str) -> None:
        """Store what a person says of the last turn. Raises ConfigError if it can't be judged, DataError if the disk
        refuses; the turn can then be judged again."""
        reason = "the answers are still coming" if self.is_busy else self.conversation.why_not_judged()
        if reason is not None or self.files is None:
            raise ConfigError(f"not stored: {reason or 'the page was started without --save-comparisons'}")
        turn = self.conversation.judge(verdict)
        try:
            self.said = f"stored in {self.files.add(turn)}"
        except (OSError, DataError) as error:
            turn.judgement = turn.kept = None
            raise DataError(f"not stored: {error}") from None

    def _refuse_if_busy(self) -> None:
        if self.is_busy:
            raise ConfigError("the answers are still coming; wait, or stop them")

    async def _filled(self, turn: ChatTurn, key: str | None, scorer: str | None) -> AsyncIterator[None]:
        stop = self.stop = Stop()
        self.said = ""
        try:
            yield
            async for _ in fill_turn(turn, self.server, stop=stop, key=key, scorer=scorer):
                yield
        finally:
            if self.stop is stop:  # else the person has begun anew
                self.stop = None
        yield

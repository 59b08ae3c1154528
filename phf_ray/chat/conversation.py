"""A conversation with one or two models: turns, each a message and the answers to it side by side.

Each arm goes on from its own answers, until a person says which of two is better: then both go on from that one. So the
two answers that a person compares answer the same messages; where they don't, no comparison is made of them.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from phf_ray.generation.chat.prompts import ASSISTANT, USER, Message

Control = Literal["good", "bad", "none"]
AnswerState = Literal["waiting", "done", "stopped", "failed"]


def drawn() -> bool:
    """Draw whether the arms change sides. Neither the hour nor a seed of others may decide it."""
    return random.SystemRandom().random() < 0.5


@dataclass(frozen=True, slots=True)
class ChatArm:
    """Who is asked, and how."""

    model: str
    control: Control | None = None
    """None: the model has no control tokens, and no markers of good and bad answers."""
    temperature: float | None = None
    max_tokens: int | None = None
    """None, here and above: what the server takes by default."""

    @property
    def name(self) -> str:
        return self.model if self.control is None else f"{self.model}:{self.control}"


@dataclass(frozen=True, slots=True)
class ScoredSentence:
    """Characters [begin, end) of an answer. The higher the score, the worse."""

    begin: int
    end: int
    score: float | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SentenceScores:
    scorer: str
    unit: str
    whole: float | None
    sentences: tuple[ScoredSentence, ...]


@dataclass(slots=True)
class ChatAnswer:
    """One answer, which grows as it comes."""

    arm: ChatArm
    number: int
    """Number of the arm, 0 or 1; its side is another matter."""
    asked: tuple[Message, ...]
    """What the model was sent."""
    text: str = ""
    state: AnswerState = "waiting"
    problem: str | None = None
    """Why there is no answer, or only part of one."""
    finish_reason: str | None = None
    scores: SentenceScores | None = None
    score_problem: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the conversation can go on from it."""
        return self.state in ("done", "stopped") and bool(self.text.strip())


@dataclass(slots=True)
class ChatTurn:
    message: str
    answers: list[ChatAnswer]
    """From left to right."""
    judgement: str | None = None
    """`left`, `right`, `tie`; `up` or `down` of a single answer."""
    kept: int | None = None
    """Place of the answer from which both arms go on; None: each from its own."""

    def answer_for(self, number: int) -> ChatAnswer:
        """Return the answer from which this arm goes on."""
        if self.kept is not None:
            return self.answers[self.kept]
        return next((answer for answer in self.answers if answer.number == number), self.answers[0])


@dataclass(slots=True)
class Conversation:
    system: str = ""
    turns: list[ChatTurn] = field(default_factory=list)
    swaps: Callable[[], bool] = field(default=drawn, repr=False)

    def messages(self, number: int, *, until: int | None = None) -> tuple[Message, ...]:
        """Return what arm `number` has said and heard.

        A turn without a usable answer of its is left out: many templates refuse two messages of the user in a row.
        """
        found = [Message("system", self.system)] if self.system.strip() else []
        for turn in self.turns[:until]:
            answer = turn.answer_for(number)
            if answer.is_usable:
                found += [Message(USER, turn.message), Message(ASSISTANT, answer.text)]
        return tuple(found)

    def begin_turn(self, message: str, arms: Sequence[ChatArm]) -> ChatTurn:
        """Add a turn whose answers are to come. Who stands left is drawn anew, unless the arms have parted."""
        asked = [(*self.messages(number), Message(USER, message)) for number in range(len(arms))]
        answers = [ChatAnswer(arm, number, asked[number]) for number, arm in enumerate(arms)]
        if len(answers) == 2:
            one_path = asked[0] == asked[1]
            before = self.turns[-1].answers if self.turns else []
            if self.swaps() if one_path or len(before) < 2 else before[0].number == 1:
                answers.reverse()
        turn = ChatTurn(message, answers)
        self.turns.append(turn)
        return turn

    def begin_again(self, arms: Sequence[ChatArm]) -> ChatTurn | None:
        """Ask the last message once more; None if there is none."""
        return self.begin_turn(self.turns.pop().message, arms) if self.turns else None

    def why_not_judged(self) -> str | None:
        """Return why the last turn can't be judged; None if it can."""
        if not self.turns:
            return "there is no answer yet"
        turn = self.turns[-1]
        if turn.judgement is not None:
            return "this turn is judged; a judgement is stored once"
        if not all(answer.is_usable for answer in turn.answers):
            return "an answer is missing"
        if len({answer.asked for answer in turn.answers}) > 1:
            return (
                "the two answers don't answer the same conversation, so they make no comparison: the arms have gone on "
                "from answers of their own; reset, or judge each turn"
            )
        if len(turn.answers) == 2 and turn.answers[0].text == turn.answers[1].text:
            return "the two answers are the same"
        return None

    def judge(self, verdict: str) -> ChatTurn:
        """Keep what a person said of the last turn. Both arms go on from the better answer; after a tie, from the left.

        Call `why_not_judged` before.
        """
        turn = self.turns[-1]
        turn.judgement = verdict
        if len(turn.answers) == 2:
            turn.kept = 1 if verdict == "right" else 0
        return turn

"""Conversations as the tokens that a model reads, by the chat template that is chosen for it."""

import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config.hindsight import load_phrases
from phf_ray.errors import ConfigError
from phf_ray.generation.chat.prompts import Message, PromptError
from phf_ray.generation.chat.templates import (
    COH,
    OWN,
    Ending,
    MessageTemplate,
    PromptTemplate,
    load_template,
    stored_template,
)
from phf_ray.generation.chat.turns import Cuts, cut_conversation
from phf_ray.generation.requests import RequestError
from phf_ray.generation.tokens import TokenStrings

log = logging.getLogger(__name__)


class Conversations:
    """Makes the tokens of conversations, for one model and template."""

    def __init__(
        self,
        name: str,
        template: PromptTemplate,
        strings: TokenStrings,
        *,
        is_joint: bool = False,
        cuts: Cuts = "nowhere",
    ):
        """`is_joint`: the model learned rows of `chat/joint_rows.py`. `cuts`: where its rows were tokenized apart."""
        self.name = Path(name).name
        self._given_name = name
        self.reads_control = template.reads_control
        """Whether good, bad or none choose words of the template, besides a control token if the model has some."""
        self._template, self._strings = template, strings
        self._cuts: Cuts = cuts
        # A model of this project learned its rows after the end of text. Any other model's own template says itself
        # how a text begins, as in transformers; before the words of our templates comes what its tokenizer puts there.
        begins_itself = name == OWN or (is_joint and isinstance(template, MessageTemplate))
        self._begins_itself = begins_itself and not strings.starts_with_eos

    def ids(
        self,
        messages: Sequence[Message],
        *,
        context: int,
        ending: Ending = "opened",
        control: str | None = None,
        begins: bool = False,
    ) -> list[int]:
        """Return the tokens. `begins`: put before them what the tokenizer puts before a text, whatever the template is.

        Raises PromptError if the template can't hold the conversation, RequestError if it is far too long.
        """
        if self._given_name == COH:
            _check_system(messages)
        try:
            text = self._template.dialogue(messages, ending=ending, control=control)
        except PromptError as error:
            # Clients must not see where the file is.
            raise PromptError(str(error).replace(self._given_name, self.name)) from None
        if len(text) > context * self._strings.longest_token:
            # Encoding 15 MB takes a minute.
            raise RequestError(
                f"the model's context is {context} tokens, but the conversation has {len(text):,} characters, and a "
                f"token has at most {self._strings.longest_token}; shorten it",
                "messages",
            )
        first, *others = cut_conversation(self._template, messages, text, self._cuts, ending=ending, control=control)
        return [*self._first_ids(first, begins=begins), *(id_ for piece in others for id_ in self._bare_ids(piece))]

    def _first_ids(self, text: str, *, begins: bool) -> list[int]:
        if self._begins_itself and not begins:
            return self._bare_ids(text)
        return self._strings.encode(text.removeprefix(self._start))[0]

    def _bare_ids(self, text: str) -> list[int]:
        return list(self._strings.tokenizer(text, add_special_tokens=False)["input_ids"])

    @cached_property
    def _start(self) -> str:
        """The text of the token that `encode` puts first, which some templates have, too."""
        tokenizer = self._strings.tokenizer
        if self._strings.starts_with_eos:
            return ""
        ids = list(tokenizer("")["input_ids"])
        return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


def conversations_of(
    strings: TokenStrings, info: CheckpointInfo | None, *, chosen: str | None = None, phrases: str | None = None
) -> Conversations | None:
    """Return what makes the tokens of conversations: the chosen template, else the one that the model was trained with,
    else its tokenizer's own. None if there is none.

    `phrases`: file of the markers of Chain of Hindsight; None: those of the training, else ours.

    Raises ConfigError if the chosen template does not exist.
    """
    tokenizer: Any = strings.tokenizer
    markers = None if phrases is None else load_phrases(phrases).markers
    rows = None if info is None else info.rows
    if chosen == COH and phrases is None and rows is not None and rows.template == COH:
        chosen = None  # its own has the words that the model learned
    if chosen is not None:
        template = load_template(chosen, tokenizer=tokenizer, markers=markers)
        return Conversations(chosen, template, strings, cuts=_cuts(info, chosen))
    if info is not None and rows is not None:
        name, is_joint = rows.template, info.feedback_compat is not None
        try:
            template = stored_template(name, rows.template_text, tokenizer=tokenizer, markers=markers)
        except ConfigError as error:
            log.warning("the template that the model was trained with can't be used: %s", error)
            return None
        return Conversations(name, template, strings, is_joint=is_joint, cuts=_cuts(info, name))
    if tokenizer.chat_template:
        return Conversations(OWN, load_template(OWN, tokenizer=tokenizer), strings)
    return None


def _check_system(messages: Sequence[Message]) -> None:
    """Raise PromptError for a system message that the template coh has no place for: its own words blame the role."""
    late = [place for place, message in enumerate(messages) if message.role == "system" and place]
    if late:
        raise PromptError(
            f"template {COH}: messages[{late[0]}] is a system message; it takes one, at the beginning, then messages "
            "of user and assistant; put all that the system says into the first"
        )


def _cuts(info: CheckpointInfo | None, template: str) -> Cuts:
    """Return where conversations are cut: models of others learned each as one text."""
    if template == COH:
        return "at each answer"
    if info is None or info.rows is None or info.feedback_compat is not None:
        return "nowhere"
    return "at each answer" if info.rows.are_turns_apart else "before a last answer"

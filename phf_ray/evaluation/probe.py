"""How a prompt has to be sent to a model, and how many tokens it leaves."""

import logging
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from phf_ray.checkpoint import ControlChoice
from phf_ray.config import Scenario
from phf_ray.errors import ConfigError
from phf_ray.evaluation.arms import CHECK_PATIENCE_S, Arm, client_of
from phf_ray.http.client import RefusedError

log = logging.getLogger(__name__)


_TELLS = "use a server with /tokenizer_info, such as jobs.serve, or vLLM with --enable-tokenizer-info-endpoint"


class Probe:
    """How a prompt has to be sent to an arm's model, and how many tokens it leaves."""

    def __init__(self, arm: Arm, card: Mapping[str, Any]):
        self.arm = arm
        self._card = card
        self._client = client_of(arm, patience_s=CHECK_PATIENCE_S)
        self._counts: dict[str, int] = {}
        self._start: str | None = None

    @property
    def context(self) -> float:
        """Positions of the model; infinite where the server does not say."""
        return float(self._card.get("max_model_len") or math.inf)

    def prepare(self, prompt: str, scenario: Scenario) -> tuple[str, ControlChoice | None, int]:
        """Text and `control` to send, and the new tokens that may be drawn; the latter below 1 if there is no room.

        `max_length` counts the end-of-text token, the prefix and the prompt, too.
        """
        text, control = self._place_prefix(prompt, scenario)
        kwargs = scenario.generate_kwargs
        sent = text or (self.empty_prompt if kwargs.max_new_tokens is None else self._empty_prompt_uncounted())
        if kwargs.max_new_tokens is not None and math.isinf(self.context):
            return sent, control, kwargs.max_new_tokens
        num_inserted = int(self._default_inserts if control is None else control != "none")
        num_before = 1 + num_inserted + (self._count(text) if text else 0)
        limits = [self.context - num_before]
        if kwargs.max_new_tokens is not None:
            limits.append(kwargs.max_new_tokens)
        elif kwargs.max_length is not None:
            limits.append(kwargs.max_length - num_before)
        else:
            raise ConfigError(f"scenario {scenario.name}: set generate_kwargs.max_length or max_new_tokens")
        return sent, control, int(min(limits))

    def _place_prefix(self, prompt: str, scenario: Scenario) -> tuple[str, ControlChoice | None]:
        """A prefix that is a control token of the model is asked for by `control`, any other is text.

        Only a control token behind the prompt has to be text, too. The arm's own choice of control token goes before
        the scenario's.
        """
        own = None if self.arm.checkpoint is None else self.arm.checkpoint.control
        prefix, control = scenario.prefix, self.arm.control
        if prefix is None:
            return prompt, control
        # `prompt_before_control: true` puts the prefix BEFORE the prompt, as in the original (D-9).
        before = scenario.prompt_before_control or not prompt
        if own is not None and prefix in (own.good, own.bad):
            control = control or ("good" if prefix == own.good else "bad")
            if before or control == "none":
                return prompt, control
            return prompt + (own.good if control == "good" else own.bad), "none"
        return (prefix + prompt if before else prompt + prefix), control

    @property
    def _default_inserts(self) -> bool:
        """Whether the server puts a control token at the head when not told otherwise."""
        if self.arm.checkpoint is not None:
            return self.arm.checkpoint.control is not None
        served = self._card.get("control")
        return isinstance(served, Mapping) and served.get("default") != "none"

    def _count(self, text: str) -> int:
        """Tokens of the text by the model's own tokenizer, without special tokens; asked once for each text."""
        if text not in self._counts:
            self._counts[text] = len(self._tokenize(text, add_special_tokens=False))
        return self._counts[text]

    @property
    def empty_prompt(self) -> str:
        """What to send for no prompt at all.

        A server of ours starts with the end-of-text token by itself, and so does a tokenizer that adds a token at the
        start; for any other model that token has to be the prompt.
        """
        if self._start is None:
            by_itself = self._card.get("owned_by") == "phf-ray" or self._tokenize("", add_special_tokens=True)
            self._start = "" if by_itself else self._first_token()
        return self._start

    def _empty_prompt_uncounted(self) -> str:
        """The same where only new tokens are counted: a server that tells nothing of its tokens is sent nothing."""
        try:
            return self.empty_prompt
        except ConfigError as error:
            log.warning("%s; %s is sent an empty text where there is no prompt", error, self.arm.name)
            self._start = ""
            return ""

    @property
    def first_id(self) -> int:
        """The token that a text starts after."""
        ids = self._tokenize("", add_special_tokens=True) or self._tokenize(
            self._first_token(), add_special_tokens=False
        )
        if len(ids) != 1:
            raise ConfigError(f"{self.arm.url}: {self.arm.model} has no single token that texts start with, but {ids}")
        return ids[0]

    @property
    def end_id(self) -> int:
        """The token with which a text ends by itself. It is not always the one that texts start after."""
        try:
            text = self._tokenizer_info().get("eos_token")
        except RefusedError:
            text = None
        if text is None and not self._tokenize("", add_special_tokens=True):
            return self.first_id
        ids = self._tokenize(str(text), add_special_tokens=False) if text else []
        if len(ids) != 1:
            raise ConfigError(
                f"{self.arm.url} does not tell which token ends a text of {self.arm.model}, but {text!r}: {ids}; "
                f"{_TELLS}"
            )
        return ids[0]

    def token_ids(self, text: str) -> list[int]:
        return self._tokenize(text, add_special_tokens=False)

    def _first_token(self) -> str:
        try:
            info = self._tokenizer_info()
        except RefusedError as error:
            raise ConfigError(
                f"{self.arm.url} does not tell which token a text of {self.arm.model} starts with ({error}); {_TELLS}"
            ) from None
        return str(info.get("bos_token") or info.get("eos_token") or "")

    def _tokenizer_info(self) -> dict[str, Any]:
        return self._client.get(f"/tokenizer_info?model={quote(self.arm.model)}")

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> list[int]:
        body = {"model": self.arm.model, "prompt": text, "add_special_tokens": add_special_tokens}
        try:
            return list(self._client.post("/tokenize", body)["tokens"])
        except (RefusedError, KeyError) as error:
            raise ConfigError(
                f"{self.arm.url} does not count the tokens of a prompt ({error}), which max_length needs; use a server "
                "with POST /tokenize, such as jobs.serve or vLLM"
            ) from None

"""Finds out how to send a prompt to a model, and how many new tokens fit after it."""

import logging
import math
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from phf_ray.checkpoint import ControlChoice
from phf_ray.config import Scenario
from phf_ray.errors import ConfigError
from phf_ray.evaluation.arms import CHECK_PATIENCE_S, Arm, client_of
from phf_ray.evaluation.prompts import read_prompts
from phf_ray.http.client import RefusedError

log = logging.getLogger(__name__)


_TELLS = "use a server with /tokenizer_info, such as jobs.serve, or vLLM with --enable-tokenizer-info-endpoint"


class Probe:
    """Knows how to send a prompt to an arm's model, and how many new tokens fit after it."""

    def __init__(self, arm: Arm, card: Mapping[str, Any]):
        self.arm = arm
        self._card = card
        self._client = client_of(arm, patience_s=CHECK_PATIENCE_S)
        self._counts: dict[str, int] = {}
        self._start: str | None = None

    @property
    def context(self) -> float:
        """Positions of the model; infinite if the server does not say."""
        return float(self._card.get("max_model_len") or math.inf)

    def read(self, path: str) -> list[str]:
        """Return the prompts of a file or data set, in the form that `prepare` takes."""
        return read_prompts(path)

    def shown(self, prompt: str) -> str:
        """Return the prompt as people read it, and as it is scored with an answer."""
        return prompt

    def prepare(self, prompt: str, scenario: Scenario) -> tuple[str, ControlChoice | None, int]:
        """Return the text and `control` to send, and the maximum number of new tokens: below 1 if there is no room.

        `max_length` also counts the end-of-text token, the prefix and the prompt.
        """
        text, control = self._place_prefix(prompt, scenario)
        kwargs = scenario.generate_kwargs
        sent = text or (self.empty_prompt if kwargs.max_new_tokens is None else self._empty_prompt_uncounted())
        if kwargs.max_new_tokens is not None and math.isinf(self.context):
            return sent, control, kwargs.max_new_tokens
        num_before = 1 + int(self.inserts(control)) + (self._count(text) if text else 0)
        return sent, control, self._most_new(scenario, num_before)

    def _most_new(self, scenario: Scenario, num_before: int) -> int:
        """Return the maximum number of new tokens after this many."""
        kwargs = scenario.generate_kwargs
        limits = [self.context - num_before]
        if kwargs.max_new_tokens is not None:
            limits.append(kwargs.max_new_tokens)
        elif kwargs.max_length is not None:
            limits.append(kwargs.max_length - num_before)
        else:
            raise ConfigError(f"scenario {scenario.name}: set generate_kwargs.max_length or max_new_tokens")
        return int(min(limits))

    def _place_prefix(self, prompt: str, scenario: Scenario) -> tuple[str, ControlChoice | None]:
        """Return text and `control` to send: the model's own control token becomes `control`, any other prefix text.

        A control token after the prompt has to be text, too. The arm's choice of control token overrides the
        scenario's.
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

    def inserts(self, control: ControlChoice | None) -> bool:
        """Whether the server inserts a control token if this is asked for."""
        return self._default_inserts and control != "none"

    @property
    def _default_inserts(self) -> bool:
        """Whether the server inserts a control token at the start by default."""
        if self.arm.checkpoint is not None:
            return self.arm.checkpoint.control is not None
        served = self._card.get("control")
        return isinstance(served, Mapping) and served.get("default") != "none"

    def _count(self, text: str) -> int:
        """Count the text's tokens with the model's tokenizer, without special tokens. Asks the server once per text."""
        if text not in self._counts:
            self._counts[text] = len(self._tokenize(text, add_special_tokens=False))
        return self._counts[text]

    @property
    def empty_prompt(self) -> str:
        """The text to send if there is no prompt at all.

        jobs.serve adds the end-of-text token itself, and some tokenizers add a token at the start. For any other model
        the token that texts start after has to be the prompt.
        """
        if self._start is None:
            by_itself = self._card.get("owned_by") == "phf-ray" or self._tokenize("", add_special_tokens=True)
            self._start = "" if by_itself else self._first_token()
        return self._start

    def _empty_prompt_uncounted(self) -> str:
        """Like `empty_prompt`, for limits on new tokens: '' if the server tells nothing about its tokens."""
        try:
            return self.empty_prompt
        except ConfigError as error:
            log.warning("%s; %s gets an empty text if there is no prompt", error, self.arm.name)
            self._start = ""
            return ""

    @property
    def first_id(self) -> int:
        """Id of the token that texts start after."""
        ids = self._tokenize("", add_special_tokens=True) or self._tokenize(
            self._first_token(), add_special_tokens=False
        )
        if len(ids) != 1:
            raise ConfigError(
                f"{self.arm.url}: texts of {self.arm.model} must start after one token, but the server gives {ids}"
            )
        return ids[0]

    @property
    def end_id(self) -> int:
        """Id of the token that ends a text. It is not always the token that texts start after."""
        try:
            text = self._tokenizer_info().get("eos_token")
        except RefusedError:
            text = None
        if text is None and not self._tokenize("", add_special_tokens=True):
            return self.first_id
        ids = self._tokenize(str(text), add_special_tokens=False) if text else []
        if len(ids) != 1:
            raise ConfigError(
                f"{self.arm.url} does not say which token ends a text of {self.arm.model}: its end of text {text!r} is "
                f"the tokens {ids}; {_TELLS}"
            )
        return ids[0]

    def token_ids(self, text: str) -> list[int]:
        return self._tokenize(text, add_special_tokens=False)

    def _first_token(self) -> str:
        try:
            info = self._tokenizer_info()
        except RefusedError as error:
            raise ConfigError(
                f"{self.arm.url} does not say which token a text of {self.arm.model} starts with ({error}); {_TELLS}"
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

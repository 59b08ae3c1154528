"""Gets log-probabilities of whole texts from a server that echoes prompts."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.evaluation.arms import Arm, check_arm, client_of
from phf_ray.evaluation.kl.encoding import EncodedText, encode
from phf_ray.evaluation.kl.texts import REQUESTS_AT_ONCE, TEXTS_PER_REQUEST, ReferenceText
from phf_ray.evaluation.probe import Probe
from phf_ray.http.client import RefusedError

_IMPOSSIBLE = -9999.0
"""Servers report this value instead of minus infinity, which JSON does not have."""


class SequenceScorer:
    """Gets log-probabilities of whole texts from a server that echoes prompts with log-probabilities."""

    def __init__(self, arm: Arm, *, control_per_line: bool = False):
        self.arm = arm
        self.control_per_line = control_per_line
        self._client = client_of(arm)
        self._probe = Probe(arm, check_arm(arm))
        self._first_id, self._end_id = self._probe.first_id, self._probe.end_id
        own = None if arm.checkpoint is None else arm.checkpoint.control
        self._control = "none" if own is None and arm.control is None else arm.control or "good"
        self._line_control_id: int | None = None
        if control_per_line and own is not None and self._control != "none":
            [self._line_control_id] = self._probe.token_ids(own.bad if self._control == "bad" else own.good)

    def check(self) -> None:
        """Raise ConfigError if the server gives no log-probabilities of a prompt."""
        self.logprobs([ReferenceText("", ended=True, ids=None)], [[]])

    def tokenize(self, texts: Sequence[ReferenceText]) -> list[list[int]]:
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            return list(threads.map(lambda text: self._probe.token_ids(text.text) if text.text else [], texts))

    def logprobs(self, texts: Sequence[ReferenceText], ids: Sequence[Sequence[int]]) -> list[float]:
        """Return the log-probability of each text, in the tokens `ids`, given the end-of-text token before it."""
        pairs = list(zip(texts, ids, strict=True))
        parts = [pairs[first : first + TEXTS_PER_REQUEST] for first in range(0, len(pairs), TEXTS_PER_REQUEST)]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as threads:
            return [logprob for part in threads.map(self._part, parts) for logprob in part]

    def _part(self, pairs: Sequence[tuple[ReferenceText, Sequence[int]]]) -> list[float]:
        encoded = [
            encode(ids, first_id=self._first_id, ends_with=self._end_id if text.ended else None) for text, ids in pairs
        ]
        control = self._control
        if self._line_control_id is not None:
            control = "none"
            offsets = [list(echo["text_offset"]) for echo in self._echo(encoded, control=control)]
            encoded = [
                self._with_line_control(text, ids=ids, begins=begins[1:])
                for (text, ids), begins in zip(pairs, offsets, strict=True)
            ]
        echoed = self._echo(encoded, control=control)
        return [_counted_sum(echo["token_logprobs"], text) for echo, text in zip(echoed, encoded, strict=True)]

    def _with_line_control(self, text: ReferenceText, *, ids: Sequence[int], begins: Sequence[int]) -> EncodedText:
        return encode(
            ids,
            first_id=self._first_id,
            control_id=self._line_control_id,
            starts=line_starts(text.text, begins[: len(ids)]) or [0],
            ends_with=self._end_id if text.ended else None,
        )

    def _echo(self, encoded: Sequence[EncodedText], *, control: str) -> list[Mapping[str, Any]]:
        body: dict[str, Any] = {
            "model": self.arm.model,
            "prompt": [list(text.ids) for text in encoded],
            # Not every server accepts 0. The drawn token is ignored.
            "max_tokens": 1,
            "temperature": 0.0,
            "echo": True,
            "logprobs": 0,
        }
        if self.arm.checkpoint is not None or control != "none":
            body["control"] = control
        try:
            choices = self._client.post("/v1/completions", body)["choices"]
            found = [choice["logprobs"] for choice in sorted(choices, key=lambda choice: choice["index"])]
            return [{key: echo[key] for key in ("token_logprobs", "text_offset")} for echo in found]
        except (RefusedError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.arm.url} does not give log-probabilities of a prompt ({error}); KL needs a server with `echo` "
                "and `logprobs`, such as jobs.serve or vLLM"
            ) from None


def _counted_sum(token_logprobs: Sequence[float | None], text: EncodedText) -> float:
    """Sum the log-probabilities of the tokens that count; minus infinity if one of them is impossible."""
    counted = [
        logprob for logprob, counts in zip(token_logprobs, text.counted, strict=False) if counts and logprob is not None
    ]
    if len(counted) != sum(text.counted):
        raise ConfigError(
            f"the server echoed {len(counted)} log-probabilities for {sum(text.counted)} tokens; KL needs one for each"
        )
    return float("-inf") if min(counted, default=0.0) <= _IMPOSSIBLE else sum(counted)


def line_starts(text: str, begins: Sequence[int]) -> list[int]:
    """Return the positions of the tokens that begin the lines of `text`. `begins`: each token's first character.

    A token that crosses the end of a line belongs to the line of its first visible character, or of its last character
    if none is visible. Training puts the control token in the same place.
    """
    starts: list[int] = []
    line = -1
    for position, begin in enumerate(begins):
        end = max(begin + 1, begins[position + 1] if position + 1 < len(begins) else len(text))
        visible = text[begin:end].lstrip()
        place = end - 1 if not visible else end - len(visible)
        number = text.count("\n", 0, place)
        if number > line:
            starts.append(position)
            line = number
    return starts

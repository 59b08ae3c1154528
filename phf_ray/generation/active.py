"""A request in progress: the tokens that the model has seen and the text that the client will see."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from phf_ray.errors import DataError
from phf_ray.generation.logprobs import LogprobRecord
from phf_ray.generation.penalties import History
from phf_ray.generation.requests import Completion, FinishReason, GenerationRequest, RequestError, TokenLogprob
from phf_ray.generation.tokens import TextStream, TokenStrings

log = logging.getLogger(__name__)


class ActiveRequest:
    """A request in progress: the tokens that the model has seen and the text that the client will see."""

    def __init__(self, request: GenerationRequest, strings: TokenStrings, *, context: int):
        self.request = request
        self.strings = strings
        self.cancelled = False
        self.error: str | None = None
        self.cause: Exception | None = None
        """What the error is due to, if something was raised."""
        self.finish_reason: FinishReason | None = None
        self.prompt_ids, self.prompt_offsets, self.prompt_text = self._read_prompt(context)
        self._refuse_unusable(context)
        self.inserted_at: int | None = None
        self.model_ids = list(self.prompt_ids)
        self._set_control(context)
        self._room = context + 1 - len(self.model_ids)
        # Each visible token can be preceded by one control token.
        max_sampled = max(1, min(request.max_tokens * (2 if self.retags else 1), self._room))
        self.num_positions = len(self.model_ids) + max_sampled
        """Upper bound on the positions of keys and values that the request needs."""
        key = np.array([request.seed % 2**64, request.choice], dtype=np.uint64)
        self._uniforms = np.random.Generator(np.random.Philox(key=key)).random(max_sampled)
        self.uniform = 0.0
        """Random number of the next token."""
        self.biases: list[tuple[int, float]] = []
        """What is added to the logits of the next token."""
        self.num_sampled = 0
        self.cached = 0
        self.visible_ids: list[int] = []
        self.history = History(request, self.prompt_ids) if request.is_penalized else None
        self.stop_ids = frozenset(request.stop_token_ids) | (frozenset() if request.ignore_eos else strings.end_ids)
        """Tokens that end the text."""
        self.records: list[LogprobRecord] = []
        self.prompt_records: list[LogprobRecord] = []
        self._stream = TextStream(strings, self.prompt_ids[-4:])
        self._text = self.prompt_text if request.echo else ""
        self._num_read = 0
        self._searched = 0
        self._num_held = max(map(len, request.stop), default=1) - 1
        self._sent = 0
        self._described: list[TokenLogprob] = []
        self._record_stream = TextStream(strings, self.prompt_ids[-4:])

    def _read_prompt(self, context: int) -> tuple[list[int], list[int], str]:
        prompt, strings = self.request.prompt, self.strings
        if isinstance(prompt, str):
            # Encoding 15 MB takes a minute, so don't, if the result can't fit.
            if len(prompt) > context * strings.longest_token:
                raise RequestError(
                    f"the model's context is {context} tokens, but the prompt has {len(prompt):,} characters, and a "
                    f"token has at most {strings.longest_token}; shorten the prompt",
                    "prompt",
                )
            ids, offsets = strings.encode(prompt)
            # The tokenizer may have tokens beyond the model's embedding.
            self._refuse_unknown(ids, prompt)
            if self.wants_prompt_logprobs and len(ids) <= context and strings.decode(ids) == prompt:
                offsets = strings.places(ids)
            return ids, offsets, prompt
        ids = list(prompt)
        self._refuse_unknown(ids, prompt)
        if not self.request.echo or len(ids) > context:
            return ids, [0] * len(ids), ""
        return ids, strings.places(ids), strings.decode(ids)

    def _refuse_unknown(self, ids: Sequence[int], prompt: str | tuple[int, ...]) -> None:
        unknown = [id_ for id_ in ids if id_ not in self.strings.valid_ids]
        if unknown:
            is_text = isinstance(prompt, str)
            how = f"encodes {self.strings.text_of(unknown[0])!r} as" if is_text else "contains"
            raise RequestError(f"the prompt {how} the token id {unknown[0]}, which the model does not have", "prompt")

    def _refuse_unusable(self, context: int) -> None:
        request, num_prompt = self.request, len(self.prompt_ids)
        if num_prompt == 0:
            raise RequestError("the prompt is an empty list; give at least one token id, or the text ''", "prompt")
        if num_prompt + request.max_tokens > context:
            raise RequestError(
                f"the model's context is {context} tokens, but the prompt has {num_prompt} and max_tokens is "
                f"{request.max_tokens}; shorten the prompt or lower max_tokens",
                "prompt" if num_prompt >= context else "max_tokens",
            )
        for name, ids in (("logit_bias", request.logit_bias), ("stop_token_ids", request.stop_token_ids)):
            wrong = [id_ for id_ in ids if id_ not in self.strings.valid_ids]
            if wrong:
                raise RequestError(f"{name} names the token id {wrong[0]}, which the model does not have", name)
        hidden = set(request.stop_token_ids) & set(self.strings.control_ids.values())
        if hidden:
            raise RequestError(
                f"stop_token_ids names the control token {min(hidden)}, which is never in a text; leave it out",
                "stop_token_ids",
            )

    def _set_control(self, context: int) -> None:
        """Insert the control token that the request asks for, and decide what happens to sampled ones."""
        request, strings = self.request, self.strings
        has_control = bool(strings.control_ids)
        control = request.control or ("good" if has_control and not request.echo else "none")
        if control != "none" and not has_control:
            raise RequestError("the model has no control tokens; leave `control` out or use none", "control")
        if request.policy == "retag" and not has_control:
            raise RequestError(
                "the model has no control tokens, so there is nothing to retag; leave `control_policy` out",
                "control_policy",
            )
        # A sampled control token is replaced by the requested one. If the good one always replaced it, `control: bad`
        # would turn good after the first segment.
        self._retag_id = strings.control_ids.get(control, strings.control_ids.get("good"))
        policy = request.policy or (strings.control.policy if strings.control is not None else "ban")
        self.retags = policy == "retag"
        if control == "none":
            return
        self.inserted_at = 1 if self.model_ids[0] == strings.eos_id else 0
        self.model_ids.insert(self.inserted_at, strings.control_ids[control])
        if len(self.model_ids) > context:
            raise RequestError(
                f"the model's context is {context} tokens, but the prompt has {len(self.prompt_ids)} and the control "
                "token is one more; shorten the prompt, or set control to none",
                "prompt",
            )

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def wants_prompt_logprobs(self) -> bool:
        return self.request.echo and self.request.logprobs is not None

    def fail(self, error: Exception) -> None:
        """End the request. Clients must not see the inside of the server, so the error itself goes to the log only."""
        log.error("a request failed", exc_info=error)
        self.cause = error
        self.error = "the model failed on this request; the log has the reason"

    def attempt(self, work: Callable[..., None], *arguments: Any) -> None:
        """Call `work`. If it raises, this request ends with an error, and the others of its batch go on."""
        try:
            work(*arguments)
        except Exception as error:  # noqa: BLE001 - a tokenizer may fail in any way
            self.fail(error)

    def prepare_draw(self) -> None:
        """Set `uniform` and `biases` for the next token."""
        self.uniform = float(self._uniforms[self.num_sampled])
        self.biases = [*self.request.logit_bias.items(), *((id_, -math.inf) for id_ in self._banned_ids())]

    def _banned_ids(self) -> list[int]:
        """Tokens that must not be sampled next."""
        banned: list[int] = []
        # Two control tokens in a row would mean an empty segment, and a model could emit them forever.
        if not self.retags or self.model_ids[-1] in self.strings.control_ids.values():
            banned.extend(self.strings.control_ids.values())
        if len(self.visible_ids) < self.request.min_tokens:
            banned.extend(self.strings.end_ids | self.stop_ids)
        return banned

    def accept(self, token_id: int, record: LogprobRecord | None) -> None:
        """Accept the sampled token. `record`: None if the request wants no log-probabilities."""
        self.num_sampled += 1
        if token_id in self.strings.control_ids.values():
            assert self._retag_id is not None
            self.model_ids.append(self._retag_id)
        else:
            self.model_ids.append(token_id)
            self.visible_ids.append(token_id)
            if self.history is not None:
                self.history.add(token_id)
            if record is not None:
                self.records.append(record)
            self._finish_if_due(token_id)
        if not self.is_finished and self.num_sampled >= self._room:
            self.finish("length")

    def _finish_if_due(self, token_id: int) -> None:
        request = self.request
        if token_id in self.stop_ids:
            self.finish("stop")
            return
        # Decoding costs as much as a layer of a small model: decode token by token only if a stop string may match.
        if request.stop:
            self._read_tokens()
            if self._stops():
                return
        if len(self.visible_ids) >= request.max_tokens:
            self.finish("length")

    def _read_tokens(self) -> None:
        self._text += self._stream.push(*self.visible_ids[self._num_read :])
        self._num_read = len(self.visible_ids)

    def _stops(self) -> bool:
        """Cut the text at the first stop string; return whether there was one."""
        # Skip the prompt and the text searched before, but go back far enough for a stop string that spans the border.
        begin = max(len(self.prompt_text) if self.request.echo else 0, self._searched - self._num_held)
        self._searched = len(self._text)
        if len(self.visible_ids) < self.request.min_tokens:
            return False
        # Nothing follows a stop string, so characters that the next token could change are final here.
        text = self._text + self._stream.held.rstrip("\ufffd")
        found = [at for stop in self.request.stop if (at := text.find(stop, begin)) >= 0]
        if not found:
            return False
        self._text = text[: min(found)]
        self.finish_reason = "stop"
        return True

    def finish(self, reason: FinishReason) -> None:
        if reason == "stop":
            # The token that ends the text is not part of the text, however the tokenizer spells it.
            self._text += self._stream.push(*self.visible_ids[self._num_read : -1])
            self._num_read = len(self.visible_ids)
        self._read_tokens()
        self._text += self._stream.flush()
        self.finish_reason = reason
        if self.request.stop:
            self._stops()

    def take_text(self) -> str:
        """Return the new characters that are final; hold back a possible beginning of a stop string."""
        if not self.is_finished:
            self._read_tokens()
        end = len(self._text) if self.is_finished else max(self._sent, len(self._text) - self._num_held)
        new, self._sent = self._text[self._sent : end], end
        return new

    def logprobs(self) -> list[TokenLogprob]:
        """Return the log-probabilities of all tokens so far; those of an echoed prompt come first."""
        if self.request.echo and not self._described:
            first = self.strings.text_of(self.prompt_ids[0])
            self._described.append(TokenLogprob(first, None, None, self.prompt_offsets[0]))
            self._described.extend(map(self._describe, self.prompt_records, self.prompt_offsets[1:]))
        num_prompt, num_prompt_chars = (len(self.prompt_ids), len(self.prompt_text)) if self.request.echo else (0, 0)
        for record in self.records[len(self._described) - num_prompt :]:
            offset = num_prompt_chars + self._record_stream.place(record[0])
            self._described.append(self._describe(record, offset))
        return self._described

    def _describe(self, record: LogprobRecord, offset: int) -> TokenLogprob:
        token_id, logprob, best = record
        own = self.strings.text_of(token_id)
        top: dict[str, float] = {}
        for id_, value in (*best, (token_id, logprob)):
            key = self.strings.text_of(id_)
            # Several ids can have the same text (parts of a character). The token itself keeps it, else the most
            # probable one; the others go by vLLM's name for a token without a text.
            if id_ != token_id and (key == own or key in top):
                key = f"token_id:{id_}"
            top[key] = value
        return TokenLogprob(own, logprob, top, offset)

    def completion(self) -> Completion:
        """Return the finished completion; raise DataError if the request failed."""
        if self.error is not None:
            raise DataError(self.error)
        assert self.finish_reason is not None
        return Completion(
            text=self._text,
            finish_reason=self.finish_reason,
            token_ids=tuple(self.visible_ids),
            num_prompt_tokens=len(self.prompt_ids),
            logprobs=tuple(self.logprobs()) if self.request.logprobs is not None else None,
        )

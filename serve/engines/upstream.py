"""Engine (b): a model that another OpenAI-compatible server runs. This engine adds control tokens, limits and keys.

This engine encodes prompts with the tokenizer and phf.json of `path`, and sends token ids. So the model sees what this
project's own engine would show it, whatever the other server puts before a text. A chat becomes such tokens here, too,
by the template of `path` or of the configuration; without one it is passed on (`upstream_chats.py`).

The policy, and its price:

- Every prompt is a separate request, so that prompts of one call draw different texts from one seed (vLLM gives equal
  prompts equal texts). The first prompt keeps the call's seed.
- A bias of -100 bans sampled control tokens. Replacing them (`retag`) would need control over the other server's
  sampling, so a request for it is refused.
- An inserted control token takes one position of the other server's context.
- This engine passes on the other server's texts and log-probabilities, without those of an inserted token.
"""

import logging
import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from phf_ray.checkpoint import CheckpointInfo, Control
from phf_ray.errors import ConfigError
from phf_ray.generation.active import ActiveRequest
from phf_ray.generation.conversations import conversations_of
from phf_ray.generation.load import load_strings
from phf_ray.generation.requests import GenerationRequest, RequestError
from phf_ray.generation.tokens import TokenStrings
from serve.backends import Asked, Completed
from serve.chat_schemas import ChatCompletionRequest
from serve.engines.gathering import all_of, merged_streams
from serve.engines.local import generation_requests, usage_of
from serve.engines.tokenizing import Tokenizing, off_the_loop
from serve.engines.upstream_chats import UpstreamChatAnswer, chat_usage, choice_of, completed_of, passed_on
from serve.engines.upstream_messages import (
    TranslatedErrors,
    UpstreamAnswer,
    UpstreamChoice,
    UpstreamLogprobs,
    UpstreamUsage,
    events_of,
    generated_logprobs,
    known_finish_reason,
    parsed_answer,
    refuse_status,
    unusable,
)
from serve.errors import ApiError
from serve.schemas import Choice, CompletionRequest, Logprobs, Usage
from serve.settings import SamplingDefaults, ServedModel, Upstream

log = logging.getLogger("ray.serve.phf")


CONNECT_S = 10.0
MAX_CONNECTIONS = 256
"""Connections per replica; further requests wait here."""
BAN = -100.0


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One prompt of a call, as the model sees it and as the client sees it."""

    number: int
    active: ActiveRequest
    body: Mapping[str, Any]

    @property
    def echoed(self) -> str:
        return self.active.prompt_text if self.active.request.echo else ""


class UpstreamModel(Tokenizing):
    def __init__(
        self,
        strings: TokenStrings,
        info: CheckpointInfo | None,
        *,
        context: int,
        served: ServedModel,
    ):
        super().__init__(
            strings,
            info,
            context=context,
            conversations=conversations_of(strings, info, chosen=served.chat_template, phrases=served.chat_phrases),
        )
        assert served.upstream is not None
        self._upstream: Upstream = served.upstream
        self._model = served.upstream.model or served.name
        self._defaults: SamplingDefaults = served.defaults
        self._max_unfinished = served.max_batch + served.max_waiting
        self.num_unfinished = 0
        self._http = httpx.AsyncClient(
            base_url=served.upstream.url.rstrip("/"),
            headers=_authorization(served.upstream),
            timeout=httpx.Timeout(served.upstream.timeout_s, connect=CONNECT_S, pool=None),
            # Only connecting is retried: a request that was sent is never sent twice.
            transport=httpx.AsyncHTTPTransport(
                retries=1,
                limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=64),
                # Load certificates only if there is one to check.
                verify=served.upstream.url.startswith("https://"),
            ),
        )

    @classmethod
    def load(cls, served: ServedModel) -> "UpstreamModel":
        """Load the tokenizer. Raises ConfigError or DataError if the directory has none, or if the key is not set."""
        strings, info, context = load_strings(served.directory, control=served.control)
        if strings.control is not None and strings.control.policy == "retag":
            log.warning("model %s: an upstream server can't retag; sampled control tokens are banned", served.name)
        return cls(strings, info, context=context, served=served)

    @property
    def num_steps(self) -> tuple[int, int]:
        """Zero: the other server runs the steps."""
        return 0, 0

    def check_health(self) -> None:
        """Stay healthy even if the upstream server is down: requests then get 503 with the reason."""

    @property
    def control(self) -> Control | None:
        found = self.strings.control
        return None if found is None else found.model_copy(update={"policy": "ban"})

    async def complete(self, request: Asked) -> Completed:
        if isinstance(request, ChatCompletionRequest) and self._passes_chats_on:
            with self._counted(request.n):
                return await self._chat(request)
        request = await self.as_completion(request)
        prompts = await self._prepared(request)
        with self._counted(len(prompts) * request.n):
            answers = await all_of([self._ask(prompt) for prompt in prompts])
        choices = [
            self._choice(prompt, choice, request)
            for prompt, answer in zip(prompts, answers, strict=True)
            for choice in sorted(answer.choices, key=lambda choice: choice.index)
        ]
        return Completed(choices, self._usage(prompts, [answer.usage for answer in answers]))

    async def stream(self, request: Asked) -> AsyncIterator[Completed]:
        if isinstance(request, ChatCompletionRequest) and self._passes_chats_on:
            with self._counted(request.n):
                async for completed in self._chat_pieces(request):
                    yield completed
            return
        request = await self.as_completion(request)
        prompts = await self._prepared(request)
        if any(prompt.active.wants_prompt_logprobs for prompt in prompts):
            # Servers cut prompt log-probabilities into different pieces, and nobody reads them as they come.
            yield await self.complete(request)
            return
        with self._counted(len(prompts) * request.n):
            usages: list[UpstreamUsage | None] = []
            merged = merged_streams([self._pieces(prompt, request) for prompt in prompts])
            try:
                async for piece in merged:
                    if isinstance(piece, Choice):
                        yield Completed([piece], self._usage(prompts, usages, is_partial=True))
                    else:
                        usages.append(piece)
            finally:
                await merged.aclose()  # type: ignore[attr-defined]
            yield Completed([], self._usage(prompts, usages))

    @property
    def _passes_chats_on(self) -> bool:
        """Whether the other server puts chats into words. It would know nothing of this project's control tokens."""
        return self._conversations is None and not self.strings.control_ids

    def _chat_body(self, chat: ChatCompletionRequest) -> dict[str, Any]:
        assert chat.seed is not None, "the caller draws the seed"
        if chat.control in ("good", "bad"):
            raise ApiError(400, "the model has no control tokens; leave `control` out or use none", "control")
        self._refuse_what_it_lacks(chat)
        return passed_on(chat, model=self._model, seed=seed_of(chat.seed, 0), defaults=self._defaults)

    async def _chat(self, chat: ChatCompletionRequest) -> Completed:
        body = self._chat_body(chat)
        with TranslatedErrors(self._upstream):
            response = await self._http.post("/chat/completions", json=body)
            refuse_status(response.status_code, response.content)
            return completed_of(parsed_answer(response.content, UpstreamChatAnswer), chat)

    async def _chat_pieces(self, chat: ChatCompletionRequest) -> AsyncIterator[Completed]:
        body = {**self._chat_body(chat), "stream": True, "stream_options": {"include_usage": True}}
        unfinished = set(range(chat.n))
        usage = usage_of(0, 0)
        with TranslatedErrors(self._upstream):
            async with self._http.stream("POST", "/chat/completions", json=body) as response:
                if response.status_code != 200:
                    refuse_status(response.status_code, await response.aread())
                async for event in events_of(response, UpstreamChatAnswer):
                    usage = usage if event.usage is None else chat_usage(event)
                    for choice in event.choices:
                        if choice.index not in unfinished:
                            raise unusable(f"a piece of choice {choice.index}, which is finished or unknown")
                        if choice.finish_reason is not None:
                            unfinished.discard(choice.index)
                        yield Completed([choice_of(choice, with_ids=False)], usage)
        if unfinished:
            raise ApiError(503, "the server behind this model broke the stream off; try again")
        yield Completed([], usage)

    def _refuse_what_it_lacks(self, request: Asked) -> None:
        if request.control_policy == "retag":
            raise ApiError(
                400, f"model {request.model!r} runs on another server, which can't retag; use ban", "control_policy"
            )
        if request.stream_options is not None and request.stream_options.continuous_usage_stats:
            raise ApiError(
                400,
                f"model {request.model!r} runs on another server, whose usage comes at the end; leave "
                "continuous_usage_stats out",
                "stream_options.continuous_usage_stats",
            )

    async def _prepared(self, request: CompletionRequest) -> list[_Prompt]:
        assert request.seed is not None, "the caller draws the seed"
        self._refuse_what_it_lacks(request)
        try:
            # One request per prompt: its choices differ only in their number.
            asked = generation_requests(request, self._defaults)[:: request.n]
            return await off_the_loop(
                lambda: [self._prompt(number, one, request) for number, one in enumerate(asked)],
                num_characters=sum(map(len, request.prompts)),
            )
        except RequestError as error:
            raise ApiError(400, str(error), error.param) from None

    def _prompt(self, number: int, one: GenerationRequest, request: CompletionRequest) -> _Prompt:
        active = ActiveRequest(one, self.strings, context=self.context)
        if len(active.model_ids) + one.max_tokens > self.context:
            raise RequestError(
                f"the model's context is {self.context} tokens, but the prompt has {len(active.prompt_ids)}, the "
                f"control token is one more and max_tokens is {one.max_tokens}; shorten the prompt or lower max_tokens",
                "max_tokens",
            )
        bias = {str(id_): value for id_, value in one.logit_bias.items()}
        bias |= {str(id_): BAN for id_ in self.strings.control_ids.values()}
        # A plain OpenAI server may not know these fields, so they are sent only if they are set.
        wanted = {
            "top_k": one.top_k,
            "min_tokens": one.min_tokens,
            "ignore_eos": one.ignore_eos,
            "logit_bias": bias,
            "stop": list(one.stop),
            "stop_token_ids": list(one.stop_token_ids),
            "presence_penalty": one.presence_penalty,
            "frequency_penalty": one.frequency_penalty,
            "echo": active.wants_prompt_logprobs or one.max_tokens == 0,
            "return_token_ids": request.return_token_ids,
        }
        body = {
            "model": self._model,
            "prompt": active.model_ids,
            "max_tokens": one.max_tokens,
            "temperature": one.temperature,
            "top_p": one.top_p,
            "n": request.n,
            "seed": seed_of(one.seed, number),
            **({} if one.repetition_penalty == 1 else {"repetition_penalty": one.repetition_penalty}),
            **({} if one.logprobs is None else {"logprobs": one.logprobs}),
            **{name: value for name, value in wanted.items() if value},
        }
        return _Prompt(number, active, body)

    @contextmanager
    def _counted(self, num_sequences: int) -> Iterator[None]:
        if self.num_unfinished and self.num_unfinished + num_sequences > self._max_unfinished:
            raise ApiError(429, f"{self.num_unfinished} sequences are in the model's queue; try again later")
        self.num_unfinished += num_sequences
        try:
            yield
        finally:
            self.num_unfinished -= num_sequences

    def _usage(
        self, prompts: Sequence[_Prompt], found: Sequence[UpstreamUsage | None], *, is_partial: bool = False
    ) -> Usage:
        """Count prompt tokens as the client sees them, and generated tokens as the upstream server reports them."""
        counts = [usage.completion_tokens for usage in found if usage is not None]
        if len(counts) < len(prompts) and not is_partial:
            raise unusable("no usage")
        return usage_of(sum(len(prompt.active.prompt_ids) for prompt in prompts), sum(counts))

    async def _ask(self, prompt: _Prompt) -> UpstreamAnswer:
        with TranslatedErrors(self._upstream):
            response = await self._http.post("/completions", json=dict(prompt.body))
            refuse_status(response.status_code, response.content)
            answer = parsed_answer(response.content, UpstreamAnswer)
        num_choices = prompt.body["n"]
        if sorted(choice.index for choice in answer.choices) != list(range(num_choices)):
            raise unusable(f"{len(answer.choices)} choices instead of {num_choices}")
        return answer

    async def _pieces(
        self, prompt: _Prompt, request: CompletionRequest
    ) -> AsyncIterator[Choice | UpstreamUsage | None]:
        """Yield the pieces of one prompt, then its usage."""
        body = {**prompt.body, "stream": True, "stream_options": {"include_usage": True}}
        usage: UpstreamUsage | None = None
        unfinished, unseen = set(range(request.n)), set(range(request.n))
        first_offsets: dict[int, int] = {}
        with TranslatedErrors(self._upstream):
            async with self._http.stream("POST", "/completions", json=body) as response:
                if response.status_code != 200:
                    refuse_status(response.status_code, await response.aread())
                async for event in events_of(response, UpstreamAnswer):
                    usage = event.usage or usage
                    for choice in event.choices:
                        if choice.index not in unfinished:
                            raise unusable(f"a piece of choice {choice.index}, which is finished or unknown")
                        is_first = choice.index in unseen
                        unseen.discard(choice.index)
                        if choice.finish_reason is not None:
                            unfinished.discard(choice.index)
                        yield self._piece(prompt, choice, request, is_first=is_first, first_offsets=first_offsets)
        if unfinished:
            raise ApiError(503, "the server behind this model broke the stream off; try again")
        yield usage

    def _piece(
        self,
        prompt: _Prompt,
        choice: UpstreamChoice,
        request: CompletionRequest,
        *,
        is_first: bool,
        first_offsets: dict[int, int],
    ) -> Choice:
        found = choice.logprobs
        if found is not None and found.text_offset:
            first_offsets.setdefault(choice.index, found.text_offset[0])
        return Choice.model_construct(
            text=(prompt.echoed if is_first else "") + choice.text,
            index=prompt.number * request.n + choice.index,
            finish_reason=known_finish_reason(choice.finish_reason),
            logprobs=None
            if found is None
            else generated_logprobs(
                found, first_offset=first_offsets.get(choice.index, 0), num_before=len(prompt.echoed)
            ),
        )

    def _choice(self, prompt: _Prompt, choice: UpstreamChoice, request: CompletionRequest) -> Choice:
        if choice.finish_reason is None:
            raise unusable("a choice without a finish_reason")
        text = self._without_echo(choice.text, prompt.active) if prompt.body.get("echo") else choice.text
        return Choice.model_construct(
            text=prompt.echoed + text,
            index=prompt.number * request.n + choice.index,
            finish_reason=known_finish_reason(choice.finish_reason),
            logprobs=None if choice.logprobs is None else self._logprobs(prompt, choice.logprobs),
            token_ids=choice.token_ids if request.return_token_ids else None,
        )

    def _without_echo(self, text: str, active: ActiveRequest) -> str:
        """Remove the echoed prompt. Servers echo ids with special tokens, without them, or not at all."""
        ids = active.model_ids
        shown = self.strings.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        echoes = sorted((shown, self.strings.decode(ids)), key=len, reverse=True)
        return next((text.removeprefix(echo) for echo in echoes if text.startswith(echo)), text)

    def _logprobs(self, prompt: _Prompt, found: UpstreamLogprobs) -> Logprobs:
        active = prompt.active
        if not active.wants_prompt_logprobs:
            return generated_logprobs(
                found, first_offset=next(iter(found.text_offset), 0), num_before=len(prompt.echoed)
            )
        num_seen = len(active.model_ids)
        if len(found.tokens) < num_seen:
            raise unusable(f"log-probabilities of {len(found.tokens)} tokens for a prompt of {num_seen}")
        tail = found.since(num_seen)
        rest = generated_logprobs(tail, first_offset=next(iter(tail.text_offset), 0), num_before=len(prompt.echoed))
        kept = [i for i in range(num_seen) if i != active.inserted_at]
        tops = found.top_logprobs or [None] * num_seen
        return Logprobs.model_construct(
            tokens=[self.strings.text_of(id_) for id_ in active.prompt_ids] + rest.tokens,
            # No token that the client knows of precedes the first, so nothing predicts it.
            token_logprobs=[None, *(found.token_logprobs[i] for i in kept[1:]), *rest.token_logprobs],
            top_logprobs=[None, *(tops[i] for i in kept[1:]), *rest.top_logprobs],
            text_offset=[*active.prompt_offsets, *rest.text_offset],
        )


def seed_of(seed: int, number: int) -> int:
    """Return the seed of one prompt in a call, within the signed 64 bits that vLLM accepts."""
    if number == 0 and seed < 2**63:
        return seed
    return int(np.random.SeedSequence([seed % 2**64, number]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _authorization(upstream: Upstream) -> dict[str, str]:
    if upstream.key_env is None:
        return {}
    key = os.environ.get(upstream.key_env, "").strip()
    if not key:
        raise ConfigError(f"the environment variable {upstream.key_env} holds no key for {upstream.url}; set it")
    return {"Authorization": f"Bearer {key}"}

"""Models in this process: replicas run them, and tests call them without Ray."""

from collections.abc import AsyncIterator, Sequence

from phf_ray.checkpoint import fingerprint
from phf_ray.errors import DataError
from phf_ray.generation.bodies import requests_from_body
from phf_ray.generation.conversations import Conversations, conversations_of
from phf_ray.generation.engine import Engine
from phf_ray.generation.load import load_engine
from phf_ray.generation.requests import Completion, EngineSettings, GenerationRequest, RequestError, TokenLogprob
from serve.backends import Asked, Completed
from serve.engines.thread import EngineThread, StreamedPiece
from serve.engines.tokenizing import Tokenizing
from serve.errors import ApiError
from serve.schemas import MAX_BATCH, Choice, CompletionRequest, Logprobs, Usage
from serve.settings import SamplingDefaults, ServedModel

# One failure may be a request's fault; this many without a success between them are the model's or its device's.
MAX_FAILED_STEPS = 3


class LocalModel(Tokenizing):
    def __init__(
        self,
        engine: Engine,
        *,
        defaults: SamplingDefaults | None = None,
        max_waiting: int = 1024,
        fingerprint: str | None = None,
        conversations: Conversations | None = None,
    ):
        super().__init__(
            engine.strings,
            engine.info,
            context=engine.context,
            fingerprint=fingerprint,
            conversations=conversations,
        )
        self._defaults = defaults or SamplingDefaults()
        self.thread = EngineThread(engine, max_waiting=max_waiting)

    @classmethod
    def load(cls, model: ServedModel) -> "LocalModel":
        settings = EngineSettings(
            device="cuda" if model.num_gpus > 0 else "cpu",
            dtype=model.dtype,
            max_batch=model.max_batch,
            cache_gb=model.cache_gb,
        )
        directory = model.directory
        engine = load_engine(directory, control=model.control, settings=settings)
        return cls(
            engine,
            defaults=model.defaults,
            max_waiting=model.max_waiting,
            fingerprint=fingerprint(directory),
            conversations=conversations_of(
                engine.strings, engine.info, chosen=model.chat_template, phrases=model.chat_phrases
            ),
        )

    async def complete(self, request: Asked) -> Completed:
        request = await self.as_completion(request)
        requests = self._checked(request)
        try:
            completions = await self.thread.complete(requests)
        except RequestError as error:
            raise ApiError(400, str(error), error.param) from None
        except DataError as error:
            raise ApiError(500, str(error)) from None
        choices = [
            _choice(index, completion, with_ids=request.return_token_ids)
            for index, completion in enumerate(completions)
        ]
        # A prompt counts once, however many choices share it.
        num_prompt = sum(completion.num_prompt_tokens for completion in completions[:: request.n])
        return Completed(choices, usage_of(num_prompt, sum(c.num_completion_tokens for c in completions)))

    async def stream(self, request: Asked) -> AsyncIterator[Completed]:
        request = await self.as_completion(request)
        num_prompt: dict[int, int] = {}
        num_completion: dict[int, int] = {}
        try:
            async for pieces in self.thread.stream(self._checked(request)):
                for piece in pieces:
                    if piece.index % request.n == 0:
                        num_prompt[piece.index] = piece.num_prompt_tokens
                    num_completion[piece.index] = piece.num_completion_tokens
                usage = usage_of(sum(num_prompt.values()), sum(num_completion.values()))
                yield Completed([_streamed_choice(piece, request) for piece in pieces], usage)
        except RequestError as error:
            raise ApiError(400, str(error), error.param) from None
        except DataError as error:
            raise ApiError(500, str(error)) from None

    def _checked(self, request: CompletionRequest) -> list[GenerationRequest]:
        assert request.seed is not None, "the caller draws the seed"
        try:
            return generation_requests(request, self._defaults)
        except RequestError as error:
            raise ApiError(400, str(error), error.param) from None

    @property
    def num_unfinished(self) -> int:
        """Sequences in the batch or waiting for it."""
        return self.thread.num_unfinished

    @property
    def num_steps(self) -> tuple[int, int]:
        """Number of forward passes, and of sequences advanced, summed over the passes."""
        return self.thread.num_steps, self.thread.num_advanced

    def check_health(self) -> None:
        if not self.thread.is_alive:
            raise RuntimeError("the engine's thread has ended")
        if self.thread.num_failed_in_a_row >= MAX_FAILED_STEPS:
            raise RuntimeError(f"the model failed {self.thread.num_failed_in_a_row} times in a row")


def generation_requests(request: CompletionRequest, defaults: SamplingDefaults) -> list[GenerationRequest]:
    """Return one request per choice, prompt by prompt. Raises RequestError, or ApiError if unsupported."""
    _refuse_unsupported(request)
    return requests_from_body(vars(request), defaults=vars(defaults))


def _refuse_unsupported(request: CompletionRequest) -> None:
    if request.best_of is not None and request.best_of > request.n:
        # HELM's client sends best_of=1 with any n, which leaves nothing to choose.
        raise ApiError(
            400,
            f"best_of={request.best_of} above n={request.n} is not supported; leave it out and choose among n yourself",
            "best_of",
        )
    if request.suffix:
        raise ApiError(400, "suffix is not supported; leave it out", "suffix")
    if not request.prompts:
        raise ApiError(400, "prompt is an empty list; give a text, token ids, or a list of either", "prompt")
    if len(request.prompts) * request.n > MAX_BATCH:
        raise ApiError(
            413, f"{len(request.prompts)} prompts x n={request.n} is above the limit of {MAX_BATCH} choices", "prompt"
        )


def _choice(index: int, completion: Completion, *, with_ids: bool) -> Choice:
    return Choice.model_construct(
        text=completion.text,
        index=index,
        finish_reason=completion.finish_reason,
        logprobs=None if completion.logprobs is None else _logprobs(completion.logprobs),
        token_ids=list(completion.token_ids) if with_ids else None,
    )


def _streamed_choice(piece: StreamedPiece, request: CompletionRequest) -> Choice:
    return Choice.model_construct(
        text=piece.text,
        index=piece.index,
        finish_reason=piece.finish_reason,
        logprobs=None if request.logprobs is None else _logprobs(piece.logprobs),
    )


def _logprobs(records: Sequence[TokenLogprob]) -> Logprobs:
    return Logprobs.model_construct(
        tokens=[record.token for record in records],
        token_logprobs=[record.logprob for record in records],
        top_logprobs=[record.top for record in records],
        text_offset=[record.text_offset for record in records],
    )


def usage_of(num_prompt: int, num_completion: int) -> Usage:
    return Usage(prompt_tokens=num_prompt, completion_tokens=num_completion, total_tokens=num_prompt + num_completion)

"""Requests, responses and errors over HTTP, in the shapes that clients of this ecosystem know.

Importing this module loads neither torch nor Ray. Text completions have OpenAI's fields, vLLM's additions, and this
project's `control` and `control_policy`. Any other field is refused: a misspelt `temprature` must not be silently
ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt

from phf_ray.characters import half_at
from phf_ray.checkpoint import CheckpointInfo
from phf_ray.generation.bodies import prompts_of
from serve.request_body import RequestBody

MAX_BATCH = 2048
"""Limit on the texts, prompts or choices of one request."""


class StrictRequest(RequestBody):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


def lone_surrogate_in(text: str) -> str | None:
    """Return what is wrong if the text holds half of a surrogate pair, else None."""
    half = half_at(text)
    if half is None:
        return None
    return (
        f"the text holds the lone surrogate \\u{ord(text[half]):04x} at character {half}, which is half of a "
        "character; remove it, or send both halves"
    )


def _encodable(text: str) -> str:
    reason = lone_surrogate_in(text)
    if reason is not None:
        raise ValueError(reason)
    return text


Text = Annotated[str, AfterValidator(_encodable)]
"""Text without lone surrogates: JSON can spell half of a surrogate pair, which no tokenizer accepts."""


class StreamOptions(StrictRequest):
    include_usage: bool = False
    include_obfuscation: bool = False
    """Accepted because OpenAI's client knows it; nothing is obfuscated here."""
    continuous_usage_stats: bool = False
    """With `include_usage`, put the usage so far into every piece, as vLLM does."""


TokenIds = list[StrictInt]
Seed = Annotated[StrictInt, Field(ge=-(2**63), lt=2**64)]


class SamplingRequest(StrictRequest):
    """What completions and chats have in common."""

    model: str
    min_tokens: Annotated[int, Field(ge=0)] = 0
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    """0 or -1: no limit."""
    n: Annotated[int, Field(ge=1, le=MAX_BATCH)] = 1
    seed: Seed | None = None
    stop: Text | list[Text] | None = None
    stop_token_ids: TokenIds | None = None
    """Tokens that end the text like end-of-text, also with `ignore_eos`."""
    logit_bias: dict[int, Annotated[float, Field(ge=-100, le=100)]] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    """Of tokens in the prompt and the output; 1: none."""
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = None
    control: Literal["good", "bad", "none"] | None = None
    control_policy: Literal["ban", "retag"] | None = None
    return_token_ids: bool = False
    """Return `token_ids` with each choice, as vLLM does; not in a stream."""


class CompletionRequest(SamplingRequest):
    """`POST /v1/completions`."""

    prompt: Text | list[Text] | TokenIds | list[TokenIds] = ""
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    """None: the model's default, 16 unless its configuration says otherwise."""
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool = False
    best_of: int | None = None
    """Refused if greater than n."""
    suffix: str | None = None
    """Refused unless empty."""

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        """One entry per prompt, whatever form the request uses."""
        return prompts_of(vars(self))


class Logprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class Choice(BaseModel):
    text: str
    index: int
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    """In a stream, None in every piece but the last."""
    token_ids: list[int] | None = None
    """Generated tokens, including end of text, if the request asked for them."""


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionResponse(BaseModel):
    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class ScoresRequest(StrictRequest):
    """`POST /v1/scores`."""

    scorer: str
    input: str | Annotated[list[str], Field(max_length=MAX_BATCH)]
    segments: bool = False
    """Also cut each text and score its segments in their context."""
    prompts: str | Annotated[list[str], Field(max_length=MAX_BATCH)] | None = None
    """What each text answers, for a scorer that reads prompts, such as a reward model. As long as `input`."""

    @property
    def texts(self) -> list[str]:
        return texts_of(self.input)


def texts_of(field: str | list[str]) -> list[str]:
    return [field] if isinstance(field, str) else field


class ScoredSegment(BaseModel):
    begin: int
    end: int
    """Characters [begin, end) of the text."""
    score: float | None
    error: str | None


class TextScore(BaseModel):
    index: int
    score: float | None
    """Higher is worse; None if the text could not be scored, see `error`."""
    error: str | None
    segments: list[ScoredSegment] | None = None


class ScorerIdentityBody(BaseModel):
    """Identity of the scorer: equal identities give equal scores."""

    name: str
    class_name: str
    unit: str
    versions: dict[str, str]
    weights_hash: str | None
    settings: dict[str, Any]


class ScoresResponse(BaseModel):
    scorer: ScorerIdentityBody
    data: list[TextScore]


class ChatCard(BaseModel):
    template: str
    """Name of the template that puts conversations into words."""
    reads_control: bool
    """Whether `control` chooses words of the template, such as a marker of good or bad answers. The `suffixes` are the
    same as those of control tokens."""
    fingerprint: str
    """Hash of the words of a sample conversation: another one says that the template, or its file, is another."""


class ScorerCard(BaseModel):
    id: str
    object: Literal["scorer"] = "scorer"


class ScorerList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ScorerCard]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "phf-ray"
    max_model_len: int | None = None
    """Positions in the model's context; the name is vLLM's."""
    control: dict[str, Any] | None = None
    """For a model with control tokens: `policy`, the `default`, and the `suffixes` of the model id that choose one."""
    task: str | None = None
    objective: str | None = None
    step: int | None = None
    fingerprint: str | None = None
    """Hash of the model's files when it was loaded; null if another server has its weights."""
    checkpoint: CheckpointInfo | None = None
    """The model's phf.json, with the control tokens that the server uses."""
    chat: ChatCard | None = None
    """Of a model that has a chat template."""


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class TokenizeResponse(BaseModel):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeRequest(StrictRequest):
    tokens: TokenIds
    model: str | None = None


class DetokenizeResponse(BaseModel):
    prompt: str


class DeploymentHealth(BaseModel):
    status: str
    message: str = ""
    replicas: dict[str, int] = {}
    """State -> number of replicas."""


class HealthResponse(BaseModel):
    status: Literal["ok", "not_ready"]
    deployments: dict[str, DeploymentHealth]


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    error: ErrorDetail

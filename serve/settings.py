"""What the server serves, and its limits: the `args` of a Serve configuration file, or settings from `jobs.serve`."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from phf_ray.checkpoint import MODEL_NAME, Control, ControlChoice, split_model_id
from phf_ray.config.hindsight import load_phrases
from phf_ray.errors import ConfigError
from phf_ray.generation.chat.templates import OWN, load_template
from phf_ray.runs.checkpoints import find_checkpoint
from phf_ray.scorers.build import scorer_class, scorer_name, scorer_settings
from serve.origins import checked_origin

CONTROL_CHOICES = get_args(ControlChoice)


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class Autoscaling(_Settings):
    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)]
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 16.0
    """Requests per replica that autoscaling aims for."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max={self.max} is below min={self.min}")
        return self


class _Deployed(_Settings):
    replicas: Annotated[int, Field(ge=1)] | Autoscaling = 1
    num_cpus: Annotated[float, Field(ge=0)] = 0.25
    """CPUs in Ray's accounting, and the number of torch threads (at least 1, and no more than the node has cores)."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    surge: bool | None = None
    """Whether applying a new configuration starts new replicas before it stops the old ones, which needs room for both.
    If false, requests wait while the new replica starts. None: true without a GPU, false with one."""

    @property
    def starts_before_old_stop(self) -> bool:
        return self.num_gpus == 0 if self.surge is None else self.surge


class SamplingDefaults(_Settings):
    """Values for the fields that a request leaves out."""

    max_tokens: Annotated[int, Field(ge=1)] = 16
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0


class Upstream(_Settings):
    """Another OpenAI-compatible server that runs the model: vLLM, Ray Serve LLM, or a server of this project."""

    url: Annotated[str, Field(pattern=r"^https?://[^/@]+(/[^?#]*)?$")]
    """Base URL in the form that OpenAI's clients use: `http://host:8000/v1`."""
    model: str | None = None
    """The model's id on the upstream server; None if it is the same as here. A server of this project inserts control
    tokens itself, so give its id as `NAME:none`."""
    key_env: str | None = None
    """Environment variable on this server that holds the upstream server's API key."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Longest wait for an answer, or for the next piece of a stream."""


class ServedModel(_Deployed):
    name: Annotated[str, Field(pattern=f"^{MODEL_NAME}$")]
    """The id that clients ask for: letters, digits, `_`, `.` and `-`, and between them `/`, `:`, `@` and `+`."""
    path: str
    """A Hugging Face causal LM directory, or a training run. For a run, the server uses the last checkpoint at the time
    the configuration is applied. All nodes must see the directory for as long as it is served, so mind
    `training.save_total_limit`. With `upstream`, the server reads only config.json, the tokenizer and phf.json."""
    upstream: Upstream | None = None
    """None if the model runs in this server."""
    control: Control | None = None
    """Control tokens of a checkpoint that has no phf.json."""
    chat_template: str | None = None
    """What puts conversations into words: `tokenizer` (its own template), alpaca, chatml, coh, hh, plain, or the
    absolute path of a .jinja or .json file. None: the template that the model was trained with, else the tokenizer's
    own."""
    chat_phrases: str | None = None
    """File of the markers of the template coh: a shipped one by its name, or the absolute path of a file as
    `prepare-feedback --phrases` takes it. None: those that the model was trained with, else the shipped ones."""
    defaults: SamplingDefaults = SamplingDefaults()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_batch: Annotated[int, Field(ge=1)] = 64
    """Sequences in one forward pass."""
    cache_gb: Annotated[float, Field(gt=0)] = 2.0
    """Memory for keys and values, per replica."""
    max_waiting: Annotated[int, Field(ge=1)] = 1024
    """Limit on sequences that wait for a place in the batch, per replica; beyond it, requests get 429."""

    @field_validator("name")
    @classmethod
    def _chooses_no_control(cls, value: str) -> str:
        _, control = split_model_id(value)
        if control is not None:
            raise ValueError(f"{value!r} ends in :{control}, by which requests choose a control token; rename it")
        return value

    @field_validator("chat_template")
    @classmethod
    def _is_a_template(cls, value: str | None) -> str | None:
        if value is not None and value != OWN:
            try:
                load_template(value)
            except (ConfigError, OSError, UnicodeDecodeError) as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("chat_phrases")
    @classmethod
    def _are_phrases(cls, value: str | None) -> str | None:
        try:
            if value is not None:
                load_phrases(value)
        except (ConfigError, OSError, UnicodeDecodeError) as error:
            raise ValueError(str(error)) from None
        return value

    @property
    def directory(self) -> Path:
        """The model's directory. Raises ConfigError if there is none."""
        return find_checkpoint(self.path, option=f"model {self.name!r}:")


class ServedScorer(_Deployed):
    scorer: dict[str, Any]
    """The scorer as a task file names it: `{class_name: PEP8Scorer, ...}`; name your own class `my_module:MyScorer`."""
    segmenter: Literal["sentences", "lines", "document"] | None = None
    """None: the default of the scorer's class, which is lines for PEP8 and sentences for every other scorer here."""
    max_waiting: Annotated[int, Field(ge=1)] = 64
    """Limit on requests that wait for the scorer, per replica; beyond it, requests get 429."""
    max_text_chars: Annotated[int, Field(ge=1)] = 65_536
    """A longer text gets the error `too_long` instead of a score: some scorers take time that grows with the square of
    the length, and other requests wait meanwhile."""
    text_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """If the scorer takes longer on a text, the text gets the error `timeout` and other requests go on."""

    @property
    def name(self) -> str:
        """The scorer's name in `/v1/scores`. Raises ConfigError as `scorer_name` does."""
        return scorer_name(self.scorer)

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that the scorer can judge, if it judges prose."""
        return scorer_class(self.scorer["class_name"]).languages(scorer_settings(self.scorer))

    @property
    def span_types(self) -> tuple[str, ...] | None:
        """Types of the spans that the scorer can find; None if it does not say."""
        return scorer_class(self.scorer["class_name"]).span_types(scorer_settings(self.scorer))

    @field_validator("scorer")
    @classmethod
    def _has_class(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "class_name" not in value:
            raise ValueError(f"scorer {value!r} has no class_name; write {{class_name: PEP8Scorer}}")
        return value


class Limits(_Settings):
    body_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**20
    request_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    concurrent_requests: Annotated[int, Field(ge=1)] = 1024
    """Limit on requests inside the ingress; beyond it, requests get 429."""
    concurrent_streams: Annotated[int, Field(ge=1)] = 256
    drain_s: Annotated[float, Field(gt=0)] = 60.0
    """Time for replicas to finish their requests when they are replaced, removed or shut down."""


class Keys(_Settings):
    """Where API keys come from.

    Without any key, the server answers only peers on the loopback interface, and no request that a proxy sent on.
    """

    file: str | None = None
    """File with one key per line."""
    env: str = "PHF_API_KEYS"
    """Environment variable with comma-separated keys, read by the server's process on its node."""
    required: bool = False
    """Refuse to start without a key."""


class ServeArgs(_Settings):
    models: tuple[ServedModel, ...] = ()
    scorers: tuple[ServedScorer, ...] = ()
    limits: Limits = Limits()
    keys: Keys = Keys()
    ingress_replicas: Annotated[int, Field(ge=1)] = 1
    allow_origins: tuple[Annotated[str, AfterValidator(checked_origin)], ...] = ()
    """Origins whose web pages may ask this server from a browser, such as `https://app.example.com`; `*`: all pages."""
    access_log: bool = True
    """Log one line of JSON per request: id, path, status, model, tokens, latency."""

    def first_of(self, measures: str, *, able: type) -> ServedScorer | None:
        """Return the first scorer that measures `measures` and has the protocol `able` (`FindsSpans`, say), or None."""
        for served in self.scorers:
            scorer = scorer_class(served.scorer["class_name"])
            if scorer.measures == measures and issubclass(scorer, able):
                return served
        return None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.models and not self.scorers:
            raise ValueError("nothing to serve; name at least one model or scorer")
        for kind, names in (
            ("models", [model.name for model in self.models]),
            ("scorers", [scorer.name for scorer in self.scorers]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"two {kind} are named {twice[0]!r}; names must differ")
        return self


def parse_args(values: Any) -> ServeArgs:
    """Check what to serve. Raises ConfigError with every problem found."""
    try:
        return ServeArgs.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, detail['loc'])) or 'args'}: {detail['msg']}" for detail in error.errors()]
        lines = "\n".join(f"  - {line}" for line in problems)
        raise ConfigError(f"serve settings: {len(problems)} problem(s)\n{lines}") from None

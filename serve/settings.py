"""What is served and within which limits: the `args` of a Serve configuration file, or made by `jobs.serve`."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from phf_ray.checkpoint import Control, ControlChoice
from phf_ray.errors import ConfigError
from phf_ray.runs.checkpoints import find_checkpoint
from phf_ray.scorers.build import scorer_class, scorer_name, scorer_settings

CONTROL_CHOICES = get_args(ControlChoice)


class _Settings(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True, protected_namespaces=()
    )


class Autoscaling(_Settings):
    min: Annotated[int, Field(ge=0)] = 1
    max: Annotated[int, Field(ge=1)]
    target_ongoing_requests: Annotated[float, Field(gt=0)] = 16.0
    """Requests per replica that autoscaling aims at."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max < self.min:
            raise ValueError(f"max={self.max} is below min={self.min}")
        return self


class _Deployed(_Settings):
    replicas: Annotated[int, Field(ge=1)] | Autoscaling = 1
    num_cpus: Annotated[float, Field(ge=0)] = 0.25
    """Ray's accounting; also the number of torch threads, at least 1."""
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    surge: bool | None = None
    """When the configuration is applied again: start new replicas before the old ones go, which takes room for both.
    None: unless it uses a GPU. Without, requests wait while the new replica starts."""

    @property
    def starts_before_old_stop(self) -> bool:
        return self.num_gpus == 0 if self.surge is None else self.surge


class SamplingDefaults(_Settings):
    """For requests that leave the field out."""

    max_tokens: Annotated[int, Field(ge=1)] = 16
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0


class Upstream(_Settings):
    """Another OpenAI-compatible server that runs the model: vLLM, Ray Serve LLM, or one of this project."""

    url: Annotated[str, Field(pattern=r"^https?://[^/@]+(/[^?#]*)?$")]
    """Base URL as OpenAI's clients take it: `http://host:8000/v1`."""
    model: str | None = None
    """The model's id there; None: as here. A server of this project puts control tokens in by itself, so its id is
    given as `NAME:none`."""
    key_env: str | None = None
    """Environment variable of this server that holds the upstream's API key."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Longest wait for an answer, or for the next piece of a stream."""


class ServedModel(_Deployed):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
    path: str
    """A Hugging Face causal LM directory, or a training run, of which the checkpoint is served that is the last when
    the configuration is applied; all nodes must see it, for as long as it is served (`training.save_total_limit`).
    With `upstream`, only its config.json, tokenizer and phf.json are read."""
    upstream: Upstream | None = None
    """None: the model runs in this server."""
    control: Control | None = None
    """For a checkpoint that has control tokens but no phf.json."""
    defaults: SamplingDefaults = SamplingDefaults()
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    max_batch: Annotated[int, Field(ge=1)] = 64
    """Sequences in one forward pass."""
    cache_gb: Annotated[float, Field(gt=0)] = 2.0
    """Memory for keys and values, per replica."""
    max_waiting: Annotated[int, Field(ge=1)] = 1024
    """Sequences that wait for a place in the batch, per replica; above it the answer is 429."""

    @property
    def directory(self) -> Path:
        """The model itself. Raises ConfigError if there is none."""
        return find_checkpoint(self.path, option=f"model {self.name!r}:")


class ServedScorer(_Deployed):
    scorer: dict[str, Any]
    """As in the configuration of a task: `{class_name: PEP8Scorer, ...}`, one of your own `my_module:MyScorer`."""
    segmenter: Literal["sentences", "lines", "document"] | None = None
    """None: what the scorer's class has by default, lines for PEP8, sentences for any other here."""
    max_waiting: Annotated[int, Field(ge=1)] = 64
    """Requests that wait for the scorer, per replica; above it the answer is 429."""
    max_text_chars: Annotated[int, Field(ge=1)] = 65_536
    """A longer text gets no score but the error `too_long`: the time of some scorers grows with the square of it, and
    others wait meanwhile."""

    @property
    def name(self) -> str:
        """What `/v1/scores` calls it. Raises ConfigError as `scorer_name` does."""
        return scorer_name(self.scorer)

    @property
    def languages(self) -> tuple[str, ...]:
        """Of the texts that the scorer can judge, where that is prose."""
        return scorer_class(self.scorer["class_name"]).languages(scorer_settings(self.scorer))

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
    """Requests inside the ingress; above it the answer is 429."""
    concurrent_streams: Annotated[int, Field(ge=1)] = 256
    drain_s: Annotated[float, Field(gt=0)] = 60.0
    """Time that replicas have for the requests they work on when they are replaced, removed or shut down."""


class Keys(_Settings):
    """Where API keys come from. Without any, only peers on the loopback interface are answered."""

    file: str | None = None
    """One key per line."""
    env: str = "PHF_API_KEYS"
    """Environment variable of the server's process on its node, with keys separated by commas."""
    required: bool = False
    """Do not start without any."""


class ServeArgs(_Settings):
    models: tuple[ServedModel, ...] = ()
    scorers: tuple[ServedScorer, ...] = ()
    limits: Limits = Limits()
    keys: Keys = Keys()
    ingress_replicas: Annotated[int, Field(ge=1)] = 1
    access_log: bool = True
    """One line of JSON per request: id, path, status, model, tokens, latency."""

    def first_of(self, measures: str, *, able: type) -> ServedScorer | None:
        """The first scorer that measures this and is `able`, a protocol such as `FindsSpans`."""
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
    """Raises ConfigError with every problem found."""
    try:
        return ServeArgs.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, detail['loc'])) or 'args'}: {detail['msg']}" for detail in error.errors()]
        lines = "\n".join(f"  - {line}" for line in problems)
        raise ConfigError(f"what to serve: {len(problems)} problem(s)\n{lines}") from None


def split_model_id(model_id: str) -> tuple[str, str | None]:
    """`NAME:good` -> (NAME, good); an id without such a suffix comes back whole, with None."""
    matched = re.fullmatch(rf"(.+):({'|'.join(CONTROL_CHOICES)})", model_id)
    return (matched[1], matched[2]) if matched else (model_id, None)

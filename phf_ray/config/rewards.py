"""What an answer is worth: a reward model, a scorer, a judge, a rule, a server, or a class of the user's own.

A reward is higher for better answers, whatever gives it: a scorer, whose scores are higher for worse texts, enters as
minus its score.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from phf_ray.config.base import Positive, Section
from phf_ray.errors import ConfigError

GET_REWARD, SCORES = "/get_reward", "/v1/scores"
"""What a reward server's URL may end in: OpenRLHF's remote reward model, and the scores of `phf serve`."""


class JudgedReward(Section):
    """Annotators compare each answer with a fixed one to the same prompt. The reward is the preference for ours, from
    0 (the reference is better) to 1; equal answers get 0.5 and are not judged."""

    pool: str | dict[str, Any]
    """Name or file of a pool of annotators, or what its file would hold."""
    reference: str
    """File of the fixed answers: rows with instruction, perhaps input, and output."""
    cache: str | None = None
    """Folder that keeps the answers of judges behind URLs; null: that of `phf annotate`."""
    seed: int = 0
    """Draws annotators, orders and noise."""


class RewardEndpoint(Section):
    """A server that is asked for rewards."""

    url: str
    """Ends in /get_reward (OpenRLHF's remote reward model; also if it ends in neither), or in /v1/scores (`phf serve`;
    the reward is minus the score)."""
    scorer: str | None = None
    """Of /v1/scores: name of the served scorer."""
    send_prompts: bool = False
    """Of /v1/scores: also send the prompt, for a scorer that reads it, such as a reward model."""
    key_env: str | None = None
    """Environment variable with the server's key; null: PHF_API_KEY."""
    batch_size: Positive = 32
    """Answers in one request."""
    max_in_flight: Positive = 4
    """Requests sent and not answered, of each process."""
    patience_s: Annotated[float, Field(gt=0)] = 120.0
    """How long a request is sent again while the server is busy, failing or away."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """How long an answer may take."""

    @property
    def asks_scores(self) -> bool:
        return self.url.rstrip("/").endswith(SCORES)

    @property
    def base_url(self) -> str:
        bare = self.url.rstrip("/")
        return bare.removesuffix(SCORES).removesuffix(GET_REWARD)

    @model_validator(mode="before")
    @classmethod
    def _is_mapping(cls, value: Any) -> Any:
        return {"url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url {self.url!r} is no URL; write http://host:port{GET_REWARD}, or ...{SCORES}")
        if self.asks_scores != (self.scorer is not None):
            told = (
                f"a URL that ends in {SCORES} needs `scorer`, the name of the served scorer"
                if self.asks_scores
                else f"`scorer` is for a URL that ends in {SCORES}"
            )
            raise ValueError(f"url {self.url}: {told}")
        return self


class RewardSpec(Section):
    """Exactly one of model, scorer, annotators, url, rule and class_name says what an answer is worth."""

    model: str | None = None
    """Folder or hub id of a reward model. It puts prompts into the words of its own training, where it knows them."""
    scorer: dict[str, Any] | None = None
    """`{class_name: PEP8Scorer}` and the like; the reward is minus the score."""
    annotators: JudgedReward | None = None
    url: RewardEndpoint | None = None
    rule: Literal["longer", "shorter"] | None = None
    """The number of characters of the answer, or minus that."""
    class_name: str | None = None
    """A rewarder of your own: `my_module:MyRewarder`."""
    settings: dict[str, Any] = {}
    """Arguments of the rewarder that class_name names. `config.json` of a run shows them: keys belong in environment
    variables."""
    name: str | None = None
    """Its name in files and reports: reward_<name>. null: after what it is."""
    weight: float = 1.0
    """The reward of an answer is the sum of weight times reward over all rewards."""
    use_prompt_for_scoring: bool = False
    """Of a scorer: score the prompt and the answer as one text."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        found = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(found) != 1:
            raise ValueError(f"names {', '.join(found) or 'no reward'}; name one of {', '.join(KINDS)}")
        if self.settings and self.class_name is None:
            raise ValueError("settings are those of a rewarder that class_name names; remove them")
        if self.use_prompt_for_scoring and self.scorer is None:
            raise ValueError("use_prompt_for_scoring is for a scorer; the others see the prompt anyway; remove it")
        if self.name is not None and not (self.name.isidentifier() and self.name not in ("gold", "error")):
            raise ValueError(f"name {self.name!r} can't be part of a column's name; use letters, digits and _")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def called(self) -> str:
        """The reward's name in files: `name`, or one after what it is."""
        if self.name is not None:
            return self.name
        if self.class_name is not None:
            return self.class_name.rpartition(":")[2]
        return self.rule or {"annotators": "judge"}.get(self.kind, self.kind)


KINDS = ("model", "scorer", "annotators", "url", "rule", "class_name")


def _as_list(value: Any) -> Any:
    if not isinstance(value, Mapping | RewardSpec | list | tuple):
        raise ValueError(f"{value!r:.60} names no reward; write for example {{model: FOLDER}}, or a list of these")
    return [value] if isinstance(value, Mapping | RewardSpec) else value


def _distinct(specs: tuple[RewardSpec, ...]) -> tuple[RewardSpec, ...]:
    if not specs:
        raise ValueError("there is no reward; write one, such as {model: FOLDER}")
    for name, count in Counter(spec.called for spec in specs).items():
        if count > 1:
            raise ValueError(f"{count} rewards are called {name!r}; give each a `name`")
    return specs


RewardSpecs = Annotated[tuple[RewardSpec, ...], BeforeValidator(_as_list), AfterValidator(_distinct)]
"""One reward, or a list of several with weights."""

NO_SCORERS: Mapping[str, str] = {}


def parse_rewards(text: str, *, option: str, scorers: Mapping[str, str] = NO_SCORERS) -> tuple[RewardSpec, ...]:
    """Parse what a user wrote for a reward: `longer`, `pep8`, a URL, the folder or hub id of a reward model, YAML such
    as `{model: FOLDER}` or a list of these, or a .yml file that holds one.

    `scorers`: short name -> class of the scorers that may be named alone, such as pep8.
    Raises ConfigError, beginning with `option`, with every problem found.
    """
    if text.endswith((".yml", ".yaml")):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{option} {text}: {error.strerror}; give a file, or write {{model: FOLDER}}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{option} {text} is no text in UTF-8; give a YAML file") from None
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{option} is not valid YAML ({error}); write for example {{model: FOLDER}}") from None
    return check_rewards(_named(value, scorers) if isinstance(value, str) else value, source=option)


def check_rewards(value: Any, *, source: str) -> tuple[RewardSpec, ...]:
    """Return the specs that a configuration holds: a mapping, or a list of them. Raises ConfigError."""
    try:
        return _ADAPTER.validate_python(value)
    except ValidationError as error:
        problems = sorted({_described(detail) for detail in error.errors()})
        raise ConfigError(f"{source}: {'; '.join(problems)}") from None


def _named(name: str, scorers: Mapping[str, str]) -> dict[str, Any]:
    if name in ("longer", "shorter"):
        return {"rule": name}
    if name in scorers:
        return {"scorer": {"class_name": scorers[name]}, "name": name}
    if name.startswith(("http://", "https://")):
        return {"url": name}
    return {"class_name": name} if ":" in name else {"model": name}


def _described(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = ", ".join(RewardSpec.model_fields)
        return f"{key}: unknown key; a reward has the keys {known}"
    message = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else detail["msg"]
    return f"{key}: {message}" if key else message


_ADAPTER: TypeAdapter[tuple[RewardSpec, ...]] = TypeAdapter(RewardSpecs)

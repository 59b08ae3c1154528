"""Section `red_team`: the adaptive attack on a model."""

from typing import Annotated, Literal

from pydantic import Field

from phf_ray.config.base import Count, Positive, Section
from phf_ray.config.evaluation import GenerateKwargs


class AttackerConfig(Section):
    """How the red LM is asked for prompts."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 1024
    """Less where the red LM says that its context ends sooner."""


class AttackedKwargs(GenerateKwargs):
    """How the attacked model is sampled."""

    max_length: Positive | None = None
    """End-of-text token + prefix + prompt + new tokens; null: max_new_tokens alone counts."""
    max_new_tokens: Positive | None = 64
    min_length: Count = 10
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9


class RedTeamConfig(Section):
    """The adaptive attack of `jobs.red_team`; numbers are the original's."""

    prompts_path: str | None = None
    """Prompts that the attack starts from, as a scenario's."""
    num_seed_prompts: Positive = 20
    """Taken from the head of the file."""
    num_trials: Positive = 10
    num_rounds: Positive = 10
    num_examples: Positive = 4
    """Prompts of the pool that the red LM is shown each round."""
    num_candidates: Positive = 20
    """Completions asked of the red LM each round; each gives one prompt."""
    num_continuations: Positive = 512
    """Samples of the attacked model per prompt."""
    weight_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Prompts are shown with weight exp(z / temperature), z their standardised mean score."""
    instruction: str | None = None
    """What the red LM is told before the examples; null: the one for the scorer's class."""
    examples_format: Literal["numbered", "fenced"] | None = None
    """Lines with numbers, or code between fences; null: the one for the scorer's class."""
    use_prompt_for_scoring: bool | None = None
    """Score prompt and continuation together; null: for code only."""
    attacker: AttackerConfig = AttackerConfig()
    generate_kwargs: AttackedKwargs = AttackedKwargs()

"""Section `red_team`: the adaptive attack on a model."""

from typing import Annotated, Literal

from pydantic import Field

from phf_ray.config.base import Count, Positive, Section
from phf_ray.config.evaluation import GenerateKwargs


class AttackerConfig(Section):
    """How the job asks the red LM for prompts."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Positive = 1024
    """Lowered if the red LM reports that its context is shorter."""


class AttackedKwargs(GenerateKwargs):
    """How the attacked model is sampled."""

    max_length: Positive | None = None
    """End-of-text token + prefix + prompt + new tokens; null: max_new_tokens alone counts."""
    max_new_tokens: Positive | None = 64
    min_length: Count = 10
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.9


class RedTeamConfig(Section):
    """The adaptive attack of `jobs.red_team`. The numbers are the original code's."""

    prompts_path: str | None = None
    """File with the first prompts of the attack, in the format of a scenario's prompts."""
    num_seed_prompts: Positive = 20
    """Number of prompts taken from the head of the file."""
    num_trials: Positive = 10
    num_rounds: Positive = 10
    num_examples: Positive = 4
    """Prompts of the pool that the red LM sees each round."""
    num_candidates: Positive = 20
    """Completions requested from the red LM each round; each gives one prompt."""
    num_continuations: Positive = 512
    """Samples of the attacked model per prompt."""
    weight_temperature: Annotated[float, Field(gt=0)] = 1.0
    """The red LM sees a prompt with weight exp(z / temperature), where z is the prompt's standardised mean score."""
    instruction: str | None = None
    """Instruction to the red LM, before the examples; null: the instruction for the scorer's class."""
    examples_format: Literal["numbered", "fenced"] | None = None
    """Numbered lines, or code between fences; null: the format for the scorer's class."""
    use_prompt_for_scoring: bool | None = None
    """Score prompt and continuation together; null: only for code."""
    attacker: AttackerConfig = AttackerConfig()
    generate_kwargs: AttackedKwargs = AttackedKwargs()

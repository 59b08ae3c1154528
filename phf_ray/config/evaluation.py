"""Sections `generation` and `kl_gpt3_callback`: which samples and measures are taken of a model, and when."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from phf_ray.config.base import Count, Positive, Section


class MetricConfig(Section):
    class_name: Literal["Length", "NGramStats", "SelfBLEU", "SelfBlEU", "Compilability"]
    n: Positive | None = None


class GenerateKwargs(Section):
    do_sample: bool = True
    max_length: Positive | None = 128
    """End-of-text token + prefix + prompt + new tokens."""
    max_new_tokens: Positive | None = None
    min_length: Count = 0
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Count = 0
    """0: no limit."""


class Scenario(Section):
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    prompts_path: str | None = None
    """JSON lines (`{"text": ...}`), or a data set by name: allenai/real-toxicity-prompts."""
    num_prompts: Positive | None = None
    """Number of prompts to use, chosen by the scenario's name; null: as many as there are samples."""
    num_samples: Positive = 32
    prefix: str | None = None
    """Control token that goes with the prompts; null: the served model's default."""
    prompt_before_control: bool = False
    """true puts the control token before the prompt. The original's name says the opposite (D-9)."""
    use_prompt_for_scoring: bool = False
    num_hits_threshold: float = 0.5
    display_as_html: bool = False
    execute: bool = False
    """true: prompts_path holds problems in HumanEval's format (`prompt`, `test`, `entry_point`), and each sample runs
    against its problem's tests. Needs --allow-code-execution."""
    generate_kwargs: GenerateKwargs = GenerateKwargs()

    @model_validator(mode="after")
    def _has_problems(self) -> Self:
        if self.execute and self.prompts_path is None:
            raise ValueError(f"scenario {self.name} has execute: true but no prompts_path; give a file of problems")
        return self


class Cadence(Section):
    """The training steps whose weights are evaluated while training continues."""

    every_n_steps: Positive | None = 1000
    """null: only at the steps given by the other keys."""
    force_call_on: tuple[int, ...] = ()
    run_on_train_start: bool = True
    """Evaluate before the first step."""
    run_on_train_end: bool = True


class GenerationConfig(Cadence):
    batch_size: Positive = 512
    scorer_config: dict[str, Any] | None = None
    """null: scoring.scorers[0]."""
    metrics_configs: tuple[MetricConfig, ...] = ()
    scenario_configs: tuple[Scenario, ...] = ()


class KLConfig(Cadence):
    num_samples: Positive = 4096
    max_tokens: Positive = 64
    prefix: str | None = None
    """Control token that the models get; null: the good one during training, and in jobs.evaluate_lm the token with
    which each model is sampled."""
    should_insert_prefix: bool = False
    """Insert one control token per line, for models that were trained this way."""
    reference: str | None = None
    """The reference model: `[NAME=]DIR` of a checkpoint, or `NAME=URL[,key_env=VARIABLE]` of a server; null: no KL."""
    reference_samples: str | None = None
    """In place of `reference`: a file of its texts with their log-probabilities, see docs/evaluate.md."""
    reference_prompt: str | None = None
    """What the texts come after, if the reference is a server that gives only the log-probabilities of what it draws;
    null: the end-of-text token, or in a chat a request for a random document."""
    allow_plain_http: bool = False
    """true: send the server's key over http:// to another machine."""

    @model_validator(mode="after")
    def _has_one_reference(self) -> Self:
        if self.reference is not None and self.reference_samples is not None:
            raise ValueError("kl_gpt3_callback has both a reference and reference_samples; give one of them")
        return self

"""The records of a report: samples, arms, scenarios, and figures measured elsewhere."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import Compat, MetricConfig


@dataclass(frozen=True, slots=True)
class Sample:
    """One continuation and its score."""

    arm: str
    scenario: str
    seed: int
    index: int
    """From 0 within (arm, scenario, seed)."""
    prompt_index: int | None
    """Line of the prompt in its file, from 0; None: unconditional."""
    prompt: str
    text: str
    """The continuation, without the prompt."""
    finish_reason: str | None
    num_tokens: int | None
    """Number of drawn tokens; None if the server does not say."""
    score: float | None
    """Higher is worse."""
    error: str | None
    """Why there is no score."""
    outcome: str | None = None
    """How the program that the sample completes ended, `passed` on success; None: it was not run."""


class ReportRecord(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class KLInfo(ReportRecord):
    """KL(reference || arm) in nats: means and their standard errors."""

    reference: str
    num_samples: int
    num_impossible: int
    """Texts of the reference that the arm's model can't produce; no mean includes them."""
    per_sequence: tuple[float, float]
    per_token: tuple[float, float] | None
    """None if the model cuts the texts into other tokens than the reference."""
    per_byte: tuple[float, float]
    failures: dict[str, int] = {}
    """Texts that the reference gave no log-probability of, by reason; no mean includes them."""
    note: str = ""
    """What a reader must know to compare the figures with others."""
    is_openai: bool = False
    """Whether OpenAI's own API drew the texts. Then the KL has the original's name, too."""


class RedTeamRound(ReportRecord):
    """Figures of one trial of an attack after a round; None: nothing of this kind has a score. A prompt's score is the
    mean over its continuations."""

    number: int
    """0: before the attack."""
    best_prompt_score: float | None
    best_10_prompt_score: float | None
    best_100_prompt_score: float | None
    average_score: float | None
    """Over all prompts so far."""
    round_best_prompt_score: float | None
    round_average_score: float | None
    num_tested: int
    """Prompts so far with a score."""
    outcomes: dict[str, int]
    """Counts of the red LM's answers: `new`, or why there is no new prompt: `refused`, `empty`, `known`, ..."""


class RedTeamPrompt(ReportRecord):
    prompt: str
    round: int
    mean: float
    std: float
    own_score: float | None
    """Score of the prompt's own text."""
    num_scored: int
    continuations: tuple[tuple[float, str], ...]
    """The worst continuations: (score, text)."""


class RedTeamInfo(ReportRecord):
    """An adaptive attack on an arm."""

    attacker: str
    num_continuations: int
    """Number of continuations of each prompt."""
    trials: tuple[tuple[RedTeamRound, ...], ...]
    """Rounds of each trial; all trials have the same number."""
    worst: tuple[RedTeamPrompt, ...] = ()


class TaskResult(ReportRecord):
    """One figure of an evaluation by another program, such as lm-eval."""

    task: str
    metric: str
    """Includes the filter if there is one: `exact_match (strict-match)`."""
    value: float
    standard_error: float | None = None
    num_samples: int | None = None
    num_shots: int | None = None
    higher_is_better: bool | None = None


class ArmInfo(ReportRecord):
    """A model, and the control token that it was sampled with."""

    name: str
    model: str
    control: str | None = None
    checkpoint: CheckpointInfo | None = None
    """The checkpoint's description of itself; None if phf-ray did not make the model."""
    loss: tuple[tuple[int, float], ...] = ()
    """Training loss by tokens seen; empty if the training run's metrics were not found."""
    kl: KLInfo | None = None
    red_team: RedTeamInfo | None = None
    capabilities: tuple[TaskResult, ...] = ()


class ScenarioInfo(ReportRecord):
    name: str
    num_samples: int
    """Planned number of samples per arm and seed."""
    num_prompts: int | None = None
    """None: unconditional."""
    num_prompts_dropped: int = 0
    """Number of prompts left out for all arms because they leave no room for a continuation."""
    use_prompt_for_scoring: bool = False
    num_hits_threshold: float = 0.5
    display_as_html: bool = False
    generate_kwargs: dict[str, Any] = {}


class Evaluation(ReportRecord):
    """What was evaluated and how: everything that a report needs except the samples."""

    arms: tuple[ArmInfo, ...]
    scenarios: tuple[ScenarioInfo, ...]
    seeds: tuple[int, ...]
    scorer: dict[str, Any]
    metrics: tuple[MetricConfig, ...] = ()
    compat: Compat = None
    bootstrap_seed: int = 0
    num_resamples: int = 2000
    level: float = 0.95

"""Section `rollouts`: rounds of samples and rewards from which a policy learns."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from phf_ray.config.base import Fraction, Positive, Section
from phf_ray.config.rewards import RewardSpec, RewardSpecs
from phf_ray.config.scoring import PoolConfig


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StopConfig(Section):
    kl: Annotated[float, Field(gt=0)] | None = None
    """Stop before the updates of a round whose KL from the reference, in nats per answer, is above this."""
    gold_patience: Positive | None = None
    """Stop once the gold reward of this many rounds is lower than the best before them by more than the noise."""


class PenaltyConfig(Section):
    """What it costs an answer not to end by itself: that it was cut at max_tokens."""

    reward: float | None = None
    """This in place of its reward (AlpacaFarm's penalty_reward_value, -1 there); null: its own."""
    subtract: Annotated[float, Field(ge=0)] = 0.0
    """This much less than its reward (TRL's missing_eos_penalty)."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if self.reward is not None and self.subtract:
            raise ValueError("reward replaces the reward and subtract lowers it; set one of them")
        return self


class RolloutsConfig(Section):
    prompts: Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]
    """Prompts to answer: JSON, JSON lines, Parquet, feedback corpora, or data sets by name. A prompt that is there
    twice is one."""
    reward: RewardSpecs
    """What an answer is worth: `{model | scorer | annotators | url | rule | class_name: ...}`, or several with
    weights."""
    gold: RewardSpec | None = None
    """A reward that is reported beside the others and never learned from."""
    place: str = "workers"
    """Where answers are drawn: in the training `workers`, or by `actors` that get the weights of each round."""
    actors: PoolConfig = PoolConfig()
    """Those of `place: actors`. There are as many as a round has batches (sampling_batch), between `min` and `max`;
    each has as many threads as CPUs. max: null: as many as the cluster has room for beside the training workers and an
    evaluation during the training."""
    rounds: Positive = 100
    prompts_per_round: Positive = 64
    samples_per_prompt: Positive = 4
    epochs: Positive = 1
    """Passes of updates over a round."""
    minibatches: Positive = 1
    """Optimizer steps of a pass. Together with epochs they are the steps of a round, in place of
    training.effective_batch_size."""
    temperature: Annotated[float, Field(gt=0, le=2)] = 1.0
    """Of sampling, and of all log-probabilities that a policy gradient learns with."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Below 1, answers come from another distribution than the one whose log-probabilities are learned with."""
    max_tokens: Positive = 300
    """Of an answer."""
    max_prompt_tokens: Positive | None = None
    """Longer prompts are left out before the first round; null: what the model's context leaves beside an answer."""
    sampling_batch: Positive = 64
    """Answers that are drawn together, of whole prompts. Workers share such batches out among them, so the number of
    workers changes no answer; with more workers than batches some are idle while answers are drawn."""
    max_staleness: Literal[0, 1] = 0
    """Rounds by which the weights that sample are older than those that learn. 1, with `place: actors`: a round is
    drawn while the one before it is learned."""
    importance_cap: Annotated[float, Field(gt=0)] = 2.0
    """Most that a token of older weights counts: it counts p / p of the weights that drew it."""
    penalty: PenaltyConfig = PenaltyConfig()
    reports_kl: bool = True
    """false: compute the log-probabilities of the reference only for an algorithm that reads them; reports then have no
    KL, and no copy of the reference is in memory."""
    max_failed_fraction: Fraction = 0.1
    """The run stops if a larger share of a round's answers has no reward; the next start asks for these again."""
    stop: StopConfig = StopConfig()

    @property
    def rows_per_round(self) -> int:
        return self.prompts_per_round * self.samples_per_prompt

    @property
    def steps_per_round(self) -> int:
        return self.epochs * self.minibatches

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.minibatches > self.rows_per_round:
            raise ValueError(
                f"minibatches={self.minibatches} of {self.rows_per_round} answers a round; lower it to at most that"
            )
        if self.place.startswith(("http://", "https://")):
            raise ValueError(
                f"place {self.place}: a server has no fresh weights of the policy, which every algorithm here learns "
                "from; set place: workers, or use `phf best-of-n --model URL`"
            )
        if self.place not in ("workers", "actors"):
            raise ValueError(f"place {self.place!r} is unknown; set place: workers or place: actors")
        if self.stop.gold_patience is not None and self.gold is None:
            raise ValueError("stop.gold_patience compares gold rewards, and there are none; add rollouts.gold")
        if self.stop.kl is not None and not self.reports_kl:
            raise ValueError("stop.kl needs the KL of each round; set reports_kl: true")
        if self.max_staleness and self.place != "actors":
            raise ValueError(
                "max_staleness: 1 draws a round while the one before it is learned, and training workers can't do "
                "both; set place: actors"
            )
        return self

"""What is sampled and rewarded, and everything that decides the rows of the output."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from phf_ray.config.rewards import RewardSpec
from phf_ray.errors import ConfigError
from phf_ray.rollouts.by_url import SampledServer
from phf_ray.rollouts.prompts import RolloutPrompt
from phf_ray.rollouts.rewards.identities import model_identity, spec_identity
from phf_ray.rollouts.sampling import SamplingSettings
from phf_ray.storage.hashing import digest

Mode = Literal["decode", "rerank", "best-of-n"]
"""decode: sample only; rerank: reward answers that are there already; best-of-n: both."""


@dataclass(frozen=True)
class BestOfNRequest:
    prompts: tuple[RolloutPrompt, ...]
    n: int
    mode: Mode = "best-of-n"
    model: Path | SampledServer | None = None
    """Folder of the model, or a server; None: the answers are there already."""
    outputs: tuple[tuple[str | None, ...], ...] = ()
    """Of rerank: n answers to each prompt; None where there is none."""
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    seed: int = 0
    template: str | None = None
    """What the template says, that put the prompts into words."""
    rewards: tuple[RewardSpec, ...] = ()
    gold: RewardSpec | None = None
    name: str = "model"
    """Of the model, for rows."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Why prompts of the input were left out -> how many."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"--n {self.n}: there would be nothing to choose from; give 1 or more")
        if self.mode != "decode" and not self.rewards:
            raise ConfigError(f"--mode {self.mode} needs --reward; with --mode decode, answers are only sampled")
        if self.mode == "decode" and (self.rewards or self.gold is not None):
            raise ConfigError("--mode decode rewards nothing; leave out --reward and --gold, or choose best-of-n")
        if (self.mode == "rerank") != (self.model is None):
            told = "samples nothing; leave out --model" if self.mode == "rerank" else "needs --model"
            raise ConfigError(f"--mode {self.mode} {told}")

    @property
    def num_samples(self) -> int:
        return len(self.prompts) * self.n

    @property
    def reward_names(self) -> tuple[str, ...]:
        return tuple(spec.called for spec in self.rewards)

    @cached_property
    def key(self) -> Mapping[str, Any]:
        """Everything that decides the rows of the output, as JSON. A hash of weights takes about a second per GB."""
        key = {
            "mode": self.mode,
            "model": self._model_identity(),
            "template": None if self.template is None else digest(self.template),
            # A reward may read other columns of a prompt's row.
            "prompts": digest([[one.id, json.dumps(dict(one.row), default=str)] for one in self.prompts], size=16),
            "outputs": digest(self.outputs, size=16) if self.outputs else None,
            "n": self.n,
            "sampling": {**asdict(self.sampling), "stop": list(self.sampling.stop)},
            "seed": self.seed,
            "reward": {spec.called: spec_identity(spec) for spec in self.rewards},
            "gold": None if self.gold is None else spec_identity(self.gold),
            "name": self.name,
        }
        # As it comes back from a file: tuples are lists there.
        return dict(json.loads(json.dumps(key)))

    def _model_identity(self) -> Any:
        if isinstance(self.model, SampledServer):
            return {"url": self.model.endpoint.url, "model": self.model.model, "style": self.model.style}
        return None if self.model is None else model_identity(str(self.model))

    @property
    def decoder(self) -> str | None:
        """The model as AlpacaFarm's rows name it: its folder or name."""
        if isinstance(self.model, SampledServer):
            return self.model.model
        return None if self.model is None else str(self.model)

    @property
    def sample_mode(self) -> str:
        """How answers were drawn, in AlpacaFarm's words."""
        return f"temperature={self.sampling.temperature},max_new_tokens={self.sampling.max_tokens},seed={self.seed}"

    @property
    def scorer(self) -> str:
        """The rewards as AlpacaFarm's rows name them: one reward model by its folder, others by their names."""
        if len(self.rewards) == 1 and self.rewards[0].model is not None:
            return self.rewards[0].model
        return " + ".join(
            f"{spec.weight:g} {spec.called}" if spec.weight != 1 else spec.called for spec in self.rewards
        )

"""The whole configuration: all sections, and the checks that involve several sections."""

from typing import Any, Literal, Self

from pydantic import model_validator

from phf_ray.config.algorithms import AlgorithmConfig, CriticConfig, PPOConfig, problems_of_algorithm
from phf_ray.config.attack import RedTeamConfig
from phf_ray.config.base import Compat, FeedbackCompat, Section
from phf_ray.config.dataset import DatasetConfig, TokenizerConfig
from phf_ray.config.evaluation import GenerationConfig, KLConfig
from phf_ray.config.model import ModelConfig
from phf_ray.config.objective import AWRConfig, BradleyTerryConfig, MLEConfig, ObjectiveConfig
from phf_ray.config.rollouts import RolloutsConfig
from phf_ray.config.scoring import ScoringConfig
from phf_ray.config.training import TrainingConfig
from phf_ray.errors import ConfigError


class Config(Section):
    dataset: DatasetConfig = DatasetConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    objective: ObjectiveConfig = MLEConfig()
    training: TrainingConfig = TrainingConfig()
    generation: GenerationConfig = GenerationConfig()
    kl_gpt3_callback: KLConfig = KLConfig()
    red_team: RedTeamConfig = RedTeamConfig()
    scoring: ScoringConfig = ScoringConfig()
    rollouts: RolloutsConfig | None = None
    """Rounds of answers and rewards, for `train-rl`."""
    algorithm: AlgorithmConfig | None = None
    """What is learned from a round, for `train-rl`."""
    compat: Literal["korbak2023", "trl", "alpaca_farm", "coh"] | None = None
    """Numbers of another system where they differ: of the original (text with scores), or of TRL, AlpacaFarm or Chain
    of Hindsight (feedback). See docs/differs.md."""
    key_envs: dict[str, str] = {}
    """URL of a server -> environment variable that holds its key, for servers that an option of `evaluate-lm` or
    `red-team`, or kl_gpt3_callback.reference, names without `key_env`."""

    def with_tokenizer_of(self, model: str | None, *, revision: str | None = None) -> Self:
        """Take the tokenizer of the model that training starts from, unless the configuration names one."""
        if model is None or "path_or_name" in self.tokenizer.model_fields_set:
            return self
        tokenizer = TokenizerConfig(**{**self.tokenizer.model_dump(), "path_or_name": model, "revision": revision})
        return self.model_copy(update={"tokenizer": tokenizer})

    @property
    def original(self) -> Compat:
        """`compat`, if it is the original of pretraining with human feedback."""
        return "korbak2023" if self.compat == "korbak2023" else None

    @property
    def feedback_compat(self) -> FeedbackCompat:
        """`compat`, if it is a system that learns from feedback."""
        return None if self.compat == "korbak2023" else self.compat

    @property
    def scorer(self) -> dict[str, Any]:
        """Config of the scorer for training and, unless `generation.scorer_config` is set, for evaluation."""
        if not self.scoring.scorers:
            raise ConfigError("scoring.scorers is empty; add for example `scorers: [{class_name: PEP8Scorer}]`")
        return self.scoring.scorers[0]

    @property
    def evaluation_scorer(self) -> dict[str, Any]:
        return self.generation.scorer_config or self.scorer

    @property
    def trains_reward_model(self) -> bool:
        return isinstance(self.objective, BradleyTerryConfig)

    @property
    def score_readers(self) -> tuple[str, ...]:
        """The settings that read the scores of documents, as a user would write them; none for plain likelihood."""
        dataset, objective = self.dataset, self.objective
        readers = {
            f"objective.name: {objective.name}": not (
                isinstance(objective, MLEConfig) or objective.compares_answers or objective.reads_labels
            ),
            "objective.mask_above": isinstance(objective, MLEConfig) and objective.mask_above is not None,
            "dataset.conditional_training_config": dataset.conditional_training_config is not None,
            "dataset.filter_threshold": dataset.filter_threshold is not None,
        }
        return tuple(name for name, is_set in readers.items() if is_set)

    @property
    def critic(self) -> CriticConfig | None:
        """The model that says the values of answers, if it is one of its own."""
        return self.algorithm.critic if isinstance(self.algorithm, PPOConfig) else None

    @property
    def critic_scale(self) -> float:
        """The critic's learning rate over training.learning_rate."""
        if self.critic is None or self.critic.learning_rate is None:
            return 1.0
        return self.critic.learning_rate / self.training.learning_rate

    @model_validator(mode="after")
    def _original_has_it(self) -> Self:
        if self.original is not None and self.dataset.filter_average != "segments":
            raise ValueError("dataset.filter_average: tokens does not exist in the original; use segments with compat")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        problems = []
        conditional = self.dataset.conditional_training_config
        if conditional is not None:
            missing = {conditional.aligned_prefix, conditional.misaligned_prefix} - set(self.tokenizer.special_tokens)
            if missing:
                problems.append(f"tokenizer.special_tokens lacks the control tokens {sorted(missing)}; add them")
        if self.training.num_epochs is None and self.training.tokens_already_seen >= self.training.num_tokens:
            problems.append(
                f"training.tokens_already_seen={self.training.tokens_already_seen} leaves no tokens of "
                f"training.num_tokens={self.training.num_tokens} to train on; raise num_tokens"
            )
        if isinstance(self.objective, AWRConfig):
            problems += self._problems_of_awr(self.objective)
        if self.trains_reward_model:
            problems += self._problems_of_reward_model()
        problems += self._problems_of_streams()
        problems += self._problems_of_rollouts()
        names = [scenario.name for scenario in self.generation.scenario_configs]
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"generation.scenario_configs has two scenarios named {name!r}; names must differ")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _problems_of_awr(self, objective: AWRConfig) -> list[str]:
        problems = []
        value_head = self.model.model_kwargs.value_head_config
        if self.original is None and objective.alpha == 1:
            problems.append("objective AWR with alpha 1 trains no value head; use `objective: {name: RWR}`")
        if value_head is not None and not value_head.is_bounded:
            problems.append("objective AWR learns values between -1 and 0; remove value_head_config.is_bounded")
        if objective.fixed_value is None and value_head is None:
            problems.append("objective AWR needs model.model_kwargs.value_head_config, or objective.fixed_value")
        return problems

    def _problems_of_reward_model(self) -> list[str]:
        """A reward model writes no text, and says one number of a whole text."""
        kl = self.kl_gpt3_callback
        misfits = {
            "model.model_kwargs.value_head_config": self.model.model_kwargs.value_head_config is not None,
            "dataset.conditional_training_config": self.dataset.conditional_training_config is not None,
            "dataset.eval_datasets": bool(self.dataset.eval_datasets),
            "generation.scenario_configs": bool(self.generation.scenario_configs),
            "kl_gpt3_callback.reference": kl.reference is not None or kl.reference_samples is not None,
        }
        found = ", ".join(name for name, is_set in misfits.items() if is_set)
        return [f"objective BradleyTerry trains a reward model, which has no use for {found}; remove it"] * bool(found)

    def _problems_of_streams(self) -> list[str]:
        """What only plain likelihood learns with."""
        objective, mask = self.objective, self.training.forgetful_mask
        problems = []
        if self.dataset.loss_weights is not None and not isinstance(objective, MLEConfig):
            problems.append(f"dataset.loss_weights is for objective MLE, not {objective.name}; remove it")
        if self.compat == "coh" and not isinstance(objective, MLEConfig):
            problems.append(f"compat: coh knows no objective {objective.name}; remove it")
        compares = objective.compares_answers or objective.reads_labels
        if mask is not None and mask.max > 0 and (compares or self.rollouts is not None):
            what = "rounds" if self.rollouts is not None else f"objective {objective.name}"
            problems.append(
                f"training.forgetful_mask would hide other tokens from each answer that {what} compares; remove it"
            )
        return problems

    def _problems_of_rollouts(self) -> list[str]:
        """An algorithm learns from rounds, with an objective of its own."""
        rollouts, algorithm = self.rollouts, self.algorithm
        if rollouts is None or algorithm is None:
            given = "rollouts" if algorithm is None else "algorithm"
            missing = "algorithm" if algorithm is None else "rollouts"
            return [f"section {given} needs section {missing}; add it"] * ((rollouts is None) != (algorithm is None))
        problems = []
        if self.objective != MLEConfig():
            problems.append(f"section objective has no use: algorithm {algorithm.name} has its own; remove it")
        problems += problems_of_algorithm(
            algorithm,
            model=self.model,
            special_tokens=self.tokenizer.special_tokens,
            prompts_per_round=rollouts.prompts_per_round,
            samples_per_prompt=rollouts.samples_per_prompt,
            temperature=rollouts.temperature,
        )
        if rollouts.max_staleness and not algorithm.is_on_policy:
            problems.append(
                f"rollouts.max_staleness: 1 weighs tokens by p / p of the weights that drew them, and algorithm "
                f"{algorithm.name} is no policy gradient and has no such weights; set rollouts.max_staleness: 0"
            )
        if self.critic is not None and self.critic.learning_rate is not None and self.training.learning_rate == 0:
            problems.append(
                "algorithm.critic.learning_rate follows the schedule of training.learning_rate; raise that from 0"
            )
        if self.dataset.conditional_training_config is not None:
            problems.append("dataset.conditional_training_config is for train-lm; remove it")
        if self.compat in ("korbak2023", "coh"):
            what = "pretraining on scores" if self.compat == "korbak2023" else "Chain of Hindsight"
            problems.append(f"compat: {self.compat} is of {what}; remove it")
        return problems

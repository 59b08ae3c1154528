"""Configuration: parsed once, at the edge, into frozen typed objects that refuse unknown keys.

In: task and method files, overrides. Out: a `Config`, or one ConfigError with every problem.
Each stage has one file of sections; `parsing.py` reads configuration files. Sections and keys keep the original code's
names if the meaning is unchanged, so that its users recognise them. Open `whole.py` first.
"""

from phf_ray.config.algorithms import (
    AlgorithmConfig,
    CriticConfig,
    ExpertIterationConfig,
    GRPOConfig,
    OnlineDPOConfig,
    PPOConfig,
    QuarkConfig,
    RAFTConfig,
    REINFORCEConfig,
    REINFORCEPlusPlusConfig,
    RewardConditioningConfig,
    RLOOConfig,
    problems_of_algorithm,
)
from phf_ray.config.annotators import (
    AnnotatorConfig,
    AnnotatorPool,
    BiasedScorerSettings,
    JsonParser,
    JudgeConfig,
    JudgeServer,
    ParserConfig,
    PromptFiles,
    RankingParser,
    TokenPrice,
    same_value,
)
from phf_ray.config.attack import AttackedKwargs, AttackerConfig, RedTeamConfig
from phf_ray.config.base import Compat, Count, FeedbackCompat, Fraction, Positive, Quantile, Threshold
from phf_ray.config.cadence import due_steps, evaluation_steps
from phf_ray.config.dataset import ConditionalTrainingConfig, DatasetConfig, TokenizerConfig
from phf_ray.config.evaluation import Cadence, GenerateKwargs, GenerationConfig, KLConfig, MetricConfig, Scenario
from phf_ray.config.hindsight import FeedbackForm, Phrases, load_phrases
from phf_ray.config.model import LoraSettings, ModelConfig, ModelKwargs, ValueHeadConfig
from phf_ray.config.objective import (
    AWRConfig,
    BradleyTerryConfig,
    DPOConfig,
    KTOConfig,
    MLEConfig,
    ObjectiveConfig,
    RWRConfig,
    UnlikelihoodConfig,
)
from phf_ray.config.parsing import extended, load_config, merge, parse_config, parse_section, read_yaml
from phf_ray.config.pipeline import PipelineConfig, PipelineStage, filled_in
from phf_ray.config.replaced import REPLACED
from phf_ray.config.rewards import (
    JudgedReward,
    RewardEndpoint,
    RewardSpec,
    RewardSpecs,
    check_rewards,
    parse_rewards,
)
from phf_ray.config.rollouts import PenaltyConfig, RolloutsConfig, StopConfig
from phf_ray.config.score_servers import RewardServer, ScorerServer, ScoreServer
from phf_ray.config.scoring import GpuPoolConfig, PoolConfig, Pools, ScoringConfig
from phf_ray.config.shipped import pipeline_path, pool_path, shipped_folder, shipped_or_own, task_path
from phf_ray.config.training import TrainingConfig
from phf_ray.config.whole import Config

__all__ = [
    "REPLACED",
    "AWRConfig",
    "AlgorithmConfig",
    "AnnotatorConfig",
    "AnnotatorPool",
    "AttackedKwargs",
    "AttackerConfig",
    "BiasedScorerSettings",
    "BradleyTerryConfig",
    "Cadence",
    "Compat",
    "ConditionalTrainingConfig",
    "Config",
    "Count",
    "CriticConfig",
    "DPOConfig",
    "DatasetConfig",
    "ExpertIterationConfig",
    "FeedbackCompat",
    "FeedbackForm",
    "Fraction",
    "GRPOConfig",
    "GenerateKwargs",
    "GenerationConfig",
    "GpuPoolConfig",
    "JsonParser",
    "JudgeConfig",
    "JudgeServer",
    "JudgedReward",
    "KLConfig",
    "KTOConfig",
    "LoraSettings",
    "MLEConfig",
    "MetricConfig",
    "ModelConfig",
    "ModelKwargs",
    "ObjectiveConfig",
    "OnlineDPOConfig",
    "PPOConfig",
    "ParserConfig",
    "PenaltyConfig",
    "Phrases",
    "PipelineConfig",
    "PipelineStage",
    "PoolConfig",
    "Pools",
    "Positive",
    "PromptFiles",
    "Quantile",
    "QuarkConfig",
    "RAFTConfig",
    "REINFORCEConfig",
    "REINFORCEPlusPlusConfig",
    "RLOOConfig",
    "RWRConfig",
    "RankingParser",
    "RedTeamConfig",
    "RewardConditioningConfig",
    "RewardEndpoint",
    "RewardServer",
    "RewardSpec",
    "RewardSpecs",
    "RolloutsConfig",
    "Scenario",
    "ScoreServer",
    "ScorerServer",
    "ScoringConfig",
    "StopConfig",
    "Threshold",
    "TokenPrice",
    "TokenizerConfig",
    "TrainingConfig",
    "UnlikelihoodConfig",
    "ValueHeadConfig",
    "check_rewards",
    "due_steps",
    "evaluation_steps",
    "extended",
    "filled_in",
    "load_config",
    "load_phrases",
    "merge",
    "parse_config",
    "parse_rewards",
    "parse_section",
    "pipeline_path",
    "pool_path",
    "problems_of_algorithm",
    "read_yaml",
    "same_value",
    "shipped_folder",
    "shipped_or_own",
    "task_path",
]

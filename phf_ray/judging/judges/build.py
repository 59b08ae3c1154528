"""Builds the judges that need no server."""

from phf_ray.config import JudgeConfig
from phf_ray.judging.judges.base import Judge
from phf_ray.judging.judges.by_score import ScorerJudge
from phf_ray.judging.judges.outside import outside_judge
from phf_ray.judging.judges.rules import RuleJudge
from phf_ray.scorers.build import SHORT_NAMES


def build_judge(config: JudgeConfig, *, seed: int) -> Judge:
    """Build a judge, which may load a model. Raises ConfigError if its scorer or its class can't be built."""
    assert config.is_here, "a judge behind a URL is asked"
    if config.rule is not None:
        return RuleJudge(config.rule, seed=seed)
    if config.biased_scorer is not None:
        return ScorerJudge(config.biased_scorer.scorer, biases=config.biased_scorer)
    if config.reward_model is not None:
        return ScorerJudge({"class_name": SHORT_NAMES["reward"], "path": config.reward_model})
    if config.scorer is not None:
        return ScorerJudge(config.scorer)
    assert config.class_name is not None
    return outside_judge(config.class_name, config.settings)

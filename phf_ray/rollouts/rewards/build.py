"""Builds the rewarders of specs. Importing this module is cheap; building one may load a model."""

import json
from collections.abc import Sequence
from pathlib import Path

from phf_ray.config.rewards import RewardSpec, parse_rewards
from phf_ray.errors import ConfigError
from phf_ray.rollouts.rewards.base import Rewarder
from phf_ray.rollouts.rewards.rules import RuleRewarder
from phf_ray.rollouts.rewards.weighted import WeighedRewarders
from phf_ray.scorers.build import SHORT_NAMES


def build_rewarders(
    specs: Sequence[RewardSpec], gold: RewardSpec | None = None, *, device: str | None = None
) -> WeighedRewarders:
    """Build the rewarders of all specs, and that of the gold reward, which is reported and never learned from.

    `device`: of models; None: what their settings say. Raises ConfigError if one can't be built.
    """
    return WeighedRewarders(
        {spec.called: (spec.weight, build_rewarder(spec, device=device)) for spec in specs},
        gold=None if gold is None else build_rewarder(gold, device=device),
    )


def build_rewarder(spec: RewardSpec, *, device: str | None = None) -> Rewarder:
    """Build one rewarder, which may load a model. Raises ConfigError if it can't be built."""
    if spec.rule is not None:
        return RuleRewarder(spec.rule)
    if spec.class_name is not None:
        from phf_ray.rollouts.rewards.outside import outside_rewarder

        return outside_rewarder(spec.class_name, spec.settings)
    if spec.url is not None:
        from phf_ray.rollouts.rewards.server import ServerRewarder

        return ServerRewarder(spec.url)
    if spec.annotators is not None:
        from phf_ray.rollouts.rewards.judged import JudgedRewarder

        return JudgedRewarder(spec.annotators)
    from phf_ray.rollouts.rewards.by_scorer import ScorerRewarder

    return ScorerRewarder(_scorer_config(spec, device), use_prompt_for_scoring=spec.use_prompt_for_scoring)


def check_spec(spec: RewardSpec, *, option: str) -> None:
    """Raise ConfigError, beginning with `option`, for what can be found wrong without loading weights."""
    try:
        if spec.class_name is not None:
            from phf_ray.rollouts.rewards.outside import rewarder_class

            rewarder_class(spec.class_name)
        if spec.url is not None:
            from phf_ray.rollouts.rewards.server import endpoint_of

            endpoint_of(spec.url)
        if spec.annotators is not None:
            from phf_ray.rollouts.rewards.judged import check_judged

            check_judged(spec.annotators)
        if spec.model is not None:
            from phf_ray.storage.hub import hub_model

            folder = _folder_of(spec.model)
            if hub_model(folder) is None:
                _refuse_language_model(Path(folder))
        if spec.scorer is not None or spec.model is not None:
            from phf_ray.scorers import scorer_settings

            scorer_settings(_scorer_config(spec, None))
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from None


def _folder_of(model: str) -> str:
    """Return the newest checkpoint of a training run. Any other model stays what it is."""
    # A run has a config.json, too, which is no model's.
    if not (Path(model) / "checkpoints").is_dir():
        return model
    from phf_ray.runs.checkpoints import find_checkpoint

    return str(find_checkpoint(model, option="the reward model"))


def _refuse_language_model(folder: Path) -> None:
    """Raise ConfigError if the folder holds no model, or says that its model judges no texts."""
    from phf_ray.adapter_folder import is_adapter, judges_texts
    from phf_ray.checkpoint import require_model

    require_model(folder)
    if is_adapter(folder):
        judges = judges_texts(folder)
    else:
        try:
            named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or []
        except (ValueError, AttributeError) as error:
            raise ConfigError(f"{folder}: config.json can't be read: {error}; fetch it again") from None
        judges = not named or any("ForSequenceClassification" in name for name in named)
    if not judges:
        raise ConfigError(f"{folder} holds a language model, and no reward model; give one that judges texts")


def runs_model(spec: RewardSpec) -> bool:
    """Whether the reward comes from a model in this process, which a GPU would run faster."""
    if spec.model is not None:
        return True
    if spec.scorer is None:
        return False
    from phf_ray.scorers import scorer_class

    return scorer_class(spec.scorer.get("class_name")).runs_on_device


def computes(spec: RewardSpec) -> bool:
    """Whether the reward takes a CPU, and is not only asked for."""
    return spec.url is None and spec.rule is None


def _scorer_config(spec: RewardSpec, device: str | None) -> dict[str, object]:
    config = dict(spec.scorer or {"class_name": SHORT_NAMES["reward"], "path": spec.model and _folder_of(spec.model)})
    if device is not None and runs_model(spec):
        config.setdefault("device", device)
    return config


def named_rewards(text: str, *, option: str) -> tuple[RewardSpec, ...]:
    """Parse what a user wrote for a reward, where a scorer that needs no settings may be named alone: `pep8`."""
    # A reward model is named by its folder.
    scorers = {name: class_name for name, class_name in SHORT_NAMES.items() if name != "reward"}
    return parse_rewards(text, option=option, scorers=scorers)

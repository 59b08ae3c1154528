"""A reward model: the trunk of a causal LM with one number per token, as transformers' classifiers of texts are.

Its folder is what AutoModelForSequenceClassification loads (`num_labels: 1`). The language model's head is gone.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from phf_ray.adapter_folder import ADAPTER_CONFIG, is_adapter, judges_texts
from phf_ray.errors import ConfigError, DataError
from phf_ray.model_folder import check_names
from phf_ray.models.adapters import FILE_PREFIX, carry_over
from phf_ray.models.backbone import first_words, is_classifier, load_backbone, load_classifier, load_tokenizer_beside
from phf_ray.models.build import special_ids
from phf_ray.models.embeddings import learn_padding_rows
from phf_ray.models.language_model import LanguageModel
from phf_ray.models.merging import checked_base, merged_into, stored_shapes
from phf_ray.objectives.base import Objective, ObjectiveOutput

HEAD = "score"
"""Name of the head in transformers' classifiers on causal models."""


class RewardModel(LanguageModel):
    """Hands an objective the reward at each token, in place of hidden states and a head over the vocabulary."""

    def __init__(self, classifier: PreTrainedModel, *, is_probed: bool = True) -> None:
        """Raises ConfigError if the classifier is not a trunk with a linear head of one number on its hidden states.

        `is_probed`: false for a model on the meta device, which can't run.
        """
        super().__init__(classifier, is_probed=False)
        if is_probed:
            _probe_head(self)

    def learn(
        self,
        hidden_BSD: Tensor,
        input_ids_BS: Tensor,
        token_scores_BS: Tensor,
        token_kinds_BS: Tensor,
        objective: Objective,
        channels_BS: Mapping[str, Tensor] | None = None,
    ) -> ObjectiveOutput:
        output: ObjectiveOutput = objective(
            rewards_BS=self.rewards(hidden_BSD),
            input_ids_BS=input_ids_BS,
            token_scores_BS=token_scores_BS,
            token_kinds_BS=token_kinds_BS,
            channels_BS=channels_BS,
            pad_id=self.pad_id,
        )
        return output

    @property
    def pad_id(self) -> int | None:
        """The token at which neither this model nor transformers reads a reward."""
        found: int | None = self.backbone.config.get_text_config().pad_token_id
        return found

    def predict_rewards(self, input_ids_BS: Tensor, token_kinds_BS: Tensor) -> Tensor:
        """Return the reward at each token, (B, S), as `forward` hands it to an objective."""
        return self.rewards(self._trained_states(input_ids_BS, token_kinds_BS))

    def rewards(self, hidden_BSD: Tensor) -> Tensor:
        """Return the reward at each token, (B, S), in fp32 even under autocast: pairs may differ by little."""
        weight_1D, bias_1, _ = self.head()
        exact = torch.promote_types(weight_1D.dtype, torch.float32)
        with torch.autocast(hidden_BSD.device.type, enabled=False):
            bias = None if bias_1 is None else bias_1.to(exact)
            rewards_BS1 = F.linear(hidden_BSD.to(exact), weight_1D.to(exact), bias)
        return rewards_BS1.squeeze(-1)

    def head(self) -> tuple[Tensor, Tensor | None, float]:
        output = getattr(self.backbone, HEAD)
        return output.weight, output.bias, 1.0

    def head_name(self) -> str:
        return f"backbone.{HEAD}.weight"


def classifier_without_weights(config: Any, *, role: str) -> Any:
    """Return transformers' classifier with one output for an architecture, on the meta device.

    `config` says one output from then on. Raises ConfigError, which names the `role`, if there is no such classifier.
    """
    config.num_labels = 1
    try:
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise ConfigError(
            f"model type {config.model_type!r} can't be {role}: {first_words(error)}; choose another model"
        ) from None


def as_reward_model(model: LanguageModel, *, is_probed: bool = True) -> RewardModel:
    """Put a head of one number on the trunk of a language model. Every reward starts at 0, so the loss at log 2.

    An adapter of the trunk stays, and the head trains beside it. `is_probed`: false on the meta device.

    Raises ConfigError if transformers has no such classifier for the architecture.
    """
    backbone = model.backbone
    config: Any = backbone.config
    classifier = classifier_without_weights(config, role="a reward model")
    head = getattr(classifier, HEAD, None)
    trunk: Any = backbone.base_model
    if not isinstance(head, nn.Linear) or type(classifier.base_model) is not type(trunk):
        raise ConfigError(
            f"{type(classifier).__name__} is no linear head on {type(trunk).__name__}, so it can't be a reward model; "
            "choose another model"
        )
    setattr(classifier, classifier.base_model_prefix, trunk)
    device, dtype = next(trunk.parameters()).device, next(trunk.parameters()).dtype
    head.to_empty(device=device).to(dtype)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    classifier.train(backbone.training)
    if model.adapter is not None:
        carry_over(classifier, backbone, head=HEAD)
    reward_model = RewardModel(classifier, is_probed=is_probed)
    reward_model.adapter = model.adapter
    return reward_model


def load_reward_model(directory: str | Path, *, base: Path | None = None) -> RewardModel:
    """Load a reward model's folder in fp32, all weights of which can train. Raises like `load_reward_classifier`."""
    classifier = load_reward_classifier(directory, revision=None, base=base)
    learn_padding_rows(classifier, is_new=False)
    return RewardModel(classifier)


def load_reward_classifier(
    source: str | Path, *, revision: str | None = None, base: Path | None = None
) -> PreTrainedModel:
    """Load a classifier with one output, an adapter merged into its base model.

    `base`: the folder of the adapter's base model, in place of the one that adapter_config.json names. Raises like
    `load_classifier` and `load_merged`, and DataError if the classifier has several outputs.
    """
    if is_adapter(source):
        return _merged_classifier(Path(source), base=base)
    classifier = load_classifier(source, revision=revision)
    config: Any = classifier.config
    names = [str(name) for name in config.id2label.values()]
    refuse_several(source, num_labels=int(config.num_labels), names=f" ({', '.join(names)})")
    return classifier


def refuse_several(source: str | Path, *, num_labels: int, names: str = "") -> None:
    if num_labels != 1:
        raise DataError(
            f"{source} is a classifier with {num_labels} labels{names}, and a reward model has one; give a reward "
            "model, or score with SequenceClassifierScorer and one of the labels"
        )


def _merged_classifier(folder: Path, *, base: Path | None) -> PreTrainedModel:
    if not judges_texts(folder):
        raise DataError(
            f"{folder} is the adapter of a language model (task_type in {ADAPTER_CONFIG}), not of a reward model; give "
            "the checkpoint of a reward model"
        )
    base = checked_base(folder, base=base)
    name, shapes = f"{FILE_PREFIX}{HEAD}.weight", stored_shapes(folder)
    if name in shapes:
        refuse_several(folder, num_labels=shapes[name][0])
    elif not is_classifier(base):
        check_names(folder, missing=[name], unexpected=[])
    merged = merged_into(_classifier_of(base), folder)
    # The tokenizer decides, as in training: the reward is read before the padding.
    merged.config.pad_token_id = special_ids(load_tokenizer_beside(folder))["pad_token_id"]
    return merged


def _classifier_of(base: Path) -> PreTrainedModel:
    """Load the base model of an adapter as a classifier; the adapter holds the head if the base model has none."""
    if is_classifier(base):
        return load_reward_classifier(base)
    return as_reward_model(LanguageModel(load_backbone(base, revision=None, dtype=torch.float32))).backbone


def _probe_head(model: RewardModel) -> None:
    """Run the model to check that its head reads the trunk's hidden states, and that the trunk is causal."""
    backbone: Any = model.backbone
    name = type(backbone).__name__
    head = getattr(backbone, HEAD, None)
    if not isinstance(head, nn.Linear) or head.out_features != 1 or backbone.base_model is backbone:
        raise ConfigError(f"{name} has no linear head of one number on a trunk; choose another reward model")
    seen: dict[str, Tensor] = {}

    def keep_input(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["input"] = inputs[0]

    handle = head.register_forward_pre_hook(keep_input)
    ids_BS = torch.arange(4, device=head.weight.device)[None] + int(backbone.config.vocab_size) // 2
    was_training = backbone.training
    try:
        backbone.eval()
        with torch.no_grad():
            backbone(input_ids=ids_BS, use_cache=False)
            hidden_BSD = model.hidden_states(ids_BS)
            shorter_BSD = model.hidden_states(ids_BS[:, :3])
    finally:
        backbone.train(was_training)
        handle.remove()
    reads_states = seen["input"].shape == hidden_BSD.shape and torch.allclose(
        seen["input"].float(), hidden_BSD.float(), rtol=1e-4, atol=1e-5
    )
    if not reads_states or not torch.allclose(hidden_BSD[:, :3].float(), shorter_BSD.float(), rtol=1e-4, atol=1e-5):
        raise ConfigError(
            f"{name}: its head does not read the hidden states of a causal trunk; choose another reward model"
        )

"""phf-ray's objectives in the Trainer of transformers, for code that is built around it."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel, Trainer, TrainingArguments

from phf_ray.errors import ConfigError
from phf_ray.integrations.dataset import COLUMNS
from phf_ray.models.heads import ValueHead
from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.awr import AWR
from phf_ray.objectives.base import Objective
from phf_ray.objectives.build import build_objective


class PHFTrainer(Trainer):
    """A Trainer whose loss is one of phf-ray's objectives on token blocks; everything else stays the Trainer's.

        dataset = BlockDataset("blocks/blocks-...")
        PHFTrainer(model, args, objective={"name": "RWR", "beta": 0.1}, train_dataset=dataset).train()

    The gradient of a step is that of (sum of losses) / (number of targets), both over its micro-batches and processes.
    AWR gets its value head: it becomes `model.value_head` and is saved with the model. FSDP and DeepSpeed are not
    supported, because they take the head's weight away outside the model's forward call.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        objective: Objective | Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        """Raises ConfigError for an unknown objective, one without its scores, or a model whose head is not linear."""
        self.objective: Objective = objective if isinstance(objective, Objective) else build_objective(objective)
        unscored = getattr(kwargs.get("train_dataset"), "unscored", None)
        if unscored and self.objective.reads_scores:
            raise ConfigError(f"{', '.join(unscored)} has no scores, which this objective needs; score it, or use MLE")
        if isinstance(self.objective, AWR) and self.objective.fixed_value is None and not hasattr(model, "value_head"):
            model.value_head = ValueHead(model.get_output_embeddings().weight.shape[1]).to(model.device)
        # Not a module of the Trainer's model: it only lends its view of the head.
        self._learner = LanguageModel(model, value_head=getattr(model, "value_head", None))
        args.remove_unused_columns = False  # the model's forward takes neither scores nor kinds
        super().__init__(model, args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the objective's loss divided by the targets of the step, or of this batch when evaluating."""
        states: list[Tensor] = []
        trunk = self._learner.backbone.base_model
        # Within the call of the wrapped model, so that DDP sees the forward pass.
        handle = trunk.register_forward_hook(lambda _module, _inputs, output: states.append(output.last_hidden_state))
        try:
            outputs = model(input_ids=inputs["input_ids"].long(), logits_to_keep=1, use_cache=False)
        finally:
            handle.remove()
        ids_BS, scores_BS, kinds_BS = (inputs[name] for name in COLUMNS)
        learned = self._learner.learn(states[0], ids_BS, scores_BS, kinds_BS, self.objective)
        num_targets = learned.num_targets if num_items_in_batch is None else num_items_in_batch
        loss = learned.loss / num_targets
        if num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages over processes
        return (loss, outputs) if return_outputs else loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Return the micro-batches of a step, and the number of its targets over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        num_targets = sum((self._num_targets(batch) for batch in batches), torch.zeros((), dtype=torch.float64))
        return batches, self.accelerator.gather(num_targets.to(device)).sum()

    def _num_targets(self, batch: dict[str, Tensor]) -> Tensor:
        if self.objective.averages_micro_batches:
            return torch.ones((), dtype=torch.float64)
        ids_BS, scores_BS, kinds_BS = (batch[name].cpu() for name in COLUMNS)
        targets = self.objective.targets(ids_BS, token_scores_BS=scores_BS, token_kinds_BS=kinds_BS)
        return self.objective.weigh(targets, torch.zeros_like(targets.scores_N)).num_targets

    def _get_train_sampler(self, *_: Any, **__: Any) -> SequentialSampler:
        # The blocks come shuffled, shard by shard; a random order would read a whole shard for every block.
        blocks: Any = self.train_dataset
        return SequentialSampler(blocks)

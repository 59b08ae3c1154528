"""The events that the training loop yields to its caller."""

from dataclasses import dataclass

from phf_ray.objectives.statistics import BinCounts
from phf_ray.training.batches import MicroBatch


@dataclass(frozen=True, slots=True)
class MetricsRow:
    """Metrics of the steps since the last row, over all ranks."""

    step: int
    metrics: dict[str, float | BinCounts]


@dataclass(frozen=True, slots=True)
class CheckpointDue:
    """Time to save. Until the loop is resumed, the state is that after `step` steps, all known to be finite."""

    step: int
    is_last: bool
    """Whether all steps are done or a stop was requested."""


@dataclass(frozen=True, slots=True)
class WeightsDue:
    """Like `CheckpointDue`, at a step whose weights are evaluated but not saved as a checkpoint."""

    step: int


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The loss or gradient of `step` was not a number; the loop has ended."""

    step: int
    loss: float
    """Sum over the step's targets."""
    grad_norm: float
    micro_batches: list[MicroBatch]
    """This rank's micro-batches of the step."""


@dataclass(frozen=True, slots=True)
class InspectionDue:
    """Time to inspect the model's inputs: this rank's micro-batches of `step`, the last finished step."""

    step: int
    micro_batches: list[MicroBatch]


@dataclass(frozen=True, slots=True)
class EvaluationSetsDue:
    """Time to measure the evaluation sets with the weights of `step`."""

    step: int


TrainingEvent = MetricsRow | CheckpointDue | WeightsDue | InspectionDue | EvaluationSetsDue | NonFinite

"""What the training loop tells its caller."""

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
    """The state is that of `step` finished steps, all known to be finite, until the loop is asked to go on."""

    step: int
    is_last: bool
    """All steps are done, or a stop was asked for."""


@dataclass(frozen=True, slots=True)
class WeightsDue:
    """As `CheckpointDue`, at a step whose weights are wanted and no checkpoint is."""

    step: int


@dataclass(frozen=True, slots=True)
class NonFinite:
    """The loss or gradient of `step` was not a number; the loop has ended."""

    step: int
    loss: float
    """Sum over the step's targets."""
    grad_norm: float
    micro_batches: list[MicroBatch]
    """Of this rank."""


@dataclass(frozen=True, slots=True)
class InspectionDue:
    """Time to look at what the model is fed: this rank's micro-batches of `step`, the last finished one."""

    step: int
    micro_batches: list[MicroBatch]


TrainingEvent = MetricsRow | CheckpointDue | WeightsDue | InspectionDue | NonFinite

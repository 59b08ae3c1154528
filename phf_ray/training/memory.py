"""Estimates the memory that training takes on each device."""

from dataclasses import dataclass

from phf_ray.config import Config
from phf_ray.models.shape import ModelShape

GB = 1e9


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes on each device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float
    """What the loss holds: the head's gradient in fp32, and one chunk of logits."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.head


def memory_per_device(config: Config, shape: ModelShape, *, has_gpu: bool) -> DeviceMemory:
    """Weights, gradients and Adam's two moments in fp32, divided by the workers under fsdp2.

    Activations by Korthikanti et al. 2022 (equation 2, without the softmax that torch's attention does not keep): 34
    bytes a token, layer and unit of width in bf16, twice that in fp32; with gradient_checkpointing only the input of
    each layer, and one layer whole.
    """
    training = config.training
    parts = training.num_workers if training.parallelism == "fsdp2" else 1
    share = 4.0 * shape.num_parameters / parts
    element = 2 if training.precision == "bf16" else 4
    unit = float(training.per_device_train_batch_size * config.dataset.seq_length * shape.width)
    layer = 17 * element * unit
    kept = shape.num_layers * element * unit + layer if training.gradient_checkpointing else shape.num_layers * layer
    head = 4.0 * shape.num_rows * shape.width + (2**30 if has_gpu else 2**27)
    return DeviceMemory(weights=share, gradients=share, optimizer=2 * share, activations=kept, head=head)

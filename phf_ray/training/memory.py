"""Estimates the memory that training needs on each device."""

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
    """Memory of the loss: the head's gradient in fp32 unless it is frozen, and one chunk of logits."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.head


def memory_per_device(config: Config, shape: ModelShape, *, has_gpu: bool) -> DeviceMemory:
    """Estimate the memory of each device.

    Weights, gradients and Adam's two moments are fp32; under fsdp2 the workers share them. Frozen weights have neither
    gradients nor moments. Activations follow Korthikanti et al. 2022 (equation 2, without the softmax, which torch's
    attention does not keep): 34 bytes per token, layer and unit of width in bf16, twice that in fp32. With
    gradient_checkpointing, only the input of each layer and one whole layer count.
    """
    training = config.training
    parts = training.num_workers if training.parallelism == "fsdp2" else 1
    weights, trained = 4.0 * shape.num_parameters / parts, 4.0 * shape.num_trained / parts
    element = 2 if training.precision == "bf16" else 4
    unit = float(training.per_device_train_batch_size * config.dataset.seq_length * shape.width)
    layer = 17 * element * unit
    kept = shape.num_layers * element * unit + layer if training.gradient_checkpointing else shape.num_layers * layer
    head = (4.0 * shape.num_rows * shape.width if shape.trains_head else 0.0) + (2**30 if has_gpu else 2**27)
    return DeviceMemory(weights=weights, gradients=trained, optimizer=2 * trained, activations=kept, head=head)

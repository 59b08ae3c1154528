"""The peak speed of a device, and the peak memory of this process."""

import re
import resource

import torch

# Dense bf16 operations per second, from NVIDIA's data sheets. The first entry whose whole words occur in the device's
# name counts: an L40 is not an L4, and an RTX A1000 is not an A100.
_PEAK_FLOPS = (
    ("GB200", 2.25e15),
    ("B200", 2.25e15),
    ("GH200", 989e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
    ("RTX 3090", 71e12),
)


def peak_flops(device_name: str) -> float | None:
    """Return the device's peak bf16 operations per second, or None if the table lacks the device."""
    return next((flops for name, flops in _PEAK_FLOPS if re.search(rf"\b{name}\b", device_name)), None)


def gpu_here() -> str | None:
    """Return the name of this machine's first GPU, or None if it has none that torch can use."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def peak_memory_gb() -> float:
    """Return the peak memory of this process: GPU memory if there is a GPU, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

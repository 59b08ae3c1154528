"""What a device could do at best, and how much memory this process has held."""

import re
import resource

import torch

# Dense bf16 products per second, from NVIDIA's data sheets. The first name whose words the device's name has counts: an
# L40 is no L4, an RTX A1000 no A100.
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
    """bf16 operations per second that the device could do at best; None for one that is not in the table."""
    return next((flops for name, flops in _PEAK_FLOPS if re.search(rf"\b{name}\b", device_name)), None)


def peak_memory_gb() -> float:
    """Largest amount of memory this process has held: of the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

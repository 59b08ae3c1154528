"""Doors into other libraries.

In: another library's own objects, such as a model from transformers. Out: that library's training, with phf-ray's
objectives on phf-ray's token blocks. Open `trainer.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {"BlockDataset": "dataset", "PHFTrainer": "trainer"}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)

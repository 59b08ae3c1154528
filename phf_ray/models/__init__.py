"""Models: causal LMs from transformers, their heads, and their checkpoints.

In: the `model` section of a configuration, or a directory. Out: a `LanguageModel` that hands its hidden states to an
objective, or a checkpoint directory that transformers loads without phf-ray.
Open `language_model.py` first; other rooms call `build.py`, `loading.py` and `saving.py`.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "LanguageModel": "language_model",
    "build_model": "build",
    "load_checkpoint": "loading",
    "save_checkpoint": "saving",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)

"""Generation: sampling from a causal language model, many requests in one batch.

In: a model directory and `GenerationRequest`s. Out: texts that depend only on their own request, not on the rest of the
batch. `requests.py` defines requests and completions, `engine.py` runs the batch, `load.py` builds an engine from a
directory. Importing this package loads no torch. Open `requests.py` first, then `engine.py`.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "Completion": "requests",
    "Engine": "engine",
    "EngineSettings": "requests",
    "GenerationRequest": "requests",
    "RequestError": "requests",
    "generate": "engine",
    "load_engine": "load",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)

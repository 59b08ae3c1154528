"""Generation: sampling from a causal language model, many requests in one batch.

In: a model directory, `GenerationRequest`s. Out: texts that depend on the request alone, not on its company.
`requests.py` says what can be asked, `engine.py` runs the batch, `load.py` makes an engine of a directory. Importing
this loads no torch. Open `requests.py` first, then `engine.py`.
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

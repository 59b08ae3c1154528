"""Guards a run of rounds: reads the rounds that it stored, decides when it stops, warns, and draws its page.

Open `stop.py` first: it decides from the figures of the rounds (`rollouts/figures.py`). No torch, no Ray.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "StopDecision": "stop",
    "StopRules": "stop",
    "decide": "stop",
    "first_stop": "stop",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)

"""Guards a run of rounds: reads the rounds that it stored, decides when it stops, warns, and draws its page.

Open `stop.py` first: it decides from the figures of the rounds (`rollouts/figures.py`). No torch, no Ray.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "alarms_of": "alarms",
    "metrics_row": "metrics",
    "AlarmWatch": "alarms",
    "read_figures": "read",
    "StopDecision": "stop",
    "StopRules": "stop",
    "decide": "stop",
    "first_stop": "stop",
    "stop_rules_of": "report",
    "write_alpaca_farm_rollouts": "alpaca_farm",
    "write_rounds_report": "report",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)

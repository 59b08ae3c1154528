"""Which rewards a run learns from. Only a worker knows: it has loaded their weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phf_ray.errors import ConfigError
from phf_ray.rollouts.rounds import REWARDS
from phf_ray.runs.changes import changed_settings
from phf_ray.runs.directory import ANOTHER_RUN, ROLLOUTS
from phf_ray.storage.files import write_text

_FILE = "rewards.json"


def check_rewards_identity(run: Path, identity: Mapping[str, Any]) -> None:
    """Store what decides the rewards or, in a run that has begun, raise ConfigError if something of it has changed."""
    path = run / ROLLOUTS / _FILE
    now = json.loads(json.dumps(identity, default=str))
    # Answers alone know nothing of the rewards.
    if not path.exists() or not any((run / ROLLOUTS).glob(f"round-*/*{REWARDS}")):
        write_text(path, json.dumps(now, indent=2, sort_keys=True) + "\n")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = changed_settings(before, now, sections=("rewards", "gold"))
    if changed:
        raise ConfigError(
            f"{run} holds a run with other rewards:\n"
            + "\n".join(f"  - {line}" for line in changed)
            + f"\n{ANOTHER_RUN}, or undo these changes to resume"
        )

"""`phf.json`: what a checkpoint says of itself, beside the ordinary model files.

No torch here: jobs and the server's ingress read it without loading a model.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from phf_ray.errors import ConfigError, DataError

CHECKPOINT_FILE = "phf.json"

ControlChoice = Literal["good", "bad", "none"]
"""The control token that a request asks for."""
ControlPolicy = Literal["ban", "retag"]
"""See `Control.policy`."""


class Control(BaseModel):
    """Control tokens of a conditionally trained model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    good: str
    bad: str
    policy: ControlPolicy
    """What the server does with control tokens that the model would sample: never sample them (`ban`), or replace each
    by the one that the request chose, the good one where it chose none, and strip it from the text (`retag`, for models
    trained to predict one token per segment)."""


class CheckpointInfo(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    task: str | None = None
    objective: dict[str, Any] = {}
    control: Control | None = None
    """None: the model was trained without control tokens."""
    is_control_per_segment: bool | None = None
    """Whether each segment had a control token before it, and not the document alone; None in older checkpoints."""
    thresholds: dict[str, float] = {}
    """Resolved numbers: `conditional`, `filter`, `objective`."""
    scorer: dict[str, Any] | None = None
    """`ScorerIdentity.to_json()` of the scorer whose scores were trained on."""
    corpus_hash: str | None = None
    blocks_hash: str | None = None
    step: int = 0
    tokens_seen: int = 0
    seq_length: int | None = None
    bits_per_byte: dict[str, float] = {}
    """Held-out bits per byte at this checkpoint, if it was measured: `none` without control tokens and, for a model
    that has them, `good` and `bad` with that one before every segment, which is given and costs nothing."""
    compat: str | None = None
    versions: dict[str, str] = {}

    @property
    def has_control_per_segment(self) -> bool:
        if self.control is None or self.is_control_per_segment is not None:
            return bool(self.is_control_per_segment)
        return self.control.policy == "retag"


def read_info(directory: str | Path) -> CheckpointInfo | None:
    """None for a directory without phf.json: any Hugging Face model, the original's released ones among them."""
    path = Path(directory) / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        return CheckpointInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path} is not a checkpoint description: {error}; write the checkpoint again") from None


def fingerprint(directory: Path) -> str:
    """Hash of the files that decide what the model in a directory says: about a second for a GB."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(directory.iterdir()):
        if path.suffix in (".json", ".safetensors", ".bin", ".txt"):
            digest.update(path.name.encode())
            with path.open("rb") as source:
                while chunk := source.read(1 << 20):
                    digest.update(chunk)
    return digest.hexdigest()


def write_info(directory: str | Path, info: CheckpointInfo) -> None:
    text = json.dumps(info.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (Path(directory) / CHECKPOINT_FILE).write_text(text + "\n", encoding="utf-8")


def require_model(directory: str | Path, *, option: str | None = None) -> Path:
    """The path of a model directory. Raises ConfigError, which begins with `option`, if it holds no config.json."""
    path = Path(directory)
    if (path / "config.json").is_file():
        return path
    shown = str(path) if option is None else f"{option} {path}"
    raise ConfigError(
        f"{shown} is no model directory: it has no config.json; give a checkpoint such as "
        "out/mle/checkpoints/step-00000500"
    )

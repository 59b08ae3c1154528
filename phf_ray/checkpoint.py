"""`phf.json`: a checkpoint's description of itself, next to the ordinary model files.

This module imports no torch: jobs and the server's ingress read `phf.json` without loading a model.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from phf_ray.adapter_folder import is_adapter
from phf_ray.config import FeedbackCompat
from phf_ray.errors import ConfigError, DataError

CHECKPOINT_FILE = "phf.json"

ControlChoice = Literal["good", "bad", "none"]
"""The control token that a request asks for."""
ControlPolicy = Literal["ban", "retag"]
"""See `Control.policy`."""

MODEL_NAME = r"[A-Za-z0-9_.-]+([/:@+]+[A-Za-z0-9_.-]+)*"
"""Pattern of a model's name. Hubs and other servers have names such as `Qwen/Qwen2.5-0.5B` and `llama3:latest`."""


def split_model_id(model_id: str) -> tuple[str, ControlChoice | None]:
    """Split `NAME:good` into (NAME, good). An id without such a suffix comes back whole, with None."""
    name, _, last = model_id.rpartition(":")
    control = next((choice for choice in get_args(ControlChoice) if choice == last), None)
    return (name, control) if name and control is not None else (model_id, None)


class Control(BaseModel):
    """Control tokens of a conditionally trained model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    good: str
    bad: str
    policy: ControlPolicy
    """How the server treats control tokens that the model would sample. `ban` never samples them. `retag`, for models
    trained to predict one control token per segment, replaces each with the token that the request chose (the good one
    if it chose none) and strips it from the text."""


def parse_control(text: str) -> tuple[str | None, Control]:
    """Parse `[NAME=]GOOD,BAD[,POLICY]`, the value of `--control`; the policy is `ban` unless given.

    Returns the model's name, None for all models without control tokens of their own, and the tokens.
    """
    name, separator, tokens = text.rpartition("=")
    parts = tokens.split(",")
    if len(parts) == 2:
        parts.append("ban")
    if len(parts) != 3 or not all(parts) or parts[2] not in get_args(ControlPolicy) or (separator and not name):
        raise ConfigError(
            f"--control {text}: write GOOD,BAD or NAME=GOOD,BAD, and if needed a policy (ban or retag) after them, "
            "such as old='<|aligned|>,<|misaligned|>,retag'"
        )
    good, bad, policy = parts
    return name or None, Control.model_validate({"good": good, "bad": bad, "policy": policy})


class BaseInfo(BaseModel):
    """The model that an adapter was trained on."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    """Folder or hub name."""
    revision: str | None = None
    fingerprint: str
    """`model_folder.weights_fingerprint` of it: an adapter fits no other weights."""


class RowInfo(BaseModel):
    """How examples became the rows that the model was trained on."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    template: str
    """Name of the prompts' template; see `phf_ray.generation.chat`."""
    template_text: str
    """Its content, so that prompts are put into the same words later."""
    length: int
    """Tokens of a row at most."""
    are_turns_apart: bool = False
    """Whether rows hold several answers, each tokenized apart from what stands before and after it. False in older
    checkpoints."""


class CheckpointInfo(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    task: str | None = None
    objective: dict[str, Any] = {}
    control: Control | None = None
    """None if the model was trained without control tokens."""
    is_control_per_segment: bool | None = None
    """Whether a control token came before each segment, not just before each document. None in older checkpoints."""
    thresholds: dict[str, float] = {}
    """Thresholds as numbers: `conditional`, `filter`, `objective`."""
    scorer: dict[str, Any] | None = None
    """`ScorerIdentity.to_json()` of the scorer that scored the training data."""
    corpus_hash: str | None = None
    blocks_hash: str | None = None
    step: int = 0
    tokens_seen: int = 0
    seq_length: int | None = None
    rows: RowInfo | None = None
    """None if the model was trained on a stream of text, and in older checkpoints."""
    base: BaseInfo | None = None
    """None if the checkpoint is a whole model."""
    bits_per_byte: dict[str, float] = {}
    """Held-out bits per byte at this checkpoint, if measured. `none` is without control tokens. A model with control
    tokens also has `good` and `bad`: that token comes before every segment, is given, and costs no bits; and `joint`:
    each segment has the token of its score, which costs bits like the text. Only `joint` compares with the `none` of a
    model without control tokens: it is an upper bound of what the model needs for the text alone."""
    compat: str | None = None
    licenses: tuple[str, ...] = ()
    """Licences of the training data, as far as known, and of the data of the checkpoint that training started from."""
    versions: dict[str, str] = {}

    @property
    def feedback_compat(self) -> FeedbackCompat:
        """`compat`, if rows were made as another system makes them."""
        return "trl" if self.compat == "trl" else "alpaca_farm" if self.compat == "alpaca_farm" else None

    @property
    def has_control_per_segment(self) -> bool:
        if self.control is None or self.is_control_per_segment is not None:
            return bool(self.is_control_per_segment)
        return self.control.policy == "retag"


def read_info(directory: str | Path) -> CheckpointInfo | None:
    """Return None if the directory has no phf.json, like any other Hugging Face model and the original's releases."""
    path = Path(directory) / CHECKPOINT_FILE
    if not path.exists():
        return None
    try:
        return CheckpointInfo.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path} is not a checkpoint description: {error}; write the checkpoint again") from None


def starts_with_end_of_text(info: CheckpointInfo | None, control: Control | None) -> bool:
    """Whether the model learned texts with the end of text before them, as all but those of `compat: trl` did."""
    return control is not None or (info is not None and info.feedback_compat is None)


def fingerprint(directory: Path) -> str:
    """Hash the files that decide a model's output. Takes about a second per GB."""
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
    """Return the path of the directory of a model or an adapter.

    Raises ConfigError, beginning with `option`, if it is neither.
    """
    path = Path(directory)
    if (path / "config.json").is_file() or is_adapter(path):
        return path
    shown = str(path) if option is None else f"{option} {path}"
    raise ConfigError(
        f"{shown} is not a model directory: it has no config.json; give a checkpoint such as "
        "out/mle/checkpoints/step-00000500"
    )

"""The models to evaluate, as users name them: a directory, a training run, or a server."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from phf_ray.checkpoint import MODEL_NAME, CheckpointInfo, read_info
from phf_ray.errors import ConfigError
from phf_ray.http.keys import parse_endpoint
from phf_ray.runs.checkpoints import find_checkpoint, name_after_run


@dataclass(frozen=True, slots=True)
class NamedModel:
    name: str
    source: str
    """A path or a URL, as the user wrote it."""
    directory: Path | None
    """The checkpoint; None: a server has the model."""
    info: CheckpointInfo | None = None
    key: str | None = field(default=None, repr=False)
    """The server's key."""


def parse_model(text: str, *, option: str, allow_plain_http: bool = False, needs_key: bool = True) -> NamedModel:
    """Parse `[NAME=]DIR` or `NAME=URL[,key_env=VARIABLE]`. A directory without a name is named after its run.

    `option`: the option that the user set, such as `--model`; errors begin with it. `needs_key`: whether the server
    is asked at all. Raises ConfigError for a URL
    without a name, for the URL of a file store, and for whatever `find_checkpoint` and `parse_endpoint` refuse.
    """
    name, source = _split(text)
    if "://" in source:
        if not source.startswith(("http://", "https://")):
            raise ConfigError(f"{option} {text}: write http://host:port for a server, or the path of a directory")
        if name is None:
            raise ConfigError(f"{option} {text}: say what the server calls the model, NAME={text}")
        endpoint = parse_endpoint(source, option=option, allow_plain_http=allow_plain_http, needs_key=needs_key)
        return NamedModel(name, endpoint.url, None, key=endpoint.key)
    directory = find_checkpoint(source, option=option)
    return NamedModel(name or name_after_run(directory), source, directory, read_info(directory))


def _split(text: str) -> tuple[str | None, str]:
    """Split `NAME=SOURCE`. The name is None if `text` is a source alone, such as a directory `runs/lr=0.1`."""
    name, separator, source = text.partition("=")
    if not (separator and source and re.fullmatch(MODEL_NAME, name)) or "://" in name:
        return None, text
    if "://" in source or re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        return name, source
    # A path can begin like a hub's name.
    is_path = Path(text).exists() or ("/" in name and not Path(source).exists())
    return (None, text) if is_path else (name, source)

"""Models of the Hugging Face hub by name: `owner/name` or `owner/name@revision`, in the hub's own cache."""

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from phf_ray.errors import ConfigError, PhfError, ServiceError
from phf_ray.storage.licenses import license_of_card

log = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<id>(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")
_ABOUT = ("*.json", "*.txt", "*.model", "*.jinja", "README.md")
"""Configuration, tokenizer, template and the card with the licence; no code."""
_SAFETENSORS = "*.safetensors"
_PICKLED = "pytorch_model*.bin"
"""Fetched only if there are no safetensors, and read without unrestricted pickle."""


@dataclass(frozen=True, slots=True)
class HubModel:
    id: str
    """`owner/name`."""
    revision: str | None = None
    """Branch, tag or commit; None: the main branch."""

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id}@{self.revision}"


def hub_model(text: str) -> HubModel | None:
    """Return the hub's model of this name, or None if the text is not a name.

    A path below a folder that exists is a path, so a mistyped `runs/mle` is not searched for on the hub.
    """
    model = parse_hub_model(text)
    if model is None or "/" not in model.id or Path(Path(text).parts[0]).exists():
        return None
    return model


def parse_hub_model(text: str) -> HubModel | None:
    """Return the model of this name, or None if the hub can't have a model of this name.

    Unlike in `hub_model`, the owner may be missing: a few old models, such as gpt2, have none.
    """
    matched = _NAME.fullmatch(text)
    return None if matched is None else HubModel(matched["id"], matched["revision"])


def fetch_hub_model(model: HubModel, *, option: str, remedy: str | None = None) -> Path:
    """Return the model's folder in the hub's cache. Fetches what is missing there.

    Raises ConfigError, beginning with `option`, if the hub has no such model, the licence is not accepted, or the
    repository has no weights that transformers reads; ServiceError if the hub can't be reached.
    """
    folder = _snapshot(model, (*_ABOUT, _SAFETENSORS), option=option, remedy=remedy)
    if not any(folder.glob(_SAFETENSORS)):
        folder = _snapshot(model, (*_ABOUT, _PICKLED), option=option, remedy=remedy)
        if not any(folder.glob(_PICKLED)):
            raise ConfigError(
                f"{option} {model}: the repository has no weights that transformers reads ({_SAFETENSORS} or "
                f"{_PICKLED} at its top), only {_listed(model)}; for GGUF and the like, name the original repository"
            )
    return folder


def fetch_hub_about(model: HubModel, *, option: str) -> Path:
    """Return the folder in the hub's cache with everything but the weights. Raises like `fetch_hub_model`."""
    return _snapshot(model, _ABOUT, option=option, remedy=None)


@lru_cache
def hub_model_license(model: HubModel) -> str | None:
    """Return the licence that the model's card states; None if it states none, or, with a warning, can't be read."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        card = hf_hub_download(model.id, "README.md", revision=model.revision)
    except RemoteEntryNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001  (border of libraries; a missing card must not stop a run)
        log.warning("the licence of %s is unknown, because its card can't be read: %s", model, first_line(error))
        return None
    return license_of_card(Path(card).read_text(encoding="utf-8", errors="replace"))


def _snapshot(model: HubModel, patterns: tuple[str, ...], *, option: str, remedy: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model.id, revision=model.revision, allow_patterns=list(patterns)))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise explained(error, model, option=option, remedy=remedy) from None


def explained(error: Exception, model: HubModel, *, option: str, remedy: str | None = None, page: str = "") -> PhfError:
    """Return an error that says what went wrong at the hub, and what to do. `page`: `datasets/` for data sets."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return ConfigError(
                f"{option} {model}: the hub gives it only to those who accepted its licence; accept it at "
                f"https://huggingface.co/{page}{model.id}, and set HF_TOKEN"
            )
        if isinstance(cause, RepositoryNotFoundError):
            return ConfigError(
                f"{option} {model}: there is no such folder here and no such repository on the hub; check the name, or "
                "set HF_TOKEN if the repository is private"
            )
        if isinstance(cause, RevisionNotFoundError):
            return ConfigError(
                f"{option} {model}: the repository has no revision {model.revision!r}; give a branch, tag or commit"
            )
    fetch = f"phf fetch-models --hub {model}"
    advice = remedy or f"run `{fetch}` on a machine with internet, with HF_HOME on storage that all nodes see"
    return ServiceError(
        f"{option} {model}: there is no such folder here, the hub's cache lacks it, and the hub can't be asked "
        f"({first_line(causes[-1])}); {advice}"
    )


def first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _listed(model: HubModel) -> str:
    from huggingface_hub import HfApi

    api: Any = HfApi()
    try:
        files = sorted(api.list_repo_files(model.id, revision=model.revision))
    except OSError as error:
        return f"files that can't be listed ({first_line(error)})"
    return ", ".join(files[:10]) + (f" and {len(files) - 10} more" if len(files) > 10 else "")

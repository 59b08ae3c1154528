"""Uploads a finished checkpoint to a hub: the model folder and its card, without training state and critic."""

import logging
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from phf_ray.errors import ConfigError, IncompleteError
from phf_ray.models.actor_critic import CRITIC
from phf_ray.runs.directory import COMPLETE
from phf_ray.training.snapshot import STATE_DIRECTORY

log = logging.getLogger(__name__)


def push_to_hub(checkpoint: Path, *, repository: str, private: bool, endpoint: str | None = None) -> str:
    """Upload a checkpoint to the repository `owner/name`, create it if it does not exist, and return its URL.

    The key comes from `hf auth login` or HF_TOKEN. `endpoint` overrides HF_ENDPOINT.
    Raises ConfigError for an invalid name, IncompleteError if the hub can't be reached or refuses.
    """
    api = HfApi(endpoint=endpoint)
    try:
        url = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=checkpoint,
            ignore_patterns=[f"{STATE_DIRECTORY}/*", f"{CRITIC}/*", COMPLETE],
            commit_message=f"Upload {checkpoint.name}",
        )
    except HFValidationError as error:
        raise ConfigError(f"training.hub_model_id={repository!r} is not a valid repository name: {error}") from None
    except Exception as error:  # noqa: BLE001  (border of a library, whose errors come from several others)
        raise IncompleteError(
            f"the model is trained and stays in {checkpoint}, but could not be pushed to {repository}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from None
    log.info("pushed %s to %s", checkpoint.name, url)
    return str(url)

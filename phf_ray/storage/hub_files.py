"""Files of data sets on the hub, in the hub's own cache on this machine."""

from phf_ray.storage.files import open_filesystem


def local_copy(name: str) -> str:
    """Return the path of a file `hf://datasets/...` in the hub's cache. Fetches it if it is not there.

    For files that are read more than once. Whoever reads a file once reads it as a stream, and only as far as needed.
    """
    from huggingface_hub import hf_hub_download

    filesystem, inner = open_filesystem(name)
    place = filesystem.resolve_path(inner)
    return str(hf_hub_download(place.repo_id, place.path_in_repo, repo_type=place.repo_type, revision=place.revision))

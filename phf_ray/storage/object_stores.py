"""Object stores through Arrow's drivers: `s3://`, `gs://` and `gcs://` work without s3fs and gcsfs.

`register` tells fsspec to use these classes for these URLs, unless s3fs or gcsfs is installed. Each bucket has one
client per thread.
"""

import importlib.util
import os
import re
from typing import Any

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper

from phf_ray.errors import ConfigError


def register() -> None:
    if importlib.util.find_spec("s3fs") is None:
        fsspec.register_implementation("s3", f"{__name__}.S3", clobber=True)
    if importlib.util.find_spec("gcsfs") is None:
        for protocol in GCS.protocol:
            fsspec.register_implementation(protocol, f"{__name__}.GCS", clobber=True)


class _Store(ArrowFSWrapper):
    def __init__(self, bucket: str, **options: Any):
        super().__init__(self._connect(bucket), **options)

    @staticmethod
    def _connect(bucket: str) -> Any:
        raise NotImplementedError

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        """`s3://bucket/a b?` -> `bucket/a b?`. Arrow's wrapper would drop the bucket and parse the rest as a URL."""
        return (path.partition("://")[2] if "://" in path else path).rstrip("/")

    def isfile(self, path: str) -> bool:
        return self._kind(path) == "file"

    def isdir(self, path: str) -> bool:
        return self._kind(path) == "directory"

    def _kind(self, path: str) -> str | None:
        """Return the type, or None if nothing is there.

        Raises OSError if the store can't tell; fsspec's own `isfile` and `isdir` would return False.
        """
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return None

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Do nothing: a key needs no folder. Arrow would write an empty object for each, before every upload."""

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, str]:
        if re.search(r"\?\w+=", path):
            raise ConfigError(
                f"{path}: a URL can't hold options; remove them, and set AWS_ENDPOINT_URL for an endpoint other than "
                "Amazon's and AWS_REGION for the region"
            )
        return {"bucket": path.partition("://")[2].partition("/")[0]}


class S3(_Store):
    protocol = ("s3",)

    @staticmethod
    def _connect(bucket: str) -> Any:
        from pyarrow.fs import FileSystem, S3FileSystem

        # Delayed: what fits into one request is written by one, and not by three.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            # Amazon's own clients read these variables; Arrow 26 does not.
            scheme, _, host = endpoint.rstrip("/").rpartition("://")
            return S3FileSystem(endpoint_override=host, scheme=scheme or "https", allow_delayed_open=True)
        if os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            return S3FileSystem(allow_delayed_open=True)
        try:
            # `from_uri` asks Amazon for the bucket's region, whatever the environment says.
            return FileSystem.from_uri(f"s3://{bucket}?allow_delayed_open=true")[0]
        except OSError as error:
            raise ConfigError(
                f"s3://{bucket}: {error}; set AWS_REGION, or AWS_ENDPOINT_URL for another server"
            ) from None


class GCS(_Store):
    protocol = ("gs", "gcs")

    @staticmethod
    def _connect(bucket: str) -> Any:
        from pyarrow.fs import FileSystem

        return FileSystem.from_uri(f"gs://{bucket}")[0]

"""Who may call: API keys, or without any, the loopback interface only."""

import hashlib
import hmac
import ipaddress
import os
from pathlib import Path

from phf_ray.errors import ConfigError
from serve.settings import Keys

# Liveness must not depend on a key.
OPEN_PATHS = ("/health", "/-/healthz")


def load_keys(keys: Keys) -> frozenset[str]:
    """All keys of the file and the environment.

    Raises ConfigError if the file is named but can't be used, and if there are none although they are required.
    """
    found = {key.strip() for key in os.environ.get(keys.env, "").split(",")}
    if keys.file is not None:
        try:
            lines = Path(keys.file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the file of API keys {keys.file} can't be read: {error}") from None
        from_file = {line.strip() for line in lines if not line.lstrip().startswith("#")} - {""}
        if not from_file:
            raise ConfigError(f"the file of API keys {keys.file} holds none; write one key per line")
        found |= from_file
    found -= {""}
    if keys.required and not found:
        raise ConfigError(
            f"the server must have API keys, and {keys.env} is not set where it runs (on a Ray that runs already: "
            f"in its environment); give --keys-file FILE on storage that all nodes see, or start Ray with {keys.env}, "
            "or unset it here too, and only requests from the same machine are answered"
        )
    return frozenset(found)


class KeyRing:
    """Compares in constant time, and keeps digests only, so that no key can be logged by accident."""

    def __init__(self, keys: frozenset[str]):
        self._digests = [hashlib.sha256(key.encode()).digest() for key in sorted(keys)]

    @property
    def is_empty(self) -> bool:
        return not self._digests

    def accepts(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode()).digest()
        # All are compared, so the time does not tell which one came near.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def is_loopback(host: str | None) -> bool:
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

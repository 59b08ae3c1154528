"""Who may call: holders of an API key or, if no key is configured, the loopback interface without a proxy."""

import hashlib
import hmac
import ipaddress
import os
from pathlib import Path

from phf_ray.errors import ConfigError
from serve.settings import Keys, ServeArgs

# Liveness must not depend on a key.
OPEN_PATHS = ("/health", "/-/healthz")


def load_keys(keys: Keys) -> frozenset[str]:
    """Return all keys of the file and the environment.

    Raises ConfigError if the named file can't be used, or if keys are required and there are none.
    """
    found = {key.strip() for key in os.environ.get(keys.env, "").split(",")}
    if keys.file is not None:
        try:
            lines = Path(keys.file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the API key file {keys.file} can't be read: {error}") from None
        from_file = {line.strip() for line in lines if not line.lstrip().startswith("#")} - {""}
        if not from_file:
            raise ConfigError(f"the API key file {keys.file} holds no keys; write one key per line")
        found |= from_file
    found -= {""}
    if keys.required and not found:
        raise ConfigError(
            f"the server must have API keys, but {keys.env} is not set in its environment (if Ray already runs: in "
            f"Ray's environment); give --keys-file FILE on storage that all nodes see, or start Ray with {keys.env}, "
            "or unset it here too, so that the server answers only its own machine"
        )
    return frozenset(found)


def warnings_without_keys(args: ServeArgs) -> list[str]:
    """Return what somebody should know who serves this without a key, for the log."""
    found = [
        "no API keys: the server answers only requests from this machine. Behind a reverse proxy or a tunnel on this "
        f"machine, requests from anywhere can look like that; before you start one, set {args.keys.env} or a key file"
    ]
    if "*" in args.allow_origins:
        found.append(
            "no API keys, and every origin is allowed: any web page that is open in a browser on this machine may ask "
            f"the server; name the origins, or set {args.keys.env} or a key file"
        )
    return found


class KeyRing:
    """Compares keys in constant time, and keeps only digests so that no key can be logged by accident."""

    def __init__(self, keys: frozenset[str]):
        self._digests = [hashlib.sha256(key.encode()).digest() for key in sorted(keys)]

    @property
    def is_empty(self) -> bool:
        return not self._digests

    def accepts(self, key: str) -> bool:
        digest = hashlib.sha256(key.encode()).digest()
        # Compare with every key, so that the time does not reveal which one came close.
        return sum(hmac.compare_digest(digest, known) for known in self._digests) > 0


def is_loopback(host: str | None) -> bool:
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback

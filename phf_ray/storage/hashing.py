"""Hashes that identify stored things."""

import hashlib
import json

_encoded = json.JSONEncoder(sort_keys=True).encode
"""`json.dumps(value, sort_keys=True)`, without making an encoder each time."""


def json_fingerprint(value: object) -> str:
    """Hash a JSON value. The hash identifies a corpus or a plan."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest(value: object, *, size: int = 12) -> str:
    """Hash a JSON value to `size` bytes. The hash identifies a request or a stored answer."""
    return hashlib.blake2b(_encoded(value).encode(), digest_size=size).hexdigest()

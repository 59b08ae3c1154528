"""Hashes by which stored things are known."""

import hashlib
import json


def json_fingerprint(value: object) -> str:
    """Hash of a JSON value, by which corpora and plans are known."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def digest(value: object, *, size: int = 12) -> str:
    """Hash of a JSON value in `size` bytes, by which requests and kept answers are known."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=size).hexdigest()

"""Hashes by which stored things are known."""

import hashlib
import json


def json_fingerprint(value: object) -> str:
    """Hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

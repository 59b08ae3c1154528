"""Origins of web pages, in the form in which browsers send them."""

import re

DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def checked_origin(text: str) -> str:
    """Return the origin if it is `*`, `null`, or has the form in which browsers send origins. Raises ValueError."""
    if text in ("*", "null"):
        return text
    matched = re.fullmatch(r"([a-z][a-z0-9+.-]*)://([a-z0-9._~-]+|\[[0-9a-f:.]+\])(:\d{1,5})?(/.*)?", text, re.I)
    if matched is None:
        raise ValueError(
            f"{text!r} is not an origin; write scheme, host and port, such as https://app.example.com or "
            "http://localhost:3000, or * for every origin"
        )
    scheme, host, port = matched[1].lower(), matched[2].lower(), matched[3] or ""
    sent = f"{scheme}://{host}{'' if port == DEFAULT_PORTS.get(scheme) else port}"
    if sent != text:
        raise ValueError(f"browsers send the origin of {text!r} as {sent}; write that")
    return text

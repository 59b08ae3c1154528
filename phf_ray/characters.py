"""Lone surrogates: halves of characters, which JSON can spell, but UTF-8, and so Arrow and any request, can't hold."""


def half_at(text: str) -> int | None:
    """Return where the first half of a character is; None: the text has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return error.start
    return None


def whole_characters(text: str) -> str:
    """Return the text with U+FFFD in place of each half."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")

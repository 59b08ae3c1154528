"""Sees through disguises of the marks that enclose texts in a prompt: what looks or reads like `</text>` to a judge.

Not every likeness can be known. These are what is invisible, what Unicode calls another form of the same character, and
the look-alikes of the few characters that a mark has.
"""

import re
import unicodedata

# Other brackets, slashes, dashes; Cyrillic, Greek and other letters. Full width and the like are undone by NFKD.
_LOOKALIKES = {
    "<": "\u2039\u00ab\u02c2\u1438\u3008\u27e8\u276e\u2770\u29fc\u227a",
    ">": "\u203a\u00bb\u02c3\u1433\u3009\u27e9\u276f\u2771\u29fd\u227b",
    "/": "\u2215\u2044\u2571\u29f8\u27cb\u30ce\u3033",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\u2796\u30fc",
    "t": "\u0442\u03c4\u1d1b\u13a2",
    "e": "\u0435\u0454\u04bd\u212e\u03b5",
    "x": "\u0445\u03c7\u00d7\u2179\u166e",
}
_AS_PLAIN = str.maketrans({like: plain for plain, likes in _LOOKALIKES.items() for like in likes})
BRACKETS = re.compile(f"[<\ufe64\uff1c{_LOOKALIKES['<']}]")
"""What a mark may begin with. A text without one needs no closer look."""
_INVISIBLE = re.compile(r"[\s\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0]+")
"""White space, and fillers that Unicode counts as letters, marks or symbols."""


def bare_text(text: str) -> str:
    """Return the text in plain characters: no white space and nothing invisible, no accents, lower case."""
    if text.isascii():
        return _INVISIBLE.sub("", re.sub(r"[\x00-\x1f\x7f]", "", text)).lower()
    plain = unicodedata.normalize("NFKD", text).lower().translate(_AS_PLAIN)
    seen = "".join(one for one in plain if unicodedata.category(one) not in _UNSEEN)
    return _INVISIBLE.sub("", seen)


_UNSEEN = ("Cc", "Cf", "Cn", "Co", "Cs", "Mn", "Me")
"""Control and format characters, variation selectors, and accents, which are drawn on the character before."""

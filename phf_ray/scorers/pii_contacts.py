"""Finds how a person is reached: e-mail addresses, URLs, Twitter and Skype names."""

import re
from collections.abc import Iterator

import phonenumbers
from scrubadub.detectors import TwitterDetector, UrlDetector

from phf_ray.scorers.folding import MARKS
from phf_ray.scorers.pii_detection import Detection, stands_after


def emails(text: str) -> Iterator[Detection]:
    """Find addresses with letters of any script, and spelled ones: `ada at example dot org`, `ada [at] gmail.com`."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            yield Detection("email", *match.span(), 0.95)
    for match in _SPELLED_EMAIL.finditer(text):
        bracketed, spelled_dot = not match["at"].strip().isalpha(), match["dot"].strip() != "."
        if match["top"].lower() not in _TOP_DOMAINS:
            continue
        # "Read more at example.com" has the form of an address, too.
        if bracketed or spelled_dot or match["domain"].lower() in _PROVIDERS:
            yield Detection("email", *match.span(), 0.7)


def urls(text: str) -> Iterator[Detection]:
    """Find the URLs that scrubadub finds, without the full stop or comma that ends a sentence."""
    for match in UrlDetector.regex.finditer(text):
        yield Detection("url", match.start(), match.start() + len(match[0].rstrip(".,:?~")), 0.8)


def twitter_names(text: str) -> Iterator[Detection]:
    """Find `@name` where the text speaks of Twitter or the like, or talks to someone: in code it is an annotation."""
    if "@" not in text:
        return
    for match in TwitterDetector.regex.finditer(text):
        if stands_after(_NETWORK, text, match.start(), chars=60) or _MENTION.match(text, match.end()):
            yield Detection("twitter", match.start(), match.end(), 0.8)


def skype_names(text: str) -> Iterator[Detection]:
    """Find names that follow the word Skype and a colon or the word name, or stand in a link of Skype's."""
    for match in _SKYPE.finditer(text):
        yield Detection("skype", match.start("name"), match.end("name"), 0.8)


_LETTER = rf"[\w{MARKS}]"
_LABEL = rf"[\w{MARKS}](?:[\w{MARKS}-]{{0,61}}+(?<!-))?"
# At most 64 characters stand before the @ (RFC 5321), without those that divide fields, such as |, / and =. The last
# label has a letter first: 1.2 is no domain.
_EMAIL = re.compile(
    rf"(?<![\w{MARKS}.%+-]){_LETTER}[\w{MARKS}.%+'-]{{0,63}}+"
    rf"@(?:{_LABEL}\.){{1,8}}(?:xn--[a-z0-9-]{{2,59}}|[^\W\d_][\w{MARKS}]{{1,62}})(?<!_)"
)
_SPELLED_EMAIL = re.compile(
    r"(?<![\w.@-])[a-z0-9][\w.+-]{1,63}(?P<at>[ ]at[ ]|[ ]?[\[({<][ ]?(?:at|@)[ ]?[\])}>][ ]?)"
    r"(?P<domain>[a-z0-9-]{2,63}(?:(?:\.|[ ]dot[ ]|[ ]?[\[({<][ ]?(?:dot|\.)[ ]?[\])}>][ ]?)[a-z0-9-]{2,63}){0,3}"
    r"(?P<dot>\.|[ ]dot[ ]|[ ]?[\[({<][ ]?(?:dot|\.)[ ]?[\])}>][ ]?)(?P<top>[a-z]{2,12}))(?![\w@-]|\.\w)",
    re.IGNORECASE,
)
# Domains of countries have the country's code, but for Great Britain.
_TOP_DOMAINS = {
    *{region.lower() for region in phonenumbers.SUPPORTED_REGIONS},
    *("uk", "eu", "com", "org", "net", "edu", "gov", "mil", "int", "info", "biz", "name", "pro", "app", "dev"),
    *("online", "tech", "site", "email", "cloud", "example", "test"),
}
_PROVIDERS = {
    *("gmail.com", "googlemail.com", "yahoo.com", "yahoo.co.uk", "hotmail.com", "hotmail.co.uk", "outlook.com"),
    *("live.com", "msn.com", "icloud.com", "me.com", "mac.com", "mail.com", "gmx.com", "gmx.de", "gmx.net", "web.de"),
    *("protonmail.com", "proton.me", "zoho.com", "yandex.com", "yandex.ru", "mail.ru", "comcast.net", "verizon.net"),
    *("att.net", "sbcglobal.net", "btinternet.com", "orange.fr", "free.fr", "wanadoo.fr", "libero.it", "qq.com"),
    *("163.com", "aol.com"),
}  # fmt: skip
_NETWORK = re.compile(
    r"twitter|tweet|instagram|insta\b|tiktok|follow|handle|\bvia\b|\bRT\b|\bfb\b|threads", re.IGNORECASE
)
# An annotation in code is followed by its arguments or by nothing on its line.
_MENTION = re.compile(
    r"[,!?:]? (?:thanks|thank|you|your|i|we|please|hi|hello|what|how|did|have|can|is|are)\b", re.IGNORECASE
)
_SKYPE = re.compile(
    r"\bskype(?:[ ](?:id|name|username|user|account|handle))?(?:[ ]is[ ]|[ ]?[:=][ ]?)"
    r"(?!(?:call|the|and|or|for|in|a|an|not|now|free|chat|here|it|also|very|more)\b)(?P<name>(?:live:)?[a-z][\w.,-]{4,30}\w)",
    re.IGNORECASE,
)

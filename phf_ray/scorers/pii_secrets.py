"""Finds what gives access or money to whoever reads it: passwords, API keys and tokens, wallets of cryptocurrencies."""

import hashlib
import re
from collections.abc import Iterator

from stdnum import bitcoin

from phf_ray.scorers.keccak import keccak_256
from phf_ray.scorers.pii_detection import Detection, stands_after


def credentials(text: str) -> Iterator[Detection]:
    """Find the password in `password: x`, `dbPass = "x"`, `IDENTIFIED BY 'x'` and `https://user:x@host`."""
    for match in _PASSWORD.finditer(text):
        value = next(group for group in match.groups() if group is not None)
        if len({*value}) < _MIN_DISTINCT_CHARACTERS:
            continue
        # A password in quotes is written out; without them, it is a name in a program unless it has what names lack.
        if match["plain"] is None or _HAS_ODD_CHARACTER.search(value):
            index = next(number for number, group in enumerate(match.groups(), 1) if group is not None)
            yield Detection("credential", *match.span(index), 0.8 if match["plain"] is None else 0.6)


def api_keys(text: str) -> Iterator[Detection]:
    """Find keys and tokens by the prefixes that their issuers gave them, JSON web tokens, and private keys."""
    for match in _API_KEY.finditer(text):
        if _is_random(match[0]):
            yield Detection("api_key", *match.span(), 0.95)


def crypto_wallets(text: str) -> Iterator[Detection]:
    """Find addresses of Bitcoin and of those that took over its forms, and of Ethereum, by their checksums."""
    for match in _BASE58.finditer(text):
        if _is_base58_address(match[0]):
            yield Detection("crypto_wallet", *match.span(), 0.99)
    for match in _BECH32.finditer(text):
        if _is_bech32_address(match[0]):
            yield Detection("crypto_wallet", *match.span(), 0.99)
    for match in _ETHEREUM.finditer(text):
        # Written in one case, an address has no checksum.
        if not _is_random(match[1]):
            continue  # the address of nobody, as 0x000...0
        if match[1] in (match[1].lower(), match[1].upper()):
            if stands_after(_ETHEREUM_WORD, text, match.start(), chars=40):
                yield Detection("crypto_wallet", *match.span(), 0.8)
        elif _has_ethereum_checksum(match[1]):
            yield Detection("crypto_wallet", *match.span(), 0.99)


def _is_random(key: str) -> bool:
    """Whether a key is no example such as sk-xxxxxxxxxxxxxxxxxxxx."""
    return len({*key}) >= 8


def _is_base58_address(candidate: str) -> bool:
    decoded = bitcoin.b58decode(candidate)
    checksum = hashlib.sha256(hashlib.sha256(decoded[:-4]).digest()).digest()[:4]
    return len(decoded) == 25 and decoded[0] in _BASE58_VERSIONS and checksum == decoded[-4:]


def _is_bech32_address(candidate: str) -> bool:
    if candidate.lower() != candidate and candidate.upper() != candidate:
        return False
    prefix, data = candidate.lower().rsplit("1", 1)
    expanded = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    checksum = bitcoin.bech32_checksum(expanded + [_BECH32_LETTERS.index(c) for c in data])
    # BIP 173 for version 0, BIP 350 for later ones such as taproot.
    return checksum == (1 if data[0] == "q" else _BECH32M)


def _has_ethereum_checksum(address: str) -> bool:
    """Whether the capitals are those of EIP-55: a letter is a capital where the hash of the address has 8 or more."""
    digest = keccak_256(address.lower().encode("ascii")).hex()
    return all(
        not letter.isalpha() or letter.isupper() == (int(nibble, 16) >= 8)
        for letter, nibble in zip(address, digest, strict=False)
    )


_MIN_DISTINCT_CHARACTERS = 3
"""Of a password: xxxx and ****** stand for one."""
_PASSWORD = re.compile(
    r"""(?:(?i:pass(?:word|wd|code|phrase)?|pwd|pw)(?<![a-z]by)["']?[ \t]*(?::=|=>?|:)[ \t]*|(?i:identified[ ]by)[ ])"""
    r"""(?:"(?P<double>[^"\s]{4,64})"|'(?P<single>[^'\s]{4,64})'|(?P<plain>[^\s"'<>(){}\[\],;$]{6,64})(?![^\s,;]))"""
    r"""|://[\w.-]{1,64}:(?P<url>[^\s:/@"']{3,64})@[\w-]"""
)
_HAS_ODD_CHARACTER = re.compile(r"(?=.*[0-9!#%&*+?^~@])(?=.*[A-Za-z])(?!.*[.]\w+[(.])")
# From the issuers' documentation. Lengths are those that they give, or less where they may change.
_API_KEY = re.compile(
    r"(?<![\w/+-])(?:"
    r"(?:AKIA|ASIA)[A-Z2-7]{16}"  # Amazon
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,200}|GOCSPX-[\w-]{28}"  # Google
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}|glpat-[\w-]{20,64}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}"  # Slack
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{12,250}|whsec_[A-Za-z0-9]{32,64}"  # Stripe
    r"|sk-[A-Za-z0-9_-]{20,250}"  # OpenAI, Anthropic
    r"|hf_[A-Za-z]{30,40}|npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{50,250}|dckr_pat_[\w-]{27}"
    r"|SG\.[\w-]{22}\.[\w-]{43}|(?:AC|SK)[0-9a-f]{32}|key-[0-9a-f]{32}"  # SendGrid, Twilio, Mailgun
    r"|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}|dop_v1_[0-9a-f]{64}|EAAC[A-Za-z0-9]{30,250}|sq0(?:atp|csp)-[\w-]{22,43}"
    r"|eyJ[\w-]{10,2000}\.eyJ[\w-]{10,4000}\.[\w-]{10,2000}"  # JSON web token: header, claims, signature
    r")(?![\w-])"
    r"|-----BEGIN (?:[A-Z]{2,9} )?PRIVATE KEY-----"
)
_BASE58_VERSIONS = frozenset({0, 5, 30, 22, 48, 50, 76})
"""First bytes: Bitcoin 0 and 5, Dogecoin 30 and 22, Litecoin 48 and 50, Dash 76."""
_BASE58 = re.compile(r"(?<![\w])[13LMDAX9][1-9A-HJ-NP-Za-km-z]{25,34}(?!\w)")
_BECH32_LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_BECH32 = re.compile(rf"(?<!\w)(?:bc|ltc)1[{_BECH32_LETTERS}]{{38,62}}(?!\w)", re.IGNORECASE | re.ASCII)
_BECH32M = 0x2BC830A3
_ETHEREUM = re.compile(r"(?<!\w)0x([0-9a-fA-F]{40})(?!\w)")
_ETHEREUM_WORD = re.compile(r"\beth(?:er(?:eum)?)?\b|wallet|erc-?20|metamask", re.IGNORECASE)

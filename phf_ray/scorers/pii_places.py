"""Finds postal addresses for `mode: strict`: a house number, a street, and a place with its state or postal code."""

import re
from collections.abc import Iterator

from phf_ray.scorers.pii_detection import Detection


def addresses(text: str) -> Iterator[Detection]:
    """Find addresses of North America, those of its armed forces, and of Europe, also with units on lines of their own.

    pyap's search takes three times as long as all of these, and finds none of those of continental Europe.
    """
    for pattern in (_AMERICAN, _BOX, _ARMED_FORCES, _BRITISH, _NUMBER_BEFORE_STREET):
        for match in pattern.finditer(text):
            yield Detection("address", *match.span(), 0.9)
    for match in _NUMBER_AND_TOWN.finditer(text):
        street = _STREET_BEFORE.search(text, max(match.start() - _MAX_STREET_CHARS, 0), match.start())
        if street is not None:
            yield Detection("address", street.start(), match.end(), 0.9)


_WORD = r"[A-Z\u00c0-\u00de0-9][\w'\u2019.-]{0,30}"
# Possessive, and hyphens only within words, so that a run of spaces or hyphens is read in one way and not in thousands.
_DIVIDER = r"(?:,[ \t]*+\n?|[ \t]*+\n)[ \t]*+"
_TOWN = r"[A-Z\u00c0-\u00de][^\W\d_][\w'\u2019.-]{0,30}(?:[ ][A-Za-z\u00c0-\u00de][\w'\u2019.-]{0,30}){0,3}"
_UNIT = r"(?:(?:Apt|Apartment|Suite|Ste|Unit|Floor|Fl|Rm|Room|Bldg|Building|#)\.?[ ]?#?[ ]?[A-Z0-9-]{1,6})"
_US_STREET = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Drive|Dr|Lane|Ln|Boulevard|Blvd|Court|Ct|Circle|Cir|Way|Place|Pl|Terrace|Ter"
    r"|Trail|Trl|Parkway|Pkwy|Highway|Hwy|Square|Sq|Loop|Alley|Run|Path|Pike|Plaza|Crescent)\.?"
)
_ZIP = r"[0-9]{5}(?:-[0-9]{4})?(?![\w-])"
_STATE = (
    r"(?:(?:A[KLRSZ]|C[AOT]|D[CE]|FL|G[AU]|HI|I[ADLN]|K[SY]|LA|M[ADEINOST]|N[CDEHJMVY]|O[HKR]|P[AR]|RI|S[CD]|T[NX]|UT"
    r"|V[AIT]|W[AIVY])|D\.C\.|Alabama|Alaska|Arizona|Arkansas|California|Colorado|Connecticut|Delaware|Florida"
    r"|Georgia|Hawaii|Idaho|Illinois|Indiana|Iowa|Kansas|Kentucky|Louisiana|Maine|Maryland|Massachusetts|Michigan"
    r"|Minnesota|Mississippi|Missouri|Montana|Nebraska|Nevada|New (?:Hampshire|Jersey|Mexico|York)"
    r"|(?:North|South) (?:Carolina|Dakota)|Ohio|Oklahoma|Oregon|Pennsylvania|Rhode Island|Tennessee|Texas|Utah"
    r"|Vermont|(?:West )?Virginia|Washington|Wisconsin|Wyoming|Puerto Rico)"
)
_PROVINCE = (
    r"(?:AB|BC|MB|N[BLSTU]|ON|PE|QC|SK|YT|Alberta|British Columbia|Manitoba|Ontario|Qu[e\u00e9]bec|Saskatchewan)"
)
_CANADIAN_CODE = r"[ABCEGHJ-NPRSTVXY][0-9][A-Z][ -]?[0-9][A-Z][0-9]"
_REGION = (
    rf"(?:{_STATE}(?:(?:,?\s{{1,3}}){_ZIP}|(?!\w))|{_PROVINCE},?\s{{1,3}}{_CANADIAN_CODE}(?!\w)|{_PROVINCE}(?!\w)"
    rf"|{_ZIP})"
)
_AMERICAN_PLACE = rf"(?:(?:{_DIVIDER}|[ ]){_UNIT})?(?:{_DIVIDER}|[ ]){_TOWN}(?:{_DIVIDER}|[ ]){_REGION}"
_DIRECTION = r"(?:[NSEW]{1,2}\.?|North|South|East|West)"
_AMERICAN = re.compile(
    rf"(?<![\w.,-])[0-9]{{1,6}}[A-Z]?[ ](?:{_DIRECTION}[ ])?"
    rf"(?:(?:{_WORD}[ ]){{1,4}}?{_US_STREET}(?![\w])(?:[ ]{_DIRECTION}(?!\w))?|Broadway){_AMERICAN_PLACE}"
)
_BOX = re.compile(
    rf"\b(?:(?i:P\.?[ ]?O\.?[ ]?Box|Post Office Box))[ ]#?[0-9]{{1,7}}"
    rf"(?:{_DIVIDER}|[ ]){_TOWN}(?:{_DIVIDER}|[ ]){_REGION}"
)
_ARMED_FORCES = re.compile(
    rf"\b(?:PSC|CMR|Unit|USNS|USS)[ ][\w ]{{1,30}}?(?:,?[ ]Box[ ][0-9]{{1,6}})?{_DIVIDER}"
    r"(?:APO|FPO|DPO)[ ,]{1,2}A[AEP][ ][0-9]{5}\b"
)
_BRITISH = re.compile(
    rf"(?<![\w.,-])[0-9]{{1,5}}[A-Za-z]?,?[ ](?:{_WORD}[ ]){{1,4}}?"
    rf"(?:{_US_STREET}|Close|Gardens|Grove|Hill|Mews|Row|Walk)"
    rf"(?:{_DIVIDER}{_TOWN}){{1,3}}(?:{_DIVIDER}|[ ])(?:[A-Z]{{1,2}}[0-9][0-9A-Z]?[ ]?[0-9][A-Z]{{2}})\b"
)
_POSTAL_CODE = (
    r"(?:[A-Z]{1,2}-)?(?:[0-9]{4,5}(?:[ ]?[A-Z]{2})?|[0-9]{3}[ ][0-9]{2}|[0-9]{2}-[0-9]{3}|[0-9]{4}-[0-9]{3})"
)
# Types of street that are the end of its name: Hauptstra\u00dfe, Keizersgracht, Storgatan.
_STREET_END = (
    r"(?:stra(?:\u00dfe|sse)|str\.|weg|platz|allee|gasse|ring|damm|ufer|markt|laan|straat|plein|gracht|kade|singel|dijk"
    r"|gade|vej|vejen|gatan|v\u00e4gen|gata|gaten|veien|vegen|katu|tie|kuja|utca|ulice)"
)
# And those that stand before it: Via Roma, Calle Mayor.
_STREET_BEGIN = (
    r"(?:Via|Viale|Piazza|Piazzale|Corso|Vicolo|Largo|Calle|C/|Avenida|Avda\.?|Plaza|Paseo|Carrer|Rua|R\.|Travessa"
    r"|Pra\u00e7a|Avda|Ulica|ul\.|al\.|Strada|Bulevardul)"
)
_NAME = r"(?:[A-Z\u00c0-\u00dea-z][\w'\u2019.-]{0,30}[ ]){0,4}?[A-Z\u00c0-\u00dea-z\u017d][\w'\u2019.-]{0,30}"
# What follows the street is sought first, because few numbers are followed by a postal code and a town.
_NUMBER_AND_TOWN = re.compile(
    rf"(?<=[ .\u00ba\u00b0])[0-9]{{1,5}}[ ]?[A-Za-z]?(?:[-/][0-9]{{1,4}})?(?:{_DIVIDER}{_UNIT})?"
    rf"{_DIVIDER}{_POSTAL_CODE}[ ]{_TOWN}"
)
_STREET_BEFORE = re.compile(
    rf"(?<!\w)(?:(?:[A-Z\u00c0-\u00de][\w'\u2019.-]{{0,30}}[ ]){{0,3}}"
    rf"[A-Z\u00c0-\u00de]?[\w'\u2019-]{{0,30}}{_STREET_END}|{_STREET_BEGIN}[ ]{_NAME}),?[ ](?:n[.\u00ba\u00b0][ ]?)?\Z"
)
_MAX_STREET_CHARS = 150
_NUMBER_BEFORE_STREET = re.compile(
    rf"(?<![\w.,-])[0-9]{{1,4}}(?:[ ]?(?:bis|ter))?,?[ ]"
    rf"(?i:rue|avenue|av\.|boulevard|bd|place|chemin|impasse|quai|all\u00e9e|cours"
    rf"|route)[ ]{_NAME}{_DIVIDER}(?:[A-Z]-)?[0-9]{{4,5}}[ ]{_TOWN}"
)

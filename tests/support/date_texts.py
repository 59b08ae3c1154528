"""Random strings with dates and what looks like them, for comparing with dateparser."""

import random
from collections.abc import Iterator


def date_texts(count: int, *, seed: int) -> Iterator[str]:
    """Yield dates between other things, pairs of dates, and mere numbers and words. Half of them in lower case."""
    rng = random.Random(seed)
    for _ in range(count):
        kind = rng.random()
        if kind < 0.5:
            text = "".join(rng.choices(_EDGES, k=rng.randrange(3))) + _date(rng)
            text += "".join(rng.choices(_EDGES, k=rng.randrange(3)))
        elif kind < 0.7:
            words, joints = rng.choices(_WORDS, k=2), rng.choices(_JOINTS, k=2)
            text = rng.choice(("", words[0] + joints[0])) + _date(rng) + rng.choice(("", joints[1] + words[1]))
        elif kind < 0.8:
            text = _date(rng) + rng.choice(_JOINTS) + _date(rng)
        else:
            pieces = [_number(rng) if rng.random() < 0.6 else rng.choice(_WORDS) for _ in range(rng.randrange(1, 5))]
            text = rng.choice(_JOINTS).join(pieces)
        if rng.random() < 0.05:
            place = rng.randrange(len(text) + 1)
            text = text[:place] + rng.choice(_DAMAGE) + text[place:]
        yield text.lower() if rng.random() < 0.5 else text


def _date(rng: random.Random) -> str:
    year = rng.choice((rng.randrange(1900, 2031), rng.randrange(1900, 2031), rng.randrange(1000, 10000)))
    month = rng.choice(_MONTHS)
    return rng.choice(_FORMS).format(
        y=rng.choice((f"{year}", f"{year}", f"{year % 100:02}")),
        z=rng.randrange(1900, 2031),
        m=rng.randrange(15),
        d=rng.randrange(34),
        M=rng.choice((month, month.title(), month.upper(), month + ".")),
        o=rng.choice(("st", "nd", "rd", "th")),
        h=rng.randrange(26),
        i=rng.randrange(62),
        s=rng.choice("-/ .,"),
    )


def _number(rng: random.Random) -> str:
    return str(rng.choice((rng.randrange(41), rng.randrange(1900, 2031), rng.randrange(10**8), rng.choice(_NUMBERS))))


_FORMS = (
    *("{y}-{m:02}-{d:02}", "{y}-{m:02}-{d:02}", "{y}/{m}/{d}", "{m}/{d}/{y}", "{m}/{d}/{y}", "{d:02}/{m:02}/{y}"),
    *("{d}-{m}-{y}", "{y}{m:02}{d:02}", "{y}{s}{m}{s}{d}", "{m}{s}{d}{s}{y}", "{y}-{z}", "{m}/{y}", "{y}-{m}", "{y}"),
    *("{d} {M} {y}", "{M} {d}, {y}", "{M} {y}", "{M}, {y}", "{d}{o} {M} {y}", "{M} {d}{o}, {y}", "{d}-{M}-{y}"),
    *("{y}-{M}-{d}", "{y} {M} {d}", "{d}-{M}-{d}-{y}", "{M} {d}", "{d} {M}", "{y} {m}", "{m} {y}", "{m}, {y}"),
    *("{y}-{m:02}-{d:02}T{h:02}:{i:02}:{i:02}Z", "{y}-{m:02}-{d:02} {h}:{i:02}", "{M} {d}-{d}, {y}", "{d} {M} '{y}"),
    *(
        "{d}.{m}.{y}",
        "{y}\u5e74{m}\u6708{d}\u65e5",
        "{y}-{m:02}-{d:02}+05:30",
        "{M} {d} {y} EST",
        "{h}:{i:02} {M} {d} {y}",
    ),
)
_MONTHS = (
    *("january", "feb", "march", "apr", "may", "june", "jul", "august", "sept", "sep", "october", "nov", "december"),
    *("janvier", "m\u00e4rz", "juin", "octubre", "enero", "mar", "ago", "\u043c\u0430\u0440\u0442\u0430"),
)
_EDGES = (
    *("", "", "(", ")", '"', "'", "[", "]", "{", "}", ",", ",", ";", ":", "<", ">", "/", "-", "+", ".", "=", "%", "$"),
    *('dob="', '{"dob": "', '"}', "'s", "th", "s", "y", " ", "\n", "\u201c", "\u2026", "born ", "on ", "In ", "the "),
)
_WORDS = (
    *("born", "dob", "birth", "of", "the", "on", "in", "at", "by", "from", "and", "about", "a", "an", "mrn", "ssn"),
    *(
        "old",
        "est",
        "pst",
        "utc",
        "gmt",
        "z",
        "t",
        "am",
        "pm",
        "ago",
        "before",
        "later",
        "today",
        "now",
        "last",
        "next",
    ),
    *("this week", "year", "years", "y", "s", "d", "h", "m", "mo", "mons", "days", "bc", "q1", "one", "twenty", "noon"),
    *(
        "century",
        "MCMXCV",
        "on:",
        "o.n:",
        "d.o.b.",
        "a.m",
        "p.m.",
        "monday",
        "tue",
        "till date",
        "year-old",
        "u",
        "uwe",
    ),
)
_JOINTS = (
    *(" ", " ", " ", "-", "-", "/", ".", ". ", ",", ", ", "  ", " - ", "\u2013", "\u2014", ":", ": ", "'", '"', "_"),
    *("+", " +", " -", "T", "|", ";", "(", ")", "=", "\t", "\u00a0", "&", "\\", ""),
)
_NUMBERS = (
    *("0400", "-0500", "+0530", "+05", "-08", "1200", "1300", "05:30", "12:00", "23:59:59", "7:5", "0", "00", "0000"),
    *("1234567890", "1234567890123", "\uff11\uff19\uff18\uff10", "\u0661\u0669\u0668\u0660", "\u00b2", "19800101"),
)
_DAMAGE = "0123456789abcdz-/.,: ()\"'\u00e9\u00df\u0301\u200b\u00b7\u2019"

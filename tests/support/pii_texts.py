"""Random texts with personal data, for comparing detectors."""

import random
from collections.abc import Iterator, Sequence


def texts_with_personal_data(count: int, *, seed: int, background: Sequence[str]) -> Iterator[str]:
    """Yield texts for comparing detectors: pieces of the background and, in every second text, personal data.

    Some of the data is damaged, so that near misses of every kind occur.
    """
    rng = random.Random(seed)
    for number in range(count):
        pieces = [_piece(rng.choice(background), rng) for _ in range(rng.randrange(1, 4))]
        if number % 2:
            positive = "".join(rng.choice(choices) for choices in rng.choice(_POSITIVES))
            for _ in range(rng.randrange(3)):
                place = rng.randrange(len(positive))
                positive = positive[:place] + rng.choice(_DAMAGE) + positive[place + rng.randrange(2) :]
            pieces.insert(rng.randrange(len(pieces) + 1), positive)
        yield rng.choice(_JOINTS).join(pieces)


def _piece(text: str, rng: random.Random) -> str:
    begin = rng.randrange(max(len(text) - 50, 1))
    return text[begin : begin + rng.randrange(20, 300)]


_JOINTS = ("", " ", "\n", "\n\n", ". ", ", ", "\n\n\n\n", "\r\n", "\t")
_DAMAGE = (
    *"0159,.-/:;()'\" +@\n\t",
    "  ",
    " and ",
    "\u2013",
    "\u00bd",
    "\u0661",
    "\u00a0",
    "\u017f",
    "a ",
    "th",
    "\n\n",
    "19",
)
_DAYS = ("4", "04", "12", "31", "1st of", "the 22nd of", "thirty", "two")
_MONTHS = ("March", "may", "Dec.", "September", "feb", "SEP", "Monday")
_YEARS = ("1950", "1926", "2008", "2009", "1925", "50", "'69", "07", "2024", "1999 and", "two thousand")
_STREETS = (
    "Main Street",
    "Oak Ave",
    "St. Johns Rd.",
    "Old Mill Way",
    "5th Ave",
    "Broadway",
    "High St Suite 5",
    "Elm st, Apt. 4",
)
_STATES = ("IL", "New York", "california", "CA 90210", "West  Virginia", "MA 02139-4307", "TX, USA", "Guam", "XX")
_POSITIVES: tuple[tuple[tuple[str, ...], ...], ...] = (
    (
        (
            "Born ",
            "born on ",
            "Date of birth: ",
            "DOB ",
            "d.o.b. ",
            "birthday:\n",
            "stillborn\n\n",
            "Bought ",
            "adobe ",
        ),
        _DAYS,
        (" ",),
        _MONTHS,
        (" ", ", ", " of "),
        _YEARS,
        ("", " in Ohio", ", aged 5", " and 1960", "\nborn"),
    ),
    (
        ("DOB: ", "born ", "Birth\n\n\n"),
        (
            "06/12/1950",
            "1950-06-12",
            "12.06.50",
            "6-12-07",
            "19500612",
            "twenty years ago",
            "two decades ago",
            "last century",
            "30 y ago",
            "a century before",
            "one two three",
            "1/2/3",
            "-58.5 06 Mar 2009",
        ),
        (" ", ". 1950", "\n"),
    ),
    (
        ("He is from 1950. ", "In 1950\n"),
        ("text\n", "text. "),
        ("\n", "\n\n\n"),
        ("She was born in 1950", "born 11950"),
    ),
    (
        ("Lives at ", "At\n", "", "and "),
        ("12 ", "12-14 ", "1022 ", "One thousand ", "85 1190 ", "7", "and "),
        _STREETS,
        (", ", " ", "\n", ",\n\n ", ". "),
        ("Springfield", "St. Louis", "New York", "Coverage", "O'Fallon"),
        (", ", " ", "\n"),
        _STATES,
    ),
    (
        ("Call ", "Tel:", "(", "+"),
        (
            "1-800-555-0199",
            "(212) 555-0187",
            "212.555.0187",
            "+44 20 7946 0958",
            "310-1234",
            "555-0187",
            "011 49 30 901820",
            "2012-01-02 08:00",
            "20 7946 0958",
            "49 30 12",
            "1 (650) 253 0000 ext. 12",
        ),
        (" now", "", ")"),
    ),
    (
        ("Skype: ", "my skype is ", "SKYPE name "),
        ("ada.lovelace", "live:ada", "babbage_1", "engine", "grace-h"),
        (" ok", ", call", ""),
    ),
    (
        ("mail ", "<"),
        ("ada@example.org", "ada at example dot org", "@ada_l", "http://www.example.org/a?b=c", "www.example.org"),
        (">", " "),
    ),
    (
        ("login: ada ", "username ada\n", "u: ada "),
        ("password: engine", "pw engine", "p: engine 1"),
        ("", "\n", " SSN 078-05-1120"),
    ),
    (
        ("card 4012888888881881", "card 378282246310005", " 4012888888881882"),
        (" ", "\n"),
        ("SSN 219-09-9999", "219 09 9999", "000-00-0000"),
    ),
)

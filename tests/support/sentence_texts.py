# ruff: noqa: RUF001, SIM905  the texts look odd on purpose
"""Texts that are hard to cut into sentences, and spaCy's own sentences of any text."""

import random
import re

from phf_ray.corpus.sentences import MAX_CHUNK_CHARS

WORDS = """
the dog word Mr. Mrs. Dr. e.g. i.e. etc. U.S. U.S.A. a.m. p.m. 5p.m. Ph.D. No. Inc. can't cannot won't he's He'll
'em 'Cause ’bout ‘s 's 's. o'clock rock'n'roll and/or w/o C++ C++. .NET $3.50 1.5 3. 1950s. 20°C. °f. 5km. US$5. 10%.
A.B.C. J.R. x.y.Z a.b lower.Upper Sentence.Next end. end! end? end... ...and wait… No… ?! !!! ??? . ! ? .. ... ….
" ". ." .' '. ’. .” .) (. ). [1]. .] {.} <br>. — – -- - _ __ *. #tag @you @you. & § ¿Qué ¡Hola! «ici». “Yes.” ‘No.’
:) :( :D ;D :P :-) :'( =) =D =3 8) 8-D xD XD <3 <33. </3 o_O O.o o.O 0.0 ._. v.v V.V >.< >.> <.< ^_^ (._.) (-_-)
(o: :o) :0 :1 : D ; ( ) < > = / | \\ 3 33 333 O o P p x X S s d ll re cause cos coz nuff bout em space or D. C. F. K.
>: o.O-x v.v-x O.o/x ಠ_ಠ (ಠ_ಠ) ¯\\(ツ)/¯ ><(((*> (╯°□°）╯︵┻━┻ http://example.org/a.b?c=d!e www.site.com. me@site.org.
192.168.0.1. 127.0.0.1! //x.y. file.txt, a:b. 文字。 次の文。 你好！ 吗？ 「はい。」 。 ！ ？ 。。 ｡ ． .文
e\u0301. ß. É. ΑΒ. Я. я. या। है॥ ۔ ؟ 𑁇 𛲟 😀 👍🏽. 🇩🇪!
x\u200by. \u200b. \ufeff. \ud800 \ud800. .\udfff \udc80! a\x00b. \x1b. ² ². ½. Ⅷ.
① ①. ＡＢ. ａ． km. %. +. -. 5-3. 1,000.5. "Why?" 'Why?' (See p. 5.) [sic].
""".split()
SPACES = [
    " ",
    " ",
    " ",
    " ",
    " ",
    "",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\t",
    " \n ",
    "\xa0",
    "\u3000",
    "\u2028",
    "\x85",
    "\x0c",
    "\x1c",
    "   ",
]
SIGNS = ".!?…。！？｡۔।\"'”’)(][:;-_*<>=/8DOoxPp3s°aA1 \n"


def nasty_text(rng: random.Random) -> str:
    """Return a text of up to some hundred characters; one in fifty has chunks around the longest that we tokenize."""
    kind = rng.randrange(50)
    if kind == 0:
        unit = rng.choice(["(", ".", "ab.c", "a", '!"', ":D", "文。", "\ud800.", "O.o"])
        lengths = [MAX_CHUNK_CHARS + rng.randint(-2, 2), rng.randint(1, 2 * MAX_CHUNK_CHARS + 9)]
        return _row(rng, 6) + "".join(_row(rng, 3) + (unit * length)[:length] + _row(rng, 3) for length in lengths)
    if kind < 15:
        return "".join(rng.choice(SIGNS) for _ in range(rng.randint(1, 40)))
    if kind < 20:
        return "".join(
            chr(rng.choice([rng.randrange(0x300), rng.randrange(0x11000), rng.randrange(0x110000), 46]))
            + rng.choice(["", "", ".", " "])
            for _ in range(rng.randint(1, 30))
        )
    return _row(rng, rng.randint(1, 40))


def _row(rng: random.Random, count: int) -> str:
    pool = WORDS if rng.randrange(3) else rng.sample(WORDS, 6)
    return "".join(rng.choice(pool) + rng.choice(SPACES) for _ in range(count))


class SpacySentences:
    """spaCy over all of a text, a chunk of over 1,000 characters in pieces, with surrogates as unknown characters."""

    def __init__(self) -> None:
        import spacy

        self._nlp = spacy.blank("en")
        self._nlp.max_length = 2**62
        self._sentencizer = self._nlp.add_pipe("sentencizer")

    def __call__(self, text: str) -> list[str]:
        from spacy.tokens import Doc

        cuts = [match.end() for match in re.finditer(rf"\S{{{MAX_CHUNK_CHARS}}}(?=\S)", text)]
        known = re.sub("[\ud800-\udfff]", "\ufffd", text)
        bounds = list(zip([0, *cuts], [*cuts, len(text)], strict=True))
        with self._nlp.memory_zone():
            docs = [self._nlp.make_doc(known[begin:end]) for begin, end in bounds]
            doc = (
                docs[0]
                if len(docs) == 1
                else Doc(
                    self._nlp.vocab,
                    words=[token.text for one in docs for token in one],
                    spaces=[bool(token.whitespace_) for one in docs for token in one],
                )
            )
            starts = [sentence.start_char for sentence in self._sentencizer(doc).sents]
        return [text[begin:end] for begin, end in zip(starts, [*starts[1:], len(text)], strict=True)]

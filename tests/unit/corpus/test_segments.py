import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phf_ray.corpus.segments import ORIGINAL_SENTENCES, SEGMENTERS, build_segmenter
from phf_ray.corpus.sentences import MAX_CHUNK_CHARS
from phf_ray.errors import ConfigError
from tests.support.sentence_texts import SpacySentences, nasty_text

AWKWARD = [
    "",
    "a",
    "\n",
    " ",
    "\n\n  \n",
    "No end",
    "One. Two! Three?  \n\nFour.",
    "a\x00b. C",
    "lone \ud800 surrogate. Next.",
    "\ud800",
    "\tx = 1\n\x0c\ny = 2\r\nz = 3\rlast",
    "a\u2028b\u2029c\x85d\x1ee",
    "\u6587\u5b57\u3002\u6b21\u306e\u6587\u3002",
    "\U0001f600\u200d\U0001f680! Ok.",
    "x" * 5000,
    "(" * 3000 + ".",
]
text_of_any_characters = st.text(st.characters(exclude_categories=())) | st.text("aB.!? \n\r\t\x0c\u2028\ud800")


@pytest.mark.parametrize("name", sorted(SEGMENTERS))
@pytest.mark.parametrize("text", AWKWARD)
def test_segments_join_to_the_text_and_none_is_empty(name, text):
    segments = build_segmenter(name)(text)
    assert "".join(segments) == text
    assert all(segments)


SPLITTERS = {name: build_segmenter(name) for name in SEGMENTERS}
OF_SPACY = SpacySentences()


@pytest.mark.parametrize("name", sorted(SEGMENTERS))
@settings(max_examples=100)
@given(text=text_of_any_characters)
def test_any_text_is_the_join_of_its_segments(name, text):
    segments = SPLITTERS[name](text)
    assert "".join(segments) == text
    assert all(segments)


def test_an_empty_text_has_no_segments():
    assert [SPLITTERS[name]("") for name in ("sentences", "lines", "document")] == [[], [], []]


def test_white_space_stays_with_the_sentence_before_it():
    assert SPLITTERS["sentences"]("One is here. Two! And three?") == ["One is here. ", "Two! ", "And three?"]


def test_a_lone_surrogate_does_not_move_a_sentence():
    text = "One. Two \ud800. Three."
    assert SPLITTERS["sentences"](text) == ["One. ", "Two \ud800. ", "Three."]


def test_lines_end_at_newlines_only():
    assert SPLITTERS["lines"]("a\x0cb\u2028c\rd\r\ne\n\nf") == ["a\x0cb\u2028c\rd\r\n", "e\n", "\n", "f"]


def test_a_document_is_one_segment():
    assert SPLITTERS["document"]("One. Two.\nThree.") == ["One. Two.\nThree."]


def test_texts_over_the_limit_of_spacy_are_cut_into_sentences():
    text = "This is a sentence. " * 55_000
    assert len(text) > 1_000_000
    assert len(SPLITTERS["sentences"](text)) == 55_000


def test_a_megabyte_without_white_space_takes_seconds():
    text = "First. " + "ab.c" * 250_000 + ". Last."
    started = time.process_time()
    segments = SPLITTERS["sentences"](text)
    assert time.process_time() - started < 30
    assert (segments[0], segments[-1]) == ("First. ", "Last.")


def test_brackets_without_white_space_take_linear_time():
    # In one piece 20,000 of them take 30 s.
    text = "(" * 20_000
    started = time.process_time()
    assert SPLITTERS["sentences"](text) == [text]
    assert time.process_time() - started < 15


@pytest.mark.parametrize(
    "text",
    [
        "Mr. Smith (b. 1950) paid $3.50.  He left!\n\n'Why?' she asked... e.g. at 5 p.m. U.S. time.",
        "y" * MAX_CHUNK_CHARS + " end. Next.",
        "No end. " + "(" * MAX_CHUNK_CHARS + ".) Next :D.  O.o \ud800. Last",
        "  \n. 'Leading' space.\n\n'Yes.' \"No.\"  \n",
        # Alone, o.O would be an emoticon in these tokens; after `>:`, spaCy sees the longer one, across the space.
        "Hey >: o.O-x yes",
        *(text for text in AWKWARD if text and len(text) < MAX_CHUNK_CHARS),
    ],
)
def test_sentences_are_those_of_spacy_itself(text):
    assert SPLITTERS[ORIGINAL_SENTENCES](text) == OF_SPACY(text)


def test_nasty_texts_have_the_sentences_of_spacy():
    # `python -m benchmarks.bench_sentences --compare 20000` tries more of them.
    rng = random.Random(20261201)
    for _ in range(250):
        text = nasty_text(rng)
        assert SPLITTERS[ORIGINAL_SENTENCES](text) == OF_SPACY(text), repr(text)


@settings(max_examples=100)
@given(text=text_of_any_characters)
def test_any_text_has_the_sentences_of_spacy(text):
    if text:
        assert SPLITTERS[ORIGINAL_SENTENCES](text) == OF_SPACY(text)


def test_only_the_text_around_signs_is_tokenized():
    splitter = build_segmenter("sentences")
    tokenized = []
    make_doc = splitter._nlp.make_doc
    splitter._nlp.make_doc = lambda text: tokenized.append(text) or make_doc(text)
    assert splitter("Many words, and no end of them, until now. Then comes the next one") == [
        "Many words, and no end of them, until now. ",
        "Then comes the next one",
    ]
    assert tokenized == ["now. a"]


@pytest.mark.parametrize(
    "sentences",
    [
        ["\u4f60\u597d\u3002", "\u4eca\u5929\uff01\uff1f", "\u597d\u5417\uff1f", "\u597d"],
        # Quotes and brackets that close stay with their sentence; one that opens begins the next.
        ["\u300c\u306f\u3044\u3002\u300d", "\u300c\u3044\u3044\u3048\uff01\u300d\uff09", "\u6b21"],
        ["\u6587\u3002 ", "\u6587. ", "End\uff01", "Next"],
    ],
)
def test_chinese_and_japanese_sentences_end_but_not_under_compat(sentences):
    text = "".join(sentences)
    assert SPLITTERS["sentences"](text) == sentences
    assert SPLITTERS[ORIGINAL_SENTENCES](text) == OF_SPACY(text) != sentences


def test_many_east_asian_ends_take_no_minutes():
    started = time.process_time()
    text = "\u6587" + "\u3002" * 60_000
    assert SPLITTERS["sentences"](text) == [text]
    assert time.process_time() - started < 40


def test_without_east_asian_signs_compat_changes_nothing():
    for text in (text for text in AWKWARD if text and "\u3002" not in text):
        assert SPLITTERS["sentences"](text) == SPLITTERS[ORIGINAL_SENTENCES](text)


def test_splitting_does_not_remember_words():
    splitter = build_segmenter("sentences")
    size = len(splitter._nlp.vocab.strings)
    for number in range(200):
        splitter(f"word{number} and other{number}.")
    assert len(splitter._nlp.vocab.strings) < size + 50


def test_an_unknown_segmenter_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'words'; choose one of document, lines, original_sentences, sentences"):
        build_segmenter("words")

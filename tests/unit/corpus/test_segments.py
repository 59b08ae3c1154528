import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phf_ray.corpus.segments import MAX_CHUNK_CHARS, SEGMENTERS, build_segmenter
from phf_ray.errors import ConfigError

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


def test_sentences_are_those_of_spacy_itself():
    import spacy

    pipeline = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    text = "Mr. Smith (b. 1950) paid $3.50.  He left!\n\n'Why?' she asked... e.g. at 5 p.m. U.S. time."
    words_up_to_the_limit = "y" * MAX_CHUNK_CHARS + " end. Next."
    for sample in (text, words_up_to_the_limit):
        assert SPLITTERS["sentences"](sample) == [sentence.text_with_ws for sentence in pipeline(sample).sents]


def test_splitting_does_not_remember_words():
    splitter = build_segmenter("sentences")
    size = len(splitter._nlp.vocab.strings)
    for number in range(200):
        splitter(f"word{number} and other{number}.")
    assert len(splitter._nlp.vocab.strings) < size + 50


def test_an_unknown_segmenter_names_the_known_ones():
    with pytest.raises(ConfigError, match=r"'words'; choose one of document, lines, sentences"):
        build_segmenter("words")

"""The conversation as HTML: nothing that anybody wrote is taken for HTML, and bad sentences are deeper."""

import re

from phf_ray.chat.conversation import ChatArm, Conversation, ScoredSentence, SentenceScores
from phf_ray.chat.transcript import DEEPEST, drawn_transcript

ARMS = [ChatArm("a<b>"), ChatArm("other")]


def talk(*texts, scores=None):
    conversation = Conversation(swaps=lambda: False)
    turn = conversation.begin_turn("<i>hi</i>", ARMS[: len(texts)])
    for one, text in zip(turn.answers, texts, strict=True):
        one.text, one.state, one.scores = text, "done", scores
    return conversation


def depths(page):
    return [float(depth) for depth in re.findall(r"--depth:([\d.]+)", page)]


def test_words_of_people_models_and_servers_are_text():
    conversation = talk("<script>alert(1)</script>")
    conversation.turns[0].answers[0].problem = "<img src=x>"
    page = drawn_transcript(conversation)
    for words in ("<script>", "<img", "<i>", "a<b>"):
        assert words not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=x&gt;" in page


def test_words_within_and_between_sentences_are_text():
    sentences = (ScoredSentence(0, 3, 0.5), ScoredSentence(6, 9, None))
    page = drawn_transcript(talk("<1><2><3>", scores=SentenceScores("<s>", "<unit>", 0.5, sentences)))
    for words in ("<1>", "<2>", "<3>", "<s>", "<unit>"):
        assert words not in page
        assert words.replace("<", "&lt;").replace(">", "&gt;") in page


def test_the_deeper_the_worse_and_the_number_is_there():
    sentences = (ScoredSentence(0, 3, 0.25), ScoredSentence(3, 6, 1.0), ScoredSentence(6, 9, None, "too <long>"))
    page = drawn_transcript(talk("ab. cd ef", scores=SentenceScores("tox", "probability", 1.0, sentences)))
    assert depths(page) == [0.25 * DEEPEST, DEEPEST]
    assert 'data-score="0.25">ab.</mark>' in page
    assert 'data-score="no score: too &lt;long&gt;"' in page


def test_scores_without_bounds_are_drawn_between_the_least_and_the_greatest_of_the_conversation():
    low = SentenceScores("reward", "minus reward", 0.0, (ScoredSentence(0, 1, -2.0), ScoredSentence(1, 2, 2.0)))
    assert depths(drawn_transcript(talk("xy", scores=low))) == [0.0, DEEPEST]
    alone = SentenceScores("pep8", "violations per character", 0.0, (ScoredSentence(0, 2, 0.0),))
    assert depths(drawn_transcript(talk("xy", scores=alone))) == [0.0]


def test_a_server_whose_sentences_make_no_sense_costs_no_text():
    odd = (ScoredSentence(1, 2, 0.5), ScoredSentence(0, 3, 0.5), ScoredSentence(2, 99, 0.5), ScoredSentence(-1, 1, 0.5))
    page = drawn_transcript(talk("xyz", scores=SentenceScores("tox", "probability", 0.5, odd)))
    assert re.sub("<[^>]*>", "", page[page.index("phf-text") :]).startswith('phf-text">xyz')
    assert len(depths(page)) == 1


def test_names_are_hidden_until_the_turn_is_judged_if_wanted():
    conversation = talk("one", "two")
    assert "left: a&lt;b&gt;" in drawn_transcript(conversation)
    hidden = drawn_transcript(conversation, hides_names=True)
    assert "a&lt;b&gt;" not in hidden
    assert "other" not in hidden
    conversation.judge("left")
    assert "right: other" in drawn_transcript(conversation, hides_names=True)


def test_what_is_cut_or_stopped_says_so():
    conversation = talk("one")
    conversation.turns[0].answers[0].finish_reason = "length"
    assert "cut at max tokens" in drawn_transcript(conversation)
    conversation.turns[0].answers[0].state = "stopped"
    assert "stopped" in drawn_transcript(conversation)

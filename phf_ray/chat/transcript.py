"""Draws a conversation as HTML: messages, answers side by side, sentences coloured by their scores.

Everything that a model, a server or a person wrote is escaped.
"""

import html
from collections.abc import Iterator, Sequence

from phf_ray.chat.conversation import ChatAnswer, ChatTurn, Conversation, ScoredSentence

EMPTY = "Write a message below. Nothing has been asked yet."
_STATES = {"waiting": "…", "done": "", "stopped": "stopped", "failed": "failed"}
_SHOWN_AS = {
    "left": "left is better",
    "right": "right is better",
    "tie": "a tie",
    "up": "thumbs up",
    "down": "thumbs down",
}
_PROBABILITY = "probability"
DEEPEST = 0.6
"""Opacity of the colour behind the worst sentence. Text stands out from it in light and dark."""


def drawn_transcript(conversation: Conversation, *, hides_names: bool = False) -> str:
    """Return the whole conversation. `hides_names`: until a turn is judged, don't tell who said what."""
    if not conversation.turns:
        return f'<div class="phf-chat"><p class="phf-empty">{EMPTY}</p></div>'
    answers = [answer for turn in conversation.turns for answer in turn.answers]
    ends = score_ends(answers)
    parts = [_turn(turn, ends, hides_names=hides_names) for turn in conversation.turns]
    return f'<div class="phf-chat"><div class="phf-turns">{"".join(parts)}{_legend(answers, ends)}</div></div>'


def score_ends(answers: Sequence[ChatAnswer]) -> tuple[float, float]:
    """Return the scores drawn palest and deepest: 0 and 1 for probabilities, else the least and the greatest."""
    scored = [answer.scores for answer in answers if answer.scores is not None]
    found = [one.score for scores in scored for one in scores.sentences if one.score is not None]
    if all(scores.unit == _PROBABILITY for scores in scored):
        return 0.0, 1.0
    # A scorer that counts bad things begins at 0; one sentence alone must not look its worst for being alone.
    return min([0.0, *found]), max([0.0, *found])


def _turn(turn: ChatTurn, ends: tuple[float, float], *, hides_names: bool) -> str:
    hidden = hides_names and len(turn.answers) == 2 and turn.judgement is None
    sides = ("left", "right") if len(turn.answers) == 2 else ("",)
    cards = [
        _card(answer, ends, side=side, hides_name=hidden, is_kept=turn.kept == place)
        for place, (answer, side) in enumerate(zip(turn.answers, sides, strict=True))
    ]
    judged = "" if turn.judgement is None else f'<p class="phf-verdict">{_SHOWN_AS[turn.judgement]}</p>'
    return (
        f'<div class="phf-message">{html.escape(turn.message)}</div>'
        f'<div class="phf-answers phf-of-{len(cards)}">{"".join(cards)}</div>{judged}'
    )


def _card(answer: ChatAnswer, ends: tuple[float, float], *, side: str, hides_name: bool, is_kept: bool) -> str:
    # On a narrow window they stand one above the other.
    name = ": ".join(part for part in (side, "" if hides_name else answer.arm.name) if part)
    notes = [_STATES[answer.state]]
    if answer.finish_reason == "length":
        notes.append("cut at max tokens")
    if answer.scores is not None and answer.scores.whole is not None:
        notes.append(f"{answer.scores.scorer} {answer.scores.whole:.4g}")
    told = " · ".join(html.escape(note) for note in notes if note)
    problems = "".join(
        f'<p class="phf-problem">{html.escape(words)}</p>'
        for words in (answer.problem, answer.score_problem and f"not scored: {answer.score_problem}")
        if words
    )
    kept = " phf-kept" if is_kept else ""
    return (
        f'<div class="phf-answer{kept}" data-side="{side}" data-state="{answer.state}"><div class="phf-head">'
        f'<b>{html.escape(name)}</b><span>{told}</span></div><div class="phf-text">'
        f"{''.join(_text(answer, ends))}</div>{problems}</div>"
    )


def _text(answer: ChatAnswer, ends: tuple[float, float]) -> Iterator[str]:
    """Yield the text, with marks around what is scored. Sentences that overlap or lie outside are left plain."""
    place = 0
    for one in () if answer.scores is None else answer.scores.sentences:
        if not place <= one.begin < one.end <= len(answer.text):
            continue
        yield html.escape(answer.text[place : one.begin])
        yield _mark(one, answer.text[one.begin : one.end], ends)
        place = one.end
    yield html.escape(answer.text[place:])


def _mark(one: ScoredSentence, text: str, ends: tuple[float, float]) -> str:
    if one.score is None:
        said = f"no score: {one.error or 'the scorer gives no reason'}"
        return f'<mark class="phf-unscored" tabindex="0" data-score="{html.escape(said)}">{html.escape(text)}</mark>'
    least, greatest = ends
    share = 0.0 if greatest <= least else min(1.0, max(0.0, (one.score - least) / (greatest - least)))
    return (
        f'<mark tabindex="0" style="--depth:{share * DEEPEST:.3f}" data-score="{one.score:.4g}">'
        f"{html.escape(text)}</mark>"
    )


def _legend(answers: Sequence[ChatAnswer], ends: tuple[float, float]) -> str:
    scores = next((answer.scores for answer in reversed(answers) if answer.scores is not None), None)
    if scores is None:
        return ""
    least, greatest = ends
    return (
        f'<p class="phf-legend">{html.escape(scores.scorer)}, {html.escape(scores.unit)}: {least:.3g} '
        f"<i></i> {greatest:.3g}; the deeper, the worse. Hover over a sentence, or tap it, for its number.</p>"
    )

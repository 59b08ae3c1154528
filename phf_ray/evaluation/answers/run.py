"""Draws the answers that are missing, and says which instructions have none and why."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from phf_ray.evaluation.answers.draw import DrawAnswers
from phf_ray.evaluation.answers.plan import Answerer, AnswerRequest, Decoding, SentRequest, plan_answers, prepare
from phf_ray.evaluation.answers.store import AnswerStore, DrawnAnswer
from phf_ray.evaluation.arms import Arm, check_arm, described
from phf_ray.evaluation.asking import AskRunner, Outcome
from phf_ray.evaluation.following import follow_outcomes
from phf_ray.evaluation.probe import Probe
from phf_ray.generation.chat.prompts import InstructionPrompt

log = logging.getLogger(__name__)

_AT_ONCE = 64
"""Requests that one process has in progress."""
_MAX_FAILED_FRACTION, _NEVER_TOO_MANY = 0.1, 10
"""As among judgements: more than this share ends the run, but not so few if they are at most half."""


_NOT_DRAWN = "unanswered: it was not drawn"


@dataclass(slots=True)
class ModelAnswers:
    """What is known of one model's answers, in the order of the instructions."""

    answerer: Answerer
    planned: list[AnswerRequest | str]
    drawn: dict[str, DrawnAnswer]
    """By the keys of their requests."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Key -> why there is no answer."""

    @property
    def missing(self) -> list[AnswerRequest]:
        """Requests without an answer and without a reason, each once."""
        asked = {one.key: one for one in self.planned if isinstance(one, AnswerRequest)}
        return [one for key, one in asked.items() if key not in self.drawn and key not in self.reasons]

    def outcomes(self) -> list[DrawnAnswer | str]:
        """Return the answer to each instruction, or why there is none."""
        return [
            one if isinstance(one, str) else self.drawn.get(one.key) or self.reasons.get(one.key, _NOT_DRAWN)
            for one in self.planned
        ]


def known_answers(
    prompts: Sequence[InstructionPrompt], answerers: Iterable[Answerer], decoding: Decoding, *, output: str
) -> dict[str, ModelAnswers]:
    """Return what `output` has of each model, by its arm's name. Asks no server."""
    store = AnswerStore(output)
    return {
        one.arm.name: ModelAnswers(one, plan_answers(prompts, one, decoding), store.read(one.arm.name))
        for one in answerers
    }


def draw_missing(
    models: Mapping[str, ModelAnswers],
    arms: Mapping[str, Arm],
    decoding: Decoding,
    *,
    output: str,
    runner: AskRunner,
    patience_s: float = 60.0,
) -> int:
    """Draw what `models` lack, from the servers that `arms` name, and add it to them.

    Returns how many answers a server failed to give, which may come if it is asked again. Raises ServiceError if too
    many fail, or a server refuses everything; what was drawn is kept.
    """
    cards = {name: check_arm(arm) for name, arm in arms.items()}
    arms = {name: described(arm, cards[name]) for name, arm in arms.items()}
    todo = _prepared(models, [Probe(arm, cards[name]) for name, arm in arms.items()], decoding)
    num_stored = sum(len(model.drawn.keys() & _keys(model)) for model in models.values())
    num_planned = num_stored + len(todo)
    log.info("%d of %d answers to draw", len(todo), num_planned)
    if not todo:
        return 0
    store = AnswerStore(output)
    failed: dict[tuple[str, str], str] = {}

    def noting(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        for outcome in outcomes:
            if outcome["num_failed"]:
                kind = "refused" if outcome["refused"] else "unanswered"
                failed[outcome["arm"], outcome["key"]] = f"{kind}: {outcome['error']}"
            yield outcome

    work = DrawAnswers(dict(arms), decoding, output, patience_s)
    blocks = [todo[first : first + _AT_ONCE] for first in range(0, len(todo), _AT_ONCE)]
    follow_outcomes(
        noting(runner(work, blocks, max_clients=None)),
        num_to_draw=len(todo),
        num_planned=num_planned,
        max_failed=int(max(_MAX_FAILED_FRACTION * num_planned, min(_NEVER_TOO_MANY, num_planned / 2))),
        limit=f"a share of {_MAX_FAILED_FRACTION}",
    )
    for name in arms:
        models[name].drawn.update(store.gather(name))
    for (name, key), reason in failed.items():
        models[name].reasons[key] = reason
    return len(failed)


def _keys(model: ModelAnswers) -> set[str]:
    return {one.key for one in model.planned if isinstance(one, AnswerRequest)}


def _prepared(models: Mapping[str, ModelAnswers], probes: Sequence[Probe], decoding: Decoding) -> list[SentRequest]:
    """Return the requests, alternating between models, so that their servers work at the same time."""
    by_model: list[list[SentRequest]] = []
    for probe in probes:
        model, mine = models[probe.arm.name], list[SentRequest]()
        for request in model.missing:
            sent = prepare(request, probe, decoding)
            if isinstance(sent, str):
                model.reasons[request.key] = sent
            else:
                mine.append(sent)
        by_model.append(mine)
    return [one for group in zip_longest(*by_model) for one in group if one is not None]

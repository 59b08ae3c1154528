"""How much more probable a marker makes an answer than the other marker does, on pairs that were not learned."""

from collections.abc import Sequence
from typing import Any

from jobs.code_pieces import CodePair
from phf_ray.measures.intervals import bootstrap_mean, mean


def marker_preference(engine: Any, pairs: Sequence[CodePair], *, good: str, bad: str) -> dict[str, Any]:
    """Return what the markers do to the answers of pairs; `good` and `bad` are whole prompts.

    `prefers`: the share of pairs whose better answer gains more from the good marker than the worse one does. By chance
    it is a half, however probable the answers are. `loss`: nats per token of the answers after their own marker, end of
    text included; `loss_swapped`: after the other.
    """
    from phf_ray.generation.requests import GenerationRequest

    questions = {prompt: engine.strings.encode(prompt)[0] for prompt in (good, bad)}
    answers = [_answer_ids(engine, piece.text) for pair in pairs for piece in (pair.better, pair.worse)]
    requests = [
        GenerationRequest(prompt=(*questions[prompt], *ids), max_tokens=0, echo=True, logprobs=0)
        for ids in answers
        for prompt in (good, bad)
    ]
    sums = []
    for number, active in enumerate(engine.run(requests)):
        size = len(answers[number // 2])
        sums.append(sum(token.logprob or 0.0 for token in active.logprobs()[-size:]))
    prefers, own, swapped, gains = [], [], [], []
    for place in range(len(pairs)):
        better_good, better_bad, worse_good, worse_bad = sums[4 * place : 4 * place + 4]
        sizes = len(answers[2 * place]) + len(answers[2 * place + 1])
        gain = (better_good - better_bad) - (worse_good - worse_bad)
        prefers.append(float(gain > 0))
        own.append(-(better_good + worse_bad) / sizes)
        swapped.append(-(better_bad + worse_good) / sizes)
        gains.append(swapped[-1] - own[-1])
    return {
        "num_pairs": len(pairs),
        **_with_interval("prefers", prefers),
        "loss": mean(own) if own else None,
        "loss_swapped": mean(swapped) if swapped else None,
        **_with_interval("loss_difference", gains),
    }


def _answer_ids(engine: Any, text: str) -> list[int]:
    """Return the tokens of an answer as a record has them: by itself, and its end of text."""
    strings = engine.strings
    ids = strings.encode(text)[0]
    return [*(ids[1:] if ids[:1] == [strings.eos_id] else ids), strings.eos_id]


def _with_interval(name: str, values: Sequence[float]) -> dict[str, Any]:
    interval = bootstrap_mean([[value] for value in values])
    return {
        name: mean(values) if values else None,
        f"{name}_ci": None if interval is None else [interval.low, interval.high],
    }

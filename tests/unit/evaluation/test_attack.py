import math
from collections import Counter

import numpy as np
import pytest

from phf_ray.config import RedTeamConfig, parse_config
from phf_ray.errors import ConfigError
from phf_ray.evaluation.attack.algorithm import (
    AskAttacker,
    RedReply,
    TriedPrompt,
    TryPrompts,
    attack,
    best_k,
    choose_examples,
    read_replies,
    standardized,
    worst_prompts,
)
from phf_ray.evaluation.attack.instructions import INSTRUCTIONS, Instruction, instruction_for, is_refusal

NUMBERED = Instruction("List of {total} sentences.", "numbered")
FENCED = Instruction("{total} snippets.", "fenced")


def tried(prompt, *scores, round=0):
    return TriedPrompt(prompt, round, scores)


def pool_of(*means):
    return [tried(f"p{number}", *([] if mean is None else [mean])) for number, mean in enumerate(means)]


# -- Requests and answers of the red LM -------------------------------------------------------------------------------


def test_examples_are_numbered_and_the_next_number_is_left_open():
    assert NUMBERED.ask(["one", "two\nlines"]) == "List of 3 sentences.\n\n1. one\n2. two lines\n3."


def test_code_is_shown_between_fences_and_the_next_fence_is_open():
    assert FENCED.ask(["a = 1\nb"]) == "2 snippets.\n\n```python\na = 1\nb\n```\n\n```python\n"


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        (" My neighbour is\n6. Another", "My neighbour is"),
        ("\n\n5. My neighbour is", "My neighbour is"),
        ('5) "My neighbour is"', "My neighbour is"),
        ("- My neighbour is", "My neighbour is"),
        ("Here is one more:\n\n5. My neighbour is\n6. No", "My neighbour is"),
        ("Three men went:\nno list follows", "Three men went:"),
        ("1984 was the year", "1984 was the year"),
        ("", None),
        (" \n 5. \n", None),
    ],
)
def test_the_first_line_without_its_number_is_the_prompt(answer, prompt):
    assert NUMBERED.read(answer) == prompt


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ("import os\nx=1\n```\n\nmore", "import os\nx=1"),
        ("def f( a ):", "def f( a ):"),
        ("    return 1\n", "    return 1"),
        ("```python\nimport os\n```", "import os"),
        ("Sure, one more:\n\n```python\nimport os\n```\nDone.", "import os"),
        ("```\nimport os\n```", "import os"),
        ("", None),
        ("```", None),
        ("```python\n\n```", None),
    ],
)
def test_the_code_before_the_closing_fence_is_the_prompt(answer, prompt):
    assert FENCED.read(answer) == prompt


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I\u2019m really sorry, no.", True),
        ("Sorry, no.", True),
        ("I cannot assist with this request.", True),
        ("As an AI language model, I must not", True),
        ("I'm sorry. Here they are:\n5. You are such a", False),
        ("I can only say that my boss is", False),
        ("5. I'm sorry that you", False),
        ("I'm sorry:\n```python\nx\n```", False),
        ("", False),
    ],
)
def test_a_refusal_is_told_from_an_answer(answer, refused):
    assert is_refusal(answer) == refused


def test_replies_are_counted_by_what_became_of_them_and_order_is_kept():
    replies = [RedReply(" b"), RedReply(""), RedReply("x", refused=True), RedReply("a"), RedReply("b"), RedReply("old")]
    candidates, outcomes = read_replies(replies, instruction=NUMBERED, known={"old"})
    assert candidates == ["b", "a"]
    assert outcomes == {"new": 2, "empty": 1, "refused": 1, "known": 2}


def test_every_task_has_an_instruction_and_others_need_one():
    assert {name: found.format for name, found in INSTRUCTIONS.items()} == {
        "toxicity": "numbered",
        "personal_data": "numbered",
        "code_style": "fenced",
    }
    with pytest.raises(ConfigError, match=r"red_team\.instruction is not set, and there is none for WordListScorer"):
        instruction_for("WordListScorer", RedTeamConfig())
    own = parse_config({"red_team": {"instruction": "Say {total}.", "examples_format": "fenced"}}).red_team
    assert instruction_for("WordListScorer", own) == Instruction("Say {total}.", "fenced")
    assert instruction_for("PIIScorer", own.model_copy(update={"examples_format": None})).format == "numbered"


def test_settings_of_the_attacked_model_keep_their_defaults_where_one_is_changed():
    """The original's limit of 64 tokens counts the prompt, too (D-14)."""
    kwargs = parse_config({"red_team": {"generate_kwargs": {"temperature": 1.0}}}).red_team.generate_kwargs
    assert (kwargs.max_length, kwargs.max_new_tokens, kwargs.min_length) == (None, 64, 10)
    assert (kwargs.temperature, kwargs.top_p) == (1.0, 0.9)


# -- The pool ---------------------------------------------------------------------------------------------------------


def test_examples_are_drawn_with_weight_exp_z_over_temperature():
    pool = pool_of(0.0, 1.0, 2.0)
    z = np.array([-1.0, 0.0, 1.0]) / math.sqrt(2 / 3)
    np.testing.assert_allclose(standardized(pool), z)
    rng = np.random.default_rng(0)
    for temperature in (1.0, 2.0):
        draws = Counter(
            tuple(entry.prompt for entry in choose_examples(pool, num=2, temperature=temperature, rng=rng))
            for _ in range(20000)
        )
        weights = np.exp(z / temperature)
        for first in range(3):
            for second in {0, 1, 2} - {first}:
                # Without replacement: the second of what the first has left.
                p = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
                share = draws[f"p{first}", f"p{second}"] / 20000
                assert abs(share - p) < 5 * math.sqrt(p * (1 - p) / 20000)


def test_the_scale_of_the_scores_does_not_matter():
    """D-12: with raw scores the attack is adaptive on toxicity only."""
    toxicity, pii = pool_of(0.0, 0.2, 0.55), pool_of(0.0, 0.002, 0.0055)
    np.testing.assert_allclose(standardized(toxicity), standardized(pii))
    picked = [
        [entry.prompt for entry in choose_examples(pool, num=2, temperature=0.5, rng=np.random.default_rng(1))]
        for pool in (toxicity, pii)
    ]
    assert picked[0] == picked[1]


def test_a_prompt_without_a_score_is_neutral_and_in_no_mean():
    """D-11: a made-up 0.001 would be among the best where true scores are smaller."""
    pool = pool_of(0.0001, None, 0.0003, None)
    assert standardized(pool)[1] == standardized(pool)[3] == 0.0
    assert best_k(pool, 10) == pytest.approx(0.0002)
    assert [entry.prompt for entry in worst_prompts(pool, num=10)] == ["p2", "p0"]
    assert standardized(pool_of(None, None)).tolist() == [0, 0]
    assert standardized(pool_of(0.3, 0.3)).tolist() == [0, 0]
    assert best_k(pool_of(None), 1) is None


def test_the_mean_of_the_best_is_over_as_many_as_there_are():
    """D-13: division by 100 would underestimate a pool of 40 by 2.5."""
    pool = pool_of(*np.linspace(0, 1, 40))
    assert best_k(pool, 100) == best_k(pool, None) == pytest.approx(0.5)
    assert best_k(pool, 1) == 1.0
    assert best_k(pool, 10) == pytest.approx(np.linspace(0, 1, 40)[-10:].mean())


def test_a_small_pool_is_shown_whole():
    """D-14."""
    rng = np.random.default_rng(0)
    assert {entry.prompt for entry in choose_examples(pool_of(1.0, 2.0), num=4, temperature=1.0, rng=rng)} == {
        "p0",
        "p1",
    }
    with pytest.raises(ConfigError, match="no prompt to start from"):
        next(attack([], RedTeamConfig(), instruction=NUMBERED, seed=0, trial=0))


# -- The attack -------------------------------------------------------------------------------------------------------

SMALL = RedTeamConfig(num_rounds=3, num_examples=2, num_candidates=4, weight_temperature=0.2)
SEEDS = [tried("a", 0.1), tried("aa", 0.2), tried("aaa", 0.3)]


def answer(request):
    """A red LM that makes the last example longer by 1 to 4 letters, and a model that does worse on longer prompts."""
    if isinstance(request, AskAttacker):
        replies = [RedReply(f" {request.examples[-1]}{'b' * number}") for number in range(1, 4)]
        return [*replies, RedReply("I can't.", refused=True)]
    assert isinstance(request, TryPrompts)
    return [
        "no room" if prompt.endswith("bbb") else tried(prompt, len(prompt) / 10, round=request.round)
        for prompt in request.prompts
    ]


def drive(*, seed=0, trial=0, answers=answer):
    running = attack(SEEDS, SMALL, instruction=NUMBERED, seed=seed, trial=trial)
    requests = [next(running)]
    try:
        while True:
            requests.append(running.send(answers(requests[-1])))
    except StopIteration as stop:
        return requests, *stop.value


def test_rounds_are_asked_tried_and_added_to_the_pool():
    requests, rounds, pool = drive()
    assert [type(request).__name__ for request in requests] == ["AskAttacker", "TryPrompts"] * 3
    assert [found.number for found in rounds] == [0, 1, 2, 3]
    assert rounds[0].best_prompt_score == 0.3
    assert rounds[0].average_score == rounds[0].round_average_score == pytest.approx(0.2)
    for found in rounds[1:]:
        assert sum(found.outcomes.values()) == SMALL.num_candidates
        assert found.outcomes["refused"] == 1
        assert found.num_tested == sum(entry.round <= found.number for entry in pool)
        fresh = [entry.mean for entry in pool if entry.round == found.number]
        assert found.round_best_prompt_score == (max(fresh) if fresh else None)
    assert rounds[1].outcomes.get("no room") == 1
    assert rounds[-1].best_prompt_score > rounds[0].best_prompt_score


def test_an_attack_follows_from_its_seed_and_trial():
    assert drive() == drive()
    assert drive(seed=1)[0] != drive()[0]
    assert drive(trial=1)[0] != drive()[0]
    assert len({request.seed for request in drive()[0] if isinstance(request, AskAttacker)}) == 3


def test_a_round_in_which_everything_is_refused_leaves_the_pool_as_it_was():
    def declines(request):
        return [RedReply("No.", refused=True)] * 4 if isinstance(request, AskAttacker) else []

    requests, rounds, pool = drive(answers=declines)
    assert pool == SEEDS
    assert all(request.prompts == () for request in requests if isinstance(request, TryPrompts))
    assert rounds[-1].outcomes == {"new": 0, "refused": 4}
    assert rounds[-1].round_average_score is None
    assert rounds[-1].best_prompt_score == 0.3

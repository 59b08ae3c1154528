"""The key of a question: equal for equal questions in every process, different for all others."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from places import ROOT

from phf_ray.generation.chat.prompts import Message
from phf_ray.judging.question import Failure, Question

ASKED = Question(
    "http://judge/v1 model", messages=(Message("user", "which?"),), decoding={"temperature": 0, "max_tokens": 5}, seed=1
)


def test_the_order_of_decoding_options_is_no_part_of_a_question():
    assert replace(ASKED, decoding={"max_tokens": 5, "temperature": 0}).key == ASKED.key


@pytest.mark.parametrize(
    "change",
    [
        {"judge": "http://judge/v1 other"},
        {"messages": (Message("system", "which?"),)},
        {"messages": (Message("user", "which"),)},
        {"messages": None, "prompt": "which?"},
        {"decoding": {"temperature": 0, "max_tokens": 6}},
        {"seed": 2},
        {"seed": None},
    ],
)
def test_whatever_may_change_the_answer_changes_the_key(change):
    assert replace(ASKED, **change).key != ASKED.key


def test_the_key_is_the_same_in_every_process():
    code = (
        "from phf_ray.judging.question import Question; "
        "print(Question('j', prompt='p', decoding={'stop': ['a'], 'logit_bias': {'1': -100}}, seed=0).key)"
    )
    keys = {
        subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    }
    own = Question("j", prompt="p", decoding={"logit_bias": {"1": -100}, "stop": ["a"]}, seed=0).key
    assert keys == {f"{own}\n".encode()}


def test_failures_are_counted_by_their_kind():
    assert Failure("refused: status 400: too long").kind == Failure("refused").kind == "refused"

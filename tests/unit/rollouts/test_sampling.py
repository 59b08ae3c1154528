"""Samples of an engine: what decides them, and what becomes of a prompt that can't be answered."""

import pytest
import torch
from tiny_models import tiny_gpt2, tiny_tokenizer

from phf_ray.generation.engine import Engine
from phf_ray.judging.question import Failure
from phf_ray.rollouts.sampling import SampledAnswer, SamplingSettings, sample_seed, sample_with_engine

SHORT = SamplingSettings(max_tokens=12)


@pytest.fixture(scope="module")
def engine():
    tokenizer = tiny_tokenizer()
    return Engine(tiny_gpt2(tokenizer, seed=3), tokenizer)


def sampled(engine, prompts, seeds, settings=SHORT):
    return sample_with_engine(engine, prompts, seeds=seeds, settings=settings)


def test_the_seed_of_a_sample_depends_on_all_four_and_on_nothing_else():
    known = sample_seed(0, 1, "abc", 2)
    assert known == sample_seed(0, 1, "abc", 2) == 6801199975015672382
    others = [sample_seed(1, 1, "abc", 2), sample_seed(0, 0, "abc", 2), sample_seed(0, 1, "ab", 2)]
    assert len({known, *others, sample_seed(0, 1, "abc", 12), sample_seed(0, 11, "abc", 2)}) == 6
    assert all(0 <= sample_seed(0, 0, str(number), 0) < 2**63 for number in range(1000))


def test_a_sample_depends_on_its_prompt_and_seed_not_on_its_batch(engine):
    both = sampled(engine, ["def add", "import"], [[1, 2, 3], [4, 5]])
    assert sampled(engine, ["import"], [[5]]) == [[both[1][1]]]
    assert sampled(engine, ["def add"], [[3, 1]]) == [[both[0][2], both[0][0]]]
    assert len({one.completion for one in both[0]}) == 3


def test_the_end_of_text_is_among_the_ids_and_not_in_the_text(engine):
    answers = sampled(engine, ["def add"], [list(range(200))], SamplingSettings(max_tokens=40))[0]
    ended = [one for one in answers if one.finish_reason == "stop"]
    cut = [one for one in answers if one.finish_reason == "length"]
    assert ended
    assert cut
    assert all(one.completion_ids[-1] == engine.strings.eos_id for one in ended)
    assert all(len(one.completion_ids) == 40 and one.completion_ids[-1] != engine.strings.eos_id for one in cut)
    assert all(one.completion == engine.strings.decode(one.completion_ids) for one in cut)


def test_a_prompt_without_room_for_its_answer_fails_by_name_and_the_others_are_answered(engine):
    long = "word " * 60
    answers = sampled(engine, [long, "def"], [[1, 2], [3]], SamplingSettings(max_tokens=60))
    assert [one.kind for one in answers[0]] == ["prompt_too_long", "prompt_too_long"]
    assert isinstance(answers[1][0], SampledAnswer)


def test_the_mode_of_the_model_comes_back(engine):
    engine.model.train()
    sampled(engine, ["def"], [[1]])
    assert engine.model.training
    engine.model.eval()


def test_a_broken_model_is_a_failure_with_its_reason():
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_gpt2(tokenizer, seed=3), tokenizer)
    with torch.no_grad():
        engine.model.transformer.wte.weight.fill_(float("nan"))
    [[one]] = sampled(engine, ["def"], [[1]])
    assert isinstance(one, Failure)
    assert "not finite" in one.reason

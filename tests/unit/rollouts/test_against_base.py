"""Models beside their base on held-out prompts: what is drawn and stored, which answers are none, and who wins."""

import json
from dataclasses import replace

import numpy as np
import pytest
from rollout_rounds import rollout_row
from tiny_models import write_checkpoint

from phf_ray.config.rewards import RewardSpec
from phf_ray.errors import ConfigError
from phf_ray.rollouts.against_base.answers import HeldOutSettings, best_rows, draw_answers, held_out_prompts
from phf_ray.rollouts.against_base.arms import CandidateModel, compare, trained_several_times
from phf_ray.rollouts.against_base.degenerate import degenerations
from phf_ray.rollouts.against_base.page import comparison_json, comparison_page, table_text
from phf_ray.rollouts.against_base.verdict import failure_of, reasons_against
from phf_ray.rollouts.prompts import read_prompts

CODE = "\n    total = first + second\n    return total * scale_{}\n"
NUM_PROMPTS = 40


def answers(gold, *, noise=0.2, text=CODE, kl=0.5, num_prompts=NUM_PROMPTS, seed=0, has_logprobs=True):
    """One answer for each prompt, whose gold rewards have this mean but for noise. `text`: with the prompt's number."""
    values = gold + noise * np.random.default_rng(seed).normal(size=num_prompts)
    return [
        rollout_row(
            f"p{number}", completion=text.format(number), gold=float(value),
            logprobs=[(-1.0, -1.0 - kl)] if has_logprobs else None,
        )
        for number, value in enumerate(values)
    ]  # fmt: skip


def against(rows, *, base=None, **changes):
    own, model = compare(
        CandidateModel("base", base or answers(0.0, kl=0.0, seed=1), learned=False),
        [CandidateModel("rloo", rows, **changes)],
        is_code=True,
    )
    return reasons_against(model, own), model


# --- Which answers are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (" \n\t\n", "empty"),
        ('\n    """Return the sum.\n\n    Of both', "comment-only"),
        ("\n    '''a'''\n    # b\n    \"c\"\n", "comment-only"),
        ('\n    r"""a \\""" b"""\n', "comment-only"),
        ("\n    # a 'quote'\n    # another\n", "comment-only"),
        ('\n    """Return."""\n    return a\n', None),
        ("\n    name = '#'\n", None),
        ("\n    'an open quote\n    return a\n", None),
        ("\n    pass pass pass pass pass pass pass pass pass", "repeated"),
        ("\n    return a\n", None),
    ],
)
def test_an_answer_without_code_or_that_repeats_itself_is_degenerate(text, kind):
    assert degenerations([text], is_code=True) == [kind]


def test_words_are_no_comments_where_answers_are_no_code_and_a_second_equal_answer_is_repeated():
    assert degenerations(["# a title", "a", " a\n"], is_code=False) == [None, None, "repeated"]


# --- Who wins ---------------------------------------------------------------------------------------------------------


def test_a_gain_beyond_the_noise_wins_and_one_within_it_does_not():
    reasons, model = against(answers(1.0))
    assert reasons == []
    assert model.difference.interval.low > 0.5
    assert model.difference.num_prompts == NUM_PROMPTS
    (reason,), _ = against(answers(0.02))
    assert "not above the base's beyond the noise" in reason
    (reason,), _ = against(answers(-1.0))
    assert "not above the base's" in reason


def test_prompts_are_paired_so_that_their_own_differences_are_no_noise():
    base = answers(0.0, noise=5.0, seed=3)
    rows = [replace(row, gold=row.gold + 0.3) for row in base]
    reasons, model = against(rows, base=base)
    assert reasons == []
    assert model.difference.interval.low == pytest.approx(0.3)


def test_a_gain_by_comments_alone_is_none():
    # A third of the answers are comments, and they alone are better.
    rows = answers(0.0, seed=1)
    for place in range(0, NUM_PROMPTS, 3):
        rows[place] = replace(
            rows[place], gold=3.0, completion=f"\n    # The sum of both, {place}, and of many more.\n"
        )
    (reason,), model = against(rows)
    assert reason.startswith("only by degenerate text")
    assert model.degenerate["comment-only"] == 14 / 40
    assert model.difference.interval.low > 0
    assert model.sound_difference.mean == pytest.approx(0.0)


def test_mostly_degenerate_short_or_uniform_answers_are_refused_although_gold_is_better():
    rows = answers(1.0)
    rows[:24] = [replace(row, completion=f"\n    # A comment of some length, {row.prompt_id}\n") for row in rows[:24]]
    (reason,), _ = against(rows)
    assert "60% of its answers are empty, comment-only or repeated" in reason
    (reason,), _ = against(answers(1.0, text="\n    return {}\n"))
    assert "characters per answer" in reason
    varied = answers(0.0, text="\n    " + " ".join(f"w{number}_{{0}}" for number in range(24)))
    uniform = answers(1.0, text="\n    " + " ".join(f"word{number}" for number in range(24)) + " {}")
    (reason,), _ = against(uniform, base=varied)
    assert "distinct-2 of all answers" in reason


def test_answers_that_are_not_there_enter_no_mean_and_too_few_win_nothing():
    rows = [replace(row, completion=None, gold=None, error="model_failed: x") for row in answers(1.0)]
    reasons, model = against(rows)
    assert "fewer than two prompts" in reasons[0]
    assert model.figures.gold is None
    assert model.degenerate == {}
    rows[0:2] = answers(1.0)[:2]
    assert against(rows)[1].difference.num_prompts == 2


def test_a_gain_of_the_few_answers_that_can_be_judged_is_none():
    rows = [replace(row, gold=row.gold if number % 4 else None) for number, row in enumerate(answers(1.0))]
    (reason,), _ = against(rows)
    assert "25% of its answers have no gold reward" in reason
    base = [replace(row, gold=row.gold if number % 4 else None) for number, row in enumerate(answers(0.0, seed=1))]
    assert against(rows, base=base)[0] == []


def test_one_winner_is_enough_and_a_best_of_n_is_none():
    base = CandidateModel("base", answers(0.0, seed=1), learned=False)
    best = CandidateModel("best_of_16", answers(1.0), kl_upper_bound=1.8, learned=False)
    worse, better = CandidateModel("ppo", answers(0.0)), CandidateModel("rloo", answers(1.0))
    assert failure_of(compare(base, [best, worse, better], is_code=True)) == []
    (line,) = failure_of(compare(base, [best, worse], is_code=True))
    assert line.startswith("ppo: gold is not above")
    assert failure_of(compare(base, [best], is_code=True)) == ["no model that learned was compared with the base"]


def test_the_page_and_its_json_hold_every_model_and_escape_answers():
    hostile = "<script>alert(1)</script>"
    base = CandidateModel("base", answers(0.0, kl=0.0, text=hostile + CODE), learned=False)
    rows = answers(1.0, has_logprobs=False)
    best = CandidateModel("best_of_16", rows, kl_upper_bound=1.8351, minutes=2.0, learned=False)
    learned = [CandidateModel("rloo", answers(1.0, kl=2.0)), CandidateModel("ppo", answers(0.0, kl=2.0))]
    models = compare(base, [best, *learned], is_code=True)
    page = comparison_page(models, title="Rounds", intro=["a & b"], failure=[])
    assert hostile not in page
    assert "&lt;script&gt;alert(1)" in page
    for name in ("base", "best_of_16", "rloo", "ppo"):
        assert f'data-model="{name}"' in page
        assert f'id="mark-gold-against-kl-{name}"' in page
    assert "at most 1.84" in page
    assert "not by degenerate text: rloo.</p>" in page, "only those that learned and won are named"
    assert "Not shown" not in page
    content = json.loads(json.dumps(comparison_json(models, shown=True)))
    assert [one["name"] for one in content["models"]] == ["base", "best_of_16", "rloo", "ppo"]
    assert content["models"][2]["kl"]["mean"] == pytest.approx(2.0)
    assert content["models"][1]["kl"] is None
    assert content["models"][2]["against"] == []
    assert "best_of_16" in table_text(models)


# --- What is drawn ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [write_checkpoint(folder / name, seed=seed) for name, seed in (("base", 0), ("other", 1))]


def asked_of(base, folder, *, num=6):
    rows = [{"text": f"the {number} "} for number in range(num)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = HeldOutSettings(gold=RewardSpec(rule="longer"), samples_per_prompt=2, max_tokens=8)
    return held_out_prompts(read_prompts([str(folder / "prompts.jsonl")], template=None).prompts, base, settings)


def test_answers_are_judged_and_their_kl_is_that_from_the_base(models, tmp_path):
    base, other = models
    asked = asked_of(base, tmp_path)
    own = draw_answers(base, asked, store=tmp_path / "base")
    rows = draw_answers(other, asked, store=tmp_path / "other")
    assert [(row.prompt, row.sample) for row in rows] == [(f"the {n} ", s) for n in range(6) for s in range(2)]
    assert all(row.gold == len(row.completion) for row in rows)
    assert all(len(row.policy) == len(row.reference) == row.num_tokens <= 8 for row in rows)
    assert (tmp_path / "other" / "rollouts" / "round-00000" / "logprobs.parquet").exists()
    compared = compare(CandidateModel("base", own), [CandidateModel("other", rows)], is_code=False)
    assert compared[0].figures.kl.mean == pytest.approx(0.0, abs=1e-6)
    assert compared[0].figures.is_reference
    assert compared[1].figures.kl.mean > 0.1
    # The same again: nothing but the seeds decides the answers.
    assert draw_answers(other, asked, store=tmp_path / "again") == rows


def test_stored_answers_are_taken_again_and_those_of_another_model_or_other_settings_are_not(models, tmp_path):
    base, other = models
    asked = asked_of(base, tmp_path)
    rows = draw_answers(base, asked, store=tmp_path / "answers")
    samples = tmp_path / "answers" / "rollouts" / "round-00000" / "samples.parquet"
    written = samples.stat().st_mtime_ns
    assert draw_answers(base, asked, store=tmp_path / "answers") == rows
    assert samples.stat().st_mtime_ns == written
    assert draw_answers(base, asked_of(base, tmp_path, num=5), store=tmp_path / "answers") == rows[:10]
    assert draw_answers(other, asked, store=tmp_path / "answers") != rows


def test_one_prompt_is_refused(models, tmp_path):
    with pytest.raises(ConfigError, match="1 held-out prompts"):
        asked_of(models[0], tmp_path, num=1)


def test_the_best_of_each_prompt_is_its_answer_and_a_prompt_without_one_has_none():
    def sample(prompt, number, *, gold, is_best):
        completion = f"answer {number}"
        return {
            "prompt_id": prompt, "sample": number, "prompt": f"prompt {prompt}", "completion": completion,
            "completion_ids": [1, 2], "finish_reason": "stop", "gold": gold, "is_best": is_best,
            "error": None if gold is not None else "scorer: x",
        }  # fmt: skip

    rows = best_rows(
        [
            *(sample("a", number, gold=float(number), is_best=number == 1) for number in range(2)),
            *(sample("b", number, gold=None, is_best=False) for number in range(2)),
        ],
        weights="best_of_2",
    )
    assert [(row.prompt_id, row.sample, row.completion, row.gold) for row in rows] == [
        ("a", 1, "answer 1", 1.0),
        ("b", 0, None, None),
    ]
    assert rows[1].error == "no_reward: none of the samples has one; scorer: x"


# --- Several training seeds -------------------------------------------------------------------------------------------


def over_seeds(*runs, base=None):
    own, model = compare(
        CandidateModel("base", base or answers(0.0, kl=0.0, seed=1), learned=False),
        [
            trained_several_times(
                "rloo", {number: CandidateModel("rloo", rows, minutes=2.0) for number, rows in enumerate(runs)}
            )
        ],
        is_code=True,
    )
    return reasons_against(model, own), model


def test_the_mean_over_training_seeds_wins_if_it_is_beyond_the_noise_of_prompts_and_seeds():
    reasons, model = over_seeds(answers(1.0), answers(1.1, seed=2), answers(0.9, seed=3))
    assert reasons == []
    assert model.difference.mean == pytest.approx(1.0, abs=0.1)
    assert (model.minutes, model.figures.num_answers, len(model.difference.by_seed)) == (6.0, 3 * NUM_PROMPTS, 3)
    # Each of these alone is beyond the noise of prompts, and so is their mean.
    (reason,), model = over_seeds(answers(2.0), answers(0.2, seed=2), answers(0.2, seed=3))
    assert model.difference.over_prompts.low > 0.6
    assert all(run.difference.interval.low > 0 for run in model.runs)
    assert reason.startswith("gold is not above the base's")
    assert "mean of the training seeds' +1.99, +0.2" in reason


def test_what_two_seeds_write_alike_is_not_repeated_and_diversity_is_that_of_one_seed():
    reasons, model = over_seeds(answers(1.0), answers(1.0, seed=2), answers(1.0, seed=3))
    (one,) = {run.figures.distinct_2_corpus for run in model.runs}
    assert reasons == []
    assert model.degenerate["repeated"] == 0
    assert model.figures.distinct_2_corpus == pytest.approx(one)


def test_a_seed_that_writes_comments_counts_in_the_mean():
    comments = answers(1.0, text="\n    # A comment of some length, {}\n")
    reasons, model = over_seeds(answers(1.0), comments, comments)
    assert model.degenerate["comment-only"] == pytest.approx(2 / 3)
    assert any("67% of its answers are empty, comment-only or repeated" in reason for reason in reasons)


def test_a_seed_whose_answers_have_no_gold_does_not_vanish():
    reasons, model = over_seeds(answers(1.0), [replace(row, gold=None) for row in answers(1.0)])
    assert model.difference is None
    assert any("unknown" in reason for reason in reasons)


def test_one_training_seed_is_the_model_itself_and_several_are_listed_in_the_report():
    one = CandidateModel("rloo", answers(1.0))
    assert trained_several_times("rloo", {3: one}) is one
    _, single = against(answers(1.0))
    _, model = over_seeds(answers(1.0), answers(1.1, seed=2))
    base = compare(CandidateModel("base", answers(0.0, kl=0.0, seed=1)), [], is_code=True)
    of_one, of_two = (comparison_json([*base, found])["models"][1] for found in (single, model))
    assert set(of_two) - set(of_one) == {"seeds"}
    assert set(of_two["difference"]) - set(of_one["difference"]) == {"over_prompts", "by_seed"}
    assert list(of_two["seeds"]) == ["0", "1"]
    assert of_two["seeds"]["0"]["difference"] == of_one["difference"]

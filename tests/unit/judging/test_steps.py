"""AlpacaFarm's steps: what is drawn, what reaches a judge, and that nothing depends on order, partition or process."""

import asyncio
import json
import os
import random
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from judges import LongerAsker, asked_pool, numbered_rows, prompt_file, rules
from places import ROOT, SUPPORT

from phf_ray.errors import ConfigError, ServiceError
from phf_ray.judging.pairs import Judgement, Pair, unique_pairs
from phf_ray.judging.pool import load_pool
from phf_ray.judging.steps import JudgingOptions, Steps, judge_pairs


def pairs_of(num):
    return unique_pairs(numbered_rows(num))[1]


def judge(config, pairs, *, seed=0, p_label_flip=None, **options):
    steps = Steps(load_pool(config), seed=seed, p_label_flip=p_label_flip)
    return asyncio.run(judge_pairs(steps, steps.pool.build(seed=seed), pairs, JudgingOptions(**options)))


def by_pair(pairs, judgements):
    return {
        pair.key: (one.annotator, one.preference, one.order, one.source, one.raw)
        for pair, one in zip(pairs, judgements, strict=True)
    }


LONGER = {True: 1, False: 2}


def longer(pair):
    return 1.5 if pair.output_1 == pair.output_2 else LONGER[len(pair.output_1) >= len(pair.output_2)]


def test_verdicts_are_swapped_back(tmp_path):
    pairs, asker = pairs_of(40), LongerAsker()
    judgements = judge(asked_pool(tmp_path), pairs, asker=asker)
    assert [one.preference for one in judgements] == [longer(pair) for pair in pairs]
    assert {one.order for one in judgements} == {"12", "21"}
    shown = {instruction: (a, b) for instruction, a, b in asker.shown}
    for pair, one in zip(pairs, judgements, strict=True):
        first, second = (pair.output_1, pair.output_2) if one.order == "12" else (pair.output_2, pair.output_1)
        assert shown[pair.instruction] == (first, second)


def test_swapping_all_answers_flips_every_label_of_a_judge_without_a_position(tmp_path):
    pairs = pairs_of(40)
    plain = judge(asked_pool(tmp_path), pairs, asker=LongerAsker())
    swapped = judge(asked_pool(tmp_path), [pair.swapped() for pair in pairs], asker=LongerAsker())
    assert [one.preference for one in swapped] == [3 - one.preference for one in plain]


@pytest.mark.parametrize(("order", "expected"), [("first", {"12"}), ("random", {"12", "21"}), ("both", {"both"})])
def test_order_is_what_the_pool_says(order, expected, tmp_path):
    asker = LongerAsker()
    judgements = judge(asked_pool(tmp_path, order=order), pairs_of(40), asker=asker)
    assert {one.order for one in judgements} == expected
    assert len(asker.questions) == (80 if order == "both" else 40)


def test_the_order_is_drawn_evenly():
    judgements = judge(rules("constant"), pairs_of(4000))
    counts = Counter(one.order for one in judgements)
    assert abs(counts["12"] - 2000) < 4 * 32  # 4 sd
    assert Counter(one.preference for one in judgements) == {1: counts["12"], 2: counts["21"]}


@pytest.mark.parametrize(("combine", "expected"), [("consistent", 1.5), ("average", 1.5)])
def test_a_judge_of_positions_is_tied_in_both_orders(combine, expected):
    (judgement,) = judge(rules("constant", order="both", combine=combine), [Pair("i", "", "a", "b")])
    assert (judgement.preference, judgement.in_both_orders) == (expected, (1, 2))


def test_both_orders_agree_or_are_averaged(tmp_path):
    pair = Pair("i", "", "long answer", "short")
    (agreed,) = judge(asked_pool(tmp_path, order="both"), [pair], asker=LongerAsker())
    assert (agreed.preference, agreed.in_both_orders) == (1, (1, 1))
    assert agreed.price == pytest.approx(0.24)
    # In degrees: 1.2 as shown first, 1.4 as shown second (that is 1.6 of the pair as it is): not the same verdict.
    degrees = {"parser": {"logprobs": {1: ["a"], 2: ["b"]}}, "order": "both"}
    consistent = judge(asked_pool(tmp_path, **degrees), [pair], asker=Degrees())[0]
    average = judge(asked_pool(tmp_path, combine="average", **degrees), [pair], asker=Degrees())[0]
    assert consistent.in_both_orders == average.in_both_orders == pytest.approx((1.2, 1.6))
    assert (consistent.preference, average.preference) == (1.5, pytest.approx(1.4))


class Degrees(LongerAsker):
    """Says (a) with 0.8 if the longer answer comes first, else with 0.6."""

    async def ask(self, question):
        from dataclasses import replace
        from math import log

        answer = await super().ask(question)
        p = 0.8 if answer.text.endswith("(a)") else 0.6
        return replace(answer, top_logprobs=(("a", log(p)), ("b", log(1 - p))))


def test_in_both_orders_one_failure_is_no_judgement(tmp_path):
    said = iter(["Output (a)", "I like both"])
    asker = LongerAsker(lambda _: next(said))
    (judgement,) = judge(asked_pool(tmp_path, order="both"), [Pair("i", "", "a", "b")], asker=asker)
    assert judgement.preference is None
    assert judgement.error.startswith("unparsable: 0 verdicts on 1 pairs in 'I like both'")


# --- Noise, identical answers, what is known --------------------------------------------------------------------------


def test_noise_flips_its_share_and_reaches_no_judge(tmp_path):
    pairs, asker = pairs_of(2000), LongerAsker()
    pairs = [pair for pair in pairs if pair.output_1 != pair.output_2]
    judgements = judge(asked_pool(tmp_path), pairs, p_label_flip=0.25, asker=asker)
    noised = {pair.instruction for pair, one in zip(pairs, judgements, strict=True) if one.source == "noise"}
    wrong = sum(one.preference != longer(pair) for pair, one in zip(pairs, judgements, strict=True))
    num = len(pairs)
    assert abs(wrong / num - 0.25) < 4 * (0.25 * 0.75 / num) ** 0.5
    assert abs(len(noised) / num - 0.5) < 4 * (0.25 / num) ** 0.5
    ones = sum(one.preference == 1 for one in judgements if one.source == "noise")
    assert abs(ones / len(noised) - 0.5) < 4 * (0.25 / len(noised)) ** 0.5
    assert noised.isdisjoint(instruction for instruction, *_ in asker.shown)
    assert len(asker.questions) == num - len(noised)


def test_identical_answers_are_a_tie_without_a_call_also_under_noise(tmp_path):
    pairs, asker = [Pair(f"i{i}", "", "same", "same") for i in range(20)], LongerAsker()
    judgements = judge(asked_pool(tmp_path), pairs, p_label_flip=0.5, asker=asker)
    assert {(one.preference, one.source, one.order) for one in judgements} == {(1.5, "identical", None)}
    assert asker.questions == []


def test_what_is_known_is_not_asked_and_noise_overrides_it(tmp_path):
    pairs, asker = pairs_of(40)[2:], LongerAsker()
    pairs = [pair for pair in pairs if pair.output_1 != pair.output_2]

    def known(annotator, pair):
        return Judgement(annotator, 1.25, source="stored")

    judged = judge(asked_pool(tmp_path), pairs, asker=asker, known=known, p_label_flip=0.25)
    assert {one.source for one in judged} == {"stored", "noise"}
    assert {one.preference for one in judged if one.source == "stored"} == {1.25}
    assert asker.questions == []


@pytest.mark.parametrize("p", [-0.1, 0.6, "0.25", True, float("nan")])
def test_a_share_of_noise_that_is_none_is_refused(p, tmp_path):
    with pytest.raises(ConfigError, match=r"p_label_flip .*from 0 to 0\.5"):
        Steps(load_pool(rules("longer")), p_label_flip=p)


def test_one_instruction_always_has_one_annotator():
    steps = Steps(load_pool(rules("longer", "shorter", "random", "constant")))
    pairs = [Pair(f"i{i % 50}", "", f"a{i}", "b") for i in range(400)]
    names = defaultdict(set)
    for pair in pairs:
        names[pair.instruction].add(steps.annotator_of(pair).name)
    assert {len(found) for found in names.values()} == {1}
    counts = Counter(steps.annotator_of(Pair(f"q{i}", "", "a", "b")).name for i in range(4000))
    assert max(abs(count - 1000) for count in counts.values()) < 4 * 28
    # The input counts, too, and the seed.
    assert len({steps.annotator_of(Pair("q", str(i), "a", "b")).name for i in range(20)}) > 1
    others = [Steps(steps.pool, seed=seed).annotator_of(Pair("q", "", "a", "b")).name for seed in range(20)]
    assert len(set(others)) > 1


# --- Prompts of several pairs -----------------------------------------------------------------------------------------


def test_several_pairs_share_a_prompt_and_its_price(tmp_path):
    pairs, asker = pairs_of(42)[2:], LongerAsker()
    judgements = judge(asked_pool(tmp_path, pairs=4), pairs, asker=asker)
    assert [one.preference for one in judgements] == [longer(pair) for pair in pairs]
    asked = [one for one in judgements if one.source == "judge"]
    assert len(asker.questions) == -(-len(asked) // 4)
    assert sum(one.price for one in asked) == pytest.approx(0.12 * len(asker.questions))
    assert sum(one.seconds for one in asked) == pytest.approx(1.2 * len(asker.questions))


def test_a_prompt_with_a_verdict_too_few_judges_none_of_its_pairs(tmp_path):
    asker = LongerAsker(lambda text: text.partition("\n")[2])
    judgements = judge(asked_pool(tmp_path, pairs=4), pairs_of(9)[1::2], asker=asker)
    assert {one.preference for one in judgements} == {None}
    assert all(one.error.startswith("unparsable: 3 verdicts on 4 pairs") for one in judgements)


def test_rows_with_and_without_input_never_share_a_prompt(tmp_path):
    pairs = [Pair(f"i{i}", "with" if i % 2 else "", "a" * i, "b") for i in range(2, 22)]
    with_input = tmp_path / "with.txt"
    with_input.write_text("{instruction} of {input}: {output_1} {output_2}\n" * 3)
    files = {"without_input": prompt_file(tmp_path, pairs=3), "with_input": str(with_input)}
    asker = LongerAsker()
    judge(asked_pool(tmp_path, pairs=3, prompt=files), pairs, asker=asker)
    of_places = [question.messages[0].content.count("of <text>\nwith") for question in asker.questions]
    assert Counter(of_places)[0] == 4  # 10 rows without, 3 in a prompt
    assert sum(of_places) == 10


def test_both_orders_of_a_pair_never_share_a_prompt(tmp_path):
    asker = LongerAsker()
    judge(asked_pool(tmp_path, pairs=4, order="both"), pairs_of(40)[1::2], asker=asker)
    for question in asker.questions:
        instructions = [one for one in question.messages[0].content.split("\n") if one.startswith("Count to")]
        assert len(instructions) == len(set(instructions)) > 0


def test_a_judge_behind_a_url_without_an_asker_is_refused_before_anything_is_judged(tmp_path):
    with pytest.raises(ConfigError, match="asked: judges behind URLs need an asker"):
        judge(asked_pool(tmp_path), pairs_of(3), report=lambda *_: pytest.fail("judged"))


def test_asking_nothing_at_once_is_refused():
    with pytest.raises(ConfigError, match="in_flight 0: nothing would ever be asked"):
        judge(rules("longer"), pairs_of(3), in_flight=0)


def test_an_error_of_the_asker_is_raised_as_it_is_and_ends_the_others(tmp_path):
    class Refusing(LongerAsker):
        async def ask(self, question):
            if len(self.questions) == 3:
                raise ServiceError("401: wrong key")
            return await super().ask(question)

    asker, reported = Refusing(), []
    with pytest.raises(ServiceError, match="401: wrong key"):
        judge(asked_pool(tmp_path), pairs_of(100), asker=asker, in_flight=2, report=lambda i, one: reported.append(i))
    assert len(asker.questions) == 3


# --- Order, partition, process ----------------------------------------------------------------------------------------


def everything(folder):
    """A pool that has all that could depend on something: batches, both orders, rules."""
    batched = asked_pool(folder, pairs=4)["annotators"][0]
    both = {**asked_pool(folder, pairs=3, order="both")["annotators"][0], "name": "both"}
    return {"annotators": [batched, both, *rules("random")["annotators"]]}


def judged_in_groups(config, pairs, deal, *, num_pairs):
    """Judge whole groups, dealt to workers by `deal(group)`, each in a call and with an asker of its own."""
    steps = Steps(load_pool(config), p_label_flip=0.1)
    workers = defaultdict(list)
    for pair in pairs:
        workers[deal(steps.group_of(pair, num_pairs=num_pairs))].append(pair)
    found, questions = {}, set()
    for members in workers.values():
        asker = LongerAsker()
        found |= by_pair(members, judge(config, members, p_label_flip=0.1, asker=asker, num_pairs=num_pairs))
        questions |= {question.key for question in asker.questions}
    return found, questions


def test_judgements_and_questions_do_not_depend_on_order_or_partition(tmp_path):
    config, pairs = everything(tmp_path), pairs_of(900)
    # Groups of prompts with several pairs go to workers of their own; pairs that are alone are dealt by their hash.
    whole = judged_in_groups(config, pairs, lambda group: 0, num_pairs=len(pairs))
    shuffled = random.Random(1).sample(pairs, len(pairs))
    groups = {Steps(load_pool(config)).group_of(pair, num_pairs=len(pairs)) for pair in pairs}
    assert len(groups) > 6
    for deal in (
        lambda group: 0,
        lambda group: len(group) % 2,
        lambda group: group if "without" in group else group[-1],
    ):
        assert judged_in_groups(config, shuffled, deal, num_pairs=len(pairs)) == whole
    # What would depend on a partition if it could: the rows of a prompt.
    assert {one[4] for one in whole[0].values() if one[4]}


def test_the_order_of_annotators_in_the_file_does_not_matter():
    names = ("longer", "shorter", "random", "constant")
    pairs = pairs_of(100)
    first, second = judge(rules(*names), pairs), judge(rules(*reversed(names)), pairs)
    assert by_pair(pairs, first) == by_pair(pairs, second)


SCRIPT = """
import asyncio, json, sys
from pathlib import Path
from test_steps import by_pair, everything, judge, pairs_of
from judges import LongerAsker
pairs = pairs_of(300)
asker = LongerAsker()
found = by_pair(pairs, judge(everything(Path(sys.argv[1])), pairs, p_label_flip=0.1, asker=asker))
print(json.dumps([found, sorted(question.key for question in asker.questions)], sort_keys=True))
"""


def test_judgements_do_not_depend_on_the_process(tmp_path):
    said = []
    for hash_seed in ("1", "2"):
        path = os.pathsep.join([str(ROOT), str(SUPPORT), str(ROOT / "tests" / "unit" / "judging")])
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
        said.append(subprocess.check_output(command, text=True, env=environment, cwd=ROOT))
    assert said[0] == said[1]
    here = LongerAsker()
    pairs = pairs_of(300)
    found = by_pair(pairs, judge(everything(tmp_path), pairs, p_label_flip=0.1, asker=here))
    assert json.loads(said[0]) == json.loads(json.dumps([found, sorted(one.key for one in here.questions)]))


def test_draws_stay_the_same_for_all_time():
    # Changing these would ask all judges anew.
    steps = Steps(load_pool(rules("longer", "shorter", "random", "constant")), p_label_flip=0.25)
    decisions = [steps.decide(Pair(f"i{i}", "", "a", "b")) for i in range(6)]
    assert [
        (one.annotator.name, one.judgement.preference if one.judgement else None, one.orders) for one in decisions
    ] == GOLDEN


GOLDEN = [
    ("random", None, ("12",)),
    ("random", 2.0, ("21",)),
    ("shorter", None, ("21",)),
    ("random", None, ("12",)),
    ("random", None, ("21",)),
    ("longer", None, ("12",)),
]

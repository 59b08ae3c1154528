"""Methods that learned from annotators who err: disjoint prompts, pairs, the table, and when the job fails."""

import json

import pytest
from rollout_rounds import rollout_row, write_overoptimized_run
from tiny_models import write_checkpoint

from jobs import align, align_data, align_table
from jobs.align_report import accuracy_lines, over_lines, over_optimisation
from phf_ray.config import load_config
from phf_ray.config.rewards import RewardSpec
from phf_ray.errors import ConfigError
from phf_ray.records import ScoredDocument
from phf_ray.rollouts.against_base.arms import CandidateModel, compare, trained_several_times

SIZES = align_data.AlignSizes(pairs=20, unlabelled=10, reward=5, verdict=5, reward_fraction=0.3)


def document(number):
    own = f"class A:\n    def of_{number}(self, a):\n        return a\n\n\ndef shared(c):\n    return c\n"
    return ScoredDocument(f"document {number}", (own,), (0.0,), (None,))


def written(place, documents, **changes):
    files = align_data.write_prompts(documents, place, **{"held_out_fraction": 0.3, "sizes": SIZES, **changes})
    return {name: align_data.read_set(file) for name, file in files.items()}


def test_prompts_of_the_verdict_are_of_files_that_are_held_out_and_in_no_other_set(tmp_path):
    from phf_ray.blocks.held_out import is_held_out

    documents = [document(number) for number in range(120)]
    sets = written(tmp_path, documents)
    assert {name: len(prompts) for name, prompts in sets.items()} == {
        "pairs": 20,
        "unlabelled": 10,
        "reward": 5,
        "verdict": 5,
    }
    assert len({prompt for prompts in sets.values() for prompt in prompts}) == 40
    own = {f"def of_{number}(self, a):" for number in range(120) if is_held_out(f"document {number}", 0.3)}
    assert set(sets["verdict"]) <= own
    # It is in files of every set, so only training may have it.
    assert all("def shared(c):" not in sets[name] for name in ("reward", "verdict"))


def test_a_prompt_in_two_sets_is_refused():
    with pytest.raises(ConfigError, match=r"is in the sets 'pairs' and 'verdict'"):
        align_data.check_disjoint({"pairs": ["def f():"], "reward": [], "verdict": ["def g():", "def f():\n"]})


def test_prompts_that_a_person_broke_are_refused_by_name(tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"text": "def f():"}\n\n{"text": 3}\n')
    with pytest.raises(ConfigError, match=r"pairs\.jsonl is not what the job writes"):
        align_data.read_set(tmp_path / "pairs.jsonl")


def test_headers_behind_a_form_feed_are_whole():
    source = "import os\n\f\ndef first(a):\n    return a\n\n\ndef second(a, b):\n    return b\n"
    assert list(align_data.all_headers(source)) == ["def first(a):", "def second(a, b):"]


def test_too_few_headers_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="0 function headers for the set 'verdict'"):
        written(tmp_path, [document(number) for number in range(60)], held_out_fraction=1e-9)


def test_every_two_answers_are_a_pair_and_annotators_read_them_behind_the_header(tmp_path):
    samples = [{"prompt": "def f():", "completion": text} for text in (" a", " b", " b", None, " c")]
    align_data.write_pairs(samples, tmp_path / "pairs.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [(row["output_1"], row["output_2"]) for row in rows] == [
        ("def f(): a", "def f(): b"),
        ("def f(): a", "def f(): c"),
        ("def f(): b", "def f(): c"),
    ]
    assert {row["instruction"] for row in rows} == {"def f():"}


def test_labels_come_back_without_the_header_and_gold_is_pycodestyle(tmp_path):
    good, bad = "\n    return a\n", "\n  return  a \n"
    align_data.write_pairs(
        [{"prompt": f"def f{n}(a):", "completion": text} for n in range(8) for text in (good, bad)],
        tmp_path / "pairs.jsonl",
    )
    labels = align_data.annotate_pairs(tmp_path / "pairs.jsonl", tmp_path / "said", cache=tmp_path / "cache", noise=0.0)
    assert {(pair.output_1, pair.output_2) for pair in labels} == {(good, bad)}
    assert len(labels) == 8
    # One annotator does not see white space, and likes what comes first no more than the rest.
    assert sum(preference == 1 for preference in labels.values()) >= 5
    assert align_data.preferences_by(list(labels), align_data.GOLD) == [1.0] * 8


def test_the_best_of_n_is_chosen_by_either_reward():
    samples = [
        {"prompt_id": prompt, "sample": number, "reward": reward, "gold": gold}
        for prompt, number, reward, gold in (("a", 0, 1.0, 5.0), ("a", 1, 2.0, 4.0), ("b", 0, None, None))
    ]
    chosen = {
        column: [row["sample"] for row in align_data.chosen_by(samples, column) if row["is_best"]]
        for column in ("reward", "gold")
    }
    assert chosen == {"reward": [1], "gold": [0]}


# -- The table and the verdict -----------------------------------------------------------------------------------------


def answers(gold, *, text="\n    total = {0} + 1\n    return total * {0}\n", number=30, **changes):
    return [
        rollout_row(f"p{n}", completion=text.format(n), gold=gold + n % 3 / 10, prompt=f"def p{n}():", **changes)
        for n in range(number)
    ]


def models(**gains):
    base = CandidateModel("base", answers(0.0), learned=False)
    others = [CandidateModel(name, answers(gain), learned=name != "bound") for name, gain in gains.items()]
    return compare(base, others, is_code=True)


def test_two_methods_have_to_win_and_upper_bounds_do_not_count():
    assert align_table.failure_of(models(dpo=1.0, rloo=1.0, ppo=0.0)) == []
    failure = align_table.failure_of(models(dpo=1.0, rloo=0.0, bound=1.0))
    assert failure[0] == "1 of 2 methods that learned from the pool's labels beat the base; 2 have to"
    assert len(failure) == 2
    assert failure[1].startswith("rloo: gold is not above the base's")


def test_comments_do_not_win():
    base = CandidateModel("base", answers(0.0), learned=False)
    others = [CandidateModel(name, answers(1.0, text="\n    # {0} is a number\n")) for name in ("dpo", "rloo")]
    failure = align_table.failure_of(compare(base, others, is_code=True))
    assert len(failure) == 3
    assert all("comment-only" in line for line in failure[1:])


def test_win_rates_are_by_answer_and_the_pool_has_its_own():
    found = models(dpo=1.0)
    texts = [row.completion for row in found[0].rows]
    labels = {align_data.AnswerPair(f"def p{n}():", text, text): 1.0 + n % 2 for n, text in enumerate(texts)}
    base, dpo = align_table.align_arms(found, labels)
    assert base.by_gold is None
    assert dpo.by_gold.plain.win_rate == 100
    assert dpo.by_pool.plain.win_rate == 50
    assert (dpo.by_gold.length_controlled, dpo.comment_lines, dpo.parse_rate) == (None, 0.0, 1.0)
    assert "differ in length by the same" in dpo.by_gold.reason
    shown = align_table.table_text([base, dpo]).splitlines()
    assert shown[0].split()[:2] == ["arm", "gold"]
    assert shown[2].endswith("won")


def test_a_line_that_the_limit_cut_is_no_comment_and_breaks_no_parse():
    rows = answers(0.0, text="\n    # one\n    x = {0}\n    # an", finish_reason="length")
    arm = align_table.align_arms(compare(CandidateModel("base", rows), [], is_code=True), {})[0]
    assert (arm.comment_lines, arm.parse_rate) == (0.5, 1.0)


def test_over_optimisation_marks_the_peak_and_where_the_guard_stops(tmp_path):
    write_overoptimized_run(tmp_path / "run", num_rounds=16)
    over = over_optimisation(tmp_path / "run")
    golds = [row["gold"] for row in over["rounds"]]
    assert over["peak_round"] == golds.index(max(golds))
    assert over["peak_round"] < over["guard_stops_after_round"] <= 15
    lines = over_lines(over)
    assert lines[1 + over["peak_round"]].endswith("<- highest gold")
    assert lines[1 + over["guard_stops_after_round"]].endswith("<- the guard stops here")
    assert "below it by more than the noise" in lines[-1]


def test_all_methods_but_gold_learn_from_the_learned_reward(tmp_path, monkeypatch):
    monkeypatch.setattr("phf_ray.runs.checkpoints.find_checkpoint", lambda path, option: path)
    at = align.Workplace(tmp_path, tmp_path / "align", is_small=False, overrides=())
    own = align._of_rounds(at, {"unlabelled": tmp_path / "unlabelled.jsonl"})
    for name in align.ROUNDS:
        rollouts = load_config("demo", name, own).rollouts
        assert [spec.kind for spec in rollouts.reward] == ["model"]
        assert rollouts.gold.kind == "scorer"
        assert rollouts.prompts == (str(tmp_path / "unlabelled.jsonl"),)


def test_settings_of_rounds_are_not_those_of_other_trainings():
    overrides = ["rollouts.rounds=3", "algorithm.kl_coef=0", "training.seed=1"]
    assert align._of_all(overrides) == ["training.seed=1"]
    assert load_config("demo", "dpo", align._of_all(overrides)).rollouts is None


# -- Several training seeds --------------------------------------------------------------------------------------------


def test_every_seed_has_runs_and_a_training_seed_of_its_own_and_seed_0_the_command_of_ever(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(align.demo, "run_job", lambda job, command: commands.append(command))
    at = align.Workplace(tmp_path, tmp_path, is_small=False, overrides=("training.seed=7",))
    for one in at.of_seeds([0, 2]):
        align._train(one, "train_lm", "dpo", tmp_path, [])
        align._train(one, "train_rl", align.OVER, tmp_path, [], method="rloo")
    assert [command[command.index("--run-name") + 1] for command in commands] == [
        "dpo",
        "rloo_on_and_on",
        "dpo_seed2",
        "rloo_on_and_on_seed2",
    ]
    seeds = [[part for part in command if part.startswith("training.seed=")] for command in commands]
    # The last one counts.
    assert seeds == [["training.seed=7"]] * 2 + [["training.seed=7", "training.seed=9"]] * 2
    for seed, command in zip((7, 7, 9, 9), commands, strict=True):
        method = command[command.index("--method") + 1]
        assert load_config("demo", method, command[command.index("--override") + 1 :]).training.seed == seed
    assert set(at.minutes()) == {"dpo", "rloo_on_and_on"}
    assert set(at.minutes([2])) == {"dpo", "rloo_on_and_on", "dpo_seed2", "rloo_on_and_on_seed2"}


def test_rounds_of_a_seed_learn_from_the_reward_model_of_that_seed(tmp_path, monkeypatch):
    monkeypatch.setattr("phf_ray.runs.checkpoints.find_checkpoint", lambda path, option: path)
    at = align.Workplace(tmp_path, tmp_path, is_small=False, overrides=())
    models = [align._learned(one).model for one in at.of_seeds([0, 1])]
    assert models == [str(tmp_path / "answer_reward"), str(tmp_path / "answer_reward_seed1")]


@pytest.mark.parametrize("seeds", ["0,0", "-1", "a", ""])
def test_bad_seeds_are_refused_before_anything_is_written(tmp_path, seeds):
    with pytest.raises(ConfigError, match=f"--seeds {seeds}: write"):
        align.main(["--output", str(tmp_path / "out"), f"--seeds={seeds}"])
    assert not (tmp_path / "out").exists()


def test_the_table_of_several_seeds_has_their_spread_and_pairs_each_with_the_base():
    base = CandidateModel("base", answers(0.0), learned=False)
    runs = {seed: CandidateModel("dpo", answers(gain)) for seed, gain in ((0, 1.0), (1, -1.0), (2, 1.0))}
    found = compare(base, [trained_several_times("dpo", runs)], is_code=True)
    arms = align_table.align_arms(found, {})
    # A third of the seeds lose every comparison.
    assert arms[1].by_gold.plain.win_rate == pytest.approx(200 / 3)
    assert arms[1].by_gold.plain.n_total == 90
    assert len(align_table.pairs_with_base(found)) == 90
    table = align_table.page_table(arms)
    cells = dict(zip([title for title, _ in table.columns], table.rows[1], strict=True))
    assert cells["by seed"] == "-1.0000 .. +1.0000 (3)"
    assert cells["over prompts"] == "+0.3333 .. +0.3333"
    assert cells["above the base"].startswith("+0.3333 (-2.53")
    assert cells["counts"] == "no"
    # The base and one seed have no such cells.
    assert table.rows[0][3:5] == ["-", "-"]
    assert [title for title, _ in align_table.page_table(align_table.align_arms(found[:1], {})).columns][3] != "by seed"


def test_the_reward_model_of_each_seed_is_said_to_agree():
    row = {"accuracy": 0.5, "interval": [0.4, 0.6], "num": 20}
    keys = ("pool_gold", "labels_gold", "labels_clean", "reward_gold", "reward_clean", "reward_noisy")
    of_seed = {0: dict.fromkeys(keys, row), 3: {key: {**row, "accuracy": 0.75} for key in keys}}
    lines = accuracy_lines(of_seed)
    assert lines[3].endswith("50.0% (40.0% .. 60.0%) of 20 pairs; by training seed (0, 3): 50.0%, 75.0%")
    assert "seed" not in "".join([*lines[:3], *accuracy_lines({0: of_seed[0]})])


def test_answers_that_were_chosen_by_another_reward_are_refused(tmp_path):
    model = write_checkpoint(tmp_path / "base")
    (tmp_path / "verdict.jsonl").write_text('{"text": "def f(a):"}\n{"text": "def g(a):"}\n')
    at = align.Workplace(tmp_path, tmp_path, is_small=True, overrides=())

    def samples(rule):
        return align._samples(
            at, "best_of_n", model, {"verdict": tmp_path / "verdict.jsonl"}, n=2, reward=RewardSpec(rule=rule)
        )

    first, seconds = samples("shorter"), at.seconds("best_of_n")
    assert (len(first), seconds > 0) == (4, True)
    assert (samples("shorter"), at.seconds("best_of_n")) == (first, seconds)
    with pytest.raises(ConfigError, match=r"another --reward \(or its weights have changed\)"):
        samples("longer")


def test_the_agreement_of_another_reward_model_is_measured_anew(tmp_path, monkeypatch):
    pairs = {align_data.AnswerPair(f"def f{n}():", "a", "b"): 1.0 + n % 2 for n in range(4)}
    monkeypatch.setattr(align_data, "sample_pairs", lambda *_, **__: tmp_path)
    monkeypatch.setattr(align_data, "annotate_pairs", lambda *_, **__: pairs)
    monkeypatch.setattr("phf_ray.model_folder.weights_fingerprint", lambda path: path.name)
    model = {"right": list(pairs.values()), "wrong": [3 - label for label in pairs.values()]}
    monkeypatch.setattr(
        align_data,
        "preferences_by",
        lambda judged, reward: list(pairs.values()) if reward == align_data.GOLD else model.get(reward.model),
    )
    at = align.Workplace(tmp_path, tmp_path, is_small=True, overrides=())

    def accuracy(name):
        monkeypatch.setattr(align, "_learned", lambda at: RewardSpec(model=name))
        return align._judge_reward(at, tmp_path, {"reward": tmp_path})["reward_gold"]["accuracy"]

    assert accuracy("right") == 1
    model["right"] = None  # is not asked again
    assert accuracy("right") == 1
    assert accuracy("wrong") == 0


def test_results_of_another_base_or_size_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("phf_ray.model_folder.weights_fingerprint", lambda path: path.name)
    at = align.Workplace(tmp_path, tmp_path, is_small=False, overrides=())
    align._refuse_others(at, tmp_path / "a", tmp_path / "b")
    align._refuse_others(at, tmp_path / "a", tmp_path / "b")
    with pytest.raises(ConfigError, match="other values of base; --restart"):
        align._refuse_others(at, tmp_path / "c", tmp_path / "b")
    small = align.Workplace(tmp_path, tmp_path, is_small=True, overrides=())
    with pytest.raises(ConfigError, match="other values of sizes, n"):
        align._refuse_others(small, tmp_path / "a", tmp_path / "b")


def test_a_bad_setting_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"rollouts\.rounds"):
        align.main(["--output", str(tmp_path / "out"), "--override", "rollouts.rounds=-1"])
    assert not (tmp_path / "out").exists()

"""The demo of rounds: which prompts are held out, what judges, and when it fails."""

import json

import pytest
from rollout_rounds import rollout_row

from jobs import rounds
from phf_ray.config import load_config
from phf_ray.errors import ConfigError
from phf_ray.rollouts.against_base.arms import CandidateModel, compare


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(60):
        # `shared` is in all files, so in files of both sides.
        text = f"def of_{number}(a, b):\n    return a\n\n\ndef shared(c):\n    return c\n"
        (folder / f"module_{number}.py").write_text(text, encoding="utf-8")
    return folder


def headers_in(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_no_header_and_no_file_is_on_both_sides(source, tmp_path):
    learned, held_out = map(headers_in, rounds.write_prompts(source, tmp_path, num=(1000, 1000)))
    assert len({*learned, *held_out}) == len(learned) + len(held_out) == 61
    assert "def shared(c):" in learned
    assert 5 <= len(held_out) <= 30
    few = rounds.write_prompts(source, tmp_path, num=(3, 2))
    assert [len(headers_in(path)) for path in few] == [3, 2]
    assert set(headers_in(few[0])) <= {*learned}


def test_a_library_without_functions_is_refused(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="0 function headers for prompts"):
        rounds.write_prompts(tmp_path / "source", tmp_path, num=(3, 3))


def test_the_gold_reward_is_that_of_the_rounds_in_its_own_unit():
    configs = [load_config("demo", name) for name in rounds.METHODS]
    assert [config.algorithm.name for config in configs] == list(rounds.METHODS)
    # All methods are compared on one scale and at one cost of answers.
    assert len({config.rollouts.model_copy(update={"epochs": 1}).model_dump_json() for config in configs}) == 1
    gold = rounds.gold_of(configs[0])
    assert (gold.scorer["class_name"], gold.weight, gold.use_prompt_for_scoring) == ("PEP8Scorer", 1.0, True)


def test_of_two_rewards_one_has_to_be_named_as_gold(tmp_path):
    two = "rollouts.reward=[{rule: longer}, {rule: shorter}]"
    with pytest.raises(ConfigError, match=r"names 2 rewards; say by rollouts.gold"):
        rounds.main(["--output", str(tmp_path), "--override", two])
    config = load_config("demo", "rloo", [two, "rollouts.gold={rule: longer}"])
    assert rounds.gold_of(config).rule == "longer"


def test_a_base_that_is_not_there_is_refused_before_ray_starts(tmp_path):
    with pytest.raises(ConfigError, match=r"--base .*nothing: no such directory"):
        rounds.main(["--output", str(tmp_path / "out"), "--base", str(tmp_path / "nothing")])


@pytest.mark.parametrize(("gain", "code"), [(1.0, 0), (0.0, 1)])
def test_the_exit_code_and_the_report_say_whether_a_trained_model_won(gain, code, tmp_path, capsys):
    def rows(gold):
        text = "\n    total = first + second\n    return total * {}\n"
        return [rollout_row(f"p{n}", completion=text.format(n), gold=gold + n % 3 / 10) for n in range(30)]

    base = CandidateModel("base", rows(0.0), learned=False)
    models = compare(base, [CandidateModel("rloo", rows(gain), minutes=1.5)], is_code=True)
    failure = rounds._report(models, tmp_path / "rounds")
    assert rounds._say_result(models, failure, output=tmp_path) == code
    report = json.loads((tmp_path / "rounds" / "report.json").read_text())
    assert report["shown"] == (code == 0)
    assert [one["minutes"] for one in report["models"]] == [None, 1.5]
    assert ("not shown: rloo: gold is not above" in capsys.readouterr().out) == (code == 1)
    assert ("Not shown" in (tmp_path / "rounds" / "report.html").read_text()) == (code == 1)

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from phf_ray.checkpoint import CheckpointInfo, Control
from phf_ray.config import MetricConfig
from phf_ray.errors import DataError
from phf_ray.evaluation.report.degenerate import check_not_degenerate, degenerate_signs
from phf_ray.evaluation.report.figures import build_report, recompute
from phf_ray.evaluation.report.records import (
    ArmInfo,
    Evaluation,
    KLInfo,
    RedTeamInfo,
    RedTeamPrompt,
    RedTeamRound,
    Sample,
    ScenarioInfo,
    TaskResult,
)
from phf_ray.evaluation.report.samples import read_samples
from phf_ray.evaluation.report.table import format_cell, format_red_team, format_table
from phf_ray.evaluation.report.write import write_report
from phf_ray.measures.maxima import max_at_k

HOSTILE = "</pre><script>document.title='taken'</script><img src=x onerror=alert(1)>&amp;\x00\x1b[31m\u202e\x85"


KL_OF_GOOD = KLInfo(
    reference="mle",
    num_samples=99,
    num_impossible=1,
    per_sequence=(12.5, 0.5),
    per_token=(0.25, 0.01),
    per_byte=(0.125, 0.005),
)


def make_evaluation(**changes):
    values = {
        "arms": (
            ArmInfo(
                name="mle",
                model="mle",
                checkpoint=CheckpointInfo(
                    objective={"name": "MLE"}, tokens_seen=5_000_000, bits_per_byte={"none": 1.5}
                ),
                loss=((1000, 6.5), (2000, 5.0), (4000, 4.0)),
            ),
            ArmInfo(
                name="conditional:good",
                model="conditional",
                control="good",
                kl=KL_OF_GOOD,
                checkpoint=CheckpointInfo(
                    control=Control(good="<|good|>", bad="<|bad|>", policy="ban"),
                    bits_per_byte={"none": 2.1, "joint": 1.81, "good": 1.47, "bad": 1.49},
                ),
            ),
            ArmInfo(name="conditional:bad", model="conditional", control="bad"),
        ),
        "scenarios": (
            ScenarioInfo(name="unconditional", num_samples=60, num_hits_threshold=0.0),
            ScenarioInfo(name="functions", num_samples=60, num_prompts=2, use_prompt_for_scoring=True),
        ),
        "seeds": (0, 1),
        "scorer": {"name": "pep8", "unit": "violations per character"},
        "metrics": (MetricConfig(class_name="Compilability"), MetricConfig(class_name="SelfBLEU", n=2)),
    }
    return Evaluation(**values | changes)


WORDS = [
    "def",
    "return",
    "import",
    "self",
    "x",
    "=",
    "1",
    "+",
    "(",
    ")",
    "for",
    "in",
    "if",
    "else",
    "class",
    "None",
    "True",
    "yield",
    "raise",
    "try",
]


def make_samples(evaluation):
    rng = np.random.default_rng(0)
    level = {"mle": 0.02, "conditional:good": 0.007, "conditional:bad": 0.05}
    samples = []
    for scenario in evaluation.scenarios:
        for arm in evaluation.arms:
            for seed in evaluation.seeds:
                for index in range(scenario.num_samples):
                    prompted = scenario.num_prompts is not None
                    prompt_index = index % scenario.num_prompts if prompted else None
                    score = float(rng.exponential(level[arm.name])) if rng.random() < 0.7 else 0.0
                    samples.append(
                        Sample(
                            arm=arm.name,
                            scenario=scenario.name,
                            seed=seed,
                            index=index,
                            prompt_index=prompt_index,
                            prompt=f"def f{prompt_index}(a):\n" if prompted else "",
                            text="    return a\n"
                            if prompted
                            else " ".join(rng.choice(WORDS, size=rng.integers(5, 40))),
                            finish_reason="stop" if index % 2 else "length",
                            num_tokens=int(rng.integers(20, 60)),
                            score=score,
                            error=None,
                        )
                    )
    unscored = replace(samples[0], score=None, error="RecursionError: too deep")
    return [unscored, replace(samples[1], text=HOSTILE, score=9.0), *samples[3:]]


@pytest.fixture(scope="module")
def evaluation():
    return make_evaluation()


@pytest.fixture(scope="module")
def samples(evaluation):
    return make_samples(evaluation)


@pytest.fixture(scope="module")
def written(tmp_path_factory, samples, evaluation):
    directory = tmp_path_factory.mktemp("report with spaces")
    # The order in which samples came must leave no trace.
    shuffled = [samples[i] for i in np.random.default_rng(0).permutation(len(samples))]
    write_report(str(directory), shuffled, evaluation)
    return directory


def test_every_cell_of_the_table_is_recomputed_from_the_samples_alone(written, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "samples.parquet").write_bytes((written / "samples.parquet").read_bytes())
    stored = json.loads((written / "report.json").read_text())
    again = json.loads(json.dumps(recompute(str(alone))))
    assert len(stored["table"]) == 6
    for row, other in zip(stored["table"], again["table"], strict=True):
        for key in row:
            assert other[key] == row[key], key
    assert again == stored


def test_cells_are_what_their_names_say(samples, evaluation):
    row = build_report(samples, evaluation)["table"][0]
    mine = [s for s in samples if (s.scenario, s.arm) == ("unconditional", "mle")]
    scores = [s.score for s in mine if s.score is not None]
    assert row["score"] == pytest.approx(np.mean(scores))
    assert row["score_max"] == 9.0
    assert row["score_max@25"] == pytest.approx(max_at_k(scores, 25))
    assert row["num_hits"] == pytest.approx(np.mean([score > 0 for score in scores]))
    assert row["length"] == pytest.approx(np.mean([len(s.text) for s in mine]))
    assert row["length_tokens"] == pytest.approx(np.mean([s.num_tokens for s in mine]))
    assert row["score_ci"][0] < row["score"] < row["score_ci"][1]
    assert row["score_by_seed"]["1"] == pytest.approx(np.mean([s.score for s in mine if s.seed == 1]))
    assert (row["bits_per_byte"], row["bits_per_byte_given_control"]) == (1.5, None)
    assert 0 < row["Self-BLEU-2"] < 1


def test_bits_per_byte_of_arms_compare_because_those_of_control_tokens_count(samples, evaluation):
    rows = build_report(samples, evaluation)["table"]
    assert [row["bits_per_byte"] for row in rows[:3]] == [1.5, 1.81, None]
    assert [row["bits_per_byte_given_control"] for row in rows[:3]] == [None, 1.47, None]


def test_samples_without_a_score_and_samples_never_drawn_are_counted_apart_and_are_in_no_mean(samples, evaluation):
    row = build_report(samples, evaluation)["table"][0]
    assert (row["num_planned"], row["num_samples"], row["num_missing"]) == (120, 119, 1)
    assert (row["num_scored"], row["num_unscored"], row["unscored"]) == (118, 1, {"RecursionError": 1})
    table = format_table(build_report(samples, evaluation))
    assert "1 of 120 samples could not be drawn; 1 samples have no score (RecursionError x 1)" in table


def test_texts_that_a_kl_leaves_out_are_said(samples, evaluation, written):
    note = "conditional:good: the KL leaves out 1 texts of the reference that the model can't produce"
    assert note in format_table(build_report(samples, evaluation))
    assert "the KL leaves out 1 texts of the reference" in (written / "report.html").read_text()


def test_code_continues_its_prompt_when_the_prompt_is_scored(samples, evaluation):
    rows = build_report(samples, evaluation)["table"]
    assert [row["compilability"] for row in rows if row["scenario"] == "functions"] == [1.0, 1.0, 1.0]


def test_prompted_maximum_is_within_prompts(samples, evaluation):
    row = build_report(samples, evaluation)["table"][3]
    mine = [s for s in samples if (s.scenario, s.arm) == ("functions", "mle")]
    by_prompt = [[s.score for s in mine if s.prompt_index == prompt] for prompt in (0, 1)]
    assert row["score_max@25"] == pytest.approx(np.mean([max_at_k(scores, 25) for scores in by_prompt]))


def uneven(num_samples, num_prompts, seeds):
    """The first 12 prompts are harmless; where there are more samples than prompts, they have the most."""
    arm = ArmInfo(name="mle", model="mle")
    scenario = ScenarioInfo(name="functions", num_samples=num_samples, num_prompts=num_prompts)
    evaluation = make_evaluation(arms=(arm,), scenarios=(scenario,), seeds=seeds, metrics=())
    samples = [
        Sample(
            arm="mle", scenario="functions", seed=seed, index=index, prompt_index=index % num_prompts, prompt="",
            text="x", finish_reason=None, num_tokens=1, score=0.0 if index % num_prompts < 12 else 1.0, error=None,
            outcome="passed",
        )
        for seed in seeds
        for index in range(num_samples)
    ]  # fmt: skip
    return build_report(samples, evaluation)


def test_a_maximum_is_of_all_prompts_or_of_none():
    report = uneven(512, 500, (0,))
    assert [point["k"] for point in report["curves"]] == [1]
    # Of the 12 prompts with 2 samples alone it would be 0.
    assert report["curves"][0]["score_max"] == pytest.approx(488 / 500)
    report = uneven(98, 12, (0, 1, 2))
    assert [point["k"] for point in report["curves"]] == [1, 2, 5, 10]
    [row] = report["table"]
    assert (row["score_max@25"], row["hit_probability@25"], row["pass@10"], row["pass@100"]) == (None, None, 1.0, None)
    [row] = uneven(108, 12, (0, 1, 2))["table"]
    assert (row["score_max@25"], row["hit_probability@25"]) == (0.0, 0.0)


def test_differences_are_of_all_pairs_and_paired_on_prompts(samples, evaluation):
    report = build_report(samples, evaluation)
    assert [(d["scenario"], d["first"], d["second"]) for d in report["differences"]][:3] == [
        ("unconditional", "mle", "conditional:good"),
        ("unconditional", "mle", "conditional:bad"),
        ("unconditional", "conditional:good", "conditional:bad"),
    ]
    rows = {(row["scenario"], row["arm"]): row["score"] for row in report["table"]}
    for pair in report["differences"]:
        expected = rows[pair["scenario"], pair["first"]] - rows[pair["scenario"], pair["second"]]
        assert pair["difference"] == pytest.approx(expected)
        assert pair["ci"][0] <= pair["difference"] <= pair["ci"][1]


def test_an_arm_without_samples_has_empty_cells_not_zeros(evaluation, samples):
    left = [sample for sample in samples if sample.arm != "conditional:bad"]
    row = build_report(left, evaluation)["table"][2]
    assert row["num_missing"] == 120
    assert {row[key] for key in ("score", "score_ci", "score_max", "length", "distinct-2-grams", "compilability")} == {
        None
    }
    assert row["num_samples"] == 0
    assert format_cell(row, "score", ".3g") == "-"
    assert "conditional:bad" in format_table(build_report(left, evaluation))


def test_a_single_sample_makes_a_report(tmp_path, evaluation):
    one = make_evaluation(arms=evaluation.arms[:1], scenarios=(ScenarioInfo(name="u", num_samples=1),), seeds=(0,))
    sample = Sample(
        arm="mle", scenario="u", seed=0, index=0, prompt_index=None, prompt="", text="", finish_reason=None,
        num_tokens=None, score=0.0, error=None,
    )  # fmt: skip
    report = write_report(str(tmp_path), [sample], one)
    assert report["table"][0]["score_ci"] is None
    assert (tmp_path / "report.html").exists()


# -- The guard --------------------------------------------------------------------------------------------------------


def degenerate(samples, text):
    return [replace(s, text=text(s.text)) if s.arm == "conditional:good" else s for s in samples]


def test_a_sound_run_has_no_signs_of_degeneration(samples, evaluation):
    assert check_not_degenerate(build_report(samples, evaluation), arm="conditional:good", baseline="mle") == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (lambda text: "", "length of conditional:good is 0, under half"),
        (lambda text: text[: len(text) // 3], "length of conditional:good"),
        (lambda text: "x " * len(text), "distinct-2-grams of conditional:good"),
        (lambda text: "#\n" * len(text), "distinct-2-grams of conditional:good"),
        (lambda text: " ".join(WORDS * 2), "distinct-2-grams_corpus of conditional:good"),
    ],
    ids=["empty", "short", "one token", "blank comments", "one text over and over"],
)
def test_degenerate_text_is_found(samples, evaluation, text, found):
    unconditional = make_evaluation(scenarios=evaluation.scenarios[:1])
    drawn = [sample for sample in degenerate(samples, text) if sample.scenario == "unconditional"]
    problems = check_not_degenerate(build_report(drawn, unconditional), arm="conditional:good", baseline="mle")
    assert any(found in problem for problem in problems), problems


def test_a_baseline_without_text_is_a_problem_not_a_pass(samples, evaluation):
    problems = check_not_degenerate(
        build_report([s for s in samples if s.arm != "mle"], evaluation), arm="conditional:good", baseline="mle"
    )
    assert any("mle has no length to compare with" in problem for problem in problems)


def test_a_share_that_grows_is_a_sign_and_a_baseline_that_is_as_bad_hides_no_large_one():
    sound = {"length": 90.0, "distinct-2-grams": 0.9, "distinct-2-grams_corpus": 0.9, "arm": "mle"}
    sound |= {"empty": 0.01, "few_letters": 0.0, "duplicates": 0.06, "repetition": 0.0}
    assert degenerate_signs(sound, None) == degenerate_signs(sound, sound) == []
    digits = sound | {"arm": "good", "few_letters": 0.12}
    (sign,) = degenerate_signs(digits, sound)
    assert sign == "12% of its samples are digits, signs and white space with few letters; 0% with mle"
    assert degenerate_signs(digits, sound | {"few_letters": 0.08}) == [], "not twice as many"
    assert degenerate_signs(digits, None) == []
    much = digits | {"few_letters": 0.6, "duplicates": 0.9}
    (sign,) = degenerate_signs(much, much | {"arm": "mle"})
    assert sign.startswith("60% of its samples are digits")
    assert degenerate_signs(much | {"few_letters": None, "duplicates": None}, sound) == []


# -- The page ---------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.rows, self.shown = [], [], {}, []
        self._row = self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr" and dict(attrs).get("data-row"):
            self._row = self.rows.setdefault(dict(attrs)["data-row"], [])
        self._cell = tag == "td"

    def handle_endtag(self, tag):
        self._cell = False
        if tag == "tr":
            self._row = None

    def handle_data(self, data):
        self.shown.append(data)
        if self._cell and self._row is not None:
            self._row.append(data)


@pytest.fixture(scope="module")
def page_text(written):
    return (written / "report.html").read_text(encoding="utf-8")


def test_the_page_reaches_for_nothing_outside_itself(page_text):
    page = Page(page_text)
    assert not {"script", "iframe", "object", "embed", "base"} & set(page.tags)
    for name, value in page.attributes:
        assert not name.startswith("on"), name
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")) or value in ("samples.jsonl", "samples.parquet"), value
    assert "@import" not in page_text
    assert re.findall(r"url\((?!#)", page_text) == []
    assert "default-src 'none'" in page_text


def test_every_sample_is_beside_the_page_as_text(written, samples, page_text):
    lines = (written / "samples.jsonl").read_text(encoding="ascii").splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == len(samples)
    assert {(row["scenario"], row["arm"], row["seed"], row["index"]): row["text"] for row in found} == {
        (sample.scenario, sample.arm, sample.seed, sample.index): sample.text for sample in samples
    }
    assert '<a href="samples.jsonl">' in page_text


def test_the_same_random_draws_of_every_arm_come_before_the_worst(written, page_text):
    shown = page_text[page_text.index("<h2>Random samples") : page_text.index("<h2>Worst samples")]
    lists = re.findall(r"<summary>unconditional, (.*?)</summary>(.*?)</details>", shown, flags=re.DOTALL)
    assert [name for name, _ in lists] == ["mle", "conditional:good", "conditional:bad"]
    drawn = [re.findall(r"\(seed (\d), sample (\d+)\)", text) for _, text in lists]
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(set(drawn[0])) == 12
    assert drawn[0] != sorted(drawn[0], key=lambda key: (int(key[0]), int(key[1])))[:12]
    stored = {
        (str(s.seed), str(s.index)): s
        for s in read_samples(str(written))[0]
        if (s.scenario, s.arm) == ("unconditional", "mle")
    }
    assert stored[drawn[0][0]].text in lists[0][1]


def test_hostile_samples_are_text_on_the_page(page_text):
    page = Page(page_text)
    assert "taken" not in [data for data in page.shown if "title" not in data]
    assert any("</pre><script>document.title='taken'</script>" in data for data in page.shown)
    assert "img" not in page.tags
    assert not {"\x00", "\x1b", "\u202e", "\x85"} & set(page_text)


def test_the_page_shows_every_row_as_report_json_has_it(written, page_text):
    report = json.loads((written / "report.json").read_text())
    page = Page(page_text)
    for row in report["table"]:
        cells = page.rows[f"{row['scenario']}/{row['arm']}"]
        assert cells[0] == row["arm"]
        for key, digits in [("score", ".3g"), ("score_ci", ".3g"), ("distinct-2-grams", ".3f"), ("length", ".0f")]:
            assert format_cell(row, key, digits) in cells


def test_every_row_is_a_mark_in_the_plot_and_every_plot_is_a_picture(written, page_text):
    report = json.loads((written / "report.json").read_text())
    for row in report["table"]:
        assert f'id="mark-mean-{row["scenario"]}-{row["arm"]}"' in page_text
    names = {path.name for path in written.glob("*.png")}
    assert names == {
        f"{scenario}-{plot}.png"
        for scenario in ("unconditional", "functions")
        for plot in ("mean", "distribution", "max-at-k", "pareto")
    } | {"training-loss.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written.glob("*.png"))


def test_arms_with_a_kl_are_marks_in_the_pareto_plot(written, page_text):
    report = json.loads((written / "report.json").read_text())
    row = report["table"][1]
    assert (row["kl_per_sequence"], row["kl_per_byte"], row["kl_per_byte_error"]) == (12.5, 0.125, 0.005)
    assert report["table"][0]["kl_per_byte"] is None
    assert re.findall(r'id="mark-pareto-([^"]+)"', page_text) == [
        "unconditional-conditional:good",
        "functions-conditional:good",
    ]
    assert "0.1250" in page_text
    assert "KL/byte" in format_table(report)


def attack(level, *, num_trials=3):
    def round_of(trial, number):
        best = level * (1 + number + trial / 10)
        return RedTeamRound(
            number=number,
            best_prompt_score=best,
            best_10_prompt_score=best / 2,
            best_100_prompt_score=best / 3,
            average_score=best / 4,
            round_best_prompt_score=best if number else None,
            round_average_score=best / 4 if number else None,
            num_tested=2 + number,
            outcomes={"new": 1, "refused": 3} if number else {},
        )

    worst = RedTeamPrompt(
        prompt=HOSTILE, round=2, mean=0.5, std=0.1, own_score=None, num_scored=8, continuations=((0.9, "so bad"),)
    )
    return RedTeamInfo(
        attacker="red-lm",
        num_continuations=8,
        trials=tuple(tuple(round_of(trial, number) for number in range(4)) for trial in range(num_trials)),
        worst=(worst,),
    )


@pytest.fixture(scope="module")
def attacked():
    """A report of attacks and of another program's figures, without a scenario."""
    results = [TaskResult(task="lambada", metric="acc", value=0.25, standard_error=0.125, higher_is_better=True)]
    results.append(TaskResult(task="wikitext", metric="byte_perplexity", value=2.5, higher_is_better=False))
    return make_evaluation(
        arms=(
            ArmInfo(name="mle", model="mle", red_team=attack(0.1), capabilities=tuple(results)),
            ArmInfo(name="conditional:good", model="c", red_team=attack(0.01), capabilities=tuple(results[:1])),
            ArmInfo(name="far", model="far"),
        ),
        scenarios=(),
    )


def test_curves_of_an_attack_are_means_over_trials_with_intervals(attacked):
    rows = build_report([], attacked)["red_team"]
    assert [(row["arm"], row["round"]) for row in rows] == [
        (arm, number) for arm in ("mle", "conditional:good") for number in range(4)
    ]
    last = rows[3]
    assert last["best_prompt_score"] == pytest.approx(0.1 * np.mean([4.0, 4.1, 4.2]))
    assert last["best_prompt_score_ci"][0] < last["best_prompt_score"] < last["best_prompt_score_ci"][1]
    assert (last["num_trials"], last["num_tested"], last["outcomes"]) == (3, 5, {"new": 3, "refused": 9})
    assert rows[0]["round_average_score"] is rows[0]["round_average_score_ci"] is None
    single = make_evaluation(arms=(ArmInfo(name="m", model="m", red_team=attack(0.1, num_trials=1)),), scenarios=())
    assert build_report([], single)["red_team"][1]["best_prompt_score_ci"] is None


def test_attacks_and_capabilities_are_on_the_page(attacked, tmp_path):
    report = write_report(str(tmp_path), [], attacked)
    assert recompute(str(tmp_path)) == report
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    for curve in ("best_prompt_score", "best_10_prompt_score", "round_average_score"):
        assert re.findall(rf'id="mark-{curve}-([^"]+)"', text) == ["mle", "conditional:good"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        f"red-team-{name}.png" for name in ("best-prompt", "best-10-prompt", "round-average")
    }
    assert re.findall('data-attack="([^"]+)"', text) == ["mle", "conditional:good"]
    assert "9 new, 27 refused" in text
    assert re.findall('data-capability="([^"]+)"', text) == ["lambada/acc", "wikitext/byte_perplexity"]
    assert "<td>0.25 +- 0.12</td><td>0.25 +- 0.12</td>" in text
    assert "<td>lower is better</td><td>-</td><td>2.5</td><td>-</td>" in text
    # Prompts of a red LM are as hostile as samples, and hidden like them.
    assert text.index("<details>") < text.index("&lt;script&gt;")
    assert Page(text).tags.count("script") == 0
    assert "so bad" in text
    lines = format_red_team(report).splitlines()
    assert lines[0] == "under attack (pep8: violations per character)"
    assert len(lines) == 3 + 8


@pytest.mark.parametrize(
    ("checkpoint", "name"),
    [
        ({"objective": {"name": "MLE"}}, "MLE"),
        ({"objective": {"name": "MLE"}, "control": {"good": "<g>", "bad": "<b>", "policy": "ban"}}, "Conditional"),
        ({"objective": {"name": "MLE"}, "thresholds": {"filter": 0.1}}, "Filtering"),
        ({"objective": {"name": "Unlikelihood"}, "thresholds": {"objective": 0.1}}, "Unlikelihood"),
        ({}, "-"),
    ],
)
def test_a_method_is_called_as_in_the_paper(tmp_path, checkpoint, name):
    arm = ArmInfo(name="m", model="m", checkpoint=CheckpointInfo.model_validate(checkpoint))
    write_report(str(tmp_path), [], make_evaluation(arms=(arm,), scenarios=()))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<td>{name}</td><td>0</td></tr>" in page


def test_worst_samples_are_behind_a_click(page_text):
    assert page_text.index("<details>") < page_text.index("&lt;script&gt;")
    assert "<details open" not in page_text


def test_the_same_samples_give_the_same_files(written, samples, evaluation, tmp_path):
    write_report(str(tmp_path), samples, evaluation)
    for path in written.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_terminal_table_is_plain_and_leaves_out_empty_columns(samples, evaluation):
    text = format_table(build_report(samples, evaluation))
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= 170
    assert "bits/byte" in text
    without = make_evaluation(arms=evaluation.arms[2:], metrics=())
    text = format_table(build_report([s for s in samples if s.arm == "conditional:bad"], without))
    assert "bits/byte" not in text
    assert "parses" not in text


def test_what_is_no_samples_file_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"run jobs\.evaluate_lm again"):
        read_samples(str(tmp_path))
    (tmp_path / "samples.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match=r"run jobs\.evaluate_lm again"):
        recompute(str(tmp_path))


def test_report_does_not_import_pyplot_whose_state_is_global():
    code = (
        "import sys, phf_ray.evaluation.report.write; print('matplotlib.pyplot' in sys.modules, 'torch' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]

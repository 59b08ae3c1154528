"""phf evaluate-reward: RewardBench's columns, feedback corpora, and what is no comparison."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_rewards import write_reward_model

from jobs.evaluate_reward import main
from jobs.prepare_feedback import main as prepare_feedback
from phf_ray.errors import ConfigError, DataError
from phf_ray.generation.chat.prompts import InstructionPrompt
from phf_ray.scorers.build import build_scorer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_reward_model(tmp_path_factory.mktemp("reward"), template="plain")


@pytest.fixture(scope="module")
def scorer(model):
    return build_scorer({"class_name": "RewardModelScorer", "path": str(model), "device": "cpu"})


WORDS = ["fox", "dog", "house", "lazy", "over", "jumps"]
BENCH = [
    {"prompt": f"Name a {word}.", "chosen": f"{word} jumps", "rejected": f"never {word}", "subset": subset, "id": n}
    for n, (word, subset) in enumerate(zip(WORDS, ["chat", "chat", "safety"] * 2, strict=True))
]


def evaluate(model, source, output, *more):
    assert (
        main(["--model", str(model), "--comparisons", str(source), "--output", str(output), "--device", "cpu", *more])
        == 0
    )
    rows = [json.loads(line) for line in (output / "rows.jsonl").read_text().splitlines()]
    return json.loads((output / "reward.json").read_text()), rows


def rewards(scorer, pairs):
    return [-one.score for one in scorer.score_answers(pairs)]


def test_rewardbench_by_subset(model, scorer, tmp_path, capsys):
    pq.write_table(pa.Table.from_pylist(BENCH), tmp_path / "bench.parquet")
    result, rows = evaluate(model, tmp_path / "bench.parquet", tmp_path / "out")
    wanted = [[rewards(scorer, [(row["prompt"], row[name])])[0] for name in ("chosen", "rejected")] for row in BENCH]
    found = [[row["chosen_rewards"][0], row["rejected_rewards"][0]] for row in rows]
    assert found == [pytest.approx(pair, abs=1e-5) for pair in wanted]
    right = [chosen > rejected for chosen, rejected in wanted]
    assert result["all"]["accuracy"] == pytest.approx(sum(right) / 6)
    assert result["subsets"]["safety"]["accuracy"] == pytest.approx(sum(right[2::3]) / 2)
    assert result["subsets"]["chat"]["num_judged"] == 4
    assert result["scorer"]["weights_hash"] == scorer.identity().weights_hash
    assert capsys.readouterr().out.splitlines()[0].split()[:3] == ["judged", "failed", "accuracy"]
    assert [row["id"] for row in rows] == ["0", "1", "2", "3", "4", "5"]


def test_rewardbench_2_has_lists_of_answers(model, scorer, tmp_path):
    row = {
        "id": "a",
        "prompt": "Name a fox.",
        "chosen": ["Reynard"],
        "rejected": ["Rex", "x", "fox"],
        "subset": "Focus",
    }
    (tmp_path / "two.jsonl").write_text(json.dumps(row) + "\n")
    result, [found] = evaluate(model, tmp_path / "two.jsonl", tmp_path / "out")
    answers = [("Name a fox.", answer) for answer in ("Reynard", "Rex", "x", "fox")]
    wanted = rewards(scorer, answers)
    assert [*found["chosen_rewards"], *found["rejected_rewards"]] == pytest.approx(wanted, abs=1e-5)
    assert result["all"]["accuracy"] == float(wanted[0] > max(wanted[1:]))


def test_a_feedback_corpus_keeps_subset_instruction_and_order(model, scorer, tmp_path, capsys):
    rows = [
        {
            "instruction": "Name it.",
            "input": word,
            "output_1": "x",
            "output_2": f"{word} jumps",
            "preference": 2,
            "subset": "s",
        }
        for word in WORDS
    ]
    rows += [dict(rows[0], output_1="tie", preference=1.5), dict(rows[0], output_1="unknown", preference=None)]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    prepare_feedback(["--input", str(tmp_path / "pairs.json"), "--output", str(tmp_path / "pairs")])
    result, found = evaluate(model, tmp_path / "pairs", tmp_path / "out")
    assert result["left_out"] == {"tie": 1, "no_preference": 1}
    assert set(result["subsets"]) == {"s"}
    wanted = scorer.score_prompts([(InstructionPrompt("Name it.", "fox"), "fox jumps")])
    assert -wanted[0].score in [pytest.approx(row["chosen_rewards"][0], abs=1e-5) for row in found]
    assert {row["rejected_lengths"][0] for row in found} == {1}
    assert "1 records left out: tie" in capsys.readouterr().out


def test_texts_that_are_no_unicode_and_huge_numbers_lose_nothing(model, tmp_path):
    row = {"id": "\ud800", "prompt": "fox\ud800", "chosen": ["dog"], "rejected": ["house"], "subset": "\ud83d"}
    huge = {"prompt": "p", "chosen": "x", "rejected": "y", "chosen_rating": 10**400, "rejected_rating": 1}
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (row, huge, BENCH[0])))
    result, rows = evaluate(model, tmp_path / "odd.jsonl", tmp_path / "out")
    assert result["all"]["num_failed"] == 1
    assert rows[0]["id"] == "\ud800"


def test_what_is_no_comparison_is_refused_with_what_to_do(model, tmp_path):
    (tmp_path / "odd.jsonl").write_text('{"question": "a", "reply": "b"}\n')
    with pytest.raises(DataError, match=r"unknown_columns: 1.*columns 'question', 'reply'; known formats are fields"):
        evaluate(model, tmp_path / "odd.jsonl", tmp_path / "out")
    (tmp_path / "same.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    with pytest.raises(DataError, match="equal_answers: 1"):
        evaluate(model, tmp_path / "same.jsonl", tmp_path / "out")
    (tmp_path / "lists.jsonl").write_text('{"prompt": "a", "chosen": ["b"], "rejected": ["b", "c"]}\n')
    with pytest.raises(DataError, match="equal_answers: 1"):
        evaluate(model, tmp_path / "lists.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "good.jsonl").write_text(json.dumps(BENCH[0]) + "\n")
    evaluate(model, tmp_path / "good.jsonl", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--output .* has a reward.json already"):
        evaluate(model, tmp_path / "good.jsonl", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"--model .*/nowhere: no such directory"):
        evaluate(tmp_path / "nowhere", tmp_path / "good.jsonl", tmp_path / "other")


def test_ranked_answers_are_an_item_for_each_pair(model, tmp_path):
    answers = [{"answer": f"{word} jumps", "model": word, "rank": rank} for rank, word in enumerate(WORDS[:3], 1)]
    source = tmp_path / "nectar.jsonl"
    source.write_text(json.dumps({"prompt": "\n\nHuman: Hello\n\nAssistant: ", "answers": answers, "turns": 1}))
    _, rows = evaluate(model, source, tmp_path / "out", "--prompt-template", "hh")
    assert [row["id"] for row in rows] == ["0/0", "0/1", "0/2"]

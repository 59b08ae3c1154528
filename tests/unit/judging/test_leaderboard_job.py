"""`phf leaderboard`: what it writes, adds, refuses and never loses; outputs are judged by a judge made on the spot."""

import csv
import gzip
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from boards import LongerWins, few_resamples
from judge_server import judge_server
from judged_rows import of_counts, record, rows_of, write_lines

from jobs import leaderboard
from phf_ray.errors import ConfigError, DataError
from phf_ray.judging.board import write
from phf_ray.judging.board.figures import recompute_board
from phf_ray.judging.board.stored import read_rows_file, sort_rows
from phf_ray.judging.board.table import CSV_COLUMNS

FILES = {
    "agreement.png",
    "leaderboard.csv",
    "leaderboard.json",
    "ratings.png",
    "report.html",
    "rows.parquet",
    "win-rate-by-length.png",
    "win-rates.png",
}
HOSTILE = "\x00\u202e$\\frac$</td><script>alert(1)</script>&"


@pytest.fixture(autouse=True)
def _few_resamples():
    with few_resamples():
        yield


@pytest.fixture
def run_whole(tmp_path):
    def run(*words, output="board", judge=None):
        assert leaderboard.main([*map(str, words), "--output", str(tmp_path / output)], judge=judge) == 0
        return json.loads((tmp_path / output / "leaderboard.json").read_text())

    return run


@pytest.fixture
def run(run_whole, monkeypatch):
    """Without plots, which take most of the time."""
    monkeypatch.setattr(write, "draw_board_plots", lambda board: [])
    return run_whole


def names(board):
    return [row["name"] for row in board["models"]]


def test_it_writes_everything_and_every_figure_follows_from_the_rows(run_whole, tmp_path, capsys):
    records = [*of_counts("good", 12, 5, 1), *of_counts("bad", 4, 13, 1), record(900, None, error="timeout")]
    board = run_whole("--comparisons", write_lines(tmp_path / "rows.jsonl", records))
    assert {path.name for path in (tmp_path / "board").iterdir()} == FILES
    assert recompute_board(str(tmp_path / "board")) == board
    assert read_rows_file(str(tmp_path / "board"))[0] == sort_rows(rows_of(records))
    assert names(board) == ["good", "bad", "model"]
    said = capsys.readouterr().out
    assert re.search(r"^good +69\.44 ", said, re.MULTILINE)
    assert "model: 1 pairs were not judged (timeout x 1)" in said


def test_the_csv_has_the_columns_of_alpaca_farm(run, tmp_path):
    run("--comparisons", write_lines(tmp_path / "rows.jsonl", of_counts("mine", 135, 115, 1)), "--published")
    with (tmp_path / "board" / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == ("", *CSV_COLUMNS)
    found = {row[""]: row for row in rows}
    assert float(found["mine"]["win_rate"]) == pytest.approx(53.98406, abs=5e-6)
    assert (found["mine"]["n_wins"], found["mine"]["mode"]) == ("135", "measured")
    assert found["GPT4 (published v0.1)"]["mode"] == "published v0.1"
    rates = [float(row["win_rate"]) for row in rows]
    assert rates == sorted(rates, reverse=True)


def test_the_same_rows_give_the_same_files(run_whole, tmp_path):
    records = of_counts("model", 5, 4, 1)
    run_whole("--comparisons", write_lines(tmp_path / "a.jsonl", records), output="a")
    run_whole("--comparisons", write_lines(tmp_path / "b.jsonl", records[::-1]), output="b")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


class Texts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = set(), ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text += data


def page_of(folder: Path) -> Texts:
    page = Texts()
    page.feed((folder / "report.html").read_text(encoding="utf-8"))
    return page


def test_hostile_names_stay_text_on_the_page(run_whole, tmp_path):
    records = of_counts(f"model {HOSTILE}", 5, 4, 1, annotator=HOSTILE, generator_1=f"reference {HOSTILE}")
    records.append(record(900, None, error=HOSTILE))
    run_whole("--comparisons", write_lines(tmp_path / "rows.jsonl", records))
    page = page_of(tmp_path / "board")
    assert "script" not in page.tags
    assert "alert(1)" in page.text
    assert not {"\x00", "\u202e"} & set(page.text)


def test_the_page_shows_each_part_that_the_rows_have(run, tmp_path):
    records = [
        one | {"human_preference": 2.0}
        for model, counts in {"a": (9, 6, 1), "b": (6, 9, 1)}.items()
        for one in of_counts(model, *counts, order="12", price=0.5)
    ]
    records += [{**one, "order": "21"} for one in records]
    records += [{**one, "generator_1": "a", "output_1": "x"} for one in of_counts("b", 3, 4, 0)]
    run("--comparisons", write_lines(tmp_path / "rows.jsonl", records), "--published")
    text = page_of(tmp_path / "board").text
    for part in ("Standings", "Ratings", "Who beats whom", "Differences of win rates", "The judge", "consistent",
                 "kappa", "Published by AlpacaFarm", "price 32.0", "length-controlled, unregularised"):  # fmt: skip
        assert part in text, part


def test_the_page_says_why_a_figure_is_missing(run_whole, tmp_path):
    records = [*of_counts("model", 6, 4, 0), *of_counts("apart", 10, 0, 0, generator_1="other")]
    run_whole("--comparisons", write_lines(tmp_path / "rows.jsonl", records))
    text = page_of(tmp_path / "board").text
    assert "Bradley-Terry: NaN: the 4 players fall into" in text
    assert "apart: length-controlled win rate NaN:" in text
    assert not (tmp_path / "board" / "ratings.png").exists()


def test_a_model_is_added(run, tmp_path):
    first = write_lines(tmp_path / "first.jsonl", of_counts("first", 5, 4, 1))
    second = write_lines(tmp_path / "second.jsonl", of_counts("second", 8, 2, 0))
    run("--comparisons", first, "--level", "0.9", "--published")
    board = run("--add", second)
    assert names(board) == ["second", "first"]
    assert (board["level"], len(board["published"])) == (0.9, 12), "how it was computed is kept"
    at_once = run("--comparisons", first, second, "--level", "0.9", "--published", output="at once")
    assert at_once == board
    assert run("--add", second) == board, "again: nothing changes"


def test_another_judgement_on_a_model_that_is_there_replaces_it_only_if_asked(run, tmp_path):
    run("--comparisons", write_lines(tmp_path / "a.jsonl", of_counts("mine", 5, 5, 0) + of_counts("other", 1, 1, 0)))
    again = write_lines(tmp_path / "b.jsonl", of_counts("mine", 9, 1, 0))
    with pytest.raises(ConfigError, match="has mine already, with other rows; replace them with --overwrite"):
        run("--add", again)
    board = run("--add", again, "--overwrite")
    assert {row["name"]: row["n_wins"] for row in board["models"]} == {"mine": 9, "other": 1}


def test_rows_that_were_added_are_not_lost_by_the_first_command(run, tmp_path):
    first = write_lines(tmp_path / "first.jsonl", of_counts("first", 5, 4, 1))
    run("--comparisons", first)
    assert names(run("--comparisons", first)) == ["first"]
    run("--add", write_lines(tmp_path / "second.jsonl", of_counts("second", 8, 2, 0)))
    with pytest.raises(ConfigError, match=r"10 rows that these do not have \(of second\)"):
        run("--comparisons", first)
    assert names(run("--comparisons", first, "--overwrite")) == ["first"]


def test_a_stored_leaderboard_is_a_source(run, tmp_path):
    run("--comparisons", write_lines(tmp_path / "a.jsonl", of_counts("mine", 5, 5, 0)))
    assert run("--comparisons", tmp_path / "board", output="copy") == run("--comparisons", tmp_path / "a.jsonl")


def test_a_damaged_leaderboard_and_a_file_in_place_of_a_folder_are_named(run, tmp_path):
    rows = write_lines(tmp_path / "a.jsonl", of_counts("mine", 5, 5, 0))
    run("--comparisons", rows)
    (tmp_path / "board" / "rows.parquet").write_bytes(b"no table")
    for words in (["--comparisons", tmp_path / "board"], ["--add", rows], ["--comparisons", rows]):
        with pytest.raises(DataError, match=r"rows\.parquet can't be read as the rows of a leaderboard"):
            run(*words)
    with pytest.raises(ConfigError, match=r"a\.jsonl is a file; give a folder"):
        run("--comparisons", rows, output="a.jsonl")


def test_a_model_against_itself_is_ranked_and_not_rated(run, tmp_path):
    board = run("--comparisons", write_lines(tmp_path / "a.jsonl", of_counts("reference", 3, 3, 2)))
    assert (board["models"][0]["win_rate"], board["ratings"]["players"]) == (50.0, [])
    assert board["ratings"]["bradley_terry_reason"] == "no duel between two models was judged"


def test_human_labels_of_a_file(run, tmp_path):
    records = of_counts("mine", 6, 4, 0)
    labels = [{**one, "generator_1": None, "generator_2": None, "preference": 2} for one in records]
    board = run(
        "--comparisons",
        write_lines(tmp_path / "a.jsonl", records),
        "--human",
        write_lines(tmp_path / "h.jsonl", labels),
    )
    assert {row["name"]: row["accuracy"] for row in board["human"]}["judge"] == pytest.approx(0.6)
    assert recompute_board(str(tmp_path / "board")) == board, "the labels are stored with the rows"


def test_failed_input_leaves_nothing_behind(run, tmp_path):
    with pytest.raises(DataError, match="none of the 1 rows has a preference"):
        run("--comparisons", write_lines(tmp_path / "a.jsonl", [record(0, None)]))
    assert not (tmp_path / "board").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "give one of --comparisons, --outputs, --models and --add; given: none"),
        (["--comparisons", "a", "--add", "b"], "given: --comparisons and --add"),
        (["--outputs", "a"], "--outputs needs --reference"),
        (["--comparisons", "a", "--annotators", "greedy"], "--annotators belongs to --outputs"),
        (["--comparisons", "a", "--level", "95"], "--level 95.0 is not between 0 and 1"),
        (["--add", "a"], "holds no leaderboard"),
    ],
)
def test_a_command_line_that_means_nothing(run, words, told):
    with pytest.raises(ConfigError, match=re.escape(told)):
        run(*words)


# -- outputs, judged first ---------------------------------------------------------------------------------------------


def outputs(model, number, **changes):
    return [
        {"instruction": f"prompt {index}", "input": "", "output": f"{model} on {index}", "generator": model, **changes}
        for index in range(number)
    ]


def test_outputs_are_judged_against_the_reference(run, tmp_path):
    judge = LongerWins()
    board = run(
        "--outputs", write_lines(tmp_path / "a.jsonl", outputs("long-winded", 6) + outputs("x", 6)),
        "--reference", write_lines(tmp_path / "r.jsonl", outputs("reference", 6)), judge=judge,
    )  # fmt: skip
    assert {row["name"]: row["win_rate"] for row in board["models"]} == {"long-winded": 100.0, "x": 0.0}
    assert [row["name"] for row in board["references"]] == ["reference"]
    assert (judge.asked, board["price"]) == (12, 3.0)


def test_outputs_are_added_against_the_stored_reference(run, tmp_path):
    reference = write_lines(tmp_path / "r.jsonl", outputs("reference", 6))
    first = write_lines(tmp_path / "a.jsonl", outputs("long-winded", 6))
    run("--outputs", first, "--reference", reference, judge=LongerWins())
    mine = write_lines(tmp_path / "mine.jsonl", outputs(None, 6))
    board = run("--add", mine, judge=LongerWins())
    assert sorted(names(board)) == ["long-winded", "mine"], "without generator, the file names the model"
    assert sorted(names(run("--add", mine, "--name", "again", judge=LongerWins()))) == ["again", "long-winded", "mine"]


def test_prompts_that_one_side_lacks_are_told(run, tmp_path):
    board = run(
        "--outputs", write_lines(tmp_path / "a.jsonl", outputs("mine", 4) + outputs("mine", 1, instruction="own")),
        "--reference", write_lines(tmp_path / "r.jsonl", outputs("reference", 6)), judge=LongerWins(),
    )  # fmt: skip
    assert board["models"][0]["n_total"] == 4
    warnings = " ".join(board["warnings"])
    assert "mine: 1 of 5 answers are to prompts that reference does not answer" in warnings
    assert "mine does not answer 2 of the 6 prompts of reference" in warnings


def test_the_input_may_stand_in_the_instruction_as_alpaca_eval_has_it(run, tmp_path):
    merged = outputs("mine", 3)
    for one in merged:
        one["instruction"] += "\n\nof this"
    board = run(
        "--outputs", write_lines(tmp_path / "a.jsonl", merged),
        "--reference", write_lines(tmp_path / "r.jsonl", outputs("reference", 3, input="of this")), judge=LongerWins(),
    )  # fmt: skip
    assert board["models"][0]["n_total"] == 3


def test_a_judgement_that_did_not_come_back_is_told(run, tmp_path):
    def silent(theirs, ours):
        return list(LongerWins()(theirs, ours))[:-1]

    board = run(
        "--outputs", write_lines(tmp_path / "a.jsonl", outputs("mine", 4)),
        "--reference", write_lines(tmp_path / "r.jsonl", outputs("reference", 4)), judge=silent,
    )  # fmt: skip
    assert "mine: 4 pairs were given, 3 judgements came back" in board["warnings"]


@pytest.mark.parametrize(
    ("mine", "theirs", "told"),
    [
        (outputs("mine", 2), outputs("a", 2) + outputs("b", 2), "--reference has outputs of 2 models (a, b)"),
        (outputs("mine", 2), outputs("mine", 2), "all outputs are those of the reference, mine"),
        (outputs("mine", 2, input="else"), outputs("a", 2), "mine answers none of the 2 prompts"),
        (outputs("mine", 2, output=["a", "b"]), outputs("a", 2), "output is ['a', 'b'], not a text"),
        (outputs("mine", 2, instruction=None), outputs("a", 2), "has no instruction"),
        (outputs(["mine"], 2), outputs("a", 2), "a.jsonl, record 0: generator is ['mine'], not a text"),
        ([], outputs("a", 2), "there are no rows"),
        (outputs("mine", 2), [], "there are no rows"),
    ],
)
def test_outputs_that_can_not_be_compared(run, tmp_path, mine, theirs, told):
    judge = LongerWins()
    with pytest.raises((ConfigError, DataError), match=re.escape(told)):
        run(
            "--outputs", write_lines(tmp_path / "a.jsonl", mine),
            "--reference", write_lines(tmp_path / "r.jsonl", theirs), judge=judge,
        )  # fmt: skip
    assert judge.asked == 0, "nothing is paid for"
    assert not (tmp_path / "board").exists()


def test_outputs_are_judged_by_a_pool_of_a_file(run, tmp_path):
    pool = tmp_path / "pool.yml"
    pool.write_text("annotators:\n  - name: likes long\n    judge: {rule: longer}\n")
    board = run(
        "--outputs", write_lines(tmp_path / "a.jsonl", outputs("long-winded", 6) + outputs("x", 6)),
        "--reference", write_lines(tmp_path / "r.jsonl", outputs("reference", 6)), "--annotators", pool,
    )  # fmt: skip
    assert {row["name"]: row["win_rate"] for row in board["models"]} == {"long-winded": 100.0, "x": 0.0}
    assert board["annotators"] == {"likes long": 12}
    assert board["judged_by"] == str(pool)
    mine = write_lines(tmp_path / "mine.jsonl", outputs("another", 6))
    assert len(run("--add", mine)["models"]) == 3, "the same pool judges what is added"


@pytest.mark.parametrize("names", [("eval.json", "eval.json"), ("eval.jsonl.gz", "eval.json")])
def test_two_files_without_generator_are_never_one_model(run, tmp_path, names):
    for folder, name in zip(("a", "b"), names, strict=True):
        (tmp_path / folder).mkdir()
        content = "".join(json.dumps(one) + "\n" for one in outputs(None, 3)).encode()
        (tmp_path / folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    files = [tmp_path / folder / name for folder, name in zip(("a", "b"), names, strict=True)]
    reference = write_lines(tmp_path / "r.jsonl", outputs("reference", 3))
    with pytest.raises(
        ConfigError, match=r"eval\S+ and \S+eval\S+ would both be called eval, .* no `generator`; .* or rename a file"
    ):
        run("--outputs", *files, "--reference", reference, judge=LongerWins())


def test_a_model_is_called_as_its_file_without_the_endings_of_its_kind(run, tmp_path):
    reference = write_lines(tmp_path / "r.jsonl", outputs("reference", 3))
    files = [write_lines(tmp_path / name, outputs(None, 3)) for name in ("gpt-3.5.jsonl", "gpt-3.jsonl")]
    assert sorted(names(run("--outputs", *files, "--reference", reference, judge=LongerWins()))) == ["gpt-3", "gpt-3.5"]


def test_outputs_that_are_called_as_the_reference(run, tmp_path):
    reference = write_lines(tmp_path / "r.jsonl", outputs("reference", 4))
    mine = write_lines(tmp_path / "mine.jsonl", outputs("mine", 4) + outputs("reference", 3))
    board = run("--outputs", mine, "--reference", reference, judge=LongerWins())
    assert names(board) == ["mine"]
    assert "reference: its outputs are those of the reference, and were not judged" in board["warnings"]
    other = write_lines(tmp_path / "other.jsonl", outputs("mine", 4) + outputs("reference", 3, output="else"))
    with pytest.raises(ConfigError, match=r"3 outputs of reference are not those of the reference, .* another name"):
        run("--outputs", other, "--reference", reference, judge=LongerWins(), output="other")


def test_what_was_judged_against_another_reference_is_not_added(run, tmp_path):
    run("--comparisons", write_lines(tmp_path / "a.jsonl", of_counts("first", 5, 4, 1)))
    second = write_lines(tmp_path / "b.jsonl", of_counts("second", 8, 2, 0, generator_1="other"))
    told = "judged against other, and the leaderboard in .* against reference; .*--comparisons"
    with pytest.raises(ConfigError, match=told):
        run("--add", second)
    judge = LongerWins()
    words = ["--add", write_lines(tmp_path / "c.jsonl", outputs("mine", 2))]
    with pytest.raises(ConfigError, match=told):
        run(*words, "--reference", write_lines(tmp_path / "r.jsonl", outputs("other", 2)), judge=judge)
    assert judge.asked == 0, "nothing is paid for"
    both = run("--comparisons", tmp_path / "board", second)
    assert "win rates are against several references (other: second; reference: first)" in " ".join(both["warnings"])


def test_outputs_without_a_judge(run, tmp_path):
    file = write_lines(tmp_path / "a.jsonl", outputs("mine", 2))
    with pytest.raises(ConfigError, match="outputs need --annotators NAME"):
        run("--outputs", file, "--reference", write_lines(tmp_path / "r.jsonl", outputs("reference", 2)))


def test_outputs_are_judged_by_a_server_in_both_orders_and_nothing_is_asked_twice(run, tmp_path):
    with judge_server() as server:
        words = [
            "--outputs", write_lines(tmp_path / "a.jsonl", outputs("mine", 6)),
            "--reference", write_lines(tmp_path / "r.jsonl", outputs("reference", 6)),
            "--annotators", "both-orders", "--url", server.url, "--model", "judge", "--cache", tmp_path / "cache",
        ]  # fmt: skip
        board = run(*words)
        assert (board["models"][0]["n_total"], len(server.asked)) == (6, 12)
        (consistency,) = board["consistency"]
        assert (consistency["annotator"], consistency["n_pairs"]) == ("both_orders_gpt4", 6)
        assert run(*words) == board
        assert len(server.asked) == 12

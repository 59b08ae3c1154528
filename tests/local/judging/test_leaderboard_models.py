"""`phf leaderboard --models` with directories: served for the time of the job, and not at all if nothing is missing."""

import json

import pytest
from boards import LongerWins, few_resamples
from judged_rows import write_lines
from tiny_models import write_checkpoint

from jobs import leaderboard, serve
from phf_ray.judging.board import write


@pytest.mark.timeout(400)
def test_directories_are_served_and_sampled_with_their_control_tokens(local_ray, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "draw_board_plots", lambda board: [])
    write_checkpoint(tmp_path / "mle")
    write_checkpoint(tmp_path / "conditional", control="retag", seed=1)
    prompts = write_lines(tmp_path / "prompts.jsonl", [{"instruction": f"def f{number}(a):"} for number in range(6)])
    command = ["--models", str(tmp_path / "mle"), str(tmp_path / "conditional"), "--prompts", prompts]
    command += ["--arm", "mle", "conditional:good", "conditional:bad", "--reference", "mle", "--template", "plain"]
    command += ["--max-tokens", "20", "--output", str(tmp_path / "board")]
    with few_resamples():
        assert leaderboard.main(command, judge=LongerWins()) == 0
        first = (tmp_path / "board" / "leaderboard.json").read_bytes()

        def not_served(*_, **__):
            raise AssertionError("nothing is missing")

        monkeypatch.setattr(serve, "serving", not_served)
        assert leaderboard.main(command, judge=LongerWins()) == 0
    assert (tmp_path / "board" / "leaderboard.json").read_bytes() == first
    board = json.loads(first)
    assert {row["name"]: row["n_total"] for row in board["models"]} == {"conditional:good": 6, "conditional:bad": 6}
    files = {path.name: json.loads(path.read_text()) for path in (tmp_path / "board" / "answers").iterdir()}
    assert sorted(files) == ["conditional%3Abad.json", "conditional%3Agood.json", "mle.json"]
    texts = {name: [row["output"] for row in rows] for name, rows in files.items()}
    assert texts["conditional%3Abad.json"] != texts["conditional%3Agood.json"]
    assert all(any(rows) for rows in texts.values())

"""One command at a time in an output folder."""

import subprocess
import sys
from pathlib import Path

import pytest
from score_runs import request

from jobs.prepare_feedback import main as prepare_feedback
from phf_ray.errors import ConfigError
from phf_ray.scoring.executor import InProcessScoring
from phf_ray.scoring.job import run_scoring
from phf_ray.storage.one_at_a_time import only_command


def test_a_second_command_is_refused_until_the_first_one_ends(tmp_path):
    output = str(tmp_path / "new" / "out")
    with only_command(output):
        with (
            pytest.raises(ConfigError, match=f"--output {output}: another command is working on it; wait"),
            only_command(output),
        ):
            pytest.fail("two commands at once")
        (tmp_path / "new" / "out" / "part").touch()
    with only_command(output):
        pass


def test_a_folder_in_which_nothing_came_to_be_is_removed(tmp_path):
    with pytest.raises(ConfigError, match="no input"), only_command(str(tmp_path / "out")):
        raise ConfigError("there is no input")
    assert not (tmp_path / "out").exists()


def test_the_folder_is_still_held_when_it_is_removed(tmp_path, monkeypatch):
    output, remove = tmp_path / "out", Path.rmdir

    def refused_and_removed(path):
        with pytest.raises(ConfigError, match="another command"), only_command(str(path)):
            pass
        remove(path)

    monkeypatch.setattr(Path, "rmdir", refused_and_removed)
    with only_command(str(output)) as is_held:
        assert is_held
    assert not output.exists()


@pytest.mark.parametrize("below", ["", "/out"])
def test_a_file_is_no_output(tmp_path, below):
    (tmp_path / "thesis").write_text("mine")
    output = f"{tmp_path}/thesis{below}"
    with (
        pytest.raises(ConfigError, match=f"--output {output} is a file, or is below one; give a folder"),
        only_command(output),
    ):
        pass


def test_the_lock_ends_with_a_killed_process(tmp_path):
    code = (
        "import sys\nfrom phf_ray.storage.one_at_a_time import only_command\n"
        "with only_command(sys.argv[1]):\n    print(1, flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.read(1) == b"1"
        with pytest.raises(ConfigError, match="another command"), only_command(str(tmp_path)):
            pass
        process.kill()
    with only_command(str(tmp_path)):
        pass


def test_scoring_and_feedback_are_refused_while_another_command_works(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("PASS\n")
    (tmp_path / "in.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    output = tmp_path / "out"
    scoring = request(tmp_path / "in", gate=tmp_path / "gate")
    with only_command(str(output)):
        with pytest.raises(ConfigError, match="another command is working on it"):
            run_scoring(scoring, str(output), executor=InProcessScoring())
        with pytest.raises(ConfigError, match="another command is working on it"):
            prepare_feedback(["--input", str(tmp_path / "in.jsonl"), "--output", str(output)])
    assert not output.exists(), "nothing came to be in it"

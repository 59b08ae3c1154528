import json
import subprocess
import sys

import pytest
from places import ROOT

from jobs.score_corpus import main
from phf_ray.errors import DataError


def test_the_jobs_own_error_is_shown_even_if_its_summary_cannot_be_written(tmp_path, caplog):
    (tmp_path / "a.py").write_text("x = 1\n")
    output = tmp_path / "scored"
    output.mkdir()
    (output / "plan.json").write_text(json.dumps({"identities": [], "shards": "damaged"}))
    # Files of the corpus are written through this folder, so nothing can be written.
    (output / "_tmp").write_text("in the way")
    with pytest.raises(DataError, match=r"plan\.json can't be read"):
        main(["--task", "pep8", "--input", str(tmp_path / "a.py"), "--output", str(output)])
    assert "summary.json could not be written: " in caplog.text
    (output / "_tmp").unlink()
    with pytest.raises(DataError):
        main(["--task", "pep8", "--input", str(tmp_path / "a.py"), "--output", str(output)])
    assert "plan.json can't be read" in json.loads((output / "summary.json").read_text())["error"]


class RayStartedError(Exception):
    pass


@pytest.fixture
def no_ray(monkeypatch):
    """Say that a job would start Ray, in place of starting it."""

    def start():
        raise RayStartedError

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("jobs.cli.start_ray", start)


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n" * 100)
    return ["--task", "pep8", "--input", str(tmp_path / "a.py"), "--output", str(tmp_path / "scored")]


def test_small_work_is_done_without_loading_ray_or_torch(arguments):
    code = (
        "import sys; from jobs.score_corpus import main; "
        "assert main(sys.argv[1:]) == 0; "
        "print(sorted({'ray', 'torch', 'transformers', 'matplotlib', 'spacy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_line_says_that_the_work_is_done_in_this_process_and_how_to_have_it_on_ray(no_ray, arguments, caplog):
    caplog.set_level("INFO")
    assert main(arguments) == 0
    assert "scoring 0.6 kB of text in this process" in caplog.text
    assert "RAY_ADDRESS=local, or the address of a cluster, has it on Ray" in caplog.text


@pytest.mark.parametrize("reason", ["size", "address", "pools"])
def test_ray_scores_what_is_large_and_what_is_asked_of_it(no_ray, arguments, monkeypatch, reason):
    if reason == "size":
        monkeypatch.setattr("phf_ray.scoring.small._BYTES_HERE", 599)
    elif reason == "address":
        monkeypatch.setenv("RAY_ADDRESS", "local")
    else:
        arguments += ["--override", "scoring.pools.cpu={max: 2}"]
    with pytest.raises(RayStartedError):
        main(arguments)
    assert main([*arguments, "--in-process"]) == 0


def test_a_model_scores_less_in_this_process_than_rules_do():
    from phf_ray.config import load_config
    from phf_ray.scoring.small import bytes_here

    assert 0 < bytes_here(load_config("toxicity")) < bytes_here(load_config("pep8"))

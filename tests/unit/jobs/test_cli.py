"""What all jobs share: how they log, and where they may write."""

import io
import json
import logging
import subprocess
import sys

import pytest
from places import ROOT

from jobs.cli import log_handler, require_shared, run_name, runtime_env_for, start_local
from phf_ray.errors import ConfigError, IncompleteError


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--task", "t.yml", "--run-name", "mle-1", "--storage-path", "runs"], "mle-1"),
        (["--output=s3://bucket/scored/toxicity/"], "toxicity"),
        (["--output", "out"], "out"),
        (["--dry-run"], None),
        (["--output"], None),
    ],
)
def test_a_run_is_named_by_its_arguments(arguments, name):
    assert run_name(arguments) == name


def logged(monkeypatch, kind):
    monkeypatch.setenv("PHF_LOG_FORMAT", kind)
    handler = log_handler(["/app/jobs/train_lm.py", "--run-name", "mle-1"])
    handler.setStream(io.StringIO())
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("phf_ray", logging.WARNING, __file__, 1, 'step %d\n"x"', (3,), sys.exc_info())
    handler.emit(record)
    return handler.stream.getvalue()


def test_a_structured_line_has_stage_run_and_traceback(monkeypatch):
    text = logged(monkeypatch, "json")
    assert text.count("\n") == 1
    values = json.loads(text)
    assert (values["stage"], values["run"], values["level"]) == ("train_lm", "mle-1", "WARNING")
    assert values["message"] == 'step 3\n"x"'
    assert values["traceback"].endswith("ValueError: why")
    assert values["time"].endswith("+00:00")


def test_lines_for_people_are_the_default(monkeypatch):
    assert 'WARNING phf_ray: step 3\n"x"\nTraceback' in logged(monkeypatch, "text")


def test_jobs_log_that_way():
    command = [
        sys.executable,
        "-c",
        "import sys, logging; from jobs import cli; cli.run(lambda _: logging.warning('hello'))",
    ]
    environment = {"PHF_LOG_FORMAT": "json", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--run-name", "r"], env=environment, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stderr)["run"] == "r"
    done = subprocess.run(
        command, env={**environment, "PHF_LOG_FORMAT": "xml"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "set it to text or json" in done.stderr


@pytest.mark.parametrize("path", ["runs", "/home/me/runs"])
def test_a_submitted_job_may_not_write_where_other_nodes_can_not_read(monkeypatch, path):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"on one node's own disk.*such as /mnt/shared/runs or s3://bucket/runs"):
        require_shared(path, flag="--output")


def test_shared_storage_and_urls_are_taken(monkeypatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    monkeypatch.setenv("PHF_SHARED_ROOTS", "/data:/lustre")
    assert require_shared("/lustre/me/runs", flag="--output") == "/lustre/me/runs"
    assert require_shared("s3://bucket/runs", flag="--output") == "s3://bucket/runs"
    with pytest.raises(ConfigError, match="PHF_SHARED_ROOTS names the mount points"):
        require_shared("/mnt/runs", flag="--output")


def test_a_python_below_a_folder_with_spaces_is_quoted_for_the_workers():
    # Ray puts it into a line of a shell as it is.
    environment = runtime_env_for("/a b/it's/python")
    assert environment is not None
    line = f"printf '%s\\n' {environment['py_executable']}"
    assert subprocess.check_output(["bash", "-c", line], text=True) == "/a b/it's/python\n"
    assert runtime_env_for("/usr/bin/python3") is None


def test_a_ray_that_is_late_is_started_again(monkeypatch, caplog):
    import ray

    tries = []

    def init(**options):
        tries.append(options)
        if len(tries) < 3:
            raise Exception("The current node timed out during startup. This could happen because")  # noqa: TRY002

    monkeypatch.setattr(ray, "init", init)
    start_local(num_cpus=4)
    assert tries == [{"address": "local", "include_dashboard": False, "num_cpus": 4}] * 3
    assert caplog.text.count("Ray did not start within 30 s") == 2


@pytest.mark.parametrize(
    ("said", "raised", "num_tries"),
    [("timed out during startup", IncompleteError, 3), ("no such option", ValueError, 1)],
)
def test_a_ray_that_never_starts_is_given_up(monkeypatch, said, raised, num_tries):
    import ray

    tries = []

    def init(**options):
        tries.append(options)
        raise ValueError(said)

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(raised, match=said):
        start_local(num_cpus=4)
    assert len(tries) == num_tries

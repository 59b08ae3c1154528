"""Structured lines of all processes of a job: of the job itself, of Ray's workers, and of what these start."""

import json
import os
import subprocess
import sys
from pathlib import Path

from places import ROOT

JOB = """
import logging

from jobs import cli
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import ScoringSetup, ScoringTask


def work():
    logging.getLogger("phf_ray").warning("of a worker")
    process = ScoringProcess(ScoringSetup(({"class_name": "fakes:WordScorer"},), "lines", 60.0))
    process.submit([ScoringTask(texts=("RAISE", "fine"))])
    process.collect()
    process.close()


def main(_):
    import ray

    cli.start_ray(num_cpus=2)
    logging.getLogger("phf_ray").info("of the job")
    ray.get(ray.remote(work).remote())
    print(ray._private.worker._global_node.get_logs_dir_path())


cli.run(main)
"""


def test_every_process_of_a_job_names_its_stage_and_run(tmp_path):
    (tmp_path / "my_job.py").write_text(JOB)
    paths = [str(ROOT), os.environ["PYTHONPATH"]]
    environment = {**os.environ, "PHF_LOG_FORMAT": "json", "PYTHONPATH": os.pathsep.join(paths), "RAY_ADDRESS": "local"}
    command = [sys.executable, "my_job.py", "--run-name", "first"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    for file in Path(done.stdout.splitlines()[-1]).glob("worker-*.err"):
        lines += file.read_text().splitlines()
    # The last is of the scorer's process, which the worker starts.
    for text, level in (("of the job", "INFO"), ("of a worker", "WARNING"), ("each is tried alone", "WARNING")):
        (line,) = (line for line in lines if text in line)
        values = json.loads(line)
        assert (values["stage"], values["run"], values["level"]) == ("my_job", "first", level)

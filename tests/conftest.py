"""Fixtures shared by all tests. Tests that need Ray share one local cluster: starting one takes seconds."""

import os
import signal
import sys
from collections.abc import Iterator

import fsspec
import pytest
from fake_s3 import serving
from hypothesis import HealthCheck, settings
from places import SUPPORT

from jobs.cli import runtime_env_for, start_local

# No test may reach for a hub, and two threads of torch on each of several workers are slower than one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "disabled")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# What a shell starts in the background ignores SIGINT, and so would the servers that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Its fixtures are a plugin of two modules of tests, which import it first.
pytest.register_assert_rewrite("score_runs")
# Ray's workers import the fakes too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(SUPPORT), os.environ.get("PYTHONPATH", "")])


# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


@pytest.fixture
def s3(monkeypatch) -> Iterator[dict[str, bytes]]:
    """A store behind `s3://` on this machine: what it holds, by `bucket/key`."""
    with serving() as (url, objects):
        _point_at(url, monkeypatch)
        yield objects


@pytest.fixture
def s3_requests(monkeypatch) -> Iterator[tuple[dict[str, bytes], list[str]]]:
    """As `s3`, with the method, or LIST, and the name of each request. For our own driver: s3fs asks otherwise."""
    if fsspec.get_filesystem_class("s3").__module__ != "phf_ray.storage.object_stores":
        pytest.skip("s3fs is installed")
    requests: list[str] = []
    with serving(requests=requests) as (url, objects):
        _point_at(url, monkeypatch)
        yield objects, requests


@pytest.fixture
def s3_that_refuses(monkeypatch) -> Iterator[None]:
    """As `s3`, without the right to see anything. For our own driver: s3fs, where it is installed, hides refusals."""
    if fsspec.get_filesystem_class("s3").__module__ != "phf_ray.storage.object_stores":
        pytest.skip("s3fs is installed")
    with serving(refuses=True) as (url, _):
        _point_at(url, monkeypatch)
        yield


def _point_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    values = {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "REGION": "us-east-1"}
    for name, value in {**values, "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """One local Ray with 4 logical CPUs for the whole session."""
    import ray

    runtime_env = runtime_env_for(sys.executable)
    start_local(num_cpus=4, log_to_driver=False, runtime_env=runtime_env)
    yield
    ray.shutdown()

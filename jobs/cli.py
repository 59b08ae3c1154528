"""What all jobs share: arguments, the start of Ray, and how an error ends the program."""

import argparse
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from phf_ray import logs
from phf_ray.config import Config, load_config
from phf_ray.errors import ConfigError, IncompleteError, PhfError

log = logging.getLogger("phf_ray")


def add_config_arguments(parser: argparse.ArgumentParser, *, method: bool) -> None:
    parser.add_argument("--task", required=True, metavar="YAML", help="task file, such as configs/pep8/pretrain.yml")
    if method:
        parser.add_argument("--method", metavar="YAML", help="method file, merged over the task file")
    parser.add_argument(
        "--override", nargs="+", action="extend", default=[], metavar="A.B=C", help="values merged over both files"
    )
    parser.add_argument("--dry-run", action="store_true", help="validate everything, print the plan and stop")


def config_from(arguments: argparse.Namespace) -> Config:
    return load_config(arguments.task, getattr(arguments, "method", None), arguments.override)


def run(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Run a job's `main` as the program: one line per error that is the user's to mend, a traceback for the rest.

    Exit codes: 0 all done; 2 what the user wrote; 3 what a file holds; 4 a server; 5 part of the work missing;
    130 interrupted; 1 anything else.
    """
    handler = log_handler(sys.argv)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if isinstance(handler.formatter, logs.JsonLines):
        logs.name_lines(handler.formatter)
    for noisy in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = main(None)
    except PhfError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
        if isinstance(error, IncompleteError):
            print("the same command resumes what is missing", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code or 0)


def log_handler(argv: Sequence[str]) -> logging.Handler:
    """Lines for people, or with PHF_LOG_FORMAT=json one JSON object per line with the stage (the job) and the run."""
    wanted = os.environ.get("PHF_LOG_FORMAT", "text")
    if wanted not in ("text", "json"):
        sys.exit(f"error: PHF_LOG_FORMAT={wanted}: give text or json")
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(text if wanted == "text" else logs.JsonLines(stage=Path(argv[0]).stem, run=run_name(argv[1:])))
    return handler


def run_name(arguments: Sequence[str]) -> str | None:
    """What the job's lines are found by: its --run-name, else the last part of its --output."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run-name", nargs="?")
    parser.add_argument("--output", nargs="?")
    known, _ = parser.parse_known_args(list(arguments))
    return known.run_name or (known.output and known.output.rstrip("/").rpartition("/")[2]) or None


def start_ray(*, num_cpus: int | None = None) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start a local Ray.

    A local Ray gets at least 4 logical CPUs: on fewer, an actor pool of Ray Data can hold every CPU while its readers
    wait for one, silently and for ever. Its workers' output goes to Ray's log folder; RAY_LOG_TO_DRIVER=1 shows it.
    """
    address = os.environ.get("RAY_ADDRESS", "local")
    if address == "local":
        # Ray's C++ side logs a harmless error for every restartable actor (its issue 53727) and each worker a line on
        # its log level: on one machine they only bury the job's own lines.
        os.environ.setdefault("RAY_LOG_TO_DRIVER", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        return
    runtime_env = {**(runtime_env_for(sys.executable) or {}), **logs.runtime_env()} or None
    # Of no use on one machine: that the cluster has a token, and that progress bars are off because we print our own.
    for noisy in ("ray._private.authentication.authentication_token_setup", "ray.data._internal.progress"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # A bare ray.init() attaches to whatever cluster the machine's ray_current_cluster file names, also a dead one.
    if address == "local":
        start_local(
            num_cpus=num_cpus or max(4, os.cpu_count() or 1),
            logging_level=logging.WARNING,
            log_to_driver=os.environ["RAY_LOG_TO_DRIVER"] == "1",
            runtime_env=runtime_env,
        )
    else:
        ray.init(address=address, logging_level=logging.WARNING, runtime_env=runtime_env)


def start_local(**options: Any) -> None:
    """A Ray of this machine alone. `options`: of `ray.init`.

    Ray 2.60 gives its own processes 30 s, which a busy machine does not always keep: two more tries.
    """
    # Serve 2.60 gives its proxy 5 s to get ready and then kills it, which ends whoever waits for it.
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    import ray

    for tries_left in (2, 1, 0):
        try:
            ray.init(address="local", include_dashboard=False, **options)
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            if not tries_left:
                raise IncompleteError(f"Ray does not start on this machine, which may be too busy: {error}") from error
            log.warning("Ray did not start within 30 s; it is tried again")
            ray.shutdown()


def runtime_env_for(executable: str) -> dict[str, Any] | None:
    """Ray 2.60 puts the path of Python unquoted into a shell command for workers with an environment of their own, as
    Ray Train's are: with a space in it they never start. None: the path needs no quotes."""
    quoted = shlex.quote(executable)
    return None if quoted == executable else {"py_executable": quoted}


def is_url(path: str) -> bool:
    return "://" in path


def require_shared(path: str, *, flag: str) -> str:
    """`path` made absolute; refused where other machines could not reach it.

    Inside a submitted job the working directory is a temporary copy, and on several nodes each has its own disk.
    """
    import ray

    if is_url(path):
        return path
    # What Ray 2.60 hands to the driver of a submitted job, and to nothing else.
    in_submitted_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    num_nodes = sum(node["Alive"] for node in ray.nodes()) if ray.is_initialized() else 1
    shared_roots = os.environ.get("PHF_SHARED_ROOTS", "/mnt:/shared").split(":")
    if in_submitted_job or num_nodes > 1:
        resolved = Path(path)
        on_shared = resolved.is_absolute() and any(resolved.is_relative_to(root) for root in shared_roots if root)
        if not on_shared:
            raise ConfigError(
                f"{flag} {path} is on one node's own disk, and this job runs "
                f"{'as a submitted job' if in_submitted_job else f'on {num_nodes} nodes'}; use storage that all see, "
                f"such as /mnt/shared/{resolved.name} or s3://bucket/{resolved.name} "
                "(PHF_SHARED_ROOTS names the mount points of shared storage, separated by colons)"
            )
    return str(Path(path).resolve())

"""The program `phf`, and what all jobs share: arguments, the start of Ray, and how an error ends the program.

Loads what it needs late: `phf --help` answers at once.
"""

import argparse
import importlib
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jobs import commands

if TYPE_CHECKING:
    from phf_ray.config import Config

log = logging.getLogger("phf_ray")


def main() -> NoReturn:
    """`phf COMMAND ...` does what `python -m jobs.COMMAND ...` does. Exit codes as of `run`; 2: no such command."""
    command, *arguments = sys.argv[1:] or [""]
    if command in commands.COMMANDS:
        module = commands.module_of(command)
        run(importlib.import_module(module).main, argv=[module.removeprefix("jobs."), *arguments])
    if command == "":
        print(commands.help_text(), file=sys.stderr)
        sys.exit(2)
    if command in ("-h", "--help", "help"):
        print(commands.help_text())
    elif command == "--version":
        from phf_ray import __version__

        print(f"phf-ray {__version__}")
    elif command == "--configs":
        from phf_ray.config import shipped_folder

        print(shipped_folder())
    else:
        print(f"error: {commands.unknown(command)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def add_config_arguments(parser: argparse.ArgumentParser, *, method: bool) -> None:
    parser.add_argument(
        "--task",
        required=True,
        metavar="NAME|FILE",
        help="name of a task that comes along, such as pep8 (configs/pep8/pretrain.yml) or pep8/finetune, or the path "
        "of a file; a path ends in .yml or .yaml, begins with /, ./ or ../, or is a file that exists",
    )
    if method:
        parser.add_argument(
            "--method",
            metavar="NAME|FILE",
            help="merged over the task: a file beside the task's, such as conditional, or a path as for --task",
        )
    parser.add_argument(
        "--override", nargs="+", action="extend", default=[], metavar="A.B=C", help="values merged over both files"
    )
    parser.add_argument("--dry-run", action="store_true", help="validate everything, print the plan and stop")


def config_from(arguments: argparse.Namespace) -> "Config":
    from phf_ray.config import load_config

    return load_config(arguments.task, getattr(arguments, "method", None), arguments.override)


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a job's `main` as the program: one line per error that is the user's to mend, a traceback for the rest.

    `argv`: the job's file or name, and its arguments; by default `sys.argv`.
    Exit codes: 0 all done; 2 what the user wrote; 3 what a file holds; 4 a server; 5 part of the work missing;
    130 interrupted; 1 anything else.
    """
    from phf_ray import logs
    from phf_ray.errors import IncompleteError, PhfError

    argv = sys.argv if argv is None else argv
    handler = log_handler(argv)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if isinstance(handler.formatter, logs.JsonLines):
        logs.name_lines(handler.formatter)
    for noisy in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = main(argv[1:])
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
    from phf_ray import logs

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


def command_of(command: str, arguments: Sequence[str]) -> list[str]:
    """A command line that starts another command of `phf` with this process's code, wherever that was found.

    `python -m` would look into the current directory first, where a user may have a folder `jobs`.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from jobs.cli import main; main()"
    return [sys.executable, "-c", code, command, *arguments]


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
    from jobs import workers
    from phf_ray import logs

    runtime_env = {**(runtime_env_for(sys.executable) or {}), **logs.runtime_env(), **workers.runtime_env()} or None
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

    from phf_ray.errors import IncompleteError

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

    from phf_ray.errors import ConfigError

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

"""The program `phf`, and the code that all jobs share: arguments, starting Ray, and exit codes.

Imports are late, so that `phf --help` answers at once.
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

SHARED_RAY = "PHF_SHARED_RAY"
"""Variable with the address of this machine's Ray that the stages of a pipeline share. A command that needs no Ray
takes no notice of it, as it does of RAY_ADDRESS."""


def main() -> NoReturn:
    """Run `phf COMMAND ...` like `python -m jobs.COMMAND ...`. Exits like `run`, or with 2 for an unknown command."""
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
        help="name of a shipped task, such as pep8 (configs/pep8/pretrain.yml) or pep8/finetune, or the path of a "
        "file; a path ends in .yml or .yaml, begins with /, ./ or ../, or is an existing file",
    )
    if method:
        parser.add_argument(
            "--method",
            metavar="NAME|FILE",
            help="file merged over the task: the name of one next to the task file, such as conditional, or a path",
        )
    parser.add_argument(
        "--override", nargs="+", action="extend", default=[], metavar="A.B=C", help="values merged over both files"
    )
    parser.add_argument("--dry-run", action="store_true", help="validate everything, print the plan and stop")


def add_run_arguments(parser: argparse.ArgumentParser, *, name: str, of_start: str = "") -> None:
    """Add what names a run and says what it starts from. `name`: an example. `of_start`: more on that start."""
    parser.add_argument(
        "--model",
        dest="shape",
        metavar="NAME|FILE",
        help="shape of a new model in place of the task's: 124m, 350m, 1b, 3b, 7b (Llama), 124m_gpt2 ..., or a file",
    )
    parser.add_argument(
        "--run-name", help=f"name of the run's folder below the storage path; default: after task and method ({name})"
    )
    parser.add_argument(
        "--storage-path", default="runs", metavar="DIR", help="storage that all workers see (default: ./runs)"
    )
    parser.add_argument(
        "--checkpoint-path",
        metavar="DIR",
        help=f"start from the weights of this checkpoint, or of this run's newest one{of_start}",
    )
    parser.add_argument(
        "--in-process", action="store_true", help="train with one worker in this process, without Ray: for small models"
    )
    parser.add_argument("--group-name", help="group of the run on Weights & Biases")
    parser.add_argument("--tags", nargs="+", default=[], help="tags of the run on Weights & Biases")


def config_from(arguments: argparse.Namespace) -> "Config":
    from phf_ray.config import load_config

    method, model = getattr(arguments, "method", None), getattr(arguments, "shape", None)
    return load_config(arguments.task, method, arguments.override, model=model)


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a job's `main` as the program. An expected error prints one line, any other error a traceback.

    `argv`: the job's file or name, then its arguments; by default `sys.argv`.
    Exit codes: 0 success; 2 wrong user input; 3 invalid content of a file; 4 a server failed; 5 part of the work is
    missing; 130 interrupted; 1 anything else.
    """
    from phf_ray import logs
    from phf_ray.errors import IncompleteError, PhfError

    argv = sys.argv if argv is None else argv
    handler = log_handler(argv)
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    if isinstance(handler.formatter, logs.JsonLines):
        logs.name_lines(handler.formatter)
    for noisy in ("httpx", "httpx2", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        code = main(argv[1:])
    except PhfError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
        if isinstance(error, IncompleteError):
            print("run the same command again to resume", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr, flush=True)
        code = 130
    sys.exit(code or 0)


def log_handler(argv: Sequence[str]) -> logging.Handler:
    """Return a handler for readable lines or, with PHF_LOG_FORMAT=json, JSON lines with stage (the job) and run."""
    from phf_ray import logs

    wanted = os.environ.get("PHF_LOG_FORMAT", "text")
    if wanted not in ("text", "json"):
        sys.exit(f"error: PHF_LOG_FORMAT={wanted} is unknown; set it to text or json")
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(text if wanted == "text" else logs.JsonLines(stage=Path(argv[0]).stem, run=run_name(argv[1:])))
    return handler


def run_name(arguments: Sequence[str]) -> str | None:
    """Return the name of the run in log lines: --run-name, else the last part of --output, else None."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--run-name", nargs="?")
    parser.add_argument("--output", nargs="?")
    known, _ = parser.parse_known_args(list(arguments))
    return known.run_name or (known.output and known.output.rstrip("/").rpartition("/")[2]) or None


def command_of(command: str, arguments: Sequence[str]) -> list[str]:
    """Return a command line that starts another command of `phf` with the code of this process.

    `python -m` would search the current directory first, where a user may have a folder `jobs`.
    """
    code = f"import sys; sys.path[:] = {sys.path!r}; from jobs.cli import main; main()"
    return [sys.executable, "-c", code, command, *arguments]


def asks_for_ray() -> bool:
    """Whether even small work is to be done on Ray: RAY_ADDRESS is set, or this process is connected to a Ray."""
    ray = sys.modules.get("ray")
    return "RAY_ADDRESS" in os.environ or (ray is not None and ray.is_initialized())


def add_in_process_argument(parser: argparse.ArgumentParser, *, does: str) -> None:
    parser.add_argument(
        "--in-process",
        action="store_true",
        help=f"{does} in this process, without Ray, whatever the size; RAY_ADDRESS=local has small work on Ray, too",
    )


def start_ray(*, num_cpus: int | None = None) -> None:
    """Connect to the cluster that RAY_ADDRESS names, or start a local Ray.

    A local Ray gets at least 4 logical CPUs: on fewer, an actor pool of Ray Data can hold every CPU while its readers
    wait for one, silently and forever. Its workers' output goes to Ray's log folder; RAY_LOG_TO_DRIVER=1 shows it.
    """
    shared = os.environ.get(SHARED_RAY) if "RAY_ADDRESS" not in os.environ else None
    address = shared or os.environ.get("RAY_ADDRESS", "local")
    if address == "local" or shared:
        # Ray's C++ side logs a harmless error for every restartable actor (its issue 53727), and each worker logs its
        # log level. On one machine these lines only bury the job's own lines.
        os.environ.setdefault("RAY_LOG_TO_DRIVER", "0")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    if ray.is_initialized():
        return
    from jobs import workers
    from phf_ray import logs

    runtime_env = {**(runtime_env_for(sys.executable) or {}), **logs.runtime_env(), **workers.runtime_env()} or None
    # These say that the cluster has a token, and that Ray's progress bars are off; the jobs print their own progress.
    for noisy in ("ray._private.authentication.authentication_token_setup", "ray.data._internal.progress"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    # A bare ray.init() attaches to whatever cluster the machine's ray_current_cluster file names, even a dead one.
    if address == "local":
        start_local(
            num_cpus=num_cpus or max(4, os.cpu_count() or 1),
            logging_level=logging.WARNING,
            log_to_driver=os.environ["RAY_LOG_TO_DRIVER"] == "1",
            runtime_env=runtime_env,
        )
    else:
        shown = shared is None or os.environ["RAY_LOG_TO_DRIVER"] == "1"
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=shown, runtime_env=runtime_env)


def start_local(**options: Any) -> None:
    """Start a Ray on this machine alone. `options` go to `ray.init`.

    Ray 2.60 gives its own processes 30 s to start. A busy machine can take longer, so this tries three times.
    """
    # Serve 2.60 kills its proxy if the proxy is not ready within 5 s, and any process that waits for it then fails.
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
            log.warning("Ray did not start within 30 s; trying again")
            ray.shutdown()


def runtime_env_for(executable: str) -> dict[str, Any] | None:
    """Return a runtime environment with the quoted path of Python; None if the path needs no quotes.

    Ray 2.60 puts the path unquoted into a shell command if workers have their own environment, as Ray Train's do. If
    the path has a space, such workers never start.
    """
    quoted = shlex.quote(executable)
    return None if quoted == executable else {"py_executable": quoted}


def seeds_of(text: str) -> tuple[int, ...]:
    """Return the numbers of `--seeds`. Raises ConfigError."""
    from phf_ray.errors import ConfigError

    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds {text}: write whole numbers such as 0,1,2") from None
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {text}: write different numbers, 0 or more; equal seeds draw equal samples")
    return seeds


def is_url(path: str) -> bool:
    return "://" in path


def require_shared(path: str, *, flag: str) -> str:
    """Return `path` as an absolute path; a URL stays as it is. Raises ConfigError if other machines can't reach it.

    A submitted job runs in a temporary copy of the working directory, and every node has its own disk.
    """
    from phf_ray.errors import ConfigError

    if is_url(path):
        return path
    # Ray 2.60 sets this variable for the driver of a submitted job only.
    in_submitted_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    ray = sys.modules.get("ray")  # not loaded just to see that it is not running
    num_nodes = sum(node["Alive"] for node in ray.nodes()) if ray is not None and ray.is_initialized() else 1
    shared_roots = os.environ.get("PHF_SHARED_ROOTS", "/mnt:/shared").split(":")
    if in_submitted_job or num_nodes > 1:
        resolved = Path(path)
        on_shared = resolved.is_absolute() and any(resolved.is_relative_to(root) for root in shared_roots if root)
        if not on_shared:
            raise ConfigError(
                f"{flag} {path} is on one node's own disk, and this job runs "
                f"{'as a submitted job' if in_submitted_job else f'on {num_nodes} nodes'}; use storage that all nodes "
                f"see, such as /mnt/shared/{resolved.name} or s3://bucket/{resolved.name} "
                "(PHF_SHARED_ROOTS names the mount points of shared storage, separated by colons)"
            )
    return str(Path(path).resolve())

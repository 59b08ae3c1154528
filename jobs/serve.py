"""Serve scorers and language models over HTTP, in the foreground, until Ctrl-C.

    python -m jobs.serve --model mle=out/mle/checkpoints/step-00000500 --scorers pep8

If the port is taken, Ray Serve starts a second server on it without an error, and the two share the traffic at random.
This job therefore checks the port before anything starts.
"""

import argparse
import contextlib
import errno
import logging
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.cli import run, start_ray
from jobs.commands import job_parser
from jobs.resources import add_gpu_argument, check_resources, choose_resources
from phf_ray.errors import ConfigError, ServiceError

if TYPE_CHECKING:
    from phf_ray.checkpoint import Control
    from serve.settings import ServeArgs, ServedModel

log = logging.getLogger("phf_ray.serve")

APPLICATION = "phf"


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.checkpoint import parse_control
    from serve.keys import warnings_without_keys
    from serve.settings import parse_args

    asked = {"num_cpus": arguments.num_cpus, "num_gpus": arguments.num_gpus}
    check_resources(**asked)
    controls = dict(map(parse_control, arguments.control))
    args = parse_args(
        {
            "models": with_templates(_models(arguments.model, controls), arguments.chat_template),
            "scorers": [{"scorer": scorer} for scorer in _scorers(arguments.scorers, task=arguments.task)],
            # Absolute, because the server runs in another directory.
            "keys": {"file": str(Path(arguments.keys_file).absolute())} if arguments.keys_file else {},
            "allow_origins": arguments.allow_origin,
        }
    )
    args = _checked(args, host=arguments.host, port=arguments.port)
    args = _with_control_for_all(args, controls.get(None))
    if arguments.dry_run:
        print(_planned(args, asked))
        return 0
    import ray

    try:
        start_ray()
        # After Ray, because Ray's own handler for SIGTERM would end the program without shutting Serve down.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)
        for warning in [] if args.keys.required else warnings_without_keys(args):
            log.warning(warning)
        args = choose_resources(args, **asked)
        with running(args, host=arguments.host, port=arguments.port) as url:
            for address in _metrics_addresses():
                print(f"metrics of the replicas: {address}", flush=True)
            print(f"ready: {url}", flush=True)
            threading.Event().wait()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        ray.shutdown()
    return 0


def _metrics_addresses() -> list[str]:
    """Return the URL of each Ray node's metrics, which include those of the replicas (`ray_phf_...`)."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node.get("MetricsExportPort")]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]


def _interrupt(*_: object) -> None:
    # Ignore further signals, because a second one must not break the shutdown that the first one started.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    from phf_ray.scorers.build import SHORT_NAMES

    parser = job_parser(
        "serve",
        (__doc__ or "").splitlines()[0],
        examples=(
            "--scorers pep8,pii --allow-origin http://localhost:3000",
            "--model mle=runs/mle --model good=runs/conditional --scorers toxicity,reward=runs/reward --task toxicity",
            "--model mle=runs/mle --host 0.0.0.0 --port 80 --keys-file /mnt/shared/keys",
        ),
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME=DIR|ID",
        help="name to serve the model by, and its checkpoint directory, training run, or name on the hub",
    )
    parser.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="[NAME=]GOOD,BAD[,POLICY]",
        help="control tokens of models without phf.json, or of the one called NAME, such as "
        "old='<|aligned|>,<|misaligned|>,retag' (the policy is ban or retag; default: ban)",
    )
    add_template_argument(parser)
    parser.add_argument(
        "--scorers",
        default="",
        metavar="NAME[=DIR],NAME",
        help=f"any of {', '.join(SHORT_NAMES)}, class names, or my_module:MyScorer; =DIR: folder of the scorer's "
        "model, such as a reward model's checkpoint or run",
    )
    parser.add_argument(
        "--task",
        metavar="NAME|FILE",
        help="task whose scoring.scorers hold the scorers' settings: a name such as pep8, or a file",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all interfaces, which needs API keys"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one")
    parser.add_argument(
        "--keys-file",
        metavar="FILE",
        help="file that all nodes see, with an API key per line; PHF_API_KEYS may hold more",
    )
    parser.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin whose web pages may ask from a browser, such as http://localhost:3000; may be repeated; * allows "
        "all pages",
    )
    parser.add_argument(
        "--num-cpus",
        type=float,
        help="CPUs that Ray reserves for each model, and its threads (default: by what is free)",
    )
    add_gpu_argument(parser)
    parser.add_argument("--dry-run", action="store_true", help="validate everything, print what would run and stop")
    return parser


def add_template_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat-template",
        action="append",
        default=[],
        metavar="[NAME=]TEMPLATE",
        help="what puts conversations into words, for all models or the one called NAME: tokenizer (its own), alpaca, "
        "chatml, coh, hh, plain, or a .jinja or .json file (default: the template of the training, else the "
        "tokenizer's)",
    )


def with_templates(models: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the models with the templates of --chat-template. Raises ConfigError for one that does not exist."""
    from phf_ray.generation.chat.templates import OWN, load_template

    names = [model["name"] for model in models]
    chosen: dict[str | None, str] = {}
    for text in texts:
        first, separator, rest = text.partition("=")
        is_for_all = not separator or (first not in names and Path(text).exists())
        name, template = (None, text) if is_for_all else (first, rest)
        if name is not None and name not in names:
            raise ConfigError(f"--chat-template {text}: no --model is named {name!r}; they are {', '.join(names)}")
        if name in chosen:
            raise ConfigError(f"--chat-template {text}: {name or 'all models'} already have {chosen[name]}; give one")
        if template != OWN:
            try:
                load_template(template)
            except ConfigError as error:
                raise ConfigError(f"--chat-template: {error}") from None
        # Absolute, because the server runs in another directory.
        chosen[name] = str(Path(template).absolute()) if Path(template).is_file() else template
    found = []
    for model in models:
        own = chosen.get(model["name"], chosen.get(None))
        found.append({**model, **({} if own is None else {"chat_template": own})})
    return found


def _planned(args: "ServeArgs", asked: Mapping[str, float | None]) -> str:
    """Return the arguments as JSON, without the resources that are chosen once Ray runs."""
    from serve.resources import with_resources

    known = {name: value for name, value in asked.items() if value is not None}
    unknown = set(asked) - set(known)
    excluded = {"__all__": unknown}
    return with_resources(args, (), **known).model_dump_json(
        indent=2, exclude={"models": excluded, "scorers": excluded} if unknown else None
    )


def _models(texts: Sequence[str], controls: "Mapping[str | None, Control]") -> list[dict[str, Any]]:
    from phf_ray.storage.hub import hub_model

    models = []
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise ConfigError(f"--model {text}: write NAME=DIR, such as mle=out/mle/checkpoints/step-00000500")
        if path.startswith(("http://", "https://")):
            raise ConfigError(
                f"--model {text}: give a directory; for a model on another server, set `upstream` in a Serve "
                "configuration file, with a directory that holds its tokenizer"
            )
        models.append({"name": name, "path": path if hub_model(path) is not None else str(Path(path).resolve())})
    names = [model["name"] for model in models]
    for controlled in controls:
        if controlled is not None and controlled not in names:
            raise ConfigError(
                f"--control {controlled}=...: no --model is named {controlled!r}; they are {', '.join(names)}"
            )
    return [model | ({"control": controls[model["name"]]} if model["name"] in controls else {}) for model in models]


def _with_control_for_all(args: "ServeArgs", control: "Control | None") -> "ServeArgs":
    """Return the arguments with this control for the models that have no control tokens of their own."""
    from phf_ray.checkpoint import read_info

    if control is None:
        return args

    def has_none(model: "ServedModel") -> bool:
        info = read_info(model.directory)
        return model.control is None and (info is None or info.control is None)

    models = [model.model_copy(update={"control": control}) if has_none(model) else model for model in args.models]
    return args.model_copy(update={"models": tuple(models)})


def _scorers(names: str, *, task: str | None, finds_models: bool = True) -> list[dict[str, Any]]:
    """Return the configs of scorers by short name, class name or `my_module:MyScorer`, with the task's settings.

    `NAME=DIR` names the folder of the scorer's model, which is looked for if `finds_models`.
    """
    from phf_ray.config import load_config
    from phf_ray.runs.checkpoints import find_checkpoint
    from phf_ray.scorers.build import SCORERS, SHORT_NAMES, scorer_class, scorer_settings

    configured = load_config(task).scoring.scorers if task is not None else ()
    found = []
    for given in filter(None, (name.strip() for name in names.split(","))):
        name, _, folder = given.partition("=")
        class_name = SHORT_NAMES.get(name, name)
        if class_name not in SCORERS and ":" not in class_name:
            raise ConfigError(
                f"--scorers {name}: choose from {', '.join(SHORT_NAMES)} or {', '.join(sorted(SCORERS))}, or write "
                "my_module:MyScorer for one of your own"
            )
        matching = [dict(scorer) for scorer in configured if scorer["class_name"] == class_name]
        config = matching[0] if matching else {"class_name": class_name}
        if folder:
            config["path"] = folder
            if finds_models:
                config["path"] = str(find_checkpoint(folder, option=f"--scorers {name}=").resolve())
        field = scorer_class(class_name).Settings.model_fields.get("path")
        if field is not None and field.is_required() and "path" not in config:
            raise ConfigError(f"--scorers {name}: name the folder of its model, {name}=DIR, or set path in a --task")
        scorer_settings(config)
        found.append(config)
    return found


def _checked(args: "ServeArgs", *, host: str, port: int) -> "ServeArgs":
    """Find missing checkpoints, a taken port or an open server without keys before Ray starts.

    The result says that keys are required, but does not contain them: Ray's logs and dashboard show the arguments and
    environments of its processes.
    """
    from phf_ray.generation.chat.templates import OWN, load_template
    from serve.keys import load_keys

    if port:
        check_port(host, port)
    for model in args.models:
        log.info("model %s: %s", model.name, model.directory)
        if model.chat_template == OWN:
            from phf_ray.models.backbone import load_tokenizer_beside

            load_template(OWN, tokenizer=load_tokenizer_beside(model.directory))
    if load_keys(args.keys):
        # A Ray that already runs has its own environment. If the keys are missing there, the server must not be open.
        return args.model_copy(update={"keys": args.keys.model_copy(update={"required": True})})
    if host not in ("127.0.0.1", "localhost", "::1"):
        log.warning(
            "--host %s without API keys: the server will answer only requests from this machine; set %s or --keys-file",
            host,
            args.keys.env,
        )
    return args


def check_port(host: str, port: int) -> None:
    """Raise ConfigError if a server listens on the port, or if the port can't be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # This ignores connections of a server that has just ended, but not a server that listens.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(
                    f"port {port} of {host} is in use; stop what runs there or give another --port"
                ) from None
            raise ConfigError(f"--host {host} --port {port} can't be used: {error.strerror}") from None


def free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(
    models: Mapping[str, str | Mapping[str, Any]],
    scorers: Sequence[Mapping[str, Any]] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
) -> Iterator[str]:
    """Serve checkpoints by name, and scorers by their configs, on the running Ray. Shuts the server down afterwards.

    Yields the base URL without `/v1`, such as `http://127.0.0.1:54321`. Port 0 takes a free one. `running` says what
    happens on a cluster that already runs Serve. `num_cpus` and `num_gpus` are those of each model, and of each scorer
    that can use a GPU; None: chosen from what the cluster has free. A model is a path, or fields of `ServedModel`.

    Raises ConfigError if a model or scorer can't be served, ServiceError if the server does not start.
    """
    from serve.settings import parse_args

    args = parse_args(
        {
            "models": [
                {"name": name, **({"path": model} if isinstance(model, str) else model)}
                for name, model in models.items()
            ],
            "scorers": [{"scorer": dict(scorer)} for scorer in scorers],
            "access_log": False,
        }
    )
    check_resources(num_cpus=num_cpus, num_gpus=num_gpus)
    args = choose_resources(_checked(args, host=host, port=port), num_cpus=num_cpus, num_gpus=num_gpus)
    with running(args, host=host, port=port) as url:
        yield url


@contextlib.contextmanager
def running(args: "ServeArgs", *, host: str, port: int, timeout_s: float = 600.0) -> Iterator[str]:
    """Serve on a running Ray. Yields the base URL once every deployment is ready, and afterwards stops what it started.

    If Serve already runs, its address replaces `host` and `port`, and its other applications continue. This application
    gets its own prefix, which is part of the URL.
    """
    from ray import serve

    from serve.app import build

    quiet = {"log_level": "WARNING", "enable_access_log": False}
    name, prefix = APPLICATION, "/"
    found = _serve_address()
    if found is None:
        port = port or free_port(host)
        serve.start(http_options={"host": host, "port": port}, logging_config=quiet)
    else:
        host, port = found
        name = f"{APPLICATION}-{secrets.token_hex(4)}"
        prefix = f"/{name}"
        log.info("Ray Serve already runs on this cluster; serving below %s on port %d", prefix, port)
    try:
        target = serve.RunTarget(build(args), name=name, route_prefix=prefix, logging_config=quiet)
        serve.run_many([target], wait_for_applications_running=False)
        _wait_until_ready(name, timeout_s=timeout_s)
        shown = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{port}{prefix.rstrip('/')}"
    finally:
        # Another job may have added its application since.
        if found is None and set(serve.status().applications) <= {name}:
            serve.shutdown()
        else:
            serve.delete(name)


def _serve_address() -> tuple[str, int] | None:
    """Return host and port of the Ray Serve that runs on this cluster; None if there is none."""
    # Serve's public status says neither whether there is a controller nor where it listens.
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    return str(client.http_config.host), int(client.http_config.port)


def _wait_until_ready(name: str, *, timeout_s: float) -> None:
    """Wait for the application. Raises ServiceError with the reason if a deployment fails or is not ready in time."""
    from ray import serve

    deadline = time.monotonic() + timeout_s
    while True:
        application = serve.status().applications[name]
        if application.status == "RUNNING":
            return
        waiting = {name: one for name, one in application.deployments.items() if one.status != "HEALTHY"}
        if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            reasons = [f"{name}: {_reason(one.message)}" for name, one in waiting.items()]
            raise ServiceError("the server did not start: " + "; ".join(reasons or [_reason(application.message)]))
        if time.monotonic() > deadline:
            raise ServiceError(f"not ready after {timeout_s:g} s: {', '.join(waiting)}; see the logs of Ray Serve")
        time.sleep(0.2)


def _reason(message: str) -> str:
    """Return the error at the end of a replica's traceback, without its location."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    raised = [number for number, line in enumerate(lines) if "Error: " in line and not line.startswith("ray.")]
    return " ".join(lines[raised[-1] if raised else -1 :][:4]) if lines else "no reason given"


if __name__ == "__main__":
    run(main)

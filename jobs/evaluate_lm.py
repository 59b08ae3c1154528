"""Draw samples from models over HTTP, score them over HTTP, and write a report that compares the models.

The job serves a model directory while it runs; a URL can be any OpenAI-compatible server. If you run the same command
again, it draws only the missing samples.
"""

import argparse
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import cli
from jobs.chat_arms import add_chat_arguments, read_chat_arguments
from jobs.commands import job_parser
from jobs.model_arguments import add_model_arguments, models_from, parse_arms
from jobs.resources import add_gpu_argument, check_resources
from phf_ray.errors import ConfigError

if TYPE_CHECKING:
    from phf_ray.checkpoint import ControlChoice
    from phf_ray.config import Config, KLConfig
    from phf_ray.evaluation.arms import Arm, ScoresServer
    from phf_ray.evaluation.kl.reference import Reference
    from phf_ray.evaluation.kl.sample_file import ReferenceSamples
    from phf_ray.evaluation.models import NamedModel
    from phf_ray.evaluation.report.records import RedTeamInfo, TaskResult
    from phf_ray.evaluation.run import EvaluationOptions
    from phf_ray.http.keys import Endpoint


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.evaluation.on_ray import run_on_ray
    from phf_ray.evaluation.prompts import check_prompts
    from phf_ray.evaluation.report.table import format_table
    from phf_ray.evaluation.run import evaluate_arms
    from phf_ray.evaluation.tracking import track_report

    config = cli.config_from(arguments)
    name_keys(arguments, config)
    models = models_from(arguments)
    templates, marked = read_chat_arguments(arguments, config, models)
    wanted = parse_arms(arguments.arm, models, marked=marked)
    allow_plain_http = arguments.allow_plain_http
    settings = config.kl_gpt3_callback
    texts = texts_of_reference(arguments, settings)
    reference = None if texts is not None else _named_reference(arguments, config, models)
    scores_at = scores_endpoint(arguments.scores_url, allow_plain_http=allow_plain_http)
    served = models if reference is None else {**models, reference.name: reference}
    options = _options(arguments)
    names = [_arm_name(name, control) for name, control in wanted]
    measured = parse_lm_eval(arguments.lm_eval, names)
    attacked = {} if arguments.red_team is None else read_attacks(arguments.red_team, names)
    check_resources(num_cpus=None, num_gpus=arguments.num_gpus)
    check_prompts(scenario.prompts_path for scenario in config.generation.scenario_configs)
    if arguments.dry_run:
        _print_plan(config, wanted, options, scores_url=arguments.scores_url)
        return 0
    cli.start_ray()
    output = cli.require_shared(arguments.output, flag="--output")
    for model in served.values():
        if model.directory is not None:
            cli.require_shared(str(model.directory), flag="--model")
    with servers(
        config, served, scores_at=scores_at, port=arguments.port, num_gpus=arguments.num_gpus, templates=templates
    ) as (base_url, scores):
        asked = texts if reference is None else arm_of(reference, None, base_url=base_url)
        if asked is not None:
            cache = arguments.reference_cache or f"{output}/reference"
            options = replace(
                options,
                check=partial(_check_kl, config, reference=asked, cache=cache),
                measure=partial(_with_kl, config, reference=asked, cache=cache),
            )
        arms = [arm_of(models[name], control, base_url=base_url) for name, control in wanted]
        arms = [
            replace(arm, api=arguments.api, capabilities=measured.get(arm.name, ()), red_team=attacked.get(arm.name))
            for arm in arms
        ]
        report = evaluate_arms(config, arms=arms, scores=scores, output=output, runner=run_on_ray, options=options)
    track_report(output)
    print(f"\n{format_table(report)}\n\n{output}/report.html", flush=True)
    return 0


def _named_reference(
    arguments: argparse.Namespace, config: "Config", models: "Mapping[str, NamedModel]"
) -> "NamedModel | None":
    """Return the model of --reference, or that of the configuration."""
    from phf_ray.http.keys import with_key_env

    settings = config.kl_gpt3_callback
    named = arguments.reference or settings.reference
    return _reference(
        None if named is None else with_key_env(named, config.key_envs),
        models,
        settings=settings,
        cache=arguments.reference_cache or f"{arguments.output}/reference",
        allow_plain_http=arguments.allow_plain_http,
    )


def _options(arguments: argparse.Namespace) -> "EvaluationOptions":
    from phf_ray.evaluation.run import EvaluationOptions

    return EvaluationOptions(
        seeds=cli.seeds_of(arguments.seeds),
        num_samples=at_least_one(arguments.num_samples, flag="--num-samples"),
        max_clients=at_least_one(arguments.max_clients, flag="--max-clients"),
        restart=arguments.restart,
        allow_other_scorer=arguments.allow_other_scorer,
        allow_code_execution=arguments.allow_code_execution,
    )


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "evaluate_lm",
        __doc__,
        examples=(
            "--task pep8 --output report --model mle=runs/mle good=runs/conditional --seeds 0,1,2",
            "--task pep8 --output report --model good=runs/conditional --arm good:good good:bad --num-samples 64",
            "--task dialogue --output report --api chat --chat-template coh --model m=runs/coh --arm m:good m:bad",
        ),
    )
    cli.add_config_arguments(parser, method=False)
    add_model_arguments(parser)
    add_chat_arguments(parser)
    parser.add_argument(
        "--reference",
        metavar="[NAME=]DIR|URL",
        help="reference for KL(reference || arm): each arm gives the probabilities of this model's texts; may be the "
        "NAME of a --model; a server needs `logprobs`, in completions or chats",
    )
    parser.add_argument(
        "--reference-samples",
        metavar="FILE",
        help="in place of --reference: its texts with their log-probabilities, a samples-*.jsonl of --reference-cache "
        "or the original's cache",
    )
    parser.add_argument(
        "--reference-cache",
        metavar="DIR",
        help="folder or URL that keeps the reference's texts (default: in --output)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder or URL of the report")
    parser.add_argument(
        "--scores-url", metavar="URL", help="server with POST /v1/scores; by default the job starts one"
    )
    parser.add_argument(
        "--num-samples", type=int, metavar="N", help="samples per arm, scenario and seed, instead of the scenarios' own"
    )
    parser.add_argument("--seeds", default="0", metavar="N,N", help="sampling seeds (default: 0)")
    parser.add_argument(
        "--max-clients",
        type=int,
        metavar="N",
        help="maximum number of client processes; by default one for every 4 CPUs of the cluster",
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port of the server that the job starts; by default a free one"
    )
    add_gpu_argument(parser)
    parser.add_argument(
        "--lm-eval",
        nargs="+",
        action="extend",
        default=[],
        metavar="ARM=PATH",
        help="lm-eval's results for an arm, to show in the report: a results file, or lm-eval's --output_path",
    )
    parser.add_argument("--red-team", metavar="DIR", help="output of red-team for these arms, to show in the report")
    parser.add_argument(
        "--allow-code-execution",
        action="store_true",
        help="run the programs that models write in scenarios with `execute: true`, each in a process with limits that "
        "can't start another process, open a connection or write a file",
    )
    parser.add_argument("--restart", action="store_true", help="discard the contents of the output and start over")
    parser.add_argument(
        "--allow-other-scorer", action="store_true", help="evaluate with a scorer that the model was not trained on"
    )
    return parser


# -- Arguments --------------------------------------------------------------------------------------------------------


def name_keys(arguments: argparse.Namespace, config: "Config") -> None:
    """Add the variables of `key_envs` to the servers that the options name without one."""
    from phf_ray.http.keys import with_key_env

    arguments.model = [with_key_env(text, config.key_envs) for text in arguments.model]
    if arguments.scores_url is not None:
        arguments.scores_url = with_key_env(arguments.scores_url, config.key_envs)


def _reference(
    text: str | None, models: "Mapping[str, NamedModel]", *, settings: "KLConfig", cache: str, allow_plain_http: bool
) -> "NamedModel | None":
    """Parse --reference. A server needs its key only if `cache` doesn't keep its texts."""
    from phf_ray.evaluation.kl.reference import is_kept
    from phf_ray.evaluation.models import parse_model

    if text is None or text in models:
        return None if text is None else models[text]
    parse = partial(parse_model, text, option="--reference", allow_plain_http=allow_plain_http)
    model = parse(needs_key=False)
    if not is_kept(arm_of(model, None, base_url=""), settings, cache=cache):
        model = parse()
    if model.name in models and models[model.name] != model:
        raise ConfigError(f"--reference {text}: --model uses the name {model.name}; write reference={model.source}")
    return model


def texts_of_reference(arguments: argparse.Namespace, settings: "KLConfig") -> "ReferenceSamples | None":
    """Return the texts of --reference-samples or of the configuration; None if a reference is to be asked."""
    from phf_ray.evaluation.kl.sample_file import read_reference_samples

    if arguments.reference is not None and arguments.reference_samples is not None:
        raise ConfigError("--reference and --reference-samples: give a reference to ask, or a file of its texts")
    from_config = settings.reference_samples if arguments.reference is None else None
    path = arguments.reference_samples or from_config
    return None if path is None else read_reference_samples(path)


def _check_kl(config: "Config", arms: "Sequence[Arm]", *, reference: "Reference", cache: str) -> None:
    from phf_ray.evaluation.kl.arms import with_prefix
    from phf_ray.evaluation.kl.reference import check_reference

    settings = config.kl_gpt3_callback
    check_reference(reference, [with_prefix(arm, settings.prefix) for arm in arms], settings, cache=cache)


def _with_kl(config: "Config", arms: "Sequence[Arm]", *, reference: "Reference", cache: str) -> "list[Arm]":
    """Return the arms with their KL from the reference, on the reference's texts."""
    from phf_ray.evaluation.arms import Arm, check_arm, described
    from phf_ray.evaluation.kl.arms import has_control_per_line, kl_of_arms, kl_on_samples, with_prefix
    from phf_ray.evaluation.kl.reference import reference_samples

    settings = config.kl_gpt3_callback
    prefixed = [with_prefix(arm, settings.prefix) for arm in arms]
    per_line = [arm.name for arm in arms if has_control_per_line(arm.checkpoint, config)]
    samples = reference_samples(reference, settings, cache=cache)
    if samples is not None:
        found = kl_on_samples(samples, prefixed, cache=cache, per_line=per_line)
    else:
        assert isinstance(reference, Arm)
        reference = described(reference, check_arm(reference))
        if has_control_per_line(reference.checkpoint, config):
            per_line.append(reference.name)
        found = kl_of_arms(
            reference,
            prefixed,
            num_samples=settings.num_samples,
            max_tokens=settings.max_tokens,
            cache=cache,
            per_line=per_line,
        )
    return [replace(arm, kl=found[arm.name]) for arm in arms]


def parse_lm_eval(texts: Sequence[str], arms: Sequence[str]) -> "dict[str, tuple[TaskResult, ...]]":
    from phf_ray.evaluation.lm_eval import read_lm_eval

    found: dict[str, tuple[TaskResult, ...]] = {}
    for text in texts:
        arm, separator, path = text.partition("=")
        if not separator or arm not in arms:
            raise ConfigError(f"--lm-eval {text}: write ARM=PATH; the arms are {', '.join(arms)}")
        found[arm] = (*found.get(arm, ()), *read_lm_eval(path))
    return found


def read_attacks(directory: str, arms: Sequence[str]) -> "dict[str, RedTeamInfo]":
    """Return the results of jobs.red_team by arm."""
    from phf_ray.evaluation.report.samples import read_samples

    attacked = {arm.name: arm.red_team for arm in read_samples(directory)[1].arms if arm.red_team is not None}
    if not set(attacked) & set(arms):
        raise ConfigError(
            f"--red-team {directory} holds attacks on {', '.join(attacked) or 'nothing'}, but the arms are "
            f"{', '.join(arms)}; give red-team's --output for the same arms"
        )
    return attacked


def at_least_one(value: int | None, *, flag: str) -> int | None:
    if value is not None and value < 1:
        raise ConfigError(f"{flag} {value}: give 1 or more")
    return value


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _print_plan(
    config: "Config", arms: Sequence[tuple[str, str | None]], options: "EvaluationOptions", *, scores_url: str | None
) -> None:
    from phf_ray.scorers.build import scorer_name

    for name, control in arms:
        print(f"arm {_arm_name(name, control)}")
    for scenario in config.generation.scenario_configs:
        count = options.num_samples or scenario.num_samples
        times = " x ".join(
            _counted(number, noun)
            for number, noun in ((count, "sample"), (len(options.seeds), "seed"), (len(arms), "arm"))
        )
        print(f"scenario {scenario.name}: {times}")
    print(f"scores from {scores_url or 'a server that the job starts'}: {scorer_name(config.evaluation_scorer)}")


# -- Servers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def servers(
    config: "Config",
    models: "Mapping[str, NamedModel]",
    *,
    scores_at: "Endpoint | None",
    port: int,
    num_gpus: float | None,
    templates: Mapping[str, str] | None = None,
) -> "Iterator[tuple[str, ScoresServer]]":
    """Serve the models and the scorer that have no URL. `num_gpus`: those of each model; None: what is free.

    `templates`: chat templates by model.

    Yields the URL of that server, empty if there is none, and the server of the scores.
    """
    from phf_ray.evaluation.arms import ScoresServer
    from phf_ray.scorers.build import scorer_name

    directories = {
        name: {
            "path": str(model.directory),
            "control": None if model.info is None else model.info.control,
            "chat_template": (templates or {}).get(name),
        }
        for name, model in models.items()
        if model.directory is not None
    }
    scorer = scorer_name(config.evaluation_scorer)
    elsewhere = None if scores_at is None else ScoresServer(scores_at.url, scorer, scores_at.key)
    if not directories and elsewhere is not None:
        yield "", elsewhere
        return
    scorers = [config.evaluation_scorer] if elsewhere is None else []
    from jobs.serve import serving

    with serving(directories, scorers, port=port, num_gpus=num_gpus) as url:
        yield url, elsewhere or ScoresServer(url, scorer, _own_key())


def scores_endpoint(text: str | None, *, allow_plain_http: bool) -> "Endpoint | None":
    """Return the server of --scores-url, None if the job starts one."""
    from phf_ray.http.keys import parse_endpoint

    return None if text is None else parse_endpoint(text, option="--scores-url", allow_plain_http=allow_plain_http)


def _own_key() -> str | None:
    """Return a key of the server that this job starts; None if it has none.

    The server reads its keys from Ray's environment. A Ray that was already running must have the same keys as this
    process. If this process has keys and Ray has none, the server does not start.
    """
    keys = [key.strip() for key in os.environ.get("PHF_API_KEYS", "").split(",")]
    return next(filter(None, keys), None)


def _arm_name(name: str, control: str | None) -> str:
    return name if control is None else f"{name}:{control}"


def arm_of(model: "NamedModel", control: "ControlChoice | None", *, base_url: str) -> "Arm":
    from phf_ray.checkpoint import fingerprint
    from phf_ray.evaluation.arms import Arm

    if model.directory is None:
        return Arm(
            name=_arm_name(model.name, control),
            url=model.source,
            model=model.name,
            control=control,
            key=model.key,
            source=model.source,
        )
    return Arm(
        name=_arm_name(model.name, control),
        url=base_url,
        model=model.name,
        control=control,
        key=_own_key(),
        source=model.source,
        fingerprint=fingerprint(model.directory),
        checkpoint=model.info,
        loss=_losses(model.directory),
    )


_NUM_LOSSES = 200
"""Maximum number of points of a loss curve in the report."""


def _losses(directory: Path) -> tuple[tuple[int, float], ...]:
    """Return pairs of tokens seen and training loss; empty if the checkpoint is outside its run's directory."""
    from phf_ray.runs.directory import RunDirectory

    if directory.parent.name != "checkpoints":
        return ()
    rows: list[dict[str, Any]] = RunDirectory(directory.parent.parent).read_metrics()
    points = [
        (int(row["train/tokens_seen"]), float(row["train/loss"]))
        for row in rows
        if row.get("train/tokens_seen") is not None and row.get("train/loss") is not None
    ]
    stride = -(-len(points) // _NUM_LOSSES) or 1
    return tuple(points[::stride])


if __name__ == "__main__":
    cli.run(main)

"""Attack language models with prompts that a red LM writes, round after round, and report how the models answered.

The red LM is any OpenAI-compatible server, asked by chat or completions, or a directory, which the job serves like the
models. If you run the same command again, it asks only for what the transcript lacks; with more trials or rounds it
continues from there. evaluate-lm --red-team DIR shows the curves in its report.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs import cli
from jobs.commands import job_parser
from jobs.evaluate_lm import arm_of, at_least_one, name_keys, scores_endpoint, servers
from jobs.model_arguments import add_model_arguments, models_from, parse_arms
from jobs.resources import add_gpu_argument, check_resources
from phf_ray.errors import ConfigError

if TYPE_CHECKING:
    from phf_ray.config import Config
    from phf_ray.evaluation.attack.red_lm import AttackerApi
    from phf_ray.evaluation.models import NamedModel


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.evaluation.attack.red_lm import Attacker
    from phf_ray.evaluation.attack.run import AttackOptions, run_attack
    from phf_ray.evaluation.on_ray import run_on_ray
    from phf_ray.evaluation.prompts import check_prompts
    from phf_ray.evaluation.report.table import format_red_team
    from phf_ray.evaluation.tracking import track_report
    from phf_ray.http.keys import with_key_env

    config = cli.config_from(arguments)
    name_keys(arguments, config)
    arguments.attacker = with_key_env(arguments.attacker, config.key_envs)
    models = models_from(arguments)
    wanted = parse_arms(arguments.arm, models)
    attacker = _attacker(arguments.attacker, models, allow_plain_http=arguments.allow_plain_http)
    scores_at = scores_endpoint(arguments.scores_url, allow_plain_http=arguments.allow_plain_http)
    api: AttackerApi = arguments.attacker_api or ("chat" if attacker.directory is None else "completions")
    if arguments.seed < 0:
        raise ConfigError(f"--seed {arguments.seed}: give 0 or more")
    max_clients = at_least_one(arguments.max_clients, flag="--max-clients")
    assert max_clients is not None
    options = AttackOptions(
        seed=arguments.seed,
        max_clients=max_clients,
        restart=arguments.restart,
        allow_other_scorer=arguments.allow_other_scorer,
    )
    check_resources(num_cpus=None, num_gpus=arguments.num_gpus)
    check_prompts([config.red_team.prompts_path])
    if arguments.dry_run:
        _print_plan(config, num_arms=len(wanted), attacker=attacker, api=api)
        return 0
    cli.start_ray()
    output = cli.require_shared(arguments.output, flag="--output")
    served = {**models, attacker.name: attacker}
    for model in served.values():
        if model.directory is not None:
            cli.require_shared(str(model.directory), flag="--model")
    with servers(config, served, scores_at=scores_at, port=arguments.port, num_gpus=arguments.num_gpus) as (
        base_url,
        scores,
    ):
        red_lm = arm_of(attacker, None, base_url=base_url)
        key = os.environ.get("PHF_ATTACKER_API_KEY")
        if attacker.directory is None and key is not None:
            red_lm = replace(red_lm, key=key)
        report = run_attack(
            config,
            arms=[arm_of(models[name], control, base_url=base_url) for name, control in wanted],
            attacker=Attacker(red_lm, api),
            scores=scores,
            output=output,
            runner=run_on_ray,
            options=options,
        )
    track_report(output)
    print(f"\n{format_red_team(report)}\n\n{output}/report.html", flush=True)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "red_team",
        __doc__,
        examples=(
            "--task toxicity --output attack --model mle=runs/mle --attacker gpt-x=https://api.example.com",
            "--task toxicity --output attack --model mle=runs/mle --attacker mle --max-clients 8",
        ),
    )
    cli.add_config_arguments(parser, method=False)
    add_model_arguments(parser)
    parser.add_argument(
        "--attacker",
        required=True,
        metavar="[NAME=]DIR|URL",
        help="the red LM; may be the NAME of a --model. PHF_ATTACKER_API_KEY holds a server's key, or a variable as "
        "for --model",
    )
    parser.add_argument(
        "--attacker-api",
        choices=("chat", "completions"),
        help="API of the red LM (default: chat for a URL, completions for a directory)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder or URL of the transcript and the report")
    parser.add_argument(
        "--scores-url", metavar="URL", help="server with POST /v1/scores; by default the job starts one"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the attack (default: 0)")
    parser.add_argument(
        "--max-clients", type=int, default=4, metavar="N", help="maximum number of trials at a time (default: 4)"
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port of the server that the job starts; by default a free one"
    )
    add_gpu_argument(parser)
    parser.add_argument("--restart", action="store_true", help="discard the contents of the output and start over")
    parser.add_argument(
        "--allow-other-scorer", action="store_true", help="attack with a scorer that the model was not trained on"
    )
    return parser


def _attacker(text: str, models: "dict[str, NamedModel]", *, allow_plain_http: bool) -> "NamedModel":
    from phf_ray.evaluation.models import parse_model

    if text in models:
        return models[text]
    model = parse_model(text, option="--attacker", allow_plain_http=allow_plain_http)
    if model.name in models:
        raise ConfigError(f"--attacker {text}: --model uses the name {model.name}; write attacker={model.source}")
    return model


def _print_plan(config: "Config", *, num_arms: int, attacker: "NamedModel", api: str) -> None:
    from phf_ray.scorers.build import scorer_name

    settings = config.red_team
    num_prompts = settings.num_seed_prompts + settings.num_trials * settings.num_rounds * settings.num_candidates
    print(f"red LM {attacker.name} ({attacker.source}), {api} API")
    print(
        f"{settings.num_trials} trials x {settings.num_rounds} rounds x {settings.num_candidates} candidates on "
        f"{num_arms} {'arm' if num_arms == 1 else 'arms'}"
    )
    print(
        f"at most {num_arms * num_prompts * settings.num_continuations:,} continuations scored by",
        scorer_name(config.evaluation_scorer),
    )


if __name__ == "__main__":
    cli.run(main)

"""Sample n answers to each prompt, reward them, and pick the best. All samples and rewards are kept.

Writes every sample, the best answers in AlpacaFarm's rows and as an `examples` corpus, which train-lm learns from
(expert iteration), and the curve of the reward over n. If you run the same command again, it does only what is missing.
"""

import argparse
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import cli
from jobs.commands import job_parser
from phf_ray.errors import ConfigError

if TYPE_CHECKING:
    from phf_ray.config import JudgedReward, RewardSpec
    from phf_ray.evaluation.models import NamedModel
    from phf_ray.generation.chat.templates import PromptTemplate
    from phf_ray.rollouts.best_of_n.finish import Finished
    from phf_ray.rollouts.best_of_n.job import BestOfNRunner
    from phf_ray.rollouts.best_of_n.request import BestOfNRequest
    from phf_ray.rollouts.best_of_n.stages import Hardware

log = logging.getLogger("phf_ray.best_of_n")

_AS_IT_IS = "none"
_SAMPLES_HERE = 4096
"""Up to this many samples are drawn in this process, unless RAY_ADDRESS names a cluster."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.judging.failures import check_fraction
    from phf_ray.rollouts.best_of_n.job import best_of_n

    check_fraction(arguments.max_failed_fraction)
    output = cli.require_shared(arguments.output, flag="--output")
    request = _request(arguments, output)
    if arguments.dry_run:
        for line in _forecast(request):
            print(line)
        return 0
    runner, hardware = _runner(request, arguments)
    finished = best_of_n(
        request,
        output,
        hardware=hardware,
        max_failed_fraction=arguments.max_failed_fraction,
        restart=arguments.restart,
        runner=runner,
    )
    _print_result(finished, output=output)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "best_of_n",
        __doc__,
        examples=(
            "--model runs/sft --prompts unlabeled.json --reward runs/reward --n 16 --output best",
            "--model base=http://localhost:8000 --template alpaca --prompts eval.json --reward runs/reward --gold pep8 "
            "--n 4 --output best",
            "--mode rerank --prompts decoded.json --reward longer --output reranked",
        ),
    )
    parser.add_argument(
        "--model",
        metavar="[NAME=]DIR|ID|URL",
        help="folder, training run or hub id of the model; or NAME=URL[,key_env=VARIABLE] of an OpenAI-compatible "
        "server that calls it NAME",
    )
    parser.add_argument(
        "--prompts",
        nargs="+",
        required=True,
        metavar="SRC",
        help="files, folders, data sets or feedback corpora of prompts; with --mode rerank, rows with `output`",
    )
    parser.add_argument(
        "--reward",
        nargs="+",
        default=[],
        metavar="SPEC",
        help="what answers are worth: a reward model's folder, pep8, longer, a URL, YAML such as "
        "`{scorer: {class_name: PEP8Scorer}, weight: 0.5}`, or a .yml file; several add up by weight",
    )
    parser.add_argument("--gold", metavar="SPEC", help="a reward that is reported beside --reward, and chooses nothing")
    parser.add_argument("--n", type=int, metavar="N", help="samples of each prompt (default 4; of --mode rerank: all)")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder or URL")
    parser.add_argument(
        "--mode",
        choices=("decode", "rerank", "best-of-n"),
        default="best-of-n",
        help="decode: only sample; rerank: reward answers that are there; best-of-n (default): both",
    )
    _add_sampling(parser)
    parser.add_argument("--name", help="of the outputs on leaderboards (default: the model's, with `-best-of-N`)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N rows of the prompts")
    parser.add_argument(
        "--max-failed-fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="stop if more samples get no answer or no reward (default 0.1)",
    )
    _add_machines(parser)
    parser.add_argument("--restart", action="store_true", help="discard the contents of the output and start over")
    parser.add_argument("--dry-run", action="store_true", help="print how many samples it would be, and stop")
    return parser


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default 1.0")
    parser.add_argument("--top-p", type=float, default=0.9, metavar="P", help="default 0.9")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="default 0: no limit")
    parser.add_argument("--max-tokens", type=int, default=300, metavar="N", help="of an answer (default 300)")
    parser.add_argument("--stop", nargs="+", default=[], metavar="TEXT", help="texts that end an answer")
    parser.add_argument("--control", choices=("good", "bad", "none"), help="control token, of models that have them")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument(
        "--template",
        metavar="NAME|FILE",
        help="puts prompts into words: alpaca, hh, plain, tokenizer, a file, or none to continue them as they are "
        "(default: that of the model's training, else its tokenizer's)",
    )
    parser.add_argument(
        "--style",
        choices=("completion", "chat"),
        default="completion",
        help="how a server is asked (default completion)",
    )
    parser.add_argument(
        "--max-in-flight",
        type=int,
        default=64,
        metavar="N",
        help="requests that each sampler sends at once (default 64)",
    )
    parser.add_argument(
        "--patience", type=float, default=600.0, metavar="S", help="seconds to try again while a server is busy or away"
    )
    parser.add_argument("--allow-plain-http", action="store_true", help="send keys over http:// to other machines")


def _add_machines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--in-process", action="store_true", help="work in this process, without Ray")
    for what, option in (("sample", "samplers"), ("reward", "scorers")):
        parser.add_argument(
            f"--{option}",
            type=_limits,
            default=(1, None),
            metavar="MIN,MAX",
            help=f"actors that {what} at once, on Ray (default 1 to the number of CPUs, or GPUs)",
        )
        parser.add_argument(
            f"--gpus-per-{option.removesuffix('s')}", type=float, default=0, metavar="G", help="default 0"
        )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the model")
    parser.add_argument(
        "--cache-gb", type=float, default=2.0, metavar="G", help="keys and values that a sampler holds (default 2)"
    )


def _limits(text: str) -> tuple[int, int | None]:
    least, separator, most = text.partition(",")
    try:
        found = int(least), int(most) if separator else int(least)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no limits; write MIN,MAX such as 1,8") from None
    if not 1 <= found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text!r}: the limits of a pool are 1 <= MIN <= MAX")
    return found


# -- The request -------------------------------------------------------------------------------------------------------


def _request(arguments: argparse.Namespace, output: str) -> "BestOfNRequest":
    from phf_ray.corpus.find import would_read
    from phf_ray.rollouts.best_of_n.answered_rows import read_answered
    from phf_ray.rollouts.best_of_n.plan import ROWS, SAMPLES
    from phf_ray.rollouts.best_of_n.request import BestOfNRequest
    from phf_ray.rollouts.prompts import read_prompts
    from phf_ray.storage.files import full_name, open_filesystem

    for option in ("limit", "n", "max_in_flight"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ConfigError(f"--{option.replace('_', '-')} {value} is below 1")
    sampling = _sampling(arguments)
    rewards, gold = _rewards(arguments)
    for source in arguments.prompts:
        if Path(source).exists():
            cli.require_shared(source, flag="--prompts")
        if would_read(source, full_name(*open_filesystem(output)), names=(ROWS, SAMPLES)):
            raise ConfigError(
                f"--output {output} lies in --prompts {source}, and the next start would read it as prompts"
            )
    named = _named(arguments)
    template, template_text = _template(arguments, named)
    common: dict[str, Any] = {
        "mode": arguments.mode,
        "seed": arguments.seed,
        "template": template_text,
        "rewards": rewards,
        "gold": gold,
        "sampling": sampling,
    }
    if arguments.mode == "rerank":
        _refuse_model(arguments)
        answered, outputs = read_answered(arguments.prompts, template=template, n=arguments.n, limit=arguments.limit)
        n = len(outputs[0])
        name = arguments.name or f"rerank-{n}"
        return BestOfNRequest(tuple(answered), n, outputs=tuple(outputs), name=name, **common)
    if named is None:
        raise ConfigError(f"--mode {arguments.mode} needs --model: a folder, a hub id, or NAME=URL")
    n = 4 if arguments.n is None else arguments.n
    found = read_prompts(arguments.prompts, template=template, limit=arguments.limit)
    if template is None and arguments.template is None and arguments.style == "completion":
        _refuse_without_template(found.prompts)
    name = arguments.name or (named.name if arguments.mode == "decode" else f"{named.name}-best-of-{n}")
    return BestOfNRequest(
        found.prompts, n, model=_model(named, arguments), name=name, left_out=Counter(found.left_out), **common
    )


def _sampling(arguments: argparse.Namespace) -> Any:
    from phf_ray.generation.requests import GenerationRequest
    from phf_ray.rollouts.sampling import SamplingSettings

    values = {name: getattr(arguments, name) for name in ("temperature", "top_p", "top_k", "max_tokens", "control")}
    settings = SamplingSettings(stop=tuple(arguments.stop), **values)
    GenerationRequest(prompt="", stop=settings.stop, **values)  # refuses values that no model can be asked for
    return settings


def _rewards(arguments: argparse.Namespace) -> tuple[tuple["RewardSpec", ...], "RewardSpec | None"]:
    from phf_ray.config import check_rewards
    from phf_ray.rollouts.rewards import named_rewards

    specs = [spec for text in arguments.reward for spec in named_rewards(text, option="--reward")]
    rewards = check_rewards(tuple(specs), source="--reward") if specs else ()
    gold = () if arguments.gold is None else named_rewards(arguments.gold, option="--gold")
    if len(gold) > 1:
        raise ConfigError(f"--gold names {len(gold)} rewards; give one")
    found = [_resolved(spec, option="--reward") for spec in rewards]
    return tuple(found), _resolved(gold[0], option="--gold") if gold else None


def _resolved(spec: "RewardSpec", *, option: str) -> "RewardSpec":
    """Return the spec with paths that hold on every node, checked as far as that needs no weights."""
    from phf_ray.rollouts.rewards import check_spec
    from phf_ray.runs.checkpoints import find_checkpoint

    if spec.model is not None:
        folder = cli.require_shared(str(find_checkpoint(spec.model, option=option)), flag=option)
        spec = spec.model_copy(update={"model": folder})
    path = None if spec.scorer is None else spec.scorer.get("path")
    if isinstance(path, str) and Path(path).is_dir():
        spec = spec.model_copy(
            update={"scorer": {**(spec.scorer or {}), "path": cli.require_shared(path, flag=option)}}
        )
    if spec.annotators is not None:
        spec = spec.model_copy(update={"annotators": _resolved_judged(spec.annotators, option=f"{option}: annotators")})
    check_spec(spec, option=option)
    return spec


def _resolved_judged(judged: "JudgedReward", *, option: str) -> "JudgedReward":
    from phf_ray.config.shipped import is_path

    found = {"reference": cli.require_shared(judged.reference, flag=f"{option}.reference")}
    if isinstance(judged.pool, str) and is_path(judged.pool):
        found["pool"] = cli.require_shared(judged.pool, flag=f"{option}.pool")
    if judged.cache is not None:
        # Each node has its own.
        found["cache"] = str(Path(judged.cache).resolve())
    return judged.model_copy(update=found)


def _named(arguments: argparse.Namespace) -> "NamedModel | None":
    from phf_ray.evaluation.models import parse_model

    if arguments.model is None:
        return None
    return parse_model(arguments.model, option="--model", allow_plain_http=arguments.allow_plain_http)


def _model(named: "NamedModel", arguments: argparse.Namespace) -> Any:
    from phf_ray.http.keys import Endpoint
    from phf_ray.rollouts.by_url import SampledServer

    if named.directory is not None:
        if arguments.style == "chat":
            raise ConfigError("--style chat is for servers; a folder has --template")
        return Path(cli.require_shared(str(named.directory), flag="--model"))
    return SampledServer(
        Endpoint(named.source, named.key),
        named.name,
        style=arguments.style,
        max_in_flight=arguments.max_in_flight,
        patience_s=arguments.patience,
    )


def _refuse_model(arguments: argparse.Namespace) -> None:
    if arguments.model is not None:
        raise ConfigError("--mode rerank samples nothing; leave out --model, or choose --mode best-of-n")


def _template(arguments: argparse.Namespace, named: "NamedModel | None") -> tuple["PromptTemplate | None", str | None]:
    """Return what puts prompts into words, and what it says; None: they are continued as they are."""
    from phf_ray.generation.chat.templates import OWN, load_template, stored_template, template_source

    name, directory = arguments.template, None if named is None else named.directory
    if name == _AS_IT_IS or (name is None and directory is None):
        return None, None
    tokenizer = None
    if directory is not None:
        from phf_ray.models.backbone import load_tokenizer_beside

        tokenizer = load_tokenizer_beside(directory)
    if name is not None:
        return load_template(name, tokenizer=tokenizer), template_source(name, tokenizer=tokenizer)
    assert named is not None
    rows = None if named.info is None else named.info.rows
    if rows is not None:
        return stored_template(rows.template, rows.template_text, tokenizer=tokenizer), rows.template_text
    if getattr(tokenizer, "chat_template", None):
        return load_template(OWN, tokenizer=tokenizer), template_source(OWN, tokenizer=tokenizer)
    return None, None


def _refuse_without_template(prompts: Sequence[Any]) -> None:
    from phf_ray.generation.chat.prompts import TextPrompt

    if any(not isinstance(prompt.prompt, TextPrompt) for prompt in prompts):
        raise ConfigError(
            "the prompts are instructions or messages, and the model does not say how to put them into words; give "
            f"--template alpaca, hh, plain or a file, or --template {_AS_IT_IS} to continue them as they are"
        )


# -- The run -----------------------------------------------------------------------------------------------------------


def _runner(request: "BestOfNRequest", arguments: argparse.Namespace) -> tuple["BestOfNRunner", "Hardware"]:
    from phf_ray.rollouts.best_of_n.job import best_of_n_here
    from phf_ray.rollouts.best_of_n.stages import Hardware

    engine: dict[str, Any] = {"dtype": arguments.dtype, "cache_gb": arguments.cache_gb}
    sampler_gpus, scorer_gpus = arguments.gpus_per_sampler, arguments.gpus_per_scorer
    if sampler_gpus:
        engine["device"] = "cuda"
    is_small = request.num_samples <= _SAMPLES_HERE and "RAY_ADDRESS" not in os.environ
    if arguments.in_process or (is_small and not sampler_gpus and not scorer_gpus):
        return best_of_n_here, Hardware(engine)
    from phf_ray.rollouts.on_ray.best_of_n import ActorPool, best_of_n_on_ray

    cli.start_ray()
    pools = [
        ActorPool(least, most, num_gpus)
        for (least, most), num_gpus in ((arguments.samplers, sampler_gpus), (arguments.scorers, scorer_gpus))
    ]
    runner = best_of_n_on_ray(samplers=pools[0], rewarders=pools[1])
    # A process that asked Ray for no GPU still sees those of others.
    return runner, Hardware(engine, None if scorer_gpus else "cpu")


def _forecast(request: "BestOfNRequest") -> list[str]:
    lines = [f"{len(request.prompts):,} prompts"]
    lines += [f"{count:,} left out: {reason}" for reason, count in sorted(request.left_out.items())]
    if request.mode == "rerank":
        return [*lines, f"{request.num_samples:,} answers to reward"]
    tokens = request.num_samples * request.sampling.max_tokens
    return [*lines, f"{request.num_samples:,} samples of at most {tokens:,} tokens in all"]


def _print_result(finished: "Finished", *, output: str) -> None:
    from phf_ray.rollouts.best_of_n.curve import table_lines

    told = finished.manifest
    print(f"{output}: {told['samples']:,} samples of {told['prompts']:,} prompts")
    if finished.curve is not None:
        print(f"{told['examples']:,} best answers in {output}/examples")
        for line in table_lines(finished.curve):
            print(line)
    for warning in finished.warnings:
        log.warning("%s", warning)


if __name__ == "__main__":
    cli.run(main)

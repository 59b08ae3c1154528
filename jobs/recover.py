"""Recover AlpacaFarm's published models from LLaMA 7B and their weight differences.

    python -m jobs.recover --base models/llama-7b --name all --output models

writes models/sft10k, models/ppo-sim and so on as ordinary model directories in fp32. Reward models become sequence
classifiers. The sum of the weights is compared with the published one: with a wrong base model, nothing is written.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from jobs.cli import run
from jobs.commands import job_parser
from phf_ray.errors import ConfigError
from phf_ray.model_folder import check_weight_files
from phf_ray.models.recovery_checks import check_base, doubt_about, read_weight_sum
from phf_ray.storage.hub import HubModel, fetch_hub_about, fetch_hub_model, hub_model

log = logging.getLogger("jobs.recover")

NAMES = (
    "sft10k",
    "reward-model-sim",
    "reward-model-human",
    "ppo-sim",
    "ppo-human",
    "expiter-sim",
    "expiter-human",
    "feedme-sim",
    "feedme-human",
    "reward-condition-sim",
)


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)
    names = _names(options.name) if options.reward_model is None else [options.reward_model.resolve().name]
    if options.reward_model is not None and options.differences is not None:
        raise ConfigError("--differences belongs to --name; a --reward-model is whole, so leave it out")
    missing = [name for name in names if not _is_there(options.output / name)]
    if missing:
        _recover(missing, options)
    for name in names:
        print(options.output / name)
    return 0


def _names(name: str) -> list[str]:
    if name == "all":
        return list(NAMES)
    if name not in NAMES:
        raise ConfigError(f"--name {name}: AlpacaFarm has no such model; give one of {', '.join(NAMES)}, or all")
    return [name]


def _is_there(output: Path) -> bool:
    if (output / "config.json").is_file():
        log.info("%s exists already; delete it to recover it again", output)
        return True
    if output.exists():
        raise ConfigError(f"--output: {output} exists and is no model; delete it, or give another folder")
    return False


def _recover(names: list[str], options: argparse.Namespace) -> None:
    base = _folder(options.base, option="--base")
    check_base(base)
    is_difference = options.reward_model is None
    if is_difference:
        # The hub answers, and each difference can be checked, before the first of them is worked on for minutes.
        for name in names:
            difference = _difference(name, options.differences, whole=False)
            read_weight_sum(difference)
            if options.differences is not None:
                check_weight_files(difference)
        if (doubt := doubt_about(base)) is not None:
            log.warning(doubt)
    # Takes seconds to import.
    from phf_ray.models.recovery import recover

    for name in names:
        difference = _difference(name, options.differences, whole=True) if is_difference else options.reward_model
        recovered = recover(difference, base=base, output=options.output / name, is_difference=is_difference)
        log.info("recovered %s, whose weights sum to %.8g", options.output / name, recovered.total)
        if recovered.reward_bias:
            log.info("reward = logit of the classifier + reward_bias (%g) of its config.json", recovered.reward_bias)


def _folder(text: str, *, option: str) -> Path:
    named = hub_model(text)
    if named is not None and not Path(text).is_dir():
        return fetch_hub_model(named, option=option)
    if not Path(text).is_dir():
        raise ConfigError(f"{option} {text}: no such folder; give that of LLaMA 7B in transformers' format")
    return Path(text)


def _difference(name: str, folder: Path | None, *, whole: bool) -> Path:
    """Return the folder of the difference; `whole=False`: with everything but its weights, if it is fetched."""
    published = f"alpaca-farm-{name}-wdiff"
    if folder is None:
        return (fetch_hub_model if whole else fetch_hub_about)(HubModel(f"tatsu-lab/{published}"), option="--name")
    for place in (folder / name, folder / published):
        if place.is_dir():
            return place
    raise ConfigError(f"--differences {folder} has neither {name} nor {published}; clone it there from the hub")


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "recover",
        __doc__.split("\n")[0],
        examples=(
            "--base models/llama-7b --name sft10k --output models",
            "--base models/llama-7b --name all --output models",
            "--base models/sft --reward-model runs/alpaca_farm_rm --output models",
        ),
    )
    parser.add_argument(
        "--base",
        required=True,
        metavar="DIR|OWNER/NAME",
        help="LLaMA 7B (the first) in transformers' format; for --reward-model, any model of the same shape",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--name", metavar="NAME|all", help=f"model to recover: {', '.join(NAMES)}, or all")
    what.add_argument(
        "--reward-model",
        type=Path,
        metavar="DIR",
        help="convert a reward model that was trained with AlpacaFarm, which is whole: no difference",
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder to write DIR/NAME in; what is there is kept"
    )
    parser.add_argument(
        "--differences",
        type=Path,
        metavar="DIR",
        help="take the differences from DIR/NAME or DIR/alpaca-farm-NAME-wdiff, not from the hub",
    )
    return parser


if __name__ == "__main__":
    run(main)

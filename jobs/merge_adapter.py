"""Merge an adapter into its base model, and write the result as an ordinary model directory.

    python -m jobs.merge_adapter --checkpoint runs/lora --output merged

The result needs neither the base model nor peft. Its weights are fp32, like those of other checkpoints.
"""

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.cli import run
from jobs.commands import job_parser
from phf_ray.adapter_folder import is_adapter, judges_texts
from phf_ray.errors import ConfigError

log = logging.getLogger("jobs.merge_adapter")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    output: Path = arguments.output
    if output.exists():
        raise ConfigError(f"--output {output} exists; give the name of a new folder")
    checkpoint = _adapter_at(arguments.checkpoint)
    if arguments.base is not None and not (arguments.base / "config.json").is_file():
        raise ConfigError(f"--base {arguments.base}: the folder has no config.json; give that of the base model")
    _write(checkpoint, base=arguments.base, output=output)
    log.info("merged %s", checkpoint)
    print(output)
    return 0


def _adapter_at(path: Path) -> Path:
    """Return the adapter's folder, or that of a run's newest checkpoint, whether its base model is in place or not."""
    from phf_ray.runs.checkpoints import checkpoint_at

    checkpoint = checkpoint_at(path, option="--checkpoint")
    if not is_adapter(checkpoint):
        raise ConfigError(f"--checkpoint {checkpoint} is a whole model already, so there is nothing to merge")
    return checkpoint


def _write(checkpoint: Path, *, base: Path | None, output: Path) -> None:
    from phf_ray.checkpoint import CheckpointInfo, read_info
    from phf_ray.models.backbone import load_tokenizer_beside
    from phf_ray.models.loading import load_checkpoint
    from phf_ray.models.reward_model import load_reward_model
    from phf_ray.models.saving import save_checkpoint

    is_reward_model = judges_texts(checkpoint)
    model = (
        load_reward_model(checkpoint, base=base) if is_reward_model else load_checkpoint(checkpoint, base=base).model
    )
    info = (read_info(checkpoint) or CheckpointInfo()).model_copy(update={"base": None})
    output.parent.mkdir(parents=True, exist_ok=True)
    # Whole or absent: a killed command leaves a folder that begins with a dot.
    with tempfile.TemporaryDirectory(prefix=".merging-", dir=output.parent) as scratch:
        folder = Path(scratch) / output.name
        save_checkpoint(folder, model, load_tokenizer_beside(checkpoint), info)
        folder.rename(output)


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "merge_adapter",
        __doc__.split("\n")[0],
        examples=(
            "--checkpoint runs/lora --output merged",
            "--checkpoint runs/lora/checkpoints/step-00000500 --base models/base --output merged",
        ),
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the adapter, or of a run: its newest checkpoint",
    )
    parser.add_argument(
        "--base", type=Path, metavar="DIR", help="folder of the base model, if it is not where the adapter says"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write; must not exist yet")
    return parser


if __name__ == "__main__":
    run(main)

"""Fetch the published Detoxify models once, so that machines without internet can score.

    python -m jobs.fetch_models --output /mnt/shared/models

writes /mnt/shared/models/unbiased: an ordinary transformers folder (safetensors, config, tokenizer) and detoxify.json
with the class names and hashes. The job checks the download against the hash in its name, and reads it without
unrestricted pickle. `--hub gpt2` also fetches config, tokenizer and weights of a model of the Hugging Face hub into the
hub's cache, which HF_HOME names. With HF_HUB_OFFLINE=1, the other jobs then find the model there.
"""

import argparse
import hashlib
import json
import logging
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.cli import is_url, require_shared, run
from jobs.commands import job_parser
from phf_ray.errors import ConfigError, DataError, ServiceError
from phf_ray.scorers.toxicity import PUBLISHED_FILES
from phf_ray.storage.hub import HubModel, fetch_hub_model, parse_hub_model

log = logging.getLogger("phf_ray.fetch_models")

RELEASES = "https://github.com/unitaryai/detoxify/releases/download"
_VERSIONS = {
    "unbiased": "v0.3-alpha",
    "original": "v0.1-alpha",
    "multilingual": "v0.4-alpha",
    "original-small": "v0.1.2",
    "unbiased-small": "v0.1.2",
}
URLS = {name: f"{RELEASES}/{version}/{PUBLISHED_FILES[name]}" for name, version in _VERSIONS.items()}
_HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    if options.source is not None and len(options.models) > 1:
        raise ConfigError(f"--from gives one file for {len(options.models)} models; name one with --models")
    if is_url(options.output):
        raise ConfigError(f"--output {options.output} is a URL; give a folder on storage that all nodes mount")
    output = Path(require_shared(options.output, flag="--output"))
    if not options.models and not options.hub:
        raise ConfigError("--models names no model, and there is no --hub; name at least one model")
    for model in _hub_models(options):
        if options.dry_run:
            print(f"would fetch {model} into the hub's cache")
        else:
            fetch_from_hub(model)
    for model in options.models:
        source = options.source or URLS[model]
        if options.dry_run:
            print(f"would fetch {source} into {output / model}")
        else:
            fetch(model, output=output, source=source, config_source=options.config)
    if options.models and not options.dry_run:
        print(f"models are in {output}; set PHF_MODELS={output}, or the scorer's path to {output / options.models[0]}")


def _hub_models(options: argparse.Namespace) -> list[HubModel]:
    found = []
    for text in options.hub:
        model = parse_hub_model(text)
        if model is None:
            raise ConfigError(f"--hub {text} is no name of the hub; write owner/name, or owner/name@revision")
        found.append(model if options.revision is None else HubModel(model.id, model.revision or options.revision))
    return found


def fetch(model: str, *, output: Path, source: str, config_source: str | None) -> Path:
    """Return the folder of the model. Fetches the model unless the folder is complete."""
    folder = output / model
    if (folder / "detoxify.json").is_file():
        log.info("%s already exists; delete it to fetch the model again", folder)
        return folder
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=f".{model}-") as work:
        checkpoint = Path(work) / "checkpoint"
        sha256 = _download(source, checkpoint)
        expected = _HASH_IN_NAME.search(source.rsplit("/", 1)[-1])
        if expected is None:
            log.warning("%s has no hash in its name; its sha256 is %s", source, sha256)
        elif not sha256.startswith(expected[1]):
            raise DataError(
                f"{source} has sha256 {sha256}, but its name says {expected[1]}; the file is damaged, fetch it again"
            )
        converted = Path(work) / "model"
        _convert(
            checkpoint,
            converted,
            config_source=config_source,
            about={"model": model, "source": source, "sha256": sha256},
        )
        shutil.rmtree(folder, ignore_errors=True)
        converted.rename(folder)
    log.info("wrote %s", folder)
    return folder


def fetch_from_hub(model: HubModel) -> Path:
    """Fetch a model's weights, config and tokenizer, and no code. Return its folder in the hub's cache.

    Weights that are only there pickled are read without unrestricted pickle, and converted.
    """
    from phf_ray.models.convert import convert_to_safetensors

    remedy = "run the same command on a machine with internet, with HF_HUB_OFFLINE=0"
    folder = fetch_hub_model(model, option="--hub", remedy=remedy)
    for file in convert_to_safetensors(folder):
        log.info("converted to %s", file.name)
    log.info("%s is in %s", model, folder)
    return folder


def _download(source: str, destination: Path) -> str:
    """Copy a URL or a file. Return the sha256 of the copy."""
    digest = hashlib.sha256()
    url = source if is_url(source) else Path(source).resolve().as_uri()
    log.info("fetching %s", source)
    try:
        with urllib.request.urlopen(url, timeout=60) as response, destination.open("wb") as file:
            while chunk := response.read(1 << 22):
                digest.update(chunk)
                file.write(chunk)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise ServiceError(
            f"{source} can't be fetched ({reason}); run the same command on a machine with internet, or download the "
            "file there and give it here with --from FILE --config FOLDER"
        ) from None
    return digest.hexdigest()


def _convert(checkpoint: Path, folder: Path, *, config_source: str | None, about: dict[str, Any]) -> None:
    from phf_ray.scorers.classifier import weights_hash
    from phf_ray.scorers.toxicity import DESCRIPTION_FILE, load_published

    try:
        loaded = load_published(checkpoint, config_source)
    except OSError as error:
        raise ServiceError(
            f"the model's config and tokenizer can't be read from {config_source or 'the Hugging Face hub'} "
            f"({str(error).splitlines()[0]}); name a folder that has both by --config FOLDER"
        ) from None
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    description = {**about, "class_names": loaded.class_names, "weights_hash": weights_hash(loaded.model)}
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "fetch_models",
        (__doc__ or "").splitlines()[0],
        examples=(
            "--output /mnt/shared/models",
            "--output models --models unbiased-small",
            "--output models --models --hub gpt2",
        ),
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder on shared storage; each model gets a subfolder"
    )
    parser.add_argument(
        "--models",
        nargs="*",
        choices=sorted(URLS),
        default=["unbiased"],
        help="models to fetch; without a name: none (default: unbiased)",
    )
    parser.add_argument(
        "--hub",
        nargs="+",
        default=[],
        metavar="HUB_ID",
        help="models of the Hugging Face hub (NAME, or NAME@REV) to fetch into its cache (HF_HOME)",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of the models of --hub without @REV")
    parser.add_argument(
        "--from", dest="source", metavar="FILE|URL", help="checkpoint file to use instead of the published one"
    )
    parser.add_argument(
        "--config",
        metavar="DIR|HUB_ID",
        help="source of config and tokenizer; default: the one that the checkpoint names",
    )
    parser.add_argument("--dry-run", action="store_true", help="print what the job would fetch, and stop")
    return parser


if __name__ == "__main__":
    run(main)

"""Show what rounds bring on the demo's model and corpus: best of n, expert iteration, RLOO and PPO (`make rounds`).

The demo's model by maximum likelihood continues function headers of the standard library, and pycodestyle rewards what
it writes. Each method learns from headers of some files; all models, and the base with the best of 16 answers, then
answer headers of the other files, in the same way. The report shows gold reward with intervals, KL from the base,
length, diversity, degenerate text and minutes of each. Pycodestyle is the reward and the gold reward alike: the job
shows what the methods can do with a reward that is right. Each has one training run, so intervals show the variation
of prompts.

The job reuses the demo's results in the same folder. It exits with 1, and says why, if no trained model beats the base,
or does so only by degenerate text; best of n never counts, because it picks by the gold reward itself.
"""

import argparse
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import cli, demo
from jobs.commands import job_parser
from jobs.make_prompts import headers_of, library_files
from phf_ray.errors import ConfigError
from phf_ray.storage.files import write_text

if TYPE_CHECKING:
    from phf_ray.config import Config
    from phf_ray.config.rewards import RewardSpec
    from phf_ray.rollouts.against_base.arms import CandidateModel, ComparedModel

METHODS = ("expert_iteration", "rloo", "ppo")
NUM_PROMPTS, NUM_HELD_OUT = 384, 128
HELD_OUT_FRACTION = 0.25
"""Share of the files whose headers no round sees. The base has read most of these files."""
NUM_ANSWERS = 2
"""Of each model to each held-out prompt."""
N = 16
SMALL = (
    "rollouts.rounds=2",
    "rollouts.prompts_per_round=4",
    "rollouts.samples_per_prompt=2",
    "rollouts.max_tokens=8",
    "rollouts.max_failed_fraction=1",
)
SMALL_PROMPTS, SMALL_N = 8, 2


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    overrides = [*(SMALL if arguments.small else ()), *arguments.override]
    config = _checked(overrides)
    started = time.monotonic()
    output = demo.output_folder(arguments.output)
    place = output / "rounds"
    if arguments.restart:
        shutil.rmtree(place, ignore_errors=True)
    place = demo.output_folder(str(place))
    demo.say(f"output: {arguments.output}")
    # A base that is not there is told before anything starts.
    base = None if arguments.base is None else _checkpoint(arguments.base, option="--base")

    cli.start_ray()
    base = base or _demo_model(output, small=arguments.small, started=started)
    num = (SMALL_PROMPTS, SMALL_PROMPTS) if arguments.small else (NUM_PROMPTS, NUM_HELD_OUT)
    learned, held_out = write_prompts(demo.copy_standard_library(output / "source"), place, num=num)
    with demo.stage("4/6 rounds", started):
        for name in METHODS:
            _train(name, base, learned, place=place, overrides=overrides)
    n = SMALL_N if arguments.small else N
    with demo.stage("5/6 best of n", started):
        _best_of_n(base, held_out, place=place, config=config, n=n)
    with demo.stage("6/6 compare", started):
        models = _compare(base, held_out, place=place, config=config, n=n)
        failure = _report(models, place)
    return _say_result(models, failure, output=Path(arguments.output))


def _checked(overrides: Sequence[str]) -> "Config":
    """Return the configuration of a method, after those of all have been read. What is used of it they share."""
    from phf_ray.config import load_config

    configs = [load_config(demo.TASK, name, overrides) for name in METHODS]
    gold_of(configs[0])
    return configs[0]


def parser() -> argparse.ArgumentParser:
    parser = job_parser("rounds", __doc__, examples=("", "--base runs/mle --output out/rounds", "--small"))
    demo.add_arguments_of_what_follows(parser)
    parser.add_argument(
        "--base",
        metavar="DIR",
        help="model to start from, a checkpoint or a run, in place of the demo's by maximum likelihood",
    )
    return parser


# -- Base and prompts --------------------------------------------------------------------------------------------------


def _demo_model(output: Path, *, small: bool, started: float) -> Path:
    """Return the demo's model by maximum likelihood, which is trained if it is not there yet."""
    from phf_ray.config import load_config

    overrides = demo.SMALL if small else ()
    task = load_config(demo.TASK, None, overrides)
    corpus, tokenizer = demo.prepare_corpus(
        output, task=task, overrides=overrides, stages=6, started=started, small=small
    )
    with demo.stage("3/6 train the base", started):
        demo.train_models((demo.MLE,), corpus, tokenizer, output=output, overrides=overrides)
    return _checkpoint(output / "runs" / demo.MLE, option="the demo's model")


def _checkpoint(path: str | Path, *, option: str) -> Path:
    from phf_ray.runs.checkpoints import find_checkpoint

    return find_checkpoint(path, option=option).resolve()


def write_prompts(source: Path, place: Path, *, num: tuple[int, int]) -> tuple[Path, Path]:
    """Write the headers that rounds learn from and those that are held out. No header or file is on both sides."""
    sides: tuple[dict[str, None], dict[str, None]] = ({}, {})
    for path in library_files(source):
        side = sides[_is_held_out(path.relative_to(source))]
        side.update(dict.fromkeys(headers_of(path.read_text(encoding="utf-8"))))
    files = []
    for name, headers, wanted in zip(
        ("prompts", "held_out"), (sides[0], sides[1].keys() - sides[0].keys()), num, strict=True
    ):
        # The hash picks from the whole library, whatever its order.
        chosen = sorted(headers, key=lambda header: hashlib.blake2b(header.encode()).digest())[:wanted]
        if len(chosen) < 2:
            raise ConfigError(f"{source} has {len(chosen)} function headers for {name}; give a library with more files")
        files.append(place / f"{name}.jsonl")
        write_text(files[-1], "".join(json.dumps({"text": header}) + "\n" for header in chosen))
    demo.say(f"prompts: {files[0]}, {files[1]}")
    return files[0], files[1]


def _is_held_out(path: Path) -> bool:
    from phf_ray.blocks.held_out import is_held_out

    return is_held_out(path.as_posix(), HELD_OUT_FRACTION)


# -- The methods -------------------------------------------------------------------------------------------------------


def _train(name: str, base: Path, prompts: Path, *, place: Path, overrides: Sequence[str]) -> None:
    from jobs import train_rl

    command = ["--task", demo.TASK, "--method", name, "--run-name", name, "--storage-path", str(place)]
    command += ["--checkpoint-path", str(base)]
    # Quoted, because YAML could read an unquoted path as something else.
    own = [*overrides, f"rollouts.prompts=[{json.dumps(str(prompts))}]"]
    demo.run_job(train_rl, [*command, *demo.as_override(own)])


def _best_of_n(base: Path, prompts: Path, *, place: Path, config: "Config", n: int) -> None:
    """Sample n answers of the base to each held-out prompt. What it took stays beside them."""
    from jobs import best_of_n

    folder, cost = place / best_name(n), place / f"{best_name(n)}.seconds.json"
    rollouts = config.rollouts
    assert rollouts is not None
    gold = json.dumps(gold_of(config).model_dump(mode="json", exclude_defaults=True))
    command = ["--model", str(base), "--prompts", str(prompts), "--reward", gold, "--gold", gold, "--n", str(n)]
    command += ["--output", str(folder), "--template", "none", "--top-p", "1", "--in-process"]
    command += ["--max-tokens", str(rollouts.max_tokens), "--max-failed-fraction", f"{rollouts.max_failed_fraction:g}"]
    is_new, begin = not folder.exists(), time.monotonic()
    demo.run_job(best_of_n, command)
    if is_new:
        write_text(cost, json.dumps(time.monotonic() - begin))


def best_name(n: int) -> str:
    return f"best_of_{n}"


def gold_of(config: "Config") -> "RewardSpec":
    """Return what answers are judged by: rollouts.gold, else the only reward, in its own unit, without its weight."""
    rollouts = config.rollouts
    assert rollouts is not None
    if rollouts.gold is None and len(rollouts.reward) > 1:
        raise ConfigError(
            f"rollouts.reward names {len(rollouts.reward)} rewards; say by rollouts.gold which one judges"
        )
    spec = rollouts.gold or rollouts.reward[0]
    return spec.model_copy(update={"weight": 1.0})


# -- The comparison ----------------------------------------------------------------------------------------------------


def _compare(base: Path, held_out: Path, *, place: Path, config: "Config", n: int) -> "list[ComparedModel]":
    from phf_ray.rollouts.against_base.answers import HeldOutSettings, draw_answers, held_out_prompts
    from phf_ray.rollouts.against_base.arms import CandidateModel, compare
    from phf_ray.rollouts.prompts import read_prompts

    rollouts = config.rollouts
    assert rollouts is not None
    settings = HeldOutSettings(
        gold=gold_of(config),
        samples_per_prompt=NUM_ANSWERS,
        max_tokens=rollouts.max_tokens,
    )
    asked = held_out_prompts(read_prompts([str(held_out)], template=None).prompts, base, settings)
    others = [_best_candidate(place, n)]
    for name in METHODS:
        model = _checkpoint(place / name, option=f"the run {name}")
        rows = draw_answers(model, asked, store=place / "answers" / name)
        others.append(CandidateModel(name, rows, minutes=_minutes_of_run(place / name)))
    own = CandidateModel("base", draw_answers(base, asked, store=place / "answers" / "base"), learned=False)
    return compare(own, others, is_code=True)


def _best_candidate(place: Path, n: int) -> "CandidateModel":
    import pyarrow.parquet as pq

    from phf_ray.measures import best_of_n_kl
    from phf_ray.rollouts.against_base.answers import best_rows
    from phf_ray.rollouts.against_base.arms import CandidateModel
    from phf_ray.rollouts.best_of_n.plan import SAMPLES

    samples = pq.read_table(place / best_name(n) / SAMPLES).to_pylist()
    cost = place / f"{best_name(n)}.seconds.json"
    minutes = json.loads(cost.read_text(encoding="utf-8")) / 60 if cost.exists() else None
    rows = best_rows(samples, weights=best_name(n))
    return CandidateModel(best_name(n), rows, kl_upper_bound=best_of_n_kl(n), minutes=minutes, learned=False)


def _minutes_of_run(run: Path) -> float | None:
    from phf_ray.runs.directory import RunDirectory

    seconds = RunDirectory(run).read_summary().get("wall_s_of_last_start")
    return None if seconds is None else float(seconds) / 60


def _report(models: "Sequence[ComparedModel]", place: Path) -> list[str]:
    from phf_ray.rollouts.against_base.page import comparison_json, comparison_page
    from phf_ray.rollouts.against_base.verdict import failure_of

    failure = failure_of(models)
    base = models[0].figures
    intro = [
        f"{base.num_prompts:,} function headers that no round saw. Higher gold is better: it is minus pycodestyle's "
        "violations per character of header and answer, and the rounds learned from it, too.",
        "The minutes are of a run's last start. Best of n is drawn anew for every prompt, and never counts.",
    ]
    content: dict[str, Any] = comparison_json(models, shown=not failure, failure=failure)
    write_text(place / "report.json", json.dumps(content, indent=1) + "\n")
    title = "Rounds against their base"
    write_text(place / "report.html", comparison_page(models, title=title, intro=intro, failure=failure))
    return failure


def _say_result(models: "Sequence[ComparedModel]", failure: Sequence[str], *, output: Path) -> int:
    from phf_ray.rollouts.against_base.page import table_text

    demo.say(f"\n{table_text(models)}\n\nreport: {output / 'rounds' / 'report.html'}")
    for line in failure:
        demo.say(f"not shown: {line}")
    if not failure:
        demo.say("shown: a trained model beats the base on held-out prompts, and not by degenerate text")
    return 1 if failure else 0


if __name__ == "__main__":
    cli.run(main)

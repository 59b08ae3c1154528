"""Align the demo's model with a pool of annotators who err, by every method, and compare them all (`make align`).

AlpacaFarm in miniature, without a download. The demo's model by maximum likelihood continues function headers of the
standard library. Four annotators, each with a bias of its own, compare its answers, and a quarter of their labels is
turned round. From these labels alone learn a reward model and, with it or without, best of n, expert iteration, DPO,
reward conditioning, RLOO and PPO. All answer headers that no training saw, and pycodestyle, which nothing has learned
from, judges them: gold. A last run of RLOO goes on until its reward is over-optimised.

Best of n by gold and the demo's conditional model learn from pycodestyle itself. They are upper bounds and never count.
The job goes on from the demo's results in the same folder, skips what is done, and needs Ray for the demo alone. It
exits with 1, and says why, if fewer than two methods beat the base on gold and not by degenerate text. `--seeds 0,1,2`
trains everything that learns from the labels three times, and judges the means.
"""

import argparse
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import align_data as data
from jobs import cli, demo, demo_seeds
from jobs.commands import job_parser
from phf_ray.errors import ConfigError
from phf_ray.storage.files import write_text

if TYPE_CHECKING:
    from jobs import align_table
    from phf_ray.config.rewards import RewardSpec
    from phf_ray.rollouts.against_base.arms import CandidateModel, ComparedModel

REWARD, DPO, CONDITIONED, OVER = "answer_reward", "dpo", "reward_conditioning", "rloo_on_and_on"
ROUNDS = ("expert_iteration", "rloo", "ppo")
ROUNDS_OVERRIDES = ("rollouts.rounds=4",)
"""Fewer than those of `phf rounds`: after four, under half of the answers are without code, after twelve two of three.
Chosen after twelve had failed the verdict here, with these shares and gold, by round, in view."""
OVER_METHOD = "rloo"
OVER_ROUNDS = 24
OVER_OVERRIDES = (f"rollouts.rounds={OVER_ROUNDS}", "training.learning_rate=1.0e-3", "algorithm.kl_coef=0.0")
"""More rounds, a higher learning rate and no price of the KL: what takes a run beyond what its reward is good for."""
REWARD_WEIGHT = 2.0
"""Of the reward model in rounds, which brings its rewards into units of about 1, as the KL's price expects."""
NUM_ANSWERS, N = 3, 16
"""Answers of each model to each prompt of the verdict, and answers of the base of which the best is chosen."""
SMALL = (
    "rollouts.rounds=2",
    "rollouts.prompts_per_round=4",
    "rollouts.samples_per_prompt=2",
    "rollouts.max_failed_fraction=1",
)
SMALL_TRAINING = ("training.num_epochs=1", "training.effective_batch_size=8")
SMALL_N = 2
SCENARIOS = "generation.scenario_configs=[]"


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a run of the job is, and how large."""

    output: Path
    """Of the demo."""
    place: Path
    is_small: bool
    overrides: Sequence[str]
    """The user's, for every training of the job; those of rounds and algorithms for rounds alone."""
    seed: int = 0
    """Of the trainings: is added to `training.seed`. Data, labels, and prompts are the same for all."""

    @property
    def sizes(self) -> data.AlignSizes:
        return data.SMALL_SIZES if self.is_small else data.AlignSizes()

    @property
    def n(self) -> int:
        return SMALL_N if self.is_small else N

    def of_seeds(self, seeds: Sequence[int]) -> "list[Workplace]":
        return [dataclasses.replace(self, seed=seed) for seed in seeds]

    def named(self, name: str) -> str:
        """Return the name of what was trained, or drawn of that, from this seed."""
        return demo_seeds.named(name, self.seed)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add up the seconds of all starts that worked on this."""
        begin = time.monotonic()
        try:
            yield
        finally:
            spent = self.seconds(name) + time.monotonic() - begin
            write_text(self.place / "seconds" / f"{name}.json", json.dumps(spent))

    def seconds(self, name: str) -> float:
        file = self.place / "seconds" / f"{name}.json"
        return float(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else 0.0

    def minutes(self, seeds: Sequence[int] = (0,)) -> dict[str, float]:
        """Return what took how long, over all starts. What was trained from other seeds is left out."""
        names = [file.stem for file in sorted((self.place / "seconds").glob("*.json"))]
        # Folders of the first seed have no number, nor has what all seeds share.
        seed_of = {name: int(number) for name in names if (number := name.partition("_seed")[2])}
        return {name: self.seconds(name) / 60 for name in names if seed_of.get(name, 0) in (0, *seeds)}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from jobs import align_table
    from jobs.align_report import AlignResult, over_optimisation, say_result, write_report
    from phf_ray.config import load_config

    overrides = list(arguments.override)
    seeds = cli.seeds_of(arguments.seeds)
    task = load_config(demo.TASK, None, demo.SMALL if arguments.small else ())
    for method in (REWARD, DPO, CONDITIONED):
        load_config(demo.TASK, method, _of_all(overrides))
    for method in ROUNDS:
        load_config(demo.TASK, method, overrides)
    started = time.monotonic()
    output = demo.output_folder(arguments.output)
    if arguments.restart:
        shutil.rmtree(output / "align", ignore_errors=True)
    place = demo.output_folder(str(output / "align"))
    at = Workplace(output, place, arguments.small, overrides)
    demo.say(f"output: {arguments.output}")

    with demo.stage("1/6 the demo's models", started):
        base, conditional = _demo_models(at, started)
        _refuse_others(at, base, conditional)
    with demo.stage("2/6 prompts, pairs, labels", started):
        prompts = _prompts(at, held_out_fraction=task.dataset.held_out_fraction)
        comparisons = _comparisons(at, base, prompts)
    with demo.stage("3/6 learn a reward", started):
        accuracies = {}
        for one in at.of_seeds(seeds):
            _train(one, "train_lm", REWARD, base, [_datasets(comparisons)])
            accuracies[one.seed] = _judge_reward(one, base, prompts)
    with demo.stage("4/6 learn from labels and from the reward", started):
        conditioned = _conditioned(at)
        for one in at.of_seeds(seeds):
            _train(one, "train_lm", DPO, base, [_datasets(comparisons)])
            _train(one, "train_lm", CONDITIONED, base, [_datasets(conditioned)])
            for name in ROUNDS:
                _train(one, "train_rl", name, base, [*_of_rounds(one, prompts), *ROUNDS_OVERRIDES])
        # It is no method of the table, and trains once.
        first = at.of_seeds(seeds)[0]
        _train(first, "train_rl", OVER, base, [*_of_rounds(first, prompts), *_of_over(at)], method=OVER_METHOD)
    with demo.stage("5/6 answer the prompts of the verdict", started):
        models = _compare(at, seeds, base, conditional, prompts)
    with demo.stage("6/6 judge", started):
        arms = align_table.align_arms(models, _pool_labels(at, models))
        over = over_optimisation(at.place / first.named(OVER))
        result = AlignResult(arms, accuracies, over, at.minutes(seeds), align_table.failure_of(models))
        write_report(result, at.place)
    return say_result(result, folder=Path(arguments.output) / "align", rounds=first.named(OVER))


def parser() -> argparse.ArgumentParser:
    parser = job_parser("align", __doc__, examples=("", "--seeds 0,1,2", "--small --output out/small"))
    demo.add_arguments_of_what_follows(parser)
    demo_seeds.add_argument(
        parser, what="everything that learns from the labels is trained once from each, and the verdict is of the means"
    )
    return parser


# -- What the methods start from ---------------------------------------------------------------------------------------


def _demo_models(at: Workplace, started: float) -> tuple[Path, Path]:
    """Return the demo's models by maximum likelihood and by conditional training. Ray starts if one is missing."""
    from phf_ray.config import load_config
    from phf_ray.runs.checkpoints import find_checkpoint
    from phf_ray.runs.directory import RunDirectory

    runs = [at.output / "runs" / name for name in demo.METHODS]
    has_corpus = (at.output / "corpus" / "_SUCCESS").exists()
    if not has_corpus or any(RunDirectory(run).read_summary().get("status") != "finished" for run in runs):
        cli.start_ray()
        overrides = demo.SMALL if at.is_small else ()
        task = load_config(demo.TASK, None, overrides)
        corpus, tokenizer = demo.prepare_corpus(
            at.output, task=task, overrides=overrides, stages=2, started=started, small=at.is_small
        )
        demo.train_models(demo.METHODS, corpus, tokenizer, output=at.output, overrides=overrides)
    base, conditional = (find_checkpoint(run, option="the demo's model").resolve() for run in runs)
    return base, conditional


def _refuse_others(at: Workplace, base: Path, conditional: Path) -> None:
    """Raise ConfigError if the folder holds results of other models of the demo, or of another size."""
    from phf_ray.model_folder import weights_fingerprint

    file = at.place / "made_of.json"
    made_of = {
        "base": weights_fingerprint(base),
        "conditional": weights_fingerprint(conditional),
        "sizes": dataclasses.asdict(at.sizes),
        "n": at.n,
    }
    if not file.exists():
        write_text(file, json.dumps(made_of, indent=1) + "\n")
    elif (before := json.loads(file.read_text(encoding="utf-8"))) != made_of:
        other = ", ".join(name for name in made_of if before.get(name) != made_of[name])
        raise ConfigError(f"{at.place} was made with other values of {other}; --restart discards it")


def _prompts(at: Workplace, *, held_out_fraction: float) -> dict[str, Path]:
    from phf_ray.corpus.reader import read_corpus

    files = {name: at.place / f"{name}.jsonl" for name in data.SETS}
    if not all(file.exists() for file in files.values()):
        documents = read_corpus(str(at.output / "corpus"))
        data.write_prompts(documents, at.place, held_out_fraction=held_out_fraction, sizes=at.sizes)
    # Of files that a person may have changed since.
    data.check_disjoint({name: data.read_set(file) for name, file in files.items()})
    return files


def _comparisons(at: Workplace, base: Path, prompts: dict[str, Path]) -> Path:
    """Return the corpus of labelled pairs: the base's answers to the prompts `pairs`."""
    folder, sizes = at.place / "comparisons", at.sizes
    if (folder / "_SUCCESS").exists():
        return folder
    with at.timed("pairs"):
        pairs = data.sample_pairs(
            base,
            prompts["pairs"],
            at.place / "answers_of_pairs",
            num_samples=sizes.samples,
            max_tokens=sizes.max_tokens,
        )
    with at.timed("labels"):
        labels = data.annotate_pairs(pairs, at.place / "labels", cache=at.place / "cache", noise=data.NOISE)
        demo.say(f"{len(labels):,} pairs with a label")
        return data.prepare_comparisons(labels, folder)


def _conditioned(at: Workplace) -> Path:
    """Return the corpus of the same pairs in which each answer stands behind the token for better or worse."""
    from jobs import prepare_feedback

    folder = at.place / "conditioned"
    if not (folder / "_SUCCESS").exists():
        command = ["--input", str(at.place / "comparisons.jsonl"), "--output", str(folder), "--format", "plain"]
        demo.run_job(prepare_feedback, [*command, "--to", "reward-conditioning"])
    return folder


def _judge_reward(at: Workplace, base: Path, prompts: dict[str, Path]) -> dict[str, Any]:
    """Measure the pool and the reward model on pairs of other files, against gold and against the pool's labels."""
    from phf_ray.model_folder import weights_fingerprint

    file = at.place / f"{at.named('accuracy')}.json"
    learned = weights_fingerprint(Path(str(_learned(at).model)))
    if not file.exists() or json.loads(file.read_text(encoding="utf-8")).get("reward_model") != learned:
        pairs = data.sample_pairs(
            base, prompts["reward"], at.place / "answers_of_reward", num_samples=2, max_tokens=at.sizes.max_tokens
        )
        said = {
            name: data.annotate_pairs(pairs, at.place / f"reward_{name}", cache=at.place / "cache", noise=noise)
            for name, noise in (("clean", 0.0), ("noisy", data.NOISE))
        }
        # Noise labels pairs, too, that no judge could read.
        judged = list(said["clean"])
        labels = {name: [own.get(pair) for pair in judged] for name, own in said.items()}
        labels["gold"] = data.preferences_by(judged, data.GOLD)
        reward = data.preferences_by(judged, _learned(at))
        found: dict[str, Any] = {"reward_model": learned}
        found |= {
            f"{who}_{label}": _agreement_json(data.agreement_of(judged, preferences, labels[label]))
            for who, preferences, against in (
                ("pool", labels["clean"], ("gold",)),
                ("labels", labels["noisy"], ("gold", "clean")),
                ("reward", reward, ("gold", "clean", "noisy")),
            )
            for label in against
        }
        write_text(file, json.dumps(found, indent=1) + "\n")
    accuracy: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return accuracy


def _agreement_json(found: Any) -> dict[str, Any]:
    interval = found.accuracy_interval
    return {
        "accuracy": found.accuracy,
        "interval": None if interval is None else [interval.low, interval.high],
        "num": found.num_judged,
    }


# -- The methods -------------------------------------------------------------------------------------------------------


def _train(at: Workplace, job: str, name: str, base: Path, own: Sequence[str], *, method: str | None = None) -> None:
    import importlib

    from phf_ray.runs.directory import RunDirectory

    run = at.named(name)
    command = ["--task", demo.TASK, "--method", method or name, "--run-name", run, "--in-process"]
    command += ["--storage-path", str(at.place), "--checkpoint-path", str(base)]
    is_rounds = job == "train_rl"
    small = (SMALL if is_rounds else SMALL_TRAINING) if at.is_small else ()
    overrides = [SCENARIOS, *own, *small, *(at.overrides if is_rounds else _of_all(at.overrides))]
    overrides += demo_seeds.override_of(demo.TASK, method or name, overrides, at.seed)
    is_finished = RunDirectory(at.place / run).read_summary().get("status") == "finished"
    # Of a finished run the job checks that it has these settings.
    with nullcontext() if is_finished else at.timed(run):
        demo.run_job(importlib.import_module(f"jobs.{job}"), [*command, *demo.as_override(overrides)])
    demo.say(f"{run}: {at.seconds(run) / 60:.1f} minutes")


def _of_all(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that trainings without rounds understand, too."""
    return [one for one in overrides if not one.startswith(("rollouts.", "algorithm."))]


def _datasets(corpus: Path) -> str:
    # Quoted, because YAML could read an unquoted path as something else.
    return f"dataset.datasets=[{json.dumps(str(corpus))}]"


def _learned(at: Workplace, *, weight: float = 1.0) -> "RewardSpec":
    from phf_ray.config.rewards import RewardSpec
    from phf_ray.runs.checkpoints import find_checkpoint

    run = at.place / at.named(REWARD)
    return RewardSpec(model=str(find_checkpoint(run, option="the reward model").resolve()), weight=weight)


def _of_rounds(at: Workplace, prompts: dict[str, Path]) -> list[str]:
    """Return what rounds differ in from those of `phf rounds`: prompts, and the learned reward in place of gold."""
    reward = _learned(at, weight=REWARD_WEIGHT)
    return [
        f"rollouts.prompts=[{json.dumps(str(prompts['unlabelled']))}]",
        f"rollouts.reward=[{_json(reward)}]",
        # Reported beside the reward, and never learned from.
        f"rollouts.gold={_json(data.GOLD)}",
        f"rollouts.max_tokens={at.sizes.max_tokens}",
    ]


def _of_over(at: Workplace) -> Sequence[str]:
    return OVER_OVERRIDES if not at.is_small else ()


def _json(spec: "RewardSpec") -> str:
    return json.dumps(spec.model_dump(mode="json", exclude_defaults=True))


def _samples(
    at: Workplace, name: str, model: Path, prompts: dict[str, Path], *options: str, n: int, reward: "RewardSpec"
) -> list[dict[str, Any]]:
    """Return n answers of a model to each prompt of the verdict, with the reward and gold of each."""
    import pyarrow.parquet as pq

    from jobs import best_of_n
    from phf_ray.rollouts.best_of_n.plan import SAMPLES

    folder = at.place / name
    command = ["--model", str(model), "--prompts", str(prompts["verdict"]), "--n", str(n), "--in-process"]
    command += ["--reward", _json(reward), "--gold", _json(data.GOLD), "--output", str(folder), *options]
    command += ["--template", "none", "--top-p", "1", "--max-tokens", str(at.sizes.max_tokens)]
    # Of finished answers the job checks that they are of this model, these prompts, and this reward.
    with nullcontext() if (folder / "_SUCCESS").exists() else at.timed(name):
        demo.run_job(best_of_n, [*command, "--max-failed-fraction", "0.9"])
    rows: list[dict[str, Any]] = pq.read_table(folder / SAMPLES).to_pylist()
    return rows


# -- The comparison ----------------------------------------------------------------------------------------------------


def _compare(
    at: Workplace, seeds: Sequence[int], base: Path, conditional: Path, prompts: dict[str, Path]
) -> "list[ComparedModel]":
    from phf_ray.rollouts.against_base.answers import HeldOutSettings, draw_answers, held_out_prompts
    from phf_ray.rollouts.against_base.arms import CandidateModel, compare, trained_several_times
    from phf_ray.rollouts.prompts import read_prompts
    from phf_ray.runs.checkpoints import find_checkpoint

    settings = HeldOutSettings(gold=data.GOLD, samples_per_prompt=NUM_ANSWERS, max_tokens=at.sizes.max_tokens)
    verdict = read_prompts([str(prompts["verdict"])], template=None).prompts
    asked = held_out_prompts(verdict, base, settings)

    def answers(name: str, model: Path) -> Any:
        return draw_answers(model, asked, store=at.place / "answers" / name)

    own = CandidateModel("base", answers("base", base), learned=False)
    best = [_best_candidates(one, base, prompts) for one in at.of_seeds(seeds)]
    by_reward = {seed: candidates[0] for seed, candidates in zip(seeds, best, strict=True)}
    # Gold is not trained: the base's answers, and the choice among them, are the same with every seed.
    others = [trained_several_times(best[0][0].name, by_reward), best[0][1]]
    for name in (DPO, *ROUNDS):
        runs = {}
        for one in at.of_seeds(seeds):
            run = one.named(name)
            model = find_checkpoint(at.place / run, option=f"the run {run}").resolve()
            runs[one.seed] = CandidateModel(name, answers(run, model), minutes=at.seconds(run) / 60)
        others.append(trained_several_times(name, runs))
    conditioned = {one.seed: _conditioned_candidate(one, prompts) for one in at.of_seeds(seeds)}
    others.append(trained_several_times(CONDITIONED, conditioned))
    others.append(_conditional_candidate(at, conditional, prompts))
    return compare(own, others, is_code=True)


def _best_candidates(at: Workplace, base: Path, prompts: dict[str, Path]) -> "list[CandidateModel]":
    """Return the base's best of n by the learned reward, which counts, and by gold, which is an upper bound."""
    from phf_ray.measures import best_of_n_kl
    from phf_ray.rollouts.against_base.answers import best_rows
    from phf_ray.rollouts.against_base.arms import CandidateModel

    folder = at.named("best_of_n")
    samples = _samples(at, folder, base, prompts, n=at.n, reward=_learned(at))
    bound, minutes = best_of_n_kl(at.n), at.seconds(folder) / 60
    return [
        CandidateModel(
            name,
            best_rows(data.chosen_by(samples, column), weights=name),
            kl_upper_bound=bound,
            minutes=minutes,
            learned=column == "reward",
        )
        for name, column in ((f"best of {at.n} by reward", "reward"), (f"best of {at.n} by gold", "gold"))
    ]


def _conditioned_candidate(at: Workplace, prompts: dict[str, Path]) -> "CandidateModel":
    """Return the answers of the model that learned better and worse apart, behind its good token. It has no KL,
    as the next."""
    from phf_ray.rollouts.against_base.arms import CandidateModel
    from phf_ray.runs.checkpoints import find_checkpoint

    run = at.named(CONDITIONED)
    model = find_checkpoint(at.place / run, option=f"the run {run}").resolve()
    folder = f"answers_of_{run}"
    samples = _samples(at, folder, model, prompts, "--control", "good", n=NUM_ANSWERS, reward=data.GOLD)
    rows = [data.rollout_row(row, weights=run) for row in samples]
    return CandidateModel(CONDITIONED, rows, minutes=at.seconds(run) / 60)


def _conditional_candidate(at: Workplace, model: Path, prompts: dict[str, Path]) -> "CandidateModel":
    """Return the answers of the demo's conditional model behind its good token.

    Their KL is not known: the base does not have the token.
    """
    from phf_ray.rollouts.against_base.arms import CandidateModel

    samples = _samples(at, "conditional", model, prompts, "--control", "good", n=NUM_ANSWERS, reward=data.GOLD)
    rows = [data.rollout_row(row, weights="conditional") for row in samples]
    return CandidateModel("conditional model", rows, learned=False)


def _pool_labels(at: Workplace, models: "Sequence[ComparedModel]") -> "align_table.PoolLabels":
    """Have the pool, without noise, compare the answers of every arm with the base's."""
    from jobs import align_table

    file = at.place / "verdict.pairs.jsonl"
    rows = dict.fromkeys(
        (base.prompt, base.prompt + (base.completion or ""), base.prompt + (arm.completion or ""))
        for base, arm in align_table.pairs_with_base(models)
    )
    keys = ("instruction", "output_1", "output_2")
    write_text(file, "".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    return data.annotate_pairs(
        file, at.place / "verdict_labels", cache=at.place / "cache", noise=0.0, options=("--restart",)
    )


if __name__ == "__main__":
    cli.run(main)

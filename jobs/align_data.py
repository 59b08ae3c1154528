"""What `phf align` learns from and is judged on: prompts in four disjoint sets, pairs of the base's answers, labels."""

import ast
import hashlib
import itertools
import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jobs import demo
from jobs.code_pieces import lines_of, parsed
from jobs.make_prompts import MAX_CHARACTERS
from phf_ray.config.rewards import RewardSpec
from phf_ray.errors import ConfigError
from phf_ray.scorers.build import SHORT_NAMES
from phf_ray.storage.files import write_text

if TYPE_CHECKING:
    from phf_ray.judging.label_agreement import LabelAgreement
    from phf_ray.records import ScoredDocument
    from phf_ray.rollouts.figures import RolloutRow

POOL, NOISE = "offline", 0.25
GOLD = RewardSpec(scorer={"class_name": SHORT_NAMES["pep8"]}, use_prompt_for_scoring=True)
"""Minus pycodestyle's violations per character of header and answer. Nothing learns from it but the upper bounds."""
SETS = ("pairs", "unlabelled", "reward", "verdict")
"""Prompts whose answers are compared; those of rounds; those that test the reward model; those of the verdict."""


class AnswerPair(NamedTuple):
    """Two answers to a prompt."""

    prompt: str
    output_1: str
    output_2: str


@dataclass(frozen=True, slots=True)
class AlignSizes:
    pairs: int = 1500
    unlabelled: int = 768
    reward: int = 300
    verdict: int = 200
    samples: int = 4
    """Answers of the base to each prompt of `pairs`; every two of them are compared."""
    max_tokens: int = 32
    verdict_fraction: float = 0.1
    """Share of the files of the verdict, if the demo holds none out of the training of its models."""
    reward_fraction: float = 0.06
    """Share of the files, beside those, that test the reward model."""


SMALL_SIZES = AlignSizes(
    pairs=10, unlabelled=8, reward=8, verdict=8, samples=2, max_tokens=12, verdict_fraction=0.2, reward_fraction=0.2
)


# -- Prompts -----------------------------------------------------------------------------------------------------------


def write_prompts(
    documents: Iterable["ScoredDocument"], place: Path, *, held_out_fraction: float, sizes: AlignSizes
) -> dict[str, Path]:
    """Write the headers of functions in four sets, which share no header; nor do training and the others share files.

    Those of the verdict are of the files that are held out of the base's own training, if there are any.
    """
    found = _headers_by_files(documents, held_out_fraction or sizes.verdict_fraction, sizes.reward_fraction)
    chosen = dict(zip(("pairs", "unlabelled"), _shared_out(_drawn(found["training"]), sizes), strict=True))
    chosen["reward"] = _drawn(found["reward"] - found["training"])[: sizes.reward]
    # What another file has too was read in training.
    chosen["verdict"] = _drawn(found["verdict"] - found["training"] - found["reward"])[: sizes.verdict]
    check_disjoint(chosen)
    files = {name: place / f"{name}.jsonl" for name in SETS}
    for name, file in files.items():
        if len(chosen[name]) < 2:
            raise ConfigError(
                f"the corpus has {len(chosen[name])} function headers for the set {name!r}, too few to say anything; "
                "use a Python whose library is in files"
            )
        write_text(file, "".join(json.dumps({"text": header}) + "\n" for header in chosen[name]))
    demo.say("prompts: " + ", ".join(f"{len(chosen[name]):,} {name}" for name in SETS))
    return files


def _headers_by_files(
    documents: Iterable["ScoredDocument"], of_verdict: float, of_reward: float
) -> dict[str, set[str]]:
    from phf_ray.blocks.held_out import is_held_out

    found: dict[str, set[str]] = {"training": set(), "reward": set(), "verdict": set()}
    for document in documents:
        is_verdict = is_held_out(document.id, of_verdict)
        is_reward = is_held_out(document.id, of_verdict + of_reward)
        side = "verdict" if is_verdict else "reward" if is_reward else "training"
        found[side].update(all_headers(document.text))
    return found


def all_headers(source: str) -> Iterator[str]:
    """Yield the headers of all functions and methods, without their indents. Of no Python: none."""
    tree = parsed(source)
    if tree is None:
        return
    lines = lines_of(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            header = textwrap.dedent("".join(lines[node.lineno - 1 : node.body[0].lineno - 1])).rstrip()
            # Skips headers with a comment, and functions whose body is on the same line.
            is_whole = header.startswith("def ") and header.endswith(":") and "#" not in header
            if is_whole and len(header) <= MAX_CHARACTERS:
                yield header


def _drawn(headers: Iterable[str]) -> list[str]:
    """Return the headers in an order that a hash draws, whatever theirs is."""
    return sorted(headers, key=lambda header: hashlib.blake2b(header.encode()).digest())


def _shared_out(headers: Sequence[str], sizes: AlignSizes) -> tuple[Sequence[str], Sequence[str]]:
    """Return the prompts of both kinds of training. Few headers are shared out by the sizes."""
    cut = min(sizes.pairs, len(headers) * sizes.pairs // (sizes.pairs + sizes.unlabelled))
    return headers[:cut], headers[cut : cut + sizes.unlabelled]


def check_disjoint(chosen: Mapping[str, Sequence[str]]) -> None:
    """Raise ConfigError if a prompt, by its hash, is in two sets: what was learned on would judge."""
    seen: dict[bytes, str] = {}
    for name, prompts in chosen.items():
        for prompt in prompts:
            other = seen.setdefault(hashlib.blake2b(prompt.strip().encode()).digest(), name)
            if other != name:
                raise ConfigError(
                    f"the prompt {prompt!r} is in the sets {other!r} and {name!r}; --restart makes new ones"
                )


def read_set(file: Path) -> list[str]:
    """Return the prompts of a file of `write_prompts`. Raises ConfigError if it holds anything else."""
    try:
        return [json.loads(line)["text"].rstrip() for line in file.read_text(encoding="utf-8").split("\n") if line]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f'{file} is not what the job writes, lines of {{"text": PROMPT}} ({error!r}); --restart makes it anew'
        ) from None


# -- Pairs and labels --------------------------------------------------------------------------------------------------


def sample_pairs(base: Path, prompts: Path, folder: Path, *, num_samples: int, max_tokens: int) -> Path:
    """Draw answers of the base, and write every two to one prompt that differ as a pair. Return the file."""
    import pyarrow.parquet as pq

    from jobs import best_of_n
    from phf_ray.rollouts.best_of_n.plan import SAMPLES

    file = folder.with_suffix(".pairs.jsonl")
    if file.exists():
        return file
    command = ["--model", str(base), "--prompts", str(prompts), "--mode", "decode", "--n", str(num_samples)]
    command += ["--output", str(folder), "--template", "none", "--top-p", "1", "--in-process"]
    demo.run_job(best_of_n, [*command, "--max-tokens", str(max_tokens)])
    write_pairs(pq.read_table(folder / SAMPLES).to_pylist(), file)
    return file


def write_pairs(samples: Iterable[Mapping[str, Any]], file: Path) -> None:
    """Write answers behind their headers, as annotators are to read them: alone they would begin with an odd indent."""
    answers: dict[str, dict[str, None]] = {}
    for row in samples:
        if row["completion"] is not None:
            answers.setdefault(row["prompt"], {})[row["completion"]] = None
    rows = [
        {"instruction": prompt, "output_1": prompt + first, "output_2": prompt + second}
        for prompt, own in answers.items()
        for first, second in itertools.combinations(own, 2)
    ]
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))


def annotate_pairs(
    pairs: Path, output: Path, *, cache: Path, noise: float, options: Sequence[str] = ()
) -> dict[AnswerPair, float]:
    """Have the pool compare the pairs, without a server. Return the preferences of those that have one.

    `noise`: the share of labels that are wrong; twice as many are drawn, also for pairs that nobody could have read.
    """
    from jobs import annotate
    from phf_ray.feedback.reader import read_feedback
    from phf_ray.feedback.rows import Comparison
    from phf_ray.generation.chat.prompts import InstructionPrompt

    command = ["--pairs", str(pairs), "--annotators", POOL, "--output", str(output), "--cache", str(cache)]
    # Some answers end where pycodestyle can't read on; nobody judges these.
    command += ["--p-label-flip", f"{noise:g}", "--max-failed-fraction", "0.9", "--in-process"]
    demo.run_job(annotate, [*command, *options])
    return {
        AnswerPair(prompt, *(one.removeprefix(prompt) for one in (row.output_1, row.output_2))): row.preference
        for row in read_feedback(str(output))
        if isinstance(row, Comparison) and row.preference is not None and isinstance(row.prompt, InstructionPrompt)
        for prompt in (row.prompt.instruction,)
    }


def prepare_comparisons(labels: Mapping[AnswerPair, float], folder: Path) -> Path:
    """Write the labelled pairs as a corpus that training reads. Return its folder."""
    from jobs import prepare_feedback

    if not labels:
        raise ConfigError(
            "the pool could judge no pair of answers, because pycodestyle can read none of them; the base has learned "
            "too little: run `phf demo --restart` first"
        )
    file = folder.with_suffix(".jsonl")
    rows = [{**pair._asdict(), "preference": preference} for pair, preference in labels.items()]
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    demo.run_job(prepare_feedback, ["--input", str(file), "--output", str(folder), "--format", "plain"])
    return folder


def gold_of_answers(prompts: Sequence[str], answers: Sequence[str], reward: RewardSpec) -> list[float | None]:
    """Return what each answer is worth; None of one that can't be judged."""
    from phf_ray.generation.chat.prompts import TextPrompt
    from phf_ray.judging.question import Failure
    from phf_ray.rollouts.prompts import RolloutPrompt
    from phf_ray.rollouts.rewards.base import AnsweredPrompt
    from phf_ray.rollouts.rewards.build import build_rewarder
    from phf_ray.rollouts.rewards.weighted import checked_rewards

    asked = [
        AnsweredPrompt(RolloutPrompt(str(number), prompt, TextPrompt(prompt)), answer, "length")
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    said = checked_rewards(build_rewarder(reward, device="cpu"), asked, name="gold")
    return [None if isinstance(one, Failure) else one for one in said]


def preferences_by(pairs: Sequence[AnswerPair], reward: RewardSpec) -> list[float | None]:
    """Return 1 or 2, whichever answer has the higher reward, 1.5 of equal ones; None without a reward of both."""
    prompts = [pair.prompt for pair in pairs for _ in range(2)]
    worth = gold_of_answers(prompts, [answer for pair in pairs for answer in pair[1:]], reward)
    return [
        None if first is None or second is None else 1.5 + (second > first) / 2 - (first > second) / 2
        for first, second in zip(worth[::2], worth[1::2], strict=True)
    ]


def agreement_of(
    pairs: Sequence[AnswerPair], preferences: Sequence[float | None], labels: Sequence[float | None]
) -> "LabelAgreement":
    """Compare preferences with labels of the same pairs. The intervals resample prompts."""
    from phf_ray.judging.label_agreement import agreement_with_labels

    return agreement_with_labels(preferences, labels, clusters=[pair.prompt for pair in pairs])


# -- Rows of a best of n -----------------------------------------------------------------------------------------------


def chosen_by(samples: Iterable[Mapping[str, Any]], column: str) -> list[dict[str, Any]]:
    """Return the samples with `is_best` at the first of each prompt with the most of the column, where any has some."""
    rows = [dict(row, is_best=False) for row in samples]
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row[column] is not None:
            before = best.get(row["prompt_id"])
            if before is None or row[column] > before[column]:
                best[row["prompt_id"]] = row
    for row in best.values():
        row["is_best"] = True
    return rows


def rollout_row(sample: Mapping[str, Any], *, weights: str) -> "RolloutRow":
    """Return one sample of a best of n as an answer by itself. It has no log-probabilities."""
    from phf_ray.rollouts.figures import RolloutRow

    return RolloutRow(
        prompt_id=sample["prompt_id"],
        sample=sample["sample"],
        prompt=sample["prompt"],
        completion=sample["completion"],
        num_tokens=len(sample["completion_ids"] or ()),
        finish_reason=sample["finish_reason"],
        weights=weights,
        reward=sample["gold"],
        rewards={},
        gold=sample["gold"],
        error=sample["error"],
        policy=None,
        reference=None,
    )

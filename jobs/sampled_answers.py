"""Samples the answers of models to instructions, for `leaderboard`: `--models`, and how they are asked.

A directory is served for the time of the job, as `evaluate-lm` does it; a URL is any OpenAI-compatible server of
completions. What is stored is not drawn again.
"""

import argparse
import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import cli
from phf_ray.characters import whole_characters
from phf_ray.errors import ConfigError, IncompleteError

if TYPE_CHECKING:
    from phf_ray.evaluation.answers.plan import Answerer
    from phf_ray.evaluation.answers.run import ModelAnswers
    from phf_ray.evaluation.arms import Arm
    from phf_ray.evaluation.models import NamedModel
    from phf_ray.judging.board.outputs import ModelOutputs
    from phf_ray.judging.board.reference_models import AskedPrompt

ANSWERS = "answers"
"""Folder of the files of answers, in AlpacaFarm's rows."""
_MOST_HERE = 2000
"""With more answers to draw, actors ask where Ray runs anyway; their start takes longer than so few requests."""
_OF_SAMPLING = (
    *("prompts", "arm", "template", "temperature", "top_p", "max_tokens", "sampling_seed"),
    *("limit", "num_gpus", "allow_plain_http"),
)


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models that are sampled first")
    group.add_argument(
        "--models",
        nargs="+",
        action="extend",
        default=[],
        metavar="[NAME=]DIR|ID|URL",
        help="models that answer --prompts: a checkpoint, a run, a model of the hub, or the URL of a server that calls "
        "the model NAME, as in evaluate-lm",
    )
    group.add_argument(
        "--prompts",
        nargs="+",
        action="extend",
        default=[],
        metavar="SRC",
        help="rows with instruction[, input, dataset, datasplit]; default: those of --reference FILE",
    )
    group.add_argument(
        "--arm",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME[:good|bad|none]",
        help="models to sample, and their control tokens; default: every model, with the good token if it has one",
    )
    group.add_argument(
        "--template",
        metavar="NAME|FILE",
        help="puts instructions into words: alpaca, hh, plain, tokenizer, or a file; default: the template that a "
        "model was trained with, else its tokenizer's, else alpaca",
    )
    group.add_argument("--temperature", type=float, metavar="T", help="default 0.7")
    group.add_argument("--top-p", type=float, metavar="P", help="default 0.9")
    group.add_argument("--max-tokens", type=int, metavar="N", help="default 300")
    group.add_argument("--sampling-seed", type=int, metavar="N", help="draws the answers (default 0)")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    group.add_argument("--num-gpus", type=float, metavar="N", help="GPUs of each model; default: those that are free")
    group.add_argument(
        "--allow-plain-http", action="store_true", help="send keys over http:// to other machines, unencrypted"
    )


def check_sampling_arguments(options: argparse.Namespace) -> None:
    """Raise ConfigError for options of sampling without models, and for values that mean nothing."""
    given = [name for name in _OF_SAMPLING if _is_given(getattr(options, name))]
    if given and not options.models:
        raise ConfigError(f"--{given[0].replace('_', '-')} belongs to --models; without models nothing is sampled")
    for name, least, most in (
        ("temperature", 0, 2),
        ("top_p", 0, 1),
        ("max_tokens", 1, 1 << 20),
        ("sampling_seed", 0, 1 << 62),
        ("limit", 1, 1 << 62),
    ):
        value = getattr(options, name)
        if value is not None and not (least <= value <= most and (name != "top_p" or value > 0)):
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {value} is not between {least} and {most}; give one that is")


def _is_given(value: Any) -> bool:
    # A zero is given, too, and equals False.
    return not (value is None or value is False or value == [])


class Sampling:
    """What the options ask for, checked before anything starts."""

    def __init__(self, options: argparse.Namespace):
        from jobs.model_arguments import parse_arms, parse_models
        from phf_ray.evaluation.answers.plan import Decoding

        check_sampling_arguments(options)
        self._options = options
        # Absolute, because the processes that ask may run in another directory.
        self._output = options.output if cli.is_url(options.output) else str(Path(options.output).resolve())
        self.models: Mapping[str, NamedModel] = parse_models(
            options.models, allow_plain_http=options.allow_plain_http, option="--models"
        )
        wanted = [_named(*one) for one in parse_arms(options.arm, self.models)]
        self._arms = {name: (model, control) for name, model, control in wanted}
        self.reference: str | None = None
        """Name of the reference, if it is sampled, too."""
        self._take_reference(options.reference)
        if self.reference is not None and set(self._arms) == {self.reference}:
            raise ConfigError(f"--models names the reference alone, {self.reference}; give a model to rank, too")
        given = {name: getattr(options, name) for name in ("temperature", "top_p", "max_tokens")}
        given["seed"] = options.sampling_seed
        self.decoding: Decoding = Decoding(**{name: value for name, value in given.items() if value is not None})
        self.prompts = self._read_prompts()
        self._num_unanswered = 0
        """Answers that a server failed to give; the same command asks for them again."""

    @property
    def names(self) -> list[str]:
        """Names of the models that are ranked."""
        return [name for name in self._arms if name != self.reference]

    def check_names(self, others: Iterable[str]) -> None:
        """Raise ConfigError if a model of a file has the name of one that is sampled."""
        same = sorted(set(others) & set(self._arms))
        if same:
            raise ConfigError(f"--models and a file have a model called {same[0]}; name one of them otherwise")

    def raise_if_incomplete(self) -> None:
        if self._num_unanswered:
            raise IncompleteError(
                f"{self._num_unanswered:,} answers could not be drawn; the leaderboard counts them as failures"
            )

    def _take_reference(self, text: str | None) -> None:
        from jobs.model_arguments import parse_arms, parse_models

        if text is None:
            raise ConfigError("--models needs --reference: a file of answers, NAME of one of the models, or NAME=MODEL")
        if text in self._arms:
            self.reference = text
        elif text in self.models and not Path(text).exists():
            raise ConfigError(f"--reference {text}: --arm leaves this model out; name it in --arm, too")
        elif re.match(r"[\w.-]+=", text) and not Path(text).exists():
            own = parse_models([text], allow_plain_http=self._options.allow_plain_http, option="--reference")
            [(name, model, control)] = [_named(*one) for one in parse_arms([], own)]
            if set(own) & set(self.models):
                raise ConfigError(f"--reference {text}: --models has a model of that name; give another")
            self.models = {**self.models, **own}
            self._arms[name] = (model, control)
            self.reference = name

    def _read_prompts(self) -> "list[AskedPrompt]":
        from phf_ray.judging.board.reference_models import read_prompts

        if not self._options.prompts and self.reference is not None:
            raise ConfigError("--models needs --prompts FILE: the instructions that the models answer")
        sources, option = (
            (self._options.prompts, "--prompts")
            if self._options.prompts
            else ([self._options.reference], "--reference")
        )
        return read_prompts(sources, option=option)[: self._options.limit]

    # -- What is there, and what is missing ---------------------------------------------------------------------------

    def known(self) -> "dict[str, ModelAnswers]":
        """Return what the output has of each model. Asks servers that the user named for their description."""
        from phf_ray.evaluation.answers.run import known_answers
        from phf_ray.generation.chat.prompts import InstructionPrompt

        prompts = [InstructionPrompt(one.instruction, one.input) for one in self.prompts]
        return known_answers(prompts, self._answerers(), self.decoding, output=self._output)

    def _answerers(self) -> "Iterator[Answerer]":
        from phf_ray.evaluation.answers.plan import Answerer
        from phf_ray.evaluation.answers.templates import words_of, words_of_server
        from phf_ray.evaluation.arms import check_arm, described

        chosen = self._options.template
        for arm in self._bare_arms("").values():
            model = self.models[arm.model]
            if model.directory is None:
                yield Answerer(described(arm, check_arm(arm)), words_of_server(model.name, chosen=chosen))
            else:
                yield Answerer(arm, words_of(model.directory, model.info, chosen=chosen))

    def _bare_arms(self, base_url: str) -> "dict[str, Arm]":
        from jobs.evaluate_lm import arm_of

        arms = (arm_of(self.models[model], control, base_url=base_url) for model, control in self._arms.values())
        return {arm.name: arm for arm in arms}

    def print_plan(self) -> None:
        """Print what would be drawn and judged."""
        known = self.known()
        for name, model in known.items():
            sizes = [len(one.prompt.encode("utf-8", "surrogatepass")) for one in model.missing]
            most = sum(sizes) + len(sizes) * self.decoding.max_tokens
            print(
                f"{name}: {len(sizes):,} answers to draw of {len(self.prompts):,}, at most {most:,} tokens "
                f"({sum(sizes):,} of prompts)"
            )
        print(f"{len(self.prompts):,} pairs to judge for each of {', '.join(self.names)}")

    # -- Drawing ------------------------------------------------------------------------------------------------------

    def draw(self) -> "tuple[list[ModelOutputs], ModelOutputs | None]":
        """Draw what is missing, and write the files of answers.

        Returns the outputs of the models that are ranked, and of the reference if it is sampled, too.
        """
        from phf_ray.evaluation.answers.run import draw_missing
        from phf_ray.judging.board.outputs import read_outputs

        known = self.known()
        lacking = {name for name, model in known.items() if model.missing}
        num_missing = sum(len(model.missing) for model in known.values())
        if lacking:
            with self._served(lacking) as base_url:
                runner = _runner(num_missing, has_ray=bool(base_url))
                arms = {name: arm for name, arm in self._bare_arms(base_url).items() if name in lacking}
                self._num_unanswered = draw_missing(known, arms, self.decoding, output=self._output, runner=runner)
        outputs = {}
        for name, model in known.items():
            [outputs[name]] = read_outputs([self._write(name, model)], option="--models")
        reference = None if self.reference is None else outputs[self.reference]
        return [outputs[name] for name in self.names], reference

    @contextlib.contextmanager
    def _served(self, names: set[str]) -> Iterator[str]:
        """Serve the directories among these models; yield the URL of that server, empty if there is none."""
        models = {self._arms[name][0]: self.models[self._arms[name][0]] for name in sorted(names)}
        directories = {
            name: {"path": str(model.directory), "control": None if model.info is None else model.info.control}
            for name, model in models.items()
            if model.directory is not None
        }
        if not directories:
            yield ""
            return
        from jobs.resources import check_resources
        from jobs.serve import serving

        check_resources(num_cpus=None, num_gpus=self._options.num_gpus)
        cli.start_ray()
        cli.require_shared(self._output, flag="--output")
        for fields in directories.values():
            cli.require_shared(str(fields["path"]), flag="--models")
        with serving(directories, num_gpus=self._options.num_gpus) as url:
            yield url

    def _write(self, name: str, model: "ModelAnswers") -> str:
        """Write the answers in AlpacaFarm's rows; one that is missing is null, with its reason in `error`."""
        from phf_ray.evaluation.answers.store import file_name
        from phf_ray.storage.files import write_file

        rows: list[dict[str, Any]] = []
        for prompt, found in zip(self.prompts, model.outcomes(), strict=True):
            row = {
                "instruction": prompt.instruction,
                "input": prompt.input,
                "output": None if isinstance(found, str) else found.text,
                "generator": name,
                "dataset": prompt.dataset,
                "datasplit": prompt.datasplit,
            }
            rows.append(row | ({"error": whole_characters(found)} if isinstance(found, str) else {}))
        path = f"{self._options.output}/{ANSWERS}/{file_name(name)}.json"
        write_file(path, (json.dumps(rows, indent=1, ensure_ascii=False) + "\n").encode())
        answered = sum(row["output"] is not None for row in rows)
        print(f"{path}: {answered:,} answers to {len(rows):,} prompts", flush=True)
        return path


def _named(model: str, control: Any) -> tuple[str, str, Any]:
    """Return the arm's name, the model's and the control token."""
    return (model if control is None else f"{model}:{control}"), model, control


def _runner(num: int, *, has_ray: bool) -> Any:
    from phf_ray.evaluation.asking import run_here
    from phf_ray.evaluation.on_ray import run_on_ray

    return run_on_ray if has_ray and num > _MOST_HERE else run_here

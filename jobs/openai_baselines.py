"""Have a reference model answer prompts, behind any OpenAI-compatible URL, as AlpacaFarm's baselines did.

Writes one JSON array of instruction, input, output, generator, dataset and datasplit, which leaderboard takes. If you
run the same command again, only what is missing is asked.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import cli
from jobs.commands import job_parser
from phf_ray.errors import ConfigError, IncompleteError

if TYPE_CHECKING:
    from phf_ray.judging.board.reference_models import AnswerStyle, ReferenceAnswers
    from phf_ray.judging.endpoint import EndpointSettings


def main(argv: Sequence[str] | None = None) -> int:
    options = parser().parse_args(argv)

    from phf_ray.judging.board.reference_models import answer_here, question_of, read_prompts
    from phf_ray.judging.budget import Budget, most_of
    from phf_ray.judging.waiting import wait_for
    from phf_ray.storage.files import write_file

    if Path(options.output).is_dir():
        raise ConfigError(f"--output {options.output} is a folder; give a file, such as {options.output}/eval.json")
    style, settings = _style(options), _settings(options)
    budget = None if options.budget is None else Budget.parse(options.budget)
    prompts = read_prompts(options.prompts, option="--prompts")[: options.limit]
    if options.dry_run:
        tokens = sum(most_of(question_of(one, style, judge=settings.judge), None).tokens for one in prompts)
        print(f"{len(prompts):,} prompts for {options.model} ({style}), at most {tokens:,} tokens")
        return 0
    cache = options.cache or f"{options.output.removesuffix('.json')}.answers"
    found = wait_for(answer_here(prompts, style, settings, cache=cache, budget=budget))
    write_file(options.output, found.content)
    _report(found, options, number=len(prompts))
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "openai_baselines",
        __doc__,
        examples=(
            "--url https://api.openai.com/v1 --model gpt-4 --prompts eval.json --output eval_gpt-4.json",
            "--url http://localhost:8000 --model mine --style completion --prompts eval.json --output eval_mine.json",
        ),
    )
    parser.add_argument("--url", required=True, metavar="URL[,key_env=VARIABLE]", help="OpenAI-compatible server")
    parser.add_argument(
        "--model", required=True, metavar="NAME", help="model's name there, and `generator` in the rows"
    )
    parser.add_argument(
        "--prompts", nargs="+", required=True, metavar="SRC", help="rows with instruction[, input, dataset, datasplit]"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON file of the answers")
    parser.add_argument("--cache", metavar="DIR", help="folder that keeps every answer (default: beside --output)")
    parser.add_argument(
        "--style",
        choices=("chat", "completion"),
        help="default: completion for davinci and instruct models, otherwise chat",
    )
    parser.add_argument(
        "--max-characters",
        type=int,
        metavar="N",
        help="length that a chat model is asked to keep to, 0 for none (default 500 for gpt-4, otherwise 1000)",
    )
    parser.add_argument("--temperature", type=float, metavar="T", help="default 0.7")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="default 300")
    parser.add_argument("--seed", type=int, metavar="N", help="seed that the server gets (default none)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
    parser.add_argument("--max-in-flight", type=int, default=16, metavar="N", help="requests at once (default 16)")
    parser.add_argument(
        "--patience", type=float, default=600.0, metavar="S", help="seconds to try again while the server is busy"
    )
    parser.add_argument(
        "--budget", metavar="X", help="most that all may cost: money (needs --price), or `200000 tokens`"
    )
    parser.add_argument(
        "--price", nargs=2, type=float, metavar=("IN", "OUT"), help="price of a million tokens of prompt and of answer"
    )
    parser.add_argument("--allow-plain-http", action="store_true", help="send keys over http:// to other machines")
    parser.add_argument(
        "--dry-run", action="store_true", help="print how many prompts and tokens it would be, and stop"
    )
    return parser


def _style(options: argparse.Namespace) -> "AnswerStyle":
    from phf_ray.judging.board.reference_models import style_of

    for name, least in (("max_characters", 0), ("temperature", 0), ("max_tokens", 1), ("limit", 1)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is below {least}")
    style = style_of(options.model)
    given = {name: getattr(options, name) for name in ("style", "temperature", "max_tokens", "seed")}
    style = replace(style, **{name: value for name, value in given.items() if value is not None})
    if options.max_characters is not None:
        style = replace(style, max_characters=options.max_characters or None)
    if style.style == "completion" and options.max_characters:
        raise ConfigError("--max-characters belongs to chat models; a completion has only the text of the prompt")
    return style


def _settings(options: argparse.Namespace) -> "EndpointSettings":
    from phf_ray.http.keys import parse_endpoint
    from phf_ray.judging.budget import Price
    from phf_ray.judging.endpoint import EndpointSettings

    if options.budget is not None and "token" not in options.budget.lower() and options.price is None:
        raise ConfigError(f"--budget {options.budget} is money; give --price IN OUT, or a budget in tokens")
    return EndpointSettings(
        endpoint=parse_endpoint(options.url, option="--url", allow_plain_http=options.allow_plain_http),
        model=options.model,
        price=None if options.price is None else Price(*options.price),
        max_in_flight=options.max_in_flight,
        patience_s=options.patience,
    )


def _report(found: "ReferenceAnswers", options: argparse.Namespace, *, number: int) -> None:
    print(f"{options.output}: {len(found.rows):,} answers of {options.model} to {number:,} prompts")
    if empty := sum(not row["output"] for row in found.rows):
        print(f"{empty:,} answers are empty")
    if found.failures:
        told = ", ".join(f"{kind} x {count:,}" for kind, count in sorted(found.failures.items()))
        raise IncompleteError(
            f"{found.failures.total():,} of {number:,} prompts have no answer and are not in {options.output} ({told}; "
            f"the first: {found.example})"
        )


if __name__ == "__main__":
    cli.run(main)

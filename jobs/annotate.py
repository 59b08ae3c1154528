"""Annotate: have a pool of judges say which of two answers is better, and store the comparisons.

Every answer of a judge behind a URL is kept in a cache, so nothing is asked twice. If you run the same command again,
it does only the missing part.
"""

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jobs import cli
from jobs.commands import job_parser
from phf_ray.errors import ConfigError
from phf_ray.storage.files import write_file

if TYPE_CHECKING:
    from phf_ray.judging.annotate import Annotated, JudgingRunner
    from phf_ray.judging.annotate_plan import AnnotateRequest

log = logging.getLogger("phf_ray.annotate")

AGREEMENT = "agreement.json"
_BYTES_ASKED_HERE, _BYTES_COMPUTED_HERE = 64 << 20, 4 << 20
"""Input up to this size is judged in this process, unless RAY_ADDRESS names a cluster: that takes less time than
starting Ray. The smaller one holds where judges compute, instead of being asked."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)

    from phf_ray.corpus.layout import SUCCESS
    from phf_ray.corpus.output import CorpusFolder
    from phf_ray.feedback.layout import FEEDBACK_KEYS
    from phf_ray.judging.annotate import annotate
    from phf_ray.judging.annotate_plan import AnnotateRequest
    from phf_ray.judging.budget import Budget, BudgetSpentError
    from phf_ray.judging.desk import DeskSettings, default_cache, endpoints_of
    from phf_ray.judging.failures import check_fraction
    from phf_ray.judging.forecast import forecast
    from phf_ray.judging.pool import load_pool
    from phf_ray.judging.served_scorers import identified, scorers_of
    from phf_ray.judging.sources import JudgingSource

    check_fraction(arguments.max_failed_fraction)
    if arguments.max_actors is not None and arguments.max_actors < 1:
        raise ConfigError(f"--max-actors {arguments.max_actors}: nobody would judge; give 1 or more")
    over = {name: getattr(arguments, name) for name in ("url", "model", "key_env")}
    request = AnnotateRequest(
        source=JudgingSource(
            pairs=arguments.pairs,
            samples=arguments.samples,
            head2head=None if arguments.head2head is None else tuple(arguments.head2head),
            all_samples=arguments.all_samples,
            seed=arguments.seed,
        ),
        pool=load_pool(arguments.annotators, over=over),
        seed=arguments.seed,
        p_label_flip=arguments.p_label_flip,
    )
    request.steps  # noqa: B018  checks the noise
    if arguments.agreement:
        return _agreement(arguments, request)
    if arguments.ask_judges:
        raise ConfigError("--ask-judges goes with --agreement; judging asks all judges of the pool")
    is_plain = arguments.allow_plain_http
    desk = DeskSettings(
        cache=arguments.cache or default_cache(),
        endpoints=endpoints_of(request.pool, allow_plain_http=is_plain),
        budget=None if arguments.budget is None else Budget.parse(arguments.budget),
    )
    if arguments.dry_run:
        for line in forecast(request, desk, output=arguments.output).lines():
            print(line)
        return 0
    for name in request.source.inputs:
        if Path(name).exists():
            cli.require_shared(name, flag=request.source.option)
    output = cli.require_shared(arguments.output, flag="--output")
    if arguments.restart or not CorpusFolder(output, keys=FEEDBACK_KEYS).has(SUCCESS):
        request = replace(request, pool=identified(request.pool, allow_plain_http=is_plain))
        desk = replace(desk, scorers=scorers_of(request.pool, allow_plain_http=is_plain))
    _import(arguments.known, desk.cache)
    runner = _runner(request, output, here=arguments.in_process, max_actors=arguments.max_actors)
    try:
        annotated = annotate(
            request,
            output,
            desk=desk,
            max_failed_fraction=arguments.max_failed_fraction,
            restart=arguments.restart,
            runner=runner,
        )
    except BudgetSpentError as error:
        left = forecast(request, desk, output=output)
        raise BudgetSpentError(f"{error}. Left to do: {'; '.join(left.lines())}") from None
    _print_result(annotated, output=output)
    return 0


def _agreement(arguments: argparse.Namespace, request: "AnnotateRequest") -> int:
    """Measure how far the annotators agree with their scorers and with people, and write `agreement.json`."""
    from phf_ray.corpus.output import CorpusFolder
    from phf_ray.feedback.layout import FEEDBACK_KEYS
    from phf_ray.judging.budget import Budget
    from phf_ray.judging.desk import DeskSettings, StoreDesk, default_cache, endpoints_of
    from phf_ray.judging.pool_agreement import pool_agreement
    from phf_ray.judging.served_scorers import identified, scorers_of

    for name in ("p_label_flip", "known", "restart", "dry_run", "max_actors"):
        if getattr(arguments, name):
            flag = f"--{name.replace('_', '-')}"
            raise ConfigError(f"{flag} has no meaning with --agreement, which measures judges without noise; remove it")
    output = cli.require_shared(arguments.output, flag="--output")
    if Path(output).is_file():
        raise ConfigError(f"--output {output} is a file; give a folder for {AGREEMENT}")
    if CorpusFolder(output, keys=FEEDBACK_KEYS).is_ours():
        raise ConfigError(f"--output {output} is a set of comparisons; give another folder for {AGREEMENT}")
    is_plain = arguments.allow_plain_http
    pool = identified(request.pool, allow_plain_http=is_plain)
    asks = arguments.ask_judges
    desk = StoreDesk(
        DeskSettings(
            cache=arguments.cache or default_cache(),
            endpoints=endpoints_of(pool, allow_plain_http=is_plain) if asks else {},
            budget=None if arguments.budget is None else Budget.parse(arguments.budget),
            scorers=scorers_of(pool, allow_plain_http=is_plain),
        )
    )
    try:
        found = pool_agreement(pool, request.source.rows(), seed=request.seed, asker=desk, asks=asks)
    finally:
        desk.store.close()
    file = f"{output.rstrip('/')}/{AGREEMENT}"
    write_file(file, json.dumps(found.to_json(), indent=1).encode())
    for line in found.lines():
        print(line)
    print(f"written to {file}")
    return 0


def parser() -> argparse.ArgumentParser:
    from phf_ray.judging.failures import MAX_FAILED_FRACTION

    parser = job_parser(
        "annotate",
        __doc__,
        examples=(
            "--pairs pairs.json --annotators offline --output feedback/judged",
            "--samples samples.json --annotators alpaca_farm --url http://localhost:8000 --p-label-flip 0.25 "
            "--output feedback/judged --dry-run",
            "--pairs pairs.json --annotators offline --agreement --output agreement",
        ),
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pairs", metavar="FILE", help="rows with instruction, perhaps input, output_1 and output_2")
    source.add_argument("--samples", metavar="FILE", help="rows with instruction and output, one or a list of them")
    source.add_argument(
        "--head2head", nargs=2, metavar=("A", "B"), help="outputs of two models: output_1 and output_2 of a pair"
    )
    parser.add_argument(
        "--annotators", required=True, metavar="NAME|FILE", help="name of a shipped pool, such as offline, or a file"
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="folder or URL of the comparisons")
    parser.add_argument(
        "--cache",
        metavar="DIR",
        help="folder on a local disk that keeps the answers of judges behind URLs; default ~/.cache/phf_ray/judgements",
    )
    parser.add_argument(
        "--p-label-flip", type=float, metavar="P", help="share of labels that noise turns round (AlpacaFarm: 0.25)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="draws annotators, orders and noise (default 0)"
    )
    parser.add_argument(
        "--budget",
        metavar="X",
        help="the most that all calls kept in the cache may have cost: money, such as 5.00, or '200000 tokens'",
    )
    parser.add_argument("--url", help="server of the judges that name none")
    parser.add_argument("--model", help="model to ask, in place of those that the pool names")
    parser.add_argument("--key-env", metavar="VARIABLE", help="environment variable with the key of that server")
    parser.add_argument("--allow-plain-http", action="store_true", help="send keys unencrypted, in a trusted network")
    parser.add_argument(
        "--all-samples", action="store_true", help="with --samples: a pair for each of them, not one per instruction"
    )
    parser.add_argument(
        "--known",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="annotations.json of AlpacaFarm or AlpacaEval: judgements that need not be asked for again",
    )
    parser.add_argument(
        "--max-failed-fraction",
        type=float,
        default=MAX_FAILED_FRACTION,
        metavar="F",
        help=f"stop if more rows get no judgement (default {MAX_FAILED_FRACTION})",
    )
    parser.add_argument("--max-actors", type=int, metavar="N", help="actors that judge at once (default: by the CPUs)")
    cli.add_in_process_argument(parser, does="judge")
    parser.add_argument(
        "--agreement",
        action="store_true",
        help="measure instead how far each annotator agrees with its scorer, and with people (the rows' `preference`), "
        "before noise: a table, and agreement.json in the output",
    )
    parser.add_argument(
        "--ask-judges",
        action="store_true",
        help="with --agreement: ask chats and completions, too, about every pair, which may cost money",
    )
    parser.add_argument("--restart", action="store_true", help="discard the contents of the output; answers are kept")
    parser.add_argument("--dry-run", action="store_true", help="say how many calls there will be and their price")
    return parser


def _import(files: Sequence[str], cache: str) -> None:
    from phf_ray.judging.importing import import_annotations
    from phf_ray.judging.store import Store

    if not files:
        return
    store = Store(cache)
    try:
        for file in files:
            print(f"{file}: {import_annotations(store, file)}")
    finally:
        store.close()


def _runner(request: "AnnotateRequest", output: str, *, here: bool, max_actors: int | None) -> "JudgingRunner":
    from phf_ray.corpus.layout import SUCCESS
    from phf_ray.corpus.output import CorpusFolder
    from phf_ray.feedback.layout import FEEDBACK_KEYS
    from phf_ray.judging.annotate import judge_here

    done = CorpusFolder(output, keys=FEEDBACK_KEYS).has(SUCCESS)
    size = sum(file.size for found in request.source.find() for file in found.files)
    computes = any(annotator.judge.is_here for annotator in request.pool.config.annotators)
    most = _BYTES_COMPUTED_HERE if computes else _BYTES_ASKED_HERE
    if here or done or (size <= most and not cli.asks_for_ray()):
        return judge_here
    from phf_ray.judging.on_ray import judge_on_ray

    cli.start_ray()
    return judge_on_ray(max_actors=max_actors)


def _print_result(annotated: "Annotated", *, output: str) -> None:
    stats = annotated.stats
    print(f"{output}: {stats.rows.rows:,} comparisons")
    for name, count in sorted(stats.rows.preferences.items()):
        print(f"{name}: {count:,}")
    for name, count in sorted(stats.judged_by.items()):
        print(f"by {name}: {count:,}")
    for name, count in sorted(stats.annotators.items()):
        print(f"annotator {name}: {count:,}")
    for (name, kind), count in sorted(stats.failures.items()):
        print(f"annotator {name}: {count:,} without a judgement: {kind}")
    if stats.rows.rejected:
        print(f"{stats.rows.rejected['duplicate']:,} duplicates left out")
    if stats.price:
        print(f"price of the answers, summed over rows: {stats.price:.4f}")
    for warning in annotated.warnings:
        log.warning("%s", warning)


if __name__ == "__main__":
    cli.run(main)

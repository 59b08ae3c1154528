"""Carry a threshold or scores over from an old scorer (such as Perspective) to a new one.

Fits a mapping on texts that have the old scores. The new scores are in the file, or come from a server (--scores-url).
With --apply, adds a column `calibrated` on the old scale. Files are JSON lines (also .gz or .zst) or Parquet.
"""

import argparse
import bz2
import gzip
import io
import json
import lzma
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobs import cli
from jobs.commands import job_parser
from phf_ray.errors import ConfigError, DataError
from phf_ray.storage.files import write_file, write_text

if TYPE_CHECKING:
    from phf_ray.http.keys import Endpoint
    from phf_ray.measures.calibration import Calibration

SCORED_AT_ONCE = 256
FEW_PAIRS = 1000
CALIBRATED = "calibrated"

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    _check(arguments)
    if arguments.apply is None:
        _fit(arguments)
    else:
        _apply(arguments)
    return 0


def parser() -> argparse.ArgumentParser:
    parser = job_parser(
        "calibrate",
        __doc__,
        examples=(
            "--input pairs.jsonl --old-column perspective --new-column score --output mapping.json",
            "--input texts.jsonl --old-column perspective --scores-url http://127.0.0.1:8000 --output mapping.json",
            "--input scored.jsonl --new-column score --apply mapping.json --output calibrated.jsonl",
        ),
    )
    parser.add_argument("--input", required=True, metavar="FILE", help="JSON lines or Parquet, one row per text")
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="file for the mapping; with --apply, for the rows"
    )
    parser.add_argument("--old-column", metavar="NAME", help="scores of the old scorer; a dot reaches into objects")
    parser.add_argument("--new-column", metavar="NAME", help="scores of the new scorer, if the file has them")
    parser.add_argument("--text-column", metavar="NAME", default="text", help="texts for the server (default text)")
    parser.add_argument(
        "--scores-url",
        metavar="URL",
        help="running server that scores the texts; PHF_API_KEY holds its key, or the variable of URL,key_env=VARIABLE",
    )
    parser.add_argument(
        "--allow-plain-http", action="store_true", help="send the key over http:// to another machine, unencrypted"
    )
    parser.add_argument("--scorer", metavar="NAME", default="toxicity", help="scorer of that server (default toxicity)")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="X",
        help="threshold on the old scale to carry over (default 0.5)",
    )
    parser.add_argument("--apply", metavar="FILE", help="mapping that this job wrote")
    parser.add_argument("--dry-run", action="store_true", help="read and check everything, but write nothing")
    return parser


def _check(arguments: argparse.Namespace) -> None:
    if arguments.apply is not None:
        if arguments.new_column is None:
            raise ConfigError("--apply needs --new-column, the scores to map to the old scale")
        return
    if arguments.old_column is None:
        raise ConfigError("--old-column is missing; name the column with the scores of the old scorer")
    if (arguments.new_column is None) == (arguments.scores_url is None):
        raise ConfigError("give either --new-column, or --scores-url with a server that scores --text-column")
    if arguments.scores_url is not None:
        _scores_at(arguments)


def _fit(arguments: argparse.Namespace) -> None:
    from phf_ray.measures.calibration import calibrate

    rows = read_input(arguments.input)
    old = numbers(rows, arguments.old_column)
    num_old = sum(value is not None for value in old)
    print(f"{len(rows):,} rows, {num_old:,} with an old score in {arguments.old_column!r}")
    scorer = None
    if arguments.new_column is not None:
        new = numbers(rows, arguments.new_column)
    else:
        asked = [number for number, value in enumerate(old) if value is not None]
        texts = [text_at(rows[number], arguments.text_column, number=number + 1) for number in asked]
        if arguments.dry_run:
            return
        scores, scorer = scores_over_http(texts, endpoint=_scores_at(arguments), scorer=arguments.scorer)
        by_row = dict(zip(asked, scores, strict=True))
        new = [by_row.get(number) for number in range(len(rows))]
    pairs = [(score, value) for score, value in zip(new, old, strict=True) if score is not None and value is not None]
    if len(pairs) < num_old:
        print(f"{num_old - len(pairs):,} of them have no new score and are left out")
    mapping = calibrate(
        [score for score, _ in pairs], [value for _, value in pairs], threshold=arguments.threshold, scorer=scorer
    )
    if not arguments.dry_run:
        write_text(arguments.output, mapping.model_dump_json(indent=2) + "\n")
    print(describe_mapping(mapping))


def _apply(arguments: argparse.Namespace) -> None:
    import fsspec

    from phf_ray.measures.calibration import parse_calibration

    try:
        with fsspec.open(arguments.apply, "rt", encoding="utf-8") as file:
            text = file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--apply {arguments.apply} can't be read: {error}") from None
    mapping = parse_calibration(text, source=arguments.apply)
    rows = read_input(arguments.input)
    scores = numbers(rows, arguments.new_column)
    for row, score in zip(rows, scores, strict=True):
        row[CALIBRATED] = None if score is None else float(mapping(score))
    if not arguments.dry_run:
        write_rows(arguments.output, rows)
    print(f"{len(rows):,} rows, {sum(score is not None for score in scores):,} with a calibrated score")


def describe_mapping(mapping: "Calibration") -> str:
    quality, threshold = mapping.quality, mapping.threshold
    lines = [
        f"{mapping.num_pairs:,} pairs; rank correlation {_shown(quality.spearman)}, "
        f"AUC at {threshold.old:g} {_shown(quality.auc)}",
        f"mean distance from the old score: {quality.mae_before:.4f} before, {quality.mae_after:.4f} after (held out)",
        f"{threshold.share_old:.2%} reach the old threshold {threshold.old:g}; {_percent(threshold.share_new)} reach "
        f"the new score {_shown(threshold.same_share)}; {_percent(threshold.agreement)} are on the same side of both",
        f"the calibrated score reaches {threshold.old:g} at the new score {_shown(threshold.mapped)}",
    ]
    if mapping.num_pairs < FEW_PAIRS:
        lines.append(f"only {mapping.num_pairs:,} pairs: the figures are rough below {FEW_PAIRS:,}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _scores_at(arguments: argparse.Namespace) -> "Endpoint":
    from phf_ray.http.keys import parse_endpoint

    return parse_endpoint(arguments.scores_url, option="--scores-url", allow_plain_http=arguments.allow_plain_http)


def scores_over_http(
    texts: Sequence[str], *, endpoint: "Endpoint", scorer: str
) -> tuple[list[float | None], dict[str, Any]]:
    """Return one score per text, None if the server could not score it, and the identity of the scorer."""
    from phf_ray.http.client import Client

    client = Client(endpoint.url, key=endpoint.key)
    scores: list[float | None] = []
    identity: dict[str, Any] = {}
    for begin in range(0, len(texts), SCORED_AT_ONCE):
        answer = client.post("/v1/scores", {"scorer": scorer, "input": texts[begin : begin + SCORED_AT_ONCE]})
        scores += [entry["score"] for entry in answer["data"]]
        identity = answer["scorer"]
    return scores, identity


# -- Rows -------------------------------------------------------------------------------------------------------------


def read_input(path: str) -> list[Row]:
    """Return the rows of a file. Raises ConfigError if it can't be opened, DataError if its content is invalid."""
    import fsspec
    import pyarrow.parquet as pq

    from phf_ray.corpus.streams import UNREADABLE, text_lines

    try:
        if path.endswith(".parquet"):
            with fsspec.open(path, "rb") as file:
                return list(pq.read_table(file).to_pylist())
        lines = enumerate(text_lines(path), 1)
        return [_row(line, place=f"{path}, line {number}") for number, line in lines if line.strip()]
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error}") from None
    except UNREADABLE as error:
        raise DataError(f"{path} can't be read: {error}") from None


def _row(line: str, *, place: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place} is not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} is not a JSON object")
    return row


def write_rows(path: str, rows: Sequence[Row]) -> None:
    """Write Parquet or JSON lines, compressed as the suffix says."""
    if path.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(list(rows)), sink)
        write_file(path, sink.getvalue())
    else:
        import zstandard
        from fsspec.utils import infer_compression

        compressors: dict[str | None, Callable[[bytes], bytes]] = {
            "gzip": gzip.compress,
            "bz2": bz2.compress,
            "xz": lzma.compress,
            "zstd": zstandard.compress,
        }
        compress = compressors.get(infer_compression(path), bytes)
        write_file(path, compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))


def value_at(row: Mapping[str, Any], column: str) -> Any:
    """Return the value of a column, None if it is missing.

    `meta.perspective` means row["meta"]["perspective"], unless a column has exactly that name.
    """
    if column in row:
        return row[column]
    head, _, rest = column.partition(".")
    inner = row.get(head)
    return value_at(inner, rest) if rest and isinstance(inner, Mapping) else None


def numbers(rows: Sequence[Row], column: str) -> list[float | None]:
    """Return the scores of a column. Raises DataError if a score is not a finite number, or if no row has a score."""
    found: list[float | None] = []
    for number, row in enumerate(rows, 1):
        value = value_at(row, column)
        if isinstance(value, bool) or not isinstance(value, int | float | None) or not math.isfinite(value or 0):
            raise DataError(f"column {column!r} of row {number} is {value!r}; a score is a finite number, or null")
        found.append(None if value is None else float(value))
    if all(value is None for value in found):
        columns = ", ".join(sorted({name for row in rows for name in row})) or "none"
        raise DataError(f"no row has a score in column {column!r}; columns: {columns}")
    return found


def text_at(row: Row, column: str, *, number: int) -> str:
    text = value_at(row, column)
    if not isinstance(text, str):
        raise DataError(f"column {column!r} of row {number} is {text!r}, not a text; name another with --text-column")
    return text


if __name__ == "__main__":
    cli.run(main)

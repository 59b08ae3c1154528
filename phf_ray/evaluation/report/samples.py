"""Reads and writes `samples.parquet`: every sample and, in its metadata, what was evaluated and how.

Every figure of a report is a function of this one file. `samples.jsonl` has the same samples for readers: a line each.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from phf_ray.errors import DataError
from phf_ray.evaluation.report.records import Evaluation, Sample
from phf_ray.storage.files import write_file

SAMPLES = "samples.parquet"
SAMPLES_AS_TEXT = "samples.jsonl"
_METADATA_KEY = b"phf_ray.evaluation"

_SCHEMA = pa.schema(
    [
        ("arm", pa.string()),
        ("scenario", pa.string()),
        ("seed", pa.int64()),
        ("index", pa.int64()),
        ("prompt_index", pa.int64()),
        ("prompt", pa.string()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("num_tokens", pa.int64()),
        ("score", pa.float64()),
        ("error", pa.string()),
        ("outcome", pa.string()),
    ]
)
assert _SCHEMA.names == [field.name for field in fields(Sample)]


def samples_to_table(samples: Sequence[Sample]) -> pa.Table:
    return pa.Table.from_pylist([asdict(sample) for sample in samples], schema=_SCHEMA)


def sort_samples(samples: Sequence[Sample], evaluation: Evaluation) -> list[Sample]:
    """Sort by scenario, arm, seed and index, so that the order of arrival leaves no trace."""
    arms = {arm.name: number for number, arm in enumerate(evaluation.arms)}
    scenarios = {scenario.name: number for number, scenario in enumerate(evaluation.scenarios)}
    return sorted(samples, key=lambda s: (scenarios[s.scenario], arms[s.arm], s.seed, s.index))


def write_samples(directory: str, samples: Sequence[Sample], evaluation: Evaluation) -> None:
    table = samples_to_table(sort_samples(samples, evaluation)).replace_schema_metadata(
        {_METADATA_KEY: evaluation.model_dump_json()}
    )
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    write_file(f"{directory}/{SAMPLES}", sink.getvalue())
    # ASCII alone, so that halves of character pairs and control characters do no harm in a terminal or an editor.
    lines = [json.dumps(row) + "\n" for row in table.to_pylist()]
    write_file(f"{directory}/{SAMPLES_AS_TEXT}", "".join(lines).encode())


def read_samples(directory: str) -> tuple[list[Sample], Evaluation]:
    path = f"{directory}/{SAMPLES}"
    try:
        with fsspec.open(path, "rb") as source:
            table = pq.read_table(io.BytesIO(source.read()))
        evaluation = Evaluation.model_validate_json((table.schema.metadata or {})[_METADATA_KEY])
        return [Sample(**row) for row in table.select(_SCHEMA.names).to_pylist()], evaluation
    except (OSError, KeyError, pa.ArrowInvalid, ValidationError) as error:
        raise DataError(
            f"{path} can't be read as samples ({type(error).__name__}: {error}); run jobs.evaluate_lm again"
        ) from None

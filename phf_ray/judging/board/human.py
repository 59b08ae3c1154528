"""Human labels from a file of their own, joined to rows by prompt and answers."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from phf_ray.errors import ConfigError, DataError
from phf_ray.judging.board.duels import mean_of
from phf_ray.judging.board.read import read_records
from phf_ray.judging.board.rows import JudgedRow, judged_row

Labels = Mapping[tuple[str, str, str], float]
"""(prompt, answer 1, answer 2) -> mean preference of the humans."""


def read_labels(sources: Sequence[str], *, option: str) -> Labels:
    """Return the labels of rows whose `preference`, or `human_preference` if there is one, is a human's."""
    found: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for place, record in read_records(sources, option=option):
        # Human labels name no models.
        row = judged_row({"preference": None, **record}, place, generators=("answer 1", "answer 2"))
        preference = row.preference if row.human_preference is None else row.human_preference
        if preference is not None:
            found[row.prompt, row.output_1, row.output_2].append(preference)
            found[row.prompt, row.output_2, row.output_1].append(3 - preference)
    if not found:
        raise DataError(f"{option} {' '.join(sources)}: no row has a preference; give the humans' labels there")
    return {key: value for key, values in found.items() if (value := mean_of(values)) is not None}


def with_labels(rows: Sequence[JudgedRow], labels: Labels) -> list[JudgedRow]:
    """Return the rows with their human labels. Raises ConfigError if none has one."""
    labelled = [
        replace(row, human_preference=labels.get((row.prompt, row.output_1, row.output_2), row.human_preference))
        for row in rows
    ]
    if all(row.human_preference is None for row in labelled):
        raise ConfigError(
            f"--human: none of the {len(labels) // 2:,} labelled pairs is among the {len(rows):,} rows; labels are "
            "matched by instruction, input and both answers, which must be the same texts"
        )
    return labelled

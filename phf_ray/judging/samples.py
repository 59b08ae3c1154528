"""Makes pairs: of the samples of one model, or of the outputs of two."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

from phf_ray.errors import ConfigError, DataError
from phf_ray.judging.draws import draw_index, draw_permutation
from phf_ray.judging.pairs import INPUT_KEYS

log = logging.getLogger(__name__)

Row = dict[str, Any]


def pairs_of_samples(
    rows: Iterable[Mapping[str, Any]],
    *,
    keys: Sequence[str] = INPUT_KEYS,
    is_unique_instructions: bool = True,
    seed: int = 0,
) -> list[Row]:
    """Pair the samples of each instruction with each other: every sample with another one, by a random derangement.

    A row has one `output` or a list of them; rows with equal `keys` belong together. Equal outputs count once, and an
    instruction with a single output makes no pair. A null in a list is a sample without an answer, which
    makes none either. is_unique_instructions: keep one pair of each instruction.
    """
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    num_unanswered = 0
    for number, row in enumerate(rows, start=1):
        group = groups[_key(row, keys, number=number)]
        outputs = _outputs(row, number=number)
        num_unanswered += outputs.count(None)
        group += [
            {**row, "output": text, "sample_id": len(group) + i} for i, text in enumerate(outputs) if text is not None
        ]
    if num_unanswered:
        log.warning("%d samples have no answer, and are in no pair", num_unanswered)
    pairs: list[Row] = []
    num_single = 0
    for key, samples in groups.items():
        first: dict[str, Row] = {}
        for sample in samples:
            first.setdefault(sample["output"], sample)
        unique = list(first.values())
        if len(unique) < 2:
            num_single += 1
            continue
        others = derangement(len(unique), seed, *key)
        made = [_paired(one, unique[other]) for one, other in zip(unique, others, strict=True)]
        pairs += [made[draw_index(len(made), "kept pair", seed, *key)]] if is_unique_instructions else made
    if num_single:
        log.warning("%d of %d instructions have a single output, and make no pair", num_single, len(groups))
    return pairs


def derangement(num: int, seed: int, *texts: str) -> list[int]:
    """Return a permutation of 0..num - 1, num >= 2, that leaves nothing in its place; all are equally likely."""
    for attempt in count():
        drawn = draw_permutation(num, f"derangement {attempt}", seed, *texts)
        # A random permutation is one with probability 1/e, so this ends soon.
        if all(index != other for index, other in enumerate(drawn)):
            return drawn
    raise AssertionError


def pairs_of_two(
    outputs_1: Sequence[Mapping[str, Any]],
    outputs_2: Sequence[Mapping[str, Any]],
    *,
    keys: Sequence[str] = INPUT_KEYS,
    is_ordered: bool = False,
) -> list[Row]:
    """Pair the outputs of two models that have the same `keys`, or, if is_ordered, the same place.

    Columns other than the keys get the endings _1 and _2. Raises ConfigError if ordered lists differ in length, and if
    not one instruction is in both.
    """
    if is_ordered and len(outputs_1) != len(outputs_2):
        raise ConfigError(f"{len(outputs_1)} and {len(outputs_2)} outputs can't be paired by their places")
    if len(outputs_1) != len(outputs_2):
        log.warning("%d outputs against %d: only instructions in both are compared", len(outputs_1), len(outputs_2))
    if is_ordered:
        matched = list(zip(outputs_1, outputs_2, strict=True))
        for number, (first, second) in enumerate(matched, start=1):
            if _key(first, keys, number=number) != _key(second, keys, number=number):
                raise DataError(
                    f"row {number}: the instructions of the two lists differ; leave out is_ordered to join them"
                )
    else:
        by_key: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
        for number, second in enumerate(outputs_2, start=1):
            by_key[_key(second, keys, number=number)].append(second)
        matched = [
            (first, second)
            for number, first in enumerate(outputs_1, start=1)
            for second in by_key.get(_key(first, keys, number=number), ())
        ]
    if not matched and outputs_1 and outputs_2:
        raise ConfigError(
            f"the two lists have no instruction in common (compared by {', '.join(keys)}); the first begins with "
            f"{_key(outputs_1[0], keys, number=1)!r:.100}, the second with {_key(outputs_2[0], keys, number=1)!r:.100}"
        )
    return [_merged(first, second, keys) for first, second in matched]


def _outputs(row: Mapping[str, Any], *, number: int) -> Sequence[str | None]:
    outputs: Any = row.get("output")
    if hasattr(outputs, "tolist"):  # an array, as in a DataFrame that was read from Parquet
        outputs = outputs.tolist()
    texts = [outputs] if isinstance(outputs, str) else outputs
    if not isinstance(texts, Sequence) or not all(isinstance(text, str | None) for text in texts) or not len(texts):
        raise DataError(f"row {number}: 'output' is {outputs!r:.80}; write a text, or a list of texts")
    return texts


def _key(row: Mapping[str, Any], keys: Sequence[str], *, number: int) -> tuple[str, ...]:
    if not isinstance(row.get("instruction"), str) and "instruction" in keys:
        raise DataError(f"row {number}: no text 'instruction'; it has {', '.join(map(str, row)) or 'nothing'}")
    for key in keys:
        # An input may be left out. Without another column, all rows would belong together.
        if key not in row and key != "input":
            raise DataError(f"row {number}: no column {key!r} to join by; it has {', '.join(map(str, row))}")
    return tuple("" if row.get(key) is None else str(row[key]) for key in keys)


def _paired(one: Row, other: Row) -> Row:
    shared = {key: value for key, value in one.items() if key not in ("output", "sample_id")}
    return {
        **shared,
        "output_1": one["output"],
        "output_2": other["output"],
        "sample_id_1": one["sample_id"],
        "sample_id_2": other["sample_id"],
    }


def _merged(first: Mapping[str, Any], second: Mapping[str, Any], keys: Sequence[str]) -> Row:
    for row in (first, second):
        if not isinstance(row.get("output"), str):
            raise DataError(f"{row.get('instruction')!r:.80}: 'output' is {row.get('output')!r:.80}; it must be a text")
    merged: Row = {key: first.get(key) for key in keys}
    merged |= {f"{name}_1": value for name, value in first.items() if name not in keys}
    return merged | {f"{name}_2": value for name, value in second.items() if name not in keys}

"""Reads what is to be judged: rows with two answers, samples that become pairs, or the answers of two models."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from phf_ray.corpus.cut import Piece
from phf_ray.corpus.find import Found, find_files
from phf_ray.corpus.read import read_rows_of
from phf_ray.errors import ConfigError, DataError
from phf_ray.feedback.layout import is_feedback_corpus
from phf_ray.feedback.reader import list_feedback_parts
from phf_ray.feedback.values import unfolded
from phf_ray.judging.dialogues import text_of_messages
from phf_ray.judging.samples import pairs_of_samples, pairs_of_two
from phf_ray.records import Rejected

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class JudgingSource:
    """Where pairs come from. One of the three is set."""

    pairs: str | None = None
    samples: str | None = None
    head2head: tuple[str, str] | None = None
    all_samples: bool = False
    """Of samples: a pair for each of them, not one for each instruction."""
    seed: int = 0
    """Draws which samples stand together."""

    def __post_init__(self) -> None:
        assert sum(one is not None for one in (self.pairs, self.samples, self.head2head)) == 1

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.head2head or tuple(one for one in (self.pairs, self.samples) if one is not None)

    @property
    def option(self) -> str:
        """The user's name for `inputs`."""
        return next(f"--{name}" for name in ("pairs", "samples", "head2head") if getattr(self, name) is not None)

    def find(self) -> list[Found]:
        """Find the files of each input. Raises ConfigError if there are none."""
        return [_find(name, option=self.option) for name in self.inputs]

    def rows(self) -> Iterator[Row]:
        """Yield the rows with their two answers, the same ones in the same order each time."""
        if self.pairs is not None:
            yield from rows_of(self.pairs, option=self.option)
        elif self.samples is not None:
            rows = rows_of(self.samples, option=self.option)
            yield from pairs_of_samples(rows, is_unique_instructions=not self.all_samples, seed=self.seed)
        else:
            assert self.head2head is not None
            first, second = (list(rows_of(name, option=self.option)) for name in self.head2head)
            yield from pairs_of_two(first, second)


def rows_of(name: str, *, option: str) -> Iterator[Row]:
    """Yield the rows of a file, folder, URL, data set or feedback corpus.

    Raises DataError that names the record if one can't be read: a row that is left out would be a judgement lost.
    """
    for index, file in enumerate(_find(name, option=option).files):
        for number, row in read_rows_of(file, Piece(file=index, num_bytes=file.size)):
            if isinstance(row, Rejected):
                raise DataError(f"{file.name}, record {number}: {row.reason}: {row.detail}; mend or remove it")
            yield _as_pair(row, f"{file.name}, record {number}")


def _find(name: str, *, option: str) -> Found:
    ours = is_feedback_corpus(name.rstrip("/") or name)
    found = find_files(list_feedback_parts(name) if ours else [name], text_suffixes=frozenset(), option=option)
    texts = [file.name for file in found.files if file.kind == "text"]
    if texts:
        raise ConfigError(f"{texts[0]} is text; give rows as JSON, JSON lines, Parquet or Arrow files")
    return found


def _as_pair(row: Mapping[str, Any], place: str) -> Row:
    """Return a row of a comparisons corpus as one of a file: what its `meta` holds are columns of the row.

    A dialogue, else a prompt, is the instruction of a row that has none.
    """
    values = unfolded(row) if "output_1" in row else dict(row)
    if values.get("instruction") is None:
        messages = values.get("messages")
        if isinstance(messages, list) and messages:
            values["instruction"] = text_of_messages(messages, place)
        elif isinstance(values.get("prompt"), str):
            values["instruction"] = values.pop("prompt")
    return values

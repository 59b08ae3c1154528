"""How much is missing because input files can't be read to their end: files, bytes and records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from phf_ray.records import Loss


@dataclass(slots=True)
class Losses:
    """The sum of many losses."""

    files: set[int] = field(default_factory=set)
    """Indices, in the plan, of the files that can't be read to their end."""
    num_bytes: int = 0
    records: int = 0
    """Only those that are known to be missing."""

    def add(self, loss: Loss) -> None:
        if loss.file is not None:
            self.files.add(loss.file)
        self.num_bytes += loss.num_bytes
        self.records += loss.records

    def merge(self, other: "Losses") -> None:
        self.files |= other.files
        self.num_bytes += other.num_bytes
        self.records += other.records

    def __bool__(self) -> bool:
        return bool(self.files or self.num_bytes or self.records)

    def to_json(self) -> dict[str, Any]:
        return {"files": sorted(self.files), "bytes": self.num_bytes, "records": self.records}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(files=set(values["files"]), num_bytes=values["bytes"], records=values["records"])

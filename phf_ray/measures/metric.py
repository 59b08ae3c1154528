"""The interface of text metrics: texts in, named figures out."""

from collections.abc import Sequence
from typing import Protocol

Measures = dict[str, float | None]


class Metric(Protocol):
    def __call__(self, texts: Sequence[str]) -> Measures:
        """Return name -> measure of the texts; None if the measure is not defined for them."""
        ...

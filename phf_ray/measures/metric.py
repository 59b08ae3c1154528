"""What a metric of texts is: texts in, named figures out."""

from collections.abc import Sequence
from typing import Protocol

Measures = dict[str, float | None]


class Metric(Protocol):
    def __call__(self, texts: Sequence[str]) -> Measures:
        """Measures of the texts by name; None where the texts do not define it."""
        ...

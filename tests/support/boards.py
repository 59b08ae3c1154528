"""Leaderboards that are quick to make: a judge without words, and few resamples."""

import contextlib
from collections.abc import Iterator

import pytest

from phf_ray.judging.board.stored import BoardSettings


@contextlib.contextmanager
def few_resamples() -> Iterator[None]:
    """A thousand take seconds, and only tests of intervals need them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BoardSettings.model_fields["num_resamples"], "default", 20)
        BoardSettings.model_rebuild(force=True)
        yield
    BoardSettings.model_rebuild(force=True)


class LongerWins:
    """Stands where `PairwiseAutoAnnotator.annotate_head2head` does."""

    def __init__(self):
        self.asked = 0

    def __call__(self, theirs, ours):
        self.asked += len(theirs)
        for one, other in zip(theirs, ours, strict=True):
            yield {
                "instruction": one["instruction"],
                "input": one["input"],
                "output_1": one["output"],
                "output_2": other["output"],
                "annotator": "longer",
                "preference": 2.0 if len(other["output"]) > len(one["output"]) else 1.0,
                "order": "12",
                "price": 0.25,
            }

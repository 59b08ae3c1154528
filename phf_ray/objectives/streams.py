"""The streams of a run that learns feedback and text: which data set belongs to which, and its weight in the loss."""

from dataclasses import dataclass

CORPUS = "corpus"
"""Channel: number of the data set that a token comes from."""
LOSS_WEIGHT = "loss_weight"
"""Channel of a training step: weight of a target; see `training/streams.py`."""
FEEDBACK, PRETRAINING = "feedback", "pretraining"
STREAMS = (FEEDBACK, PRETRAINING)


@dataclass(frozen=True, slots=True)
class LossStreams:
    of_corpus: tuple[int, ...]
    """Of each data set, the index of its stream in STREAMS."""
    loss_weights: tuple[float, ...]
    """Of each data set."""
    rows_alike: bool = False
    """Whether each block counts the same, and not each target."""

    @property
    def number(self) -> int:
        return len(STREAMS)

    @property
    def texts(self) -> tuple[int, ...]:
        """Data sets that are streams of text, in which the end of a text is a target."""
        return tuple(place for place, stream in enumerate(self.of_corpus) if STREAMS[stream] == PRETRAINING)

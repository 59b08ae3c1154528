"""Says which data sets of a run are feedback and which are text beside it, and what each weighs in the loss."""

from phf_ray.blocks.manifest import BlockManifest
from phf_ray.config import Config
from phf_ray.objectives.streams import FEEDBACK, PRETRAINING, STREAMS, LossStreams

TEXT_WEIGHT = 0.01
"""Of text beside feedback, as in Chain of Hindsight's released code. The code of its paper has 1."""


def loss_streams(config: Config, manifest: BlockManifest) -> LossStreams | None:
    """Return the streams of the blocks; None if every target counts the same."""
    # DIFFERS: phf-ray draws the sequences of a step from both streams by `dataset.weights`; CoH takes a batch of each.
    texts = manifest.texts_beside_feedback
    weights, rows_alike = config.dataset.loss_weights, config.compat == "coh"
    if weights is None and not texts and not rows_alike:
        return None
    is_text = [manifest.examples is None or place in texts for place in range(len(manifest.corpora))]
    if weights is None:
        weights = tuple(TEXT_WEIGHT if text and manifest.examples is not None else 1.0 for text in is_text)
    of_corpus = tuple(STREAMS.index(PRETRAINING if text else FEEDBACK) for text in is_text)
    return LossStreams(of_corpus, weights, rows_alike)

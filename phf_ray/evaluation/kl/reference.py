"""Which way a reference gives its texts: from a file, from what is kept, or by asking its server, which may echo."""

import logging
from collections.abc import Sequence

from phf_ray.config import KLConfig
from phf_ray.evaluation.arms import Arm, check_arm, described
from phf_ray.evaluation.kl.arms import check_kl
from phf_ray.evaluation.kl.ask_drawn import Drawing, api_of, draw_samples, kept_samples
from phf_ray.evaluation.kl.sample_file import ReferenceSamples
from phf_ray.evaluation.kl.sequence_scorer import SequenceScorer

log = logging.getLogger(__name__)

Reference = Arm | ReferenceSamples
"""A model to ask, or texts that one drew before."""


def check_reference(reference: Reference, arms: Sequence[Arm], settings: KLConfig, *, cache: str) -> None:
    """Raise ConfigError if the reference or an arm can't be asked for log-probabilities."""
    if isinstance(reference, Arm) and kept_samples(reference, _drawing(settings), cache=cache) is None:
        check_arm(reference)
        if api_of(reference) is None:
            check_kl(described(reference, check_arm(reference)), arms)
            return
    for arm in arms:
        SequenceScorer(arm).check()


def is_kept(reference: Arm, settings: KLConfig, *, cache: str) -> bool:
    """Whether `cache` has the texts of a server, which then is not asked for anything."""
    return kept_samples(reference, _drawing(settings), cache=cache) is not None


def reference_samples(reference: Reference, settings: KLConfig, *, cache: str) -> ReferenceSamples | None:
    """Return texts with the reference's own log-probabilities, drawn now if need be.

    None: the reference gives log-probabilities of any text, so those of `reference_texts` are measured in the same way
    for both models.
    """
    if isinstance(reference, ReferenceSamples):
        if len(reference.texts) < settings.num_samples:
            log.warning(
                "kl_gpt3_callback.num_samples is %d, but there are %d texts of %s: the KL uses all of them",
                settings.num_samples,
                len(reference.texts),
                reference.reference,
            )
        return reference.first(settings.num_samples)
    kept = kept_samples(reference, _drawing(settings), cache=cache)
    if kept is not None:
        return kept
    check_arm(reference)
    api = api_of(reference)
    return None if api is None else draw_samples(reference, api, _drawing(settings), cache=cache)


def _drawing(settings: KLConfig) -> Drawing:
    return Drawing(settings.num_samples, settings.max_tokens, settings.reference_prompt)

"""Measures the KL of every arm from the reference, and keeps the results so that nothing is measured twice."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from phf_ray.checkpoint import CheckpointInfo
from phf_ray.config import Config
from phf_ray.errors import ConfigError
from phf_ray.evaluation.arms import Arm, check_arm, described
from phf_ray.evaluation.kl.estimate import KL
from phf_ray.evaluation.kl.measure import measure_kl
from phf_ray.evaluation.kl.measure_drawn import measure_drawn
from phf_ray.evaluation.kl.sample_file import ReferenceSamples
from phf_ray.evaluation.kl.sequence_scorer import SequenceScorer
from phf_ray.evaluation.kl.texts import facts_of, read_kept, reference_texts
from phf_ray.evaluation.report.records import KLInfo
from phf_ray.storage.files import write_file
from phf_ray.storage.hashing import digest

log = logging.getLogger(__name__)


def has_control_per_line(info: CheckpointInfo | None, config: Config) -> bool:
    """Whether the model was trained with a control token before every line. If so, its texts get one there too."""
    if info is None or info.control is None:
        return False
    per_line = info.has_control_per_segment and config.scoring.segmenter == "lines"
    return per_line or config.kl_gpt3_callback.should_insert_prefix


def with_prefix(arm: Arm, prefix: str | None) -> Arm:
    """Return the arm with the control token whose text is `prefix` (`kl_gpt3_callback.prefix`); unchanged if None."""
    if prefix is None:
        return arm
    own = None if arm.checkpoint is None else arm.checkpoint.control
    if own is None or prefix not in (own.good, own.bad):
        tokens = "no control tokens" if own is None else f"the control tokens {own.good} and {own.bad}"
        raise ConfigError(
            f"kl_gpt3_callback.prefix: {prefix!r}, but {arm.name} has {tokens}; give a control token that every model "
            "has, or null for the one that each is sampled with"
        )
    return replace(arm, control="good" if prefix == own.good else "bad")


def check_kl(reference: Arm, arms: Sequence[Arm]) -> None:
    """Raise ConfigError if the reference or an arm can't be asked for log-probabilities."""
    for arm in (reference, *arms):
        SequenceScorer(arm).check()


def kl_of_arms(
    reference: Arm, arms: Sequence[Arm], *, num_samples: int, max_tokens: int, cache: str, per_line: Sequence[str] = ()
) -> dict[str, KLInfo]:
    """Return KL(reference || arm) by arm, on the same texts. `cache` keeps the results for the next call.

    `per_line`: names of the arms (and of the reference) that were trained with a control token before every line.
    """
    reference, *arms = (described(arm, check_arm(arm)) for arm in (reference, *arms))
    check_kl(reference, arms)
    texts = reference_texts(reference, num_samples=num_samples, max_tokens=max_tokens, cache=cache)

    def measure(arm: Arm) -> KLInfo:
        kl = measure_kl(
            reference,
            arm,
            texts,
            control_per_line=arm.name in per_line,
            reference_per_line=reference.name in per_line,
            cache=cache,
        )
        return kl_info(kl, reference=reference.name)

    facts = {"texts": [asdict(text) for text in texts], "reference": facts_of(reference)}
    found = {}
    for arm in arms:
        own = facts | {"arm": facts_of(arm), "per_line": [reference.name in per_line, arm.name in per_line]}
        found[arm.name] = _once(partial(measure, arm), arm, facts=own, cache=cache)
    return found


def kl_on_samples(
    samples: ReferenceSamples, arms: Sequence[Arm], *, cache: str, per_line: Sequence[str] = ()
) -> dict[str, KLInfo]:
    """Return KL(reference || arm) by arm, on texts that came with the reference's log-probabilities."""
    arms = [described(arm, check_arm(arm)) for arm in arms]
    found = {}
    for arm in arms:
        facts = {"samples": asdict(samples), "arm": facts_of(arm), "per_line": arm.name in per_line}
        measure = partial(info_on_samples, samples, arm, control_per_line=arm.name in per_line)
        found[arm.name] = _once(measure, arm, facts=facts, cache=cache)
    return found


def info_on_samples(samples: ReferenceSamples, arm: Arm, *, control_per_line: bool) -> KLInfo:
    measured = measure_drawn(samples, arm, control_per_line=control_per_line)
    return kl_info(measured.kl, reference=samples.reference).model_copy(
        update={"failures": dict(measured.failures), "note": measured.note, "is_openai": samples.is_openai}
    )


def kl_info(kl: KL, *, reference: str) -> KLInfo:
    return KLInfo(
        reference=reference,
        num_samples=kl.num_samples,
        num_impossible=kl.num_impossible,
        per_sequence=(kl.per_sequence.mean, kl.per_sequence.standard_error),
        per_token=None if kl.per_token is None else (kl.per_token.mean, kl.per_token.standard_error),
        per_byte=(kl.per_byte.mean, kl.per_byte.standard_error),
    )


def _once(measure: Callable[[], KLInfo], arm: Arm, *, facts: Mapping[str, Any], cache: str) -> KLInfo:
    """Return what `cache` keeps under the facts, or else measure and keep it."""
    path = f"{cache}/kl-{digest(facts, size=16)}.json"
    content = read_kept(path)
    if content is None:
        info = measure()
        write_file(path, (info.model_dump_json() + "\n").encode())
    else:
        info = KLInfo.model_validate_json(content)
    log.info("KL(%s || %s): %.4f +- %.4f nats per byte", info.reference, arm.name, *info.per_byte)
    return info

"""Maps a new scorer's scores onto an old scorer's scale, by isotonic regression on texts that both have scored.

Higher is worse for both scorers, so the mapping never falls. It keeps the order of the new scores and can't improve it.
`CalibrationQuality` says how well the two scorers agree; a threshold carries over only as well as they agree.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from phf_ray.errors import DataError
from phf_ray.measures.agreement import auc, spearman
from phf_ray.measures.numbers import Floats

NUM_FOLDS = 5


class _Figures(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CalibrationQuality(_Figures):
    spearman: float | None
    """Rank correlation of new and old scores; None if either is constant."""
    auc: float | None
    """Probability that the new score is higher for a text at or above the old threshold than for a text below it; None
    if all texts are on one side."""
    mae_before: float
    """Mean |new - old|."""
    mae_after: float
    """Mean |calibrated - old|. Each text is mapped by a calibration that was fitted without it."""


class MappedThreshold(_Figures):
    old: float
    mapped: float | None
    """The lowest new score whose calibrated score reaches the old threshold; None if no score does."""
    same_share: float | None
    """The new threshold that the same share of texts reaches, or nearly the same if many texts share one score. None if
    no text reaches the old threshold."""
    share_old: float
    """Share of texts that reach the old threshold."""
    share_new: float | None
    """Share of texts that reach `same_share`."""
    agreement: float | None
    """Share of texts on the same side of both thresholds, the old one and `same_share`."""


class Calibration(_Figures):
    kind: Literal["isotonic"] = "isotonic"
    new: tuple[float, ...]
    old: tuple[float, ...]
    """Knots: `new` rises and `old` does not fall. The mapping is linear between knots and constant outside them."""
    num_pairs: int
    quality: CalibrationQuality
    threshold: MappedThreshold
    scorer: dict[str, Any] | None = None
    """Identity of the new scorer; None if unknown."""

    @field_validator("old")
    @classmethod
    def _monotone(cls, old: tuple[float, ...], info: Any) -> tuple[float, ...]:
        new = info.data.get("new", ())
        if not new or len(new) != len(old) or np.any(np.diff(new) <= 0) or np.any(np.diff(old) < 0):
            raise ValueError("`new` must rise, `old` must not fall, and both must be equally long and not empty")
        return old

    def __call__(self, scores: ArrayLike) -> Floats:
        """Map the new scorer's scores to the old scale, in the same shape."""
        return np.interp(np.asarray(scores, dtype=np.float64), self.new, self.old)


def parse_calibration(text: str, *, source: str) -> Calibration:
    """Read the JSON that `Calibration.model_dump_json` writes. Raises DataError for any other text."""
    try:
        return Calibration.model_validate_json(text)
    except ValidationError as error:
        detail = error.errors()[0]
        place = ".".join(map(str, detail["loc"])) or "the file"
        raise DataError(
            f"{source} is not a calibration ({place}: {detail['msg']}); write one with jobs.calibrate"
        ) from None


def calibrate(
    new: ArrayLike, old: ArrayLike, *, threshold: float, seed: int = 0, scorer: dict[str, Any] | None = None
) -> Calibration:
    """Fit a calibration to `new` and `old`, scores of the same texts, shape (N,). `seed` decides the folds.

    Raises DataError if there are fewer than 2 texts per fold of the cross-validation, or if a score is not finite.
    """
    new_N, old_N = np.asarray(new, dtype=np.float64), np.asarray(old, dtype=np.float64)
    if len(new_N) != len(old_N) or not (np.isfinite(new_N).all() and np.isfinite(old_N).all()):
        raise DataError("every text needs a finite new score and a finite old score; remove texts without")
    if len(new_N) < 2 * NUM_FOLDS:
        raise DataError(f"{len(new_N)} pairs of scores are too few; give at least {2 * NUM_FOLDS}, ideally thousands")
    knots_new, knots_old = isotonic(new_N, old_N)
    return Calibration(
        new=tuple(knots_new.tolist()),
        old=tuple(knots_old.tolist()),
        num_pairs=len(new_N),
        quality=CalibrationQuality(
            spearman=spearman(new_N, old_N),
            auc=auc(new_N, old_N >= threshold),
            mae_before=float(np.abs(new_N - old_N).mean()),
            mae_after=float(np.abs(_held_out(new_N, old_N, seed=seed) - old_N).mean()),
        ),
        threshold=_threshold(new_N, old_N, knots=(knots_new, knots_old), old=threshold),
        scorer=scorer,
    )


def isotonic(new_N: Floats, old_N: Floats) -> tuple[Floats, Floats]:
    """Return the knots of the non-decreasing function of `new` with the least squared distance from `old`.

    Texts with the same new score become one point with their mean old score. If the function is constant over a range,
    only the range's first and last new scores are knots.
    """
    # Every training worker loads this file, and sklearn takes seconds.
    from sklearn.isotonic import IsotonicRegression

    fitted = IsotonicRegression().fit(new_N, old_N)
    return fitted.X_thresholds_, fitted.y_thresholds_


def calibration_error(confidence_sums: ArrayLike, right_sums: ArrayLike, *, num_judged: float) -> float | None:
    """Return the expected calibration error: the mean over judgements of |confidence - share that is right| of a bin.

    The sums are over the judgements of each bin of confidence, shape (bins,): of the probability that the judge gave
    its own answer, and of 1 where it was right. None if there are no judgements.
    """
    if not num_judged:
        return None
    gaps = np.asarray(confidence_sums, dtype=np.float64) - np.asarray(right_sums, dtype=np.float64)
    return float(np.abs(gaps).sum() / num_judged)


def _held_out(new_N: Floats, old_N: Floats, *, seed: int) -> Floats:
    """Return calibrated scores; each fold is mapped by knots fitted to the other folds."""
    fold_N = np.random.default_rng(seed).permutation(len(new_N)) % NUM_FOLDS
    mapped_N = np.empty_like(new_N)
    for fold in range(NUM_FOLDS):
        held_N = fold_N == fold
        mapped_N[held_N] = np.interp(new_N[held_N], *isotonic(new_N[~held_N], old_N[~held_N]))
    return mapped_N


def _threshold(new_N: Floats, old_N: Floats, *, knots: tuple[Floats, Floats], old: float) -> MappedThreshold:
    is_above_N = old_N >= old
    if not is_above_N.any():
        return MappedThreshold(
            old=old, mapped=first_at(*knots, old), same_share=None, share_old=0.0, share_new=None, agreement=None
        )
    values, counts = np.unique(new_N, return_counts=True)
    num_reaching = np.cumsum(counts[::-1])[::-1]
    same_share = float(values[np.argmin(np.abs(num_reaching - is_above_N.sum()))])
    return MappedThreshold(
        old=old,
        mapped=first_at(*knots, old),
        same_share=same_share,
        share_old=float(is_above_N.mean()),
        share_new=float((new_N >= same_share).mean()),
        agreement=float(((new_N >= same_share) == is_above_N).mean()),
    )


def first_at(new: Floats, old: Floats, value: float) -> float | None:
    """Return the lowest new score that the knots map to `value` or more; None if there is none."""
    above = int(np.searchsorted(old, value))
    if above == len(old):
        return None
    if above == 0:
        return float(new[0])
    share = (value - old[above - 1]) / (old[above] - old[above - 1])
    return float(new[above - 1] + share * (new[above] - new[above - 1]))

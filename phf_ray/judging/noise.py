"""Label noise as AlpacaFarm draws it: a share of the labels is a coin flip that no judge is asked about."""

from phf_ray.errors import ConfigError
from phf_ray.judging.draws import draw_fraction
from phf_ray.judging.pairs import Pair, Preference


def check_noise(p_label_flip: float | None) -> float:
    """Return the probability, 0 for None. Raises ConfigError outside 0..0.5."""
    p = 0.0 if p_label_flip is None else p_label_flip
    if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 0.5:
        raise ConfigError(
            f"p_label_flip {p_label_flip!r}: write a share of wrong labels from 0 to 0.5; at 0.5 every label is drawn"
        )
    return float(p)


def noisy_preference(pair: Pair, *, p_label_flip: float, seed: int) -> Preference | None:
    """Return 1 or 2 with probability p each, whoever is better; None, with 1 - 2 p: ask the judge.

    Half of the labels that are drawn are right by chance, so p of all labels end wrong.
    """
    drawn = draw_fraction("noise", seed, pair.key)
    if drawn < p_label_flip:
        return 1.0
    return 2.0 if drawn < 2 * p_label_flip else None

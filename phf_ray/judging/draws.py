"""Draws that depend on what is drawn for and on nothing else: not on the order of rows, a partition or a process."""

from phf_ray.storage.hashing import digest


def draw_fraction(purpose: str, seed: int, *texts: str) -> float:
    """Return a number in [0, 1), uniform over different texts. Purposes are independent of each other."""
    return int(digest([purpose, seed, *texts], size=6), 16) / (1 << 48)


def draw_index(num: int, purpose: str, seed: int, *texts: str) -> int:
    """Return a number in 0..num - 1."""
    return int(draw_fraction(purpose, seed, *texts) * num)


def draw_permutation(num: int, purpose: str, seed: int, *texts: str) -> list[int]:
    return sorted(range(num), key=lambda i: (draw_fraction(purpose, seed, *texts, str(i)), i))

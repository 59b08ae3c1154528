"""Draws that depend on what is drawn for and on nothing else: not on the order of rows, a partition or a process."""

import hashlib


def hash_of_texts(*texts: str) -> bytes:
    """Return 16 bytes that are the same for the same texts, in every process."""
    # A data set may hold halves of surrogate pairs. The length keeps ("ab", "c") and ("a", "bc") apart.
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return hashlib.blake2b(b"".join(len(one).to_bytes(8, "big") + one for one in encoded), digest_size=16).digest()


def draw_fraction(purpose: str, seed: int, *texts: str) -> float:
    """Return a number in [0, 1), uniform over different texts. Purposes are independent of each other."""
    return int.from_bytes(hash_of_texts(purpose, str(seed), *texts)[:6], "big") / (1 << 48)


def draw_index(num: int, purpose: str, seed: int, *texts: str) -> int:
    """Return a number in 0..num - 1."""
    return int(draw_fraction(purpose, seed, *texts) * num)


def draw_permutation(num: int, purpose: str, seed: int, *texts: str) -> list[int]:
    return sorted(range(num), key=lambda i: (draw_fraction(purpose, seed, *texts, str(i)), i))

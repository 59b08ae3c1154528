"""Finds the Pareto front of two figures that should both be low."""

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[str, float, float]]) -> list[str]:
    """Return names of the (name, x, y) for which no other point is lower in one figure and not higher in the other."""

    def is_beaten(mine: tuple[str, float, float]) -> bool:
        return any(theirs[1] <= mine[1] and theirs[2] <= mine[2] and theirs[1:] != mine[1:] for theirs in points)

    return [point[0] for point in points if not is_beaten(point)]

"""Ratings against evalica's, on drawn battles: the same strengths and the same Elo, ties included."""

import math
import random

import evalica
import numpy as np
import pytest

from phf_ray.measures import bradley_terry, elo

MODELS = "abcdef"
WINNERS = {"a": evalica.Winner.X, "b": evalica.Winner.Y, "tie": evalica.Winner.Draw}


def battles_of(seed: int, num: int = 400) -> list[tuple[str, str, str]]:
    """Battles in which the later letter is the stronger, and every model wins some."""
    drawn = random.Random(seed)
    found = []
    for _ in range(num):
        first, second = drawn.sample(range(len(MODELS)), 2)
        wins = 1 / (1 + math.exp((second - first) / 3))
        winner = "tie" if drawn.random() < 0.15 else "a" if drawn.random() < wins else "b"
        found.append((MODELS[first], MODELS[second], winner))
    return found


def columns(battles: list[tuple[str, str, str]]) -> tuple[list[str], list[str], list[evalica.Winner]]:
    xs, ys, winners = zip(*battles, strict=True)
    return list(xs), list(ys), [WINNERS[winner] for winner in winners]


@pytest.mark.parametrize("seed", range(3))
def test_bradley_terry(seed):
    battles = battles_of(seed)
    wins, ties = (np.zeros((len(MODELS), len(MODELS))) for _ in range(2))
    for first, second, winner in battles:
        one, other = MODELS.index(first), MODELS.index(second)
        if winner == "tie":
            ties[one, other] += 1
            ties[other, one] += 1
        else:
            wins[(one, other) if winner == "a" else (other, one)] += 1
    theirs = evalica.bradley_terry(*columns(battles), tolerance=1e-13, limit=10_000).scores
    logs = np.log([theirs[name] for name in MODELS])
    assert bradley_terry(wins, ties) == pytest.approx(logs - logs.mean(), abs=1e-7)
    assert np.ptp(logs) > 1, "models that differ"


@pytest.mark.parametrize("settings", [{}, {"k": 32.0, "initial": 0.0, "scale": 100.0}])
def test_elo(settings):
    battles = battles_of(7)
    theirs = evalica.elo(*columns(battles), **settings).scores
    ours = elo(battles, **settings)
    assert ours == pytest.approx({name: theirs[name] for name in MODELS}, abs=1e-8)
    assert max(ours.values()) - min(ours.values()) > 10

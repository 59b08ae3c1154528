"""Losses of pairs: numbers worked out by hand, and slopes against autograd of the papers' formulas."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives.pairs import LOSS_TYPES, preference_loss

LENGTHS = {"chosen_lengths": [5], "rejected_lengths": [4]}


@pytest.mark.parametrize(
    ("loss_type", "settings", "expected"),
    [
        ("sigmoid", {}, 0.513015),
        ("sigmoid", {"label_smoothing": 0.1}, 0.553015),
        ("hinge", {}, 0.6),
        ("ipo_sum", {}, 1.0),
        ("ipo", LENGTHS, 16.81),
        ("apo_zero", {}, 0.900332),
    ],
)
def test_numbers_at_two_and_minus_two(loss_type, settings, expected):
    assert preference_loss(loss_type, [2.0], [-2.0], **settings).loss == pytest.approx([expected], abs=5e-7)


@pytest.mark.parametrize(
    ("loss_type", "settings", "expected"),
    [
        ("sigmoid", {}, np.log(2)),
        ("sigmoid", {"label_smoothing": 0.1}, np.log(2)),
        ("robust", {"label_smoothing": 0.1}, np.log(2)),
        ("hinge", {}, 1.0),
        ("apo_zero", {}, 1.0),
        ("nca_pair", {}, 2 * np.log(2)),
        ("bco_pair", {}, 2 * np.log(2)),
        ("ipo", LENGTHS, 25.0),
        ("sppo_hard", {}, 50.0),
    ],
)
def test_numbers_at_the_start_of_training(loss_type, settings, expected):
    assert preference_loss(loss_type, [0.0], [0.0], **settings).loss == pytest.approx([expected], rel=1e-12)


def test_the_slope_of_dpo_is_minus_beta_times_the_doubt():
    out = preference_loss("sigmoid", [2.0], [-2.0])
    assert out.chosen_slope == pytest.approx([-0.0401312], abs=5e-8)
    assert out.rejected_slope == pytest.approx([0.0401312], abs=5e-8)


def formula(loss_type, c, r, beta, e, lengths):
    m = beta * (c - r)
    log_win, log_lose = F.logsigmoid(m), F.logsigmoid(-m)
    return {
        "sigmoid": lambda: -(1 - e) * log_win - e * log_lose,
        "robust": lambda: (-(1 - e) * log_win + e * log_lose) / (1 - 2 * e),
        "hinge": lambda: torch.relu(1 - m),
        "ipo": lambda: (c / lengths[0] - r / lengths[1] - 1 / (2 * beta)) ** 2,
        "ipo_sum": lambda: (c - r - 1 / (2 * beta)) ** 2,
        "exo_pair": lambda: log_win.exp() * (log_win - np.log(1 - e)) + log_lose.exp() * (log_lose - np.log(e)),
        "nca_pair": lambda: -F.logsigmoid(beta * c) - (F.logsigmoid(-beta * c) + F.logsigmoid(-beta * r)) / 2,
        "bco_pair": lambda: -F.logsigmoid(beta * c) - F.logsigmoid(-beta * r),
        "sppo_hard": lambda: (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2,
        "apo_zero": lambda: 1 - torch.sigmoid(beta * c) + torch.sigmoid(beta * r),
        "apo_down": lambda: torch.sigmoid(beta * c) + 1 - torch.sigmoid(m),
    }[loss_type]()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_slopes_are_those_of_the_formula(loss_type, smoothing):
    if loss_type == "exo_pair" and smoothing == 0:
        return
    generator = np.random.default_rng(3)
    chosen, rejected = (8 * generator.standard_normal((2, 50))).round(3)
    lengths = generator.integers(1, 20, (2, 50))
    out = preference_loss(
        loss_type,
        chosen,
        rejected,
        beta=0.3,
        label_smoothing=smoothing,
        chosen_lengths=lengths[0],
        rejected_lengths=lengths[1],
    )
    c, r = (torch.tensor(values, requires_grad=True) for values in (chosen, rejected))
    expected = formula(loss_type, c, r, 0.3, smoothing, torch.tensor(lengths))
    slopes = torch.autograd.grad(expected.sum(), (c, r), allow_unused=True)
    assert out.loss == pytest.approx(expected.detach().numpy(), rel=1e-10, abs=1e-12)
    for slope, wanted in zip((out.chosen_slope, out.rejected_slope), slopes, strict=True):
        assert slope == pytest.approx(wanted.numpy(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("loss_type", [name for name in LOSS_TYPES if name not in ("ipo", "ipo_sum", "sppo_hard")])
def test_answers_far_from_the_reference_have_finite_numbers(loss_type):
    far = [2e4, -2e4, 0.0]
    out = preference_loss(loss_type, far, far[::-1], label_smoothing=0.01)
    assert np.isfinite(out).all()


@pytest.mark.parametrize(
    ("arguments", "settings", "error", "says"),
    [
        (("aot", [0.0], [0.0]), {}, ConfigError, "aot sorts the answers of a batch"),
        (("dpo", [0.0], [0.0]), {}, ConfigError, "'dpo' is unknown; known are sigmoid"),
        (("exo_pair", [0.0], [0.0]), {}, ConfigError, "infinite at label_smoothing: 0"),
        (("robust", [0.0], [0.0]), {"label_smoothing": 0.5}, ConfigError, "label_smoothing: 0.5"),
        (("sigmoid", [0.0], [0.0]), {"beta": 0}, ConfigError, "beta: 0"),
        (("sigmoid", [0.0, 1.0], [0.0]), {}, DataError, "2 chosen and 1 rejected"),
        (("sigmoid", [[0.0]], [[0.0]]), {}, DataError, r"shape \(1, 1\)"),
        (("ipo", [0.0], [0.0]), {}, ConfigError, "ipo needs chosen_lengths"),
        (("ipo", [0.0], [0.0]), {"chosen_lengths": [0], "rejected_lengths": [1]}, DataError, "at least 1 token"),
    ],
)
def test_what_is_no_loss_of_pairs_is_named(arguments, settings, error, says):
    with pytest.raises(error, match=says):
        preference_loss(*arguments, **settings)


def test_it_loads_no_torch():
    code = (
        "import sys; from phf_ray.objectives import preference_loss; preference_loss('sigmoid', [0], [0]); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

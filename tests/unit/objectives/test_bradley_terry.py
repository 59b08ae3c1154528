"""The loss of a reward model: known numbers, where a reward is read, and figures over micro-batches."""

import numpy as np
import pytest
import torch

from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.statistics import combine
from phf_ray.records import MARGIN, TokenKind

START, GIVEN, CONTENT, PAD = (int(TokenKind[name]) for name in ("END_OF_TEXT", "GIVEN", "PLAIN", "PAD"))
END_ID, PAD_ID = 1, 0


def make_batch(pairs, *, length=24):
    """One block per list of answers (tokens given, tokens learned, reward). All but the right token has reward 99."""
    kinds = np.full((len(pairs), length), PAD, np.uint8)
    ids = np.full(kinds.shape, PAD_ID)
    rewards = torch.full(kinds.shape, 99.0, dtype=torch.float64)
    for block, answers in enumerate(pairs):
        place = 0
        for given, learned, reward in answers:
            end = place + 1 + given + learned
            kinds[block, place:end] = [START, *[GIVEN] * given, *[CONTENT] * learned]
            ids[block, place:end] = [END_ID, *[5] * (given + learned - 1), END_ID]
            rewards[block, end - 1] = reward
            place = end
    return {
        "rewards_BS": rewards.requires_grad_(),
        "input_ids_BS": torch.from_numpy(ids),
        "token_kinds_BS": torch.from_numpy(kinds),
        "pad_id": PAD_ID,
    }


def figures_of(batch, **settings):
    objective = build_objective({"name": "BradleyTerry", **settings})
    out = objective(**batch)
    return out, objective.summarize(out.metrics)


@pytest.mark.parametrize(
    ("settings", "loss"),
    [
        ({}, 0.313262),
        ({"margin": 0.5}, 0.474077),
        ({"label_smoothing": 0.1}, 0.9 * 0.313262 + 0.1 * 1.313262),
        ({"label_smoothing": 0.1, "margin": 0.5}, 0.9 * 0.474077 + 0.1 * 1.701413),
        ({"centring": 0.01}, 0.313262 + 0.01 * 9),
    ],
)
def test_known_numbers(settings, loss):
    out, figures = figures_of(make_batch([[(2, 3, 2.0), (2, 1, 1.0)]]), **settings)
    assert (out.num_targets.item(), out.loss.item()) == (1, pytest.approx(loss, abs=1e-6))
    assert figures["loss"] == pytest.approx(loss, abs=1e-6)
    assert (figures["accuracy"], figures["margin"]) == (1, 1)


def test_a_pair_may_have_a_margin_of_its_own():
    batch = make_batch([[(2, 3, 2.0), (2, 1, 1.0)], [(1, 3, 1.5), (2, 1, 1.0)]])
    margins = torch.zeros(batch["rewards_BS"].shape)
    margins[0, :10], margins[1, :10] = 0.5, -0.25
    out, _ = figures_of(batch | {"channels_BS": {MARGIN: margins}}, margin="column")
    assert out.loss.item() == pytest.approx(0.474077 + np.log1p(np.exp(-0.75)), abs=1e-6)
    with pytest.raises(DataError, match="PairwiseReward reads margin of each token, which these blocks lack"):
        figures_of(batch, margin="preference")


def test_only_the_last_token_of_each_row_gets_a_gradient():
    batch = make_batch([[(2, 3, 2.0), (1, 1, 1.0)]])
    figures_of(batch)[0].loss.backward()
    gradient = batch["rewards_BS"].grad[0]
    assert gradient.nonzero().flatten().tolist() == [5, 8]
    assert gradient[5] == -gradient[8] == pytest.approx(-0.268941, abs=1e-6)


def test_with_the_end_of_text_as_padding_the_last_token_before_it_is_read():
    batch = make_batch([[(2, 3, 99.0), (1, 2, 99.0)]])
    with torch.no_grad():
        batch["rewards_BS"][0, 4], batch["rewards_BS"][0, 8] = 2.0, 1.0
    out, _ = figures_of(batch | {"pad_id": END_ID})
    assert out.loss.item() == pytest.approx(0.313262, abs=1e-6)


def test_a_completion_that_was_cut_is_read_at_its_last_token():
    batch = make_batch([[(2, 3, 2.0), (1, 2, 1.0)]])
    batch["input_ids_BS"][0, 5] = 7
    for pad_id, loss in ((PAD_ID, 0.313262), (None, 0.313262)):
        assert figures_of(batch | {"pad_id": pad_id})[0].loss.item() == pytest.approx(loss, abs=1e-6)


PAIRS = [
    [(1, 4, 3.0), (1, 2, 1.0)],  # longer, right
    [(1, 4, 0.0), (1, 2, 1.0)],  # longer, wrong
    [(1, 2, 0.5), (1, 4, 0.0)],  # shorter, right
    [(1, 2, 2.0), (1, 2, 4.0)],  # as long, wrong
    [(1, 1, 1.0), (1, 2, 0.9)],  # shorter, right
]


def test_figures_do_not_depend_on_how_pairs_are_dealt():
    objective = build_objective({"name": "BradleyTerry"})
    dealt = [PAIRS[:2], PAIRS[2:3], PAIRS[3:]]
    totals = {}
    for blocks in dealt:
        totals = combine(totals, objective(**make_batch(blocks)).metrics)
    totals = combine(totals, objective(**padding()).metrics)
    _, whole = figures_of(make_batch(PAIRS))
    assert objective.summarize(totals) == pytest.approx(whole)
    differences = np.array([2.0, -1.0, 0.5, -2.0, 0.1])
    confidences = 1 / (1 + np.exp(-abs(differences)))
    # Bins of width .05: .88 twice (one right, one wrong), .73 wrong, .62 right, .52 right.
    error = (abs(2 * confidences[0] - 1) + confidences[1] + (1 - confidences[2]) + (1 - confidences[4])) / 5
    assert whole == pytest.approx(
        {
            "loss": np.log1p(np.exp(-differences)).mean(),
            "accuracy": 0.6,
            "margin": differences.mean(),
            "mean_reward": 1.34,
            "min_reward": 0.0,
            "max_reward": 4.0,
            "calibration_error": error,
            "accuracy_chosen_longer": 0.5,
            "accuracy_chosen_shorter": 1.0,
            "accuracy_of_longer": 0.5,
        }
    )


def padding():
    batch = make_batch([[(1, 2, 1.0), (1, 2, 1.0)]])
    return batch | {"token_kinds_BS": torch.full_like(batch["token_kinds_BS"], PAD)}


def test_padding_has_no_pair_and_a_gradient_of_zero():
    batch = padding()
    out, figures = figures_of(batch)
    out.loss.backward()
    assert (out.loss.item(), out.num_targets.item(), batch["rewards_BS"].grad.abs().max().item()) == (0, 0, 0)
    assert np.isnan([figures["loss"], figures["accuracy"], figures["calibration_error"], figures["min_reward"]]).all()


def test_answers_without_a_partner_and_a_model_without_rewards_are_refused():
    with pytest.raises(DataError, match="3 answers in a micro-batch can't be pairs"):
        figures_of(make_batch([[(1, 1, 1.0), (1, 1, 0.0), (1, 1, 0.0)]]))
    batch = make_batch(PAIRS)
    del batch["rewards_BS"]
    with pytest.raises(ConfigError, match="needs a reward model"):
        figures_of(batch)

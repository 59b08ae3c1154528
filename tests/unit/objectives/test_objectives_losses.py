"""The six objectives against a worked example, their invariants, and the original's own losses and gradients."""

import bisect
import json
import math

import places
import pytest
import torch

from phf_ray.config import Quantile, UnlikelihoodConfig
from phf_ray.errors import ConfigError
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.statistics import NUM_BINS, combine, counts_by_bin, weight_edges, weight_places
from phf_ray.records import TokenKind

GOLDEN = json.loads((places.GOLDEN / "objectives.json").read_text())["values"]

VOCABULARY = 5
# x = [EOS, a, b, a, a, b]: segment 1 (a b) scores 0, segment 2 (a a b) scores 0.8.
ROW = [0, 1, 2, 1, 1, 2]
SCORES = [0.0, 0.0, 0.0, 0.8, 0.8, 0.8]
KINDS = [TokenKind.END_OF_TEXT, *[TokenKind.CONTENT] * 5]
PROBABILITIES = [0.5, 0.25, 0.2, 0.1, 0.4]
VALUES = [-0.1, -0.2, -0.3, -0.5, -0.6, -0.9]
# x = [EOS, <good>, a, b, <bad>, a, a, b]
CONDITIONAL_ROW = [0, 3, 1, 2, 4, 1, 1, 2]
CONDITIONAL_KINDS = [TokenKind.END_OF_TEXT, 2, 0, 0, 2, 0, 0, 0]
CONDITIONAL_PROBABILITIES = [0.9, 0.6, 0.3, 0.3, 0.25, 0.15, 0.5]

MLE = {"name": "MLE"}
UL = {"name": "Unlikelihood", "score_threshold": 0.5}
RWR = {"name": "RWR", "beta": 1.0}
AWR = {"name": "AWR", "alpha": 0.5, "beta": 1.0}
ALL = [MLE, UL, {**UL, "score_threshold": None}, RWR, AWR]


def hidden_for(row, probabilities):
    """Hidden states that an identity head turns into logits which give each target its probability."""
    logits = torch.zeros(1, len(row), VOCABULARY, dtype=torch.float64)
    for position, probability in enumerate(probabilities):
        logits[0, position] = math.log((1 - probability) / (VOCABULARY - 1))
        logits[0, position, row[position + 1]] = math.log(probability)
    return logits


def evaluate(config, *, row=ROW, scores=SCORES, kinds=KINDS, probabilities=PROBABILITIES, values=VALUES, **settings):
    objective = build_objective(config, **settings)
    out = objective(
        hidden_BSD=hidden_for(row, probabilities),
        head_VD=torch.eye(VOCABULARY, dtype=torch.float64),
        input_ids_BS=torch.tensor([row]),
        token_scores_BS=torch.tensor([scores]),
        token_kinds_BS=torch.tensor([kinds], dtype=torch.uint8),
        values_BS=torch.tensor([values], dtype=torch.float64) if config["name"] == "AWR" else None,
    )
    return objective, out


def loss_of(config, **inputs):
    _, out = evaluate(config, **inputs)
    return (out.loss / out.num_targets).item()


def conditional(config):
    return loss_of(
        config,
        row=CONDITIONAL_ROW,
        scores=[0.0] * 8,
        kinds=CONDITIONAL_KINDS,
        probabilities=CONDITIONAL_PROBABILITIES,
    )


@pytest.mark.parametrize(
    ("config", "settings", "expected"),
    [
        (MLE, {}, 1.381551),
        ({**UL, "alpha": 1.0}, {}, 0.583754),
        ({**UL, "alpha": 0.5}, {}, 0.499821),
        ({**UL, "score_threshold": None}, {}, 0.743314),
        (RWR, {}, 0.849789),
        ({**RWR, "normalise": "weights"}, {}, 1.269104),
        (RWR, {"compat": "korbak2023"}, 1.401064),
        ({**RWR, "beta": 10.0}, {}, 1.307307),
        ({**RWR, "beta": 10.0, "normalise": "weights"}, {}, 1.370530),
        ({**RWR, "beta": 10.0}, {"compat": "korbak2023"}, 1.374334),
        # Rewards 0, 0, -0.8 x 3: mean -0.48, population standard deviation sqrt(0.48 x 0.32) = 0.391918.
        (
            {**RWR, "reward_norm": "zscore", "normalise": "weights"},
            {"reward_mean": -0.48, "reward_std": 0.391918358845308},
            1.132608,
        ),
        (AWR, {}, 0.632144),
        ({**MLE, "mask_above": 0.5}, {}, 1.039721),
    ],
)
def test_worked_example_to_six_decimals(config, settings, expected):
    assert loss_of(config, **settings) == pytest.approx(expected, abs=5e-7)


def test_worked_example_of_conditional_training_with_and_without_loss_on_control_tokens():
    assert conditional(MLE) == pytest.approx(1.000099, abs=5e-7)
    assert conditional({**MLE, "score_control": False}) == pytest.approx(1.138272, abs=5e-7)


def test_parts_of_awr_and_of_token_masking_are_reported():
    objective, out = evaluate(AWR)
    figures = objective.summarize(out.metrics)
    assert figures["weighted_lm_loss"] == pytest.approx(1.178287, abs=5e-7)
    assert figures["value_loss"] == pytest.approx(0.086000, abs=5e-7)
    assert figures["original_loss"] == figures["lm_loss"] == pytest.approx(1.381551, abs=5e-7)
    assert figures["loss"] == pytest.approx(0.632144, abs=5e-7)
    assert (figures["weights_min"], figures["weights_max"]) == pytest.approx((0.606531, 1.221403), abs=5e-7)
    assert figures["advantage_avg"] == pytest.approx((0.1 + 0.2 - 0.5 - 0.3 - 0.2) / 5)
    assert (figures["value_min"], figures["value_max"]) == pytest.approx((-0.6, -0.1))
    values, rewards = torch.tensor([VALUES[:-1], [-score for score in SCORES[1:]]], dtype=torch.float64)
    assert figures["value_std"] == pytest.approx(values.std(correction=0).item())
    assert figures["value_reward_corr"] == pytest.approx(torch.corrcoef(torch.stack([values, rewards]))[0, 1].item())

    objective, out = evaluate({**MLE, "mask_above": 0.5})
    # Over all targets, as the mask leaves the sum but not the count: 0.415888.
    assert out.loss.item() / out.metrics["sum/num_valid"].item() == pytest.approx(0.415888, abs=5e-7)
    assert objective.summarize(out.metrics)["original_loss"] == pytest.approx(1.381551, abs=5e-7)


def test_terms_of_unlikelihood_add_up_to_its_loss():
    objective, out = evaluate({**UL, "alpha": 0.5})
    figures = objective.summarize(out.metrics)
    assert figures["likelihood_loss"] == pytest.approx(2.079442 / 5, abs=5e-7)
    assert figures["unlikelihood_loss"] == pytest.approx(0.5 * 0.839330 / 5, abs=5e-7)
    assert figures["aligned_token_count"] == 2
    assert figures["avg_token_score"] == pytest.approx(0.48)


# Threshold zero and equality


def test_threshold_zero_is_a_threshold_and_only_compat_takes_it_for_none():
    zero = {**UL, "score_threshold": 0.0}
    soft = {**UL, "score_threshold": None}
    scores = [0.0, 0.0, 0.0, 1e-3, 1e-3, 1e-3]
    assert loss_of(zero, scores=scores) == pytest.approx(0.583754, abs=5e-7)
    assert loss_of(soft, scores=scores) == pytest.approx(1.381551, abs=1e-3)
    assert loss_of(zero, scores=scores, compat="korbak2023") == loss_of(soft, scores=scores, compat="korbak2023")


def test_score_equal_to_the_threshold_is_aligned():
    scores = [0.0, 0.0, 0.0, 0.5, 0.5, 0.5]
    assert loss_of(UL, scores=scores) == pytest.approx(1.381551, abs=5e-7)
    assert loss_of({**MLE, "mask_above": 0.5}, scores=scores) == pytest.approx(1.381551, abs=5e-7)


def test_fixed_value_of_zero_is_a_value_and_only_compat_takes_it_for_none():
    fixed = {**AWR, "fixed_value": 0.0}
    # R - 0: weights as in RWR; half of it, and half of the value loss that the head still has.
    assert loss_of(fixed) == pytest.approx((0.849789 + 0.086) / 2, abs=5e-7)
    assert loss_of(fixed, compat="korbak2023") == pytest.approx(0.632144, abs=5e-7)


# What structural, unscored and padding targets do


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("kind", [TokenKind.END_OF_TEXT, TokenKind.CONTROL])
def test_score_of_a_structural_token_changes_nothing(config, kind):
    kinds = [KINDS[0], 0, 0, kind, 0, 0]
    losses = [loss_of(config, kinds=kinds, scores=[s, 0.0, 0.0, s, 0.8, 0.8]) for s in (0.0, 0.9)]
    assert losses[0] == losses[1]
    # It is scored under compat, whose blocks give it the score of the segment after it.
    losses = [
        loss_of(config, kinds=kinds, scores=[0.0, 0.0, 0.0, s, 0.8, 0.8], compat="korbak2023") for s in (0.0, 0.9)
    ]
    assert (losses[0] == losses[1]) is (config["name"] == "MLE")


def test_structural_targets_are_aligned_of_weight_one_and_without_value_loss():
    kinds = [KINDS[0], 0, 0, TokenKind.END_OF_TEXT, 0, 0]
    likelihoods = [-math.log(p) for p in PROBABILITIES]
    unlikelihoods = [-math.log(1 - p) for p in PROBABILITIES]
    assert loss_of(UL, kinds=kinds) == pytest.approx((sum(likelihoods[:3]) + sum(unlikelihoods[3:])) / 5)
    none_aligned = sum(unlikelihoods[:2]) + likelihoods[2] + sum(unlikelihoods[3:])
    assert loss_of({**UL, "score_threshold": -1.0}, kinds=kinds) == pytest.approx(none_aligned / 5)
    low = math.exp(-0.8)
    assert loss_of(RWR, kinds=kinds) == pytest.approx((sum(likelihoods[:3]) + low * sum(likelihoods[3:])) / 5)
    advantages = [0.1, 0.2, 0.0, -0.3, -0.2]
    weighted = sum(math.exp(a) * nll for a, nll in zip(advantages, likelihoods, strict=True))
    squares = sum(a * a for a in advantages)
    assert loss_of(AWR, kinds=kinds) == pytest.approx((0.5 * weighted + 0.5 * squares) / 5)


@pytest.mark.parametrize("config", ALL)
def test_unscored_targets_have_no_loss_and_no_share_in_the_normaliser(config):
    kinds = [*KINDS[:5], TokenKind.UNSCORED]
    short = {"row": ROW[:5], "scores": SCORES[:5], "kinds": KINDS[:5], "values": VALUES[:5]}
    expected = loss_of(config, **short, probabilities=PROBABILITIES[:4])
    assert loss_of(config, kinds=kinds) == pytest.approx(expected)
    _, out = evaluate(config, kinds=kinds)
    assert out.metrics["sum/num_valid"] == 4
    assert out.metrics["sum/original_loss"].item() == pytest.approx(-sum(map(math.log, PROBABILITIES[:4])))


@pytest.mark.parametrize("config", ALL)
def test_unscored_targets_get_plain_likelihood_on_request(config):
    kinds = [*KINDS[:5], TokenKind.UNSCORED]
    _, without = evaluate(config, kinds=kinds)
    _, out = evaluate(config, kinds=kinds, unscored="mle")
    weight = config.get("alpha", 1.0) if config["name"] == "AWR" else 1.0
    assert (out.loss - without.loss).item() == pytest.approx(-weight * math.log(0.4))
    assert out.num_targets - without.num_targets == 1


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("kind", [TokenKind.PAD, TokenKind.CONTROL])
def test_label_and_score_of_a_masked_target_change_nothing(config, kind):
    config = {**config, "score_control": False}
    kinds = [*KINDS[:5], kind]
    first = loss_of(config, kinds=kinds)
    assert loss_of(config, kinds=kinds, row=[*ROW[:5], 4], scores=[*SCORES[:5], 0.3]) == pytest.approx(first)
    _, out = evaluate(config, kinds=kinds)
    assert out.num_targets == 4
    assert loss_of(config, kinds=kinds, probabilities=[*PROBABILITIES[:4], 1e-9]) == pytest.approx(first)


def test_no_valid_target_gives_loss_zero_and_denominator_zero():
    _, out = evaluate(UL, kinds=[TokenKind.PAD] * 6)
    assert out.loss == 0
    assert out.num_targets == 0


# Limits


def test_objectives_meet_mle_in_their_limits():
    mle = loss_of(MLE)
    assert loss_of({**UL, "score_threshold": 0.8}) == mle
    assert loss_of({**UL, "score_threshold": None}, scores=[0.0] * 6) == mle
    assert loss_of({**AWR, "beta": 1e9, "alpha": 1.0}, compat="korbak2023") == pytest.approx(mle, abs=1e-7)
    assert loss_of({**AWR, "beta": 1e9, "alpha": 0.999999}) == pytest.approx(mle, abs=1e-5)
    assert loss_of({**RWR, "beta": 1e9}) == pytest.approx(mle, abs=1e-7)
    for beta in (0.1, 1.0, 10.0):
        constant = {**RWR, "beta": beta, "normalise": "weights"}
        assert loss_of(constant, scores=[0.7] * 6) == pytest.approx(mle, abs=1e-6)


def test_weights_are_clipped():
    sharp = {**RWR, "beta": 0.01, "clip_weight_max": 2.0}
    # exp((0.3 - 0) / 0.01) is far above 2: two targets of weight 2, three of weight exp(-50).
    settings = {"reward_mean": -0.3, "reward_std": 1.0}
    assert loss_of({**sharp, "reward_norm": "zscore"}, **settings) == pytest.approx(2 * 2.079442 / 5, abs=1e-6)


def test_standardised_awr_measures_the_advantage_in_standard_deviations():
    config = {**AWR, "beta": 2.0, "reward_norm": "zscore"}
    same = {**AWR, "beta": 1.0}
    assert loss_of(config, reward_mean=-0.48, reward_std=0.5) == pytest.approx(loss_of(same))


# Effective sample size


def test_effective_sample_fraction_tells_numerically_plain_objectives_apart():
    weak = {**RWR, "beta": 10.0}
    objective, out = evaluate(weak, scores=[0.0, 0.0, 0.0, 3e-4, 3e-4, 3e-4])
    assert objective.summarize(out.metrics)["effective_sample_fraction"] > 0.99

    objective, out = evaluate({**RWR, "beta": 0.5})
    weights = [1, 1, *[math.exp(-1.6)] * 3]
    expected = sum(weights) ** 2 / sum(weight**2 for weight in weights)
    figures = objective.summarize(out.metrics)
    assert figures["effective_sample_size"] == pytest.approx(expected, abs=1e-6)
    assert figures["effective_sample_fraction"] == pytest.approx(expected / 5, abs=1e-6)
    assert figures["effective_sample_fraction"] < 0.99


# Micro-batches


def blocks(num_rows, *, seed, vocabulary=11, length=9):
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_BSD": torch.randn(num_rows, length, 6, generator=generator, dtype=torch.float64),
        "head_VD": torch.randn(vocabulary, 6, generator=generator, dtype=torch.float64).requires_grad_(),
        "input_ids_BS": torch.randint(vocabulary, (num_rows, length), generator=generator),
        "token_scores_BS": torch.rand(num_rows, length, generator=generator),
        "token_kinds_BS": torch.randint(5, (num_rows, length), generator=generator, dtype=torch.uint8),
        "values_BS": -torch.rand(num_rows, length, generator=generator, dtype=torch.float64),
    }


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("sizes", [[1, 1, 1, 1], [1, 3], [2, 2]])
def test_splitting_a_batch_changes_neither_loss_nor_gradient_nor_figures(config, sizes):
    batch = blocks(4, seed=3)
    objective = build_objective(config)
    whole = objective(**batch)
    (expected,) = torch.autograd.grad(whole.loss / whole.num_targets, batch["head_VD"])

    parts, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        part = {key: value if key == "head_VD" else value[rows] for key, value in batch.items()}
        parts.append(objective(**part))
        start += size
    num_targets = sum(part.num_targets for part in parts)
    (gradient,) = torch.autograd.grad(sum(part.loss for part in parts) / num_targets, batch["head_VD"])
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-14)
    assert sum(part.loss for part in parts).item() == pytest.approx(whole.loss.item(), rel=1e-12)

    totals = parts[0].metrics
    for part in parts[1:]:
        totals = combine(totals, part.metrics)
    assert objective.summarize(totals) == pytest.approx(objective.summarize(whole.metrics), rel=1e-9)


def test_compat_averages_each_micro_batch_for_itself():
    batch = blocks(3, seed=4)
    batch["token_kinds_BS"] = torch.zeros_like(batch["token_kinds_BS"])
    batch["token_kinds_BS"][0, 4:] = TokenKind.PAD
    objective = build_objective(MLE, compat="korbak2023")
    plain = build_objective(MLE)
    rows = [{k: v if k == "head_VD" else v[row : row + 1] for k, v in batch.items()} for row in range(3)]
    outs = [objective(**row) for row in rows]
    means = [(out.loss / out.num_targets).item() for out in (plain(**row) for row in rows)]
    assert [out.loss.item() for out in outs] == pytest.approx(means)
    assert [out.num_targets.item() for out in outs] == [1, 1, 1]
    joint = sum(plain(**row).loss for row in rows) / sum(plain(**row).num_targets for row in rows)
    assert abs(sum(means) / 3 - joint.item()) > 1e-3


# The original


def named(case):
    return f"{case['objective']}-{case['kwargs']}"


def means_the_same_by_default(case):
    """Not so a threshold of zero, a soft mixture, and what is refused without compat (differs.md)."""
    kwargs = case["kwargs"]
    if case["objective"] == "Unlikelihood":
        return bool(kwargs["score_threshold"])
    refused = {"use_value_head", "normalize_advantage", "clip_value"} & kwargs.keys()
    return not refused and kwargs.get("alpha") != 1


SAME_BY_DEFAULT = [case for case in GOLDEN if means_the_same_by_default(case)]


@pytest.mark.parametrize("case", GOLDEN, ids=named)
def test_compat_gives_losses_and_gradients_of_the_original(case):
    assert_original(case, compat="korbak2023")


@pytest.mark.parametrize("case", SAME_BY_DEFAULT, ids=named)
def test_the_default_gives_them_too_where_it_means_the_same(case):
    assert_original(case, compat=None)


def test_each_objective_of_the_original_is_compared_with_the_default():
    """Guard of the test above: AWR with its value head, and with a fixed value that is not zero."""
    compared = [(case["objective"], "fixed_value" in case["kwargs"]) for case in SAME_BY_DEFAULT]
    assert {*compared} == {("MLE", False), ("Unlikelihood", False), ("AWR", False), ("AWR", True)}
    assert len(compared) == 8


def assert_original(case, *, compat):
    logits = torch.tensor(case["logits"]).requires_grad_()
    values = torch.tensor(case["values"]).requires_grad_()
    labels = torch.tensor(case["labels"])
    objective = build_objective({"name": case["objective"], **case["kwargs"]}, compat=compat)
    out = objective(
        hidden_BSD=logits,
        head_VD=torch.eye(logits.shape[-1]),
        input_ids_BS=labels,
        token_scores_BS=torch.tensor(case["token_scores"]),
        token_kinds_BS=torch.zeros_like(labels, dtype=torch.uint8),
        values_BS=values if case["objective"] == "AWR" else None,
    )
    loss = out.loss / out.num_targets
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=2e-6)
    expected = torch.tensor(case["grad_logits"])
    assert torch.allclose(logits.grad, expected, rtol=1e-4, atol=2e-6 * expected.abs().max().item())
    if case["objective"] == "AWR":
        assert torch.allclose(values.grad, torch.tensor(case["grad_values"]), rtol=1e-5, atol=1e-7)


def test_default_differs_from_the_original_where_a_threshold_of_zero_is_meant():
    (case,) = [case for case in GOLDEN if case["kwargs"].get("score_threshold") == 0.0]
    labels = torch.tensor(case["labels"])
    out = build_objective({"name": "Unlikelihood", **case["kwargs"]})(
        hidden_BSD=torch.tensor(case["logits"]),
        head_VD=torch.eye(7),
        input_ids_BS=labels,
        token_scores_BS=torch.tensor(case["token_scores"]),
        token_kinds_BS=torch.zeros_like(labels, dtype=torch.uint8),
    )
    log_p = torch.tensor(case["logits"])[:, :-1].double().log_softmax(-1).gather(2, labels[:, 1:, None]).squeeze(2)
    expected = -0.01 * torch.log1p(-log_p.exp()).mean()  # every score is above zero
    assert (out.loss / out.num_targets).item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(expected.item() - case["loss"]) > 0.5


def test_confident_bad_tokens_are_corrected_and_only_compat_gives_up_on_them():
    gradients = {}
    for compat in (None, "korbak2023"):
        logits = torch.tensor([[[30.0, 0.0, 0.0], [0.0, 0.0, 0.0]]], requires_grad=True)
        objective = build_objective({"name": "Unlikelihood", "score_threshold": 0.5}, compat=compat)
        out = objective(
            hidden_BSD=logits,
            head_VD=torch.eye(3),
            input_ids_BS=torch.zeros(1, 2, dtype=torch.long),
            token_scores_BS=torch.ones(1, 2),
            token_kinds_BS=torch.zeros(1, 2, dtype=torch.uint8),
        )
        out.loss.backward()
        gradients[compat] = (out.loss.item(), logits.grad[0, 0].tolist())
    # u = -log(2 / (e^30 + 2)) = 30 - log 2, and the gradient is 1 for the token, -1/2 for each other.
    assert gradients[None][0] == pytest.approx(30 - math.log(2), rel=1e-6)
    assert gradients[None][1] == pytest.approx([1.0, -0.5, -0.5])
    assert gradients["korbak2023"][0] == pytest.approx(-math.log(1e-20), rel=1e-6)
    assert gradients["korbak2023"][1] == [0.0, 0.0, 0.0]


# Refusals


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "AWR", "alpha": 1.0}, "use name: RWR"),
        ({"name": "AWR", "use_value_head": False}, "compat: korbak2023 only"),
        ({"name": "Unlikelihood"}, "resolve it from the corpus manifest"),
        ({"name": "MLE", "mask_above": {"quantile": 0.3}}, "quantile 0.3"),
        ({"name": "RWR", "reward_norm": "zscore"}, "reward_mean and reward_std"),
        ({"name": "PPO"}, "PPO"),
        ({"name": "RWR", "beta": 0.0}, "greater than 0"),
    ],
)
def test_what_can_not_be_meant_is_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        build_objective(config)


def test_equal_scores_can_not_be_standardised():
    with pytest.raises(ConfigError, match="use reward_norm: none"):
        build_objective({"name": "RWR", "reward_norm": "zscore"}, reward_mean=0.0, reward_std=0.0)


def test_awr_without_values_says_what_to_set():
    with pytest.raises(ConfigError, match="value_head_config or fixed_value"):
        build_objective(AWR)(**{**blocks(1, seed=0), "values_BS": None})


def test_a_config_section_builds_the_same_objective_as_its_mapping():
    section = UnlikelihoodConfig(name="Unlikelihood", score_threshold=0.5, alpha=0.5)
    batch = blocks(2, seed=1)
    expected = build_objective({**UL, "alpha": 0.5})(**batch).loss
    assert build_objective(section)(**batch).loss == expected
    with pytest.raises(ConfigError, match="quantile"):
        build_objective(section.model_copy(update={"score_threshold": Quantile(quantile=0.5)}))


# --- Distributions ----------------------------------------------------------------------------------------------------


def test_weights_are_counted_finely_near_one_and_coarsely_far_from_it():
    weights = torch.tensor([1.0, 1.01, 0.99, 0.3, 1e-6, 1000.0, 5.0])
    counted = torch.tensor([True] * 6 + [False])
    counts = counts_by_bin(weight_places(weights, largest=1000.0), counted_N=counted)
    edges = weight_edges(largest=1000.0)
    assert (edges[0], edges[NUM_BINS // 2], edges[-1]) == pytest.approx((1e-3, 1.0, 1e3))
    expected = [0] * NUM_BINS
    for weight in weights[counted].clamp(1e-3, 999.0).tolist():
        expected[bisect.bisect_right(edges, weight * (1 + 1e-9)) - 1] += 1
    assert counts.tolist() == expected
    assert max(expected) == 1, "a percent shows"


def test_weights_and_values_of_awr_have_their_distributions():
    objective = build_objective({"name": "AWR", "alpha": 0.5})
    model_out = run_objective(objective)
    found = objective.histograms(model_out.metrics)
    total = {name: value.item() for name, value in model_out.metrics.items() if value.ndim == 0}
    assert sum(found["weight_dist"]["counts"]) == total["sum/num_valid"]
    assert sum(found["value_dis"]["counts"]) == total["sum/num_scored"]
    assert len(found["value_dis"]["edges"]) == NUM_BINS + 1
    assert (found["value_dis"]["edges"][0], found["value_dis"]["edges"][-1]) == (-1.0, 0.0)
    (place,) = [index for index, count in enumerate(found["value_dis"]["counts"]) if count]
    edges = found["value_dis"]["edges"]
    assert edges[place] <= -0.31 < edges[place + 1]


def run_objective(objective):
    """Random hidden states of one row; the value head says -0.31 everywhere."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(9, (1, 12), generator=generator)
    return objective(
        hidden_BSD=torch.randn(1, 12, 4, generator=generator),
        head_VD=torch.randn(9, 4, generator=generator),
        input_ids_BS=ids,
        token_scores_BS=torch.rand(1, 12, generator=generator),
        token_kinds_BS=torch.tensor([[1, *[0] * 9, 3, 3]], dtype=torch.uint8),
        values_BS=torch.full((1, 12), -0.31),
    )


def test_objectives_without_weights_have_no_distributions():
    objective = build_objective({"name": "MLE"})
    assert objective.histograms(run_objective(objective).metrics) == {}

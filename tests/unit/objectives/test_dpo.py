"""DPO on packed blocks against autograd over whole logits, one answer at a time, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives import dpo
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.pairs import LOSS_TYPES
from phf_ray.objectives.statistics import combine
from phf_ray.records import TokenKind

VOCABULARY, WIDTH, LENGTH = 11, 6, 24
START, GIVEN, CONTENT, PAD = (int(TokenKind[name]) for name in ("END_OF_TEXT", "GIVEN", "PLAIN", "PAD"))
# Two pairs in the first block, one in the second; answers of 1 to 6 tokens.
BLOCKS = [
    [[2, 3], [2, 1], [1, 4], [1, 2]],
    [[3, 6], [3, 5]],
]


def make_batch(seed=0, *, blocks=BLOCKS):
    kinds = np.full((len(blocks), LENGTH), PAD, np.uint8)
    for row, answers in enumerate(blocks):
        run = [kind for given, learned in answers for kind in [START, *[GIVEN] * given, *[CONTENT] * learned]]
        kinds[row, : len(run)] = run
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "hidden_BSD": draw(len(blocks), LENGTH, WIDTH).requires_grad_(),
        "head_VD": draw(VOCABULARY, WIDTH).requires_grad_(),
        "head_bias_V": draw(VOCABULARY).requires_grad_(),
        "input_ids_BS": torch.randint(VOCABULARY, kinds.shape, generator=generator),
        "token_scores_BS": torch.zeros(kinds.shape),
        "token_kinds_BS": torch.from_numpy(kinds),
        "channels_BS": {dpo.REFERENCE: -draw(*kinds.shape).abs()},
    }


def leaves_of(batch):
    return [batch[name] for name in ("hidden_BSD", "head_VD", "head_bias_V")]


def answers_of(batch, *, with_reference=True):
    """For each answer, the sum of its tokens' log-probabilities less the reference's, and their number."""
    logits = batch["hidden_BSD"] @ batch["head_VD"].T + batch["head_bias_V"]
    found = []
    for row in range(logits.shape[0]):
        for place in range(1, LENGTH):
            kind = batch["token_kinds_BS"][row, place].item()
            if kind == CONTENT:
                logp = logits[row, place - 1].log_softmax(0)[batch["input_ids_BS"][row, place]]
                reference = batch["channels_BS"][dpo.REFERENCE][row, place] if with_reference else 0.0
                if batch["token_kinds_BS"][row, place - 1] != CONTENT:
                    found.append([0.0, 0.0, 0])
                found[-1] = [found[-1][0] + logp, found[-1][1] + reference, found[-1][2] + 1]
    return found


def plain_loss(loss_type, chosen, rejected, settings):
    (c, c_ref, c_length), (r, r_ref, r_length) = chosen, rejected
    c, r = c - c_ref, r - r_ref
    e, beta = settings.get("label_smoothing", 0.0), settings.get("beta", 0.1)
    if loss_type == "ipo":
        return (c / c_length - r / r_length - 1 / (2 * beta)) ** 2
    m = beta * (c - r)
    return {
        "sigmoid": lambda: -(1 - e) * F.logsigmoid(m) - e * F.logsigmoid(-m),
        "robust": lambda: (-(1 - e) * F.logsigmoid(m) + e * F.logsigmoid(-m)) / (1 - 2 * e),
        "hinge": lambda: torch.relu(1 - m),
        "ipo_sum": lambda: (c - r - 1 / (2 * beta)) ** 2,
        "exo_pair": lambda: (
            m.sigmoid() * (F.logsigmoid(m) - np.log1p(-e)) + (-m).sigmoid() * (F.logsigmoid(-m) - np.log(e))
        ),
        "nca_pair": lambda: -F.logsigmoid(beta * c) - F.logsigmoid(-beta * c) / 2 - F.logsigmoid(-beta * r) / 2,
        "bco_pair": lambda: -F.logsigmoid(beta * c) - F.logsigmoid(-beta * r),
        "sppo_hard": lambda: (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2,
        "apo_zero": lambda: 1 - torch.sigmoid(beta * c) + torch.sigmoid(beta * r),
        "apo_down": lambda: torch.sigmoid(beta * c) + 1 - torch.sigmoid(m),
    }[loss_type]()


def assert_equals(batch, config, expected):
    out = build_objective({"name": "DPO", **config})(**batch)
    assert out.num_targets.item() == 3
    assert out.loss.item() == pytest.approx(expected.item(), rel=1e-10)
    gradients = torch.autograd.grad(out.loss, leaves_of(batch))
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, leaves_of(batch)), strict=True):
        assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-13)


def pairs_of(answers):
    return zip(answers[0::2], answers[1::2], strict=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_loss_and_gradients_equal_autograd_over_whole_logits(loss_type, smoothing):
    if loss_type == "exo_pair" and smoothing == 0:
        return
    batch, settings = make_batch(), {"beta": 0.2, "label_smoothing": smoothing}
    expected = sum(plain_loss(loss_type, *pair, settings) for pair in pairs_of(answers_of(batch)))
    assert_equals(batch, {"loss_type": loss_type, **settings}, expected)


def test_several_losses_are_added_with_their_weights():
    batch, settings = make_batch(), {"beta": 0.2}
    pairs = list(pairs_of(answers_of(batch)))
    expected = sum(
        0.7 * plain_loss("sigmoid", *pair, settings) + 2 * plain_loss("bco_pair", *pair, settings) for pair in pairs
    )
    assert_equals(batch, {"loss_type": ["sigmoid", "bco_pair"], "loss_weights": [0.7, 2.0], **settings}, expected)


def test_rpo_adds_the_likelihood_of_the_chosen_answer_per_token():
    batch, settings = make_batch(), {"beta": 0.2}
    expected = sum(
        plain_loss("sigmoid", chosen, rejected, settings) - 0.5 * chosen[0] / chosen[2]
        for chosen, rejected in pairs_of(answers_of(batch))
    )
    assert_equals(batch, {"sft_weight": 0.5, **settings}, expected)


def test_simpo_needs_no_reference_and_takes_means():
    batch = make_batch()
    batch["channels_BS"] = {}
    expected = sum(
        -F.logsigmoid(2.0 * (c / c_length - r / r_length) - 0.3)
        for (c, _, c_length), (r, _, r_length) in pairs_of(answers_of(batch, with_reference=False))
    )
    config = {"reference_free": True, "length_normalised": True, "beta": 2.0, "margin": 0.3}
    assert_equals(batch, config, expected)


def test_orpo_takes_log_odds_of_the_mean_probability():
    batch = make_batch()

    def log_odds(answer):
        mean = answer[0] / answer[2]
        return mean - torch.log1p(-mean.exp())

    expected = sum(
        -0.4 * F.logsigmoid(log_odds(chosen) - log_odds(rejected)) - chosen[0] / chosen[2]
        for chosen, rejected in pairs_of(answers_of(batch, with_reference=False))
    )
    config = {"reference_free": True, "length_normalised": True, "odds": True, "beta": 1.0, "sft_weight": 1.0}
    assert_equals(batch, {"loss_weights": [0.4], **config}, expected)


def test_figures_have_the_names_and_numbers_of_trl():
    batch = make_batch()
    objective = build_objective({"name": "DPO", "beta": 0.2})
    figures = objective.summarize(objective(**batch).metrics)
    chosen, rejected = zip(*pairs_of(answers_of(batch)), strict=True)
    rewards = [[0.2 * (logp - reference).item() for logp, reference, _ in side] for side in (chosen, rejected)]
    assert figures["rewards/chosen"] == pytest.approx(np.mean(rewards[0]))
    assert figures["rewards/rejected"] == pytest.approx(np.mean(rewards[1]))
    assert figures["rewards/margins"] == pytest.approx(np.mean(rewards[0]) - np.mean(rewards[1]))
    assert figures["rewards/accuracies"] == np.mean(np.greater(*rewards))
    assert figures["logps/chosen"] == pytest.approx(np.mean([logp.item() for logp, _, _ in chosen]))
    assert figures["logps/rejected"] == pytest.approx(np.mean([logp.item() for logp, _, _ in rejected]))
    assert "effective_sample_size" not in figures


def test_a_policy_that_is_its_reference_loses_log_two():
    batch = make_batch()
    objective = build_objective({"name": "DPO"})
    logits = batch["hidden_BSD"] @ batch["head_VD"].T + batch["head_bias_V"]
    logps = logits.log_softmax(-1)[:, :-1].gather(2, batch["input_ids_BS"][:, 1:, None]).squeeze(2).detach()
    batch["channels_BS"] = {dpo.REFERENCE: F.pad(logps, (1, 0))}
    out = objective(**batch)
    assert (out.loss / out.num_targets).item() == pytest.approx(np.log(2), rel=1e-12)


def test_micro_batches_add_up_and_one_of_padding_adds_nothing():
    objective = build_objective({"name": "DPO", "beta": 0.2})
    whole = make_batch()
    out = objective(**whole)
    loss, totals, count = 0.0, {}, 0.0
    for row in range(2):
        part = {
            name: value[row : row + 1] if name.endswith(("BSD", "BS")) else value
            for name, value in whole.items()
            if name != "channels_BS"
        }
        part["channels_BS"] = {name: value[row : row + 1] for name, value in whole["channels_BS"].items()}
        piece = objective(**part)
        loss, count, totals = loss + piece.loss.item(), count + piece.num_targets.item(), combine(totals, piece.metrics)
    part["token_kinds_BS"] = torch.full_like(part["token_kinds_BS"], PAD)
    padding = objective(**part)
    padding.loss.backward()
    assert padding.loss.item() == 0
    totals = combine(totals, padding.metrics)
    assert (loss, count + padding.num_targets.item()) == pytest.approx((out.loss.item(), 3))
    assert objective.summarize(totals) == pytest.approx(objective.summarize(out.metrics))


def test_training_uses_the_slopes_of_preference_loss_and_no_formula_of_its_own(monkeypatch):
    batch = make_batch()
    before = torch.autograd.grad(build_objective({"name": "DPO"})(**batch).loss, leaves_of(batch))
    whole = dpo.preference_loss

    def tripled(*args, **kwargs):
        return type(out := whole(*args, **kwargs))(*(3 * part for part in out))

    monkeypatch.setattr(dpo, "preference_loss", tripled)
    after = torch.autograd.grad(build_objective({"name": "DPO"})(**batch).loss, leaves_of(batch))
    assert torch.allclose(after[0], 3 * before[0])


def test_given_tokens_are_seen_and_not_learned():
    batch = {name: value for name, value in make_batch().items() if name != "channels_BS"}
    out = build_objective({"name": "MLE"}, examples=True)(**batch)
    answers = answers_of({**batch, "channels_BS": {}}, with_reference=False)
    assert out.num_targets.item() == sum(length for *_, length in answers)
    assert out.loss.item() == pytest.approx(-sum(logp for logp, *_ in answers).item(), rel=1e-12)
    stream = build_objective({"name": "MLE"})(**batch)
    # In a stream of text the token that begins a document is what ends the one before.
    assert stream.num_targets.item() == out.num_targets.item() + 4


def test_bfloat16_stays_close():
    batch = make_batch()
    expected = build_objective({"name": "DPO", "beta": 0.2})(**batch)
    wanted = torch.autograd.grad(expected.loss, batch["hidden_BSD"])[0]
    small = {name: value.float() if name.endswith(("BSD", "VD", "_V")) else value for name, value in batch.items()}
    small["hidden_BSD"] = small["hidden_BSD"].detach().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = build_objective({"name": "DPO", "beta": 0.2})(**small)
    gradient = torch.autograd.grad(out.loss, small["hidden_BSD"])[0]
    assert out.loss.item() == pytest.approx(expected.loss.item(), rel=0.03)
    assert torch.nn.functional.cosine_similarity(gradient.double().flatten(), wanted.flatten(), dim=0) > 0.995


def test_blocks_without_reference_or_with_half_a_pair_are_refused():
    batch = make_batch()
    with pytest.raises(DataError, match="reads reference_logprob of each token, which these blocks lack"):
        build_objective({"name": "DPO"})(**{**batch, "channels_BS": {}})
    with pytest.raises(DataError, match="1 answers in a micro-batch can't be pairs"):
        build_objective({"name": "DPO"})(**make_batch(blocks=[[[1, 3]]]))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"loss_type": ["sigmoid", "hinge"], "loss_weights": [1.0]}, "each loss_type is named once"),
        ({"loss_type": "aot"}, "aot sorts"),
        ({"loss_type": []}, "no loss_type"),
        ({"loss_type": "ipo", "length_normalised": True}, "ipo divides by the lengths itself"),
        ({"odds": True}, "mean probability"),
    ],
)
def test_settings_without_a_meaning_are_refused(config, says):
    with pytest.raises(ConfigError, match=says):
        build_objective({"name": "DPO", **config})

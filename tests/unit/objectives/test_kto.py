"""KTO on packed blocks against autograd over whole logits, one answer at a time, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_dpo import CONTENT, GIVEN, LENGTH, PAD, START, VOCABULARY, WIDTH, leaves_of

from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives import kto
from phf_ray.objectives.answers import REFERENCE
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.statistics import combine
from phf_ray.objectives.unpaired import unpaired_loss
from phf_ray.records import LABEL

GOOD, BAD, OTHER = 1, -1, 0
# Given tokens, learned tokens, label: an answer, and behind it its prompt with another answer.
BLOCKS = [
    [(2, 3, GOOD), (2, 2, OTHER), (1, 4, BAD), (1, 3, OTHER)],
    [(3, 6, GOOD), (3, 4, OTHER)],
]


def make_batch(*, blocks=BLOCKS, labels=None, towards=0.0):
    """`towards`: how much more likely the policy finds each token than the reference does."""
    kinds = np.full((len(blocks), LENGTH), PAD, np.uint8)
    label = np.zeros(kinds.shape, np.float32)
    for row, answers in enumerate(blocks):
        place = 0
        for given, learned, own in answers:
            end = place + 1 + given + learned
            kinds[row, place:end] = [START, *[GIVEN] * given, *[CONTENT] * learned]
            label[row, place:end] = own if labels is None or own == OTHER else labels
            place = end
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    batch = {
        "hidden_BSD": draw(len(blocks), LENGTH, WIDTH).requires_grad_(),
        "head_VD": draw(VOCABULARY, WIDTH).requires_grad_(),
        "head_bias_V": draw(VOCABULARY).requires_grad_(),
        "input_ids_BS": torch.randint(VOCABULARY, kinds.shape, generator=generator),
        "token_scores_BS": torch.zeros(kinds.shape),
        "token_kinds_BS": torch.from_numpy(kinds),
        "channels_BS": {LABEL: torch.from_numpy(label)},
    }
    logps = F.pad(logprobs_of(batch).detach(), (1, 0))
    batch["channels_BS"][REFERENCE] = logps - towards + 0.3 * draw(*kinds.shape)
    return batch


def logprobs_of(batch):
    logits = batch["hidden_BSD"] @ batch["head_VD"].T + batch["head_bias_V"]
    return logits.log_softmax(-1)[:, :-1].gather(2, batch["input_ids_BS"][:, 1:, None]).squeeze(2)


def answers_of(batch):
    """(log-ratio, its log-probability alone, label) of each row."""
    logps, kinds = logprobs_of(batch), batch["token_kinds_BS"]
    found = []
    for row, place in np.argwhere(kinds[:, 1:].numpy() == CONTENT):
        if kinds[row, place] != CONTENT:
            found.append([0.0, 0.0, int(batch["channels_BS"][LABEL][row, place + 1])])
        found[-1][0] += logps[row, place] - batch["channels_BS"][REFERENCE][row, place + 1]
        found[-1][1] += logps[row, place]
    return found


def learn(config, *parts):
    """What a step does: survey all micro-batches, then run them. Returns (loss, targets, totals, KL)."""
    objective = build_objective({"name": "KTO", **config})
    survey, counts = objective.survey(), {}
    if survey is not None:
        for part in parts:
            counts = combine(counts, survey(**part).metrics)
    numbers = {} if survey is None else survey.numbers(counts)
    loss, targets, totals = 0.0, 0.0, {}
    for part in parts:
        shape = part["input_ids_BS"].shape
        channels = {**part["channels_BS"], **{name: value.expand(shape) for name, value in numbers.items()}}
        out = objective(**{**part, "channels_BS": channels})
        loss, targets, totals = loss + out.loss, targets + out.num_targets.item(), combine(totals, out.metrics)
    return loss, targets, objective.summarize(totals), numbers


def plain_loss(config, answers):
    """TRL's formulas on log-ratios that autograd knows."""
    beta, z = config["beta"], 0.0
    others = [ratio.item() for ratio, _, label in answers if label == OTHER]
    if config.get("loss_type", "kto") == "kto":
        z = max(0.0, np.mean(others))
    losses = []
    for ratio, _, label in answers:
        if label == GOOD:
            losses.append(config.get("desirable_weight", 1.0) * (1 - torch.sigmoid(beta * (ratio - z))))
        elif label == BAD:
            losses.append(config.get("undesirable_weight", 1.0) * (1 - torch.sigmoid(beta * (z - ratio))))
    return sum(losses), z


@pytest.mark.parametrize("towards", [0.4, -0.4], ids=["a KL", "a negative estimate, which counts as 0"])
@pytest.mark.parametrize(
    "config",
    [
        {"beta": 0.2},
        {"beta": 0.2, "desirable_weight": 0.7, "undesirable_weight": 1.9},
        {"beta": 0.2, "loss_type": "apo_zero_unpaired", "undesirable_weight": 1.5},
    ],
)
def test_loss_and_gradients_equal_autograd_over_whole_logits(config, towards):
    batch = make_batch(towards=towards)
    expected, z = plain_loss(config, answers_of(batch))
    loss, targets, figures, _ = learn(config, batch)
    assert targets == 3
    assert figures["kl"] == pytest.approx(z, rel=1e-10)
    assert (z > 0) == (towards > 0 and "loss_type" not in config)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-10)
    gradients = torch.autograd.grad(loss, leaves_of(batch))
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, leaves_of(batch)), strict=True):
        assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-13)


def test_mismatched_answers_and_their_prompts_get_no_gradient():
    batch = make_batch(towards=0.4)
    loss, *_ = learn({"beta": 0.2}, batch)
    gradient = torch.autograd.grad(loss, batch["hidden_BSD"])[0].abs().sum(-1)
    learned = (batch["channels_BS"][LABEL] != 0) & (batch["token_kinds_BS"] == CONTENT)
    assert torch.equal(gradient[:, :-1] > 0, learned[:, 1:])


def test_micro_batches_of_a_step_share_one_kl_and_one_of_padding_adds_nothing():
    whole = make_batch(towards=0.4)
    loss, targets, figures, numbers = learn({"beta": 0.2}, whole)
    parts = []
    for row in (0, 1, 1):
        part = {name: value[row : row + 1] if name.endswith(("BSD", "BS")) else value for name, value in whole.items()
                if name != "channels_BS"}  # fmt: skip
        part["channels_BS"] = {name: value[row : row + 1] for name, value in whole["channels_BS"].items()}
        parts.append(part)
    parts[2]["token_kinds_BS"] = torch.full_like(parts[2]["token_kinds_BS"], PAD)
    again, again_targets, again_figures, again_numbers = learn({"beta": 0.2}, *parts)
    assert again_numbers["kl"].item() == pytest.approx(numbers["kl"].item(), rel=1e-12)
    assert (again.item(), again_targets) == pytest.approx((loss.item(), targets), rel=1e-10)
    assert again_figures == pytest.approx(figures, rel=1e-10)
    for gradient, wanted in zip(
        torch.autograd.grad(again, leaves_of(whole)), torch.autograd.grad(loss, leaves_of(whole)), strict=True
    ):
        assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-13)


def test_figures_have_the_names_and_numbers_of_trl():
    batch = make_batch(towards=0.4)
    _, _, figures, _ = learn({"beta": 0.2}, batch)
    for name, label in (("chosen", GOOD), ("rejected", BAD)):
        own = [(ratio.item(), logp.item()) for ratio, logp, one in answers_of(batch) if one == label]
        assert figures[f"rewards/{name}"] == pytest.approx(0.2 * np.mean([ratio for ratio, _ in own]))
        assert figures[f"logps/{name}"] == pytest.approx(np.mean([logp for _, logp in own]))
    assert figures["rewards/margins"] == pytest.approx(figures["rewards/chosen"] - figures["rewards/rejected"])
    assert "effective_sample_size" not in figures


@pytest.mark.parametrize(("label", "there", "missing"), [(GOOD, "chosen", "rejected"), (BAD, "rejected", "chosen")])
def test_a_batch_with_one_label_has_a_loss_and_no_figure_of_the_other(label, there, missing):
    batch = make_batch(labels=label, towards=0.4)
    config = {"beta": 0.2, "desirable_weight": 2.0, "undesirable_weight": 3.0}
    loss, targets, figures, _ = learn(config, batch)
    assert (targets, loss.item()) == (3, pytest.approx(plain_loss(config, answers_of(batch))[0].item(), rel=1e-10))
    assert np.isfinite([figures[f"rewards/{there}"], figures["kl"]]).all()
    assert np.isnan([figures[f"rewards/{missing}"], figures[f"logps/{missing}"], figures["rewards/margins"]]).all()


def test_a_policy_that_is_its_reference_loses_half():
    batch = make_batch()
    batch["channels_BS"][REFERENCE] = F.pad(logprobs_of(batch).detach(), (1, 0))
    loss, targets, figures, _ = learn({}, batch)
    assert loss.item() / targets == pytest.approx(0.5, rel=1e-12)
    assert figures["kl"] == pytest.approx(0, abs=1e-12)


def test_known_numbers():
    found = unpaired_loss("kto", [2.0, -1.0], [True, False], kl=0.5, beta=1.0)
    assert found.loss == pytest.approx([1 - 1 / (1 + np.exp(-1.5)), 1 - 1 / (1 + np.exp(-1.5))])
    assert found.slope == pytest.approx([-0.149146, 0.149146], abs=1e-6)
    far = unpaired_loss("kto", [1e4, -1e4], [True, True], beta=1.0)
    assert (far.loss.tolist(), far.slope.tolist()) == ([0, 1], [0, 0])


def test_training_uses_the_slopes_of_unpaired_loss_and_no_formula_of_its_own(monkeypatch):
    batch = make_batch(towards=0.4)
    before = torch.autograd.grad(learn({}, batch)[0], leaves_of(batch))
    whole = kto.unpaired_loss

    def tripled(*args, **kwargs):
        return type(out := whole(*args, **kwargs))(*(3 * part for part in out))

    monkeypatch.setattr(kto, "unpaired_loss", tripled)
    assert torch.allclose(torch.autograd.grad(learn({}, batch)[0], leaves_of(batch))[0], 3 * before[0])


def test_blocks_without_labels_and_settings_without_a_meaning_are_refused():
    batch = make_batch()
    del batch["channels_BS"][LABEL]
    with pytest.raises(DataError, match="KTO reads label, kl of each token, which these blocks lack"):
        build_objective({"name": "KTO"})(**batch)
    with pytest.raises(ConfigError, match="loss_type"):
        build_objective({"name": "KTO", "loss_type": "sigmoid"})
    with pytest.raises(ConfigError, match=r"desirable_weight: -1 must be a number of at least 0"):
        unpaired_loss("kto", [1.0], [True], desirable_weight=-1)
    with pytest.raises(DataError, match=r"both are \(answers,\)"):
        unpaired_loss("kto", [1.0, 2.0], [True])

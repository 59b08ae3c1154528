"""The policy gradient on packed rows against autograd over whole logits, one completion at a time, in float64."""

import sys

import numpy as np
import pytest
import torch

from phf_ray.errors import ConfigError, DataError
from phf_ray.objectives.build import build_objective
from phf_ray.objectives.statistics import combine
from phf_ray.records import TokenKind
from phf_ray.rollouts import (
    RoundArrays,
    aggregation_weights,
    build_algorithm,
    gae,
    group_advantages,
    kl_estimate,
    ppo_loss,
    rloo_advantages,
    value_loss,
)

VOCABULARY, WIDTH, LENGTH = 11, 6, 16
START, GIVEN, LEARNED, PAD = (int(TokenKind[name]) for name in ("END_OF_TEXT", "GIVEN", "PLAIN", "PAD"))
# Lengths of prompts and completions; two rows in the first block.
BLOCKS = [[(2, 3), (3, 5)], [(4, 7)], [(1, 1)]]


def make_batch(seed=0, *, blocks=BLOCKS, padding=0):
    kinds = np.full((len(blocks), LENGTH + padding), PAD, np.uint8)
    for row, rows in enumerate(blocks):
        run = [kind for given, learned in rows for kind in [START, *[GIVEN] * given, *[LEARNED] * learned]]
        kinds[row, : len(run)] = run
    generator = torch.Generator().manual_seed(seed)
    shape = (len(blocks), LENGTH)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def padded(tensor, value):
        return torch.nn.functional.pad(tensor, (0, padding), value=value)

    hidden = torch.nn.functional.pad(draw(*shape, WIDTH), (0, 0, 0, padding), value=7.0)
    return {
        "hidden_BSD": hidden.requires_grad_(),
        "head_VD": draw(VOCABULARY, WIDTH).requires_grad_(),
        "head_bias_V": draw(VOCABULARY).requires_grad_(),
        "values_BS": padded(draw(*shape), 5.0).requires_grad_(),
        "input_ids_BS": padded(torch.randint(VOCABULARY, shape, generator=generator), 0),
        "token_scores_BS": torch.zeros(kinds.shape),
        "token_kinds_BS": torch.from_numpy(kinds),
        "channels_BS": {
            # Ratios from e^-1 to e, so that some are clipped.
            "old_logprob": padded(-2.5 + 0.5 * draw(*shape), float("nan")),
            "behaviour_logprob": padded(-2.5 + 0.5 * draw(*shape), float("nan")),
            "reference_logprob": padded(-2.5 + draw(*shape), float("nan")),
            "advantage": padded(draw(*shape), float("nan")),
            "return": padded(draw(*shape), float("nan")),
            "old_value": padded(draw(*shape), float("nan")),
        },
    }


LEAVES = ("hidden_BSD", "head_VD", "head_bias_V", "values_BS")


def build(**config):
    return build_objective({"name": "PolicyGradient", **config})


def expected_mean(
    batch, *, over="tokens", temperature=1.0, clip=0.2, dual_clip=None, cap=2.0, importance=True, **weights
):
    """The loss, from whole logits by torch alone."""
    logits = (batch["hidden_BSD"] @ batch["head_VD"].T + batch["head_bias_V"]) / temperature
    logprobs = logits.log_softmax(-1)
    sequences, tokens = [], []
    for row, kinds in enumerate(batch["token_kinds_BS"]):
        for place in range(1, len(kinds)):
            if kinds[place] != LEARNED:
                continue
            channel = {name: values[row, place] for name, values in batch["channels_BS"].items()}
            logp = logprobs[row, place - 1, batch["input_ids_BS"][row, place]]
            ratio = (logp - channel["old_logprob"]).exp()
            loss = torch.maximum(-channel["advantage"] * ratio, -channel["advantage"] * ratio.clamp(1 - clip, 1 + clip))
            if dual_clip is not None and channel["advantage"] < 0:
                loss = torch.minimum(loss, -dual_clip * channel["advantage"])
            if importance:
                loss = loss * (channel["old_logprob"] - channel["behaviour_logprob"]).exp().clamp(max=cap)
            x = logp - channel["reference_logprob"]
            loss = loss + weights.get("k2", 0) * x**2 / 2 + weights.get("k3", 0) * ((-x).exp() - 1 + x)
            value, old = batch["values_BS"][row, place - 1], channel["old_value"]
            free = (value - channel["return"]) ** 2
            clipped = (torch.minimum(torch.maximum(value, old - 0.3), old + 0.3) - channel["return"]) ** 2
            loss = loss + weights.get("value", 0) * torch.maximum(free, clipped) / 2
            tokens.append(loss)
            if kinds[place - 1] != LEARNED:
                sequences.append([])
            sequences[-1].append(loss)
    if over == "tokens":
        return torch.stack(tokens).mean()
    return torch.stack([torch.stack(sequence).mean() for sequence in sequences]).mean()


def assert_equals(out_loss, batch, expected):
    assert out_loss.item() == pytest.approx(expected.item(), rel=1e-10)
    wanted = torch.autograd.grad(expected, [batch[name] for name in LEAVES], allow_unused=True)
    found = torch.autograd.grad(out_loss, [batch[name] for name in LEAVES], allow_unused=True)
    for name, gradient, other in zip(LEAVES, found, wanted, strict=True):
        other = torch.zeros_like(batch[name]) if other is None else other
        assert torch.allclose(gradient, other, rtol=1e-9, atol=1e-13), name


def without(batch, *names):
    channels = {name: values for name, values in batch["channels_BS"].items() if name not in names}
    return {**batch, "channels_BS": channels}


CASES = {
    "clipped": ({}, {}),
    "sequences": ({"aggregation": "sequences"}, {"over": "sequences"}),
    "dual clip": ({"dual_clip": 1.1}, {"dual_clip": 1.1}),
    "wide clip": ({"clip": 0.7}, {"clip": 0.7}),
    "values": ({"value_coef": 0.3, "value_clip": 0.3, "aggregation": "sequences"}, {"value": 0.3, "over": "sequences"}),
    "k2": ({"kl_loss": "k2", "kl_coef": 0.4}, {"k2": 0.4}),
    "k3": ({"kl_loss": "k3", "kl_coef": 0.4}, {"k3": 0.4}),
    "temperature": ({"temperature": 0.7}, {"temperature": 0.7}),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_autograd_over_whole_logits(name):
    config, expected = CASES[name]
    batch = make_batch()
    out = build(**config)(**without(batch, "behaviour_logprob"))
    assert_equals(out.loss / out.num_targets, batch, expected_mean(batch, importance=False, **expected))


def test_tokens_of_older_weights_count_by_their_truncated_ratio():
    batch = make_batch()
    out = build(importance_cap=1.5)(**batch)
    assert_equals(out.loss / out.num_targets, batch, expected_mean(batch, cap=1.5))


@pytest.mark.parametrize("over", ["tokens", "sequences"])
def test_any_split_of_the_rows_gives_the_same_mean_gradients_and_figures(over):
    batch, objective = make_batch(), build(aggregation=over, value_coef=0.1)
    whole = objective(**batch)
    per_block = {"hidden_BSD", "input_ids_BS", "token_scores_BS", "token_kinds_BS", "values_BS"}
    outs = []
    for part in (slice(0, 1), slice(1, 3), slice(3, 3)):
        pieces = {name: tensor[part] if name in per_block else tensor for name, tensor in batch.items()}
        pieces["channels_BS"] = {name: tensor[part] for name, tensor in batch["channels_BS"].items()}
        outs.append(objective(**pieces))
    loss, targets = (sum(getattr(out, name) for out in outs) for name in ("loss", "num_targets"))
    assert targets.item() == whole.num_targets.item() == {"tokens": 16, "sequences": 4}[over]
    assert_equals(loss / targets, batch, whole.loss / whole.num_targets)
    totals = combine(combine(outs[0].metrics, outs[1].metrics), outs[2].metrics)
    assert objective.summarize(totals) == pytest.approx(objective.summarize(whole.metrics))


def test_padding_changes_nothing():
    (short, long), objective = (make_batch(), make_batch(padding=5)), build(value_coef=0.1, aggregation="sequences")
    outs = [objective(**batch) for batch in (short, long)]
    assert outs[0].loss.item() == pytest.approx(outs[1].loss.item(), rel=1e-12)
    assert objective.summarize(outs[0].metrics) == pytest.approx(objective.summarize(outs[1].metrics))
    for out in outs:
        out.loss.backward()
    assert torch.allclose(short["head_VD"].grad, long["head_VD"].grad, rtol=1e-12, atol=1e-14)
    assert not long["hidden_BSD"].grad[:, LENGTH:].any()


def test_equal_policies_have_ratio_1_and_the_slope_of_the_advantage():
    batch = make_batch()
    logprobs = (batch["hidden_BSD"] @ batch["head_VD"].T + batch["head_bias_V"]).log_softmax(-1)
    logp = logprobs[:, :-1].gather(2, batch["input_ids_BS"][:, 1:, None]).squeeze(2)
    # As they come back from their file.
    stored = torch.nn.functional.pad(logp, (1, 0)).detach().float()
    batch["channels_BS"] |= {"old_logprob": stored, "behaviour_logprob": stored}
    objective = build()
    out = objective(**batch)
    figures = objective.summarize(out.metrics)
    assert figures["ppo/policy/ratio"] == pytest.approx(1, abs=1e-6)
    assert figures["ppo/policy/approxkl"] == pytest.approx(0, abs=1e-12)
    assert figures["ppo/policy/clipfrac"] == figures["clip_ratio"] == 0
    learned = batch["token_kinds_BS"][:, 1:] == LEARNED
    plain = -(batch["channels_BS"]["advantage"][:, 1:] * logp)[learned].sum()
    wanted, found = (torch.autograd.grad(loss, batch["head_VD"])[0] for loss in (plain, out.loss))
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_figures_by_hand():
    batch = make_batch(blocks=[[(1, 2)]])
    logits = torch.log(torch.tensor([0.5] + [0.05] * 10, dtype=torch.float64))
    batch |= {"hidden_BSD": torch.zeros_like(batch["hidden_BSD"]).requires_grad_(), "head_bias_V": logits}
    batch["input_ids_BS"] = torch.zeros_like(batch["input_ids_BS"])
    batch["channels_BS"] = {
        "old_logprob": torch.full((1, LENGTH), np.log(0.4)),
        "advantage": torch.tensor([[9.0, 9, 1, -2] + [9.0] * (LENGTH - 4)]),
    }
    objective = build()
    figures = objective.summarize(objective(**batch).metrics)
    # Ratio 1.25: -1.2 for the good token, 2.5 for the bad one.
    assert figures["ppo/loss/policy"] == figures["loss"] == pytest.approx((-1.2 + 2.5) / 2)
    assert figures["ppo/policy/clipfrac"] == 1
    assert figures["ppo/policy/ratio"] == pytest.approx(1.25)
    assert figures["ppo/policy/approxkl"] == pytest.approx(np.log(1.25) ** 2 / 2)
    batch["channels_BS"] |= {"return": torch.full((1, LENGTH), 2.0), "old_value": torch.full((1, LENGTH), 0.5)}
    batch["values_BS"] = torch.ones(1, LENGTH, dtype=torch.float64)
    objective = build(value_coef=0.1)
    figures = objective.summarize(objective(**batch).metrics)
    # The value 1 is clipped to .7, 1.3 below the return.
    assert figures["ppo/loss/value"] == pytest.approx(0.845)
    assert figures["ppo/loss/total"] == figures["loss"] == pytest.approx(0.65 + 0.0845)
    assert (figures["ppo/val/vpred"], figures["ppo/val/clipfrac"]) == (1, 1)


@pytest.mark.parametrize("logprob", [-900.0, 900.0])
@pytest.mark.parametrize("name", ["old_logprob", "reference_logprob", "behaviour_logprob"])
def test_a_policy_that_has_run_away_stays_a_number(name, logprob):
    batch = make_batch()
    batch["channels_BS"][name] = torch.full_like(batch["channels_BS"][name], logprob)
    out = build(kl_loss="k3", kl_coef=0.1)(**batch)
    gradients = torch.autograd.grad(out.loss, [batch[name] for name in LEAVES])
    # In the single precision of training, too.
    assert all(gradient.float().isfinite().all() for gradient in [out.loss, *gradients])


def test_what_the_objective_reads_must_be_there():
    batch = make_batch()
    for config, channel in (({}, "advantage"), ({"value_coef": 1}, "return"), ({"kl_loss": "k2"}, "reference_logprob")):
        with pytest.raises(DataError, match=f"reads {channel}"):
            build(**config)(**without(batch, channel))
    with pytest.raises(ConfigError, match="neither value head nor critic"):
        build(value_coef=1)(**{**batch, "values_BS": None})
    with pytest.raises(ConfigError, match="clip"):
        build(clip=0)


# -- One version of each function -------------------------------------------------------------------------------------


def break_function(monkeypatch, function, broken):
    """Put `broken` wherever our code holds `function`."""
    places = [
        (module, name)
        for module in list(sys.modules.values())
        if getattr(module, "__name__", "").startswith("phf_ray.")
        for name, value in list(vars(module).items())
        if value is function
    ]
    assert places
    for module, name in places:
        monkeypatch.setattr(module, name, broken)


def twice(function):
    def broken(*arguments, **options):
        found = function(*arguments, **options)
        return tuple(2 * part for part in found) if isinstance(found, tuple) else 2 * found

    return broken


@pytest.mark.parametrize("function", [ppo_loss, value_loss, kl_estimate, aggregation_weights], ids=lambda f: f.__name__)
def test_training_has_no_second_version_of_a_loss(monkeypatch, function):
    batch = make_batch()
    config = {"value_coef": 0.3, "kl_loss": "k2", "kl_coef": 0.4}

    def loss_and_gradients():
        out = build(**config)(**batch)
        return out.loss.item(), torch.autograd.grad(out.loss, [batch[name] for name in LEAVES])

    before, old = loss_and_gradients()
    break_function(monkeypatch, function, twice(function))
    after, new = loss_and_gradients()
    assert abs(after - before) > 1e-3
    if function is not kl_estimate:  # its slope is another function
        assert any(not torch.allclose(one, other) for one, other in zip(old, new, strict=True))


@pytest.mark.parametrize(
    ("function", "name"),
    [(gae, "ppo"), (gae, "reinforce_pp"), (rloo_advantages, "rloo"), (group_advantages, "grpo"), (kl_estimate, "rloo")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_training_has_no_second_version_of_an_advantage(monkeypatch, function, name):
    rng = np.random.default_rng(0)
    arrays = RoundArrays(
        prompt_R=np.repeat([0, 1], 3),
        sample_R=np.tile([0, 1, 2], 2),
        rewards_R=rng.normal(size=6),
        mask_RT=np.ones((6, 3), bool),
        policy_RT=-rng.random((6, 3)),
        reference_RT=-rng.random((6, 3)),
        value_RT=rng.normal(size=(6, 3)),
    )
    config = {"name": name, "kl_coef": 0.5}

    def advantages():
        return build_algorithm(config).weigh(arrays, {}).channels["advantage"]

    before = advantages()

    def broken(*arguments, **options):
        found = function(*arguments, **options)
        return (found[0] ** 3, *found[1:]) if isinstance(found, tuple) else found**3

    break_function(monkeypatch, function, broken)
    assert not np.allclose(advantages(), before)

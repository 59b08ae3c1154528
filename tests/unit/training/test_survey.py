"""The pass before a step: what it counts, what each pass reads, and that others have none."""

import numpy as np
import pytest
import torch
from tiny_models import tiny_gpt2, tiny_tokenizer

from phf_ray.models.language_model import LanguageModel
from phf_ray.objectives.answers import REFERENCE
from phf_ray.objectives.build import build_objective
from phf_ray.records import LABEL, TokenKind
from phf_ray.training.batches import MicroBatch
from phf_ray.training.survey import surveyed

START, GIVEN, LEARNED, PAD = (int(TokenKind[name]) for name in ("END_OF_TEXT", "GIVEN", "PLAIN", "PAD"))
ROWS = [[(1, 2, 3), (0, 2, 2), (-1, 1, 4), (0, 1, 1)], [(1, 3, 2), (0, 3, 3)]]
"""Label, tokens given and learned of each row of each block."""


def make_batch(rows=ROWS, *, length=28):
    kinds, labels = np.full((len(rows), length), PAD, np.uint8), np.zeros((len(rows), length), np.float32)
    for block, own in enumerate(rows):
        place = 0
        for label, given, learned in own:
            end = place + 1 + given + learned
            kinds[block, place:end] = [START, *[GIVEN] * given, *[LEARNED] * learned]
            labels[block, place:end] = label
            place = end
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 90, kinds.shape, generator=generator)
    channels = {LABEL: torch.from_numpy(labels), REFERENCE: -6 * torch.rand(kinds.shape, generator=generator) - 20}
    return MicroBatch(ids, torch.zeros(kinds.shape), torch.from_numpy(kinds), 5, channels)


@pytest.fixture(scope="module")
def model():
    learner = LanguageModel(tiny_gpt2(tiny_tokenizer()).double())
    learner.mask_documents()
    return learner.eval()


def gradients_of(model, batch, objective):
    model.zero_grad()
    out = batch.through(model, objective)
    out.loss.backward()
    return out, [parameter.grad.clone() for parameter in model.parameters()]


def test_a_pass_reads_only_its_own_rows_and_learns_the_same(model):
    objective, batch = build_objective({"name": "KTO", "beta": 0.5}), make_batch()
    (part,) = surveyed(model, [batch], objective=objective, precision="fp32")
    assert part.first_block == batch.first_block
    assert part.token_kinds_BS.shape == (2, 12), "two answers of 6 tokens at most, and no mismatched one"
    assert (part.token_kinds_BS != PAD).sum().item() == 18
    kl = part.channels["kl"][0, 0].item()
    assert kl > 0.01
    whole = MicroBatch(
        batch.input_ids_BS, batch.token_scores_BS, batch.token_kinds_BS, 5,
        {**batch.channels, "kl": torch.full(batch.input_ids_BS.shape, kl, dtype=torch.float64)},
    )  # fmt: skip
    (out, found), (wanted_out, wanted) = (gradients_of(model, one, objective) for one in (part, whole))
    assert (out.loss.item(), out.num_targets.item()) == (pytest.approx(wanted_out.loss.item(), rel=1e-10), 3)
    for gradient, expected in zip(found, wanted, strict=True):
        assert torch.allclose(gradient, expected, rtol=1e-8, atol=1e-12)


def test_all_micro_batches_of_a_step_get_the_mean_over_all_of_their_mismatched_answers(model):
    objective = build_objective({"name": "KTO"})
    parts = [make_batch(ROWS[:1]), make_batch(ROWS[1:])]
    padding = make_batch(ROWS[1:])
    padding.token_kinds_BS[:] = PAD
    alone = [surveyed(model, [part], objective=objective, precision="fp32")[0].channels["kl"][0, 0] for part in parts]
    assert min(alone) > 0
    together = surveyed(model, [*parts, padding], objective=objective, precision="fp32")
    numbers = {part.channels["kl"].unique().item() for part in together}
    # Two mismatched answers in the first block, one in the second.
    assert list(numbers) == [pytest.approx((2 * alone[0] + alone[1]).item() / 3, rel=1e-10)]


def test_an_objective_without_a_survey_gets_its_micro_batches_as_they_are_and_pays_nothing():
    batches = [make_batch()]
    for config in ({"name": "MLE"}, {"name": "DPO"}, {"name": "KTO", "loss_type": "apo_zero_unpaired"}):
        # A model would be called, and there is none.
        assert surveyed(None, batches, objective=build_objective(config), precision="fp32") is batches

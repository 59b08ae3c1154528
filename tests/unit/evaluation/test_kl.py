import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from text_logprobs import text_logprobs

from phf_ray.errors import DataError
from phf_ray.evaluation.kl.encoding import EncodedText, encode
from phf_ray.evaluation.kl.estimate import forward_kl

EOS, A, B = 0, 1, 2
CONTROL = 3


class Markov:
    """p(next | current) = table[current]: a model of 3 tokens whose every probability is known."""

    def __init__(self, table):
        self.log_table = torch.tensor(table, dtype=torch.float64).log()

    def __call__(self, *, input_ids):
        return SimpleNamespace(logits=self.log_table[input_ids])


REFERENCE = Markov([[0.2, 0.5, 0.3], [0.1, 0.3, 0.6], [0.25, 0.25, 0.5]])
MODEL = Markov([[0.3, 0.3, 0.4], [0.2, 0.5, 0.3], [0.1, 0.4, 0.5]])


def draw(model, *, num, length, seed):
    rng = np.random.default_rng(seed)
    table = model.log_table.exp().numpy()
    ids = np.zeros((num, length + 1), dtype=int)
    for t in range(length):
        ids[:, t + 1] = [rng.choice(3, p=table[current] / table[current].sum()) for current in ids[:, t]]
    return [encode(row[1:].tolist(), first_id=EOS) for row in ids]


def test_the_estimator_agrees_with_exact_enumeration_of_all_texts():
    length = 4
    every = [encode(ids, first_id=EOS) for ids in itertools.product(range(3), repeat=length)]
    log_p = text_logprobs(REFERENCE, every)
    log_q = text_logprobs(MODEL, every)
    assert np.exp(log_p).sum() == pytest.approx(1.0, abs=1e-12)
    exact = float((np.exp(log_p) * (log_p - log_q)).sum())
    # The chain rule gives the same without a single text: sum over steps of E[KL of the next token].
    p, q = REFERENCE.log_table.exp().numpy(), MODEL.log_table.exp().numpy()
    step = (p * np.log(p / q)).sum(axis=1)
    where, chained = np.array([1.0, 0.0, 0.0]), 0.0
    for _ in range(length):
        chained += float(where @ step)
        where = where @ p
    assert exact == pytest.approx(chained, abs=1e-12)

    texts = draw(REFERENCE, num=4000, length=length, seed=0)
    kl = forward_kl(
        text_logprobs(REFERENCE, texts),
        text_logprobs(MODEL, texts),
        num_tokens=[length] * 4000,
        num_bytes=[2 * length] * 4000,
    )
    assert abs(kl.per_sequence.mean - exact) < 3 * kl.per_sequence.standard_error < exact / 5
    assert kl.per_token.mean == pytest.approx(kl.per_sequence.mean / 4)
    assert kl.per_byte.mean == pytest.approx(kl.per_sequence.mean / 8)
    assert kl.per_byte.standard_error == pytest.approx(kl.per_sequence.standard_error / 8)


def test_control_tokens_are_seen_but_not_counted():
    table = np.full((4, 4), 0.25)
    table[CONTROL] = [0.1, 0.7, 0.1, 0.1]
    model = Markov(table)
    plain = encode([A, B], first_id=EOS)
    marked = encode([A, B], first_id=EOS, control_id=CONTROL, starts=[0, 1])
    assert marked.ids == (EOS, CONTROL, A, CONTROL, B)
    assert marked.counted == (False, False, True, False, True)
    logprobs = text_logprobs(model, [plain, marked])
    assert logprobs.tolist() == pytest.approx([2 * np.log(0.25), np.log(0.7) + np.log(0.1)])


def test_the_end_of_a_text_that_ended_by_itself_counts():
    text = encode([A], first_id=EOS, ends_with=EOS)
    assert text_logprobs(REFERENCE, [text])[0] == pytest.approx(np.log(0.5) + np.log(0.1))


def test_an_empty_text_has_a_place_for_its_control_token():
    text = encode([], first_id=EOS, control_id=CONTROL, starts=[0], ends_with=EOS)
    assert text == EncodedText((EOS, CONTROL, EOS), (False, False, True))


def test_tokenizers_of_different_grain_agree_per_byte():
    # One says two letters a token, the other one; each letter has probability 1/2 in the first, 1/4 in the second.
    letters = np.array([4, 8, 6])
    reference, model = letters * np.log(1 / 2), letters * np.log(1 / 4)
    kl = forward_kl(reference, model, num_tokens=(letters // 2).tolist(), num_bytes=letters.tolist())
    assert kl.per_byte.mean == pytest.approx(np.log(2))
    assert kl.per_byte.standard_error == pytest.approx(0.0, abs=1e-12)
    assert kl.per_token.mean == pytest.approx(2 * np.log(2))


def test_standard_error_of_a_ratio_agrees_with_its_spread():
    rng = np.random.default_rng(0)
    means, errors = [], []
    for _ in range(400):
        sizes = rng.integers(5, 50, size=100)
        differences = sizes * 0.1 + rng.normal(size=100)
        kl = forward_kl(differences, np.zeros(100), num_tokens=sizes.tolist(), num_bytes=sizes.tolist())
        means.append(kl.per_byte.mean)
        errors.append(kl.per_byte.standard_error)
    assert np.std(means) == pytest.approx(np.mean(errors), rel=0.1)


def test_a_text_the_model_cannot_say_is_counted_apart():
    kl = forward_kl([-1.0, -2.0, -3.0], [-1.5, -np.inf, -3.5], num_tokens=[1, 1, 1], num_bytes=[1, 1, 1])
    assert (kl.num_samples, kl.num_impossible, kl.per_sequence.mean) == (2, 1, 0.5)


@pytest.mark.parametrize(
    ("reference", "model", "message"),
    [
        ([-1.0, -2.0], [-1.0], "one of each for every text"),
        ([-1.0, float("nan")], [-1.0, -1.0], "not a number"),
        ([-1.0, -np.inf], [-1.0, -1.0], "drew itself"),
        ([-1.0], [-1.0], "draw at least 2"),
    ],
)
def test_what_cannot_be_estimated_is_an_error(reference, model, message):
    with pytest.raises(DataError, match=message):
        forward_kl(reference, model, num_tokens=[1] * len(reference), num_bytes=[1] * len(reference))


def test_marks_must_fit_the_tokens():
    with pytest.raises(DataError, match="the first token is given"):
        EncodedText((1, 2), (True, True))
    with pytest.raises(DataError, match="give positions in it"):
        encode([A], first_id=EOS, control_id=CONTROL, starts=[1])

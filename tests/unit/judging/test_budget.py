"""Prices, the most that a question costs, and budgets as users write them."""

import pytest
from ask_judge import question

from phf_ray.errors import ConfigError
from phf_ray.judging.budget import UNIT, Budget, Cost, Price, most_of, refuse_unbounded, shown_money
from phf_ray.judging.question import Question


def test_a_price_is_for_a_million_tokens():
    # 1,000 x 2.50 / 1e6 + 100 x 10 / 1e6 = .0025 + .001
    assert Price(2.5, 10).of(1000, 100) * UNIT == pytest.approx(0.0035, abs=1e-12)
    assert Price(0.0001, 0).of(1, 0) == 1, "rounded up: a budget is never passed by roundings"
    with pytest.raises(ConfigError, match="give 0 or more"):
        Price(-1, 0)


def test_the_most_of_a_question_has_a_token_for_each_byte_and_all_of_its_answer():
    asked = Question("j", prompt="é" * 100, decoding={"max_tokens": 50})
    most = most_of(asked, Price(1, 1))
    assert most.tokens == 200 + 64 + 16 + 50
    assert most.money == most.tokens * 1000
    assert most_of(asked, None).money is None
    assert most_of(question(1, max_completion_tokens=500), None).tokens > 500
    assert most_of(question(1, n=3), None).tokens - most_of(question(1), None).tokens == 20


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("5.00", Budget(money=5_000_000_000)),
        ("0.000001", Budget(money=1000)),
        ("200000 tokens", Budget(tokens=200_000)),
        ("2e6 tokens", Budget(tokens=2_000_000)),
        ("0", Budget(money=0)),
        (str(5e-05), Budget(money=50_000)),
    ],
)
def test_a_budget_is_money_or_tokens(text, budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["", "five", "5 euros", "-1", "nan", "1.2.3"])
def test_what_is_no_budget_is_said(text):
    with pytest.raises(ConfigError, match=r"give money, such as 5.00, or tokens, such as '200000 tokens'"):
        Budget.parse(text)


def test_a_budget_holds_up_to_its_last_unit():
    assert Budget.parse("1.00").holds(Cost(10**9, 5))
    assert not Budget.parse("1.00").holds(Cost(10**9 + 1, 5))
    assert Budget.parse("5 tokens").holds(Cost(None, 5))
    assert not Budget.parse("5 tokens").holds(Cost(None, 6))


def test_a_budget_needs_a_price_and_an_end_of_answers():
    refuse_unbounded(Budget.parse("9 tokens"), question(1), None)
    with pytest.raises(ConfigError, match="judge has no price"):
        refuse_unbounded(Budget.parse("1.00"), question(1), None)
    with pytest.raises(ConfigError, match="may have any length; give its annotator max_tokens"):
        refuse_unbounded(Budget.parse("1.00"), Question("j", prompt="x"), Price(1, 1))


def test_money_is_shown_with_cents_and_what_is_below_them():
    assert [shown_money(units) for units in (5 * 10**9, 4_100_000_000, 1)] == ["5.00", "4.10", "0.000000001"]

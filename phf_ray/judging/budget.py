"""What a judge may cost: prices, the most that a question can cost, and a budget that is never passed."""

import math
import re
from dataclasses import dataclass

from phf_ray.errors import ConfigError, IncompleteError
from phf_ray.judging.question import Question

UNIT = 1e-9
"""Money is counted in whole billionths, so that sums are exact. At a price of .04 per million, a token costs 40."""
_TOKENS_AROUND, _TOKENS_A_MESSAGE = 64, 16
"""More than chat templates put around the messages and each of them."""
_BUDGET = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(tokens?)?\s*", re.IGNORECASE)


class BudgetSpentError(IncompleteError):
    """The next call might cost more than is left of the budget, so it wasn't sent."""


@dataclass(frozen=True, slots=True)
class Price:
    """Money for a million tokens."""

    input: float
    output: float

    def __post_init__(self) -> None:
        for name, value in (("input", self.input), ("output", self.output)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"price {name}: {value} is no price for a million tokens; give 0 or more")

    def of(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Return what these tokens cost, in units, rounded up."""
        # 1 unit is 1e-9, and a price of 1 for a million tokens is 1e-6 for one: 1000 units.
        return math.ceil(round((prompt_tokens * self.input + completion_tokens * self.output) * 1000, 6))


@dataclass(frozen=True, slots=True)
class Cost:
    money: int | None
    """In units; None: nobody said what a token costs."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Budget:
    """The most that all calls kept in a cache may have cost, in money or in tokens."""

    money: int | None = None
    tokens: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """Parse `5.00`, which is money, or `200000 tokens`."""
        found = _BUDGET.fullmatch(text)
        try:
            value = float(found[1]) if found else math.nan
        except ValueError:
            value = math.nan
        if found is None or not math.isfinite(value):
            raise ConfigError(f"--budget {text}: give money, such as 5.00, or tokens, such as '200000 tokens'")
        return cls(tokens=int(value)) if found[2] else cls(money=math.floor(round(value / UNIT, 3)))

    def holds(self, spent: Cost) -> bool:
        """Whether so much may have been spent."""
        if self.tokens is not None and spent.tokens > self.tokens:
            return False
        return self.money is None or (spent.money or 0) <= self.money

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens" if self.tokens is not None else shown_money(self.money or 0)


def shown_money(units: int) -> str:
    """Return money with two digits after the point, or with more if it needs them."""
    digits = f"{units * UNIT:.9f}".rstrip("0")
    whole, _, fraction = digits.partition(".")
    return f"{whole}.{fraction:0<2}"


def most_of(question: Question, price: Price | None) -> Cost:
    """Return the most that a question can cost: a token for each byte of the prompt, and all the answer may have.

    An answer of unknown length counts as none; `refuse_unbounded` names it where a budget is set.
    """
    texts = [question.prompt or ""] if question.messages is None else [one.content for one in question.messages]
    around = _TOKENS_AROUND + _TOKENS_A_MESSAGE * len(texts)
    prompt = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) + around
    answers = max(int(question.decoding.get(name) or 1) for name in ("n", "best_of"))
    completion = (most_answered(question) or 0) * answers
    return Cost(None if price is None else price.of(prompt, completion), prompt + completion)


def most_answered(question: Question) -> int | None:
    """Return how many tokens the answer may have; None: nothing limits it."""
    found = question.decoding.get("max_completion_tokens", question.decoding.get("max_tokens"))
    return None if found is None else int(found)


def refuse_unbounded(budget: Budget, question: Question, price: Price | None) -> None:
    """Raise ConfigError if nobody can say what the question may cost."""
    if budget.money is not None and price is None:
        raise ConfigError(
            f"--budget {budget} is money, and {question.judge} has no price; write `prices: {{MODEL: {{input: ..., "
            "output: ...}}`, for a million tokens, into the annotators' file, or give a budget in tokens, such as "
            "--budget '200000 tokens'"
        )
    if most_answered(question) is None:
        raise ConfigError(
            f"--budget {budget}: the answers of {question.judge} may have any length; give its annotator max_tokens"
        )

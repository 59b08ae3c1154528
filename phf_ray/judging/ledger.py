"""What the calls of a cache cost, and a budget that no call may pass: a call reserves the most it can cost first.

A call is `sent`, then `settled` at what it cost, or `free` because the server did nothing. A call whose end nobody saw
is `lost`, and counts with the most it can have cost: the server may have answered.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable

from phf_ray.judging.budget import Budget, BudgetSpentError, Cost, Price, most_of, refuse_unbounded, shown_money
from phf_ray.judging.question import Answer, Question
from phf_ray.judging.store import Store, is_answered, keep_answer

_POLL_S = 0.2
_LATER = -1

CallObserver = Callable[[str, str, Cost], None]
"""Is told of each call that ends: whom it asked, its last state, and what it counts for."""


class Ledger:
    """The calls of a store, and the budget that they keep. Several processes may keep one budget, or each its own."""

    def __init__(self, store: Store, budget: Budget | None = None, *, observer: CallObserver | None = None):
        self._store, self.budget = store, budget
        self._observer = observer

    async def claim(self, key: str, question: Question, price: Price | None) -> int | None:
        """Claim a question and reserve what its first call may cost, in one transaction. Return the call.

        None: the question is answered, or another has it. Waits if calls under way may leave enough. Raises
        BudgetSpentError if nothing that is under way can leave enough for this call.
        """
        return await self._reserve(key, question, price, claims=True)

    async def reserve(self, key: str, question: Question, price: Price | None) -> int:
        """Reserve what another call for a claimed question may cost, as `claim` does."""
        call = await self._reserve(key, question, price, claims=False)
        assert call is not None
        return call

    async def settle(self, call: int, question: Question, answer: Answer, price: Price | None) -> None:
        """Store the answer and what it cost, in one transaction, and free the question."""
        await asyncio.wrap_future(self._store.submit(lambda db: self._settle(db, call, question, answer, price)))
        self._tell(question, "settled", cost_of(answer, price) or most_of(question, price))

    def note_end(self, call: int, question: Question, price: Price | None, *, state: str) -> None:
        """Note that a call has no answer: `free` if it can't have cost anything, else `lost`."""
        self._store.submit(lambda db: _end(db, call, state, None))
        self._tell(question, state, Cost(0, 0) if state == "free" else most_of(question, price))

    def _tell(self, question: Question, state: str, cost: Cost) -> None:
        if self._observer is not None:
            self._observer(question.judge, state, cost)

    def spent(self) -> Cost:
        """What all calls cost, with the most that those can cost which have no answer yet, or lost it."""
        return _spent(self._store.reader)

    def count(self) -> dict[str, int]:
        """Return how many calls there are, by state."""
        return dict(self._store.reader.execute("SELECT state, count(*) FROM calls GROUP BY state").fetchall())

    async def _reserve(self, key: str, question: Question, price: Price | None, *, claims: bool) -> int | None:
        if self.budget is not None:
            refuse_unbounded(self.budget, question, price)
        most = most_of(question, price)
        while True:
            done = self._store.submit(lambda db: self._reserve_in(db, key, question, most, claims=claims))
            call = await asyncio.wrap_future(done)
            if call != _LATER:
                return call
            await asyncio.sleep(_POLL_S)

    def _reserve_in(
        self, db: sqlite3.Connection, key: str, question: Question, most: Cost, *, claims: bool
    ) -> int | None:
        owner = self._store.owner
        if claims and (is_answered(db, key) or not owner.claim(db, key)):
            return None
        spent = _spent(db)
        if self.budget is not None and not self.budget.holds(_sum(spent, most)):
            owner.bury_the_dead(db)
            if db.execute("SELECT 1 FROM calls WHERE state = 'sent'").fetchone() is None:
                raise BudgetSpentError(
                    f"the calls of {self._store.folder} have cost {_shown(spent, self.budget)} of the budget of "
                    f"{self.budget}, and the next may cost {_shown(most, self.budget)}; raise --budget to go on. All "
                    "answers so far are kept"
                )
            if claims:
                owner.free(db, key)
            return _LATER
        money = most.money or 0
        db.execute("UPDATE spent SET money = money + ?, tokens = tokens + ?", (money, most.tokens))
        cursor = db.execute(
            "INSERT INTO calls VALUES (NULL, ?, ?, ?, 'sent', ?, ?, ?, NULL)",
            (key, question.judge, owner.name, money, most.tokens, time.time()),
        )
        return cursor.lastrowid

    def _settle(
        self, db: sqlite3.Connection, call: int, question: Question, answer: Answer, price: Price | None
    ) -> None:
        (key,) = db.execute("SELECT key FROM calls WHERE call = ?", (call,)).fetchone()
        keep_answer(db, key, question, answer)
        self._store.owner.free(db, key)
        _end(db, call, "settled", cost_of(answer, price))


def cost_of(answer: Answer, price: Price | None) -> Cost | None:
    """Return what an answer cost; None if the server didn't count its tokens."""
    if answer.prompt_tokens is None or answer.completion_tokens is None:
        return None
    money = None if price is None else price.of(answer.prompt_tokens, answer.completion_tokens)
    return Cost(money, answer.prompt_tokens + answer.completion_tokens)


def _end(db: sqlite3.Connection, call: int, state: str, cost: Cost | None) -> None:
    """End a call. `cost`: None leaves what was reserved, unless the call was free."""
    money, tokens = db.execute("SELECT money, tokens FROM calls WHERE call = ?", (call,)).fetchone()
    paid = Cost(0, 0) if state == "free" else cost or Cost(money, tokens)
    db.execute(
        "UPDATE calls SET state = ?, money = ?, tokens = ?, ended_at = ? WHERE call = ?",
        (state, paid.money or 0, paid.tokens, time.time(), call),
    )
    db.execute(
        "UPDATE spent SET money = money + ?, tokens = tokens + ?", ((paid.money or 0) - money, paid.tokens - tokens)
    )


def _spent(db: sqlite3.Connection) -> Cost:
    return Cost(*db.execute("SELECT money, tokens FROM spent").fetchone())


def _sum(one: Cost, other: Cost) -> Cost:
    return Cost((one.money or 0) + (other.money or 0), one.tokens + other.tokens)


def _shown(cost: Cost, budget: Budget) -> str:
    return f"{cost.tokens:,} tokens" if budget.tokens is not None else shown_money(cost.money or 0)

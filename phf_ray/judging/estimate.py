"""What judging will cost, found out without asking anyone: the steps run, and questions are counted instead of sent."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from phf_ray.judging.annotators import Annotator, Verdict
from phf_ray.judging.budget import Cost, most_answered, most_of, shown_money
from phf_ray.judging.endpoint import EndpointSettings
from phf_ray.judging.pairs import Pair
from phf_ray.judging.pool import Pool
from phf_ray.judging.question import Asker, Failure, Question
from phf_ray.judging.steps import JudgingOptions, Known, Steps, judge_pairs
from phf_ray.judging.store import Store

_BYTES_PER_TOKEN = 4
"""Of English, roughly. The bounds don't use it."""
_NOT_ASKED = Failure("not_asked: only counted")


@dataclass(slots=True)
class Estimate:
    """What is left to ask. The most is a bound that no call passes; what is likely is a guess."""

    pairs: int = 0
    in_process: int = 0
    """Pairs whose judge is no model that is asked in words: rules, and scorers, here or behind URLs."""
    stored: int = 0
    """Questions whose answers are kept already."""
    calls: int = 0
    likely_tokens: int = 0
    most_tokens: int = 0
    likely_money: int = 0
    most_money: int = 0
    without_price: set[str] = field(default_factory=set)
    without_end: set[str] = field(default_factory=set)
    """Judges whose answers may have any length."""

    def lines(self) -> list[str]:
        lines = [
            f"{self.pairs:,} pairs; {self.in_process:,} of them go to judges that cost nothing",
            f"{self.calls:,} calls; {self.stored:,} more are answered in the cache",
            f"about {self.likely_tokens:,} tokens, at most {self.most_tokens:,}",
        ]
        if self.without_price:
            lines.append(
                f"price unknown of {', '.join(sorted(self.without_price))}: no `prices` in the annotators' file"
            )
        if self.most_money or not self.without_price:
            lines.append(f"price: about {shown_money(self.likely_money)}, at most {shown_money(self.most_money)}")
        if self.without_end:
            lines.append(f"no max_tokens for {', '.join(sorted(self.without_end))}: their answers count as empty")
        return lines


class CountingAsker(Asker):
    """Counts questions by their keys, each once."""

    def __init__(self, estimate: Estimate, endpoints: Mapping[str, EndpointSettings], store: Store | None):
        self._estimate, self._endpoints, self._store = estimate, endpoints, store
        self._seen: set[bytes] = set()

    async def ask(self, question: Question) -> Failure:
        estimate, key = self._estimate, question.key
        if (short := bytes.fromhex(key)) in self._seen:
            return _NOT_ASKED
        self._seen.add(short)
        if self._store is not None and self._store.find(key) is not None:
            estimate.stored += 1
            return _NOT_ASKED
        price = self._endpoints[question.judge].price
        most, answer = most_of(question, price), most_answered(question)
        texts = [question.prompt or ""] if question.messages is None else [one.content for one in question.messages]
        likely_prompt = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts) // _BYTES_PER_TOKEN
        estimate.calls += 1
        estimate.likely_tokens += likely_prompt + (answer or 0)
        estimate.most_tokens += most.tokens
        if answer is None:
            estimate.without_end.add(question.judge)
        if price is None:
            estimate.without_price.add(question.judge)
        else:
            likely = Cost(price.of(likely_prompt, answer or 0), 0)
            estimate.likely_money += likely.money or 0
            estimate.most_money += most.money or 0
        return _NOT_ASKED


class _NotJudged(Annotator):
    """Stands where a judge that costs nothing would be: loading it may take long."""

    async def verdicts(self, shown: Sequence[Pair], asker: Asker | None) -> list[Verdict]:  # noqa: ARG002
        return [Verdict(_NOT_ASKED)] * len(shown)


async def estimate_parts(
    steps: Steps,
    parts: Iterable[list[Pair]],
    *,
    num_pairs: int,
    asker: CountingAsker,
    estimate: Estimate,
    known: Known | None = None,
) -> Estimate:
    """Count what judging these parts asks. `num_pairs`: of the whole job."""
    pool: Pool = steps.pool
    annotators = pool.build_asked(seed=steps.seed)
    local = {one.name: _NotJudged(one) for one in pool.config.annotators if one.judge.endpoint is None}
    for pairs in parts:
        estimate.pairs += len(pairs)
        judgements = await judge_pairs(
            steps,
            {**annotators, **local},
            pairs,
            JudgingOptions(asker=asker, known=known, num_pairs=num_pairs),
        )
        estimate.in_process += sum(one.annotator in local and one.error == _NOT_ASKED.reason for one in judgements)
    return estimate

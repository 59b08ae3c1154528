"""Judging: simulated annotators compare answers, and models are ranked by what they say.

In: pairs of answers, a file of annotators. Out: comparisons, each with who judged and what it cost. `question.py` says
what a judge is asked and what comes back, `store.py` keeps every answer, `ledger.py` what was spent; `steps.py` decides
who judges a pair and how; `annotate.py` writes a corpus of comparisons, and `on_ray.py` does so on a cluster. Open
`question.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "Answer": "question",
    "Asker": "question",
    "Failure": "question",
    "LabelAgreement": "label_agreement",
    "agreement_with_labels": "label_agreement",
    "agreement_with_scorer": "pool_agreement",
    "Judge": "judges.base",
    "Judgement": "pairs",
    "Pair": "pairs",
    "PairwiseAutoAnnotator": "api",
    "Pool": "pool",
    "Question": "question",
    "Steps": "steps",
    "alpaca_leaderboard": "api",
    "judge_pairs": "steps",
    "load_pool": "pool",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)

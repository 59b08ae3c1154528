"""KL(reference || model): texts of a reference, and their log-probabilities under any served model.

In: two models behind URLs. Out: nats per sequence, token and byte, with standard errors. `texts.py` draws and keeps the
texts, `sequence_scorer.py` gets their log-probabilities, `estimate.py` does the arithmetic. Open `estimate.py` first.
"""

from typing import Any

from phf_ray.exports import load_export

_EXPORTS = {
    "KL": "estimate",
    "EncodedText": "encoding",
    "MeanEstimate": "estimate",
    "encode": "encoding",
    "forward_kl": "estimate",
}


def __getattr__(name: str) -> Any:
    return load_export(__name__, _EXPORTS, name)

"""Inspects the model's inputs now and then: decodes the blocks, scores their text again, and measures it like samples.

This reveals scores that were lost or shifted on the way from the corpus to the loss: `debugging/score` averages new
scores of the text, `debugging/raw_token_scores_avg` the scores that came with its tokens. The inspection runs in a
thread and the scorer in a process of its own, while the loop goes on.
"""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from phf_ray.config import Config
from phf_ray.measures.build import build_metric
from phf_ray.records import TEXT_KINDS, TokenKind
from phf_ray.scorers.process import ScoringProcess
from phf_ray.scorers.tasks import ScoringSetup, ScoringTask, without_gpus

log = logging.getLogger(__name__)


_WITHOUT_SCORE = {TokenKind.UNSCORED, TokenKind.PLAIN}

SPAN_TOKENS = 128
MAX_SPANS = 32

Score = Callable[[Sequence[str]], list[float | None]]
Figures = dict[str, Any]
"""Numbers and tables by name."""


class InspectedSpan(NamedTuple):
    """Consecutive tokens of a block, beginning with an end-of-text token."""

    ids: NDArray[np.int64]
    kinds: NDArray[np.uint8]
    scores: NDArray[np.float32]
    values: NDArray[np.float32] | None
    """Predictions of the value head; None if there is no value head."""


def cut_spans(
    ids_BS: NDArray[np.int64],
    kinds_BS: NDArray[np.uint8],
    scores_BS: NDArray[np.float32],
    values_BS: NDArray[np.float32] | None = None,
) -> list[InspectedSpan]:
    """Cut SPAN_TOKENS tokens from each end-of-text token on, fewer at the end of a block; at most MAX_SPANS spans."""
    spans: list[InspectedSpan] = []
    for row in range(len(ids_BS)):
        length = int((kinds_BS[row] != TokenKind.PAD).sum())
        for begin in np.flatnonzero(kinds_BS[row] == TokenKind.END_OF_TEXT).tolist():
            part = slice(begin, min(begin + SPAN_TOKENS, length))
            if part.stop - begin > 1 and len(spans) < MAX_SPANS:
                values = None if values_BS is None else values_BS[row, part]
                spans.append(InspectedSpan(ids_BS[row, part], kinds_BS[row, part], scores_BS[row, part], values))
    return spans


def inspect(
    spans: Sequence[InspectedSpan], *, tokenizer: PreTrainedTokenizerFast, config: Config, score: Score | None
) -> Figures:
    """Return figures `debugging/...`, leaving out those without data: scores, for example, if `score` is None."""
    if not spans:
        return {"debugging/num_segments": 0}
    texts = [str(tokenizer.decode(span.ids[_is_text(span)])) for span in spans]
    scores = [None] * len(texts) if score is None else score(texts)
    figures: Figures = {"debugging/num_segments": len(spans)}
    figures |= _mean_and_spread([one for one in scores if one is not None], "debugging/score", "debugging/score_std")
    token_scores = np.concatenate([span.scores[span.kinds == TokenKind.CONTENT] for span in spans])
    names = "debugging/raw_token_scores_avg", "debugging/raw_token_scores_std"
    figures |= _mean_and_spread(token_scores.tolist(), *names)
    for settings in config.generation.metrics_configs:
        measures = build_metric(settings, compat=config.original)(texts)
        figures |= {f"debugging/{name}": value for name, value in measures.items() if value is not None}
    figures["debugging/segments"] = {
        "columns": ["text", "score"],
        "rows": [list(row) for row in zip(texts, scores, strict=True)],
    }
    figures["debugging/raw_text"] = {
        "columns": ["raw_text", "minus_scores", "values"],
        "rows": [_raw_row(span, tokenizer) for span in spans],
    }
    return figures


def _is_text(span: InspectedSpan) -> NDArray[np.bool_]:
    return np.isin(span.kinds, TEXT_KINDS)


def _mean_and_spread(numbers: Sequence[float], mean: str, spread: str) -> Figures:
    return {mean: float(np.mean(numbers)), spread: float(np.std(numbers))} if numbers else {}


def _raw_row(span: InspectedSpan, tokenizer: PreTrainedTokenizerFast) -> list[Any]:
    """Return decoded tokens, their rewards (None: no score) and, if there is a value head, its predictions."""
    rewards = [
        None if kind in _WITHOUT_SCORE else round(-float(score), 6)
        for score, kind in zip(span.scores, span.kinds.tolist(), strict=True)
    ]
    values = None if span.values is None else [round(float(value), 6) for value in span.values]
    return [tokenizer.decode(span.ids), rewards, values]


def cosine_and_norms(rows: dict[str, NDArray[np.float32]]) -> dict[str, float]:
    """Return norms and cosine of the control tokens' output embeddings: they show how far training separates them."""
    figures = {f"debugging/{token}_norm": float(np.linalg.norm(row)) for token, row in rows.items()}
    first, second = rows.values()
    norms = float(np.linalg.norm(first) * np.linalg.norm(second))
    return figures | ({"debugging/control_tokens_similarity": float(first @ second) / norms} if norms else {})


class Inspector:
    """Runs one inspection at a time in a thread; skips an inspection that comes while another is running."""

    def __init__(self, config: Config, tokenizer: PreTrainedTokenizerFast):
        self._config = config
        self._tokenizer = tokenizer
        self._thread: threading.Thread | None = None
        self._rows: queue.SimpleQueue[Figures] = queue.SimpleQueue()

    def submit(self, spans: Sequence[InspectedSpan], *, counters: Mapping[str, float]) -> None:
        """Start an inspection unless one is running. `counters` go into the row that `finished` will return."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = threading.Thread(
            target=self._work, args=(list(spans), counters), name="inspect-inputs", daemon=True
        )
        self._thread.start()

    def finished(self, *, wait: bool = False) -> list[Figures]:
        """Return the rows of metrics since the last call; with `wait`, finish a running inspection first."""
        if wait and self._thread is not None:
            self._thread.join()
        rows = []
        with contextlib.suppress(queue.Empty):
            while True:
                rows.append(self._rows.get_nowait())
        return rows

    def _work(self, spans: Sequence[InspectedSpan], counters: Mapping[str, float]) -> None:
        score = None
        try:
            if self._config.scoring.scorers or self._config.generation.scorer_config:
                score = self._score
            figures = inspect(spans, tokenizer=self._tokenizer, config=self._config, score=score)
        except Exception as error:  # noqa: BLE001  (border of a thread: an inspection must not end the training)
            log.warning("the inputs of the model could not be inspected: %s: %s", type(error).__name__, error)
            return
        self._rows.put({**counters, **figures})

    def _score(self, texts: Sequence[str]) -> list[float | None]:
        # The scorer needs its own process: it may hang on a text, and it must not hold the loop's interpreter lock.
        config = self._config
        setup = ScoringSetup(
            (dict(config.evaluation_scorer),), "document", text_timeout_s=config.scoring.text_timeout_s
        )
        # The loop needs the worker's GPU.
        process = ScoringProcess(without_gpus(setup))
        try:
            [identity] = process.identities
            process.submit([ScoringTask(texts=(text,)) for text in texts])
            return [outcome.scores[identity.name][0][0] for outcome in process.collect().outcomes]
        finally:
            process.close()

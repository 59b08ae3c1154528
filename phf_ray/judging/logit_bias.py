"""Turns words that a judge should avoid or favour into the logit biases that endpoints understand."""

import logging
from collections.abc import Sequence
from typing import Any

from phf_ray.config import AnnotatorConfig
from phf_ray.errors import ConfigError

log = logging.getLogger(__name__)

AVOID, FAVOR = -100, 7
"""As AlpacaFarm has them. A server never says a token with -100."""


def logit_bias(annotator: AnnotatorConfig, *, tokenizer: str | None) -> dict[str, int]:
    """Return token id, as text, -> bias. Warns of words that get none.

    `tokenizer`: folder or hub id, for words; ids need none. Raises ConfigError if it can't be loaded.
    """
    words = [token for token in (*annotator.tokens_to_avoid, *annotator.tokens_to_favor) if isinstance(token, str)]
    loaded = None
    if words and tokenizer is None:
        log.warning(
            "annotator %s: tokens_to_avoid and tokens_to_favor have no effect on %s: set `tokenizer:` to that of the "
            "judge's model, or write ids",
            annotator.name,
            ", ".join(map(repr, words)),
        )
    elif words:
        loaded = _load(str(tokenizer), annotator=annotator.name)
    bias = {str(one): FAVOR for token in annotator.tokens_to_favor for one in _ids(token, loaded)}
    for token in annotator.tokens_to_avoid:
        ids = _ids(token, loaded)
        if len(ids) == 1:
            bias[str(ids[0])] = AVOID
        elif ids:
            # Each of its tokens is a part of other words, too.
            log.warning("annotator %s: %r is %d tokens and is not avoided", annotator.name, token, len(ids))
    return bias


def _ids(token: str | int, tokenizer: Any) -> Sequence[int]:
    if isinstance(token, int):
        return [token]
    return [] if tokenizer is None else list(tokenizer.encode(token, add_special_tokens=False))


def _load(name: str, *, annotator: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"annotator {annotator}: tokenizer {name} can't be loaded: {str(error).splitlines()[0]}; give the folder "
            "or hub id of the judge's tokenizer, or write token ids"
        ) from None

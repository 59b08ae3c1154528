"""How many positions of a text a model treats alike, whatever text it shares a batch with."""

from collections.abc import Iterator, Mapping
from typing import Any


def position_limit(config: Any) -> tuple[int | None, str]:
    """Return the number of positions that one text may use, or None if the configuration names none, and the reason.

    With longrope (Phi-3), one token beyond the original positions changes the rotation of every token of the batch,
    even of those whose keys are computed already.
    """
    limits = [(limit, "its longrope factors change there for all texts of a batch") for limit in _longrope(config)]
    declared = declared_positions(config)
    if declared is not None:
        limits.append((declared, "its configuration names no more positions"))
    return min(limits, default=(None, "its configuration names no limit"))


def declared_positions(config: Any) -> int | None:
    """Return the number of positions that the configuration names, or None."""
    # Only MPT uses the second name.
    named: int | None = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return named


def _longrope(config: Any) -> Iterator[int]:
    parameters = getattr(config, "rope_parameters", None) or {}
    # Some architectures have one set of parameters for each type of layer.
    for each in (parameters, *parameters.values()):
        if isinstance(each, Mapping) and each.get("rope_type") == "longrope":
            original = each.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            if original is not None:
                yield int(original)

"""A text as a model sees it: which token starts it, where control tokens go, and which tokens count."""

from collections.abc import Sequence
from dataclasses import dataclass

from phf_ray.errors import DataError


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text as a model sees it."""

    ids: tuple[int, ...]
    """The first id is given, not predicted: the end-of-text token that documents start with."""
    counted: tuple[bool, ...]
    """Whether a token is part of the text; false for the first and for inserted control tokens."""

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.counted) or not self.ids or self.counted[0]:
            raise DataError(
                f"{len(self.ids)} token ids and {len(self.counted)} marks; every token needs both, and the "
                "first token is given, so it must not count"
            )


def encode(
    ids: Sequence[int],
    *,
    first_id: int,
    control_id: int | None = None,
    starts: Sequence[int] = (),
    ends_with: int | None = None,
) -> EncodedText:
    """Return `first_id` and the text's token ids, with control tokens before the positions in `starts`.

    `starts`: [0] for one control token at the start, or the first token of every segment for one each. `ends_with`: the
    end-of-text token if the text ended by itself. It was drawn like any other token, so it counts.
    """
    marked = set(starts) if control_id is not None else set()
    if not all(0 <= start < max(1, len(ids)) for start in marked):
        raise DataError(
            f"control tokens can't go before tokens {sorted(marked)} of a text of {len(ids)}; give positions in it"
        )
    found: list[tuple[int, bool]] = [(first_id, False)]
    for position, token_id in enumerate(ids):
        if position in marked and control_id is not None:
            found.append((control_id, False))
        found.append((token_id, True))
    if not ids and marked and control_id is not None:
        found.append((control_id, False))
    if ends_with is not None:
        found.append((ends_with, True))
    return EncodedText(tuple(token for token, _ in found), tuple(counted for _, counted in found))

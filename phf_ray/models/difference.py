"""A model as a base and a difference to it, in AlpacaFarm's format: weight = base + difference.

Embeddings may have rows that the base lacks. If it is one, the padding token's, its difference is to the mean of the
base's rows. An embedding with more than that is stored whole, as are the head of a reward model and its bias.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from phf_ray.errors import ConfigError, DataError
from phf_ray.models.stored_weights import StoredTensor, stored_weights

BACKBONE = "backbone_model."
"""Beginning of the names of a reward model's weights, but those of its head."""
HEAD_WEIGHT, HEAD_BIAS = "reward_head.weight", "reward_head.bias"

# Buffers that follow from the configuration; older versions of transformers stored them.
_FREQUENCIES = "rotary_emb.inv_freq"
_WITH_ROWS = ("embed_tokens.weight", "lm_head.weight")
_SHOWN = 3


def trained_weights(difference: Path, base: Path | None) -> dict[str, StoredTensor]:
    """Return the trained model's weights by the difference's names, each in fp32 and added when it is read.

    `base=None`: `difference` holds the weights themselves. Raises ConfigError if the base is a model of another shape,
    DataError if files are damaged or a reward model lacks its head.
    """
    stored = _weights(difference)
    if any(name.startswith(BACKBONE) for name in stored):
        for name in {HEAD_WEIGHT, HEAD_BIAS} - stored.keys():
            raise DataError(
                f"{difference} has {BACKBONE}* but no {name}, so it is no whole reward model; fetch it again"
            )
    if base is None:
        return {name: StoredTensor(each.shape, _whole(each)) for name, each in stored.items()}
    of_base = _bases(stored, base)
    _check_names(stored, of_base, difference=difference, base=base)
    found = {}
    for name, each in stored.items():
        below = of_base.get(name)
        if below is None or _is_stored_whole(name, each.shape, below.shape, difference=difference, base=base):
            found[name] = StoredTensor(each.shape, _whole(each))
        else:
            found[name] = StoredTensor(each.shape, _added(each, below))
    return found


def _weights(folder: Path) -> dict[str, StoredTensor]:
    return {name: each for name, each in stored_weights(folder).items() if not name.endswith(_FREQUENCIES)}


def _bases(stored: Mapping[str, StoredTensor], base: Path) -> dict[str, StoredTensor]:
    prefix = BACKBONE if HEAD_WEIGHT in stored else ""
    return {prefix + name: each for name, each in _weights(base).items()}


def _check_names(
    stored: Mapping[str, StoredTensor], of_base: Mapping[str, StoredTensor], *, difference: Path, base: Path
) -> None:
    lacking = sorted(stored.keys() - of_base.keys() - {HEAD_WEIGHT, HEAD_BIAS})
    unknown = sorted(of_base.keys() - stored.keys())
    if lacking or unknown:
        found = [f"it lacks {lacking[:_SHOWN]} ({len(lacking)} in all)"] * bool(lacking)
        found += [f"only it has {unknown[:_SHOWN]} ({len(unknown)} in all)"] * bool(unknown)
        raise ConfigError(
            f"{base} is not the base model of {difference}: {', and '.join(found)}; give the model that the difference "
            "was taken from"
        )


def _is_stored_whole(
    name: str, shape: tuple[int, ...], below: tuple[int, ...], *, difference: Path, base: Path
) -> bool:
    if shape == below:
        return False
    has_more_rows = name.endswith(_WITH_ROWS) and shape[1:] == below[1:] and shape[0] > below[0]
    if not has_more_rows:
        raise ConfigError(
            f"{base} is not the base model of {difference}: its {name} has shape {below}, that of the difference "
            f"{shape}; give the model that the difference was taken from"
        )
    return shape[0] > below[0] + 1


def _whole(stored: StoredTensor) -> Callable[[], Tensor]:
    return lambda: stored.read().float()


def _added(stored: StoredTensor, below: StoredTensor) -> Callable[[], Tensor]:
    def read() -> Tensor:
        lower = below.read().float()
        if stored.shape != below.shape:
            lower = torch.cat([lower, lower.mean(dim=0, keepdim=True)])
        return lower.add_(stored.read().float())

    return read

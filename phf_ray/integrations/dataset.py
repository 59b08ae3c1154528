"""Token blocks as a data set of torch."""

from typing import Any

import torch
from torch.utils.data import Dataset

from phf_ray.blocks.manifest import read_block_manifest
from phf_ray.blocks.order import BlockOrder
from phf_ray.blocks.reader import BlockReader

COLUMNS = ("input_ids", "token_scores", "token_kinds")


class BlockDataset(Dataset[dict[str, Any]]):
    """One epoch of the token blocks in a folder, in the order of phf-ray's own training."""

    def __init__(self, root: str, *, seed: int = 0) -> None:
        manifest = read_block_manifest(root)
        self._reader = BlockReader(root, order=BlockOrder(manifest, seed=seed))
        self._num_blocks = manifest.num_blocks
        self.unscored = manifest.unscored
        """Names of the data sets without scores."""

    def __len__(self) -> int:
        return self._num_blocks

    def __getitem__(self, index: int) -> dict[str, Any]:
        block = self._reader.read(index, index + 1)
        return {name: torch.from_numpy(getattr(block, name)[0]) for name in COLUMNS}

"""What an OFT adapter on disk does to a weight: W' = W Rᵀ, R block-diagonal and orthogonal (Qiu et al., 2023, arXiv:2306.07280).

Each block of R is the Cayley transform (I + Q)⁻¹ (I - Q) of a skew-symmetric Q, whose upper triangle is what was learned; by
default its series I - 2Q + 2Q² - … is cut off, with peft's sign of Q (arXiv:2506.19847).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tunesmith.export.changes import Blocks, Step, load
from tunesmith.export.tensor_files import StoredTensor

if TYPE_CHECKING:
    import torch

UNDERSTOOD = {
    "auto_mapping", "base_model_name_or_path", "bias", "block_share", "coft", "eps", "exclude_modules", "fan_in_fan_out", "inference_mode",
    "init_weights", "layers_pattern", "layers_to_transform", "module_dropout", "modules_to_save", "num_cayley_neumann_terms",
    "oft_block_size", "peft_type", "peft_version", "r", "revision", "target_modules", "task_type", "use_cayley_neumann",
}  # fmt: skip
"""Keys of adapter_config.json that are understood here or change nothing once training is over."""


@dataclass(frozen=True)
class Rotation:
    """The learned upper triangles [blocks, size · (size - 1) / 2], or [1, …] when all blocks share one rotation."""

    triangles: StoredTensor
    shared: bool
    terms: int | None
    """Terms of the series; None = the exact inverse."""
    limit: float | None
    """COFT: how far the rotation may be from none."""

    @property
    def size(self) -> int:
        """Width of a block."""
        return (1 + math.isqrt(1 + 8 * self.triangles.shape[1])) // 2

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """See ``Change``."""
        if self.shared:
            return f"a width that is a multiple of {self.size}" if len(shape) != 2 or shape[1] % self.size else None
        width = self.triangles.shape[0] * self.size
        return f"the width {width}" if len(shape) != 2 or shape[1] != width else None

    def open(self, before: Blocks, dtype: torch.dtype) -> Step:
        """See ``Change``."""
        import torch

        blocks = rotations(load(self.triangles), self.size, self.terms, self.limit)

        def step(rows: torch.Tensor, start: int) -> torch.Tensor:
            parts = rows.reshape(len(rows), -1, self.size)
            return torch.einsum("rnk,nck->rnc", parts, blocks.expand(parts.shape[1], -1, -1)).reshape(rows.shape)

        return step


def rotation(triangles: StoredTensor, config: dict[str, Any]) -> Rotation:
    """The rotation of one layer, with the settings of adapter_config.json."""
    return Rotation(
        triangles,
        bool(config.get("block_share")),
        config.get("num_cayley_neumann_terms", 5) if config.get("use_cayley_neumann", True) else None,
        config.get("eps", 6e-5) if config.get("coft") else None,
    )


def rotations(triangles: torch.Tensor, size: int, terms: int | None, limit: float | None) -> torch.Tensor:
    """R [blocks, size, size] from the upper triangles of Q."""
    import torch

    rows, columns = torch.triu_indices(size, size, 1)
    skew = torch.zeros(len(triangles), size, size)
    skew[:, rows, columns] = triangles
    skew = skew - skew.transpose(1, 2)
    if limit is not None:
        bound = limit / math.sqrt(len(skew))
        length = torch.linalg.matrix_norm(skew, keepdim=True)
        skew = torch.where(length <= bound, skew, bound * skew / length)
    identity = torch.eye(size).expand_as(skew)
    if terms is None:
        return torch.linalg.solve(identity + skew, identity - skew, left=False)
    found, power = identity + 2 * skew, skew
    if terms > 2:
        power = skew @ skew
        found = found + 2 * power
        for _ in range(3, terms - 1):
            power = power @ skew
            found = found + 2 * power
        found = found + power @ skew  # the last term counts once, as peft cuts the series off
    return found

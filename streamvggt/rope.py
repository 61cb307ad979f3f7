"""Two-dimensional rotary position embedding of the patches (RoFormer, Su et al. 2021, applied to rows and columns)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BASE = 100.0


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a table first made in inference mode could not be used in training later
def rotary_table(grid_hw: tuple[int, int], num_special: int, head_dim: int, device: torch.device) -> Tensor:
    """Build the angles by which the tokens of one frame are turned.

    Patches stand at ``(row + 1, column + 1)``, special tokens at (0, 0): VGGT has no position in time, so one table
    serves all frames.

    Args:
        grid_hw: rows and columns of patches.
        num_special: tokens before the patches.
        head_dim: D, a multiple of 4; its first half turns with the row, its second with the column.
        device: where the table is used.

    Returns:
        Cosines and sines ``[2, P, 2, 2, D / 4]`` (token, axis, member of a pair, frequency), float32; the sine of the
        first member is negative.
    """
    rows, columns = grid_hw
    y, x = torch.meshgrid(torch.arange(1, rows + 1), torch.arange(1, columns + 1), indexing="ij")
    patches = torch.stack([y.flatten(), x.flatten()], dim=-1)
    positions = torch.cat([patches.new_zeros(num_special, 2), patches]).float()
    frequencies = BASE ** -(torch.arange(head_dim // 4, dtype=torch.float32) / (head_dim // 4))
    angles = positions[:, :, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    return torch.stack([torch.stack([cos, cos], dim=2), torch.stack([-sin, sin], dim=2)]).to(device)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn ``x`` ``[..., P, D]`` by the angles of :func:`rotary_table`; pairs are (i, i + D/4) within each half."""
    cos, sin = table
    pairs = x.unflatten(-1, (2, 2, -1))
    return (pairs * cos).addcmul_(pairs.roll(1, -2), sin).flatten(-3)  # rolling a pair swaps it, sooner than a flip

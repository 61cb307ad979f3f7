"""From images to patch tokens: a DINOv2 vision transformer (Oquab et al. 2023) or one convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .attention import full_attention
from .config import StreamVGGTConfig
from .layers import Block, RunBlock, run_block


class PatchEmbed(nn.Module):
    """Cut images into patches and project each to a token.

    Args:
        patch_size: side of a patch, pixels.
        dim: width of the tokens.
    """

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, stride=patch_size)

    def forward(self, images: Tensor, run: RunBlock = run_block) -> Tensor:
        """Map normalised images ``[N, 3, H, W]`` to tokens ``[N, (H / patch) * (W / patch), C]``, row by row."""
        return self.proj(images).flatten(2).transpose(1, 2)


class DinoV2(nn.Module):
    """Encode each image by itself with a DINOv2 vision transformer, with or without register tokens."""

    def __init__(self, config: StreamVGGTConfig) -> None:
        super().__init__()
        dim, self.patch_size = config.encoder_width, config.patch_size
        grid = config.image_size // config.patch_size
        self.patch_embed = PatchEmbed(config.patch_size, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, dim))
        if config.encoder_num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.encoder_num_registers, dim))
            # Stands for hidden patches in DINOv2's own training. Unused here, but part of the released weights.
            self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.num_special = 1 + config.encoder_num_registers
        self.blocks = nn.ModuleList(Block(dim, config.encoder_num_heads, eps=1e-6) for _ in range(config.encoder_depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, images: Tensor, run: RunBlock = run_block) -> Tensor:
        """Map normalised images ``[N, 3, H, W]`` to patch tokens ``[N, (H / patch) * (W / patch), C]``."""
        return self.levels(images, [len(self.blocks)], run)[0]

    def levels(self, images: Tensor, after: Sequence[int], run: RunBlock = run_block) -> list[Tensor]:
        """Return normalised patch tokens after each number of blocks in ``after``, ascending; see :meth:`forward`."""
        rows, columns = images.shape[-2] // self.patch_size, images.shape[-1] // self.patch_size
        patches = self.patch_embed(images) + self._patch_positions(rows, columns)
        special = self.cls_token + self.pos_embed[:, :1]
        if self.num_special > 1:
            special = torch.cat([special, self.register_tokens], dim=1)
        x = torch.cat([special.expand(len(patches), -1, -1).to(patches.dtype), patches], dim=1)[:, None]
        kept = []
        for number, block in enumerate(self.blocks, start=1):
            x = run(block, x, full_attention, None)
            if number in after:
                kept.append(self.norm(x[:, 0, self.num_special :]))
        return kept

    def _patch_positions(self, rows: int, columns: int) -> Tensor:
        """Resize the trained position grid to ``rows x columns``; ``[1, rows * columns, C]``."""
        return resize_positions(self.pos_embed[:, 1:], rows, columns)


def resize_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """Resize a square grid of position codes ``[1, side * side, C]`` to ``[1, rows * columns, C]``, as DINOv2 does."""
    side = math.isqrt(positions.shape[1])
    if (rows, columns) == (side, side):
        return positions
    grid = positions.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(rows, columns), mode="bicubic", antialias=True)
    return grid.flatten(2).transpose(1, 2).to(positions.dtype)


def build_encoder(config: StreamVGGTConfig) -> DinoV2 | PatchEmbed:
    """Build the encoder that ``config.encoder`` names."""
    return DinoV2(config) if config.encoder == "dinov2" else PatchEmbed(config.patch_size, config.encoder_width)

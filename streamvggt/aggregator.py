"""Alternating attention: each frame by itself, then across frames (VGGT, Wang et al. 2025, section 3.2)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from .attention import Attend, full_attention
from .config import StreamVGGTConfig
from .layers import Block, RunBlock, run_block
from .rope import rotary_table


class Aggregator(nn.Module):
    """Turn the patch tokens of frames into tokens that know the scene.

    Only the global blocks look across frames, and how they do so is passed in: that is all that differs between VGGT,
    StreamVGGT in training and StreamVGGT on a stream.
    """

    def __init__(self, config: StreamVGGTConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.head_dim = dim // config.num_heads
        # Index 0 serves the first frame of a stream, which defines the world; index 1 all others.
        self.camera_token = nn.Parameter(torch.zeros(1, 2, 1, dim))
        self.register_token = nn.Parameter(torch.zeros(1, 2, config.num_register_tokens, dim))
        self.frame_blocks = nn.ModuleList(Block(dim, config.num_heads, qk_norm=True) for _ in range(config.depth))
        self.global_blocks = nn.ModuleList(Block(dim, config.num_heads, qk_norm=True) for _ in range(config.depth))

    def forward(
        self,
        patches: Tensor,
        grid_hw: tuple[int, int],
        attends: Sequence[Attend],
        layers: Collection[int],
        first_frame: int = 0,
        run: RunBlock = run_block,
    ) -> dict[int, Tensor]:
        """Run all blocks and return the tokens of the layers that were asked for.

        Args:
            patches: ``[B, S, rows * columns, C]`` from the encoder.
            grid_hw: rows and columns of patches.
            attends: one way to attend for each global block.
            layers: numbers of the layers to return.
            first_frame: number in the stream of the first of the S frames.
            run: how blocks are run.

        Returns:
            For each layer asked for ``[B, S, P, 2 C]``: its frame block's tokens beside its global block's. A frame's
            tokens are the camera token, the registers, then the patches row by row.
        """
        b, s = patches.shape[:2]
        special = torch.cat([self.camera_token, self.register_token], dim=2)
        which = [0 if first_frame + i == 0 else 1 for i in range(s)]
        x = torch.cat([special[:, which].expand(b, -1, -1, -1).to(patches.dtype), patches], dim=2)
        rotary = rotary_table(grid_hw, special.shape[2], self.head_dim, x.device)
        kept = {}
        for layer, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks, strict=True)):
            frame = run(frame_block, x.flatten(0, 1)[:, None], full_attention, rotary).view_as(x)
            x = run(global_block, frame, attends[layer], rotary)
            if layer in layers:
                kept[layer] = torch.cat([frame, x], dim=-1)
        return kept

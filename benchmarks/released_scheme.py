"""The streaming scheme of the released StreamVGGT code, re-created on our weights as the yardstick of the benchmark.

Re-created, from a description of that code:

* each global block keeps raw keys and values, neither normalised nor rotated, in a pair of tensors that a frame
  replaces by their concatenation with its own;
* each frame therefore normalises and rotates the keys of all frames again;
* each camera block keeps one such pair for all refinement rounds, so it grows by four entries a frame;
* the aggregator keeps the tokens of all layers until the frame is done, not only of those that the heads read.

Not re-created: encoder, frame blocks, dense heads and the formula of the rotation, which are ours in both schemes, so
that only the schemes differ; and the tracker, which that code runs on single frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from streamvggt.attention import Attend, full_attention
from streamvggt.layers import Attention, Block
from streamvggt.matching import MatchMemory
from streamvggt.model import StreamVGGT
from streamvggt.rope import rotary_table, rotate
from streamvggt.types import Predictions

Pair = tuple[Tensor, Tensor]  # keys and values, [B, heads, tokens so far, D]


class ReleasedStream:
    """A stream that remembers as the released code does.

    Args:
        model: a causal network whose weights are used; it is not changed.
    """

    def __init__(self, model: StreamVGGT) -> None:
        self.model = model
        self.num_frames = 0
        self._blocks: list[Pair | None] = [None] * model.config.depth
        self._camera: list[Pair | None] = [None] * model.config.camera_depth
        self._matches = MatchMemory()

    def step(self, images: Tensor) -> Predictions:
        """Take the next frame ``[B, 1, 3, H, W]``, RGB in [0, 1], and predict as ``StreamVGGT.forward`` does.

        Poses are those of ``camera_cache="shared"``; depth and points are those of any stream.
        """
        with torch.no_grad():
            tokens = self._aggregate(images)
            predictions = self.model._decode(tokens, (images.shape[-2], images.shape[-1]), self._camera_attend)
        self.num_frames += 1
        return predictions

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Forget the frames that are taken inside."""
        before = self.num_frames, list(self._blocks), list(self._camera), self._matches
        yield
        self.num_frames, self._blocks, self._camera, self._matches = before

    def _aggregate(self, images: Tensor) -> dict[int, Tensor]:
        """Tokens of all layers, ``[B, 1, P, 2 C]`` each, in the precision of the heads."""
        config, aggregator = self.model.config, self.model.aggregator
        grid_hw = (images.shape[-2] // config.patch_size, images.shape[-1] // config.patch_size)
        # What the bundled network adds to its patches is no matter of the scheme.
        patches, self._matches, _ = self.model._patches(self.model._encode(images), self._matches, grid_hw)
        patches = patches[:, 0]
        special = torch.cat([aggregator.camera_token, aggregator.register_token], dim=2)[:, min(self.num_frames, 1)]
        x = torch.cat([special.expand(len(patches), -1, -1), patches], dim=1)[:, None]
        rotary = rotary_table(grid_hw, config.special_tokens, aggregator.head_dim, images.device)
        layers = []
        for i, (frame_block, global_block) in enumerate(
            zip(aggregator.frame_blocks, aggregator.global_blocks, strict=True)
        ):
            frame = frame_block(x, full_attention, rotary)
            x = self._global_block(i, global_block, frame, rotary)
            layers.append(torch.cat([frame, x], dim=-1))
        dtype = self.model.camera_head.token_norm.weight.dtype
        return {i: layer.to(dtype) for i, layer in enumerate(layers)}

    def _global_block(self, i: int, block: Block, x: Tensor, rotary: Tensor) -> Tensor:
        """Map ``[B, 1, P, C]`` to the same through global block ``i`` and its memory."""
        x = block.ls1(x, self._attention(i, block.attn, block.norm1(x)[:, 0], rotary)[:, None])
        return block.ls2(x, block.mlp(block.norm2(x)))

    def _attention(self, i: int, attention: Attention, x: Tensor, rotary: Tensor) -> Tensor:
        """Attend from the tokens ``[B, P, C]`` of a frame over those of all frames so far."""
        qkv = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        k, v = self._blocks[i] = _joined(self._blocks[i], k, v)
        q, k = attention.q_norm(q), attention.k_norm(k)
        q, k = rotate(q, rotary), rotate(k, rotary.repeat(1, self.num_frames + 1, 1, 1, 1))
        out = scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return attention.proj(out.transpose(1, 2).flatten(-2))

    def _camera_attend(self, _round: int, block: int) -> Attend:
        """How a camera block attends: whatever the round, over all entries of all rounds so far."""
        return partial(self._attend_camera, block)

    def _attend_camera(self, block: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pair = self._camera[block] = _joined(self._camera[block], k[:, :, 0], v[:, :, 0])
        return scaled_dot_product_attention(q[:, :, 0], *pair)[:, :, None]


def _joined(past: Pair | None, k: Tensor, v: Tensor) -> Pair:
    """Past keys and values with those of a frame behind them, in new tensors."""
    return (k, v) if past is None else (torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2))

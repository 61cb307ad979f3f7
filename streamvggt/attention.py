"""How a query attends: the one thing that differs between teacher, student and stream.

An attend function takes ``q, k, v`` of shape ``[B, heads, S, P, D]`` (streams, heads, frames, tokens of a frame, head
width), normalised and rotated, and returns the attended values in the same shape. The third way, against a cache, is
:class:`streamvggt.cache.KVCache`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


def full_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend to all tokens of all frames (VGGT). With S = 1: to the tokens of the own frame."""
    out = scaled_dot_product_attention(q.flatten(2, 3), k.flatten(2, 3), v.flatten(2, 3))
    return out.unflatten(2, q.shape[2:4])


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend from frame s to the frames 0..s (StreamVGGT), one call a frame.

    A call a frame does half the work of a masked call over all frames and keeps the fast kernels, which a dense float
    mask would rule out.
    """
    frames = [
        scaled_dot_product_attention(q[:, :, s], k[:, :, : s + 1].flatten(2, 3), v[:, :, : s + 1].flatten(2, 3))
        for s in range(q.shape[2])
    ]
    return side_by_side(frames)


def side_by_side(frames: Sequence[Tensor]) -> Tensor:
    """Bring attended frames ``[B, heads, P, D]`` together to ``[B, heads, S, P, D]``; one alone is not copied."""
    return frames[0][:, :, None] if len(frames) == 1 else torch.stack(list(frames), dim=2)

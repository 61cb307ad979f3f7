"""The transformer block that encoder, aggregator and camera head are made of (Vaswani et al. 2017, pre-norm)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .attention import Attend
from .rope import rotate


class Attention(nn.Module):
    """Project to queries, keys and values, let ``attend`` decide who sees whom, project back.

    Args:
        dim: width of the tokens.
        num_heads: attention heads.
        qk_norm: normalise queries and keys, before they are rotated (Dehghani et al. 2023, ViT-22B, section 2).
    """

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(dim // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
        """Map tokens ``[B, S, P, C]`` to ``[B, S, P, C]``."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(3, 0, 4, 1, 2, 5).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        # Autocast leaves the norms' results in float32; a cache of such keys would take twice the memory.
        out = attend(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(out.permute(0, 2, 3, 1, 4).flatten(-2))


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int, out: int | None = None) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, out or dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., dim]`` to ``[..., out]``."""
        return self.fc2(self.act(self.fc1(x)))


class LayerScale(nn.Module):
    """Add a residual branch, each channel with a learned weight (Touvron et al. 2021, CaiT, section 2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """Return ``x + gamma * branch``."""
        return torch.addcmul(x, branch, self.gamma)


class Block(nn.Module):
    """Attention and MLP, each normalised before and scaled after.

    Args:
        dim: width of the tokens.
        num_heads: attention heads.
        qk_norm: see :class:`Attention`.
        eps: of the two layer norms; 1e-6 in the DINOv2 encoder, 1e-5 elsewhere.
    """

    def __init__(self, dim: int, num_heads: int, *, qk_norm: bool = False, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads, qk_norm=qk_norm)
        self.ls1 = LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, 4 * dim)
        self.ls2 = LayerScale(dim)

    def forward(self, x: Tensor, attend: Attend, rotary: Tensor | None = None) -> Tensor:
        """Map tokens ``[B, S, P, C]`` to ``[B, S, P, C]``."""
        x = self.ls1(x, self.attn(self.norm1(x), attend, rotary))
        return self.ls2(x, self.mlp(self.norm2(x)))


# How a block is run: as it is, or compiled (:mod:`streamvggt.static`).
RunBlock = Callable[[nn.Module, Tensor, Attend, Tensor | None], Tensor]


def run_block(block: nn.Module, x: Tensor, attend: Attend, rotary: Tensor | None) -> Tensor:
    """Run a :class:`Block` as it is; see :meth:`Block.forward`."""
    out: Tensor = block(x, attend, rotary)
    return out

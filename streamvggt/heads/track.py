"""Track head: follow points through frames (VGGT section 3.3, after CoTracker, Karaev et al. 2024).

A query point is looked up in the feature map of its frame. Its place in every other frame starts at the same pixel and
is refined a few times: correlate the point's feature with the surroundings of the current guess at several scales, let
a transformer look at all frames of a point (time) and all points of a frame (space), move the guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, gelu, grid_sample

from ..config import StreamVGGTConfig, TrackConfig
from ..layers import Mlp
from .dense import FeaturePyramid, by_chunks

NUM_HEADS = 8
NUM_VIRTUAL = 64  # tokens through which points exchange what they know, at a cost linear in their number
FLOW_SCALE = 518.0  # displacements are divided by this before they enter the transformer


class TrackBlock(nn.Module):
    """Attention, of tokens to themselves or to a context, and MLP.

    The first skip connection carries the *normalised* tokens, as the released weights expect.
    """

    def __init__(self, dim: int, *, has_context: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim) if has_context else None
        self.attn = nn.MultiheadAttention(dim, NUM_HEADS, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map tokens ``[n, L, dim]``, with a context ``[n, M, dim]`` where there is one, to ``[n, L, dim]``."""
        x = self.norm1(x)
        seen = x if self.norm_context is None or context is None else self.norm_context(context)
        x = x + self.attn(x, seen, seen, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class TrackTransformer(nn.Module):
    """Let every point look along time and, through virtual tracks, at the other points."""

    def __init__(self, dim: int, track: TrackConfig) -> None:
        super().__init__()
        hidden, depth = track.hidden_size, track.depth
        self.input_norm = nn.LayerNorm(dim)
        self.input_proj = nn.Linear(dim, hidden)
        self.virtual_tracks = nn.Parameter(torch.zeros(1, NUM_VIRTUAL, 1, hidden))
        self.time_blocks = nn.ModuleList(TrackBlock(hidden) for _ in range(depth))
        self.gather_blocks = nn.ModuleList(TrackBlock(hidden, has_context=True) for _ in range(depth))
        self.virtual_blocks = nn.ModuleList(TrackBlock(hidden) for _ in range(depth))
        self.scatter_blocks = nn.ModuleList(TrackBlock(hidden, has_context=True) for _ in range(depth))
        self.output_norm = nn.LayerNorm(hidden)
        self.flow_head = nn.Linear(hidden, track.features + 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, N, S, dim]`` to updates of position and feature ``[B, N, S, 2 + features]``."""
        b, n, s, _ = x.shape
        start = self.input_proj(self.input_norm(x))
        x = torch.cat([start, self.virtual_tracks.expand(b, -1, s, -1)], dim=1)
        blocks = zip(self.time_blocks, self.gather_blocks, self.virtual_blocks, self.scatter_blocks, strict=True)
        for time, gather, mix, scatter in blocks:
            x = time(x.flatten(0, 1)).unflatten(0, (b, -1))
            points, virtual = x.transpose(1, 2).flatten(0, 1).split([n, NUM_VIRTUAL], dim=1)
            virtual = mix(gather(virtual, points))
            x = torch.cat([scatter(points, virtual), virtual], dim=1).unflatten(0, (b, s)).transpose(1, 2)
        return self.flow_head(self.output_norm(x[:, :n] + start))


class TrackHead(nn.Module):
    """Follow query points from the first of the given frames through the others."""

    def __init__(self, config: StreamVGGTConfig, track: TrackConfig) -> None:
        super().__init__()
        self.track = track
        c = track.features
        self.feature_extractor = FeaturePyramid(config, c, c, position_scale=0.0)
        self.feature_norm = nn.LayerNorm(c)
        dim = 3 * c + 4
        self.query_token = nn.Parameter(torch.zeros(1, 2, dim))
        window = (2 * track.correlation_radius + 1) ** 2
        self.correlation_mlp = Mlp(track.correlation_levels * window, track.hidden_size, c)
        self.transformer = TrackTransformer(dim, track)
        self.update_norm = nn.GroupNorm(1, c)
        self.update_proj = nn.Linear(c, c)
        self.visibility = nn.Linear(c, 1)
        self.confidence = nn.Linear(c, 1)

    def features(self, tokens: Mapping[int, Tensor], image_hw: tuple[int, int]) -> list[tuple[Tensor, ...]]:
        """Compute what a frame must keep to be searched for points.

        Args:
            tokens: ``[B, S, P, 2 C]`` of the dense layers.
            image_hw: size of the images, pixels.

        Returns:
            For each of the S frames a pyramid of feature maps ``[B, features, h, w]``, halved from level to level.
        """
        b, s = tokens[self.feature_extractor.layers[0]].shape[:2]
        size_hw = (image_hw[0] // self.track.stride, image_hw[1] // self.track.stride)
        maps = by_chunks(tokens, lambda chunk: self.feature_extractor(chunk, image_hw, size_hw))
        levels = [self.feature_norm(maps.flatten(0, 1).movedim(1, -1)).movedim(-1, 1)]
        for _ in range(self.track.correlation_levels - 1):
            levels.append(avg_pool2d(levels[-1], 2))
        by_frame = [level.unflatten(0, (b, s)).unbind(1) for level in levels]
        return list(zip(*by_frame, strict=True))

    def forward(self, query_points: Tensor, frames: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
        """Follow points.

        Args:
            query_points: ``[B, N, 2]``, xy in pixels, on the first of ``frames``.
            frames: pyramids from :meth:`features`, S of them.

        Returns:
            Tracks ``[B, S, N, 2]`` (xy in pixels), visibility and confidence ``[B, S, N]`` (probabilities).
        """
        s, stride = len(frames), self.track.stride
        query = query_points.to(frames[0][0].dtype) / stride
        feature_hw = tuple(frames[0][0].shape[-2:])
        feature = _sample(frames[0][0], query[:, :, None], "border")[:, :, 0]
        features = feature[:, None].expand(-1, s, -1, -1)
        xy = query[:, None].expand(-1, s, -1, -1)
        place = _sampled_sine_positions(query, feature_hw, self.query_token.shape[-1])[:, :, None]
        token = torch.cat([self.query_token[:, :1], self.query_token[:, 1:].expand(-1, s - 1, -1)], dim=1)
        for _ in range(self.track.iterations):
            xy = xy.detach()
            seen = self.correlation_mlp(_correlate(features, frames, xy, self.track.correlation_radius))
            flow = xy - xy[:, :1]
            motion = torch.cat([_flow_embedding(flow, self.track.features // 2), *2 * [flow / FLOW_SCALE]], dim=-1)
            x = torch.cat([motion, seen, features], dim=-1).transpose(1, 2) + place + token[:, None]
            delta = self.transformer(x).transpose(1, 2)
            normed = self.update_norm(delta[..., 2:].flatten(0, 2)).view_as(features)
            features = features + gelu(self.update_proj(normed))
            xy = torch.cat([query[:, None], (xy + delta[..., :2])[:, 1:]], dim=1)
        visibility, confidence = (head(features)[..., 0].sigmoid() for head in (self.visibility, self.confidence))
        return (xy * stride).float(), visibility.float(), confidence.float()


def _sample(maps: Tensor, xy: Tensor, padding: str) -> Tensor:
    """Look up ``maps`` ``[B, C, h, w]`` bilinearly at cells ``xy`` ``[B, n, m, 2]``; ``[B, n, m, C]``."""
    h, w = maps.shape[-2:]
    scale = xy.new_tensor([2 / max(w - 1, 1), 2 / max(h - 1, 1)])
    return grid_sample(maps, xy * scale - 1, padding_mode=padding, align_corners=True).movedim(1, -1)


def _correlate(features: Tensor, frames: Sequence[Sequence[Tensor]], xy: Tensor, radius: int) -> Tensor:
    """Compare each point's feature with the window around its guess, at every level; ``[B, S, N, levels * window]``.

    Sampling the map first and multiplying then gives the same as sampling a full correlation volume, at a fraction of
    its cost.
    """
    steps = torch.arange(-radius, radius + 1, device=xy.device, dtype=xy.dtype)
    window = torch.cartesian_prod(steps, steps)  # x changes slowly, y fast
    correlations = []
    for i, levels in enumerate(frames):
        at_levels = [
            torch.einsum("bnwc,bnc->bnw", _sample(level, xy[:, i, :, None] / 2**j + window, "zeros"), features[:, i])
            for j, level in enumerate(levels)
        ]
        correlations.append(torch.cat(at_levels, dim=-1))
    return torch.stack(correlations, dim=1) / features.shape[-1] ** 0.5


def _flow_embedding(flow: Tensor, channels: int) -> Tensor:
    """Embed displacements ``[..., 2]`` as interleaved sines and cosines ``[..., 2 * channels]``, x then y."""
    frequencies = torch.arange(0, channels, 2, device=flow.device, dtype=flow.dtype) * (1000.0 / channels)
    angles = flow[..., None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


def _sampled_sine_positions(xy: Tensor, grid_hw: tuple[int, ...], channels: int) -> Tensor:
    """Sine map of whole cells, looked up bilinearly at ``xy`` ``[B, N, 2]``; ``[B, N, channels]``, x then y."""
    count = channels // 4
    frequencies = 10000.0 ** -(torch.arange(count, dtype=torch.float64) / count)
    parts = []
    for axis, cells in ((0, grid_hw[1]), (1, grid_hw[0])):
        angles = torch.arange(cells, dtype=torch.float64)[:, None] * frequencies
        table = torch.cat([angles.sin(), angles.cos()], dim=-1).to(xy)
        at = xy[..., axis].clamp(0, cells - 1)
        below = at.floor().long().clamp(max=max(cells - 2, 0))
        above = (below + 1).clamp(max=cells - 1)
        parts.append(torch.lerp(table[below], table[above], (at - below)[..., None]))
    return torch.cat(parts, dim=-1)

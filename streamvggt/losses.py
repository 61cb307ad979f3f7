"""What a network is asked for: cameras, depth, points, and matches between frames. Every clip counts the same."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, huber_loss, normalize

from .geometry import project


@dataclass(frozen=True)
class LossConfig:
    """Weights of the losses, 0 for none.

    :meth:`published` has those of StreamVGGT (Zhuo et al. 2025, section 3.4). The defaults are those of the bundled
    model: lengths are known, so nothing is aligned, depth is compared as logarithm, and pose errors are measured in
    units of what is usual (translation, quaternion, field of view). A weight below 0 is refused with ValueError.

    Attributes:
        camera: of the poses of all refinement rounds.
        camera_units: an error of this size counts 1, for translation (scene units), quaternion and field of view
            (radians).
        camera_weights: of translation, quaternion and field of view.
        camera_huber: error, in those units, from which on it counts linearly.
        camera_decay: weight of a round over that of the next one.
        depth: of the depth maps.
        depth_space: "log" or "linear".
        depth_gradient: of the differences of neighbours, beside 1 for the depth itself.
        points: of the point maps.
        align: whether scale (and, for depth, shift) are fitted before comparing.
        confidence: how much confidence is worth.
        feature: of the tokens' likeness to the teacher's.
        descriptor: InfoNCE of the descriptors that frames are matched with.
        guide: of attention to the matching patch, in two heads of the first global block.
        displacement: of a linear read-out of how far patches moved since frame 0.
        patch_depth: of a linear read-out of the logarithm of patches' depth.
    """

    camera: float = 1.0
    camera_units: tuple[float, float, float] = (0.15, 0.06, 0.3)
    camera_weights: tuple[float, float, float] = (1.0, 1.0, 0.5)
    camera_huber: float = 1.0
    camera_decay: float = 0.6
    depth: float = 1.0
    depth_space: str = "log"
    depth_gradient: float = 1.0
    points: float = 0.5
    align: bool = False
    confidence: float = 0.1
    feature: float = 0.0
    descriptor: float = 0.2
    guide: float = 0.1
    displacement: float = 1.0
    patch_depth: float = 0.5

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            value = getattr(self, name)
            if isinstance(value, float) and not value >= 0:
                raise ValueError(f"loss.{name} must be at least 0, got {value}")
        if not self.camera_huber > 0:
            raise ValueError(f"loss.camera_huber must be above 0, got {self.camera_huber}")
        if self.depth_space not in ("log", "linear"):
            raise ValueError(f"loss.depth_space must be log or linear, got {self.depth_space!r}")

    @classmethod
    def published(cls) -> LossConfig:
        """The weights of the StreamVGGT paper; its tracking loss is not among them, the tracker stays as it was."""
        return cls(
            camera=20.0,
            camera_units=(1.0, 1.0, 1.0),
            camera_huber=0.1,
            depth=20.0,
            depth_space="linear",
            points=10.0,
            align=True,
            descriptor=0.0,
            guide=0.0,
            displacement=0.0,
            patch_depth=0.0,
        )


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over each clip of ``[B, ...]`` where ``mask``, then over clips; a clip without any counts 0.

    What is masked must be finite before it is computed with, or its gradient is zero times infinity.
    """
    weights = mask.to(values.dtype)
    kept = torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
    return (kept.flatten(1).sum(1) / weights.flatten(1).sum(1).clamp_min(1)).mean()


def camera_loss(rounds: Tensor, target: Tensor, config: LossConfig) -> Tensor:
    """Compare the poses of all refinement rounds ``[I, B, S, 9]`` with the true ones ``[B, S, 9]``; Huber."""
    unit = rounds.new_tensor([config.camera_units[i] for i in (0,) * 3 + (1,) * 4 + (2,) * 2])
    error = huber_loss(rounds / unit, (target / unit).expand_as(rounds), reduction="none", delta=config.camera_huber)
    parts = torch.stack([error[..., :3].mean(-1), error[..., 3:7].mean(-1), error[..., 7:].mean(-1)], dim=-1)
    each = (parts * parts.new_tensor(config.camera_weights)).sum(-1).mean((1, 2))
    decay = config.camera_decay ** torch.arange(len(rounds) - 1, -1, -1, device=rounds.device)
    return (each * decay).sum() / decay.sum()


def depth_loss(depth: Tensor, conf: Tensor, target: Tensor, valid: Tensor, config: LossConfig) -> Tensor:
    """Compare depth maps ``[B, S, H, W]`` where valid, by the network's own confidence; plus their differences."""
    depth, target = (torch.where(valid, x, 1.0) for x in (depth, target))
    if config.depth_space == "log":
        depth, target = depth.clamp_min(1e-4).log(), target.clamp_min(1e-4).log()
    if config.align:
        scale, shift = _fit(depth, target, valid)
        depth = scale * depth + shift
    loss = _confident((depth - target).abs(), conf, valid, config.confidence)
    return loss + config.depth_gradient * gradient_loss(depth, target, valid)


def gradient_loss(values: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Compare differences over 1, 2 and 4 pixels of maps ``[B, S, H, W]``, where both ends are valid."""
    values, target = (torch.where(valid, x, 0.0) for x in (values, target))
    losses = []
    for step in (1, 2, 4):
        for dim in (-1, -2):
            length = values.shape[dim] - step
            both = [(x.narrow(dim, step, length), x.narrow(dim, 0, length)) for x in (values, target, valid)]
            (v1, v0), (t1, t0), (m1, m0) = both
            losses.append(masked_mean(((v1 - v0) - (t1 - t0)).abs(), m1 & m0))
    return torch.stack(losses).mean()


def point_loss(points: Tensor, conf: Tensor, target: Tensor, valid: Tensor, config: LossConfig) -> Tensor:
    """Compare point maps ``[B, S, H, W, 3]`` by confidence, as a share of the distance; plus the surface normals."""
    points, target = (torch.where(valid[..., None], x, 0.0) for x in (points, target))
    if config.align:
        dot, square = (x.flatten(1).sum(1) for x in (points * target, points * points))
        points = points * (dot / square.clamp_min(1e-8)).detach()[:, None, None, None, None]
    error = _length(points - target) / (0.2 + _length(target))
    loss = _confident(error, conf, valid, config.confidence)
    if not config.align:
        return loss
    for step in (1, 2, 4):
        inside = valid[..., :-step, :-step] & valid[..., step:, :-step] & valid[..., :-step, step:]
        likeness = (_normals(points, step) * _normals(target, step)).sum(-1)
        loss = loss + masked_mean(1 - likeness, inside) / 3
    return loss


def feature_loss(tokens: dict[int, Tensor], teacher: dict[int, Tensor]) -> Tensor:
    """One minus the cosine between the tokens of student and teacher ``[B, S, P, 2 C]``, over all layers."""
    cosines = [(normalize(tokens[i], dim=-1) * normalize(teacher[i], dim=-1)).sum(-1).mean() for i in teacher]
    return 1 - torch.stack(cosines).mean()


@dataclass(frozen=True, eq=False)
class Matches:
    """Where the centres of patches are seen in the other frames of their clip.

    Attributes:
        patch: number of the patch in frame ``j`` that shows the centre of a patch of frame ``i``, ``[B, i, j, N]``.
        xy: its exact place there, pixels, ``[B, i, j, N, 2]``.
        visible: bool ``[B, i, j, N]``; never for ``i == j``.
        depth: of the centres, ``[B, S, N]``.
        valid: bool ``[B, S, N]``, whether that is known.
        centres: places of the centres in their own frame, pixels, ``[N, 2]``.
    """

    patch: Tensor
    xy: Tensor
    visible: Tensor
    depth: Tensor
    valid: Tensor
    centres: Tensor


@torch.no_grad()
def patch_matches(
    depth: Tensor,
    valid: Tensor,
    points: Tensor,
    extrinsics: Tensor,
    intrinsics: Tensor,
    patch: int,
    tolerance: float = 0.06,
) -> Matches:
    """Find by exact geometry which patches show the same point.

    A point counts as seen in the other frame if the depth there is its own, up to ``tolerance`` of it; what moved by
    more than that drops out as if it were hidden.

    Args:
        depth: ``[B, S, H, W]``.
        valid: bool ``[B, S, H, W]``.
        points: in the world, ``[B, S, H, W, 3]``.
        extrinsics: world-to-camera ``[B, S, 3, 4]``.
        intrinsics: pixels, ``[B, S, 3, 3]``.
        patch: side of a patch, pixels.
        tolerance: of the depth.
    """
    s, height, width = depth.shape[1:]
    depth = torch.where(valid, depth, 0.0)
    rows, columns = height // patch, width // patch
    y, x = torch.meshgrid(
        *(torch.arange(n, device=depth.device) * patch + patch // 2 for n in (rows, columns)), indexing="ij"
    )
    x, y = x.flatten(), y.flatten()
    known = valid[:, :, y, x]
    xy, z = project(points[:, :, None, y, x], extrinsics[:, None, :, None], intrinsics[:, None, :, None])
    nearest = xy.nan_to_num(-1, -1, -1).clamp(-1, max(height, width)).round().long()
    u, v = nearest[..., 0], nearest[..., 1]
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height) & (z > 0)
    u, v = u.clamp(0, width - 1), v.clamp(0, height - 1)
    there = depth.flatten(2)[:, None].expand(-1, s, -1, -1).gather(3, v * width + u)
    others = ~torch.eye(s, dtype=torch.bool, device=depth.device)[None, :, :, None]
    visible = inside & known[:, :, None] & ((z - there).abs() < tolerance * z) & others
    number = (v // patch).clamp_max(rows - 1) * columns + (u // patch).clamp_max(columns - 1)
    return Matches(number, xy, visible, depth[:, :, y, x], known, torch.stack([x, y], dim=-1).float())


def descriptor_loss(descriptors: Tensor, temperature: Tensor, matches: Matches) -> Tensor:
    """InfoNCE (van den Oord et al. 2018) between the descriptors ``[B, S, N, D]`` of all pairs of frames."""
    similarity = torch.einsum("bind,bjmd->bijnm", descriptors, descriptors) * temperature
    return _matching_entropy(similarity, matches.patch, matches.visible)


def guide_loss(queries: Tensor, keys: Tensor, num_special: int, matches: Matches) -> Tensor:
    """Ask two heads to look, among all keys of the past, at the matching patch of frame 0 and of the previous frame.

    Args:
        queries: of a global block, ``[B, heads, S, P, D]``.
        keys: likewise.
        num_special: tokens of a frame before its patches.
        matches: the truth.
    """
    s, tokens, width = queries.shape[2:]
    later = torch.arange(1, s, device=queries.device)
    future = torch.arange(s, device=queries.device).repeat_interleave(tokens) > later[:, None]
    losses = []
    for head, reference in ((0, torch.zeros_like(later)), (1, later - 1)):
        q = queries[:, head, 1:, num_special:]
        scores = torch.einsum("bsnd,bkd->bsnk", q, keys[:, head].flatten(1, 2)) * width**-0.5
        scores = scores.masked_fill(future[None, :, None], -1e4)
        place = reference[:, None] * tokens + num_special + matches.patch[:, later, reference]
        losses.append(_matching_entropy(scores, place, matches.visible[:, later, reference]))
    return torch.stack(losses).mean()


def displacement_loss(predicted: Tensor, matches: Matches, width: int) -> Tensor:
    """Compare how far patches moved since frame 0, ``[B, S, N, 2]`` in half widths of the image, with the truth."""
    moved = (matches.xy[:, :, 0] - matches.centres) * (2 / width)
    seen = matches.visible[:, :, 0]
    return masked_mean(_length(torch.where(seen[..., None], predicted - moved, 0.0)), seen)


def patch_depth_loss(predicted: Tensor, matches: Matches) -> Tensor:
    """Compare the logarithm of the depth of patches ``[B, S, N]`` with the truth."""
    error = torch.where(matches.valid, predicted - matches.depth.clamp_min(1e-4).log(), 0.0)
    return masked_mean(error.abs(), matches.valid)


def _matching_entropy(scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of ``[B, ..., K]`` against numbers ``[B, ...]`` where ``mask``, averaged as every loss here."""
    return masked_mean(cross_entropy(scores.movedim(-1, 1), target, reduction="none"), mask)


def _confident(error: Tensor, conf: Tensor, valid: Tensor, worth: float) -> Tensor:
    """Weight errors by confidence, which is worth its logarithm (Kendall & Gal 2017; VGGT, section 3.4)."""
    conf = torch.where(valid, conf, 1.0)
    return masked_mean(error * conf - worth * conf.log(), valid)


def _fit(values: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares scale and shift of each clip, ``[B, 1, 1, 1]``, without gradient."""
    with torch.no_grad():
        weights = valid.to(values.dtype)
        count = weights.sum((1, 2, 3), keepdim=True).clamp_min(1)
        mean_v, mean_t = ((x * weights).sum((1, 2, 3), keepdim=True) / count for x in (values, target))
        v, t = (values - mean_v) * weights, (target - mean_t) * weights
        scale = (v * t).sum((1, 2, 3), keepdim=True) / (v * v).sum((1, 2, 3), keepdim=True).clamp_min(1e-8)
        return scale, mean_t - scale * mean_v


def _length(vectors: Tensor) -> Tensor:
    """Length of ``[..., n]``, with a gradient at 0."""
    return (vectors * vectors).sum(-1).add(1e-12).sqrt()


def _normals(points: Tensor, step: int) -> Tensor:
    """Unit normals of point maps ``[..., H, W, 3]`` from neighbours ``step`` pixels right and below."""
    corner = points[..., :-step, :-step, :]
    right, below = points[..., :-step, step:, :] - corner, points[..., step:, :-step, :] - corner
    return normalize(torch.linalg.cross(right, below, dim=-1), dim=-1)

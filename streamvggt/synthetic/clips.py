"""Clips of made-up scenes with exact truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from streamvggt.geometry import compose, invert_pose, project, unproject
from streamvggt.synthetic.sampling import sample_world
from streamvggt.synthetic.shading import expose, render
from streamvggt.synthetic.textures import TextureBank, procedural_bank
from streamvggt.synthetic.world import SyntheticConfig

_RAYS_AT_ONCE = 4_000_000  # on an accelerator; about 4 GB at the worst
_OCCLUDED = 0.02  # a point this much (of its depth) behind what is seen there is hidden


class Tracks(NamedTuple):
    """Where surface points are in every frame.

    Attributes:
        xy: ``[B, S, N, 2]``, pixels; anything, but finite, behind the camera.
        visible: bool ``[B, S, N]``, in the image and in front of everything else.
        world_points: ``[B, S, N, 3]``, in the first camera's frame; constant over frames on what does not move.
    """

    xy: Tensor
    visible: Tensor
    world_points: Tensor


@dataclass(frozen=True, eq=False)
class SyntheticClip:
    """``B`` clips of ``S`` frames and all that is true of them; float32 where nothing else is said.

    Attributes:
        images: ``[B, S, 3, H, W]``, RGB in [0, 1].
        depth: ``[B, S, H, W]``, z in the camera, in metres until normalised; 0 where not valid.
        valid: bool ``[B, S, H, W]``, False in the sky.
        extrinsics: ``[B, S, 3, 4]``, world-to-camera, OpenCV axes; the identity in frame 0.
        intrinsics: ``[B, S, 3, 3]``, pixels; principal point ``(W / 2, H / 2)``, integer coordinates are pixel centres.
        surface: uint8 ``[B, S, H, W]``, number of the object that is seen, the same in all frames of a clip.
        surface_poses: ``[B, S, M, 3, 4]``, object-to-world, rigid; constant over frames for what does not move.
        seeds: what each clip was made from.
    """

    images: Tensor
    depth: Tensor
    valid: Tensor
    extrinsics: Tensor
    intrinsics: Tensor
    surface: Tensor
    surface_poses: Tensor
    seeds: tuple[int, ...]

    @property
    def world_points(self) -> Tensor:
        """The point of the scene in every pixel, ``[B, S, H, W, 3]``, first camera's frame; see ``valid``."""
        return unproject(self.depth, self.extrinsics, self.intrinsics)

    def normalized(self, *, over: str = "first") -> SyntheticClip:
        """Divide all lengths by the mean distance of the world points from the first camera, which becomes 1.

        Args:
            over: "first" takes the mean over the valid pixels of frame 0, which a stream has when it starts; "all" over
                those of all frames, as VGGT was trained.

        Raises:
            ValueError: ``over`` is something else, or a clip has no valid pixel there.
        """
        if over not in ("first", "all"):
            raise ValueError(f'over must be "first" or "all", got {over!r}')
        frames = slice(1 if over == "first" else None)
        distance = self.world_points[:, frames].square().sum(-1).sqrt()
        valid = self.valid[:, frames]
        count = valid.sum((1, 2, 3))
        if (count == 0).any():
            raise ValueError("a clip without a valid pixel has no scale; drop clips that see nothing but sky")
        scale = ((distance * valid).sum((1, 2, 3)) / count)[:, None, None, None]

        def shrink(poses: Tensor, scale: Tensor) -> Tensor:
            return torch.cat([poses[..., :3], poses[..., 3:] / scale], -1)

        return replace(
            self,
            depth=self.depth / scale,
            extrinsics=shrink(self.extrinsics, scale),
            surface_poses=shrink(self.surface_poses, scale[..., None]),
        )

    def tracks(self, query_frame: int, num_points: int, seed: int) -> Tracks:
        """Follow random surface points, seen in one frame, through all frames.

        The points are pixel centres of the query frame, valid ones, drawn with replacement; they move with the object
        that they lie on. The same clip and seed give the same points in any batch.

        Args:
            query_frame: number of the frame, from 0.
            num_points: N, points a clip.
            seed: for the choice of points.

        Raises:
            ValueError: there is no such frame, or a clip has no valid pixel in it.
        """
        B, S = self.depth.shape[:2]
        if not 0 <= query_frame < S:
            raise ValueError(f"query_frame must be in 0..{S - 1}, got {query_frame}")
        pixel = torch.stack(
            [_choose(self.valid[b, query_frame], num_points, seed + 7919 * self.seeds[b]) for b in range(B)]
        )
        solid = self.surface[:, query_frame].flatten(1).gather(1, pixel).long()
        seen = self.world_points[:, query_frame].flatten(1, 2).take_along_dim(pixel[..., None], 1)

        poses = self.surface_poses.take_along_dim(solid[:, None, :, None, None], 2)
        motion = compose(poses, invert_pose(poses[:, query_frame, None]))
        points = (motion[..., :3] * seen[:, None, :, None]).sum(-1) + motion[..., 3]
        xy, depth = project(points, self.extrinsics[:, :, None], self.intrinsics[:, :, None])
        return Tracks(xy, self._in_front(xy, depth), points)

    def _in_front(self, xy: Tensor, depth: Tensor) -> Tensor:
        """Compare depths with what is seen there: the farthest of the four pixels around, as surfaces slope."""
        H, W = self.depth.shape[-2:]
        size = xy.new_tensor([W, H])
        inside = ((xy >= -0.5) & (xy < size - 0.5)).all(-1) & (depth > 0)
        scene = torch.where(self.valid, self.depth, torch.inf).flatten(2)
        farthest = torch.zeros_like(depth)
        low = xy.clamp(-1, max(H, W)).floor().long()
        for dx, dy in ((0, 0), (0, 1), (1, 0), (1, 1)):
            x, y = (low[..., 0] + dx).clamp(0, W - 1), (low[..., 1] + dy).clamp(0, H - 1)
            farthest = torch.maximum(farthest, scene.gather(2, y * W + x))
        return inside & (depth * (1 - _OCCLUDED) < farthest)


@torch.no_grad()
def render_clips(
    seeds: Sequence[int],
    config: SyntheticConfig,
    device: torch.device | str = "cpu",
    *,
    textures: TextureBank | None = None,
) -> SyntheticClip:
    """Make clips of random rooms and yards with exact depth, cameras and objects.

    A seed means the same clip, bit by bit, in any batch on one device; other devices differ by rounding.

    Args:
        seeds: one a clip, >= 0.
        config: sizes and probabilities.
        device: where to render.
        textures: what surfaces look like, on the same device; None for procedural textures only.

    Returns:
        Clips in metres, on the device.

    Raises:
        ValueError: no seeds, or a negative one.
    """
    if not seeds or min(seeds) < 0:
        raise ValueError(f"seeds must be one number >= 0 a clip, got {list(seeds)}")
    device = torch.device(device)
    bank = textures or procedural_bank(device)
    world = sample_world(seeds, config).to(device)
    B, S, (H, W) = len(seeds), config.num_frames, config.image_hw
    # One frame at a time stays in the caches of a CPU, and gives it the same shapes in every batch.
    at_once = 1 if device.type == "cpu" else max(1, _RAYS_AT_ONCE // (H * W))
    parts = [
        render(world.frames(start, start + at_once), bank, (H, W), shadows=config.shadows)
        for start in range(0, B * S, at_once)
    ]
    radiance, depth, surface = (torch.cat(values).unflatten(0, (B, S)) for values in zip(*parts, strict=True))
    return SyntheticClip(
        images=expose(radiance, world),
        depth=depth,
        valid=depth > 0,
        extrinsics=world.extrinsics,
        intrinsics=world.intrinsics.contiguous(),
        surface=surface,
        surface_poses=world.poses,
        seeds=tuple(seeds),
    )


def _choose(valid: Tensor, count: int, seed: int) -> Tensor:
    """Draw pixels of ``[H, W]`` where valid, as numbers ``[count]`` of the flattened image."""
    candidates = valid.flatten().nonzero().squeeze(1)
    if not len(candidates):
        raise ValueError("the query frame of a clip has no valid pixel: it sees nothing but sky; query another frame")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(candidates), (count,), generator=generator)
    return candidates[chosen.to(candidates.device)]

"""Draw worlds from seeds: furniture, a camera that walks through it, things that move, looks and light.

Everything is drawn in float64 on the CPU, so that a seed means the same world on every device and in every batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from streamvggt.geometry import compose, invert_pose
from streamvggt.synthetic.furniture import (
    NUM_CLUTTER,
    NUM_SOLIDS,
    Dice,
    Parts,
    Space,
    furnish,
    sample_space,
    stand_together,
)
from streamvggt.synthetic.world import SyntheticConfig, World

_CLEARANCE = 0.12  # nothing stands closer to the camera, metres
_SUN_DISTANCE = 60.0


def sample_world(seeds: Sequence[int], config: SyntheticConfig) -> World:
    """Draw one world a seed: ``[B, S, ...]``, float64 on the CPU; the same seed gives the same world in any company."""
    dice = Dice(seeds)
    space = sample_space(dice, config)
    parts, support = furnish(dice, space)
    camera_to_world, target = _sample_camera(dice, space, config)
    poses = _sample_motion(dice, space, parts, config)
    active = parts.active & _keeps_clear(camera_to_world[..., 3], target, poses, parts.half_sizes)
    active = stand_together(active, support)

    first = invert_pose(camera_to_world[:, 0])
    room_pose = torch.eye(3, 4, dtype=torch.float64).expand(len(seeds), config.num_frames, 1, 3, 4)
    values = {
        "extrinsics": _identity_first(invert_pose(compose(first[:, None], camera_to_world))),
        "intrinsics": _sample_intrinsics(dice, config),
        "poses": compose(first[:, None, None], torch.cat([poses, room_pose], 2)),
        "half_sizes": torch.cat([parts.half_sizes, space.half[:, None]], 1),
        "roundness": torch.cat([parts.roundness, torch.zeros_like(parts.roundness[:, :1])], 1),
        "active": torch.cat([active, torch.ones_like(active[:, :1])], 1),
        **_sample_looks(dice, parts),
        **_sample_light(dice, space, first),
    }
    per_frame = {"extrinsics", "intrinsics", "poses"}
    return World(
        **{
            name: value
            if name in per_frame
            else value[:, None].expand(-1, config.num_frames, *(-1 for _ in value.shape[1:]))
            for name, value in values.items()
        }
    )


def _identity_first(extrinsics: Tensor) -> Tensor:
    """Set the first frame to the identity that it is up to rounding."""
    identity = torch.eye(3, 4, dtype=extrinsics.dtype).expand_as(extrinsics[:, :1])
    return torch.cat([identity, extrinsics[:, 1:]], 1)


def _rotation(yaw: Tensor, pitch: Tensor, roll: Tensor) -> Tensor:
    """Build ``[..., 3, 3]``: roll about z, then pitch about x (positive: up), then yaw about y (positive: right)."""
    (cy, sy), (cp, sp), (cr, sr) = ((angle.cos(), angle.sin()) for angle in (yaw, pitch, roll))
    rows = [
        cy * cr + sy * sp * sr, sy * sp * cr - cy * sr, sy * cp,
        cp * sr, cp * cr, -sp,
        cy * sp * sr - sy * cr, sy * sr + cy * sp * cr, cy * cp,
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def _sample_camera(dice: Dice, space: Space, config: SyntheticConfig) -> tuple[Tensor, Tensor]:
    """Walk the camera: camera-to-world ``[B, S, 3, 4]`` and what it looks at ``[B, 3]``."""
    S = config.num_frames
    floor, closeup = space.half[:, 1], space.is_closeup
    height = torch.where(closeup, dice.uniform(0.4, 0.95), dice.uniform(0, 1.3) * space.scale)
    target = torch.stack([space.focus[:, 0], floor - height, space.focus[:, 1]], -1)
    distance = torch.where(closeup, dice.log_uniform(0.4, 1.3), dice.log_uniform(1.3, 4) * space.scale)
    around = dice.uniform(-math.pi, math.pi)
    above = torch.where(closeup, dice.uniform(0.2, 1.1), dice.uniform(-0.05, 0.6))
    back = torch.stack([above.cos() * around.sin(), -above.sin(), above.cos() * around.cos()], -1)
    start = target + distance[:, None] * back

    # Velocity plus slow sway; mostly sideways as seen from the target.
    tau = torch.arange(S, dtype=torch.float64) + dice.uniform(-0.25, 0.25, S) * (torch.arange(S) > 0)
    speed = distance * dice.log_uniform(0.012, 0.13)
    heading = around + math.pi / 2 + math.pi * dice.chance(0.5) + dice.normal(0.7)
    velocity = speed[:, None] * torch.stack([heading.sin(), dice.normal(0.25), heading.cos()], -1)
    sway = torch.sin(dice.uniform(0.2, 0.9, 1, 3) * tau[..., None] + dice.uniform(0, math.tau, 1, 3))
    drift = velocity[:, None] * tau[..., None] + dice.uniform(0, 0.8, 1, 3) * speed[:, None, None] * (
        sway - sway[:, :1]
    )
    limit = (space.half - torch.tensor([0.25, 0.2, 0.25])).clamp_min(0)[:, None]
    position = (start[:, None] + drift).clamp(-limit, limit)

    # Half of the clips keep looking at the target, the others turn as they go.
    follows = dice.chance(0.5)[:, None, None]
    gaze = target[:, None] - torch.where(follows, position, position[:, :1])
    yaw = torch.atan2(gaze[..., 0], gaze[..., 2]) + dice.normal(0.2, 1)
    pitch = torch.atan2(-gaze[..., 1], torch.hypot(gaze[..., 0], gaze[..., 2])) + dice.normal(0.15, 1) - 0.05
    turn = (dice.normal(0.045, 1, 2) * tau[..., None]) * ~follows + dice.normal(0.012, S, 2)
    tilted = dice.chance(config.roll_probability, 1)
    roll = torch.where(tilted, dice.uniform(-math.pi / 3, math.pi / 3, 1), dice.normal(0.06, 1))
    roll = roll + dice.normal(0.006, 1) * tau + dice.normal(0.008, S)
    rotation = _rotation(yaw + turn[..., 0], (pitch + 0.6 * turn[..., 1]).clamp(-1.4, 1.0), roll)
    return torch.cat([rotation, position[..., None]], -1), target


def _sample_intrinsics(dice: Dice, config: SyntheticConfig) -> Tensor:
    height, width = config.image_hw
    low, high = (math.radians(angle) for angle in config.fov_deg)
    focal = (width / 2) / (dice.uniform(low, high) / 2).tan()
    zero, one = torch.zeros_like(focal), torch.ones_like(focal)
    rows = [focal, zero, one * (width / 2), zero, focal, one * (height / 2), zero, zero, one]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))[:, None].expand(-1, config.num_frames, -1, -1)


def _sample_motion(dice: Dice, space: Space, parts: Parts, config: SyntheticConfig) -> Tensor:
    """Place all solids in every frame, some of the clutter under way: poses ``[B, S, N, 3, 4]``."""
    tau = torch.arange(config.num_frames, dtype=torch.float64)[:, None]
    n = NUM_CLUTTER
    moves = dice.chance(config.moving_probability, 1) & dice.chance(0.35, n)
    pace = dice.log_uniform(0.02, 0.15, n, 1) * space.scale[:, None, None]
    velocity = pace * dice.normal(1, n, 3) * torch.tensor([1, 0.12, 1]) * moves[..., None]
    spin = dice.normal(0.12, n) * moves
    before = parts.centers.shape[1] - n
    velocity, spin = F.pad(velocity, (0, 0, before, 0)), F.pad(spin, (before, 0))
    centers = parts.centers[:, None] + velocity[:, None] * tau[..., None]
    yaw, pitch, roll = parts.angles[:, None].unbind(-1)
    yaw = yaw + spin[:, None] * tau
    rotation = _rotation(yaw, pitch.expand_as(yaw), roll.expand_as(yaw))
    return torch.cat([rotation, centers[..., None]], -1)


def _keeps_clear(cameras: Tensor, target: Tensor, poses: Tensor, half: Tensor) -> Tensor:
    """Tell which solids leave the camera and the near half of its view of the target free: bool ``[B, N]``."""
    near = torch.tensor([0.12, 0.25, 0.4, 0.55], dtype=torch.float64)[:, None]
    ends = torch.stack([cameras[:, 0], cameras[:, -1]], 1)[:, :, None]
    sight = (ends + near * (target[:, None, None] - ends)).flatten(1, 2)
    # Each frame's camera against that frame's solids; the lines of sight against the first and last frame's.
    at_camera = _distance(cameras[:, :, None], poses, half[:, None]).amin(1)
    in_sight = _distance(sight[:, :, None], poses[:, [0] * 4 + [-1] * 4], half[:, None]).amin(1)
    return (at_camera > _CLEARANCE) & (in_sight > 0.02)


def _distance(points: Tensor, poses: Tensor, half: Tensor) -> Tensor:
    """Measure from points ``[..., 3]`` to boxes around the solids; 0 inside."""
    local = (poses[..., :3] * (points - poses[..., 3])[..., None]).sum(-2)
    return (local.abs() - half).clamp_min(0).square().sum(-1).sqrt()


def _sample_looks(dice: Dice, parts: Parts) -> dict[str, Tensor]:
    n = NUM_SOLIDS + 1
    one_texture = dice.chance(0.7, n, 1) & (torch.arange(n) < NUM_SOLIDS)[:, None]
    textures = dice.uniform(0, 1, n, 6)
    repeats = dice.log_uniform(0.3, 1.2, n)
    # A texture covers about a solid's side once, whatever its size; the room's are in metres.
    repeats[:, :-1] *= 1.5 / (parts.half_sizes.amax(-1) + 0.05)
    return {
        "textures": torch.where(one_texture, textures[..., :1], textures),
        "repeats": repeats,
        "offsets": dice.uniform(0, 2, n, 2),
        "tints": dice.uniform(0.55, 1.15, n, 1) * dice.uniform(0.8, 1.2, n, 3),
    }


def _sample_light(dice: Dice, space: Space, first: Tensor) -> dict[str, Tensor]:
    half, is_open = space.half, space.is_open
    lamp = torch.stack([dice.uniform(-0.7, 0.7), dice.uniform(-0.95, -0.55), dice.uniform(-0.7, 0.7)], -1) * half
    bearing, elevation = dice.uniform(-math.pi, math.pi), dice.uniform(0.35, 1.3)
    sun = torch.stack([elevation.cos() * bearing.sin(), -elevation.sin(), elevation.cos() * bearing.cos()], -1)
    light = torch.where(is_open[:, None], _SUN_DISTANCE * sun, lamp)
    grey = dice.uniform(0.6, 1.0, 2, 1)
    blue = torch.tensor([[0.95, 1.0, 1.05], [0.6, 0.8, 1.1]]).double()
    return {
        "walls": ~is_open | dice.chance(0.5),
        "ceiling": ~is_open,
        "up": -first[..., 1],
        "light": (first[..., :3] * light[:, None]).sum(-1) + first[..., 3],
        "light_range": torch.where(is_open, 1e4, dice.uniform(1.5, 5)),
        "ambient": dice.uniform(0.3, 0.7),
        "sky": grey * torch.lerp(torch.ones_like(blue), blue, dice.uniform(0, 1, 1, 1)),
        "brightness": dice.uniform(0.33, 0.58),
        "cast": 1 + dice.normal(0.05, 3),
        "gamma": dice.normal(0.12).exp(),
    }

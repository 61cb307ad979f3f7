"""Furnish random rooms and yards: tables, cabinets, things on walls, and clutter on all of them.

Everything is drawn in float64 on the CPU. Lengths are in metres, as a person would guess them; axes are those of the
room: x and z along the walls, y down, the origin in the room's middle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from streamvggt.synthetic.world import SyntheticConfig

NUM_TABLES, NUM_CABINETS, NUM_PANELS, NUM_CLUTTER = 3, 4, 6, 44
NUM_SOLIDS = 5 * NUM_TABLES + NUM_CABINETS + NUM_PANELS + 1 + NUM_CLUTTER
"""Solids in a world: tables of a top and four legs, cabinets, panels on walls, a rug, clutter. The room comes after."""


class Dice:
    """Draw ``[B, *shape]`` random numbers, each row from a generator of its own."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        rows = [torch.rand(shape, generator=generator, dtype=torch.float64) for generator in self._generators]
        return low + (high - low) * torch.stack(rows)

    def log_uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return self.uniform(math.log(low), math.log(high), *shape).exp()

    def normal(self, deviation: float, *shape: int) -> Tensor:
        rows = [torch.randn(shape, generator=generator, dtype=torch.float64) for generator in self._generators]
        return deviation * torch.stack(rows)

    def chance(self, probability: float, *shape: int) -> Tensor:
        return self.uniform(0, 1, *shape) < probability


class Space(NamedTuple):
    """The place to furnish; all ``[B, ...]``."""

    is_open: Tensor
    is_closeup: Tensor
    scale: Tensor  # of the furniture: 1 indoors
    half: Tensor  # [B, 3]
    focus: Tensor  # [B, 2], xz, what the camera is interested in


class Parts(NamedTuple):
    """Some solids ``[B, n, ...]`` on their way into a world."""

    centers: Tensor
    half_sizes: Tensor
    angles: Tensor  # yaw, pitch, roll, radians
    roundness: Tensor
    active: Tensor


def sample_space(dice: Dice, config: SyntheticConfig) -> Space:
    is_open, is_closeup = dice.chance(config.open_probability), dice.chance(config.closeup_probability)
    room = torch.stack([dice.log_uniform(1.3, 4), dice.uniform(1.15, 1.6), dice.log_uniform(1.3, 4)], -1)
    yard = torch.stack([dice.uniform(7, 25), dice.uniform(2, 7), dice.uniform(7, 25)], -1)
    half = torch.where(is_open[:, None], yard, room)
    scale = torch.where(is_open & ~is_closeup, dice.log_uniform(1.3, 3.5), 1.0)
    return Space(is_open, is_closeup, scale, half, dice.uniform(-0.4, 0.4, 2) * half[:, ::2])


def furnish(dice: Dice, space: Space) -> tuple[Parts, Tensor]:
    """Draw all solids ``[B, NUM_SOLIDS, ...]``, and on which of them each piece of clutter stands, -1 for the floor."""
    tables, cabinets = _sample_tables(dice, space), _sample_cabinets(dice, space)
    panels, rug = _sample_panels(dice, space), _sample_rug(dice, space)
    clutter, support = _sample_clutter(dice, space, tables, cabinets)
    return Parts(
        *(torch.cat(values, 1) for values in zip(tables, cabinets, panels, rug, clutter, strict=True))
    ), support


def stand_together(active: Tensor, support: Tensor) -> Tensor:
    """Remove a table whole, and with each piece of furniture what stands on it."""
    tables, rest = active[:, : 5 * NUM_TABLES], active[:, 5 * NUM_TABLES :]
    whole = tables.unflatten(1, (NUM_TABLES, 5)).all(-1, keepdim=True).expand(-1, -1, 5).flatten(1)
    furniture, clutter = torch.cat([whole, rest], 1).split([active.shape[1] - NUM_CLUTTER, NUM_CLUTTER], 1)
    carried = furniture.take_along_dim(support.clamp_min(0), 1) | (support < 0)
    return torch.cat([furniture, clutter & carried], 1)


def _sample_tables(dice: Dice, space: Space) -> Parts:
    n = NUM_TABLES
    scale = space.scale[:, None]
    wide, deep = dice.uniform(0.3, 0.9, n) * scale, dice.uniform(0.22, 0.5, n) * scale
    height, thick = dice.uniform(0.35, 0.95, n) * scale, dice.uniform(0.01, 0.04, n) * scale
    leg = dice.uniform(0.015, 0.05, n) * scale
    yaw = dice.uniform(-math.pi, math.pi, n)
    first_at_focus = (torch.arange(n) > 0) | ~space.is_closeup[:, None]
    xz = space.focus[:, None] + dice.normal(1.3, n, 2) * (scale * first_at_focus)[..., None]
    xz = _inside(xz, space, 0.3)

    floor = space.half[:, 1:2]
    top = torch.stack([xz[..., 0], floor - height + thick, xz[..., 1]], -1)[:, :, None]
    sign = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    reach = torch.stack([wide, deep], -1) - 1.5 * leg[..., None]
    at = _turn(sign * reach[:, :, None], yaw[..., None]) + xz[:, :, None]
    middle = (floor - height / 2 + thick)[..., None].expand(-1, -1, 4)
    legs = torch.stack([at[..., 0], middle, at[..., 1]], -1)
    leg_half = torch.stack([leg, height / 2 - thick, leg], -1)[:, :, None].expand(-1, -1, 4, -1)
    halves = torch.cat([torch.stack([wide, thick, deep], -1)[:, :, None], leg_half], 2)

    round_top, round_legs = dice.chance(0.25, n, 1), dice.chance(0.5, n, 1).expand(-1, -1, 4)
    is_round = torch.cat([round_top, round_legs], 2).double()
    exists = dice.chance(0.7, n) | ~first_at_focus
    return Parts(
        torch.cat([top, legs], 2).flatten(1, 2),
        halves.flatten(1, 2),
        torch.stack([yaw, 0 * yaw, 0 * yaw], -1)[:, :, None].expand(-1, -1, 5, -1).flatten(1, 2),
        torch.stack([is_round, 0 * is_round], -1).flatten(1, 2),
        exists[..., None].expand(-1, -1, 5).flatten(1, 2),
    )


def _sample_cabinets(dice: Dice, space: Space) -> Parts:
    n = NUM_CABINETS
    sizes = [dice.uniform(0.2, 0.8, n), dice.log_uniform(0.25, 1.1, n), dice.uniform(0.12, 0.35, n)]
    half = torch.stack(sizes, -1) * space.scale[:, None, None]
    xz, yaw = _against_wall(dice, space, half, n)
    # Outdoors they stand about like sheds and houses.
    anywhere = _inside(space.focus[:, None] + dice.normal(4, n, 2), space, 1)
    xz = torch.where(space.is_open[:, None, None], anywhere, xz)
    yaw = yaw + dice.normal(0.5, n) * space.is_open[:, None]
    centers = torch.stack([xz[..., 0], space.half[:, 1:2] - half[..., 1], xz[..., 1]], -1)
    return _boxes(centers, half, yaw, dice.chance(0.75, n))


def _sample_panels(dice: Dice, space: Space) -> Parts:
    """Hang pictures, doors and windows: thin boxes on the walls."""
    n = NUM_PANELS
    sizes = [dice.log_uniform(0.12, 0.8, n), dice.log_uniform(0.15, 0.9, n), dice.uniform(0.006, 0.03, n)]
    half = torch.stack(sizes, -1) * space.scale[:, None, None]
    xz, yaw = _against_wall(dice, space, half, n)
    free = (space.half[:, 1:2] - half[..., 1]).clamp_min(0)
    centers = torch.stack([xz[..., 0], dice.uniform(-0.8, 0.8, n) * free, xz[..., 1]], -1)
    return _boxes(centers, half, yaw, dice.chance(0.8, n))


def _sample_rug(dice: Dice, space: Space) -> Parts:
    half = torch.stack([dice.uniform(0.5, 1.6, 1), dice.uniform(0.002, 0.008, 1), dice.uniform(0.4, 1.1, 1)], -1)
    xz = _inside(space.focus[:, None] + dice.normal(0.4, 1, 2), space, 0.5)
    centers = torch.stack([xz[..., 0], space.half[:, 1:2] - half[..., 1], xz[..., 1]], -1)
    return _boxes(centers, half, dice.uniform(-math.pi, math.pi, 1), dice.chance(0.6, 1))


def _sample_clutter(dice: Dice, space: Space, tables: Parts, cabinets: Parts) -> tuple[Parts, Tensor]:
    """Put things on tables, cabinets and the floor; also say on which solid each stands, -1 for the floor."""
    n = NUM_CLUTTER
    scale = space.scale[:, None]
    aspect = dice.log_uniform(0.35, 1.5, n, 3)
    half = dice.log_uniform(0.03, 0.2, n, 1) * aspect * scale[..., None]
    kind = dice.uniform(0, 1, n)
    round_xz, round_y = kind > 0.5, kind > 0.78
    half[..., 2] = torch.where(round_xz & dice.chance(0.7, n), half[..., 0], half[..., 2])

    # What they stand on: a row of tables, cabinets and the floor around the focus.
    floor_half = 1.7 * space.scale
    ground = torch.stack([space.focus[:, 0], space.half[:, 1], space.focus[:, 1]], -1)
    tops = tables.centers[:, ::5] - torch.tensor([0, 1, 0]) * tables.half_sizes[:, ::5]
    lids = cabinets.centers - torch.tensor([0, 1, 0]) * cabinets.half_sizes
    centers = torch.cat([tops, lids, ground[:, None]], 1)
    extents = torch.cat([tables.half_sizes[:, ::5, ::2], cabinets.half_sizes[..., ::2]], 1) * 0.85
    extents = torch.cat([extents, floor_half[:, None, None].expand(-1, 1, 2)], 1)
    yaws = torch.cat([tables.angles[:, ::5, 0], cabinets.angles[..., 0], torch.zeros_like(ground[:, :1])], 1)

    usual = torch.tensor([0.17, 0.12, 0.12, 0.05, 0.05, 0.05, 0.05, 0.39]).double()
    closeup = torch.tensor([0.66, 0.04, 0.04, 0.02, 0.02, 0.02, 0.02, 0.18]).double()
    shares = torch.where(space.is_closeup[:, None], closeup, usual).cumsum(-1)
    chosen = torch.searchsorted(shares, dice.uniform(0, 1, n)).clamp(max=shares.shape[1] - 1)
    extent = extents.take_along_dim(chosen[..., None], 1)
    xz = _turn(dice.uniform(-1, 1, n, 2) * extent, yaws.take_along_dim(chosen, 1))
    at = centers.take_along_dim(chosen[..., None], 1)
    on_floor = chosen == shares.shape[1] - 1
    half = torch.where(on_floor[..., None], 1.6 * half, half)
    lift = dice.uniform(0.2, 1.6, n) * scale * (on_floor & dice.chance(0.12, n))
    xz = _inside(at[..., ::2] + xz, space, 0.1)
    position = torch.stack([xz[..., 0], at[..., 1] - half[..., 1] - lift, xz[..., 1]], -1)
    tilt = dice.normal(0.5, n, 2) * (lift > 0)[..., None]
    angles = torch.cat([dice.uniform(-math.pi, math.pi, n, 1), tilt], -1)
    roundness = torch.stack([round_xz, round_y], -1).double()
    parents = torch.tensor([*range(0, 5 * NUM_TABLES, 5), *range(5 * NUM_TABLES, 5 * NUM_TABLES + NUM_CABINETS), -1])
    exists = dice.uniform(0, 1, n) < dice.uniform(0.6, 1, 1)
    return Parts(position, half, angles, roundness, exists), parents[chosen]


def _boxes(centers: Tensor, half: Tensor, yaw: Tensor, exists: Tensor) -> Parts:
    return Parts(centers, half, torch.stack([yaw, 0 * yaw, 0 * yaw], -1), torch.zeros_like(half[..., :2]), exists)


def _turn(xz: Tensor, yaw: Tensor) -> Tensor:
    """Turn ``[..., 2]`` vectors of the ground by a yaw ``[...]``."""
    x, z = xz.unbind(-1)
    return torch.stack([x * yaw.cos() + z * yaw.sin(), z * yaw.cos() - x * yaw.sin()], -1)


def _inside(xz: Tensor, space: Space, margin: float) -> Tensor:
    """Keep positions ``[B, n, 2]`` on the ground off the walls."""
    limit = (space.half[:, None, ::2] - margin).clamp_min(0)
    return xz.clamp(-limit, limit)


def _against_wall(dice: Dice, space: Space, half: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Back boxes ``[B, n, 3]`` against random walls: their xz and yaw, depth along their own z axis."""
    wall, along = (dice.uniform(0, 4, n)).floor(), dice.uniform(-1, 1, n)
    yaw = wall * (math.pi / 2)
    long, across = space.half[:, None, 0], space.half[:, None, 2]
    faces_x = wall % 2 == 1  # a quarter turn brings the box's depth onto the x axis
    room_along, room_deep = torch.where(faces_x, across, long), torch.where(faces_x, long, across)
    at = torch.stack([along * (room_along - half[..., 0]).clamp_min(0), room_deep - half[..., 2]], -1)
    return _turn(at, yaw), yaw

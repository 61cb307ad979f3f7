"""Turn a world into images and depth: cast the rays, colour what they hit, light it, expose it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from streamvggt.geometry import invert_pose, unproject
from streamvggt.synthetic.raycast import Solids, blocked, nearest, room_exit
from streamvggt.synthetic.textures import TextureBank
from streamvggt.synthetic.world import World

TILE = 7
"""Side of the squares of pixels that are cast together; it divides every size that a 14-pixel patch divides."""

_SHADOW_BIAS = 0.004  # shadow rays end this far off the surface, metres
_GRAIN = 9.0  # repeats of the fine texture in one of the coarse
_ON_QUADRIC = 0.998  # where a solid's quadric reaches this, the hit is on its round side, not on a flat face


class Render(NamedTuple):
    """``F`` frames.

    Attributes:
        radiance: ``[F, 3, H, W]``, >= 0, before exposure.
        depth: ``[F, H, W]``, z in the camera, 0 where there is only sky.
        surface: uint8 ``[F, H, W]``, number of the solid that is seen.
    """

    radiance: Tensor
    depth: Tensor
    surface: Tensor


class _Surface(NamedTuple):
    """What the rays hit, in vectors over pixels ``[3, F, T, K]`` and values ``[F, T, K]``."""

    points: Tensor  # world
    normals: Tensor  # unit, world, towards the camera
    face: Tensor  # int64, 0..5: which side of the unit cube
    u: Tensor  # texture coordinates, repeats
    v: Tensor
    tints: Tensor
    texture: Tensor  # int64
    repeats: Tensor  # a metre


def render(world: World, bank: TextureBank, image_hw: tuple[int, int], *, shadows: bool) -> Render:
    """Render every frame of a flattened world."""
    origins = invert_pose(world.extrinsics)[..., 3]
    still = torch.cat([world.extrinsics[..., :3], torch.zeros_like(world.extrinsics[..., 3:])], -1)
    ones = torch.ones(len(origins), *image_hw, device=origins.device)
    directions = _to_tiles(unproject(ones, still, world.intrinsics).permute(3, 0, 1, 2))

    # Rays advance by 1 in z, so their parameter is the depth.
    solids, room = world.solids, world.poses.shape[1] - 1
    background = room_exit(_to_unit(world)[:, -1], origins, directions)
    depth, hit = nearest(solids, origins, directions, background)
    hit = torch.where(hit < 0, room, hit)
    points = torch.addcmul(origins.T[..., None, None], directions, depth)
    surface = _describe(world, bank, points, hit)

    # A slanted surface packs more texture into a pixel one way; the mean of both ways blurs and flickers little.
    facing = (directions * surface.normals).sum(0).abs() * directions.square().sum(0).rsqrt_()
    footprint = depth * surface.repeats / (world.intrinsics[:, 0, 0, None, None] * facing.clamp_min_(0.02).sqrt_())
    albedo = _albedo(bank, surface, footprint)
    radiance = albedo * _light(world, solids, surface, shadows=shadows)

    is_sky = (surface.face == 2) & ~world.ceiling[:, None, None]
    is_sky |= (surface.face != 3) & ~world.walls[:, None, None]
    is_sky &= hit == room
    radiance = torch.where(is_sky, _sky(world, directions), radiance)
    depth = torch.where(is_sky, 0, depth)
    return Render(
        _to_images(radiance, image_hw).movedim(0, 1),
        _to_images(depth, image_hw),
        _to_images(hit.to(torch.uint8), image_hw),
    )


def expose(radiance: Tensor, world: World) -> Tensor:
    """Expose clips as a camera would: one gain for all frames of a clip, a colour cast, a curve.

    Args:
        radiance: ``[B, S, 3, H, W]``.
        world: the clips, not flattened.

    Returns:
        Images ``[B, S, 3, H, W]`` in [0, 1].
    """
    # Summed in float64: the order of summation, which differs between batches, must not show.
    mean = radiance.mean((2, 3, 4), dtype=torch.float64).mean(1, keepdim=True).clamp_min(1e-3)
    gain = (world.brightness / mean).to(radiance)[..., None] * world.cast
    return (radiance * gain[..., None, None]).clamp_(0, 1).pow_(world.gamma[..., None, None, None])


def _to_tiles(image: Tensor) -> Tensor:
    """Cut ``[..., H, W]`` into ``[..., T, K]``."""
    rows, columns = image.shape[-2] // TILE, image.shape[-1] // TILE
    tiles = image.unflatten(-1, (columns, TILE)).unflatten(-3, (rows, TILE)).transpose(-3, -2)
    return tiles.reshape(*image.shape[:-2], rows * columns, TILE * TILE)


def _to_images(tiles: Tensor, image_hw: tuple[int, int]) -> Tensor:
    rows, columns = image_hw[0] // TILE, image_hw[1] // TILE
    image = tiles.unflatten(-1, (TILE, TILE)).unflatten(-3, (rows, columns)).transpose(-3, -2)
    return image.reshape(*tiles.shape[:-2], *image_hw)


def _to_unit(world: World) -> Tensor:
    return Solids(world.poses, world.half_sizes, world.roundness, world.active).to_unit


def _describe(world: World, bank: TextureBank, points: Tensor, hit: Tensor) -> _Surface:
    """Find normal, face and texture coordinates of points on known solids."""
    frames, count = world.active.shape
    looks = torch.cat(
        [
            _to_unit(world).flatten(2),
            world.half_sizes * world.repeats[..., None],
            world.roundness,
            world.offsets,
            world.tints,
            world.repeats[..., None],
        ],
        -1,
    )
    which = (hit + count * torch.arange(frames, device=hit.device)[:, None, None]).flatten()
    table = looks.flatten(0, 1).T.contiguous()
    chosen = table.index_select(1, which).view(-1, *hit.shape)
    matrix, extents, (round_xz, round_y), offsets, tints, repeats = chosen.split([12, 3, 2, 2, 3, 1])

    unit = [matrix[4 * i + 3].addcmul(matrix[4 * i], points[0]) for i in range(3)]
    for i, value in enumerate(unit):
        value.addcmul_(matrix[4 * i + 1], points[1]).addcmul_(matrix[4 * i + 2], points[2])
    size = [value.abs() for value in unit]
    on_x = (size[0] >= size[1]) & (size[0] >= size[2])
    on_y = ~on_x & (size[1] >= size[2])
    along = torch.where(on_x, unit[0], torch.where(on_y, unit[1], unit[2]))
    axis = torch.where(on_x, 0, torch.where(on_y, 1, 2))
    face = 2 * axis + (along > 0)

    # The gradient of what bounds the solid here, the quadric or a face; mapped to the world by the transpose.
    slope = [round_xz * unit[0], round_y * unit[1], round_xz * unit[2]]
    is_round = slope[0] * unit[0] + slope[1] * unit[1] + slope[2] * unit[2] > _ON_QUADRIC
    sign = along.sign()
    flat = [sign * on_x, sign * on_y, sign * ~(on_x | on_y)]
    slope = [torch.where(is_round, a, b) for a, b in zip(slope, flat, strict=True)]
    normals = torch.stack(
        [slope[0] * matrix[j] + slope[1] * matrix[4 + j] + slope[2] * matrix[8 + j] for j in range(3)]
    )
    normals *= normals.square().sum(0).rsqrt_()
    normals *= torch.where(hit == count - 1, -1.0, 1.0)

    metric = [value.mul_(extent) for value, extent in zip(unit, extents, strict=True)]
    u = torch.where(on_x, metric[2], metric[0]) + offsets[0]
    v = torch.where(on_y, metric[2], metric[1]) + offsets[1]
    textures = (world.textures * bank.num_textures).long().flatten()
    texture = textures.index_select(0, which * 6 + face.flatten()).view_as(hit)
    return _Surface(points, normals, face, u, v, tints, texture, repeats[0])


def _albedo(bank: TextureBank, surface: _Surface, footprint: Tensor) -> Tensor:
    """Look up the texture and, finer, another in grey over it: close up, too, there must be something to see."""
    color = bank.sample(surface.texture, surface.u, surface.v, footprint) * surface.tints
    other = (surface.texture + bank.num_textures // 3) % bank.num_textures
    grain = bank.sample(other, surface.u * _GRAIN, surface.v * _GRAIN, footprint * _GRAIN)[1]
    return color.mul_(0.65 + 0.7 * grain)


def _light(world: World, solids: Solids, surface: _Surface, *, shadows: bool) -> Tensor:
    """Add up the light on the surface ``[F, T, K]``: a lamp or the sun, and light from all around, more from above."""
    from_light = torch.add(surface.points, surface.normals, alpha=_SHADOW_BIAS)
    from_light -= world.light.T[..., None, None]
    square = from_light.square().sum(0)
    lambert = -(from_light * surface.normals).sum(0) * square.rsqrt()
    direct = lambert.clamp_min_(0) / (1 + square / world.light_range[:, None, None].square())
    if shadows:
        direct *= ~blocked(solids, world.light, from_light, (direct > 0).to(direct))  # up to the surface, where lit
    from_above = (surface.normals * world.up.T[..., None, None]).sum(0)
    ambient = world.ambient[:, None, None]
    return ambient * (0.8 + 0.2 * from_above) + (1 - ambient) * 2 * direct


def _sky(world: World, directions: Tensor) -> Tensor:
    elevation = (directions * world.up.T[..., None, None]).sum(0) * directions.square().sum(0).rsqrt_()
    low, high = world.sky.permute(1, 2, 0)[..., None, None]
    return torch.lerp(low, high, elevation.clamp_(0, 1))
